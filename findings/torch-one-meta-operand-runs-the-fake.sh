#!/usr/bin/env bash
# PyTorch: with one operand on meta and the others real, an operator of torch.library runs its fake implementation without a word; torch.add raises an error.
# Needs python3 (3.10 or later), about 6 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 numpy
cat > "$dir/check.py" <<'PY'
import sys, torch

print("torch", torch.__version__)
ran = []
lib = torch.library.Library("probe", "DEF")
lib.define("shifted(Tensor x, Tensor weight) -> Tensor")
lib.impl("shifted", lambda x, weight: ran.append("cpu") or x + weight, "CPU")
torch.library.register_fake("probe::shifted", lambda x, weight: ran.append("fake") or torch.empty_like(x), lib=lib)


@torch.library.custom_op("probe::custom", mutates_args=())
def custom(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    ran.append("cpu")
    return x + weight


custom.register_fake(lambda x, weight: ran.append("fake") or torch.empty_like(x))
# A weight that is offloaded lies on meta between the calls of its own module.
x, offloaded = torch.zeros(4), torch.ones(4, device="meta")
good = True
for name, op in (("Library.define", torch.ops.probe.shifted), ("custom_op", torch.ops.probe.custom)):
    ran.clear()
    y = op(x, offloaded)
    print(f"{name}: ran {ran}, result on {y.device}, no error")
    good &= ran == ["fake"] and y.device.type == "cpu"
try:
    torch.add(x, offloaded)
    good = False
except RuntimeError as e:
    print("torch.add:", str(e).splitlines()[0])
sys.exit(not good)
PY
CUDA_VISIBLE_DEVICES= "$dir/venv/bin/python" "$dir/check.py"
