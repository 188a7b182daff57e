#!/usr/bin/env bash
# ONNX Runtime: `router_probs` of com.microsoft::MoE are logits: the node takes their softmax itself, over all experts.
# Needs python3 (3.11 or later), about 300 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cat > "$dir/check.py" <<'PY'
import sys
import numpy as np, onnxruntime
from onnx import TensorProto, helper, numpy_helper

T, H, F, E, K = 5, 16, 8, 6, 2
rng = np.random.default_rng(1)
fc1, fc2 = rng.standard_normal((E, F, H)).astype(np.float32) / 4, rng.standard_normal((E, H, F)).astype(np.float32) / 3
x, logits = rng.standard_normal((T, H)).astype(np.float32), rng.standard_normal((T, E)).astype(np.float32) * 2
info = lambda n, w: helper.make_tensor_value_info(n, TensorProto.FLOAT, (T, w))
node = helper.make_node("MoE", ["x", "router_probs", "fc1", "", "fc2"], ["y"], domain="com.microsoft", k=K, activation_type="relu")
graph = helper.make_graph([node], "moe", [info("x", H), info("router_probs", E)], [info("y", H)],
                          [numpy_helper.from_array(fc1, "fc1"), numpy_helper.from_array(fc2, "fc2")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
softmax = lambda l: np.exp(l - l.max(-1, keepdims=True)) / np.exp(l - l.max(-1, keepdims=True)).sum(-1, keepdims=True)

def expected(weights):
    y = np.zeros((T, H), np.float32)
    for t in range(T):
        for e in np.argsort(-weights[t])[:K]:
            y[t] += weights[t, e] * (fc2[e] @ np.maximum(fc1[e] @ x[t], 0))
    return y

(y,) = session.run(None, {"x": x, "router_probs": softmax(logits)})
far = lambda want: float(np.linalg.norm(y - want) / np.linalg.norm(want))
as_given, once_more = far(expected(softmax(logits))), far(expected(softmax(softmax(logits))))
print("onnxruntime", onnxruntime.__version__, "CPU, given probabilities:")
print(f"distance from a sum weighted by them {as_given:.1e}, by their softmax {once_more:.1e}")
sys.exit(not (once_more < 1e-5 and as_given > 0.1))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
