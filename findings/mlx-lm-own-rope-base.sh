#!/usr/bin/env bash
# mlx-lm: of a model that transformers 5 saved it takes its own rope base and no YaRN, without a word, in Mixtral, OLMoE, Qwen2-MoE, DeepSeek-V3 and GLM-4.7-Flash: they are in rope_parameters now, which mlx-lm reads for other families only.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir mlx-lm==0.32.2 "mlx[cpu]==0.32.4" transformers==5.24.0 torch==2.15.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import json, pathlib, sys, tempfile, torch
import mlx.core as mx
import numpy as np
from importlib.metadata import version
from mlx_lm.utils import load_model
from transformers import AutoConfig, AutoModelForCausalLM

mx.set_default_device(mx.cpu)
print("mlx-lm", version("mlx-lm"), "mlx", version("mlx"), "transformers", version("transformers"))
SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, pad_token_id=0, bos_token_id=1, eos_token_id=2,
             tie_word_embeddings=False, max_position_embeddings=2560)
MLA = dict(SMALL, num_key_value_heads=4, moe_intermediate_size=24, n_routed_experts=8, num_experts_per_tok=2, n_group=1, topk_group=1, n_shared_experts=1, first_k_dense_replace=1,
           q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16)
BASE = {"rope_type": "default", "rope_theta": 500000.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
CASES = {
    "mixtral": (dict(SMALL, num_local_experts=8, num_experts_per_tok=2), BASE),
    "olmoe": (dict(SMALL, num_key_value_heads=4, num_experts=8, num_experts_per_tok=2), BASE),
    "qwen2_moe": (dict(SMALL, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=24), BASE),
    "deepseek_v3": (MLA, YARN),
    "glm4_moe_lite": (dict(MLA, mlp_layer_types=["dense", "sparse"]), BASE),
}
ids = np.random.default_rng(1).integers(3, 64, (1, 256))
far = lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b))
bad = 0
for kind, (sizes, rope) in CASES.items():
    torch.manual_seed(1)
    m = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, rope_parameters=dict(rope), **sizes), dtype=torch.float32).eval()
    for n, p in m.named_parameters():
        if p.dim() > 1:
            p.data = torch.randn(p.shape) * .3
    out = pathlib.Path(tempfile.mkdtemp())
    m.save_pretrained(out)
    config = json.load(open(out / "config.json"))
    with torch.no_grad():
        own = m(torch.tensor(ids), use_cache=False).logits.numpy()
    read = lambda: far(np.array(load_model(out)[0](mx.array(ids)).astype(mx.float32)), own)
    saved = read()
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": None if rope["rope_type"] == "default" else dict(rope, type=rope["rope_type"])}  # as transformers 4 wrote it
    json.dump(config | old, open(out / "config.json", "w"))
    named = read()
    print(f"{kind}, {rope['rope_type']} rope of base {rope['rope_theta']:.0f}: top-level rope keys saved {sorted(k for k in config if k in ('rope_theta', 'rope_scaling'))};"
          f" mlx-lm's logits are {saved:.1e} from transformers', {named:.1e} with the keys that transformers 4 wrote")
    bad += not (saved > .05 and named < 1e-3 and config["rope_parameters"]["rope_theta"] == rope["rope_theta"])
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" && rc=0 || rc=$?; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
