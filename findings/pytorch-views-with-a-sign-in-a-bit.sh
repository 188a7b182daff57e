#!/usr/bin/env bash
# PyTorch's views that only say in a bit that their numbers are others': DLPack takes the imaginary part of a conjugate, z.conj().imag, with the wrong sign, so that torch.from_dlpack and numpy.from_dlpack have its negatives; a conjugate itself they refuse. Apache TVM's FFI takes both with the wrong sign, and safetensors.torch writes z.conj() as z. None of this is an error; numpy() is one, and torch.save, contiguous() and clone() are right.
# Needs python3 (3.10 or later), about 6 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 numpy==2.4.6 safetensors==0.8.0 apache-tvm-ffi==0.1.15.post2
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import os, sys
from importlib.metadata import version
import numpy as np, torch, tvm_ffi
from safetensors.torch import load, save, save_file, load_file

print(*(f"{p} {version(p)}" for p in ("torch", "numpy", "safetensors", "apache-tvm-ffi")))
bad = 0

def told(what, run, expected):
    """One way that values take, and whether they arrive: `right`, `wrong` or refused."""
    global bad
    try:
        got = "right" if np.array_equal(run(), values) else "wrong, without an error"
    except (RuntimeError, ValueError, TypeError, BufferError) as e:
        got = "refused: " + str(e).splitlines()[0][:60]
    print(f"  {what}: {got}")
    bad += not got.startswith(expected)

# Rotations of positions, as rotary embeddings have them; backwards.
forward = torch.polar(torch.ones(4), torch.arange(4.0))
sines = forward.conj().imag
values = -np.sin(np.arange(4, dtype=np.float32))
assert np.allclose(sines.tolist(), values) and sines.is_neg()
values = np.array(sines.tolist(), np.float32)
print("the imaginary part of a conjugate:", sines.tolist())
told("numpy()", lambda: sines.numpy(), "refused")
told("numpy.from_dlpack", lambda: np.from_dlpack(sines), "wrong")
told("torch.from_dlpack", lambda: torch.from_dlpack(sines).numpy(), "wrong")
told("torch.utils.dlpack", lambda: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(sines)).numpy(), "wrong")
told("tvm_ffi.from_dlpack", lambda: np.from_dlpack(tvm_ffi.from_dlpack(sines)), "wrong")
told("contiguous(), numpy.from_dlpack", lambda: np.from_dlpack(sines.contiguous()), "right")
told("safetensors, contiguous()", lambda: load(save({"a": sines.contiguous()}))["a"].numpy(), "right")

back = forward.conj()
values = np.array(back.tolist(), np.complex64)
print("a conjugate:", back.tolist()[1], "…")
assert back.is_contiguous() and back.is_conj()
told("numpy()", lambda: back.numpy(), "refused")
told("numpy.from_dlpack", lambda: np.from_dlpack(back), "refused")
told("tvm_ffi.from_dlpack", lambda: np.from_dlpack(tvm_ffi.from_dlpack(back)), "wrong")
told("safetensors.torch.save", lambda: load(save({"a": back}))["a"].numpy(), "wrong")
path = os.environ["TMPDIR"] + "/file"
def saved():
    save_file({"a": back}, path)
    return load_file(path)["a"].numpy()
told("safetensors.torch.save_file", saved, "wrong")
def pickled():
    torch.save(back, path)
    return torch.load(path).resolve_conj().numpy()
told("torch.save", pickled, "right")
told("safetensors, clone()", lambda: load(save({"a": back.clone()}))["a"].resolve_conj().numpy(), "right")
told("safetensors, resolve_conj()", lambda: load(save({"a": back.resolve_conj()}))["a"].numpy(), "right")
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
