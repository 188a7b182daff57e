#!/usr/bin/env bash
# MLX reads FP8 and E8M0 of safetensors as uint8, and mlx-lm multiplies DeepSeek-V3's and V3.2's FP8 blocks by the bytes of their E8M0 scales, so that weights come out 400,000 times as large, without an error. transformers reads the same file (scale_fmt ue8m0) right, and both read float32 scales right.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 transformers==5.24.0 accelerate==1.15.0 safetensors==0.8.0 "mlx[cpu]==0.32.4" mlx-lm==0.32.2
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import json, sys, tempfile, warnings
from importlib.metadata import version
from pathlib import Path
import mlx.core as mx, torch
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

mx.set_default_device(mx.cpu)
print(*(f"{p} {version(p)}" for p in ("transformers", "mlx", "mlx-lm", "safetensors")))
SIZES = dict(vocab_size=64, hidden_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, intermediate_size=128, moe_intermediate_size=128, num_experts_per_tok=2, n_routed_experts=4,
             n_group=1, topk_group=1, first_k_dense_replace=0, n_shared_experts=1, q_lora_rank=128, kv_lora_rank=128, qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
CASES = {"deepseek_v3": {}, "deepseek_v32": dict(index_topk=8, index_n_heads=2, index_head_dim=128)}

def blocks(w):
    """Codes and scales of blocks of 128 by 128; the scales are powers of two, so that both formats hold them exactly."""
    b = w.float().unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
    s = torch.exp2(torch.ceil(torch.log2(b.abs().amax((1, 3)) / 448)))
    return (b / s[:, None, :, None]).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn), s

bad = 0
for kind, more in CASES.items():
    torch.manual_seed(1)
    src = tempfile.mkdtemp()
    m = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **more), dtype=torch.bfloat16)
    m.save_pretrained(src)
    want = m.model.layers[0].mlp.experts.down_proj.detach().float()
    for form in ("float32", "E8M0"):
        out, t = tempfile.mkdtemp(), {}
        for n, v in load_file(src + "/model.safetensors").items():
            if ".mlp.experts." in n or "shared_experts" in n:
                t[n], s = blocks(v)
                t[n + "_scale_inv"] = s if form == "float32" else s.to(torch.float8_e8m0fnu)
            else:
                t[n] = v
        save_file(t, out + "/model.safetensors", metadata={"format": "pt"})
        q = dict(quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128], modules_to_not_convert=["lm_head", "self_attn", "mlp.gate"]) | ({} if form == "float32" else {"scale_fmt": "ue8m0"})
        json.dump(json.load(open(src + "/config.json")) | {"quantization_config": q}, open(out + "/config.json", "w"))
        name = "model.layers.0.mlp.experts.0.down_proj.weight_scale_inv"
        raw = mx.load(out + "/model.safetensors")[name]
        own = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16).model.layers[0].mlp.experts.down_proj.detach().float()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            theirs = dict(tree_flatten(load_model(Path(out))[0].parameters()))["model.layers.0.mlp.switch_mlp.down_proj.weight"]
        theirs = torch.tensor(theirs.astype(mx.float32).tolist())
        far = [((v - want).norm() / want.norm()).item() for v in (own, theirs)]
        print(f"{kind}, scales in {form}: one of {t[name][0, 0].float().item():.4g} is {raw.dtype} {raw[0, 0].item():.4g} to mx.load; distance of the experts from the weights: transformers {far[0]:.3f}, mlx-lm {far[1]:.3g}; warnings of mlx-lm {len(said)}")
        bad += far[0] > .05 or (far[1] < .05) != (form == "float32") or (far[1] > 1e5) != (form == "E8M0") or bool(said) or (raw.dtype == mx.uint8) != (form == "E8M0")
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" > "$dir/out" && rc=0 || rc=$?; grep -a "^transformers\|^deepseek" "$dir/out" || true; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
