#!/usr/bin/env bash
# PyTorch's stable C ABI: torch_call_dispatcher of an operator that gives (int, str) or (int, float) ends in an internal assertion; (int, int) works, and all work from Python.
# Needs python3 (3.10 or later), about 6 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 numpy
cat > "$dir/check.py" <<'PY'
import ctypes, os, sys, torch

print("torch", torch.__version__)
lib = torch.library.Library("probe", "DEF")
RESULTS = {"int_int": ("(int, int)", (7, 9)), "int_str": ("(int, str)", (7, "nine")), "int_float": ("(int, float)", (7, 9.0))}
for name, (schema, value) in RESULTS.items():
    lib.define(f"{name}(Tensor x) -> {schema}")
    lib.impl(name, lambda x, value=value: value, "CPU")
shim = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))
shim.torch_exception_get_what_without_backtrace.restype = ctypes.c_char_p
VERSION = (2 << 56) | (15 << 48)


def call(name):
    """Status and results of an operator through the ABI."""
    made, sizes, strides = ctypes.c_void_p(), (ctypes.c_int64 * 1)(1), (ctypes.c_int64 * 1)(1)
    dtype = shim.aoti_torch_dtype_float32()
    args = [ctypes.c_int64(1), sizes, strides, dtype, 0, -1, ctypes.byref(made)]
    assert shim.aoti_torch_empty_strided(*args) == 0
    stack = (ctypes.c_uint64 * 2)(made.value, 0)
    status = shim.torch_call_dispatcher(f"probe::{name}".encode(), b"", stack, ctypes.c_uint64(VERSION))
    why = shim.torch_exception_get_what_without_backtrace().decode().splitlines()[0] if status else ""
    return status, list(stack), why


found = {}
for name, (schema, value) in RESULTS.items():
    assert getattr(torch.ops.probe, name)(torch.zeros(1)) == value, "it works from Python"
    found[name], stack, why = call(name)
    print(f"{schema}: from Python {value}; through the ABI status {found[name]} {stack if found[name] == 0 else why}")
sys.exit(not (found["int_int"] == 0 and found["int_str"] != 0 and found["int_float"] != 0))
PY
CUDA_VISIBLE_DEVICES= "$dir/venv/bin/python" "$dir/check.py"
