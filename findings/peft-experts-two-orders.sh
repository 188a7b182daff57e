#!/usr/bin/env bash
# PEFT: in a LoRA adapter on stacked experts, the ranks of an expert are neighbours in lora_A but lie apart in lora_B.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir peft==0.21.2 transformers==5.24.0 torch==2.15.0 safetensors accelerate==1.15.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, tempfile, torch
from importlib.metadata import version
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
E, r = 4, 3
c = AutoConfig.for_model("qwen3_moe", vocab_size=32, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=E,
                         num_experts_per_tok=2, moe_intermediate_size=48, decoder_sparse_step=1, mlp_only_layers=[])
m = AutoModelForCausalLM.from_config(c, dtype=torch.float32)
weight = lambda m: next(p for n, p in m.named_parameters() if n.endswith("experts.down_proj")).detach().clone()
before = weight(m)
p = get_peft_model(m, LoraConfig(r=r, lora_alpha=r, target_parameters=["mlp.experts.down_proj"]))
g = torch.Generator().manual_seed(1)
for n, q in p.named_parameters():
    if "lora_" in n:
        q.data = torch.randn(q.shape, generator=g)
out = tempfile.mkdtemp()
p.save_pretrained(out)
t = load_file(out + "/adapter_model.safetensors")
A, B = (next(v for n, v in t.items() if f"lora_{x}" in n) for x in "AB")
delta = weight(p.merge_and_unload()) - before
print("peft", version("peft"), "lora_A", list(A.shape), "lora_B", list(B.shape), "down_proj", list(delta.shape))
got = {}
for a in ("together", "apart"):
    for b in ("together", "apart"):
        cut = lambda m, how: m.reshape(E, r, -1) if how == "together" else m.reshape(r, E, -1).transpose(0, 1)
        d = torch.einsum("eri,ero->eoi", cut(A, a), cut(B.T, b))
        got[a, b] = ((d - delta).norm() / delta.norm()).item()
        print(f"ranks of an expert {a} in lora_A, {b} in lora_B: distance from what merging adds {got[a, b]:.1e}")
sys.exit(not (got["together", "apart"] < 1e-4 and min(v for k, v in got.items() if k != ("together", "apart")) > .1))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
