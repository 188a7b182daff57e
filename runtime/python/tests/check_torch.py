"""What needs PyTorch and transformers: `cargo xtask python-check` runs it, with a Python that has them.

Every family makes a tiny model with random weights; its logits with moec's experts are held against its own (eager).
"""

import copy
import sys
import warnings

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import moec
import moec.torch
import moec.transformers

SMALL = dict(
    vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    max_position_embeddings=128,
)
FAMILIES = {
    "mixtral": dict(intermediate_size=48, num_local_experts=8, num_experts_per_tok=2),
    "qwen3_moe": dict(moe_intermediate_size=48, num_experts=8, num_experts_per_tok=2, decoder_sparse_step=1),
    "qwen2_moe": dict(moe_intermediate_size=48, shared_expert_intermediate_size=48, num_experts=8, num_experts_per_tok=2),
    "olmoe": dict(intermediate_size=48, num_experts=8, num_experts_per_tok=2),
    "granitemoe": dict(intermediate_size=48, num_local_experts=8, num_experts_per_tok=2),
    "phimoe": dict(intermediate_size=48, num_local_experts=8, num_experts_per_tok=2),
    "minimax_m2": dict(intermediate_size=48, num_local_experts=8, num_experts_per_tok=2),
    "gpt_oss": dict(intermediate_size=48, num_local_experts=8, num_experts_per_tok=2),
    "glm4_moe": dict(moe_intermediate_size=48, n_routed_experts=8, num_experts_per_tok=2, first_k_dense_replace=1, n_group=1, topk_group=1),
    "deepseek_v3": dict(
        moe_intermediate_size=48, intermediate_size=64, n_routed_experts=8, num_experts_per_tok=2, first_k_dense_replace=1,
        n_group=2, topk_group=1, q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
        num_key_value_heads=4,
    ),
    "dots1": dict(moe_intermediate_size=48, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=1, n_group=1, topk_group=1),
    "ernie4_5_moe": dict(moe_intermediate_size=48, moe_num_experts=8, moe_k=2, moe_layer_start_index=0),
}


def model_of(family: str, dtype) -> torch.nn.Module:
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), experts_implementation="eager", dtype=dtype).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1) if p.dim() > 1 else None
    return model


def error(got, want) -> float:
    return ((got.float() - want.float()).norm() / want.float().norm()).item()


def families() -> None:
    tokens = torch.randint(3, 128, (8, 24), generator=torch.Generator().manual_seed(1))
    for family in FAMILIES:
        for dtype in (torch.float32, torch.bfloat16):
            model = model_of(family, dtype)
            with torch.no_grad():
                eager = model(tokens).logits
                model.set_experts_implementation("moec")
                moec.torch.forget()
                got = model(tokens).logits
                assert moec._experts.PREPARED, f"{family}: moec was not called"
                if dtype == torch.float32:
                    e = error(got, eager)
                    print(f"{family:14} float32   logits against eager: {e:.1e}")
                    assert e < 1e-5, (family, e)
                    continue
                # Roundings of bf16 can make a router choose otherwise, which is nobody's mistake: both ways are held against the
                # same weights in float32.
                model.set_experts_implementation("eager")
                exact = model.float()(tokens).logits
            ours, theirs = error(got, exact), error(eager, exact)
            print(f"{family:14} bfloat16  logits against float32: moec {ours:.1e}, eager {theirs:.1e}")
            assert ours < 1.25 * theirs + 2e-3, (family, ours, theirs)


def generate() -> None:
    model = model_of("mixtral", torch.float32)
    prompt = torch.tensor([[5, 17, 3, 99, 42]])
    want = model.generate(prompt, max_new_tokens=12, do_sample=False)
    model.set_experts_implementation("moec")
    assert torch.equal(model.generate(prompt, max_new_tokens=12, do_sample=False), want)
    print("generate: the same text as eager")


def compiled() -> None:
    model = model_of("qwen3_moe", torch.float32)
    tokens = torch.randint(3, 128, (1, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = model(tokens).logits
        model.set_experts_implementation("moec")
        model(tokens)
        whole = torch.compile(model, fullgraph=True, backend="aot_eager")
        e = error(whole(tokens).logits, want)
    assert e < 1e-5, e
    print(f"torch.compile(fullgraph=True): {e:.1e}")


def changes() -> None:
    """Weights that are written to, and models that are gone."""
    model = model_of("mixtral", torch.float32)
    model.set_experts_implementation("moec")
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        first = model(tokens).logits
        for module in model.modules():
            if hasattr(module, "gate_up_proj"):
                module.gate_up_proj.mul_(0.5)
        second = model(tokens).logits
        model.set_experts_implementation("eager")
        assert error(second, model(tokens).logits) < 1e-5
    assert error(first, second) > 1e-4
    try:
        model.set_experts_implementation("moec")
        model(tokens).logits.sum().backward()
    except RuntimeError as e:
        assert "forward only" in str(e), e
    else:
        raise AssertionError("a backward pass should be refused")
    print("weights that change are seen; a backward pass is refused")


def operator() -> None:
    """`torch.ops.moec.layer`, with its fake, and layers on numpy and PyTorch."""
    path = sys.argv[1]
    bundle = moec.compile(path)
    layer = moec.load(bundle, path, max_tokens=64)
    number = moec.torch.add(layer)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
    want = layer(x)
    assert (layer(x.numpy()) == want.numpy()).all()
    got = torch.ops.moec.layer([x], number)
    assert torch.equal(got[0], want) and got[1].dtype == torch.int32
    whole = torch.compile(lambda x: torch.ops.moec.layer([x], number)[0] * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(whole(x), want * 2)
    torch.library.opcheck(torch.ops.moec.layer.default, ([x], number), test_utils=("test_schema", "test_faketensor"))
    moec.torch.remove(number)
    print("torch.ops.moec.layer: the same bits as the layer")


if __name__ == "__main__":
    warnings.filterwarnings("error", message="moec does not know")
    moec.transformers.register()
    print(f"moec {moec.__version__}, torch {torch.__version__}, transformers {transformers.__version__}")
    operator()
    families()
    generate()
    compiled()
    changes()
    print("all good")
