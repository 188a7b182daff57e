"""vLLM's own classes with moec's experts, on a machine without a GPU: `cargo xtask python-check engines` runs it.

The argument is a folder with vLLM's wheel unpacked; see `stubs.py` for what is not there.
"""

import datetime
import enum
import importlib
import sys
import types

import torch
import transformers  # noqa: F401  (before anything is stubbed)

import stubs

sys.path.insert(0, sys.argv[1])
ABSENT = "amdsmi torch_xla libtpu tpu_info tpu_inference pynvml triton_kernels flashinfer deep_gemm aiter"
stubs.install("vllm", *ABSENT.split())

import vllm.platforms  # noqa: E402
from vllm.platforms.cpu import CpuPlatform  # noqa: E402

vllm.platforms._current_platform = CpuPlatform()

import moec  # noqa: E402
import moec.vllm  # noqa: E402
import vllm.model_executor.layers.fused_moe.modular_kernel as mk  # noqa: E402
import vllm.v1.worker.workspace as workspace  # noqa: E402
from vllm.config import VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.config.device import DeviceConfig  # noqa: E402
from vllm.model_executor.layers.fused_moe.activation import (  # noqa: E402
    ApplyMoEActivationConfig,
    MoEActivation,
)
from vllm.model_executor.layers.fused_moe.config import (  # noqa: E402
    FusedMoEConfig,
    FusedMoEParallelConfig,
    RoutingMethodType,
)
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts  # noqa: E402
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,  # noqa: E402
)

from vllm.model_executor.layers.quantization import fp8 as vllm_fp8, modelopt, mxfp4 as vllm_mxfp4  # noqa: E402

E, H, I, K, T = 8, 64, 48, 2, 7
FP8 = torch.float8_e4m3fn


def config(activation, dtype=torch.float32, hidden=H, ffn=I, k=K, **more) -> FusedMoEConfig:
    return FusedMoEConfig(
        num_experts=E, experts_per_token=k, hidden_dim=hidden, intermediate_size=ffn, num_local_experts=more.pop("local", E),
        num_logical_experts=E, activation=activation, device="cpu", routing_method=RoutingMethodType.Renormalize,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(), in_dtype=dtype, **more,
    )


def reference(x, w, ids, w13, w2, act, biases=None):
    out = torch.zeros(x.shape)
    for t in range(x.shape[0]):
        for k in range(ids.shape[1]):
            e = int(ids[t, k])
            if e < 0:
                continue
            h = w13[e].float() @ x[t].float() + (biases[0][e].float() if biases else 0)
            y = w2[e].float() @ act(h) + (biases[1][e].float() if biases else 0)
            out[t] += w[t, k] * y
    return out


def oai(h):
    gate, up = h[::2].clamp(max=7.0), h[1::2].clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


def halves(f):
    return lambda h: f(h[:I]) * h[I:]


def clamped(h):
    return torch.nn.functional.silu(h[:I].clamp(max=0.5)) * h[I:].clamp(-0.5, 0.5)


def run(name, activation, act, *, dtype=torch.float32, expert_map=None, **more) -> None:
    cfg = config(activation, dtype, **more)
    method = UnquantizedFusedMoEMethod(cfg)
    assert method.experts_cls is moec.vllm.MoecExperts, method.experts_cls
    layer = torch.nn.Module()
    method.create_weights(layer, cfg.num_local_experts, H, I, dtype)
    torch.manual_seed(0)
    for p in layer.parameters():
        p.data.normal_(std=0.3)
    layer.moe_config, layer._expert_routing_tables = cfg, lambda: None
    method.process_weights_after_loading(layer)
    layer.activation, layer.apply_router_weight_on_input = activation, False
    layer.global_num_experts, layer.expert_map = E, expert_map
    x = torch.randn(T, H).to(dtype)
    w, ids = torch.softmax(torch.randn(T, E), -1).topk(K)
    ids = ids.int()
    local = ids if expert_map is None else expert_map[ids.long()]
    for round in range(2):
        got = method.forward_native(layer, x, w, ids, None, None)
        biases = (layer.w13_bias, layer.w2_bias) if cfg.has_bias else None
        want = reference(x, w, local, layer.w13_weight, layer.w2_weight, act, biases)
        e = ((got.float() - want).norm() / want.norm()).item()
        assert e < (2e-2 if dtype == torch.bfloat16 else 1e-5), (name, e)
        if round == 0:
            # New weights, written as vLLM's loader does.
            layer.w13_weight.data.mul_(0.5)
            layer.w2_weight.data.add_(0.01)
            method.process_weights_after_loading(layer)
    print(f"{name:36} {e:.1e}")


def on_the_input() -> None:
    """One expert a token, whose weight vLLM multiplies its input with."""
    cfg = config(MoEActivation.SILU, k=1)
    method, layer = UnquantizedFusedMoEMethod(cfg), torch.nn.Module()
    method.create_weights(layer, E, H, I, torch.float32)
    torch.manual_seed(2)
    for p in layer.parameters():
        p.data.normal_(std=0.3)
    layer.moe_config, layer._expert_routing_tables = cfg, lambda: None
    method.process_weights_after_loading(layer)
    layer.activation, layer.apply_router_weight_on_input = MoEActivation.SILU, True
    layer.global_num_experts, layer.expert_map = E, None
    x, w, ids = torch.randn(T, H), torch.rand(T, 1) + 0.5, torch.randint(0, E, (T, 1)).int()
    got = method.forward_native(layer, x, w, ids, None, None)
    want = reference(x * w, torch.ones_like(w), ids, layer.w13_weight, layer.w2_weight, halves(torch.nn.functional.silu))
    e = ((got - want).norm() / want.norm()).item()
    assert e < 1e-5, e
    print(f"{'silu, weights on the input':36} {e:.1e}")


def assert_coded() -> None:
    """That the last layer's matrices stayed codes."""
    last = list(moec._experts.PREPARED.values())[-1]
    assert all(p.is_coded for p in last.layer.params if p.name in ("experts.gate", "experts.up", "experts.down")), "codes were made floats"


def by_scale(codes, scale, block):
    """What codes stand for; `block` has 0 for a whole axis."""
    _, n, k = codes.shape
    rows, cols = block[0] or n, block[1] or k
    grid = scale.reshape(len(codes), -1, 1) if scale.ndim < 3 else scale
    full = grid.repeat_interleave(rows, 1)[:, :n].repeat_interleave(cols, 2)[:, :, :k]
    return codes.float() * full.expand(codes.shape)


def run_fp8(name, make, block, *, dtype=torch.bfloat16) -> None:
    """FP8 experts of one of vLLM's methods: the values of their codes, with activations that are not rounded."""
    hidden, ffn = 256, 128
    cfg = config(MoEActivation.SILU, dtype, hidden, ffn)
    layer = torch.nn.Module()
    layer.moe_config, layer._expert_routing_tables = cfg, lambda: None
    layer.intermediate_size_per_partition, layer.local_num_experts = ffn, E
    method = make(cfg, layer)
    assert method.experts_cls is moec.vllm.MoecExperts, method.experts_cls
    method.create_weights(layer, E, hidden, ffn, dtype)
    layer.activation, layer.apply_router_weight_on_input = MoEActivation.SILU, False
    layer.global_num_experts, layer.expert_map = E, None
    silu = torch.nn.functional.silu

    def act(h):
        return silu(h[:ffn]) * h[ffn:]

    for seed in (0, 1):
        torch.manual_seed(seed)
        for key, p in layer.named_parameters():
            p.data.copy_(torch.rand(p.shape) * 0.02 + 0.005 if "scale" in key else torch.randn(p.shape) * 10)
        if not any(block):
            # Gate and up may have one each, of which vLLM makes one.
            layer.w13_weight_scale = torch.nn.Parameter(torch.rand(E, 2) * 0.02 + 0.005, requires_grad=False)
        for key in ("w13_input_scale", "w2_input_scale"):
            if getattr(layer, key) is not None:
                setattr(layer, key, torch.nn.Parameter(torch.rand(E), requires_grad=False))
        method.process_weights_after_loading(layer)
        scales = [getattr(layer, f"{w}_weight_scale_inv" if block[0] > 1 else f"{w}_weight_scale") for w in ("w13", "w2")]
        x = torch.randn(T, hidden).to(dtype)
        w, ids = torch.softmax(torch.randn(T, E), -1).topk(K)
        got = method.apply(layer, x, w, ids.int(), None, None)
        floats = [by_scale(c, s, block) for c, s in zip((layer.w13_weight, layer.w2_weight), scales)]
        want = reference(x, w, ids, *floats, act)
        e = ((got.float() - want).norm() / want.norm()).item()
        assert got.dtype == dtype and e < (2e-2 if dtype == torch.bfloat16 else 1e-5), (name, e)
    assert_coded()
    print(f"{name:36} {e:.1e}")


def run_fp4(name, make, activation, act, **more) -> None:
    """MXFP4 and NVFP4 experts: pairs of codes, with a power of two for 32 of them or an FP8 number for 16."""
    hidden, ffn = 256, 128
    cfg = config(activation, torch.bfloat16, hidden, ffn, **more)
    layer, method = torch.nn.Module(), make(cfg)
    assert method.experts_cls is moec.vllm.MoecExperts, method.experts_cls
    method.create_weights(layer, E, hidden, ffn, torch.bfloat16, weight_loader=None)
    torch.manual_seed(3)
    for key, p in layer.named_parameters():
        if "bias" in key:
            p.data.normal_(std=0.3)
        elif p.dtype == torch.uint8:
            p.data.copy_(torch.randint(120, 124, p.shape) if "scale" in key else torch.randint(0, 256, p.shape))
        elif p.dtype == FP8:
            p.data.copy_(torch.rand(p.shape) * 4 + 1)
        else:
            # One for gate and up, as ModelOpt writes it.
            p.data.copy_((torch.rand(len(p)) * 0.02 + 0.01).view(-1, *[1] * (p.ndim - 1)).expand(p.shape))
    layer.moe_config, layer._expert_routing_tables = cfg, lambda: None
    layer.activation, layer.apply_router_weight_on_input = activation, False
    layer.global_num_experts, layer.expert_map = E, None
    method.process_weights_after_loading(layer)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([values, -values])

    def floats(w):
        codes, scales = getattr(layer, f"{w}_weight"), getattr(layer, f"{w}_weight_scale")
        numbers = values[torch.stack([codes & 15, codes >> 4], -1).flatten(-2).int()]
        if scales.dtype == torch.uint8:
            return numbers * 2.0 ** (scales.float() - 127).repeat_interleave(32, -1)
        return numbers * scales.float().repeat_interleave(16, -1) * getattr(layer, f"{w}_weight_scale_2").view(-1, 1, 1)

    w13, w2 = floats("w13"), floats("w2")
    biases = (layer.w13_bias, layer.w2_bias) if cfg.has_bias else None
    x = torch.randn(T, hidden).bfloat16()
    w, ids = torch.softmax(torch.randn(T, E), -1).topk(K)
    got = method.apply(layer, x, w, ids.int(), None, None)
    want = reference(x, w, ids, w13, w2, act, biases)
    e = ((got.float() - want).norm() / want.norm()).item()
    assert e < 2e-2, (name, e)
    assert_coded()
    print(f"{name:36} {e:.1e}")


def run_kept(name, make, values, *, dtype=torch.bfloat16) -> None:
    """Experts of a method that keeps codes as they were loaded; `values(layer, "w13")` is what they stand for."""
    hidden, ffn = 256, 128
    cfg = config(MoEActivation.SILU, dtype, hidden, ffn)
    layer, method = torch.nn.Module(), make(cfg)
    assert method.experts_cls is moec.vllm.MoecExperts, method.experts_cls
    layer.intermediate_size_per_partition, layer.hidden_size = ffn, hidden
    method.create_weights(layer, E, hidden, ffn, dtype, weight_loader=None)
    torch.manual_seed(4)
    for key, p in layer.named_parameters():
        if p.dtype == torch.int32:
            p.data.copy_(torch.randint(-(2**31), 2**31, p.shape))
        elif p.dtype == torch.uint8:
            p.data.copy_(torch.randint(120, 124, p.shape) if "scale" in key else torch.randint(0, 256, p.shape))
        elif p.dtype == FP8:
            p.data.copy_(torch.rand(p.shape) * 4 + 1 if "scale" in key else torch.randn(p.shape) * 4)
        elif "global" in key:
            p.data.copy_((torch.rand(len(p)) * 50 + 50).view(-1, *[1] * (p.ndim - 1)).expand(p.shape))
        else:
            p.data.copy_(torch.rand(p.shape) * 0.02 + 0.005)
    layer.moe_config, layer._expert_routing_tables, layer._loaded_expert_biases = cfg, lambda: None, set()
    layer.activation, layer.apply_router_weight_on_input = MoEActivation.SILU, False
    layer.global_num_experts, layer.expert_map = E, None
    w13, w2 = (values(layer, w) for w in ("w13", "w2"))
    method.process_weights_after_loading(layer)
    x = torch.randn(T, hidden).to(dtype)
    w, ids = torch.softmax(torch.randn(T, E), -1).topk(K)
    got = method.apply(layer, x, w, ids.int(), None, None)
    want = reference(x, w, ids, w13, w2, lambda h: torch.nn.functional.silu(h[:ffn]) * h[ffn:])
    e = ((got.float() - want).norm() / want.norm()).item()
    assert got.dtype == dtype and e < 2e-2, (name, e)
    assert_coded()
    print(f"{name:36} {e:.1e}")


def nibbles(words):
    """The codes of four bits in words or bytes, the lowest bits first, along a new last axis."""
    return torch.stack([words >> 4 * i & 15 for i in range(2 * words.element_size())], -1)


def int4_rows(layer, w):
    codes, scales = getattr(layer, f"{w}_weight_packed"), getattr(layer, f"{w}_weight_scale").float()
    zeros = getattr(layer, f"{w}_weight_zero_point", None)
    zeros = torch.tensor(8.0) if zeros is None else nibbles(zeros).movedim(-1, 2).flatten(1, 2).float()
    return by_group(nibbles(codes).flatten(-2).float(), scales, zeros)


def by_group(codes, scales, zeros):
    width = codes.shape[-1] // scales.shape[-1]
    return (codes - zeros.expand(scales.shape).repeat_interleave(width, -1)) * scales.repeat_interleave(width, -1)


def wna16_rows(layer, w):
    codes, scales, zeros = (getattr(layer, f"{w}_{end}") for end in ("qweight", "scales", "qzeros"))
    return by_group(nibbles(codes).flatten(-2).float(), scales.float(), nibbles(zeros).movedim(-1, 2).flatten(1, 2).float())


def awq(layer, w):
    # Columns 0, 2, 4, 6, 1, 3, 5, 7 of eight, from the lowest bits on.
    codes, zeros = (nibbles(getattr(layer, f"{w}_{end}")) for end in ("qweight", "qzeros"))
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7]).argsort()
    codes, zeros = (x[..., order].flatten(-2).transpose(1, 2).float() for x in (codes, zeros))
    return by_group(codes, getattr(layer, f"{w}_scales").transpose(1, 2).float(), zeros)


def gptq(layer, w):
    codes, scales = getattr(layer, f"{w}_qweight"), getattr(layer, f"{w}_scales").float()
    codes = nibbles(codes).movedim(-1, 2).flatten(1, 2).float() - 8
    return (codes * scales.repeat_interleave(codes.shape[1] // scales.shape[1], 1)).transpose(1, 2)


def mxfp8(layer, w):
    codes, scales = getattr(layer, f"{w}_weight"), getattr(layer, f"{w}_weight_scale")
    return codes.float() * 2.0 ** (scales.float() - 127).repeat_interleave(32, -1)


def fp4_rows(layer, w):
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes, scales = getattr(layer, f"{w}_weight_packed"), getattr(layer, f"{w}_weight_scale")
    numbers = torch.cat([values, -values])[nibbles(codes).flatten(-2).int()]
    if scales.dtype == torch.uint8:
        return numbers * 2.0 ** (scales.float() - 127).repeat_interleave(32, -1)
    # compressed-tensors divides by its global scales.
    wide = getattr(layer, f"{w}_weight_global_scale").reshape(E, -1)[:, :1, None]
    return numbers * scales.float().repeat_interleave(16, -1) / wide


def kept() -> None:
    compressed = {end: importlib.import_module(moec.vllm._COMPRESSED + end) for end in ("wna16", "w8a8_mxfp8", "w4a4_nvfp4", "w4a4_mxfp4")}
    from vllm.model_executor.layers.quantization import auto_awq, auto_gptq, moe_wna16

    def int4(**more):
        kind = {"symmetric": True, "num_bits": 4, "group_size": 32, "strategy": "group", "actorder": None} | more
        return lambda cfg: compressed["wna16"].CompressedTensorsWNA16MoEMethod(types.SimpleNamespace(**kind), None, cfg)

    def of_gptq(**more):
        kind = {"weight_bits": 4, "group_size": 32, "desc_act": False, "is_sym": True} | more
        whole = auto_gptq.AutoGPTQConfig(**kind, lm_head_quantized=False, dynamic={}, full_config={})
        return lambda cfg: auto_gptq.AutoGPTQMoEMethod(whole, cfg)

    def of_awq(**more):
        kind = {"weight_bits": 4, "group_size": 32, "zero_point": True, "lm_head_quantized": False, "full_config": {}} | more
        return lambda cfg: auto_awq.AutoAWQMoEMethod(auto_awq.AutoAWQConfig(**kind, modules_to_not_convert=[]), cfg)

    def of_wna16():
        kind = {"linear_quant_method": "gptq", "weight_bits": 4, "group_size": 32, "has_zp": True, "lm_head_quantized": False}
        whole = moe_wna16.MoeWNA16Config(**kind, modules_to_not_convert=[], full_config={})
        return lambda cfg: moe_wna16.MoeWNA16Method(whole, cfg)

    run_kept("INT4 of compressed-tensors, bf16", int4(), int4_rows)
    run_kept("INT4 of compressed-tensors, groups of 128", int4(group_size=128), int4_rows)
    run_kept("GPTQ, 4 bits", of_gptq(), gptq)
    run_kept("GPTQ, 4 bits, f16", of_gptq(), gptq, dtype=torch.float16)
    run_kept("INT4 of compressed-tensors, zero points", int4(symmetric=False), int4_rows)
    run_kept("AWQ", of_awq(), awq)
    run_kept("AWQ, f16", of_awq(), awq, dtype=torch.float16)
    run_kept("GPTQ as moe_wna16, zero points", of_wna16(), wna16_rows)
    run_kept("MXFP8 of compressed-tensors", compressed["w8a8_mxfp8"].CompressedTensorsW8A8Mxfp8MoEMethod, mxfp8)
    whole = modelopt.ModelOptMxFp8Config(is_checkpoint_mxfp8_serialized=True, kv_cache_quant_algo=None, exclude_modules=[])
    run_kept("MXFP8 of ModelOpt", lambda cfg: modelopt.ModelOptMxFp8FusedMoE(whole, cfg), mxfp8)
    run_kept("NVFP4 of compressed-tensors", compressed["w4a4_nvfp4"].CompressedTensorsW4A4Nvfp4MoEMethod, fp4_rows)
    run_kept("MXFP4 of compressed-tensors", compressed["w4a4_mxfp4"].CompressedTensorsW4A4Mxfp4MoEMethod, fp4_rows)
    for name, make in (
        ("AWQ without zero points", of_awq(zero_point=False)),
        ("order of activations", int4(actorder="group")),
        ("order of activations, by its other name", int4(actorder="dynamic")),
        ("one scale a row", of_gptq(group_size=-1)),
        ("8 bits", of_gptq(weight_bits=8)),
    ):
        try:
            chosen = make(config(MoEActivation.SILU, torch.bfloat16, 256, 128)).experts_cls
        except Exception as e:  # What is left to vLLM may want a GPU.
            chosen = type(e)
        assert chosen is not moec.vllm.MoecExperts
        print(f"{'integers, ' + name:36} left to vLLM")


def fp8_method(**more):
    return lambda cfg, layer: vllm_fp8.Fp8MoEMethod(vllm_fp8.Fp8Config(**more), layer)


def compressed_tensors(strategy: str, rows: str):
    """The method of compressed-tensors' checkpoints, with what vLLM reads of that package's configs."""
    module = importlib.import_module(moec.vllm._FP8_METHODS[1])
    kinds = module.QuantizationStrategy = enum.Enum("QuantizationStrategy", "TENSOR CHANNEL GROUP BLOCK TOKEN")
    weights = types.SimpleNamespace(strategy=kinds[strategy], block_structure=[128, 128], dynamic=False)
    inputs = types.SimpleNamespace(strategy=kinds[rows], dynamic=True)
    return lambda cfg, layer: module.CompressedTensorsW8A8Fp8MoEMethod(weights, inputs, cfg)


def alone_and_without_a_gpu() -> None:
    """One rank; and PyTorch in the place of a kernel of vLLM's that wants a GPU."""
    from vllm import _custom_ops as ops
    from vllm.distributed import parallel_state

    parallel_state._TP = types.SimpleNamespace(world_size=1, rank_in_group=0)
    ops.scaled_fp8_quant = lambda x, scale: ((x / scale).clamp(-448, 448).to(FP8), scale)


def falls_back(name, cfg) -> None:
    experts, plain = moec.vllm.MoecExperts, mk.FusedMoEActivationFormat.Standard
    _, why = experts.is_supported_config(experts, cfg, None, None, plain)
    assert not moec.vllm.is_supported(cfg)
    print(f"{name:36} left to vLLM: {(why or 'these numbers').partition('(')[0]}")


def main() -> None:
    moec.vllm.register()
    workspace.init_workspace_manager(torch.device("cpu"))
    silu, gelu = torch.nn.functional.silu, torch.nn.functional.gelu
    run("silu", MoEActivation.SILU, halves(silu))
    run("silu, bf16", MoEActivation.SILU, halves(silu), dtype=torch.bfloat16)
    run("silu, clamped", MoEActivation.SILU, clamped, swiglu_limit=0.5)
    run("gelu", MoEActivation.GELU, halves(gelu))
    run("gelu_tanh", MoEActivation.GELU_TANH, halves(lambda h: gelu(h, approximate="tanh")))
    run("swigluoai, with biases", MoEActivation.SWIGLUOAI, oai, has_bias=True)
    # vLLM has no ungated experts on the CPU: that table is looked at, and not run.
    assert moec.vllm.form_of(MoEActivation.RELU2_NO_MUL, ApplyMoEActivationConfig())["activation"] == "relu2"
    half = torch.tensor([0, -1, 1, -1, 2, -1, 3, -1], dtype=torch.int32)
    run("silu, half of the experts", MoEActivation.SILU, halves(silu), expert_map=half, local=4)
    on_the_input()
    alone_and_without_a_gpu()
    run_fp8("FP8, blocks of 128 x 128", fp8_method(weight_block_size=[128, 128]), (128, 128))
    run_fp8("FP8, blocks of 128 x 128, f32", fp8_method(weight_block_size=[128, 128]), (128, 128), dtype=torch.float32)
    run_fp8("FP8, one scale an expert", fp8_method(), (0, 0))
    run_fp8("FP8, static activations", fp8_method(activation_scheme="static"), (0, 0))
    run_fp8("FP8, one scale a row", compressed_tensors("CHANNEL", "TOKEN"), (1, 0))
    run_fp4("MXFP4, gpt-oss", vllm_mxfp4.GptOssMxfp4MoEMethod, MoEActivation.SWIGLUOAI, oai, has_bias=True)
    run_fp4("MXFP4", vllm_mxfp4.Mxfp4MoEMethod, MoEActivation.SILU, lambda h: silu(h[:128]) * h[128:])

    def nvfp4(cfg):
        config = modelopt.ModelOptNvFp4Config(is_checkpoint_nvfp4_serialized=True, kv_cache_quant_algo=None, exclude_modules=[])
        return modelopt.ModelOptNvFp4FusedMoE(config, cfg)

    run_fp4("NVFP4", nvfp4, MoEActivation.SILU, lambda h: silu(h[:128]) * h[128:])
    kept()
    other = types.SimpleNamespace(experts_cls=object)
    moec.vllm._name_unserved(other, config(MoEActivation.SILU))
    assert moec.vllm._NAMED == {("SimpleNamespace", "silu")}, moec.vllm._NAMED
    made = RoutedExperts._get_quant_method(None, "", None, config(MoEActivation.SILU))
    assert made.experts_cls is moec.vllm.MoecExperts and len(moec.vllm._NAMED) == 1
    falls_back("swiglustep", config(MoEActivation.SWIGLUSTEP))
    falls_back("LoRA", config(MoEActivation.SILU, is_lora_enabled=True))
    falls_back("swigluoai_uninterleave, no limit", config(MoEActivation.SWIGLUOAI_UNINTERLEAVE))
    parallel = config(MoEActivation.SILU)
    parallel.moe_parallel_config.enable_eplb = True
    falls_back("experts that change places", parallel)


if __name__ == "__main__":
    from importlib.metadata import version

    print(f"{datetime.date.today()}, moec {moec.__version__}, vllm {version('vllm')}, torch {torch.__version__}, no GPU")
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu"))):
        main()
    print(f"stubbed: {', '.join(sorted(stubs.STUBBED))}")
    print("all good")
