#!/usr/bin/env bash
# MLX: nvfp4 has no global scale unless one is given, and neither `mlx_lm.convert` nor linear layers give one: weights of size 0.002 become 0, of 0.005 lose half again as much, where MXFP4 does not care. The global_scale that there is, is the largest weight itself: neither ModelOpt's weight_scale_2 nor compressed-tensors' inverse.
# Needs python3 (3.11 or later), about 900 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir "mlx[cpu]==0.32.4" mlx-lm==0.32.2 transformers==5.24.0 numpy==2.4.6 ml_dtypes==0.6.0
export HF_HUB_OFFLINE=1 TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import contextlib, io, sys
from importlib.metadata import version
import ml_dtypes, mlx.core as mx, numpy as np
from mlx.utils import tree_flatten
from mlx_lm.convert import configure_parser
from mlx_lm.models import qwen3_moe
from mlx_lm.utils import quantize_model

mx.set_default_device(mx.cpu)
print("mlx", version("mlx"), "mlx-lm", version("mlx-lm"), "transformers", version("transformers"))
g = np.random.default_rng(1)
plain = g.standard_normal((128, 256)).astype(np.float32)
far = lambda got, want: float(np.linalg.norm(np.array(got.astype(mx.float32)) - want) / np.linalg.norm(want))
bad = []
loss = {}
for size in (1, .02, .005, .002):
    w = plain * np.float32(size)
    for name, how in (("nvfp4", {}), ("nvfp4 with a global scale", dict(global_scale=mx.array(np.abs(w).max()))), ("mxfp4", {})):
        mode = dict(group_size=32 if name == "mxfp4" else 16, bits=4, mode=name.split()[0]) | how
        loss[name, size] = far(mx.dequantize(*mx.quantize(mx.array(w), **mode), **mode), w)
    print(f"weights of size {size}: " + ", ".join(f"{n} is {v:.1%} off" for (n, s), v in loss.items() if s == size))
bad += [loss["nvfp4", .002] < .9, not 1.3 < loss["nvfp4", .005] / loss["nvfp4", 1] < 1.6, any(v > .13 for (n, _), v in loss.items() if n != "nvfp4")]

# The model of mlx-lm, its experts and its attention of size 0.002.
config = dict(model_type="qwen3_moe", vocab_size=64, hidden_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=64, intermediate_size=128, moe_intermediate_size=128, num_experts=4,
              num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True, rms_norm_eps=1e-6, rope_theta=1e4, tie_word_embeddings=False, max_position_embeddings=64)
for asked in (False, True):
    model = qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(config))
    for n, p in tree_flatten(model.parameters()):
        if "proj" in n:
            model.load_weights([(n, mx.array(g.standard_normal(p.shape).astype(np.float32) * .002))], strict=False)
    before = dict(tree_flatten(model.parameters()))
    with contextlib.redirect_stdout(io.StringIO()):
        model, _ = quantize_model(model, config, None, None, mode="nvfp4", global_scale=asked)
    after = dict(tree_flatten(model.parameters()))
    off = {}
    for kind, n in (("experts", "model.layers.0.mlp.switch_mlp.up_proj"), ("attention", "model.layers.0.self_attn.q_proj")):
        scale = after.get(n + ".global_scale")
        each = [after[n + ".weight"]], [after[n + ".scales"]], [None], np.array(before[n + ".weight"])
        if kind == "experts":
            each = list(after[n + ".weight"]), list(after[n + ".scales"]), [None] * 4 if scale is None else list(scale), np.array(before[n + ".weight"])
        want = each[3].reshape(len(each[0]), -1, each[3].shape[-1])
        off[kind] = max(far(mx.dequantize(q, s, group_size=16, bits=4, mode="nvfp4", **({} if t is None else dict(global_scale=t))), v) for q, s, t, v in zip(*each[:3], want))
    print(f"quantize_model(mode='nvfp4', global_scale={asked}), weights of size 0.002: " + ", ".join(f"{k} {v:.1%} off" for k, v in off.items()))
    bad += [off["attention"] < .9, (off["experts"] < .9) != asked]
options = [o for a in configure_parser()._actions for o in a.option_strings]
print(f"options of mlx_lm.convert that name a global scale: {sum('global' in o for o in options)}")
bad += [any("global" in o for o in options)]

# Which number it is: code * scale * global_scale / (6 * 448).
largest = mx.array(np.abs(plain).max())
q, s = mx.quantize(mx.array(plain), group_size=16, bits=4, mode="nvfp4", global_scale=largest)
codes = np.array(q)[..., None] >> 4 * np.arange(8, dtype=np.uint32) & 15
v = codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32).reshape(128, 16, 16) * np.array(s).view(ml_dtypes.float8_e4m3fn).astype(np.float32)[..., None]
for name, factor in (("global_scale / (6 * 448)", largest.item() / 2688), ("global_scale", largest.item()), ("1 / global_scale", 1 / largest.item())):
    d = float(np.linalg.norm(v.reshape(128, 256) * factor - plain) / np.linalg.norm(plain))
    print(f"code * scale * {name}: distance from the weights {d:.3g}")
    bad += [(d < .13) != ("2688" in name or "448" in name)]
sys.exit(any(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
