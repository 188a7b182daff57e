"""What the recipes share: tiny Mixture-of-Experts models with random weights, and the input and expected output of their
first MoE layer. Needs torch, transformers and safetensors."""
import json, os, random, shutil, sys
from importlib.metadata import version

import numpy as np
import torch
from safetensors.torch import load_file, save_file

H, F, E, K, T = 128, 64, 4, 2, 6  # hidden, expert width, experts, experts per token, tokens
BASE = dict(vocab_size=32, hidden_size=H, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2)
FAMILY = {
    "qwen3_moe": dict(num_experts=E, num_experts_per_tok=K, moe_intermediate_size=F, intermediate_size=F, norm_topk_prob=True,
                      decoder_sparse_step=1, mlp_only_layers=[]),
    "mixtral": dict(num_local_experts=E, num_experts_per_tok=K, intermediate_size=F),
    "gpt_oss": dict(num_local_experts=E, num_experts_per_tok=K, intermediate_size=F, layer_types=["full_attention"]),
    "llama4_text": dict(num_local_experts=E, num_experts_per_tok=1, intermediate_size=F, intermediate_size_mlp=F,
                        interleave_moe_layer_step=1),
    "qwen3_vl_moe_text": dict(num_experts=E, num_experts_per_tok=K, moe_intermediate_size=F, intermediate_size=F,
                              decoder_sparse_step=1, mlp_only_layers=[]),
    "deepseek_v3": dict(n_routed_experts=E, num_experts_per_tok=K, moe_intermediate_size=F, intermediate_size=F,
                        n_shared_experts=1, first_k_dense_replace=0, n_group=1, topk_group=1, q_lora_rank=16, kv_lora_rank=16,
                        qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, num_key_value_heads=2, head_dim=8),
    "qwen2_moe": dict(num_experts=E, num_experts_per_tok=K, moe_intermediate_size=F, intermediate_size=F,
                      shared_expert_intermediate_size=F, decoder_sparse_step=1, mlp_only_layers=[]),
}


def tiny(family="qwen3_moe", seed=1, dtype=torch.bfloat16, width=F, **more):
    """A model of one layer. Weights are normal with variance 1/K, so that outputs are near 1."""
    from transformers import AutoConfig, AutoModelForCausalLM
    sizes = {k: width if v == F and k.endswith(("intermediate_size", "_mlp")) else v for k, v in FAMILY[family].items()}
    config = AutoConfig.for_model(family, **(BASE | sizes | more))
    config.dtype = dtype
    # Grouped products know no float64.
    eager = {} if version("transformers").startswith("4") else dict(experts_implementation="eager")
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, **eager).eval()
    model.config.architectures = [type(model).__name__]
    random_ = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.dim() > 1 or name.endswith("bias"):
            p.data = (torch.randn(p.shape, generator=random_) * H ** -.5).to(p.dtype)
    for name, b in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            b.copy_(torch.randn(b.shape, generator=random_) * .1)
    return model


def moe_of(model):
    """The first MoE block: the module that has both a router and experts."""
    return next(m for m in model.modules() if hasattr(m, "experts") and (hasattr(m, "gate") or hasattr(m, "router")))


def hidden(seed=5, tokens=T, width=H):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


def run(block, x):
    """The output of a MoE block, in the block's own type."""
    with torch.no_grad():
        y = block(x[None])
    y = y[0] if isinstance(y, tuple) else y
    return y.reshape(x.shape)


def reference(family, **more):
    """The MoE block of a model in float64."""
    return moe_of(tiny(family, dtype=torch.float32, **more)).double()


def expected(family, values, x, block=None, **more):
    """The layer in float64, its parameters replaced by `values` (name inside the block -> tensor). Tools that patch
    transformers get a `block` that was made before."""
    block = block or reference(family, **more)
    own = dict(block.named_parameters()) | dict(block.named_buffers())
    for name, value in values.items():
        assert own[name].shape == value.shape, (name, own[name].shape, value.shape)
        own[name].data = value.double()
    missing = set(own) - set(values)
    assert not missing, missing
    return run(block, x.double()).float()


def floats(model):
    """The values of a model's MoE block: name inside the block -> tensor."""
    block = moe_of(model)
    return {n: p.detach().clone().float() for n, p in [*block.named_parameters(), *block.named_buffers()]}


def io(folder, x, y):
    os.makedirs(f"{folder}/io", exist_ok=True)
    save_file({"input": x.float().contiguous()}, f"{folder}/io/input.safetensors")
    save_file({"output": y.float().contiguous()}, f"{folder}/io/expected.safetensors")


def stored(folder):
    """All tensors of a checkpoint."""
    out = {}
    for f in sorted(os.listdir(folder)):
        if f.endswith(".safetensors"):
            out |= load_file(f"{folder}/{f}")
    return out


def distance(a, b):
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm()).item()


def fresh(root, name):
    folder = os.path.join(root, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return folder


def note(folder, title, packages, facts, layer=".layers.0."):
    """NOTE.md: what made the case, the tensors as stored, and what they mean."""
    shown = {}
    for n, t in sorted(stored(folder).items()):
        if layer in n and "attn" not in n and "norm" not in n:
            shown[n] = f"{str(t.dtype)[6:]} {list(t.shape)}"
    rows = "\n".join(f"| `{n}` | {v} |" for n, v in shown.items() if "experts." not in n or ".experts.0." in n or not any(c.isdigit() for c in n.split("experts.")[1].split(".")[0]))
    made = ", ".join(f"{p} {version(p)}" for p in packages)
    with open(f"{folder}/NOTE.md", "w") as f:
        f.write(f"# {title}\n\nMade with {made}. Remade by `recipes/{os.path.basename(sys.argv[0])}`.\n\n"
                f"{facts.strip()}\n\n| tensor of the first layer (expert 0) | type and shape |\n|---|---|\n{rows}\n")


E2M1 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])


def nibbles(u8, dim=-1):
    """Codes of four bits, the low half of each byte first, along `dim`."""
    return torch.stack((u8 & 15, u8 >> 4), dim=dim if dim < 0 else dim + 1).flatten(*((dim - 1, dim) if dim < 0 else (dim, dim + 1))) if dim == -1 \
        else nibbles(u8.transpose(dim, -1)).transpose(dim, -1)
