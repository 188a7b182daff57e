#!/usr/bin/env bash
# From the same bfloat16 checkpoint and the same input, transformers computes the routers of DeepSeek-V2 and V3, GLM-4.5 and ERNIE 4.5 in float32, mlx-lm in bfloat16, which moves 4% of the tokens of a layer to other experts. Qwen3-MoE and Mixtral are rounded by both, and still differ, by what ties come to.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 transformers==5.24.0 accelerate==1.15.0 safetensors==0.8.0 "mlx[cpu]==0.32.4" mlx-lm==0.32.2
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import json, sys, tempfile
from importlib.metadata import version
from pathlib import Path
import mlx.core as mx, numpy as np, torch
from mlx_lm.utils import load_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

mx.set_default_device(mx.cpu)
print(*(f"{p} {version(p)}" for p in ("transformers", "mlx", "mlx-lm", "torch")))
T, H, E, K = 2048, 512, 256, 8
SMALL = dict(vocab_size=64, hidden_size=H, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=16, intermediate_size=16, moe_intermediate_size=16, num_experts_per_tok=K, max_position_embeddings=64,
             pad_token_id=0, bos_token_id=1, eos_token_id=2)
MLA = dict(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
ONE_GROUP = dict(n_routed_experts=E, first_k_dense_replace=0, n_shared_experts=1, n_group=1, topk_group=1)
CASES = {
    "deepseek_v2": SMALL | MLA | ONE_GROUP | dict(topk_method="greedy"),
    "deepseek_v3": SMALL | MLA | ONE_GROUP,
    "glm4_moe": SMALL | ONE_GROUP,
    "ernie4_5_moe": SMALL | dict(moe_num_experts=E, moe_k=K, moe_num_shared_experts=1, moe_layer_start_index=0, moe_layer_end_index=0, moe_layer_interval=1, use_bias=False),
    "qwen3_moe": SMALL | dict(num_experts=E, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True),
    "mixtral": SMALL | dict(num_local_experts=E, num_attention_heads=32),
}
EXACT = {"deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe"}
# What mlx-lm asks of config.json and transformers 5 has moved or renamed; the router does not depend on it.
OLD = dict(rope_theta=1e4, rope_scaling=None, partial_rotary_factor=.5, num_experts=E, num_experts_per_tok=K, attention_bias=False, use_qk_norm=False)
g = torch.Generator().manual_seed(1)
x, w = torch.randn(1, T, H, generator=g).bfloat16(), (torch.randn(E, H, generator=g) * H ** -.5).bfloat16()
experts = lambda ids: np.sort(np.array(ids).reshape(T, K), -1)
exact = experts((x[0].double() @ w.double().T).topk(K).indices)
apart = lambda a, b: float((a != b).any(-1).mean())
bad = 0
for kind, sizes in CASES.items():
    torch.manual_seed(1)
    src = tempfile.mkdtemp()
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.bfloat16).save_pretrained(src)
    t = load_file(src + "/model.safetensors")
    name = next(n for n in t if list(t[n].shape) == [E, H])
    t[name] = w.clone()
    t = {n: v.zero_() if "correction_bias" in n else v for n, v in t.items()}
    save_file(t, src + "/model.safetensors", metadata={"format": "pt"})
    config = json.load(open(src + "/config.json"))
    seen = []
    block = AutoModelForCausalLM.from_pretrained(src, dtype=torch.bfloat16).eval().model.layers[0].mlp
    block.experts.register_forward_pre_hook(lambda m, a, k: seen.append(next(v for v in [*a[1:], *k.values()] if torch.is_tensor(v) and not v.is_floating_point())), with_kwargs=True)
    with torch.no_grad():
        block(x)
    ours = experts(seen[0])
    if kind == "deepseek_v2":
        OLD["rope_scaling"] = dict(type="yarn", factor=1., mscale_all_dim=0, original_max_position_embeddings=64)
    json.dump(OLD | {n: v for n, v in config.items() if v is not None}, open(src + "/config.json", "w"))
    OLD["rope_scaling"] = None
    model, _ = load_model(Path(src))
    block = next(b for _, b in model.named_modules() if hasattr(b, "switch_mlp"))
    block.switch_mlp = lambda y, ids, *a, **k: seen.append(np.array(ids)) or mx.zeros((*ids.shape, y.shape[-1]), y.dtype)
    mx.eval(block(mx.array(x.float().numpy()).astype(mx.bfloat16)))
    theirs = experts(seen[1])
    print(f"{kind}, router in {str(t[name].dtype)[6:]} on disk: tokens with other experts than by exact logits: transformers {apart(ours, exact):.1%}, mlx-lm {apart(theirs, exact):.1%}; than each other {apart(ours, theirs):.1%}")
    bad += (apart(ours, exact) < .005) != (kind in EXACT) or apart(theirs, exact) < .02 or apart(ours, theirs) < .02
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" > "$dir/out" && rc=0 || rc=$?; grep -a "^transformers\|, router in" "$dir/out" || true; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
