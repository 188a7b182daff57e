"""moec in SGLang: experts of unquantised models.

SGLang finds :func:`register` by itself (entry point ``sglang.srt.plugins``); ``--moe-runner-backend moec`` chooses it. Layers that
moec does not support are left to SGLang's own choice.
"""

import json
import logging

from sglang.srt.arg_groups.choices import add_moe_runner_backend_choices
from sglang.srt.layers.moe.moe_runner import MoeRunner, register_moe_runner_core
from sglang.srt.layers.moe.moe_runner.base import DispatchMoeRunnerCore
from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput
from sglang.srt.layers.moe.utils import get_moe_runner_backend, resolve_moe_runner_backend
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from ._experts import Form
from .torch import experts

__all__ = ["MoecCore", "form_of", "register"]

_METHOD = "sglang.srt.layers.quantization.unquant.UnquantizedFusedMoEMethod.create_moe_runner"
_LOG = logging.getLogger(__name__)


def form_of(config, interleaved_for_triton: bool = False) -> Form | None:
    """How the experts of a ``MoeRunnerConfig`` are built; ``None`` for what moec does not have."""
    if config.no_combine or config.swiglu_limit is not None or config.gemm1_beta not in (None, 1.0):
        return None
    gated, interleaved = config.is_gated, False
    if not gated and config.activation in ("silu", "relu2"):
        activation = config.activation
    elif gated and config.activation == "silu" and config.gemm1_alpha is None and config.gemm1_clamp_limit is None:
        # Rows may have been made to take turns when the weights were loaded.
        activation, interleaved = "swiglu", interleaved_for_triton
    elif gated and config.activation == "silu" and config.gemm1_alpha is not None and config.gemm1_clamp_limit is not None:
        activation = {"kind": "swiglu_oai", "alpha": config.gemm1_alpha, "limit": config.gemm1_clamp_limit}
        interleaved = config.gate_up_interleaved
    else:
        return None
    return {"activation": activation, "gated": gated, "transposed": False, "interleaved": interleaved}


class MoecCore(DispatchMoeRunnerCore):
    """Runs the tokens of a standard dispatch."""

    @property
    def runner_backend(self):
        return resolve_moe_runner_backend("moec")

    def run_from_dispatch(self, dispatch_output, quant_info, runner_config, hooks=None) -> StandardCombineInput:
        form = form_of(runner_config, quant_info.fuse_swiglu_interleaved)
        if form is None or quant_info.w13_scale is not None:
            raise NotImplementedError("moec does not support these experts")
        x = dispatch_output.hidden_states
        weights, ids = dispatch_output.topk_output.topk_weights, dispatch_output.topk_output.topk_ids
        if runner_config.apply_router_weight_on_input:
            x = x * weights.to(x.dtype)
            weights = weights.new_ones(weights.shape)
        if runner_config.routed_scaling_factor is not None:
            weights = weights * runner_config.routed_scaling_factor
        biases = [b for b in (quant_info.b13, quant_info.b2) if b is not None]
        rows = experts(x, ids.long(), weights, [quant_info.w13_weight, quant_info.w2_weight, *biases], json.dumps(form))
        return StandardCombineInput(hidden_states=rows)


def _create_moe_runner(own, method, layer, moe_runner_config):
    own(method, layer, moe_runner_config)
    if getattr(get_moe_runner_backend(), "value", None) != "moec":
        return
    if form_of(moe_runner_config) is None or method.runner.lora_enabled:
        _LOG.warning("moec does not support these experts: they stay with %s", method.runner.runner_backend.value)
        return
    method.runner = MoeRunner(resolve_moe_runner_backend("moec"), moe_runner_config)


def register() -> None:
    """Makes ``--moe-runner-backend moec`` known to SGLang."""
    register_moe_runner_core("moec", MoecCore)
    add_moe_runner_backend_choices(["moec"])
    HookRegistry.register(_METHOD, _create_moe_runner, HookType.AROUND)
