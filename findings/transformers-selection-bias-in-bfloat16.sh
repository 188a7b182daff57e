#!/usr/bin/env bash
# transformers: loading in bfloat16 rounds a float32 e_score_correction_bias of MiniMax-M2, LongCat-Flash and Laguna, which moves tokens to other experts; it keeps those of DeepSeek-V3 and GLM-4.5. dtype="auto" does the same.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir transformers==5.24.0 torch==2.15.0 safetensors accelerate==1.15.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, tempfile, torch, transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

print("transformers", transformers.__version__, "torch", torch.__version__)
E = 64
SMALL = dict(vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=16, intermediate_size=48, moe_intermediate_size=48,
             num_experts_per_tok=8, pad_token_id=0, bos_token_id=1, eos_token_id=2)
MLA = dict(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
CASES = {
    "deepseek_v3": dict(SMALL, **MLA, n_routed_experts=E, n_group=1, topk_group=1, first_k_dense_replace=0),
    "glm4_moe": dict(SMALL, n_routed_experts=E, n_group=1, topk_group=1, first_k_dense_replace=0),
    "minimax_m2": dict(SMALL, num_local_experts=E),
    "laguna": dict(SMALL, num_experts=E, mlp_layer_types=["sparse"], layer_types=["full_attention"], shared_expert_intermediate_size=48),
    "longcat_flash": {k: v for k, v in (SMALL | MLA).items() if k not in ("num_hidden_layers", "num_experts_per_tok", "intermediate_size", "moe_intermediate_size")}
                     | dict(num_layers=1, n_routed_experts=E, moe_topk=8, zero_expert_num=0, ffn_hidden_size=48, expert_ffn_hidden_size=48),
}
KEPT = {"deepseek_v3", "glm4_moe"}
bad = 0
for kind, sizes in CASES.items():
    torch.manual_seed(1)
    src = tempfile.mkdtemp()
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.bfloat16).save_pretrained(src)
    t = load_file(src + "/model.safetensors")
    name = next(n for n in t if "correction_bias" in n)
    bias = 7 + .25 * torch.rand(E)  # what balancing leaves: close to each other, away from 0; bfloat16 steps by 1/32 here
    for n in t:
        if "norm" not in n:
            t[n] = (torch.randn(t[n].shape) * .1).to(t[n].dtype)
    t[name] = bias.reshape(t[name].shape)
    save_file(t, src + "/model.safetensors", metadata={"format": "pt"})
    kinds = set()
    for dtype in ("auto", torch.bfloat16):
        m = AutoModelForCausalLM.from_pretrained(src, dtype=dtype).eval()
        owner = next(x for x in m.modules() if "e_score_correction_bias" in dict(x.named_buffers(recurse=False)) | dict(x.named_parameters(recurse=False)))
        kinds.add(str(owner.e_score_correction_bias.dtype))
    block = next(x for n, x in m.named_modules() if n.endswith("layers.0.mlp"))
    x = torch.randn(1, 512, 64).bfloat16()
    with torch.no_grad():
        loaded = block(x)
        owner.e_score_correction_bias.data = bias.reshape(owner.e_score_correction_bias.shape).clone()
        exact = block(x)
    moved = ((loaded - exact).float().norm(dim=-1) > .02 * exact.float().norm(dim=-1)).float().mean().item()
    print(f"{kind}: {len(bias.unique())} biases in float32 on disk, {owner.e_score_correction_bias.numel()} experts; loaded as {kinds}, {len(bias.bfloat16().unique()) if kinds != {'torch.float32'} else len(bias.unique())} different ones;"
          f" {moved:.0%} of 512 tokens get another output of the layer than with the biases of the file")
    bad += kinds != {"torch.float32" if kind in KEPT else "torch.bfloat16"} or (moved > .15) == (kind in KEPT) or (kind in KEPT and moved > 0)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" && rc=0 || rc=$?; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
