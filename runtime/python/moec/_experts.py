"""Layers for experts whose weights are PyTorch's: compiled once for each form and size, filled once for each set of weights.

A *form* says how a module's experts are built; as an operand of an operator it is JSON with these keys:

* ``activation``: moec's name, or ``{"kind": …}`` with its numbers;
* ``gated``: the first weight has gate and up; ``interleaved``: row by row, otherwise all of gate first;
* ``transposed``: weights are ``[E, in, out]``, otherwise ``[E, out, in]``;
* ``stored``: how weights are coded, such as ``e4m3 by f32(128, 128)`` — codes, scales, rows and columns of a block, 0 for all —
  and ``dtype``, the type that they stand for; neither for weights that are floats;
* ``out_norm_eps``: each expert's output times one plus a weight, rounded, has an RMS norm (Muse-Spark); absent for no norm.

``params`` are the weights in the order ``gate_up or up``, ``down``, their biases in the same order, or none, the norm's weight, and
the scales of coded weights in the same order. Codes are bytes, two 4-bit codes in each; scales are ``[E, blocks along out, blocks
along in]``. Where those are e4m3, scales of whole experts ``[E]`` follow, of both weights. With ``zeros``, integers have zero points,
of which :func:`moec._int4.terms` follow, of both weights.
"""

import json
import threading
import weakref
from typing import Any, NamedTuple, TypedDict

import torch

from . import _int4, _tensors
from ._compile import Bundle, compile
from ._errors import MoecError
from ._layer import Layer
from ._library import LIBRARY


class _Floats(TypedDict):
    # How experts are built whose weights are floats.

    activation: Any
    gated: bool
    transposed: bool
    interleaved: bool


class Form(_Floats, total=False):
    """How a module's experts are built."""

    stored: str
    dtype: str
    zeros: bool
    out_norm_eps: float


class _Weight(NamedTuple):
    """A layer's parameter as a view of a module's own, and that one's number; codes with their scales likewise."""

    number: int
    tensor: torch.Tensor
    scales: torch.Tensor | None = None
    #: Of whole experts, in the host's memory.
    globals: torch.Tensor | None = None
    #: Those of scales and globals.
    scale_numbers: tuple[int, ...] = ()


MXFP4, NVFP4, MXFP8 = "e2m1 by e8m0(1, 32)", "e2m1 by e4m3(1, 16)", "e4m3 by e8m0(1, 32)"


def fp8(scale: torch.Tensor, block) -> str:
    """How FP8 weights with these float32 scales are coded: in blocks, or without ``block`` by one for each expert or each row."""
    rows, cols = block or ([0, 0] if scale.numel() == len(scale) else [1, 0])
    return f"e4m3 by f32({rows}, {cols})"


def int4(scale: torch.Tensor, block) -> str:
    """How integers of four bits that have 8 added are coded, with scales of this type: one for ``block[1]`` columns of a row, or for all."""
    return f"int4 by {_tensors.dtype_name(scale)}(1, {max(block[1], 0) if block else 0})"


def coded_form(form: Form, stored: str, dtype: torch.dtype, zeros: bool = False) -> Form:
    """The form with weights coded so that stand for numbers of this type."""
    coded: Form = {**form, "stored": stored, "dtype": _tensors.NAMES[str(dtype).removeprefix("torch.")]}
    if zeros:
        coded["zeros"] = True
    return coded


def coded_params(w1, w2, biases: list, scales: list, more=()) -> list[torch.Tensor]:
    """Coded weights and their scales as the operator takes them, and scales of whole experts or what zero points add."""
    codes = [w.detach().view(torch.uint8) for w in (w1, w2)]
    grids = [s.detach() if s.ndim == 3 else s.detach().view(len(w1), -1, 1) for s in scales]
    # PyTorch's C ABI names fewer types than PyTorch has.
    grids = [g.view(torch.uint8) if g.element_size() == 1 else g for g in grids]
    return [*codes, *biases, *grids, *(m.detach() for m in more)]


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
        if on_gpu:
            # Weights may still be on their way, on any stream.
            torch.cuda.synchronize(params[0].device)
        for name, w in views.items():
            # What kernels read in another layout is copied, on a GPU by way of the host.
            self.copied.update(w.scale_numbers)
            if self.layer.borrow(name, w.tensor, w.scales, w.globals):
                continue
            self.copied.add(w.number)
            if w.scales is None:
                self.layer.set(name, w.tensor, borrow=False)
            else:
                self.layer.set_codes(name, w.tensor, w.scales, w.globals, borrow=False)
        for name, tensor in _sums(views, form, params[0].device).items():
            self.layer.set(name, tensor, borrow=False)
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
    if key is None:
        _int4.KEPT.clear()
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


def _views(params, form: dict) -> dict[str, _Weight]:
    """The layer's parameters as views of a module's own: ``[E, N, K]``, gate apart from up."""
    weights = [_Weight(i, p) for i, p in enumerate(params)]
    terms = [weights.pop() for _ in range(2)][::-1] if "zeros" in form else []
    if "stored" in form:
        wide = [weights.pop() for _ in range(2)][::-1] if " by e4m3(" in form["stored"] else [None, None]
        *weights, first_scales, down_scales = weights
        for i, (s, g) in enumerate(zip((first_scales, down_scales), wide)):
            numbers = (s.number,) if g is None else (s.number, g.number)
            on_host = None if g is None else g.tensor.cpu()
            weights[i] = weights[i]._replace(scales=s.tensor, globals=on_host, scale_numbers=numbers)
    norm = weights.pop() if "out_norm_eps" in form else None
    if form["transposed"]:
        weights[:2] = [w._replace(tensor=w.tensor.transpose(1, 2)) for w in weights[:2]]
    views = {}

    def branches(weight: _Weight, end: str) -> None:
        if not form["gated"]:
            views["experts.up" + end] = weight
            return
        scales = weight.scales
        for i, name in enumerate(("gate", "up")):
            views[f"experts.{name}{end}"] = weight._replace(
                tensor=_half(weight.tensor, i, form["interleaved"]),
                # One scale for both stays one for each.
                scales=scales if scales is None or scales.shape[1] == 1 else _half(scales, i, form["interleaved"]),
            )

    branches(weights[0], "")
    views["experts.down"] = weights[1]
    if len(weights) > 2:
        branches(weights[2], "_bias")
        views["experts.down_bias"] = weights[3]
    if norm is not None:
        views["experts.out_norm"] = norm
    if terms:
        branches(terms[0], "_zero")
        views["experts.down_zero"] = terms[1]
    return views


def _half(tensor: torch.Tensor, i: int, interleaved: bool) -> torch.Tensor:
    """Every second row from the one of this number on, or the first or second half of all rows."""
    n = tensor.shape[1] // 2
    return tensor[:, i::2] if interleaved else tensor[:, i * n : (i + 1) * n]


def _graph(views: dict[str, _Weight], form: dict, top_k: int) -> dict:
    """The layer graph of experts alone, with ids as PyTorch has them."""
    n_experts, hidden, _ = views["experts.down"].tensor.shape
    dtype = form["dtype"] if "stored" in form else _tensors.dtype_name(views["experts.down"].tensor)

    def param(name, weight):
        if weight.scales is None:
            return {"name": name, "dtype": _tensors.dtype_name(weight.tensor), "shape": list(weight.tensor.shape)}
        *outer, width = weight.tensor.shape
        in_a_byte = 2 if form["stored"].startswith(("e2m1", "int4")) else 1
        return {"name": name, "dtype": dtype, "shape": [*outer, width * in_a_byte], "stored": form["stored"]}

    params = [param(name, weight) for name, weight in views.items()]
    sums = _sums(views, form, "meta")
    params += [{"name": name, "dtype": dtype, "shape": list(tensor.shape)} for name, tensor in sums.items()]

    def product(name, rows, weight) -> list[dict]:
        bias = [weight + "_bias"] if weight + "_bias" in views else []
        whole = {"name": name, "op": "grouped_linear", "inputs": [rows, "ids", weight, *bias]}
        if not sums:
            return [whole]
        return [
            {**whole, "name": name + "_codes", "dtype": "f32"},
            {"name": name + "_zeros", "op": "grouped_linear", "inputs": [rows + "_sums", "ids", weight + "_zero"], "dtype": "f32"},
            {"name": name, "op": "add", "inputs": [name + "_codes", name + "_zeros"], "dtype": dtype},
        ]

    def group_sums(rows) -> list[dict]:
        inputs = [rows, f"sums.{rows}"]
        return [{"name": rows + "_sums", "op": "linear", "inputs": inputs, "dtype": "f32"}] if sums else []

    branches = ["gate", "up"] if form["gated"] else ["up"]
    rows = "normed" if "out_norm_eps" in form else "down"
    nodes = [
        {"name": "ids", "op": "local_ids", "first": 0, "count": n_experts, "inputs": ["topk_ids"]},
        {"name": "rows", "op": "permute", "n_experts": n_experts, "inputs": ["input", "ids"]},
        *group_sums("input"),
        *([{"name": "rows_sums", "op": "permute", "n_experts": n_experts, "inputs": ["input_sums", "ids"]}] if sums else []),
        *(node for b in branches for node in product(b, "rows", "experts." + b)),
        {"name": "act", "op": "activate", "activation": form["activation"], "inputs": branches},
        *group_sums("act"),
        *product("down", "act", "experts.down"),
        *_out_norm(form, dtype),
        {"name": "slots", "op": "unpermute", "n_experts": n_experts, "inputs": [rows, "ids"]},
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


def _sums(views: dict[str, _Weight], form: dict, device) -> dict[str, torch.Tensor]:
    """Matrices of ones that sum the groups of a product's inputs, for integers with zero points; else none."""
    if "zeros" not in form:
        return {}
    _, hidden, packed = views["experts.down"].tensor.shape
    dtype = getattr(torch, _tensors.PYTHON_NAMES[form["dtype"]])

    def ones(width, terms):
        groups = terms.shape[2]
        return torch.eye(groups, dtype=dtype, device=device).repeat_interleave(width // groups, 1)

    return {
        "sums.input": ones(hidden, views["experts.up_zero"].tensor),
        "sums.act": ones(2 * packed, views["experts.down_zero"].tensor),
    }


def _out_norm(form: dict, dtype: str) -> list[dict]:
    if "out_norm_eps" not in form:
        return []
    return [
        {"name": "scaled", "op": "mul", "inputs": ["down", "experts.out_norm"], "dtype": "f32"},
        {"name": "sum", "op": "add", "inputs": ["down", "scaled"], "dtype": dtype},
        {"name": "normed", "op": "rms_norm", "eps": form["out_norm_eps"], "inputs": ["sum"], "dtype": dtype},
    ]
