"""Layers of moec as operators of PyTorch.

``torch.ops.moec.layer`` runs a layer that was loaded before:

    layer = moec.load(bundle, checkpoint)
    number = moec.torch.add(layer)
    y = torch.ops.moec.layer([x], number)[0]

``torch.ops.moec.experts`` takes the weights of a model's experts as operands, and prepares a layer for them when it meets them
for the first time. When they are freed, so is the layer; when they were written to, it is prepared anew. PyTorch does not count
writes through ``.data``: call :func:`forget` after such.

Both work under ``torch.compile(fullgraph=True)`` and ``torch.export``. They compute forward only: a backward pass says so.

On the CPU, and with PyTorch 2.10 or newer, no Python runs between PyTorch's dispatcher and the kernels; errors are
``RuntimeError`` with moec's text then.
"""

import warnings
from collections.abc import Callable

import torch

from . import _tensors
from ._errors import MoecError
from ._experts import forget, prepared, refuse_missing
from ._layer import LIVING, Layer
from ._library import LIBRARY

__all__ = ["add", "experts", "forget", "remove"]

_KEPT: dict[int, Layer] = {}

_SCHEMAS = {
    "layer": "(Tensor[] inputs, int layer) -> Tensor[]",
    "experts": "(Tensor x, Tensor ids, Tensor weights, Tensor[] params, str form) -> Tensor",
}
_LIBRARY = torch.library.Library("moec", "DEF")


def add(layer: Layer) -> int:
    """A number for the layer, for calls of ``torch.ops.moec.layer``; it stays until :func:`remove`."""
    _KEPT[layer.number] = layer
    return layer.number


def remove(number: int) -> None:
    """Lets a layer go."""
    del _KEPT[number]


def experts(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, params: list[torch.Tensor], form: str) -> torch.Tensor:
    """``torch.ops.moec.experts``, by the shortest way.

    Args:
        x: ``[T, H]``, in the weights' type.
        ids: ``[T, k]``, int64 or int32; ids below 0 and from E on are skipped.
        weights: ``[T, k]``, f32, bf16 or f16.
        params, form: as :mod:`moec._experts` says.

    Returns:
        ``[T, H]`` in the type of ``x``.
    """
    # Programs that are traced have the one operator that autograd knows.
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.ops.moec.experts.default(x, ids, weights, params, form)
    return _EXPERTS(x, ids, weights, params, form)


def _layer_python(inputs, layer):
    return list(LIVING[layer].run_python(*inputs).values())


def _layer_fake(inputs, layer):
    n_tokens = inputs[0].shape[0]
    return [
        inputs[0].new_empty(shape, dtype=getattr(torch, _tensors.PYTHON_NAMES[dtype]))
        for _, shape, dtype in LIVING[layer].outputs(n_tokens)
    ]


def _experts_python(x, ids, weights, params, form):
    layer = prepared(params, form, ids.shape[-1], x.shape[0]).layer
    return next(iter(layer.run_python(x, ids, weights.to(torch.float32)).values()))


def _experts_fake(x, ids, weights, params, form):
    # One tensor on `meta` is enough for PyTorch to come here, with the others real.
    if not x.is_meta:
        refuse_missing(params)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _prepare(ids, params, form, n_tokens) -> str:
    """For the library's kernel: a layer's number, which of the weights it has to watch, its most tokens; or an error in lines."""
    try:
        found = prepared(params, form, ids.shape[-1], n_tokens)
    except MoecError as e:
        return "\n".join([e.code, e.message, e.help])
    except Exception as e:
        return f"internal-error\nthe experts cannot be prepared: {type(e).__name__}: {e}"
    watched = sum(1 << i for i in found.copied if not params[i].is_inference())
    return f"{found.layer.number} {watched} {found.max_tokens}"


def _refuse_backward(ctx, *gradients):
    raise RuntimeError("moec computes forward only: run the model under torch.no_grad() or torch.inference_mode()")


def _define() -> bool:
    """Defines the operators; whether their CPU kernels are the library's own."""
    _LIBRARY.define("experts_prepare(Tensor ids, Tensor[] params, str form, int n_tokens) -> str")
    _LIBRARY.impl("experts_prepare", _prepare, "CPU")
    bodies: dict[str, tuple[Callable, Callable]] = {"layer": (_layer_python, _layer_fake), "experts": (_experts_python, _experts_fake)}
    # Three of each: the one to call, and the two that its kernel for autograd chooses from.
    for name, schema in _SCHEMAS.items():
        for end in ("", "_forward", "_tracked"):
            _LIBRARY.define(name + end + schema)
    native = LIBRARY.moec_torch_register()
    if native < 0:
        why = LIBRARY.moec_last_error_message().decode()
        warnings.warn(f"calls of moec's operators go through Python: {why}", stacklevel=2)
    for name, (body, fake) in bodies.items():
        for end in ("", "_forward", "_tracked"):
            _LIBRARY.impl(name + end, body, "CUDA")
            if native != 1:
                _LIBRARY.impl(name + end, body, "CPU")
            torch.library.register_fake(f"moec::{name}{end}", fake, lib=_LIBRARY)
        torch.library.register_autograd(f"moec::{name}_tracked", _refuse_backward, lib=_LIBRARY)
        if native != 1:
            torch.library.register_autograd(f"moec::{name}", _refuse_backward, lib=_LIBRARY)
    return native == 1


#: Whether the operators' CPU kernels are the library's own.
IS_NATIVE: bool = _define()
_EXPERTS = torch.ops.moec.experts_forward.default
_LAYER, _LAYER_FORWARD = torch.ops.moec.layer.default, torch.ops.moec.layer_forward.default


def run_layer(number: int, inputs: tuple) -> list[torch.Tensor]:
    """All outputs of a layer on the CPU, through its operator."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _LAYER(inputs, number)
    return _LAYER_FORWARD(inputs, number)
