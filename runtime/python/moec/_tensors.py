"""Tensors of numpy and PyTorch as the library sees them, and new ones of the same kind."""

import ctypes
import sys
from typing import Any

from ._errors import MoecError
from ._library import Device, DType, Tensor

# Name in moec: DLPack's code and bits, and the names of numpy and PyTorch.
_TYPES = {
    "f64": (2, 64, "float64"),
    "f32": (2, 32, "float32"),
    "f16": (2, 16, "float16"),
    "bf16": (4, 16, "bfloat16"),
    "i32": (0, 32, "int32"),
    "i64": (0, 64, "int64"),
}
# Names of numpy and PyTorch, and DLPack's code and bits, of what weights are coded in and layers do not compute in.
_CODES = {"uint8": (1, 8), "float8_e4m3fn": (10, 8), "float8_e5m2": (12, 8), "float8_e8m0fnu": (14, 8)}
_LAST_ID = 2**31 - 1
#: Name in moec: name in numpy and PyTorch.
PYTHON_NAMES = {name: python for name, (_, _, python) in _TYPES.items()}
#: The other way round.
NAMES = {python: name for name, (_, _, python) in _TYPES.items()}


def is_torch(tensor) -> bool:
    """Whether it is PyTorch's; does not import it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def dtype_name(tensor) -> str:
    """moec's name of the element type.

    Raises:
        MoecError: ``input-type-mismatch`` for one that moec does not have.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in NAMES:
        raise MoecError("input-type-mismatch", f"moec does not have elements of type {name}")
    return NAMES[name]


def view(tensor) -> tuple[Tensor, Any]:
    """The tensor where it lies, and what has to be kept until the view is no longer used."""
    code, bits = _CODES.get(str(tensor.dtype).removeprefix("torch."), (0, 0))
    if not bits:
        code, bits, _ = _TYPES[dtype_name(tensor)]
    if is_torch(tensor):
        if tensor.is_meta:
            raise MoecError("tensor-invalid", "the tensor has no memory: it lies on `meta`", "load its values first")
        if tensor.is_neg():
            raise MoecError("tensor-invalid", "the memory has the values' negatives", "hand in what `resolve_neg()` gives")
        data, strides = tensor.data_ptr(), tensor.stride()
        device = Device(2, tensor.device.index or 0) if tensor.is_cuda else Device(1, 0)
    else:
        if any(n > 1 and step % tensor.itemsize for n, step in zip(tensor.shape, tensor.strides)):
            steps = f"elements of {tensor.itemsize} bytes lie {tensor.strides} bytes apart"
            raise MoecError("tensor-invalid", steps, "hand in a copy: `numpy.ascontiguousarray(tensor)`")
        data, device = tensor.ctypes.data, Device(1, 0)
        strides = tuple(step // tensor.itemsize for step in tensor.strides)
    axes = ctypes.c_int64 * max(tensor.ndim, 1)
    shape, strides = axes(*tensor.shape), axes(*strides)
    given = Tensor(data, device, tensor.ndim, DType(code, bits, 1), shape, strides, 0)
    return given, (shape, strides, tensor)


def address(tensor) -> int:
    """Where the first element lies."""
    return tensor.data_ptr() if is_torch(tensor) else tensor.__array_interface__["data"][0]


def dense(tensor):
    """The tensor itself when its rows are dense, else a copy."""
    if is_torch(tensor):
        return tensor.detach().contiguous()
    import numpy

    return numpy.ascontiguousarray(tensor)


def as_ids(tensor, dtype: str):
    """Integers in another width; everything else as it is. An id beyond i32 is no expert's, and stays none."""
    if dtype not in ("i32", "i64") or dtype_name(tensor) not in ("i32", "i64") or dtype_name(tensor) == dtype:
        return tensor
    if is_torch(tensor):
        import torch

        return (tensor.clamp(-1, _LAST_ID) if dtype == "i32" else tensor).to(getattr(torch, _TYPES[dtype][2]))
    return (tensor.clip(-1, _LAST_ID) if dtype == "i32" else tensor).astype(_TYPES[dtype][2])


def empty_like(model, shape: tuple[int, ...], dtype: str):
    """A new tensor of the library and on the device of ``model``."""
    if is_torch(model):
        import torch

        return torch.empty(shape, dtype=getattr(torch, _TYPES[dtype][2]), device=model.device)
    import numpy

    if dtype == "bf16":
        raise MoecError("input-type-mismatch", "numpy has no bf16", "hand in PyTorch's tensors")
    return numpy.empty(shape, _TYPES[dtype][2])
