"""moec in Hugging Face transformers.

    import moec.transformers
    moec.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(path, experts_implementation="moec")

What a module says of its experts decides what is compiled. Experts that are not recognised, or are not in the type of their input,
run in the model's own code; a warning names each class once. FP8 experts stay codes, and their rows are not rounded to FP8. Weights
are read where they lie if kernels can, else copied once. A layer is prepared when it is called first.

:func:`patch` replaces whole MoE blocks, with the router in them: also those of the models that take no notice of
``experts_implementation`` (:data:`IGNORING`).
"""

import json
import warnings

import torch

from ._blocks import BLOCKS, PAIRS, MoecBlock, patch
from ._experts import Form, coded_params
from ._forms import coded_form_of, form_of
from .torch import experts

__all__ = ["BLOCKS", "IGNORING", "PAIRS", "MoecBlock", "form_of", "patch", "register"]

#: Model types with experts that take no notice of ``experts_implementation``, and why :func:`patch` does not serve them.
IGNORING = {
    "dbrx": None,
    "doge": "its code routes a token by the logits of other tokens",
    "jetmoe": None,
    "llama4": None,
    "llama4_text": None,
    "longcat_flash": None,
    "nllb-moe": None,
    "step3p5": None,
    "step3p7": None,
    "switch_transformers": None,
    "vitpose_backbone": "no router chooses its experts: the data set of a picture names one",
}

_NAMED: set[str] = set()


def register() -> None:
    """Makes ``experts_implementation="moec"`` known to transformers.

    A model that takes no notice of it is named in a warning when it is made.
    """
    from transformers import PreTrainedModel
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register("moec", _forward)
    _watch(PreTrainedModel)
    try:
        from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS
    except ImportError:
        return
    ALL_FP8_EXPERTS_FUNCTIONS.register("moec", _forward_fp8)


def _watch(cls) -> None:
    """Has transformers' check of the setting name the models that it will not reach."""
    own = cls.get_correct_experts_implementation
    if own.__name__ == "check_with_moec":
        return

    def check_with_moec(self, requested_experts, *args, **kwargs):
        kind = getattr(self.config, "model_type", "")
        if requested_experts == "moec" and kind in IGNORING and kind not in _NAMED:
            _NAMED.add(kind)
            why = IGNORING[kind]
            instead = f"moec does not serve it: {why}" if why else "moec.transformers.patch(model) serves it"
            warnings.warn(f"{kind} takes no notice of experts_implementation in transformers; {instead}", stacklevel=2)
        return own(self, requested_experts, *args, **kwargs)

    cls.get_correct_experts_implementation = check_with_moec


def _params(module) -> list[torch.Tensor]:
    own = module._parameters
    names = _NAMES[module.has_gate, module.has_bias]
    # Parameters, but for modules that something else has put tensors or views into.
    params = [own[name] if name in own else getattr(module, name) for name in names]
    if getattr(module, "has_post_expert_norm", False):
        params.append(module.post_expert_norm.weight)
    return params


_NAMES = {
    (True, False): ("gate_up_proj", "down_proj"),
    (False, False): ("up_proj", "down_proj"),
    (True, True): ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias"),
    (False, True): ("up_proj", "down_proj", "up_proj_bias", "down_proj_bias"),
}


def _forward(self, hidden_states, top_k_index, top_k_weights):
    # Worked out once for each module: what it is built from does not change.
    form = self.__dict__.get("_moec_form")
    if form is None:
        found: Form | None = form_of(self)
        form = self.__dict__["_moec_form"] = "" if found is None else json.dumps(found)
    params = _params(self) if form else []
    dtype = hidden_states.dtype
    if not form or dtype == torch.float64 or any(p.dtype != dtype for p in params):
        return _own(self, hidden_states, top_k_index, top_k_weights)
    return experts(hidden_states, top_k_index, top_k_weights, params, form)


def _forward_fp8(self, hidden_states, top_k_index, top_k_weights):
    # As above; for experts that are stored as codes, in the type of their input.
    forms = self.__dict__.setdefault("_moec_forms", {})
    dtype = hidden_states.dtype
    if dtype not in forms:
        found = coded_form_of(self, dtype)
        forms[dtype] = "" if found is None else json.dumps(found)
    if not forms[dtype]:
        return _own(self, hidden_states, top_k_index, top_k_weights)
    first, scales = (self.gate_up_proj, self.gate_up_proj_scale_inv) if self.has_gate else (self.up_proj, self.up_proj_scale_inv)
    params = coded_params(first, self.down_proj, [], [scales, self.down_proj_scale_inv])
    return experts(hidden_states, top_k_index, top_k_weights, params, forms[dtype])


def _own(module, *args):
    """The model's own way, with its class named once."""
    name = type(module).__name__
    if not torch.compiler.is_compiling() and name not in _NAMED:
        _NAMED.add(name)
        warnings.warn(f"moec does not know the experts of {name}; they run in the model's own code", stacklevel=3)
    return type(module).forward.__wrapped__(module, *args)
