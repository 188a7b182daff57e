"""libmoec_c through ctypes: what ``moec.h`` says, once more."""

import ctypes
import os
import pathlib

from ._errors import MoecError

ABI_VERSION = 1
COPY, BORROW, BORROW_IF_POSSIBLE = 0, 1, 2


class Device(ctypes.Structure):
    _fields_ = [("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class DType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):
    """DLPack's DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class LayerOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("device", ctypes.c_char_p),
        ("max_tokens", ctypes.c_uint64),
        ("n_threads", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("memory_limit", ctypes.c_uint64),
    ]


Progress = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64)


class CheckpointOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("path", ctypes.c_char_p),
        ("cache", ctypes.c_char_p),
        ("progress", Progress),
        ("user", ctypes.c_void_p),
    ]


class Codes(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("codes", ctypes.POINTER(Tensor)),
        ("scales", ctypes.POINTER(Tensor)),
        ("globals", ctypes.POINTER(Tensor)),
    ]


class Param(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("dtype", DType),
        ("ndim", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("is_set", ctypes.c_int32),
        ("is_coded", ctypes.c_int32),
    ]


class Launch(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("inputs", ctypes.POINTER(ctypes.POINTER(Tensor))),
        ("n_inputs", ctypes.c_size_t),
        ("outputs", ctypes.POINTER(ctypes.POINTER(Tensor))),
        ("n_outputs", ctypes.c_size_t),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
    ]


_HANDLE = ctypes.c_void_p
_FUNCTIONS = {
    "moec_bundle_open": [ctypes.c_char_p, ctypes.POINTER(_HANDLE)],
    "moec_bundle_describe": [_HANDLE, ctypes.POINTER(ctypes.c_char_p)],
    "moec_bundle_free": [_HANDLE],
    "moec_layer_create": [_HANDLE, ctypes.POINTER(LayerOptions), ctypes.POINTER(_HANDLE)],
    "moec_layer_param_count": [_HANDLE, ctypes.POINTER(ctypes.c_size_t)],
    "moec_layer_param": [_HANDLE, ctypes.c_size_t, ctypes.POINTER(Param)],
    "moec_layer_set_param": [_HANDLE, ctypes.c_char_p, ctypes.POINTER(Tensor), ctypes.c_int32],
    "moec_layer_set_codes": [_HANDLE, ctypes.c_char_p, ctypes.POINTER(Codes), ctypes.c_int32],
    "moec_layer_load_checkpoint": [_HANDLE, ctypes.POINTER(CheckpointOptions)],
    "moec_layer_finish": [_HANDLE],
    "moec_layer_workspace_bytes": [_HANDLE, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64)],
    "moec_layer_launch": [_HANDLE, ctypes.POINTER(Launch)],
    "moec_layer_free": [_HANDLE],
}


def folder(name: str) -> pathlib.Path:
    """A folder of the package, ``bin`` or ``lib``; ``MOEC_HOME`` names another place that has them."""
    home = os.environ.get("MOEC_HOME")
    return (pathlib.Path(home) if home else pathlib.Path(__file__).parent) / name


def _open() -> ctypes.CDLL:
    library = ctypes.CDLL(str(folder("lib") / "libmoec_c.so"))
    if library.moec_abi_version() != ABI_VERSION:
        raise ImportError(f"{library._name} has another interface than this package")
    for name, arguments in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    library.moec_torch_register.restype = ctypes.c_int
    library.moec_torch_forget.argtypes, library.moec_torch_forget.restype = [_HANDLE], None
    for name in ("moec_last_error_code", "moec_last_error_message", "moec_last_error_help", "moec_version"):
        getattr(library, name).argtypes, getattr(library, name).restype = [], ctypes.c_char_p
    return library


LIBRARY = _open()


def version() -> str:
    """The version of the library."""
    return LIBRARY.moec_version().decode()


def check(status: int) -> None:
    """Raises what the last call of this thread came to, unless it went well."""
    if status != 0:
        text = [getattr(LIBRARY, f"moec_last_error_{part}")().decode() for part in ("code", "message", "help")]
        raise MoecError(*text)
