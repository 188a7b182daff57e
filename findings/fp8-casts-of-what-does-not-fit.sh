#!/usr/bin/env bash
# Casts to FP8 of what does not fit: to E4M3 PyTorch 2.15 gives 448, even of infinity, JAX and ml_dtypes NaN, MLX 448 even of NaN; to E5M2 PyTorch and JAX give infinity. ONNX Runtime and Triton's kernels saturate both; with saturate=0 ONNX Runtime gives NaN for 470 but 448 for 480.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 triton==3.9.0 jax==0.10.2 jaxlib==0.10.2 ml_dtypes==0.6.0 onnx==1.23.2 onnxruntime==1.32.0 "mlx[cpu]==0.32.4" numpy==2.4.6
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= JAX_PLATFORMS=cpu TMPDIR="$dir" TRITON_CACHE_DIR="$dir/cache"; unset TRITON_INTERPRET
cat > "$dir/check.py" <<'PY'
import re, sys
from importlib.metadata import version
import jax, jax.numpy as jnp, ml_dtypes, mlx.core as mx, numpy as np, onnxruntime, torch, triton, triton.language as tl
from onnx import TensorProto, helper
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

mx.set_default_device(mx.cpu)
print(*(f"{p} {version(p)}" for p in ("torch", "jax", "ml_dtypes", "onnxruntime", "mlx", "triton")))

def by_onnxruntime(x, kind, **more):
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=getattr(TensorProto, kind), **more), helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT)]
    info = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape)
    m = helper.make_model(helper.make_graph(nodes, "g", [info("x")], [info("z")]), opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    return onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]

nan, inf = float("nan"), float("inf")
E4M3 = np.array([464, 470, 480, 1e4, inf, nan], np.float32)
E5M2 = np.array([61000, 62000, 1e6, inf, nan], np.float32)
TOOLS = {  # name: cast, what it gives
    "E4M3 of": (E4M3, {
        "torch": (lambda x: torch.from_numpy(x).to(torch.float8_e4m3fn).float().numpy(), [448, 448, 448, 448, 448, nan]),
        "jax": (lambda x: np.array(jnp.asarray(x).astype(jnp.float8_e4m3fn).astype(jnp.float32)), [448, nan, nan, nan, nan, nan]),
        "ml_dtypes": (lambda x: x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32), [448, nan, nan, nan, nan, nan]),
        "onnxruntime": (lambda x: by_onnxruntime(x, "FLOAT8E4M3FN"), [448, 448, 448, 448, 448, nan]),
        "onnxruntime, saturate=0": (lambda x: by_onnxruntime(x, "FLOAT8E4M3FN", saturate=0), [448, nan, 448, nan, nan, nan]),
        "mlx": (lambda x: np.array(mx.from_fp8(mx.to_fp8(mx.array(x)), mx.float32)), [448, 448, 448, 448, 448, 448]),
    }),
    "E5M2 of": (E5M2, {
        "torch": (lambda x: torch.from_numpy(x).to(torch.float8_e5m2).float().numpy(), [57344, inf, inf, inf, nan]),
        "jax": (lambda x: np.array(jnp.asarray(x).astype(jnp.float8_e5m2).astype(jnp.float32)), [57344, inf, inf, inf, nan]),
        "onnxruntime": (lambda x: by_onnxruntime(x, "FLOAT8E5M2"), [57344, 57344, 57344, 57344, nan]),
        "onnxruntime, saturate=0": (lambda x: by_onnxruntime(x, "FLOAT8E5M2", saturate=0), [57344, nan, inf, inf, nan]),
    }),
}
bad = 0
for form, (x, tools) in TOOLS.items():
    print(form, *(f"{v:g}" for v in x))
    for name, (cast, want) in tools.items():
        got = cast(x)
        print(f"    {name}:", *(f"{v:g}" for v in got))
        bad += not np.array_equal(got, np.array(want, np.float32), equal_nan=True)

@triton.jit
def cast(X, Y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(Y + i, tl.load(X + i).to(Y.dtype.element_ty))

for kind in ("fp8e4nv", "fp8e5"):
    made = triton.compile(ASTSource(cast, {"X": "*fp32", "Y": "*" + kind, "N": "constexpr"}, {(2,): 128}), target=GPUTarget("cuda", 90, 32))
    used = sorted(set(re.findall(r"cvt\.r[\w.]+", made.asm["ptx"])))
    print(f"Triton for sm_90, float32 to {kind}: {used}")
    bad += len(used) != 1 or "satfinite" not in used[0]
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
