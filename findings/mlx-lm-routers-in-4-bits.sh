#!/usr/bin/env bash
# mlx-lm: quantising to 4 bits puts the routers of Mixtral, OLMoE, Qwen2-MoE and ERNIE 4.5 into 4 bits, too, so that tokens go to other experts; those of Qwen3-MoE and gpt-oss get 8, those of DeepSeek-V3 and GLM-4.5 stay floats.
# Needs python3 (3.11 or later), about 1 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir mlx-lm==0.32.2 "mlx[cpu]==0.32.4" transformers==5.24.0
export HF_HUB_OFFLINE=1 TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import contextlib, io, sys
import mlx.core as mx, mlx.nn as nn
import numpy as np
from importlib import import_module
from importlib.metadata import version
from mlx_lm.utils import quantize_model

mx.set_default_device(mx.cpu)
mx.random.seed(1)
print("mlx-lm", version("mlx-lm"), "mlx", version("mlx"))
H, E, K = 512, 64, 8
SMALL = dict(vocab_size=64, hidden_size=H, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=8, head_dim=64, intermediate_size=128, rms_norm_eps=1e-6, rope_theta=10000.0,
             max_position_embeddings=256, tie_word_embeddings=False)
CASES = {
    "mixtral": (dict(num_local_experts=E, num_experts_per_tok=K), 4),
    "olmoe": (dict(num_experts=E, num_experts_per_tok=K), 4),
    "qwen2_moe": (dict(num_experts=E, num_experts_per_tok=K, moe_intermediate_size=64, shared_expert_intermediate_size=64), 4),
    "ernie4_5_moe": (dict(moe_num_experts=E, moe_k=K, moe_intermediate_size=64, use_bias=False), 4),
    "qwen3_moe": (dict(num_experts=E, num_experts_per_tok=K, moe_intermediate_size=64, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True), 8),
    "gpt_oss": (dict(num_hidden_layers=2, num_local_experts=E, num_experts_per_tok=K, layer_types=["sliding_attention", "full_attention"], sliding_window=128), 8),
    "glm4_moe": (dict(n_routed_experts=E, num_experts_per_tok=K, n_shared_experts=None, moe_intermediate_size=64, n_group=1, topk_group=1, first_k_dense_replace=0, norm_topk_prob=True,
                      routed_scaling_factor=1.0, use_qk_norm=False, rope_scaling=None, attention_bias=False, partial_rotary_factor=1.0), None),
    "deepseek_v3": (dict(n_routed_experts=E, num_experts_per_tok=K, moe_intermediate_size=64, n_group=1, topk_group=1, first_k_dense_replace=0, q_lora_rank=64, kv_lora_rank=64,
                         qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=64), None),
}
chosen = lambda x, w: np.sort(np.array(mx.argpartition(-(x @ w.T), kth=K - 1, axis=-1)[:, :K]), axis=-1)
bad = 0
for kind, (sizes, want) in CASES.items():
    config = SMALL | dict(model_type=kind) | sizes
    lib = import_module("mlx_lm.models." + kind)
    model = lib.Model(lib.ModelArgs.from_dict(config))
    router = lambda m: next(x for n, x in m.named_modules() if n.split(".")[-1] in ("gate", "router") and "layers" in n and hasattr(x, "weight"))
    before = mx.random.normal((E, H)) * H ** -.5
    router(model).weight = before
    with contextlib.redirect_stdout(io.StringIO()):
        model, _ = quantize_model(model, config, 64, 4)
    r = router(model)
    bits = r.bits if isinstance(r, nn.QuantizedLinear) else None
    after = mx.dequantize(r.weight, r.scales, r.biases, group_size=r.group_size, bits=r.bits) if bits else r.weight
    x = mx.random.normal((2048, H))
    moved = float((chosen(x, before) != chosen(x, after)).any(-1).mean())
    print(f"{kind}: the router is {f'in {bits} bits' if bits else 'not quantised'}; {moved:.0%} of 2048 random tokens get another set of {K} of {E} experts")
    bad += bits != want or (moved > .4) != (want == 4) or (want is None and moved > 0)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" && rc=0 || rc=$?; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
