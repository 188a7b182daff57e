#!/usr/bin/env bash
# PEFT with transformers 5: target_modules gate_proj, up_proj, down_proj is the routed experts alone in DeepSeek-V3, GLM-4.5, Qwen3-MoE and ERNIE 4.5, and everything but them in Qwen2-MoE. That dense layers, shared experts or experts get no LoRA is not said.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir peft==0.21.2 transformers==5.24.0 torch==2.15.0 safetensors accelerate==1.15.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, warnings, torch
from importlib.metadata import version
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

print("peft", version("peft"), "transformers", version("transformers"))
SMALL = dict(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=8, intermediate_size=24, moe_intermediate_size=16, num_experts_per_tok=2,
             pad_token_id=0, bos_token_id=1, eos_token_id=2)
MLA = dict(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8)
ONE_DENSE = dict(n_routed_experts=4, n_group=1, topk_group=1, n_shared_experts=1, first_k_dense_replace=1)
CASES = {  # each with a dense layer and one with experts
    "deepseek_v3": SMALL | MLA | ONE_DENSE,
    "glm4_moe": SMALL | ONE_DENSE,
    "qwen3_moe": dict(SMALL, num_experts=4, mlp_only_layers=[0], decoder_sparse_step=1),
    "qwen2_moe": dict(SMALL, num_experts=4, mlp_only_layers=[0], decoder_sparse_step=1, shared_expert_intermediate_size=16),
    "ernie4_5_moe": dict(SMALL, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_layer_start_index=1, moe_layer_end_index=1),
}
ROUTED = CASES.keys() - {"qwen2_moe"}
kind_of = lambda n: "shared expert" if "shared_expert" in n else "routed experts" if ".experts" in n else "dense layer"
bad = 0
for kind, sizes in CASES.items():
    m = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    there = {kind_of(n) for n, _ in m.named_parameters() if ".mlp." in n and any(p in n for p in ("gate_proj", "up_proj", "down_proj", "gate_up_proj"))}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        p = get_peft_model(m, LoraConfig(r=4, target_modules=["gate_proj", "up_proj", "down_proj"]))
    given = {kind_of(n) for n, q in p.named_parameters() if "lora_B" in n and q.requires_grad}
    left = there - given
    named = [w for w in said if any(x in str(w.message) for x in ("shared", "dense", "routed", "skip", "experts"))]
    print(f"{kind}: MLPs with these projections: {sorted(there)}; with LoRA: {sorted(given)}; without: {sorted(left)}; warnings that say so: {len(named)}")
    bad += given != ({"routed experts"} if kind in ROUTED else there - {"routed experts"}) or not left or bool(named)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" && rc=0 || rc=$?; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
