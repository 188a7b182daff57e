"""Layers for experts whose weights are PyTorch's: compiled once for each form and size, filled once for each set of weights.

A *form* says how a module's experts are built; as an operand of an operator it is JSON with these keys:

* ``activation``: moec's name, or ``{"kind": …}`` with its numbers;
* ``gated``: the first weight has gate and up; ``interleaved``: row by row, otherwise all of gate first;
* ``transposed``: weights are ``[E, in, out]``, otherwise ``[E, out, in]``.

``params`` are the weights in the order ``gate_up or up``, ``down``, and their biases in the same order, or none.
"""

import json
import threading
import weakref
from typing import Any, TypedDict

import torch

from . import _tensors
from ._compile import Bundle, compile
from ._errors import MoecError
from ._layer import Layer
from ._library import LIBRARY


class Form(TypedDict):
    """How a module's experts are built."""

    activation: Any
    gated: bool
    transposed: bool
    interleaved: bool


# Reentrant: weights may be freed, and forgotten, while others are prepared.
_LOCK = threading.RLock()
_BUNDLES: dict[str, Bundle] = {}
#: Prepared layers, by where their weights lie.
PREPARED: dict[tuple, "Prepared"] = {}


class Prepared:
    """A layer for some weights, until PyTorch frees one of them."""

    def __init__(self, key: tuple, params, form: dict, top_k: int, max_tokens: int):
        self.versions = versions(params)
        views = _views(params, form)
        on_gpu = params[0].is_cuda
        device = f"cuda:{params[0].device.index or 0}" if on_gpu else "cpu"
        self.max_tokens = max_tokens
        self.layer = Layer(_bundle(_graph(views, form, top_k), device), device=device, max_tokens=max_tokens)
        #: Numbers of the parameters that were copied, so that a later write to them has to be noticed.
        self.copied: set[int] = set()
        for name, (number, view) in views.items():
            # On a GPU all is copied, by way of the host; on the CPU what kernels read in another layout.
            if on_gpu or not self.layer.borrow(name, view):
                self.layer.set(name, view.cpu() if on_gpu else view, borrow=False)
                self.copied.add(number)
        # The weights' owner decides how long they live: the layer goes when one of them does.
        self.layer._kept.clear()
        self.layer.finish()
        self._ends = [weakref.finalize(p.untyped_storage(), forget, key) for p in params]
        for end in self._ends:
            end.atexit = False

    def is_current(self, params) -> bool:
        now = versions(params)
        return all(now[i] == self.versions[i] for i in self.copied)

    def drop(self) -> None:
        for end in self._ends:
            end.detach()
        LIBRARY.moec_torch_forget(self.layer._handle)


def versions(params) -> list[int]:
    """What PyTorch counts writes by; weights that were made in inference mode have none."""
    return [-1 if p.is_inference() else p._version for p in params]


def forget(key: tuple | None = None) -> None:
    """Forgets the layers of some weights, or all."""
    with _LOCK:
        keys = list(PREPARED) if key is None else [key]
        gone = [PREPARED.pop(k) for k in keys if k in PREPARED]
    for prepared in gone:
        prepared.drop()


def forget_weights(params) -> None:
    """Forgets the layers that were made of any of these weights: they were written to in a way that PyTorch does not count."""
    places = {p.data_ptr() for p in params}
    with _LOCK:
        keys = [key for key in PREPARED if any(place[0] in places for place in key[2:])]
    for key in keys:
        forget(key)


def refuse_missing(params) -> None:
    """Raises ``weights-missing`` for weights without memory."""
    if any(p.is_meta for p in params):
        raise MoecError(
            "weights-missing",
            "the weights of experts lie on `meta`: they are offloaded, or were not loaded",
            "load the model without offloading, so that its experts stay in memory",
        )


def prepared(params, form: str, top_k: int, n_tokens: int) -> Prepared:
    """The layer for these weights; made when it is not there, has grown too small, or its weights were written to."""
    params = [p.detach() for p in params]
    key = (form, top_k, *((p.data_ptr(), p.shape, p.stride(), p.dtype, p.device) for p in params))
    with _LOCK:
        found = PREPARED.get(key)
        if found is not None and found.is_current(params) and found.max_tokens >= n_tokens:
            return found
        forget(key)
        # Twice what is needed, so that a growing prompt does not prepare again and again.
        PREPARED[key] = Prepared(key, params, json.loads(form), top_k, max(4096, 2 * n_tokens))
        return PREPARED[key]


def target_of(device: str) -> str:
    """The target to compile for."""
    if device == "cpu":
        return "cpu"
    targets = {(8, 0): "sm_80", (9, 0): "sm_90a", (10, 0): "sm_100f", (10, 3): "sm_100f", (12, 0): "sm_120f"}
    return targets.get(torch.cuda.get_device_capability(device), "sm_80")


def _bundle(graph: dict, device: str) -> Bundle:
    """The compiled graph: once for all layers of one form and size."""
    target = target_of(device)
    key = json.dumps([graph, target])
    if key not in _BUNDLES:
        _BUNDLES[key] = compile(graph, target)
    return _BUNDLES[key]


def _views(params, form: dict) -> dict[str, tuple[int, torch.Tensor]]:
    """The layer's parameters as views of a module's own, with the number of each: ``[E, N, K]``, gate apart from up."""
    first, down = params[0], params[1]
    if form["transposed"]:
        first, down = first.transpose(1, 2), down.transpose(1, 2)
    views = {}

    def branches(number, tensor, axis, end):
        if not form["gated"]:
            views["experts.up" + end] = number, tensor
            return
        n = tensor.shape[axis] // 2
        both = [(slice(0, n), slice(n, None)), (slice(0, None, 2), slice(1, None, 2))][form["interleaved"]]
        for name, part in zip(("gate", "up"), both):
            views[f"experts.{name}{end}"] = number, tensor[(slice(None),) * axis + (part,)]

    branches(0, first, 1, "")
    views["experts.down"] = 1, down
    if len(params) > 2:
        branches(2, params[2], 1, "_bias")
        views["experts.down_bias"] = 3, params[3]
    return views


def _graph(views: dict[str, tuple[int, torch.Tensor]], form: dict, top_k: int) -> dict:
    """The layer graph of experts alone, with ids as PyTorch has them."""
    down = views["experts.down"][1]
    n_experts, hidden, _ = down.shape
    dtype = _tensors.dtype_name(down)
    params = [{"name": n, "dtype": _tensors.dtype_name(v), "shape": list(v.shape)} for n, (_, v) in views.items()]

    def product(name, rows, weight):
        bias = [weight + "_bias"] if weight + "_bias" in views else []
        return {"name": name, "op": "grouped_linear", "inputs": [rows, "ids", weight, *bias]}

    branches = ["gate", "up"] if form["gated"] else ["up"]
    nodes = [
        {"name": "ids", "op": "local_ids", "first": 0, "count": n_experts, "inputs": ["topk_ids"]},
        {"name": "rows", "op": "permute", "n_experts": n_experts, "inputs": ["input", "ids"]},
        *(product(b, "rows", "experts." + b) for b in branches),
        {"name": "act", "op": "activate", "activation": form["activation"], "inputs": branches},
        product("down", "act", "experts.down"),
        {"name": "slots", "op": "unpermute", "n_experts": n_experts, "inputs": ["down", "ids"]},
        {"name": "output", "op": "weighted_sum", "inputs": ["slots", "topk_weights"]},
    ]
    inputs = [("input", dtype, hidden), ("topk_ids", "i64", top_k), ("topk_weights", "f32", top_k)]
    return {
        "moec_graph": 1,
        "name": "experts",
        "inputs": [{"name": n, "dtype": t, "shape": ["T", width]} for n, t, width in inputs],
        "params": params,
        "nodes": nodes,
        "outputs": [{"name": "output", "value": "output"}],
    }
