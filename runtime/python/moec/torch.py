"""Layers of moec as operators of PyTorch.

``torch.ops.moec.layer`` runs a layer that was loaded before:

    layer = moec.load(bundle, checkpoint)
    number = moec.torch.add(layer)
    y = torch.ops.moec.layer([x], number)[0]

``torch.ops.moec.experts`` takes the weights of a model's experts as operands, and prepares a layer for them when it meets them
for the first time; when they have changed or are gone, so is the layer.

Both work under ``torch.compile(fullgraph=True)``. They compute forward only: a backward pass says so.
"""

import json

import threading

import torch

from . import _tensors
from ._compile import Bundle, compile
from ._layer import Layer, _length

_LOCK = threading.Lock()
_LAYERS: dict[int, Layer] = {}

_LIBRARY = torch.library.Library("moec", "DEF")
_LIBRARY.define("layer(Tensor[] inputs, int layer) -> Tensor[]")
_LIBRARY.define("experts(Tensor x, Tensor ids, Tensor weights, Tensor[] params, str form) -> Tensor")


def add(layer: Layer) -> int:
    """A number for the layer, for calls of the operator; until :func:`remove`."""
    with _LOCK:
        number = max(_LAYERS, default=0) + 1
        _LAYERS[number] = layer
    return number


def remove(number: int) -> None:
    """Forgets a layer."""
    with _LOCK:
        del _LAYERS[number]


def _run(inputs, layer):
    return list(_LAYERS[layer].run(*inputs).values())


def _fake(inputs, layer):
    found = _LAYERS[layer]
    n_tokens = inputs[0].shape[0]
    return [
        inputs[0].new_empty([_length(n, n_tokens) for n in out["shape"]], dtype=getattr(torch, _tensors._TYPES[out["dtype"]][2]))
        for out in found.description["outputs"]
    ]


def _backward(ctx, *gradients):
    raise RuntimeError("moec computes forward only: run the model under torch.no_grad() or torch.inference_mode()")


_LIBRARY.impl("layer", _run, "CPU")
_LIBRARY.impl("layer", _run, "CUDA")
torch.library.register_fake("moec::layer", _fake, lib=_LIBRARY)
torch.library.register_autograd("moec::layer", _backward, lib=_LIBRARY)


# --- Experts whose weights are operands. ---------------------------------------------------------------------------------


class _Prepared:
    """A layer for some weights, as long as they are what they were."""

    def __init__(self, params, form: dict, top_k: int, max_tokens: int):
        from torch.multiprocessing.reductions import StorageWeakRef

        self.storages = [StorageWeakRef(p.untyped_storage()) for p in params]
        self.versions = _versions(params)
        views = _views(params, form)
        graph = _graph(views, form, top_k)
        device = f"cuda:{params[0].device.index or 0}" if params[0].is_cuda else "cpu"
        self.max_tokens = max_tokens
        self.layer = Layer(_bundle(graph, device), device=device, max_tokens=max_tokens)
        for name, view in views.items():
            # The GPU's own memory can be borrowed only; what kernels read in another layout goes by way of the host.
            self.layer.set(name, view if device == "cpu" else view.cpu(), borrow=device == "cpu")
        # The weights' owner decides how long they live, not this cache: `alive` looks before anything reads them.
        self.layer._kept.clear()
        self.layer.finish()

    def alive(self, params) -> bool:
        return not any(s.expired() for s in self.storages) and self.versions == _versions(params)


_PREPARED: dict[tuple, _Prepared] = {}
_BUNDLES: dict[str, Bundle] = {}


def _versions(params) -> list[int]:
    return [-1 if p.is_inference() else p._version for p in params]


def _bundle(graph: dict, device: str) -> Bundle:
    """The compiled graph: once for all layers of one form and size."""
    if device == "cpu":
        target = "cpu"
    else:
        major, minor = torch.cuda.get_device_capability(device)
        targets = {(8, 0): "sm_80", (9, 0): "sm_90a", (10, 0): "sm_100f", (10, 3): "sm_100f", (12, 0): "sm_120f"}
        target = targets.get((major, minor), "sm_80")
    key = json.dumps([graph, target])
    if key not in _BUNDLES:
        _BUNDLES[key] = compile(graph, target)
    return _BUNDLES[key]


def _views(params, form: dict) -> dict[str, torch.Tensor]:
    """The parameters of the layer, as views of a module's own: ``[E, N, K]``, gate apart from up."""
    params = list(params)
    first, down = params[0].detach(), params[1].detach()
    if form["transposed"]:
        first, down = first.transpose(1, 2), down.transpose(1, 2)
    biases = [p.detach() for p in params[2:]]
    views = {}

    def branches(tensor, axis, end):
        if not form["gated"]:
            views["experts.up" + end] = tensor
            return
        n = tensor.shape[axis] // 2
        both = [(slice(0, n), slice(n, None)), (slice(0, None, 2), slice(1, None, 2))][form["interleaved"]]
        for name, part in zip(("gate", "up"), both):
            views[f"experts.{name}{end}"] = tensor[(slice(None),) * axis + (part,)]

    branches(first, 1, "")
    views["experts.down"] = down
    if biases:
        branches(biases[0], 1, "_bias")
        views["experts.down_bias"] = biases[1]
    return views


def _graph(views: dict[str, torch.Tensor], form: dict, top_k: int) -> dict:
    """The layer graph of experts alone, with ids as PyTorch has them."""
    n_experts, hidden, _ = views["experts.down"].shape
    dtype = _tensors.dtype_name(views["experts.down"])
    params = [{"name": n, "dtype": dtype, "shape": list(v.shape)} for n, v in views.items()]

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


def _prepared(params, form: str, top_k: int, n_tokens: int) -> Layer:
    place = tuple((p.data_ptr(), p.shape, p.stride(), p.dtype, p.device) for p in params)
    key = (form, top_k, place)
    with _LOCK:
        found = _PREPARED.get(key)
        if found is None or not found.alive(params) or found.max_tokens < n_tokens:
            for other in [k for k, p in _PREPARED.items() if any(s.expired() for s in p.storages)]:
                del _PREPARED[other]
            # Twice what is needed, so that a growing prompt does not prepare again and again.
            found = _PREPARED[key] = _Prepared(params, json.loads(form), top_k, max(4096, 2 * n_tokens))
        return found.layer


def _experts(x, ids, weights, params, form):
    layer = _prepared(params, form, ids.shape[-1], x.shape[0])
    return layer(x, ids, weights.to(torch.float32))


def _experts_fake(x, ids, weights, params, form):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_LIBRARY.impl("experts", _experts, "CPU")
_LIBRARY.impl("experts", _experts, "CUDA")
torch.library.register_fake("moec::experts", _experts_fake, lib=_LIBRARY)
torch.library.register_autograd("moec::experts", _backward, lib=_LIBRARY)
