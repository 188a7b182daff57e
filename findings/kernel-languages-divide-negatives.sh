#!/usr/bin/env bash
# Kernel languages in Python: of negative integers, CuTe DSL and Warp take // as Python does and % as C does, so that a // b * b + a % b is not a: -7 // 2 is -4, -7 % 2 is -1. Triton takes both as C does, but both as Python does of constexprs; JAX and Numba are Python's.
# Needs python3 (3.11 or later), about 3 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir nvidia-cutlass-dsl==4.8.1 warp-lang==1.19.0 triton==3.9.0 jax==0.10.2 jaxlib==0.10.2 numba==0.68.1 numpy==2.4.6
export CUDA_VISIBLE_DEVICES= JAX_PLATFORMS=cpu TMPDIR="$dir" HOME="$dir" TRITON_CACHE_DIR="$dir/triton" WARP_CACHE_PATH="$dir/warp" CUTE_DSL_ARCH=sm_90a CUTE_DSL_KEEP_PTX=1 CUTE_DSL_DUMP_DIR="$dir/cute"; unset TRITON_INTERPRET
mkdir "$dir/cute"
cat > "$dir/check.py" <<'PY'
import glob, os, re, sys
from importlib.metadata import version
import cutlass, cutlass.cute as cute, jax.numpy as jnp, numba, numpy as np, triton, triton.language as tl, warp as wp
from cutlass.cute.runtime import make_ptr
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

A, B = np.array([-7, 7, -7, -1, 7], np.int32), np.array([2, -2, 4, 8, 2], np.int32)
print(*(f"{p} {version(p)}" for p in ("nvidia-cutlass-dsl", "warp-lang", "triton", "jax", "numba")))

@cute.kernel
def cute_kernel(p: cute.Pointer, a: cutlass.Int32, b: cutlass.Int32):
    t = cute.make_tensor(p, cute.make_layout(2))
    t[0], t[1] = a // b, a % b

@cute.jit
def cute_launch(p: cute.Pointer, a: cutlass.Int32, b: cutlass.Int32):
    cute_kernel(p, a, b).launch(grid=(1, 1, 1), block=(1, 1, 1))

@cute.jit
def cute_host(a: cutlass.Int32, b: cutlass.Int32):
    cute.printf("cute {} {}\n", a // b, a % b)

@wp.kernel
def by_warp(a: wp.array(dtype=wp.int32), b: wp.array(dtype=wp.int32), q: wp.array(dtype=wp.int32), r: wp.array(dtype=wp.int32)):
    i = wp.tid()
    q[i] = a[i] // b[i]
    r[i] = a[i] % b[i]

@triton.jit
def by_triton(a, b, y, M: tl.constexpr, N: tl.constexpr):
    tl.store(y, a // b)
    tl.store(y + 1, a % b)
    tl.store(y + 2, M // N)
    tl.store(y + 3, M % N)

def run_cute():
    compiled = cute.compile(cute_host, cutlass.Int32(1), cutlass.Int32(1))
    read, write = os.pipe()
    kept = os.dup(1)
    os.dup2(write, 1)
    for a, b in zip(A, B):
        compiled(cutlass.Int32(int(a)), cutlass.Int32(int(b)))
    os.dup2(kept, 1)
    os.close(write)
    found = re.findall(r"cute (-?\d+) (-?\d+)", os.read(read, 65536).decode())
    return [int(q) for q, _ in found], [int(r) for _, r in found]

def run_warp():
    wp.config.quiet = True
    q, r = wp.zeros(len(A), dtype=wp.int32, device="cpu"), wp.zeros(len(A), dtype=wp.int32, device="cpu")
    wp.launch(by_warp, len(A), [wp.array(A, dtype=wp.int32, device="cpu"), wp.array(B, dtype=wp.int32, device="cpu"), q, r], device="cpu")
    return q.numpy().tolist(), r.numpy().tolist()

PYTHON = (A // B).tolist(), (A % B).tolist()
C = np.trunc(A / B).astype(int).tolist(), np.fmod(A, B).tolist()
print("a:", A.tolist(), "b:", B.tolist())
by_numba = numba.njit(lambda a, b: (a // b, a % b))
FOUND = {
    "CuTe DSL": (run_cute(), (PYTHON[0], C[1])),
    "Warp": (run_warp(), (PYTHON[0], C[1])),
    "JAX": (((jnp.array(A) // jnp.array(B)).tolist(), (jnp.array(A) % jnp.array(B)).tolist()), PYTHON),
    "Numba": (tuple(list(map(int, v)) for v in zip(*(by_numba(a, b) for a, b in zip(A, B)))), PYTHON),
}
bad = 0
for name, (got, want) in FOUND.items():
    whole = sum(q * b + r == a for q, r, a, b in zip(*got, A, B))
    print(f"{name}: a // b {got[0]}, a % b {got[1]}; a // b * b + a % b is a in {whole} of {len(A)}")
    bad += tuple(map(list, got)) != tuple(map(list, want)) or (whole == len(A)) != (want == PYTHON)

# The code for a GPU: CuTe DSL corrects the quotient that C has, and subtracts the one that it has not corrected; Triton corrects neither.
cute.compile(cute_launch, make_ptr(cutlass.Int32, 0, cute.AddressSpace.gmem, assumed_align=16), cutlass.Int32(1), cutlass.Int32(1))
code = next(open(f).read() for f in glob.glob(os.environ["CUTE_DSL_DUMP_DIR"] + "/*.ptx") if "div.s32" in open(f).read())
names = re.findall(r"^\s+(div|mul\.lo|setp|xor|and|selp|add|sub|rem)\.", code, re.M)
print("CuTe DSL for sm_90a, a // b and a % b:", " ".join(names))
bad += not {"div", "selp", "sub"} <= set(names)
made = triton.compile(ASTSource(by_triton, {"a": "i32", "b": "i32", "y": "*i32", "M": "constexpr", "N": "constexpr"}, {(3,): -7, (4,): 2}), target=GPUTarget("cuda", 90, 32))
ops, consts = re.findall(r"arith\.(\w*(?:div|rem)\w*)", made.asm["ttir"]), re.findall(r"tt\.store %\w+, %c(-?\w+?)_i32", made.asm["ttir"])
names = re.findall(r"^\s+(?:@%p\d+ )?(div|mul\.lo|setp|xor|and|selp|sub|rem)\.", made.asm["ptx"], re.M)
print("Triton for sm_90, a // b and a % b:", " ".join(names), "of the operators", *ops, "which cut off; -7 // 2 and -7 % 2 of constexprs:", *consts)
bad += ops != ["divsi", "remsi"] or consts != ["-4", "1"] or "selp" in names
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" > "$dir/out" && rc=0 || rc=$?; grep -av "^Module\|^Warp [0-9C]\|^   \|^CUDA" "$dir/out" || true; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
