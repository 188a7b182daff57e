#!/usr/bin/env bash
# Triton and CuTe DSL: float16 with bfloat16 is float16, in products, sums, maxima and choices, where PyTorch, JAX and MLX have float32: a bfloat16 scale of 1e-8 becomes 0 and one of 70000 infinite. In Triton float16 with a 32-bit sum of INT8 products is float16 too, so that the sum is infinite from 65520 on; with a bfloat16 scale it is float32.
# Needs python3 (3.11 or later), about 8 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 triton==3.9.0 nvidia-cutlass-dsl==4.8.1 jax==0.10.2 jaxlib==0.10.2 "mlx[cpu]==0.32.4" numpy==2.4.6
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= JAX_PLATFORMS=cpu TMPDIR="$dir" HOME="$dir" TRITON_CACHE_DIR="$dir/triton" CUTE_DSL_ARCH=sm_90a; unset TRITON_INTERPRET
cat > "$dir/check.py" <<'PY'
import os, re, sys
from importlib.metadata import version
import cutlass, cutlass.cute as cute, jax.numpy as jnp, mlx.core as mx, numpy as np, torch, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

mx.set_default_device(mx.cpu)
print(*(f"{p} {version(p)}" for p in ("triton", "nvidia-cutlass-dsl", "torch", "jax", "mlx")))

@triton.jit
def mixed(a, b, y):
    u, v = tl.load(a), tl.load(b)
    tl.store(y, u * v)
    tl.store(y + 1, u + v)
    tl.store(y + 2, tl.maximum(u, v))
    tl.store(y + 3, tl.where(u > v, u, v))
    tl.store(y + 4, u / v)

SHORT = {"fp16": "float16", "bf16": "bfloat16", "i32": "int32", "f16": "float16", "f32": "float32", "fp8e4nv": "float8_e4m3fn"}

def by_triton(a, b):
    """The types in which a kernel multiplies, adds, takes the maximum, chooses and divides."""
    made = triton.compile(ASTSource(mixed, {"a": "*" + a, "b": "*" + b, "y": "*fp32"}, {}), target=GPUTarget("cuda", 90, 32))
    kinds = {op: t for op, t in re.findall(r"arith\.(mulf|addf|maxnumf|select|divf) .*? : (?:i1, )?(\w+)", made.asm["ttir"])}
    return [SHORT[kinds[op]] for op in ("mulf", "addf", "maxnumf", "select", "divf")]

LIKE = {  # the type of the product in libraries of arrays
    "torch": lambda a, b: str((torch.ones(1, dtype=getattr(torch, a)) * torch.ones(1, dtype=getattr(torch, b))).dtype).removeprefix("torch."),
    "jax": lambda a, b: str((jnp.ones(1, getattr(jnp, a)) * jnp.ones(1, getattr(jnp, b))).dtype),
    "mlx": lambda a, b: str((mx.ones(1, dtype=getattr(mx, a)) * mx.ones(1, dtype=getattr(mx, b))).dtype).removeprefix("mlx.core."),
}
CASES = {("fp16", "bf16"): "float16", ("bf16", "fp16"): "float16", ("i32", "fp16"): "float16", ("i32", "bf16"): "float32", ("fp8e4nv", "fp16"): "float16", ("fp8e4nv", "bf16"): "float32"}
bad = 0
for (a, b), want in CASES.items():
    found = by_triton(a, b)
    others = {n: f(SHORT[a], SHORT[b]) for n, f in LIKE.items()} if "fp8" not in a else {}
    print(f"{SHORT[a]} with {SHORT[b]}: Triton computes *, +, maximum and where in {' '.join(sorted(set(found[:4])))}, / in {found[4]}" + "".join(f"; {n} has {t}" for n, t in others.items()))
    bad += found != [want] * 4 + ["float32"] or (a != "i32" and set(others.values()) - {"float32"} != set()) or (a == "i32" and others["torch"] != SHORT[b])

CUTE = {"Float16": cutlass.Float16, "BFloat16": cutlass.BFloat16, "Int32": cutlass.Int32}
def by_cute(a, b, x, y):
    """The type of a product and its value, from a function that CuTe DSL compiles for the CPU."""
    kinds = []
    @cute.jit
    def product(u: CUTE[a], v: CUTE[b]):
        w = u * v
        kinds.append(type(w).__name__)
        cute.printf("product {}\n", w.to(cutlass.Float32))
    compiled = cute.compile(product, CUTE[a](1), CUTE[b](1))
    read, write = os.pipe()
    kept = os.dup(1)
    os.dup2(write, 1)
    compiled(CUTE[a](x), CUTE[b](y))
    os.dup2(kept, 1)
    os.close(write)
    return kinds[0], float(re.search(r"product (\S+)", os.read(read, 4096).decode())[1])

for a, b, x, y, want in (("Float16", "BFloat16", 2, 70000, ("Float16", float("inf"))), ("BFloat16", "Float16", 1e-8, 100, ("Float16", 0.)), ("Int32", "Float16", 100000, 1, ("Float32", 100000.))):
    got = by_cute(a, b, x, y)
    print(f"CuTe DSL: {a} {x:g} * {b} {y:g} is {got[0]} {got[1]:g}")
    bad += got != want
with np.errstate(over="ignore"):
    print("as float16:", *(f"{v:g} is {np.float16(v):g}" for v in (1e-8, 70000, 65519, 65520)))
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
