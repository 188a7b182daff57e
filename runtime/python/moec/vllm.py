"""moec in vLLM: experts of unquantised models, and of those in FP8, MXFP8, MXFP4, NVFP4 and INT4.

vLLM finds :func:`register` by itself (entry point ``vllm.general_plugins``); ``VLLM_PLUGINS`` names the plug-ins to load, for those
who want it not. What moec does not support — an activation, another quantisation, LoRA, all-to-all kernels — is left to vLLM's own
choice, and named in a warning. Coded weights stay codes, and activations stay in the model's type: they are not rounded.
"""

import importlib
import json
import logging
from typing import Any

import torch
import vllm.model_executor.layers.fused_moe.oracle.fp8 as fp8_oracle
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.model_executor.layers.fused_moe.activation import ApplyMoEActivationConfig, MoEActivation
from vllm.model_executor.layers.fused_moe.config import FUSED_MOE_UNQUANTIZED_CONFIG
from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend, make_fp8_moe_kernel
from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
from vllm.model_executor.layers.fused_moe.oracle.mxfp4 import Mxfp4MoeBackend, make_mxfp4_moe_kernel
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.topk_weight_and_reduce import TopKWeightAndReduceNoOP
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.quantization import auto_awq, auto_gptq, modelopt, moe_wna16, mxfp4
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    kInt4Static,
    kInt4Static32,
    kInt4Static32Asym,
    kInt4StaticAsym,
    kMxfp4Static,
    kMxfp8Dynamic,
    kMxfp8Static,
    kNvfp4Dynamic,
    kNvfp4Static,
)

from . import _experts, _int4
from .torch import experts

__all__ = ["MoecExperts", "form_of", "register"]

_LOG = logging.getLogger(__name__)
_NAMED: set[tuple[str, str]] = set()

_PLAIN = {
    MoEActivation.GELU: "geglu_erf",
    MoEActivation.GELU_TANH: "geglu_tanh",
    MoEActivation.SILU_NO_MUL: "silu",
    MoEActivation.GELU_NO_MUL: "gelu",
    MoEActivation.GELU_TANH_NO_MUL: "gelu_tanh",
    MoEActivation.RELU2_NO_MUL: "relu2",
}
_WITH_NUMBERS = {MoEActivation.SILU, MoEActivation.SWIGLUOAI, MoEActivation.SWIGLUOAI_UNINTERLEAVE, MoEActivation.SITU}


#: Where methods for compressed-tensors' checkpoints lie: modules end in what they are for.
_COMPRESSED = "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_"
#: Modules with a method of FP8 experts, which ask vLLM's table for the kernels to use.
_FP8_METHODS = ("vllm.model_executor.layers.quantization.fp8", _COMPRESSED + "w8a8_fp8")


def form_of(activation: MoEActivation, config: ApplyMoEActivationConfig) -> "_experts.Form | None":
    """How vLLM's experts are built; ``None`` for an activation that moec does not have."""
    limit, interleaved = config.clamp_limit, False
    what: Any
    if activation in _PLAIN:
        what = _PLAIN[activation]
    elif activation == MoEActivation.SILU:
        what = "swiglu" if limit is None else {"kind": "swiglu_clamp_before", "limit": limit}
    elif activation == MoEActivation.SWIGLUOAI:
        # The kernel's own numbers, whatever the config says.
        what, interleaved = {"kind": "swiglu_oai", "alpha": 1.702, "limit": 7.0}, True
    elif activation == MoEActivation.SWIGLUOAI_UNINTERLEAVE and limit is not None and config.beta == 1:
        what = {"kind": "swiglu_oai", "alpha": config.alpha, "limit": limit}
    elif activation == MoEActivation.SITU and config.activation_situ_beta and config.activation_situ_linear_beta:
        what = {"kind": "situ", "beta": config.activation_situ_beta, "linear_beta": config.activation_situ_linear_beta}
    else:
        return None
    return {"activation": what, "gated": activation.is_gated, "transposed": False, "interleaved": interleaved}


class MoecExperts(mk.FusedMoEExpertsModular):
    """Experts for vLLM's modular kernel."""

    def __init__(self, moe_config, quant_config):
        super().__init__(moe_config=moe_config, quant_config=quant_config)
        form = form_of(moe_config.activation, ApplyMoEActivationConfig.from_configs(moe_config, quant_config))
        if form is None:
            raise NotImplementedError(f"moec does not have {moe_config.activation} with these numbers")
        self._is_coded = self.w1_scale is not None
        if self._is_coded:
            form = _experts.coded_form(form, self._stored(quant_config), moe_config.in_dtype, self.w1_zp is not None)
        self._form = json.dumps(form)
        # The weights of the last call, as the operator takes them.
        self._given: tuple[Any, Any, list[torch.Tensor]] | None = None

    def _stored(self, quant_config) -> str:
        """How weights are coded."""
        scale, kind = self.w1_scale, quant_config.weight_quant_dtype
        if kind == "int4":
            return _experts.int4(scale, self.block_shape)
        if scale.dtype == torch.float32:
            return _experts.fp8(scale, self.block_shape)
        if scale.dtype == torch.float8_e4m3fn:
            return _experts.NVFP4
        return _experts.MXFP8 if kind == "mxfp8" else _experts.MXFP4

    @property
    def expects_unquantized_inputs(self) -> bool:
        return True

    @staticmethod
    def activation_format() -> mk.FusedMoEActivationFormat:
        return mk.FusedMoEActivationFormat.Standard

    @staticmethod
    def _supports_current_device() -> bool:
        from vllm.platforms import current_platform

        return current_platform.is_cuda() or current_platform.is_cpu()

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return True

    @staticmethod
    def _supports_quant_scheme(weight_key, activation_key) -> bool:
        if weight_key is None:
            return activation_key is None
        # Whatever activations would be rounded to: here they stay as they are.
        if weight_key in (kMxfp4Static, kNvfp4Static, kMxfp8Static):
            return True
        if weight_key in (kInt4Static, kInt4Static32, kInt4StaticAsym, kInt4Static32Asym):
            return activation_key is None
        scale = weight_key.scale
        is_known = weight_key.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32 and scale.static
        return is_known and weight_key.symmetric and weight_key.scale2 is None and not scale.group_shape.is_per_token()

    @staticmethod
    def _supports_activation(activation) -> bool:
        return activation in _PLAIN or activation in _WITH_NUMBERS

    @staticmethod
    def _supports_parallel_config(moe_parallel_config) -> bool:
        # Balanced experts change places while the model runs, in memory that moec has copied.
        return not moe_parallel_config.use_all2all_kernels and not moe_parallel_config.enable_eplb

    def finalize_weight_and_reduce_impl(self):
        return TopKWeightAndReduceNoOP()

    def workspace_shapes(self, M, N, K, topk, global_num_experts, local_num_experts, expert_tokens_meta, activation):
        # moec's own memory is asked of PyTorch at the call: its size is no function of these numbers alone.
        return (1,), (1,), (M, K)

    def _params(self, w1, w2) -> list[torch.Tensor]:
        if self._given is not None and self._given[0] is w1 and self._given[1] is w2:
            return self._given[2]
        biases = [b for b in (self.w1_bias, self.w2_bias) if b is not None]
        if self._is_coded:
            # Of NVFP4, the scales of whole experts; these kernels multiply no other numbers into them.
            more = [self.g1_alphas, self.g2_alphas] if self.w1_scale.dtype == torch.float8_e4m3fn else []
            if self.w1_zp is not None:
                more = [_int4.terms(self.w1_scale, self.w1_zp), _int4.terms(self.w2_scale, self.w2_zp)]
            params = _experts.coded_params(w1, w2, biases, [self.w1_scale, self.w2_scale], more)
        else:
            params = [w1, w2, *biases]
        if self._given is None and self._is_coded:
            # These experts are new; their weights may lie where others lay, written in a way that PyTorch does not count.
            _experts.forget_weights(params)
        self._given = (w1, w2, params)
        return params

    def process_weights_after_loading(self, layer) -> None:
        """Compiles and copies before the first call."""
        params = self._params(layer.w13_weight, layer.w2_weight)
        _experts.prepared(params, self._form, self.moe_config.experts_per_token, 1)

    def apply(
        self,
        output,
        hidden_states,
        w1,
        w2,
        topk_weights,
        topk_ids,
        activation,
        global_num_experts,
        expert_map,
        a1q_scale,
        a2_scale,
        workspace13,
        workspace2,
        expert_tokens_meta,
        apply_router_weight_on_input,
    ) -> None:
        ids = topk_ids.long()
        if expert_map is not None:
            # An id below 0 is no index: nobody's expert stays nobody's.
            ids = torch.where(ids < 0, ids, expert_map[ids.clamp(min=0)].long())
        if apply_router_weight_on_input:
            # The input has been multiplied already.
            topk_weights = torch.ones_like(topk_weights)
        output.copy_(experts(hidden_states, ids, topk_weights, self._params(w1, w2), self._form))


def is_supported(moe, weight_key=None, activation_key=None) -> bool:
    """Whether moec serves the layer with this config and these kinds of weights and activations."""
    plain = mk.FusedMoEActivationFormat.Standard
    fits, _ = MoecExperts.is_supported_config(MoecExperts, moe, weight_key, activation_key, plain)
    return fits and form_of(moe.activation, ApplyMoEActivationConfig.from_configs(moe, FUSED_MOE_UNQUANTIZED_CONFIG)) is not None


def _select_mxfp4(own):
    def select_moec(config, *args, **more):
        if config.moe_backend == "auto" and is_supported(config, kMxfp4Static):
            # As above: weights stay as they were loaded.
            return Mxfp4MoeBackend.EMULATION, MoecExperts
        return own(config, *args, **more)

    return select_moec


def _select_nvfp4(own):
    def select_moec(config, weight_key, activation_key):
        # Rows with scales of their own are asked for by name, for one backend.
        if config.moe_backend == "auto" and activation_key in (None, kNvfp4Dynamic) and is_supported(config, weight_key):
            return NvFp4MoeBackend.EMULATION, MoecExperts
        return own(config, weight_key, activation_key)

    return select_moec


def _select_mxfp8(own):
    def select_moec(config):
        if config.moe_backend == "auto" and is_supported(config, kMxfp8Static, kMxfp8Dynamic):
            return Fp8MoeBackend.TRITON_MXFP8, MoecExperts
        return own(config)

    return select_moec


def _select_int4(own):
    def select_moec(config, weight_key, quant_config, may_have_zp, may_have_bias, **more):
        # Groups of columns in the order of the columns: vLLM refuses checkpoints with another. It cannot bring codes with one scale for a
        # row into rows, and has no kernel that says what AWQ's codes without zero points mean.
        in_order = not getattr(quant_config, "desc_act", False) and _int4.is_in_order(getattr(quant_config, "actorder", None))
        fits = in_order and (quant_config.group_size or -1) > 0 and getattr(quant_config, "zero_point", True)
        if config.moe_backend == "auto" and fits and is_supported(config, weight_key):
            # The backend whose weights stay rows of codes.
            return WNA16MoEBackend.TRITON, MoecExperts
        return own(config, weight_key, quant_config, may_have_zp=may_have_zp, may_have_bias=may_have_bias, **more)

    return select_moec


def _make_int4_kernel(own):
    def make_moec(moe_quant_config, moe_config, experts_cls, backend=WNA16MoEBackend.MARLIN, routing_tables=None):
        if experts_cls is not MoecExperts:
            return own(moe_quant_config, moe_config, experts_cls, backend, routing_tables)
        # vLLM's own function for INT4 has a closed list of classes.
        return make_fp8_moe_kernel(moe_quant_config, moe_config, experts_cls, Fp8MoeBackend.TRITON, routing_tables)

    return make_moec


def _convert_awq(own):
    def convert_moec(*args, backend, w13, w2, w13_scale, w2_scale, w13_qzeros, w2_qzeros, w13_bias=None, w2_bias=None, **more):
        weights = dict(w13=w13, w2=w2, w13_scale=w13_scale, w2_scale=w2_scale, w13_qzeros=w13_qzeros, w2_qzeros=w2_qzeros)
        if backend != WNA16MoEBackend.TRITON:
            return own(*args, backend=backend, **weights, w13_bias=w13_bias, w2_bias=w2_bias, **more)
        # vLLM's own backends of this name take no AWQ.
        first = _int4.rows_of_awq(w13, w13_scale, w13_qzeros)
        second = _int4.rows_of_awq(w2, w2_scale, w2_qzeros)
        pairs = [each for pair in zip(first, second) for each in pair]
        return (*pairs, None, None, w13_bias, w2_bias)

    return convert_moec


def _take_compressed_mxfp4(method) -> None:
    """Has the method for MXFP4 of compressed-tensors, which asks no table, leave weights as they were loaded."""
    own_init, own_process = method.__init__, method.process_weights_after_loading

    def init(self, moe):
        own_init(self, moe)
        if moe.moe_backend == "auto" and is_supported(moe, kMxfp4Static):
            self.mxfp4_backend, self.experts_cls, self.use_cutlass_mxfp4 = Mxfp4MoeBackend.EMULATION, MoecExperts, False

    def process_weights_after_loading(self, layer) -> None:
        if self.experts_cls is not MoecExperts:
            return own_process(self, layer)
        for name in ("w13_weight", "w2_weight"):
            setattr(layer, name, torch.nn.Parameter(getattr(layer, name + "_packed").data, requires_grad=False))
            delattr(layer, name + "_packed")
        self.moe_quant_config = self.get_fused_moe_quant_config(layer)
        self.moe_kernel = make_mxfp4_moe_kernel(
            moe_quant_config=self.moe_quant_config,
            moe_config=self.moe,
            experts_cls=self.experts_cls,
            mxfp4_backend=self.mxfp4_backend,
            routing_tables=layer._expert_routing_tables(),
        )
        self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    method.__init__, method.process_weights_after_loading = init, process_weights_after_loading


def _get_quant_method(own):
    def get_and_look(self, prefix, quant_config, moe_config):
        method = own(self, prefix, quant_config, moe_config)
        _name_unserved(method, moe_config)
        return method

    return get_and_look


def _name_unserved(method, moe_config) -> None:
    """Names experts that moec does not serve, once for each kind."""
    kind = (type(method).__name__, moe_config.activation.value)
    if moe_config.moe_backend != "auto" or getattr(method, "experts_cls", None) is MoecExperts or kind in _NAMED:
        return
    _NAMED.add(kind)
    _LOG.warning("moec does not serve the experts of %s with %s here: they stay with vLLM's own kernels", *kind)


def _register_quantised() -> None:
    compressed = {end: importlib.import_module(_COMPRESSED + end) for end in ("wna16", "w8a8_mxfp8", "w4a4_nvfp4", "w4a4_mxfp4")}
    auto_awq.convert_to_wna16_moe_kernel_format = _convert_awq(auto_awq.convert_to_wna16_moe_kernel_format)
    for module in (compressed["wna16"], auto_gptq, auto_awq, moe_wna16):
        module.select_wna16_moe_backend = _select_int4(module.select_wna16_moe_backend)
        module.make_wna16_moe_kernel = _make_int4_kernel(module.make_wna16_moe_kernel)
    for module in (compressed["w8a8_mxfp8"], modelopt):
        module.select_mxfp8_moe_backend = _select_mxfp8(module.select_mxfp8_moe_backend)
    for module in (compressed["w4a4_nvfp4"], modelopt):
        module.select_nvfp4_moe_backend = _select_nvfp4(module.select_nvfp4_moe_backend)
    for name in ("select_mxfp4_moe_backend", "select_deepseek_v4_mxfp4_moe_backend"):
        setattr(mxfp4, name, _select_mxfp4(getattr(mxfp4, name)))
    _take_compressed_mxfp4(compressed["w4a4_mxfp4"].CompressedTensorsW4A4Mxfp4MoEMethod)


def register() -> None:
    """Has vLLM use moec for the experts of unquantised models, and of those in FP8, MXFP8, MXFP4, NVFP4 and INT4."""
    own = fp8_oracle.select_fp8_moe_backend
    if own.__name__ != "select_moec":

        def select_moec(config, weight_key, activation_key, **more):
            # One who names a backend means it.
            if config.moe_backend == "auto" and is_supported(config, weight_key, activation_key):
                # The backend whose weights stay as they were loaded.
                return Fp8MoeBackend.TRITON, MoecExperts
            return own(config, weight_key, activation_key, **more)

        for name in _FP8_METHODS:
            importlib.import_module(name).select_fp8_moe_backend = select_moec
        fp8_oracle.select_fp8_moe_backend = select_moec
        _register_quantised()
        RoutedExperts._get_quant_method = _get_quant_method(RoutedExperts._get_quant_method)

    @UnquantizedFusedMoEMethod.register_oot
    class MoecUnquantizedFusedMoEMethod(UnquantizedFusedMoEMethod):
        def __init__(self, moe):
            if not is_supported(moe):
                super().__init__(moe)
                return
            FusedMoEMethodBase.__init__(self, moe)
            # The backend whose weights stay as they were loaded.
            self.unquantized_backend, self.experts_cls = UnquantizedMoeBackend.TRITON, MoecExperts
            self.supports_pre_processed_weights = True

        def forward_cpu(self, *args, **kwargs):
            return self.forward_native(*args, **kwargs)

        def process_weights_after_loading(self, layer) -> None:
            # vLLM writes weights through `.data`, which PyTorch does not count: what was prepared before is stale.
            if self.experts_cls is MoecExperts:
                _experts.forget_weights([layer.w13_weight, layer.w2_weight])
            super().process_weights_after_loading(layer)
