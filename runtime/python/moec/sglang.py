"""moec in SGLang: experts of unquantised models, and of those in FP8, MXFP8 and INT4.

SGLang finds :func:`register` by itself (entry point ``sglang.srt.plugins``); ``--moe-runner-backend moec`` chooses it. Layers that
moec does not support are left to SGLang. Coded weights stay codes, and activations stay in the model's type.
"""

import importlib
import json
import logging

import torch
from sglang.srt.arg_groups.choices import add_moe_runner_backend_choices
from sglang.srt.layers.moe.moe_runner import MoeRunner, register_moe_runner_core
from sglang.srt.layers.moe.moe_runner.base import DispatchMoeRunnerCore
from sglang.srt.layers.moe.moe_runner.triton import TritonMoeQuantInfo
from sglang.srt.layers.moe.token_dispatcher.standard import StandardCombineInput
from sglang.srt.layers.moe.utils import MoeRunnerBackend, get_moe_runner_backend, resolve_moe_runner_backend
from sglang.srt.layers.quantization.utils import replace_parameter
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from . import _int4
from ._experts import MXFP8, Form, coded_form, coded_params, fp8, int4
from .torch import experts

__all__ = ["MoecCore", "form_of", "register"]

_FLOATS = "sglang.srt.layers.quantization.unquant.UnquantizedFusedMoEMethod"
_FP8 = "sglang.srt.layers.quantization.fp8.Fp8MoEMethod"
_COMPRESSED = (
    "sglang.srt.layers.quantization.compressed_tensors.schemes.compressed_tensors_w8a8_fp8_moe.CompressedTensorsW8A8Fp8MoE"
)
_INT4 = "sglang.srt.layers.quantization.compressed_tensors.schemes.compressed_tensors_wNa16_moe.CompressedTensorsWNA16"
_INT4_ROWS = "sglang.srt.layers.quantization.moe_wna16.MoeWNA16Method"
_AWQ_SCHEME = "sglang.srt.layers.quantization.awq.schemes.awq_moe.AWQMoEScheme"
_AWQ = "sglang.srt.hardware_backend.gpu.quantization.awq_kernels.AWQMoEKernel"
_GPTQ = "sglang.srt.hardware_backend.gpu.quantization.gptq_kernels.GPTQMarlinMoEKernel"
_LAYER = "sglang.srt.layers.moe.fused_moe_triton.layer.FusedMoE.__init__"
_LOG = logging.getLogger(__name__)
_NAMED: set[str] = set()


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
        x, scales = dispatch_output.hidden_states, [quant_info.w13_scale, quant_info.w2_scale]
        is_fp8 = scales[0] is not None and quant_info.use_fp8_w8a8 and quant_info.w13_weight.dtype == torch.float8_e4m3fn
        is_int4 = scales[0] is not None and quant_info.use_int4_w4a16
        if form is None or scales[0] is not None and not (is_fp8 or is_int4):
            raise NotImplementedError("moec does not support these experts")
        weights, ids = dispatch_output.topk_output.topk_weights, dispatch_output.topk_output.topk_ids
        if runner_config.apply_router_weight_on_input:
            x = x * weights.to(x.dtype)
            weights = weights.new_ones(weights.shape)
        if runner_config.routed_scaling_factor is not None:
            weights = weights * runner_config.routed_scaling_factor
        biases = [b for b in (quant_info.b13, quant_info.b2) if b is not None]
        params = [quant_info.w13_weight, quant_info.w2_weight, *biases]
        if is_fp8 or is_int4:
            zeros = [] if quant_info.w13_zp is None else [quant_info.w13_zp, quant_info.w2_zp]
            form = coded_form(form, _stored(scales[0], is_fp8, quant_info.block_shape), x.dtype, bool(zeros))
            terms = [_int4.kept_terms(*pair) for pair in zip(scales, zeros)]
            params = coded_params(params[0], params[1], biases, scales, terms)
        rows = experts(x, ids.long(), weights, params, json.dumps(form))
        return StandardCombineInput(hidden_states=rows)


def _stored(scale, is_fp8: bool, block) -> str:
    """How weights with these scales are coded."""
    if not is_fp8:
        return int4(scale, block)
    return MXFP8 if scale.dtype == torch.uint8 else fp8(scale, block)


def _is_chosen() -> bool:
    return getattr(get_moe_runner_backend(), "value", None) == "moec"


def _create_moe_runner(own, method, layer, moe_runner_config):
    own(method, layer, moe_runner_config)
    if not _is_chosen():
        return
    if form_of(moe_runner_config) is None or method.runner.lora_enabled:
        _LOG.warning("moec does not support these experts: they stay with %s", method.runner.runner_backend.value)
        return
    method.runner = MoeRunner(resolve_moe_runner_backend("moec"), moe_runner_config)


def _create_fp8_runner(own, method, layer, moe_runner_config):
    own(method, layer, moe_runner_config)
    if not _is_chosen():
        return
    backend = resolve_moe_runner_backend("moec")
    is_mxfp8 = getattr(method, "use_mxfp8", False)
    other = getattr(method, "is_fp4_expert", False) or is_mxfp8 and not method.quant_config.is_checkpoint_fp8_serialized
    if is_mxfp8 and not other and form_of(moe_runner_config) is not None:
        # SGLang would make other codes of them on GPUs that its own kernels want those on.
        method.convert_mxfp8_to_block = False
    if other or form_of(moe_runner_config) is None:
        # SGLang leaves a method without kernels when it does not know the chosen ones.
        backend = MoeRunnerBackend.TRITON
        _LOG.warning("moec does not support these experts: they stay with %s", backend.value)
    method.runner = MoeRunner(backend, moe_runner_config)
    method._owns_moe_runner = True


def _create_int4_runner(own, method, layer, moe_runner_config):
    own(method, layer, moe_runner_config)
    if not _is_chosen() or not _is_int4(method) or form_of(moe_runner_config) is None:
        return
    schemes = importlib.import_module(_INT4.rpartition(".")[0])
    if type(method) is schemes.CompressedTensorsWNA16MoE:
        # The subclass has the same state and weights, and leaves them rows of codes when they have been loaded.
        method.__class__ = schemes.CompressedTensorsWNA16TritonMoE
    method.runner = MoeRunner(resolve_moe_runner_backend("moec"), moe_runner_config)


def _is_int4(method) -> bool:
    """Groups of columns in the order of the columns: what the kernels read."""
    if hasattr(method, "num_bits"):
        return method.num_bits == 4 and _int4.is_in_order(method.actorder)
    return method.quant_config.weight_bits == 4


def _process_int4(own, scheme, layer):
    if not scheme.sym and not getattr(layer, "is_triton_converted", False):
        # SGLang's method of this name leaves them as they were loaded, and takes none.
        layer.moec_zeros = [_int4.zeros_of_columns(getattr(layer, f"{w}_weight_zero_point").data) for w in ("w13", "w2")]
    own(scheme, layer)


def _int4_info(own, scheme, layer):
    info = own(scheme, layer)
    if not scheme.sym:
        info.w13_zp, info.w2_zp = layer.moec_zeros
    return info


def _create_packed_runner(own, maker, layer, moe_runner_config):
    """Of AWQ and GPTQ, whose own code takes no chosen kernels, not even to leave the experts with Marlin."""
    if not _is_chosen():
        return own(maker, layer, moe_runner_config)
    config, kernel = maker.quant_config, getattr(maker, "kernel", maker)
    fits = config.weight_bits == 4 and getattr(config, "zero_point", True) and not getattr(config, "desc_act", False)
    backend = resolve_moe_runner_backend("moec") if fits and form_of(moe_runner_config) else MoeRunnerBackend.MARLIN
    maker.moe_runner_config = moe_runner_config
    kernel.runner = MoeRunner(backend, moe_runner_config)


def _is_moec(kernel) -> bool:
    return type(getattr(getattr(kernel, "runner", None), "runner_core", None)) is MoecCore


def _process_packed(own, kernel, layer):
    if not _is_moec(kernel):
        return own(kernel, layer)
    for w in ("w13", "w2"):
        words, scales = getattr(layer, f"{w}_qweight").data, getattr(layer, f"{w}_scales").data
        if hasattr(kernel.quant_config, "zero_point"):
            codes, scales, zeros = _int4.rows_of_awq(words, scales, getattr(layer, f"{w}_qzeros").data)
            replace_parameter(layer, f"{w}_qzeros", zeros)
        else:
            codes, scales = _int4.rows_of_columns(words), scales.transpose(1, 2).contiguous()
        replace_parameter(layer, f"{w}_qweight", codes)
        replace_parameter(layer, f"{w}_scales", scales)


def _apply_packed(own, kernel, layer, dispatch_output):
    if not _is_moec(kernel):
        return own(kernel, layer, dispatch_output)
    zeros = [layer.w13_qzeros, layer.w2_qzeros] if hasattr(kernel.quant_config, "zero_point") else [None, None]
    info = TritonMoeQuantInfo(
        w13_weight=layer.w13_qweight,
        w2_weight=layer.w2_qweight,
        use_int4_w4a16=True,
        w13_scale=layer.w13_scales,
        w2_scale=layer.w2_scales,
        w13_zp=zeros[0],
        w2_zp=zeros[1],
        block_shape=[0, kernel.quant_config.group_size],
    )
    return kernel.runner.run(dispatch_output, info)


def _apply_fp8(own, method, layer, dispatch_output):
    if not _is_moec(method):
        return own(method, layer, dispatch_output)
    return method.runner.run(dispatch_output, method.get_triton_quant_info(layer))


def _process_mxfp8(own, method, layer, quantize=True):
    if not _is_moec(method):
        own(method, layer, quantize)


def _make_layer(own, layer, *args, **kwargs):
    own(layer, *args, **kwargs)
    _name_unserved(layer)


def _name_unserved(layer) -> None:
    """Names experts that moec was chosen for and does not serve, once for each kind."""
    method = getattr(layer, "scheme", None) or layer.quant_method
    name = type(method).__name__
    if _is_chosen() and not _is_moec(getattr(method, "kernel", method)) and name not in _NAMED:
        _NAMED.add(name)
        _LOG.warning("moec does not serve the experts of %s: they stay with SGLang, if it has kernels for them", name)


def register() -> None:
    """Makes ``--moe-runner-backend moec`` known to SGLang."""
    register_moe_runner_core("moec", MoecCore)
    add_moe_runner_backend_choices(["moec"])
    HookRegistry.register(f"{_FLOATS}.create_moe_runner", _create_moe_runner, HookType.AROUND)
    HookRegistry.register(_LAYER, _make_layer, HookType.AROUND)
    for method in (_FP8, _COMPRESSED):
        HookRegistry.register(f"{method}.create_moe_runner", _create_fp8_runner, HookType.AROUND)
    for method in (_INT4 + "MoE", _INT4 + "TritonMoE", _INT4_ROWS):
        HookRegistry.register(f"{method}.create_moe_runner", _create_int4_runner, HookType.AROUND)
    HookRegistry.register(_INT4 + "TritonMoE.process_weights_after_loading", _process_int4, HookType.AROUND)
    HookRegistry.register(_INT4 + "TritonMoE.get_triton_quant_info", _int4_info, HookType.AROUND)
    for maker in (_AWQ_SCHEME, _GPTQ):
        HookRegistry.register(f"{maker}.create_moe_runner", _create_packed_runner, HookType.AROUND)
    for kernel in (_AWQ, _GPTQ):
        HookRegistry.register(f"{kernel}.process_weights_after_loading", _process_packed, HookType.AROUND)
        HookRegistry.register(f"{kernel}.apply", _apply_packed, HookType.AROUND)
    HookRegistry.register(f"{_FP8}._process_mxfp8_moe_weights", _process_mxfp8, HookType.AROUND)
    HookRegistry.register(f"{_FP8}.apply", _apply_fp8, HookType.AROUND)
