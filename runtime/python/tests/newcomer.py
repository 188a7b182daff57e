"""What someone does who has just installed moec: `cargo xtask python-check newcomer` runs it in a clean folder, with the wheel.

For each of twelve families: a tiny random checkpoint on disk, loaded by ten lines of Python with moec's experts, and once more
with the model's own; the same text, and the same logits.
"""

import datetime
import pathlib
import sys
import tempfile

import moec
import torch
import transformers

SMALL = dict(
    vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
LOCAL = dict(intermediate_size=48, num_local_experts=8, num_experts_per_tok=2)
QWEN = dict(moe_intermediate_size=48, num_experts=8, num_experts_per_tok=2)
V3 = dict(
    moe_intermediate_size=48, intermediate_size=64, n_routed_experts=8, num_experts_per_tok=2, first_k_dense_replace=1, n_group=2,
    topk_group=1,
)
MLA = dict(q_lora_rank=32, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, num_key_value_heads=4)
FAMILIES = {
    "mixtral": LOCAL,
    "qwen3_moe": QWEN | dict(decoder_sparse_step=1),
    "qwen2_moe": QWEN | dict(shared_expert_intermediate_size=48),
    "olmoe": dict(intermediate_size=48, num_experts=8, num_experts_per_tok=2),
    "granitemoe": LOCAL,
    "phimoe": LOCAL,
    "minimax_m2": LOCAL,
    "gpt_oss": LOCAL,
    "glm4_moe": V3,
    "deepseek_v3": V3 | MLA,
    "dots1": V3 | dict(n_shared_experts=1),
    "ernie4_5_moe": dict(moe_intermediate_size=48, moe_num_experts=8, moe_k=2, moe_layer_start_index=0),
}


def make(family: str, folder: pathlib.Path) -> None:
    """A tiny random checkpoint, as its makers would publish it."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.1)
    model.save_pretrained(folder)


def try_family(path: pathlib.Path, dtype: torch.dtype) -> tuple[float, bool]:
    # --- The ten lines. ---
    import moec.transformers

    moec.transformers.register()
    ours = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, experts_implementation="moec")
    prompt = torch.tensor([[5, 17, 3, 99, 42, 77, 23, 8]])
    text = ours.generate(prompt, max_new_tokens=12, do_sample=False)
    # --- And what it is held against. ---
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, experts_implementation="eager")
    same = torch.equal(text, theirs.generate(prompt, max_new_tokens=12, do_sample=False))
    with torch.no_grad():
        got, want = ours(prompt).logits.float(), theirs(prompt).logits.float()
    return ((got - want).norm() / want.norm()).item(), same


def main() -> bool:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    python = sys.version.split()[0]
    print(f"{datetime.date.today()}, moec {moec.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, Python {python}")
    print("error: norm of the logits' difference to the model's own experts, by the norm of those\n")
    print(f"{'family':14} {'float32':>8}  text   {'bfloat16':>8}  text")
    good = True
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            make(family, pathlib.Path(folder))
            cells = [try_family(pathlib.Path(folder), dtype) for dtype in (torch.float32, torch.bfloat16)]
        # In bf16 one rounding may choose another expert or word, so its text is only told of.
        good &= cells[0][0] <= 1e-5 and cells[0][1] and cells[1][0] <= 2e-2
        told = [f"{e:8.1e}  {'same ' if same else 'other'}" for e, same in cells]
        print(f"{family:14} {'  '.join(told)}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(not main())
