#!/usr/bin/env bash
# DeepSpeed: a gate of k=2 draws the second expert of a token at random also in eval(), so that two passes over the same input differ in most tokens, whatever the capacity; k=1 drops tokens over the capacity at random, also in eval(). k=4 is what one expects. A token that lost one of two experts gets all of the other's output.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 numpy==2.4.6 setuptools wheel
"$dir/venv/bin/pip" install --quiet --no-cache-dir deepspeed==0.19.8
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu TMPDIR="$dir" HOME="$dir"
cat > "$dir/check.py" <<'PY'
import sys, torch
from importlib.metadata import version
from deepspeed.moe.sharded_moe import TopKGate

T, E, H = 512, 8, 32
x = torch.randn(T, H, generator=torch.Generator().manual_seed(1))
print("deepspeed", version("deepspeed"), "torch", torch.__version__, f"{T} tokens, {E} experts, gates in eval(), all options but those named as by default")
WANT = {  # whether two passes are the same, whether all of the best k experts are taken
    (1, "eval_capacity_factor", 1.): (False, False), (1, "drop_tokens", False): (True, True),
    (2, "eval_capacity_factor", 1.): (False, False), (2, "drop_tokens", False): (False, False), (2, "top2_2nd_expert_sampling", False): (True, False),
    (4, "eval_capacity_factor", 1.): (True, False), (4, "drop_tokens", False): (True, True),
}
bad = 0
for (k, name, value), want in WANT.items():
    torch.manual_seed(1)
    gate = TopKGate(H, E, k, **{name: value}).eval()
    with torch.no_grad():
        passes = [gate(x)[1].sum(-1) for _ in range(3)]  # [tokens, experts], the weights that tokens get
        scores = torch.softmax(x @ gate.wg.weight.T, -1)
    moved = [float(((a > 0) != (passes[0] > 0)).any(-1).float().mean()) for a in passes[1:]]
    best = scores.topk(k).indices
    taken = float((passes[0] > 0).gather(1, best).float().mean())
    first = float((passes[0] > 0).gather(1, best[:, :1]).float().mean())
    count = (passes[0] > 0).sum(-1)
    alone = float(passes[0][count == 1].sum(-1).mean()) if k == 2 and (count == 1).any() else None
    said = f"; tokens that lost one of two experts: {float((count == 1).float().mean()):.0%}, the other has weight {alone:.2f}" if alone is not None else ""
    print(f"k={k}, {name}={value}: tokens with other experts in a second and a third pass {moved[0]:.0%}, {moved[1]:.0%}; of the best {k} experts {taken:.0%} are taken, of the best one {first:.0%}{said}")
    bad += (max(moved) == 0) != want[0] or (taken == 1) != want[1] or (alone is not None and abs(alone - 1) > 1e-5)
    if name == "drop_tokens" and k == 2:
        bad += first != 1 or min(moved) < .5
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" > "$dir/out" && rc=0 || rc=$?; grep -a "^deepspeed\|^k=" "$dir/out" || true; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
