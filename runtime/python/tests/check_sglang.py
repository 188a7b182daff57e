"""SGLang's own classes with moec's experts, on a machine without a GPU: `cargo xtask python-check engines` runs it.

The argument is a folder with SGLang's wheel unpacked; see `stubs.py` for what is not there.
"""

import datetime
import enum
import importlib
import sys
import types
import warnings

import torch
import transformers.image_utils  # noqa: F401  (before anything is stubbed)

import stubs

sys.path.insert(0, sys.argv[1])
warnings.filterwarnings("ignore")
stubs.install("sglang", "torch_npu", "pynvml", "amdsmi", "habana_frameworks", "mlx", "torch_musa", "flashinfer", "deep_gemm", "aiter")

import moec  # noqa: E402
import moec.sglang  # noqa: E402
from sglang.srt.arg_groups.choices import MOE_RUNNER_BACKEND_CHOICES  # noqa: E402
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig  # noqa: E402
from sglang.srt.layers.moe.token_dispatcher.standard import StandardDispatchOutput  # noqa: E402
from sglang.srt.layers.moe.topk import StandardTopKOutput  # noqa: E402
from sglang.srt.layers.moe.utils import get_flags, resolve_moe_runner_backend  # noqa: E402
from sglang.srt.layers.quantization import fp8 as sglang_fp8  # noqa: E402
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod  # noqa: E402
from sglang.srt.plugins.hook_registry import HookRegistry  # noqa: E402

E, H, I, K, T = 8, 64, 48, 2, 7


def config(dtype=torch.float32, **more) -> MoeRunnerConfig:
    common = dict(num_experts=E, num_local_experts=E, hidden_size=H, intermediate_size_per_partition=I, top_k=K, params_dtype=dtype)
    return MoeRunnerConfig(**(common | more))


def method_of(cfg, with_bias=False):
    """SGLang's method with its weights, as its FusedMoE layer makes them."""
    method, layer = UnquantizedFusedMoEMethod(), torch.nn.Module()
    layer.moe_runner_config = cfg
    method.create_weights(layer, E, H, I, cfg.params_dtype, with_bias=with_bias)
    torch.manual_seed(0)
    for p in layer.parameters():
        p.data.normal_(std=0.3)
    method.create_moe_runner(layer, cfg)
    return method, layer


def halves(f):
    return lambda h: f(h[:I]) * h[I:]


def oai(interleaved):
    def act(h):
        gate, up = (h[::2], h[1::2]) if interleaved else (h[:I], h[I:])
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return gate * torch.sigmoid(1.702 * gate) * (up + 1)

    return act


def reference(x, w, ids, layer, cfg, act):
    out = torch.zeros(x.shape)
    b13, b2 = getattr(layer, "w13_weight_bias", None), getattr(layer, "w2_weight_bias", None)
    for t in range(T):
        for k in range(ids.shape[1]):
            e, by = int(ids[t, k]), w[t, k].float()
            if e < 0:
                continue
            row = x[t].float() * (by if cfg.apply_router_weight_on_input else 1)
            h = layer.w13_weight[e].float() @ row + (0 if b13 is None else b13[e].float())
            y = layer.w2_weight[e].float() @ act(h) + (0 if b2 is None else b2[e].float())
            out[t] += y * (1 if cfg.apply_router_weight_on_input else by)
    return out * (cfg.routed_scaling_factor or 1.0)


def run(name, cfg, act, with_bias=False, skipped=False) -> None:
    method, layer = method_of(cfg, with_bias)
    assert type(method.runner.runner_core) is moec.sglang.MoecCore, method.runner.runner_core
    x = torch.randn(T, H).to(cfg.params_dtype)
    w, ids = torch.softmax(torch.randn(T, E), -1).topk(K)
    ids = ids.int()
    if cfg.apply_router_weight_on_input:
        # One expert a token, as SGLang asks for: the other's share is nothing.
        w, ids = w[:, :1], ids[:, :1]
    if skipped:
        ids[::2, 0] = -1
    output = method.forward_cuda(layer, StandardDispatchOutput(x, None, StandardTopKOutput(w, ids, None))).hidden_states
    want = reference(x, w, ids, layer, cfg, act)
    e = ((output.float() - want).norm() / want.norm()).item()
    assert output.dtype == x.dtype and e < (2e-2 if x.dtype == torch.bfloat16 else 1e-5), (name, e)
    print(f"{name:40} {e:.1e}")


def assert_coded() -> None:
    """That the last layer's matrices stayed codes."""
    last = list(moec._experts.PREPARED.values())[-1]
    assert all(p.is_coded for p in last.layer.params if p.name in ("experts.gate", "experts.up", "experts.down")), "codes were made floats"


def by_scale(codes, scale, block):
    """What codes stand for; `block` has 0 for a whole axis."""
    _, n, k = codes.shape
    rows, cols = block[0] or n, block[1] or k
    grid = scale.reshape(len(codes), -1, 1) if scale.ndim < 3 else scale
    grid = 2.0 ** (grid.float() - 127) if grid.dtype == torch.uint8 else grid
    full = grid.repeat_interleave(rows, 1)[:, :n].repeat_interleave(cols, 2)[:, :, :k]
    return codes.float() * full.expand(codes.shape)


def fp8_method(cfg, **more):
    method, layer = sglang_fp8.Fp8MoEMethod(sglang_fp8.Fp8Config(is_checkpoint_fp8_serialized=True, **more)), torch.nn.Module()
    layer.moe_runner_config, layer.moe_tp_size = cfg, 1
    layer.num_local_experts, layer.intermediate_size_per_partition = E, cfg.intermediate_size_per_partition
    method.create_weights(layer, E, cfg.hidden_size, cfg.intermediate_size_per_partition, cfg.params_dtype)
    method.create_moe_runner(layer, cfg)
    return method, layer


def compressed_tensors(cfg, strategy, rows):
    """The method of compressed-tensors' checkpoints, with what SGLang reads of that package's configs."""
    module = importlib.import_module(moec.sglang._COMPRESSED.rpartition(".")[0])
    kinds = module.QuantizationStrategy = enum.Enum("QuantizationStrategy", "TENSOR CHANNEL GROUP BLOCK TOKEN")
    weights = types.SimpleNamespace(strategy=kinds[strategy], block_structure=[128, 128], dynamic=False)
    method = module.CompressedTensorsW8A8Fp8MoE(weights, types.SimpleNamespace(strategy=kinds[rows], dynamic=True))
    layer = torch.nn.Module()
    layer.moe_runner_config, layer.moe_tp_size = cfg, 1
    layer.num_local_experts, layer.intermediate_size_per_partition = E, cfg.intermediate_size_per_partition
    method.create_weights(layer, E, cfg.hidden_size, cfg.intermediate_size_per_partition, cfg.params_dtype)
    method.create_moe_runner(layer, cfg)
    method.apply = method.apply_weights
    return method, layer


def run_fp8(name, block, dtype=torch.bfloat16, make=fp8_method, **more) -> None:
    """FP8 experts of SGLang's own methods: the values of their codes, with activations that are not rounded."""
    hidden, ffn = 256, 128
    cfg = config(dtype, hidden_size=hidden, intermediate_size_per_partition=ffn)
    method, layer = make(cfg, **more)
    assert type(method.runner.runner_core) is moec.sglang.MoecCore, method.runner.runner_core
    torch.manual_seed(0)
    for key, p in layer.named_parameters():
        if p.dtype == torch.uint8:
            p.data.copy_(torch.randint(120, 124, p.shape))
        else:
            p.data.copy_(torch.rand(p.shape) * 0.02 + 0.005 if "scale" in key else torch.randn(p.shape) * 10)
    method.process_weights_after_loading(layer)
    x = torch.randn(T, hidden).to(dtype)
    w, ids = torch.softmax(torch.randn(T, E), -1).topk(K)
    got = method.apply(layer, StandardDispatchOutput(x, None, StandardTopKOutput(w, ids.int(), None))).hidden_states
    end = "_inv" if hasattr(layer, "w13_weight_scale_inv") else ""
    floats = torch.nn.Module()
    floats.w13_weight = by_scale(layer.w13_weight, getattr(layer, "w13_weight_scale" + end), block)
    floats.w2_weight = by_scale(layer.w2_weight, getattr(layer, "w2_weight_scale" + end), block)
    want = reference(x, w, ids, floats, cfg, lambda h: torch.nn.functional.silu(h[:ffn]) * h[ffn:])
    e = ((got.float() - want).norm() / want.norm()).item()
    assert got.dtype == dtype and e < (2e-2 if dtype == torch.bfloat16 else 1e-5), (name, e)
    assert_coded()
    print(f"{name:40} {e:.1e}")


def int4_method(cfg, **more):
    """The method of compressed-tensors' checkpoints with integers, with what SGLang reads of that package's configs."""
    module = importlib.import_module(moec.sglang._INT4.rpartition(".")[0])
    module.CompressionFormat = types.SimpleNamespace(pack_quantized=types.SimpleNamespace(value="pack-quantized"))
    kind = dict(num_bits=4, strategy="group", group_size=32, actorder=None, symmetric=True) | more
    return module.CompressedTensorsWNA16MoE(types.SimpleNamespace(quant_format="pack-quantized"), types.SimpleNamespace(**kind))


def gptq_method(cfg, **more):
    """SGLang's method for checkpoints of GPTQ and AWQ with `--quantization moe_wna16`."""
    module = importlib.import_module(moec.sglang._INT4_ROWS.rpartition(".")[0])
    kind = dict(weight_bits=4, bit8_pack_factor=2, group_size=32, has_zp=False, linear_quant_method="gptq") | more
    return module.MoeWNA16Method(types.SimpleNamespace(**kind))


def awq_method(cfg, **more):
    """The part of SGLang's method for AWQ's checkpoints that is about experts."""
    module = importlib.import_module(moec.sglang._AWQ_SCHEME.rpartition(".")[0])
    return module.AWQMoEScheme(types.SimpleNamespace(**dict(weight_bits=4, pack_factor=8, group_size=32, zero_point=True) | more))


def marlin_method(cfg, **more):
    """As above, for GPTQ's."""
    module = importlib.import_module("sglang.srt.layers.quantization.gptq.schemes.gptq_moe")
    return module.GPTQMarlinMoEScheme(types.SimpleNamespace(**dict(weight_bits=4, pack_factor=8, group_size=32, desc_act=False) | more))


def core_of(method):
    return type(getattr(method, "kernel", method).runner.runner_core)


def nibbles(words):
    """Numbers of four bits, the lowest first, along a new last axis."""
    return torch.stack([words >> 4 * i & 15 for i in range(2 * words.element_size())], -1)


def values_of_int4(layer, w) -> torch.Tensor:
    """What a method's codes stand for, as they were loaded: ``[E, N, K]``."""
    eight = torch.tensor(8.0)
    columns = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7]).argsort()
    if hasattr(layer, f"{w}_weight_packed"):
        # Columns of words; zero points in words along the rows.
        codes, scales = getattr(layer, f"{w}_weight_packed"), getattr(layer, f"{w}_weight_scale").transpose(1, 2)
        codes = nibbles(codes).movedim(-1, 2).flatten(1, 2).transpose(1, 2)
        zeros = getattr(layer, f"{w}_weight_zero_point", None)
        zeros = eight if zeros is None else nibbles(zeros).flatten(-2).transpose(1, 2)
    elif getattr(layer, f"{w}_qweight").dtype == torch.uint8:
        # Rows of bytes; zero points of two rows in a byte.
        codes, scales, zeros = (getattr(layer, f"{w}_{end}", None) for end in ("qweight", "scales", "qzeros"))
        codes = nibbles(codes).flatten(-2)
        zeros = eight if zeros is None or not zeros.numel() else nibbles(zeros).movedim(-1, 2).flatten(1, 2)
    elif getattr(layer, f"{w}_qzeros").dtype == torch.int32:
        # AWQ: rows of words, eight columns of the weight in an order of their own.
        codes, zeros = (nibbles(getattr(layer, f"{w}_{end}"))[..., columns].flatten(-2).transpose(1, 2) for end in ("qweight", "qzeros"))
        scales = getattr(layer, f"{w}_scales").transpose(1, 2)
    else:
        codes = nibbles(getattr(layer, f"{w}_qweight")).movedim(-1, 2).flatten(1, 2).transpose(1, 2)
        scales, zeros = getattr(layer, f"{w}_scales").transpose(1, 2), eight
    width = codes.shape[-1] // scales.shape[-1]
    zeros = zeros.float().expand(scales.shape).repeat_interleave(width, -1)
    return (codes.float() - zeros) * scales.float().repeat_interleave(width, -1)


def int4_layer(make, cfg, **more):
    method, layer = make(cfg, **more), torch.nn.Module()
    layer.moe_runner_config, layer.moe_tp_size = cfg, 1
    sizes = (E, cfg.hidden_size, cfg.intermediate_size_per_partition, cfg.params_dtype)
    method.create_weights(layer, *sizes, weight_loader=lambda *_: None)
    method.create_moe_runner(layer, cfg)
    return method, layer


def run_int4(name, make, dtype=torch.bfloat16, **more) -> None:
    """Experts of integers in four bits: the values of their codes."""
    hidden, ffn = 256, 128
    cfg = config(dtype, hidden_size=hidden, intermediate_size_per_partition=ffn)
    method, layer = int4_layer(make, cfg, **more)
    assert core_of(method) is moec.sglang.MoecCore, method
    torch.manual_seed(5)
    for key, p in layer.named_parameters():
        if "scale" in key:
            p.data.copy_(torch.rand(p.shape) * 0.02 + 0.005)
        elif p.numel() and p.dtype in (torch.int32, torch.uint8):
            least, most = (-(2**31), 2**31) if p.dtype == torch.int32 else (0, 256)
            p.data.copy_(torch.randint(least, most, p.shape))
    floats = torch.nn.Module()
    floats.w13_weight, floats.w2_weight = values_of_int4(layer, "w13"), values_of_int4(layer, "w2")
    if hasattr(method, "process_weights_after_loading"):
        method.process_weights_after_loading(layer)
    x = torch.randn(T, hidden).to(dtype)
    w, ids = torch.softmax(torch.randn(T, E), -1).topk(K)
    apply = getattr(method, "apply_weights", None) or method.apply
    got = apply(layer, StandardDispatchOutput(x, None, StandardTopKOutput(w, ids.int(), None))).hidden_states
    want = reference(x, w, ids, floats, cfg, lambda h: torch.nn.functional.silu(h[:ffn]) * h[ffn:])
    e = ((got.float() - want).norm() / want.norm()).item()
    assert got.dtype == dtype and e < 2e-2, (name, e)
    assert_coded()
    print(f"{name:40} {e:.1e}")


def falls_back(name, cfg) -> None:
    method, _ = method_of(cfg)
    assert type(method.runner.runner_core) is not moec.sglang.MoecCore
    print(f"{name:40} left to SGLang: {method.runner.runner_backend.value}")


def main() -> None:
    moec.sglang.register()
    HookRegistry.apply_hooks()
    assert "moec" in MOE_RUNNER_BACKEND_CHOICES
    method, _ = method_of(config())
    assert type(method.runner.runner_core) is not moec.sglang.MoecCore, "moec runs without being chosen"
    get_flags().moe.runner_backend = resolve_moe_runner_backend("moec")
    silu = torch.nn.functional.silu
    run("silu", config(), halves(silu))
    run("silu, bf16", config(torch.bfloat16), halves(silu))
    run("silu, weights scaled", config(routed_scaling_factor=2.5), halves(silu))
    run("silu, weights on the input", config(apply_router_weight_on_input=True), halves(silu))
    run("silu, ids of other ranks", config(), halves(silu), skipped=True)
    numbers = dict(gemm1_alpha=1.702, gemm1_clamp_limit=7.0)
    run("gpt-oss, with biases", config(**numbers), oai(True), with_bias=True)
    run("gpt-oss, bf16, biases in float32", config(torch.bfloat16, **numbers), oai(True), with_bias=True)
    run("gpt-oss's, concatenated", config(**numbers, gate_up_interleaved=False), oai(False))
    run("relu2, ungated", config(activation="relu2", is_gated=False), lambda h: torch.relu(h) ** 2)
    sglang_fp8.scaled_fp8_quant = lambda x, scale: ((x / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale)
    run_fp8("FP8, blocks of 128 x 128", (128, 128), weight_block_size=[128, 128])
    run_fp8("FP8, blocks of 128 x 128, f32", (128, 128), torch.float32, weight_block_size=[128, 128])
    run_fp8("FP8, one scale an expert", (0, 0))
    run_fp8("FP8, one scale a row", (1, 0), make=compressed_tensors, strategy="CHANNEL", rows="TOKEN")
    run_fp8("FP8 blocks of compressed-tensors", (128, 128), make=compressed_tensors, strategy="BLOCK", rows="TOKEN")
    run_fp8("MXFP8", (1, 32), weight_block_size=[1, 32], use_mxfp8=True)
    run_int4("INT4 of compressed-tensors", int4_method)
    run_int4("INT4 of compressed-tensors, f16", int4_method, torch.float16, group_size=128)
    run_int4("INT4 of compressed-tensors, rows", int4_method, strategy="channel", group_size=None)
    run_int4("INT4 of compressed-tensors, zeros", int4_method, symmetric=False)
    run_int4("INT4 of compressed-tensors, rows, zeros", int4_method, strategy="channel", group_size=None, symmetric=False)
    run_int4("GPTQ as moe_wna16", gptq_method)
    run_int4("GPTQ as moe_wna16, zero points", gptq_method, has_zp=True)
    run_int4("AWQ as moe_wna16", gptq_method, has_zp=True, linear_quant_method="awq")
    run_int4("GPTQ", marlin_method)
    run_int4("GPTQ, f16", marlin_method, torch.float16)
    run_int4("AWQ", awq_method)
    run_int4("AWQ, f16", awq_method, torch.float16, group_size=128)
    small = config(torch.bfloat16, hidden_size=256, intermediate_size_per_partition=128)
    for name, make, more in (
        ("order of activations", int4_method, {"actorder": "group"}),
        ("order of activations, by its other name", int4_method, {"actorder": "dynamic"}),
        ("order of activations, GPTQ", marlin_method, {"desc_act": True}),
        ("AWQ without zero points", awq_method, {"zero_point": False}),
    ):
        method, layer = int4_layer(make, small, **more)
        assert core_of(method) is not moec.sglang.MoecCore
        layer.quant_method = layer.scheme = method
        moec.sglang._NAMED.clear()
        moec.sglang._name_unserved(layer)
        assert moec.sglang._NAMED == {type(method).__name__}
        print(f"{'integers, ' + name:40} left to SGLang: {getattr(method, 'kernel', method).runner.runner_backend.value}")
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    assert FusedMoE.__init__.__wrapped__ is not None, "layers are made without a look at who serves them"
    other = types.SimpleNamespace(quant_method=type("Mxfp4MoEMethod", (), {"runner": None})())
    moec.sglang._name_unserved(other)
    assert "Mxfp4MoEMethod" in moec.sglang._NAMED
    method, _ = fp8_method(config(activation="gelu", hidden_size=256, intermediate_size_per_partition=128))
    assert method.runner.runner_backend.value == "triton"
    falls_back("gelu", config(activation="gelu"))
    falls_back("swiglu_limit", config(swiglu_limit=1.0))
    falls_back("no_combine", config(no_combine=True))


if __name__ == "__main__":
    from importlib.metadata import version

    print(f"{datetime.date.today()}, moec {moec.__version__}, sglang {version('sglang')}, torch {torch.__version__}, no GPU")
    main()
    print(f"stubbed: {', '.join(sorted(stubs.STUBBED))}")
    print("all good")
