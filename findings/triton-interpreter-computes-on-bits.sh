#!/usr/bin/env bash
# Triton: under TRITON_INTERPRET=1, +, *, comparisons, tl.maximum, tl.sum, tl.sort and tl.argmax of bfloat16 compute on its bits as unsigned integers, without a word: 1 + 1 is 1.7e38, and of two numbers the negative one is larger. tl.max, tl.abs, casts and all of float16 are right; compiled kernels add bfloat16.
# Needs python3 (3.11 or later), about 6 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 triton==3.9.0 numpy==2.4.6
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir" TRITON_CACHE_DIR="$dir/cache"
cat > "$dir/check.py" <<'PY'
import sys, warnings
import torch, triton, triton.language as tl

@triton.jit
def apply(X, Y, Z, OP: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(X + i), tl.load(Y + i)
    if OP == "x + y":
        r = x + y
    elif OP == "x * y":
        r = x * y
    elif OP == "where(x > y, x, y)":
        r = tl.where(x > y, x, y)
    elif OP == "maximum(x, y)":
        r = tl.maximum(x, y)
    elif OP == "sum(x)":
        r = tl.sum(x) + tl.zeros([N], tl.float32)
    elif OP == "sort(x)":
        r = tl.sort(x)
    elif OP == "argmax(x)":
        r = tl.argmax(x, 0) + tl.zeros([N], tl.int32)
    elif OP == "max(x)":
        r = tl.max(x) + tl.zeros([N], tl.float32)
    elif OP == "abs(x)":
        r = tl.abs(x)
    else:
        r = x.to(tl.float32) + y.to(tl.float32)
    tl.store(Z + i, r.to(tl.float32))

WANT = {"x + y": lambda x, y: x + y, "x * y": lambda x, y: x * y, "where(x > y, x, y)": torch.maximum, "maximum(x, y)": torch.maximum, "sum(x)": lambda x, y: x.sum().expand(64),
        "sort(x)": lambda x, y: x.sort().values, "argmax(x)": lambda x, y: x.argmax().expand(64), "max(x)": lambda x, y: x.max().expand(64), "abs(x)": lambda x, y: x.abs(),
        "x + y, each cast to float32": lambda x, y: x + y}
RIGHT = {"max(x)", "abs(x)", "x + y, each cast to float32"}
g = torch.Generator().manual_seed(1)
x, y = torch.randn(64, generator=g), torch.randn(64, generator=g)
print("triton", triton.__version__, "torch", torch.__version__)
bad = 0
for kind in (torch.float16, torch.bfloat16):
    a, b = x.to(kind), y.to(kind)
    for op, f in WANT.items():
        z = torch.zeros(64)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            apply[(1,)](a, b, z, op, 64)
        want = f(a.float(), b.float()).float()
        close = (z - want).abs() <= .1 * want.abs() + .1
        print(f"{str(kind)[6:]} {op}: {float(close.float().mean()):.0%} of the results are right; the first is {z[0]:.4g}, right is {want[0]:.4g}; warnings {len(said)}")
        bad += (float(close.float().mean()) > .99) != (kind == torch.float16 or op in RIGHT) or bool(said)
one, z = torch.ones(64).bfloat16(), torch.zeros(64)
apply[(1,)](one, one, z, "x + y", 64)
print(f"bfloat16 1 + 1: {z[0]:g}; the bits {one.view(torch.uint16)[0]:#x} added as integers are {(z[:1].bfloat16().view(torch.uint16))[0]:#x}")
sys.exit(bool(bad) or z[0].item() == 2)
PY
TRITON_INTERPRET=1 "$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
