#!/usr/bin/env bash
# ONNX Runtime: on a CPU, standard operators in float32, DequantizeLinear of blocks and MatMul, are fused into a product that first rounds its inputs to 8 bits, a block at a time: 31 inputs of 1 beside one of 1000 count for nothing. INT8 weights do not help. Nothing is said; a session entry turns it off.
# Needs python3 (3.11 or later), about 300 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
export TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, tempfile
import numpy as np, onnx, onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

K, N, B, T = 256, 64, 32, 5
ENTRY = "session.qdq_matmulnbits_accuracy_level"
rng = np.random.default_rng(1)
s = (rng.random((K // B, N)) * .02 + .01).astype(np.float32)
x = rng.standard_normal((T, K)).astype(np.float32)
alone = np.zeros((1, K), np.float32)
alone[0, :B] = 1
beside = alone.copy()
beside[0, 0] = 1000

def session(w, kind, level, entry=None):
    info = lambda n, *shape: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape)
    nodes = [helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=B), helper.make_node("MatMul", ["x", "d"], ["y"])]
    held = [helper.make_tensor("w", kind, w.shape, w.flatten().tolist()), numpy_helper.from_array(s, "s")]
    m = helper.make_model(helper.make_graph(nodes, "g", [info("x", "T", K)], [info("y", "T", N)], held), opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(m, full_check=True)
    o = ort.SessionOptions()
    o.graph_optimization_level, o.optimized_model_filepath, o.log_severity_level = level, tempfile.mkdtemp() + "/m.onnx", 3
    if entry is not None:
        o.add_session_config_entry(ENTRY, str(entry))
    made = ort.InferenceSession(m.SerializeToString(), o, providers=["CPUExecutionProvider"])
    ops = [f"{n.op_type} {[a.i for a in n.attribute if a.name == 'accuracy_level'] or ''}".strip() for n in onnx.load(o.optimized_model_filepath).graph.node]
    return lambda x: made.run(None, {"x": x})[0], " and ".join(ops)

print("onnxruntime", ort.__version__, "onnx", onnx.__version__)
L = ort.GraphOptimizationLevel
bad = 0
for name, kind, lo, hi in (("INT4", TensorProto.INT4, -8, 7), ("UINT4", TensorProto.UINT4, 0, 15), ("INT8", TensorProto.INT8, -127, 127)):
    w = rng.integers(lo, hi + 1, (K, N)).astype(np.int8)
    values = w * np.repeat(s, B, 0).astype(np.float64)
    for case, level, entry in (("optimised as by default", L.ORT_ENABLE_ALL, None), (f"{ENTRY} 1", L.ORT_ENABLE_ALL, 1), ("basic optimisations", L.ORT_ENABLE_BASIC, None)):
        run, ops = session(w, kind, level, entry)
        exact = x @ values
        far = float(np.linalg.norm(run(x) - exact) / np.linalg.norm(exact))
        # What 31 inputs of 1 add, by themselves and beside an input of 1000 in their block.
        ones = values[1:B].sum(0)
        share = [float(np.linalg.norm(run(v) - v[0, 0] * values[0]) / np.linalg.norm(ones)) for v in (alone, beside)]
        print(f"{name}, {case}: runs as {ops}; distance from float {far:.0e}; 31 inputs of 1 beside one of 1 add {share[0]:.2f} of what they are, beside one of 1000 {share[1]:.2f}")
        rounded = entry is None and level == L.ORT_ENABLE_ALL
        bad += (far > 1e-3) != rounded or (far > 1e-5) != rounded or (ops == "MatMulNBits [4]") != rounded or abs(share[0] - 1) > .01 or not (share[1] < .2 if rounded else abs(share[1] - 1) < .01)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
