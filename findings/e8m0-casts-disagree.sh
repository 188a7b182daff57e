#!/usr/bin/env bash
# e8m0 scales: the cast of float32 rounds to the nearest power of two in PyTorch and ml_dtypes, up in ONNX, and PTX can only round up or down; 0 becomes 2^-127 in PyTorch and ONNX Runtime and NaN in ml_dtypes, a scale of 3e38 NaN in the first two and 2^127 in ONNX.
# Needs python3 (3.11 or later), about 6 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 triton==3.9.0 ml_dtypes==0.6.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import glob, os, subprocess, sys, tempfile
import ml_dtypes, numpy as np, onnx, onnxruntime, torch, triton
from onnx import TensorProto, helper

print("torch", torch.__version__, "ml_dtypes", ml_dtypes.__version__, "onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)

def by_onnx(x):
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT8E8M0), helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT)]
    info = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape)
    m = helper.make_model(helper.make_graph(nodes, "g", [info("x")], [info("z")]), opset_imports=[helper.make_opsetid("", 25)], ir_version=11)
    return onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]

CASTS = {
    "torch": lambda x: torch.from_numpy(x).to(torch.float8_e8m0fnu).float().numpy(),
    "ml_dtypes": lambda x: x.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32),
    "onnxruntime": by_onnx,
}
x = np.array([1.1, 1.49, 1.5, 2.9, 0, 3e38], np.float32)
got = {k: f(x) for k, f in CASTS.items()}
for k, y in got.items():
    print(f"{k}:", ", ".join(f"{a:g} gives {b:g}" for a, b in zip(x, y)))
nan, low, high = float("nan"), 2.0 ** -127, 2.0 ** 127
WANT = {"torch": [1, 1, 2, 2, low, nan], "ml_dtypes": [1, 1, 2, 2, nan, nan], "onnxruntime": [2, 2, 2, 4, low, high]}
bad = [not np.array_equal(got[k], np.array(WANT[k], np.float32), equal_nan=True) for k in CASTS]

# What comes of it: blocks of 32 in MXFP8 with the scale `largest / 448`, elements cut off at 448, one block of zeros.
blocks = np.random.default_rng(1).standard_normal((4096, 32)).astype(np.float32)
blocks[0] = 0
largest = np.abs(blocks).max(1, keepdims=True)
for k, f in CASTS.items():
    s = f(np.ascontiguousarray(largest / 448))
    q = (np.clip(blocks / s, -448, 448)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * s
    at = np.abs(blocks).argmax(1)[:, None]
    err = 1 - np.take_along_axis(q, at, 1)[1:] / np.take_along_axis(blocks, at, 1)[1:]
    print(f"{k}: the largest element of a block is up to {err.max():.0%} too small, in {np.mean(err > .07):.0%} of the blocks more than rounding explains; a block of zeros gives {q[0, 0]:g}")
    bad += [(err.max() > .3) != (k != "onnxruntime"), np.isnan(q[0, 0]) != (k == "ml_dtypes")]

# PTX: the assembler that comes with Triton.
for rounding in ("rn", "rz", "rp"):
    source = tempfile.mkdtemp() + "/k.ptx"
    open(source, "w").write(f".version 8.7\n.target sm_100a\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.reg .b16 %h; .reg .f32 %f<2>; .reg .b64 %p;\nld.param.u64 %p, [p];\n"
                            f"ld.global.f32 %f0, [%p]; ld.global.f32 %f1, [%p+4];\ncvt.{rounding}.satfinite.ue8m0x2.f32 %h, %f0, %f1;\nst.global.b16 [%p], %h;\nret;\n}}\n")
    tools = sorted(glob.glob(os.path.dirname(triton.__file__) + "/backends/nvidia/bin/ptxas*"), key=len)
    run = subprocess.run([tools[-1], "-arch=sm_100a", source, "-o", source + ".cubin"], capture_output=True, text=True)
    print(f"PTX: cvt.{rounding}.satfinite.ue8m0x2.f32 is", "assembled" if run.returncode == 0 else "refused: " + next(l for l in (run.stdout + run.stderr).splitlines() if "error" in l).split("error")[-1].strip(" :"))
    bad.append((run.returncode == 0) != (rounding != "rn"))
sys.exit(any(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
