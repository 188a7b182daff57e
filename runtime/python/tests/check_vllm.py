"""vLLM's own classes with moec's experts, on a machine without a GPU: `cargo xtask python-check engines` runs it.

The argument is a folder with vLLM's wheel unpacked; see `stubs.py` for what is not there.
"""

import datetime
import sys

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
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,  # noqa: E402
)

E, H, I, K, T = 8, 64, 48, 2, 7


def config(activation, dtype=torch.float32, **more) -> FusedMoEConfig:
    return FusedMoEConfig(
        num_experts=E, experts_per_token=K, hidden_dim=H, intermediate_size=I, num_local_experts=more.pop("local", E),
        num_logical_experts=E, activation=activation, device="cpu", routing_method=RoutingMethodType.Renormalize,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(), in_dtype=dtype, **more,
    )


def reference(x, w, ids, layer, act, gated, biased):
    out = torch.zeros(x.shape[0], H)
    for t in range(x.shape[0]):
        for k in range(K):
            e = int(ids[t, k])
            if e < 0:
                continue
            h = layer.w13_weight[e].float() @ x[t].float() + (layer.w13_bias[e].float() if biased else 0)
            y = layer.w2_weight[e].float() @ act(h) + (layer.w2_bias[e].float() if biased else 0)
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
    biased = cfg.has_bias
    for round in range(2):
        got = method.forward_native(layer, x, w, ids, None, None)
        want = reference(x, w, local, layer, act, activation.is_gated, biased)
        e = ((got.float() - want).norm() / want.norm()).item()
        assert e < (2e-2 if dtype == torch.bfloat16 else 1e-5), (name, e)
        if round == 0:
            # New weights, written as vLLM's loader does.
            layer.w13_weight.data.mul_(0.5)
            layer.w2_weight.data.add_(0.01)
            method.process_weights_after_loading(layer)
    print(f"{name:36} {e:.1e}")


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
