#!/usr/bin/env bash
# ml_dtypes with NumPy: sum, mean and the denominators made of them accumulate in bfloat16 one by one, and stop growing at 256: the mean of 4096 ones is 0.0625, a softmax over 512 experts sums to 1.14. numpy.float16 is right, and `@` of the same bfloat16 arrays accumulates, and answers, in float32.
# Needs python3 (3.11 or later), about 200 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir numpy==2.4.6 ml_dtypes==0.6.0
cat > "$dir/check.py" <<'PY'
import sys
import ml_dtypes, numpy as np

print("numpy", np.__version__, "ml_dtypes", ml_dtypes.__version__)
N = 4096
TYPES = {np.float16: (N, 1), ml_dtypes.bfloat16: (256, 1 / 16), ml_dtypes.float8_e4m3fn: (16, 1 / 256), ml_dtypes.float8_e5m2: (8, 1 / 512)}
bad = 0
for t, (total, mean) in TYPES.items():
    ones = np.ones(N, t)
    product = ones[None] @ ones[:, None]
    print(f"{N} ones of {np.dtype(t)}: sum {float(ones.sum()):g}, mean {float(ones.mean()):g}, sum(dtype=float32) {ones.sum(dtype=np.float32):g}, row @ column {float(product[0, 0]):g} as {product.dtype}")
    bad += float(ones.sum()) != total or float(ones.mean()) != mean or ones.sum(dtype=np.float32) != N or product[0, 0] != N or product.dtype != (np.float16 if t is np.float16 else np.float32)

# What a reference of a layer computes with them, next to the same in float32 from the same bfloat16 values.
rng = np.random.default_rng(0)
x = rng.standard_normal(7168).astype(ml_dtypes.bfloat16)
own, wide = float((x * x).mean()), float((x.astype(np.float32) ** 2).mean())
print(f"RMS norm of {len(x)} normal numbers: mean square {own:.3f} in bfloat16, {wide:.3f} in float32; the output comes out {np.sqrt(wide / own):.2f} times as large")
bad += own > .4 or abs(wide - 1) > .05
for experts in (64, 256, 512):
    l = rng.standard_normal((1000, experts)).astype(ml_dtypes.bfloat16)
    e = np.exp(l - l.max(-1, keepdims=True))
    total = (e / e.sum(-1, keepdims=True)).astype(np.float32).sum(-1)
    print(f"softmax over {experts} experts: weights of a token sum to {total.mean():.3f} on average, {total.max():.3f} at most")
    bad += (total.mean() > 1.1) != (experts == 512) or (total.mean() > 1.01) != (experts > 64)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
