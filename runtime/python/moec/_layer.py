"""Layers that are ready to run."""

import ctypes
import dataclasses
import os
import threading
import weakref
from typing import Any

from . import _library as c
from . import _progress, _tensors
from ._compile import Bundle
from ._errors import MoecError


@dataclasses.dataclass(frozen=True)
class Param:
    """A parameter of a layer."""

    name: str
    shape: tuple[int, ...]
    #: Whether it has its weight.
    is_set: bool
    #: Whether it is published as codes and scales: :meth:`Layer.set_codes`, or a checkpoint, gives it.
    is_coded: bool


#: All layers, by their numbers.
LIVING: "weakref.WeakValueDictionary[int, Layer]" = weakref.WeakValueDictionary()


class Layer:
    """A layer on a device. Calls may come from any thread.

    Made by :func:`load`. Without weights it is filled by :meth:`set` and closed by :meth:`finish`.
    """

    def __init__(self, bundle, *, device="cpu", max_tokens: int = 4096, threads: int = 0, memory_limit: int = 0):
        limits = (("max_tokens", max_tokens, 2**64 - 1), ("threads", threads, 1024), ("memory_limit", memory_limit, 2**64 - 1))
        for name, value, most in limits:
            # Before ctypes cuts it to the bits that there are.
            if not 0 <= value <= most:
                raise MoecError("argument-invalid", f"`{name}` is {value}", f"give a number from 0 to {most}")
        bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        device = str(device)
        self.description, self.device, self.max_tokens = bundle.description, device, max_tokens
        most = max((t["max_tokens"] for t in self.description["targets"]), default=max_tokens)
        size = ctypes.sizeof(c.LayerOptions)
        options = c.LayerOptions(size, device.encode(), min(max_tokens, most), threads, 0, memory_limit)
        self._handle = ctypes.c_void_p()
        c.check(c.LIBRARY.moec_layer_create(bundle._handle, ctypes.byref(options), ctypes.byref(self._handle)))
        weakref.finalize(self, c.LIBRARY.moec_layer_free, self._handle)
        #: What operators of PyTorch call it by; never given twice.
        self.number: int = self._handle.value or 0
        LIVING[self.number] = self
        self._kept: dict[str, object] = {}
        self._own = threading.local()

    @property
    def params(self) -> list[Param]:
        """The parameters, in the layer's order."""
        count = ctypes.c_size_t()
        c.check(c.LIBRARY.moec_layer_param_count(self._handle, ctypes.byref(count)))
        found = []
        for i in range(count.value):
            p = c.Param(struct_size=ctypes.sizeof(c.Param))
            c.check(c.LIBRARY.moec_layer_param(self._handle, i, ctypes.byref(p)))
            found.append(Param(p.name.decode(), tuple(p.shape[: p.ndim]), bool(p.is_set), bool(p.is_coded)))
        return found

    def set(self, name: str, tensor, *, borrow: bool = True) -> None:
        """Gives a parameter its weight: any view of memory, of the parameter's shape.

        With ``borrow`` the tensor's own memory is used where kernels can read it as it lies; the layer keeps the tensor, and
        what is written to it later is seen. Otherwise the values are copied.
        """
        self._give(name, tensor, c.BORROW_IF_POSSIBLE if borrow else c.COPY)

    def set_codes(self, name: str, codes, scales, global_scales=None, *, borrow: bool = True) -> None:
        """Gives a parameter that is published as codes and scales both: the value of an element is
        ``code * (scale * global_scale)``.

        Args:
            codes: ``[.., N, K]`` of FP8 or bytes; of 4-bit codes ``[.., N, K / 2]`` bytes, the low half first.
            scales: one for each block, ``[.., blocks along N, blocks along K]``; bytes are scales of the parameter's own type.
            global_scales: float32, one or one for each matrix, in the host's memory; for NVFP4.
            borrow: as for :meth:`set`; scales are copied where kernels read them otherwise.

        Raises:
            MoecError: ``stored-format-mismatch``, ``quantised-scale-invalid``, ``scale-not-exact``, ``tensor-shape-mismatch`` and
                others.
        """
        self._give_codes(name, codes, scales, global_scales, c.BORROW_IF_POSSIBLE if borrow else c.COPY)

    def borrow(self, name: str, tensor, scales=None, global_scales=None) -> bool:
        """As :meth:`set`, or with scales :meth:`set_codes`, but never copies: whether the kernels can read the tensor as it
        lies."""
        try:
            if scales is None:
                self._give(name, tensor, c.BORROW)
            else:
                self._give_codes(name, tensor, scales, global_scales, c.BORROW)
        except MoecError as e:
            if e.code == "parameter-not-borrowable":
                return False
            raise
        return True

    def _give(self, name: str, tensor, hold: int) -> None:
        given, keep = _view(tensor)
        c.check(c.LIBRARY.moec_layer_set_param(self._handle, name.encode(), ctypes.byref(given), hold))
        self._kept[name] = None if hold == c.COPY else keep

    def _give_codes(self, name: str, codes, scales, global_scales, hold: int) -> None:
        views = [None if t is None else _view(t) for t in (codes, scales, global_scales)]
        pointers = [None if v is None else ctypes.pointer(v[0]) for v in views]
        given = c.Codes(ctypes.sizeof(c.Codes), *pointers)
        c.check(c.LIBRARY.moec_layer_set_codes(self._handle, name.encode(), ctypes.byref(given), hold))
        self._kept[name] = None if hold == c.COPY else views

    def load(self, checkpoint, *, cache=None, progress=None) -> None:
        """Gives all parameters their weights, out of a checkpoint of the model.

        Args:
            checkpoint: a folder of ``*.safetensors``, one such file, or a GGUF file.
            cache: a folder that keeps the packed form for the next time.
            progress: ``progress(name, done, total)`` is told of each weight, in bytes. ``True``: a bar on standard error, by
                tqdm where that is installed.

        Raises:
            MoecError: ``checkpoint-not-found`` and others about the checkpoint, ``layer-finished``, ``out-of-memory``.
        """
        if progress is True:
            with _progress.bar(str(self.description["name"])) as progress:
                return self.load(checkpoint, cache=cache, progress=progress)
        wrong = []

        def tell(_, name, done, total):
            try:
                progress(name.decode(), done, total)
            except BaseException as e:  # It must not unwind through the library.
                wrong.append(e)

        callback = c.Progress(tell) if progress else c.Progress()
        options = c.CheckpointOptions(
            ctypes.sizeof(c.CheckpointOptions),
            os.fsencode(checkpoint),
            os.fsencode(cache) if cache is not None else None,
            callback,
            None,
        )
        c.check(c.LIBRARY.moec_layer_load_checkpoint(self._handle, ctypes.byref(options)))
        if wrong:
            raise wrong[0]

    def finish(self) -> "Layer":
        """Makes the layer ready: its weights are no longer replaced."""
        c.check(c.LIBRARY.moec_layer_finish(self._handle))
        return self

    def workspace_bytes(self, n_tokens: int) -> int:
        """Bytes that a call with so many tokens works in."""
        needed = ctypes.c_uint64()
        c.check(c.LIBRARY.moec_layer_workspace_bytes(self._handle, n_tokens, ctypes.byref(needed)))
        return needed.value

    def __call__(self, *inputs):
        """The first output, for the inputs in the layer's order: ``x``, or ``x, topk_ids, topk_weights``."""
        if self.device == "cpu" and inputs and all(map(_tensors.is_torch, inputs)):
            return _operators().run_layer(self.number, inputs)[0]
        return next(iter(self.run_python(*inputs).values()))

    def run(self, *inputs, **named) -> dict:
        """All outputs by name. Inputs stand in the layer's order, or are named; ids may have either width.

        Raises:
            MoecError: ``input-missing``, ``input-shape-mismatch``, ``input-type-mismatch``, ``too-many-tokens``,
                ``layer-not-finished``, ``tensor-device-mismatch``.
        """
        wanted = self.description["inputs"]
        by_name = {w["name"]: t for w, t in zip(wanted, inputs)} | named
        if len(inputs) + len(named) != len(wanted) or set(by_name) != {w["name"] for w in wanted}:
            raise self._missing(len(inputs) + len(named))
        return self.run_python(*(by_name[w["name"]] for w in wanted))

    def run_python(self, *inputs) -> dict:
        """As :meth:`run`, through ctypes, with inputs in the layer's order."""
        wanted = self.description["inputs"]
        if len(inputs) != len(wanted):
            raise self._missing(len(inputs))
        given = [_tensors.dense(_tensors.as_ids(t, w["dtype"])) for t, w in zip(inputs, wanted)]
        # Only what calls of the same shapes differ in is worked out anew: addresses, and memory for the outputs.
        key = tuple((t.shape, t.dtype, getattr(t, "device", None)) for t in given)
        plans = self._own.__dict__.setdefault("plans", {})
        plan = plans.get(key)
        if plan is None:
            if len(plans) >= 64:
                plans.clear()
            plan = plans[key] = _Plan(self, given)
        outputs = {name: _tensors.empty_like(given[0], shape, dtype) for name, shape, dtype in plan.outputs}
        self._launch(plan, [*given, *outputs.values()])
        return outputs

    def outputs(self, n_tokens: int) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and type of each output."""
        return [(o["name"], tuple(_length(n, n_tokens) for n in o["shape"]), o["dtype"]) for o in self.description["outputs"]]

    def _missing(self, n_given: int) -> MoecError:
        names = ", ".join(w["name"] for w in self.description["inputs"])
        return MoecError("input-missing", f"the layer takes {names}; {n_given} tensors were given")

    def _launch(self, plan: "_Plan", tensors: list) -> None:
        launch = plan.launch
        for view, tensor in zip(plan.views, tensors):
            view.data = _tensors.address(tensor)
        launch.workspace, memory = self._workspace(tensors[0], launch.workspace_bytes)
        if plan.on_gpu:
            import torch

            launch.stream = torch.cuda.current_stream(tensors[0].device).cuda_stream
        c.check(c.LIBRARY.moec_layer_launch(self._handle, ctypes.byref(launch)))
        del memory

    def _workspace(self, model, needed: int):
        """Address and owner of memory for one launch: on the CPU this thread's own, kept from call to call."""
        if _tensors.is_torch(model) and model.is_cuda:
            import torch

            # PyTorch gives it to nobody else before the stream has come past the launch.
            on_gpu = torch.empty(needed, dtype=torch.uint8, device=model.device)
            return on_gpu.data_ptr(), on_gpu
        memory = getattr(self._own, "memory", None)
        if memory is None or len(memory) < needed:
            memory = self._own.memory = ctypes.create_string_buffer(needed)
        return ctypes.addressof(memory), memory

    def __copy__(self) -> "Layer":
        return self

    def __deepcopy__(self, memo) -> "Layer":
        # So that models with layers in them can be copied: what a layer computes does not change.
        return self

    def __reduce__(self):
        raise TypeError("a moec.Layer cannot be pickled: keep its bundle, and load another one of that")

    def __repr__(self) -> str:
        return f"moec.Layer({self.description['name']!r}, device={self.device!r})"


class _Plan:
    """The structures of launches on dense tensors of the same shapes."""

    def __init__(self, layer: Layer, inputs: list):
        x = inputs[0]
        n_tokens = x.shape[0] if x.ndim else 0
        self.outputs = layer.outputs(n_tokens)
        examples = [_tensors.empty_like(x, shape, dtype) for _, shape, dtype in self.outputs]
        described = [_tensors.view(t) for t in [*inputs, *examples]]
        self.views = [view for view, _ in described]
        self.on_gpu = _tensors.is_torch(x) and x.is_cuda
        pointers = [ctypes.pointer(view) for view in self.views]
        n, m = len(inputs), len(examples)
        list_in = (ctypes.POINTER(c.Tensor) * max(n, 1))(*pointers[:n])
        list_out = (ctypes.POINTER(c.Tensor) * max(m, 1))(*pointers[n:])
        size = ctypes.sizeof(c.Launch)
        self.launch = c.Launch(size, list_in, n, list_out, m, None, layer.workspace_bytes(n_tokens), None)


def _view(tensor):
    return _tensors.view(tensor.detach() if _tensors.is_torch(tensor) else tensor)


_TORCH: Any = None


def _operators():
    """:mod:`moec.torch`, imported when a tensor of PyTorch is met for the first time."""
    # Not by `functools.cache`: torch.compile warns of it.
    global _TORCH
    if _TORCH is None:
        from . import torch

        _TORCH = torch
    return _TORCH


def _length(axis, n_tokens: int) -> int:
    """An axis of the description: a number, ``"T"``, or ``"T*k"``."""
    if isinstance(axis, int):
        return axis
    return n_tokens * int(axis[2:] or 1) if axis.startswith("T") else int(axis)


def load(
    bundle,
    weights=None,
    *,
    device="cpu",
    max_tokens: int = 4096,
    threads: int = 0,
    memory_limit: int = 0,
    cache=None,
    progress=None,
) -> Layer:
    """A layer that is ready to run.

    Args:
        bundle: what :func:`moec.compile` gave, or the path of a bundle.
        weights: a checkpoint's path, or tensors by the layer's own names (:attr:`Layer.params`); tensors are borrowed where
            kernels read them as they lie.
        device: ``"cpu"`` or ``"cuda:0"``, or PyTorch's device.
        max_tokens: most tokens of one call.
        threads: CPU: how many, up to 1024; 0 for one for each core, shared by all layers.
        memory_limit: CPU, Linux: most bytes of routed experts in memory, 0 for no limit. The others are read as they are chosen, from
            ``cache``, or from a checkpoint that needs no packing.
        cache, progress: as for :meth:`Layer.load`; ``progress=True`` shows a bar.

    Raises:
        MoecError: ``bundle-not-found``, ``target-not-in-bundle``, ``parameter-not-set`` and others, as the library tells them.
    """
    layer = Layer(bundle, device=device, max_tokens=max_tokens, threads=threads, memory_limit=memory_limit)
    if isinstance(weights, dict):
        for name, tensor in weights.items():
            layer.set(name, tensor)
    elif weights is not None:
        layer.load(weights, cache=cache, progress=progress)
    return layer.finish()
