#!/usr/bin/env bash
# safetensors 0.8: numpy.save_file writes an array that is a transpose, in Fortran order or a slice of columns in the order of its memory, under its own shape: the values change places without an error. 0.7 does not; safetensors.torch refuses.
# Needs python3 (3.11 or later), about 200 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
export TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, tempfile
import numpy as np
from importlib.metadata import version
from safetensors.numpy import load, load_file, save, save_file

new = version("safetensors") >= "0.8"
print("safetensors", version("safetensors"), "numpy", np.__version__)
rng = np.random.default_rng(1)
# What a converter does with a stack of experts [experts, outputs, inputs] and a fused gate and up.
stack = rng.standard_normal((4, 6, 8)).astype(np.float32)
CASES = {
    "as it is": stack,
    "swapaxes(1, 2)": stack.swapaxes(1, 2),
    "every second row, stack[:, ::2]": stack[:, ::2],
    "the second half of inputs, stack[..., 4:]": stack[..., 4:],
    "asfortranarray": np.asfortranarray(stack),
    "swapaxes(1, 2), then * 2": stack.swapaxes(1, 2) * 2,  # numpy keeps the order of memory in a new array
    "swapaxes(1, 2), then ascontiguousarray": np.ascontiguousarray(stack.swapaxes(1, 2)),
}
RIGHT = {"as it is", "swapaxes(1, 2), then ascontiguousarray"}
bad = 0
for name, a in CASES.items():
    path = tempfile.mkdtemp() + "/model.safetensors"
    save_file({"w": a}, path)
    back = load_file(path)["w"]
    assert np.array_equal(back, load(save({"w": a}))["w"]) and back.shape == a.shape and back.dtype == a.dtype
    moved = float(np.mean(back != a))
    print(f"{name}: {moved:.0%} of the values differ after save_file and load_file")
    bad += (moved > .5) != (new and name not in RIGHT)
sys.exit(bool(bad))
PY
for release in 0.7.0 0.8.0; do
  "$dir/venv/bin/pip" install --quiet --no-cache-dir numpy==2.4.6 safetensors==$release
  "$dir/venv/bin/python" "$dir/check.py"
done
