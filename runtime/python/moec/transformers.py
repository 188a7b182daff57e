"""moec as an experts implementation of Hugging Face transformers.

    import moec.transformers
    moec.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="moec")

What a module says of its experts decides what is compiled (:func:`form_of`). Experts that are not recognised, or are not in
the type of their input, run in the model's own code; a warning names each class once. So do FP8 checkpoints, whose codes this
way does not reach. Weights are read where they lie if kernels can, else copied once; a layer is prepared when it is called first.
"""

import json
import warnings

import torch

from . import torch as _moec_torch  # noqa: F401  (defines torch.ops.moec)
from ._errors import MoecError

#: transformers' names of activation functions that moec has under another name: for gated and for ungated experts.
_GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu_erf", "gelu_python": "geglu_erf", "relu": "reglu"}
_UNGATED = {"swish": "silu", "gelu_python": "gelu", "relu2": "relu2", "silu": "silu", "gelu": "gelu"}
_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
_GATED |= dict.fromkeys(_TANH, "geglu_tanh")
_UNGATED |= dict.fromkeys(_TANH, "gelu_tanh")
_CURVES = ("quick_gelu", "gelu_10", "relu6", "leaky_relu", "hardswish", "mish", "laplace", "sigmoid", "tanh", "sqrtsoftplus", "linear")
_GATED |= {name: "gated_" + name for name in (*_CURVES, "relu2")}
_UNGATED |= {name: "ungated_" + name for name in (*_CURVES, "relu")}

_NAMED: set[str] = set()


def register() -> None:
    """Makes ``experts_implementation="moec"`` known to transformers."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register("moec", _forward)
    try:
        from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS
    except ImportError:
        return
    ALL_FP8_EXPERTS_FUNCTIONS.register("moec", _forward_fp8)


def form_of(module) -> dict | None:
    """How a module's experts are built, or ``None`` when that is not known for sure."""
    from transformers.integrations import moe

    if getattr(module, "has_post_expert_norm", False):
        return None
    gated = module.has_gate
    gate = getattr(type(module), "_apply_gate", None)
    if type(module).__name__ == "GptOssExperts" and hasattr(module, "alpha"):
        activation = {"kind": "swiglu_oai", "alpha": module.alpha, "limit": module.limit}
        interleaved = True
    elif (not gated or gate is moe._default_apply_gate) and hasattr(module, "act_fn"):
        activation = (_GATED if gated else _UNGATED).get(_activation_name(module.act_fn))
        # transformers' own gate takes halves, whatever the module says of its layout.
        interleaved = False
        if gated and not module.is_concatenated:
            return None
    else:
        return None
    if activation is None:
        return None
    return {"activation": activation, "gated": gated, "transposed": module.is_transposed, "interleaved": interleaved}


def _activation_name(function) -> str | None:
    from transformers.activations import ACT2CLS

    for name, entry in ACT2CLS.items():
        cls = entry[0] if isinstance(entry, tuple) else entry
        if type(function) is cls:
            return name
    return None


def _params(module) -> list[torch.Tensor]:
    names = ["gate_up_proj" if module.has_gate else "up_proj", "down_proj"]
    if module.has_bias:
        names += [name + "_bias" for name in names]
    return [getattr(module, name) for name in names]


def _forward(self, hidden_states, top_k_index, top_k_weights):
    # Worked out once for each module: what it is built from does not change.
    form = self.__dict__.get("_moec_form")
    if form is None:
        found = form_of(self)
        form = self.__dict__["_moec_form"] = "" if found is None else json.dumps(found)
    params = _params(self) if form else []
    if not form or any(p.dtype != hidden_states.dtype for p in params):
        return _own(self, hidden_states, top_k_index, top_k_weights)
    if any(p.is_meta for p in params):
        name = type(self).__name__
        raise MoecError("weights-missing", f"the weights of {name} lie on `meta`: they are offloaded, or were not loaded")
    return torch.ops.moec.experts(hidden_states, top_k_index, top_k_weights, params, form)


def _forward_fp8(self, *args, **kwargs):
    return _own(self, *args, **kwargs)


def _own(module, *args, **kwargs):
    """The model's own way, with its class named once."""
    name = type(module).__name__
    if not torch.compiler.is_compiling() and name not in _NAMED:
        _NAMED.add(name)
        warnings.warn(f"moec does not know the experts of {name}; they run in the model's own code", stacklevel=3)
    return type(module).forward.__wrapped__(module, *args, **kwargs)
