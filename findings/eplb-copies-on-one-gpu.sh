#!/usr/bin/env bash
# EPLB, as vLLM and SGLang have it from DeepSeek: a hot expert gets more copies than there are GPUs, and several copies lie on one GPU: of 32 redundant slots for 256 experts on 8 GPUs, with counts that fall as 1/rank, 7 hold weights that their GPU has already; where all counts are the same, 4 in vLLM and 16 in SGLang do. With at most one copy per GPU the loads are within 1% of each other, too.
# Needs python3 (3.10 or later), about 9 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 numpy==2.4.6
"$dir/venv/bin/pip" install --quiet --no-cache-dir --no-deps vllm==0.33.0 sglang==0.5.23
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import glob, sys, types
from importlib.metadata import version
import numpy as np, torch

# The files of the algorithm alone: the packages would import all of an engine.
site = glob.glob(sys.prefix + "/lib/python*/site-packages/")[0]
sys.path.insert(0, site + "sglang/srt/eplb/eplb_algorithms")
sys.modules["policy"] = types.ModuleType("policy")
sys.modules["policy"].__path__ = [site + "vllm/distributed/eplb/policy"]
import deepseek
from policy.default import DefaultEplbPolicy

def vllm(counts, slots, gpus):
    return DefaultEplbPolicy.rebalance_experts(torch.tensor(counts)[None], slots, 1, 1, gpus)[0].numpy()

def sglang(counts, slots, gpus):
    return deepseek.rebalance_experts(torch.tensor(counts)[None], slots, 1, 1, gpus, False)[0][0].numpy()

def once_per_gpu(counts, slots, gpus):
    """The same two steps, but no more copies than GPUs, and the copies of an expert go to as many GPUs, the lightest that have room."""
    n = len(counts)
    copies = np.ones(n, int)
    for _ in range(slots - n):
        copies[np.argmax(np.where(copies < gpus, counts / copies, -1))] += 1
    has, load = [[] for _ in range(gpus)], np.zeros(gpus)
    # Experts with the most copies have the least choice.
    for e in sorted(range(n), key=lambda e: (-copies[e], -counts[e] / copies[e])):
        room = sorted((g for g in range(gpus) if len(has[g]) < slots // gpus), key=load.__getitem__)[: copies[e]]
        assert len(room) == copies[e]
        for g in room:
            has[g].append(e)
            load[g] += counts[e] / copies[e]
    return np.concatenate(has)

def look(counts, placed, gpus):
    copies = np.bincount(placed, minlength=len(counts))
    by_gpu = placed.reshape(gpus, -1)
    load = (counts / copies)[by_gpu].sum(1)
    return int(copies.max()), sum(len(r) - len(set(r.tolist())) for r in by_gpu), load.max() / load.mean()

print("vllm", version("vllm"), "sglang", version("sglang"))
bad = 0
for name, slope, experts, slots, gpus in (("1/rank", 1.0, 256, 288, 8), ("1/rank^1.2", 1.2, 256, 288, 8), ("1/rank", 1.0, 128, 160, 8), ("all the same", 0.0, 256, 288, 8)):
    counts = (1e6 / np.arange(1, experts + 1) ** slope).astype(np.float32)[np.random.default_rng(0).permutation(experts)]
    for engine in (vllm, sglang, once_per_gpu):
        placed = engine(counts, slots, gpus)
        assert set(placed.tolist()) == set(range(experts)) and len(placed) == slots
        most, again, imbalance = look(counts, placed, gpus)
        print(f"counts {name}, {experts} experts in {slots} slots of {gpus} GPUs, {engine.__name__}: {most} copies of the hottest, {again} of {slots - experts} redundant slots hold what their GPU has, largest load over mean {imbalance:.3f}")
        if engine is once_per_gpu:
            bad += again != 0 or imbalance > 1.05
        else:
            # Equal loads are sorted in no fixed order, so the number is not the same on every processor.
            bad += again < (4 if slope else 1) or (most > gpus) != bool(slope)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
