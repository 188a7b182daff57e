#!/usr/bin/env bash
# optimum-quanto: a byte of qint4 holds rows i and i + R/2 of the matrix of groups, not neighbours; and value = code * scale - shift with a shift that is a float.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for. No compiler: on a CPU the package needs one only to unpack, and this does not unpack with it.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir optimum-quanto==0.2.7 torch==2.15.0 safetensors
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir" TORCH_EXTENSIONS_DIR="$dir/extensions"
cat > "$dir/check.py" <<'PY'
import sys, tempfile, torch
from importlib.metadata import version
from optimum.quanto import freeze, qint4, quantize
from safetensors.torch import load_file, save_file
print("optimum-quanto", version("optimum-quanto"))
bad = []
for n, k in (6, 192), (8, 64):  # outputs and inputs; rows of more than 128 inputs are cut into groups
    torch.manual_seed(1)
    m = torch.nn.Sequential(torch.nn.Linear(k, n, bias=False))
    w = m[0].weight.detach().clone()
    quantize(m, weights=qint4)
    freeze(m)
    out = tempfile.mkdtemp() + "/model.safetensors"
    save_file(m.state_dict(), out)
    t = load_file(out)
    p, scale, shift = t["0.weight._data._data"], t["0.weight._scale"], t["0.weight._shift"]
    print(f"weight [{n}, {k}]: _data._data {p.dtype} {list(p.shape)}, _scale {scale.dtype} {list(scale.shape)}, _shift {shift.dtype} {list(shift.shape)}")
    low, high = p & 15, p >> 4
    far = {}
    for rows, code in (("i and i + R/2", torch.cat([low, high])), ("2i and 2i + 1", torch.stack([low, high], 1).flatten(0, 1))):
        for how, v in (("code * scale - shift", code * scale - shift), ("(code - shift) * scale", (code - shift) * scale)):
            far[rows, how] = ((v.reshape(n, k) - w).norm() / w.norm()).item()
            print(f"a byte holds rows {rows}, {how}: distance from the weights {far[rows, how]:.3f}")
    best = far.pop(("i and i + R/2", "code * scale - shift"))
    bad += [not best < .15 < min(far.values()), not shift.is_floating_point(), list(p.shape) != [len(scale) // 2, n * k // len(scale)]]
sys.exit(any(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
