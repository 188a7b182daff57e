#!/usr/bin/env bash
# Triton: tl.sum and tl.cumsum of float16 and bfloat16 add in 16 bits at every step, on every GPU, so that a mean square in float16 overflows at a size of 4; they widen small integers and flags, and tl.max widens too. dtype=tl.float32 asks for it.
# Needs python3 (3.11 or later), about 700 MB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir triton==3.9.0 ml_dtypes==0.6.0 numpy==2.4.6
export TMPDIR="$dir" TRITON_CACHE_DIR="$dir/cache"; unset TRITON_INTERPRET
cat > "$dir/check.py" <<'PY'
import collections, re, sys
import ml_dtypes, numpy as np, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def own_sum(X, Y, N: tl.constexpr):
    tl.store(Y, tl.sum(tl.load(X + tl.arange(0, N))).to(tl.float32))

@triton.jit
def own_cumsum(X, Y, N: tl.constexpr):
    tl.store(Y + tl.arange(0, N), tl.cumsum(tl.load(X + tl.arange(0, N))).to(tl.float32))

@triton.jit
def asked(X, Y, N: tl.constexpr):
    tl.store(Y, tl.sum(tl.load(X + tl.arange(0, N)), dtype=tl.float32))

@triton.jit
def largest(X, Y, N: tl.constexpr):
    tl.store(Y, tl.max(tl.load(X + tl.arange(0, N))).to(tl.float32))

def compiled(kernel, kind, capability):
    """The additions in the PTX, by type, and the type in which the Triton IR reduces."""
    made = triton.compile(ASTSource(kernel, {"X": "*" + kind, "Y": "*fp32", "N": "constexpr"}, {(2,): 4096}), target=GPUTarget("cuda", capability, 32))
    adds = collections.Counter(a for a in re.findall(r"\b(?:add|fma)\.(?:rn\.)?(f32|f16x2|f16|bf16x2|bf16|s32)\b", made.asm["ptx"]) if a != "s32" or kind[0] in "iu")
    return dict(adds), re.search(r"tt\.(?:reduce|scan)\.return %\w+ : (\w+)", made.asm["ttir"])[1]

print("triton", triton.__version__)
bad = 0
for capability in (80, 90, 100, 120):
    for kernel, kind, want in ((own_sum, "bf16", "bf16"), (own_sum, "fp16", "f16"), (own_cumsum, "bf16", "bf16"), (asked, "bf16", "f32"), (largest, "bf16", "f32"), (own_sum, "i8", "i32"), (own_sum, "i1", "i32")):
        adds, reduced = compiled(kernel, kind, capability)
        if capability in (80, 100):
            print(f"{kernel.__name__} of 4096 {kind} for sm_{capability}: reduced as {reduced}; additions in the PTX {adds or 'none'}")
        bad += reduced != want or (kind in ("bf16", "fp16") and kernel is not largest and any((a == "f32") != (want == "f32") for a in adds))
# What comes of it, in the most favourable order, a tree: the mean square of a row, as a kernel of a norm takes it.
def tree(x, kind):
    while x.shape[-1] > 1:
        x = (x[..., ::2].astype(np.float32) + x[..., 1::2].astype(np.float32)).astype(kind)
    return x[..., 0].astype(np.float32)

x = np.random.default_rng(1).standard_normal((1000, 4096)).astype(np.float32)
for kind, scale in ((ml_dtypes.bfloat16, 1), (np.float16, 1), (np.float16, 5)):
    with np.errstate(over="ignore"):
        square = (x.astype(kind) * kind(scale)) ** 2
        got, right = tree(square, kind), square.astype(np.float32).sum(-1)
    off = np.abs(got / right - 1)
    print(f"sum of 4096 squares of {np.dtype(kind)} numbers of size {scale}: off by {off.mean():.2%} on average, {off.max():.2%} at most")
    bad += not (np.isinf(off).all() if scale == 5 else .0001 < off.mean() < .01)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
