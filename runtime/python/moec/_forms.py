"""How the experts of transformers' modules are built, read off the module."""

from typing import Any

import torch

from ._experts import MXFP4, Form, coded_form

#: transformers' names of activation functions that moec has under another name: for gated and for ungated experts.
_GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu_erf", "gelu_python": "geglu_erf", "relu": "reglu"}
_UNGATED = {"swish": "silu", "gelu_python": "gelu", "relu2": "relu2", "silu": "silu", "gelu": "gelu"}
_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
_GATED |= dict.fromkeys(_TANH, "geglu_tanh")
_UNGATED |= dict.fromkeys(_TANH, "gelu_tanh")
_CURVES = ("quick_gelu", "gelu_10", "relu6", "leaky_relu", "hardswish", "mish", "laplace", "sigmoid", "tanh", "sqrtsoftplus", "linear")
_GATED |= {name: "gated_" + name for name in (*_CURVES, "relu2")}
_UNGATED |= {name: "ungated_" + name for name in (*_CURVES, "relu")}


def _oai(alpha: str, limit: str):
    return lambda m: {"kind": "swiglu_oai", "alpha": getattr(m, alpha), "limit": getattr(m, limit)}


def _clamped(limit: str):
    return lambda m: {"kind": "swiglu_clamp_before", "limit": getattr(m, limit)} if getattr(m, limit) else "swiglu"


def _silu_clamped(module):
    return _clamped("limit")(module) if _GATED.get(activation_name(module.act_fn) or "") == "swiglu" else None


def _soft_capped(module):
    act = module.act_fn
    return {"kind": "situ", "beta": act.gate_softcap.softcap, "linear_beta": act.up_softcap.softcap}


#: Gates that are a class's own: folder of its model in transformers and its name; what they compute, and whether rows of gate and up
#: take turns.
_GATES = {
    # As every other model's; in float32, as moec's all are.
    ("beam", "BeamExperts"): (lambda m: _GATED.get(activation_name(m.act_fn) or ""), False),
    ("deepseek_v4", "DeepseekV4Experts"): (_silu_clamped, False),
    ("glm5_next", "Glm5NextTextExperts"): (_clamped("swiglu_limit"), False),
    ("gpt_oss", "GptOssExperts"): (_oai("alpha", "limit"), True),
    ("hy_v4", "HYV4Experts"): (_clamped("swiglu_limit"), False),
    ("hy_v4_vl", "HYV4VLExperts"): (_clamped("swiglu_limit"), False),
    ("inkling2", "Inkling2Experts"): (_soft_capped, False),
    ("inkling2_loop", "Inkling2LoopExperts"): (_soft_capped, False),
    ("minimax_m3_vl", "MiniMaxM3VLExperts"): (_oai("swiglu_alpha", "swiglu_limit"), False),
    ("openai_privacy_filter", "OpenAIPrivacyFilterExperts"): (_oai("alpha", "limit"), False),
}


#: A norm of each expert's output whose weight comes in before it.
_SCALED_INPUT_NORM = ("muse_spark", "MuseSparkTextInputScaledRMSNorm")


def form_of(module: torch.nn.Module) -> Form | None:
    """How a module's experts are built, or ``None`` when that is not known for sure."""
    from transformers.integrations import moe

    norm = getattr(module, "post_expert_norm", None) if getattr(module, "has_post_expert_norm", False) else None
    if norm is not None and (_place(type(norm)) != _SCALED_INPUT_NORM or module.has_bias):
        return None
    gated = module.has_gate
    own = _own_gate(type(module))
    if own is not None:
        what, interleaved = own
        activation = what(module)
    elif not gated or getattr(type(module), "_apply_gate", None) is moe._default_apply_gate:
        activation = (_GATED if gated else _UNGATED).get(activation_name(getattr(module, "act_fn", None)) or "")
        # transformers' own gate takes halves, whatever the module says of its layout.
        interleaved = False
        if gated and not module.is_concatenated:
            return None
    else:
        return None
    if activation is None:
        return None
    form = Form(activation=activation, gated=bool(gated), transposed=bool(module.is_transposed), interleaved=interleaved)
    if norm is not None:
        form["out_norm_eps"] = float(norm.eps)
    return form


#: Types of scales in PyTorch and moec.
_SCALES = {"torch.float32": "f32", "torch.float8_e8m0fnu": "e8m0"}


def coded_form_of(module: torch.nn.Module, dtype: torch.dtype) -> Form | None:
    """How the experts of transformers' ``FP8Experts`` are built, computing in this type; ``None`` for what moec does not have."""
    gated, act = module.has_gate, activation_name(module.act_fn) or ""
    activation: Any = (_GATED if gated else _UNGATED).get(act)
    # In the order of the class's own gate.
    if gated and module.gate_softcap is not None:
        activation = {"kind": "situ", "beta": module.gate_softcap, "linear_beta": module.up_softcap}
    elif gated and module.swiglu_alpha is not None:
        activation = {"kind": "swiglu_oai", "alpha": module.swiglu_alpha, "limit": module.swiglu_limit}
    elif gated and module.limit is not None:
        activation = {"kind": "swiglu_clamp_before", "limit": module.limit} if activation == "swiglu" else None
    first = module.gate_up_proj if gated else module.up_proj
    scales = module.gate_up_proj_scale_inv if gated else module.up_proj_scale_inv
    scale = _SCALES.get(str(scales.dtype))
    if first.dtype == torch.int8 and scale == "e8m0":
        stored, rows = MXFP4, 1
    elif first.dtype == torch.float8_e4m3fn and scale is not None:
        rows, cols = module.block_size or (0, 0)
        stored = f"e4m3 by {scale}({rows}, {cols})"
    else:
        return None
    # Gate and up have blocks of their own.
    half = first.shape[1] // (2 if gated else 1)
    if activation is None or scales.shape[1] != (-(-half // rows) if rows else 1) * (2 if gated else 1):
        return None
    form = Form(activation=activation, gated=bool(gated), transposed=False, interleaved=False)
    return coded_form(form, stored, dtype)


def _own_gate(cls: type):
    return _GATES.get(_place(cls))


def _place(cls: type) -> tuple[str, str]:
    """Folder of the model in transformers that a class is of, and its name."""
    package, _, rest = cls.__module__.partition(".models.")
    return (rest.partition(".")[0] if package == "transformers" else "", cls.__name__)


def activation_name(function) -> str | None:
    """transformers' name of an activation function."""
    from transformers.activations import ACT2CLS

    if function is torch.nn.functional.silu:
        return "silu"
    for name, entry in ACT2CLS.items():
        cls = entry[0] if isinstance(entry, tuple) else entry
        if type(function) is cls:
            return name
    return None
