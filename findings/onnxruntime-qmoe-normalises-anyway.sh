#!/usr/bin/env bash
# ONNX Runtime: com.microsoft::QMoE on a CPU makes the weights of a token's experts sum to 1 whether normalize_routing_weights is 0 or 1; MoE does what it says. A model whose experts are quantised is so weighted in another way, with the same attributes.
# Needs python3 (3.11 or later), about 300 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cat > "$dir/check.py" <<'PY'
import sys
import numpy as np, onnxruntime
from onnx import TensorProto, helper, numpy_helper

T, H, F, E, K, B = 7, 64, 32, 6, 2, 32
rng = np.random.default_rng(1)
codes = {"fc1": rng.integers(0, 16, (E, F, H)).astype(np.uint8), "fc2": rng.integers(0, 16, (E, H, F)).astype(np.uint8)}
scales = {n: (rng.random((*c.shape[:2], c.shape[2] // B)) * .02 + .01).astype(np.float32) for n, c in codes.items()}
weights = {n: (c.astype(np.float32) - 8) * np.repeat(scales[n], B, -1) for n, c in codes.items()}
packed = {n: c[..., ::2] | c[..., 1::2] << 4 for n, c in codes.items()}
x, logits = rng.standard_normal((T, H)).astype(np.float32), (rng.standard_normal((T, E)) * 2).astype(np.float32)
softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

def run(op, normalize):
    """What a node gives whose experts are the same, as float values in MoE and as codes of 4 bits in QMoE."""
    if op == "MoE":
        inputs, held, more = ["x", "router", "fc1", "", "fc2"], weights, {}
    else:
        inputs, more = ["x", "router", "fc1", "fc1_scales", "", "fc2", "fc2_scales"], dict(expert_weight_bits=4, block_size=B)
        held = packed | {n + "_scales": s for n, s in scales.items()}
    info = lambda n, w: helper.make_tensor_value_info(n, TensorProto.FLOAT, (T, w))
    node = helper.make_node(op, inputs, ["y"], domain="com.microsoft", k=K, activation_type="relu", normalize_routing_weights=normalize, **more)
    graph = helper.make_graph([node], "g", [info("x", H), info("router", E)], [info("y", H)], [numpy_helper.from_array(v, n) for n, v in held.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x, "router": logits})[0]

def expected(normalized):
    y = np.zeros((T, H), np.float32)
    for t in range(T):
        chosen = np.argsort(-softmax[t])[:K]
        for e in chosen:
            y[t] += softmax[t, e] / (softmax[t, chosen].sum() if normalized else 1) * (weights["fc2"][e] @ np.maximum(weights["fc1"][e] @ x[t], 0))
    return y

print("onnxruntime", onnxruntime.__version__, f"CPU, top {K} of {E} experts, chosen ones hold {np.sort(softmax, -1)[:, -K:].sum(-1).mean():.0%} of the softmax")
bad = 0
for op in ("MoE", "QMoE"):
    for normalize in (0, 1):
        y = run(op, normalize)
        far = {n: float(np.linalg.norm(y - expected(n)) / np.linalg.norm(expected(n))) for n in (True, False)}
        print(f"{op}, normalize_routing_weights={normalize}: distance from weights that sum to 1 {far[True]:.1e}, from the softmax over all experts {far[False]:.1e}")
        want = op == "QMoE" or bool(normalize)
        bad += not (far[want] < .001 and far[not want] > .05)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
