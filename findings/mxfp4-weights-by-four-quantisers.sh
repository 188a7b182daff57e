#!/usr/bin/env bash
# MXFP4 of the same weights: gguf and torchao's MXTensor keep a block's scale until its largest weight is 8 of it, and cut it off at 6; compressed-tensors doubles the scale from 7 on, MLX and torchao's config above 6. MLX and gguf round ties toward zero, the others to even. Of FP8 weights every ninth comes out as another number.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 torchao==0.18.0 compressed-tensors==0.20.1 transformers==5.24.0 accelerate==1.15.0 gguf==0.19.0 "mlx[cpu]==0.32.4" ml_dtypes==0.6.0 numpy==2.4.6
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys
from importlib.metadata import version
import ml_dtypes, mlx.core as mx, numpy as np, torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.utils.helpers import calculate_qparams
from gguf import GGMLQuantizationType, quants
from torchao.prototype.mx_formats.inference_workflow import MXDynamicActivationMXWeightConfig
from torchao.prototype.mx_formats.mx_tensor import MXTensor

B = 32
mx.set_default_device(mx.cpu)
print(*(f"{p} {version(p)}" for p in ("gguf", "torchao", "mlx", "compressed-tensors", "torch")))

def by_gguf(w):
    return quants.dequantize(quants.quantize(w, GGMLQuantizationType.MXFP4), GGMLQuantizationType.MXFP4)

def by_torchao(w, **more):
    return MXTensor.to_mx(torch.from_numpy(w), torch.float4_e2m1fn_x2, B, **more).dequantize(torch.float32).numpy()

def by_mlx(w):
    kind = dict(group_size=B, bits=4, mode="mxfp4")
    return np.array(mx.dequantize(*mx.quantize(mx.array(w), **kind), **kind, dtype=mx.float32))

def by_compressed_tensors(w):
    form = "mxfp4-pack-quantized"
    weights = dict(num_bits=4, type="float", strategy="group", group_size=B, scale_dtype="torch.uint8")
    scheme = QuantizationConfig(config_groups={"g": dict(targets=["Linear"], weights=weights, format=form)}, format=form).config_groups["g"]
    tool, t = BaseCompressor.get_value_from_registry(form), torch.from_numpy(w)
    scale, zero = calculate_qparams(*(f(t.unflatten(1, (-1, B)), -1) for f in (torch.amin, torch.amax)), scheme.weights)
    return tool.decompress(dict(tool.compress({"weight": t, "weight_scale": scale, "weight_zero_point": zero}, scheme)), scheme)["weight"].float().numpy()

TOOLS = {
    "gguf": by_gguf, "torchao, MXTensor.to_mx": by_torchao, "mlx": by_mlx, "compressed-tensors": by_compressed_tensors,
    "torchao, scaling mode of its config": lambda w: by_torchao(w, scaling_mode=MXDynamicActivationMXWeightConfig.scaling_mode),
}
RISES = dict(zip(TOOLS, (8, 8, 6.0625, 7, 6.0625)))  # the size at which the scale of a block becomes 2
TIES = np.array([.75, 1.75, 3.5, .25, 1.25, 2.5, 5, 6], np.float32)  # halfway between values of E2M1, and its largest
CUT = ("gguf", "torchao, MXTensor.to_mx")
even, down = [1, 2, 4, 0, 1, 2, 4, 6], [.5, 1.5, 3, 0, 1, 2, 4, 6]
assert TIES.astype(ml_dtypes.float4_e2m1fn).astype(np.float32).tolist() == even
rng = np.random.default_rng(1)
plain = rng.standard_normal((512, 1024)).astype(ml_dtypes.bfloat16).astype(np.float32)
eight = (rng.standard_normal((512, 1024)) * 64).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
block = lambda a: np.abs(a).reshape(-1, B)
sizes = np.arange(6, 8 + 1 / 32, 1 / 16, dtype=np.float32)
grid = np.full((len(sizes), B), .5, np.float32)  # becomes 0, or stays what it is, as the scale is 2 or 1
grid[:, 0] = sizes
bad, found = 0, {}
for name, tool in TOOLS.items():
    ties = tool(np.tile(TIES, B // 8)[None])[0, :8].tolist()
    scale = sizes[(tool(grid)[:, 1] == 0).argmax()]
    found[name] = tool(plain), tool(eight)
    at = np.take_along_axis(block(found[name][0]), block(plain).argmax(-1)[:, None], 1)[:, 0] / block(plain).max(-1)
    print(f"{name}: the scale doubles where the largest of a block is {scale:g}; the largest of a block comes out at {at.mean():.3f} of itself on average and at {at.min():.2f} at least; 0.75, 1.75, 3.5 become {ties[0]:g}, {ties[1]:g}, {ties[2]:g}")
    bad += ties != (down if name in ("gguf", "mlx") else even) or abs(scale - RISES[name]) > .01 or (at.mean() < .95) != (name in CUT) or (at.min() < .76) != (name in CUT)
for other in TOOLS:
    if other != "compressed-tensors":
        differ = [float(np.mean(a != b)) for a, b in zip(found[other], found["compressed-tensors"])]
        print(f"{other} beside compressed-tensors: {differ[0]:.1%} of bfloat16 weights come out as another number, {differ[1]:.1%} of FP8 weights")
        bad += min(differ) < .01 or (differ[1] > .08) != (other in ("gguf", "mlx"))
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
