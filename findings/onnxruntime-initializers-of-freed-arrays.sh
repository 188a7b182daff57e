#!/usr/bin/env bash
# ONNX Runtime's Python: weights given by SessionOptions.add_external_initializers are read only when the session is made, and nothing keeps the arrays behind their OrtValues until then: those that were local to a function are read after they were freed. The weights are what lies there now, 1 KiB or 64 MiB of another array, without an error; where nothing does, the process ends.
# Needs python3 (3.11 or later), about 300 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cat > "$dir/check.py" <<'PY'
import signal, subprocess, sys
import numpy as np, onnxruntime
from onnx import TensorProto, helper

def model(n):
    """y = x + w, with a w that is given apart."""
    w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[n], data_location=TensorProto.EXTERNAL)
    w.external_data.add(key="location", value="w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [n]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()

def options_with(w):
    options = onnxruntime.SessionOptions()
    options.add_external_initializers(["w"], [onnxruntime.OrtValue.ortvalue_from_numpy(w)])
    return options

def run(n, keep):
    """What the session has for w, whose elements are 0, 1, 2, …; `keep` says for how long somebody holds the array."""
    held = [np.arange(n, dtype=np.float32)]
    options = options_with(held[0])
    if keep.startswith("no longer"):
        held.clear()
    others = [np.full(n, 7, np.float32) for _ in range(0 if keep.endswith("after it") else 8)]
    session = onnxruntime.InferenceSession(model(n), options, providers=["CPUExecutionProvider"])
    if keep == "until the session is made":
        held.clear()
        others += [np.full(n, 9, np.float32) for _ in range(8)]
    return session.run(None, {"x": np.zeros(n, np.float32)})[0]

if len(sys.argv) == 3:
    n = int(sys.argv[1])
    y = run(n, sys.argv[2])
    print("right" if (y == np.arange(n)).all() else f"all {y[0]:g}" if (y == y[0]).all() else "others")
    sys.exit()
print("onnxruntime", onnxruntime.__version__)
bad = 0
WANT = {"until the end": "right", "until the session is made": "right", "no longer than the call": "all 7"}
cases = [(n, *case) for n in (256, 1 << 24) for case in WANT.items()] + [(1 << 24, "no longer, and nothing comes after it", "SIGSEGV")]
for n, keep, want in cases:
    child = subprocess.run([sys.executable, __file__, str(n), keep], capture_output=True, text=True)
    said = child.stdout.strip() or signal.Signals(-child.returncode).name
    print(f"{n} weights, whose array is held {keep}: {said}")
    bad += said != want
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
