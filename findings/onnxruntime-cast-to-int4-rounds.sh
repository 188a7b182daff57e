#!/usr/bin/env bash
# ONNX Runtime: Cast of floats to INT4, UINT4, INT2 and UINT2 rounds to nearest, halves away from zero, where Cast to INT8 and all wider integers cuts off, as the reference of ONNX does for all of them: 1.5 becomes 2 as INT4 and 1 as INT8, and INT8 cast on to INT4 is another number than INT4 at once.
# Needs python3 (3.11 or later), about 300 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6 ml_dtypes==0.6.0
export TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys
import numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
RANGE = {"INT2": (-2, 1), "UINT2": (0, 3), "INT4": (-8, 7), "UINT4": (0, 15), "INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-32768, 32767), "INT32": (-2 ** 31, 2 ** 31 - 1)}
FLOATS = {"FLOAT": np.float32, "FLOAT16": np.float16, "DOUBLE": np.float64}

def cast(x, source, *through):
    """What ONNX Runtime and the reference make of x, cast to one type after another and to float32."""
    names = ["x"] + [f"y{i}" for i in range(len(through) + 1)]
    nodes = [helper.make_node("Cast", [a], [b], to=getattr(TensorProto, t)) for a, b, t in zip(names, names[1:], (*through, "FLOAT"))]
    info = lambda n, t: helper.make_tensor_value_info(n, getattr(TensorProto, t), x.shape)
    m = helper.make_model(helper.make_graph(nodes, "g", [info("x", source)], [info(names[-1], "FLOAT")]), opset_imports=[helper.make_opsetid("", 25)], ir_version=11)
    onnx.checker.check_model(m, full_check=True)
    o = onnxruntime.SessionOptions()
    o.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    run = onnxruntime.InferenceSession(m.SerializeToString(), o, providers=["CPUExecutionProvider"])
    return run.run(None, {"x": x})[0], ReferenceEvaluator(m).run(None, {"x": x})[0]

bad = 0
for kind, (low, high) in RANGE.items():
    grid = np.arange(max(low, -8), min(high, 7) + .125, .125)  # in the range of the type, so that nothing overflows
    off, away = np.trunc(grid), np.trunc(grid + np.copysign(.5, grid))
    keep = (away >= low) & (away <= high)
    for source, dtype in FLOATS.items():
        theirs, reference = (y[keep] for y in cast(grid.astype(dtype), source, kind))
        rounds = np.array_equal(theirs, away[keep])
        if source == "FLOAT":
            shown = [v for v in (-1.5, -.5, .5, 1.5, 2.5) if v in grid[keep]]
            said = ", ".join(f"{v:g} {theirs[list(grid[keep]).index(v)]:g}" for v in shown)
            print(f"FLOAT to {kind}: {said}; ONNX Runtime {'rounds halves away from zero' if rounds else 'cuts off'}, the reference {'cuts off' if np.array_equal(reference, off[keep]) else 'does not cut off'}")
        bad += not np.array_equal(reference, off[keep]) or not np.array_equal(theirs, (away if high - low < 16 else off)[keep])
grid = np.arange(-7.5, 7.01, .125, dtype=np.float32)
direct, by_int8 = cast(grid, "FLOAT", "INT4")[0], cast(grid, "FLOAT", "INT8", "INT4")[0]
print(f"of {len(grid)} numbers {np.mean(direct != by_int8):.0%} are another INT4 when they are cast to INT8 first")
# Rounding as it is written for a cast that cuts off: floor(x + 0.5), or x + 0.5 where x is positive.
x = np.arange(0, 6.01, .125, dtype=np.float32)
once = cast(x + .5, "FLOAT", "INT4")[0]
print(f"x + 0.5 of 0 to 6 cast to INT4: {np.mean(once != np.floor(x + .5)):.0%} are one more than x rounded")
sys.exit(bool(bad or np.mean(direct != by_int8) < .4 or np.mean(once != np.floor(x + .5)) < .4))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
