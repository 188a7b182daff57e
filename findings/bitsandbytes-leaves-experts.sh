#!/usr/bin/env bash
# transformers 5 with bitsandbytes: load_in_4bit leaves the experts of a Mixture-of-Experts model in 16 bits, and says nothing.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir transformers==5.24.0 bitsandbytes==0.50.2 torch==2.15.0 accelerate==1.15.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import contextlib, io, sys, tempfile, torch
from importlib.metadata import version
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
c = AutoConfig.for_model("qwen3_moe", vocab_size=32, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4,
                         num_experts_per_tok=2, moe_intermediate_size=128, decoder_sparse_step=1, mlp_only_layers=[])
src = tempfile.mkdtemp()
AutoModelForCausalLM.from_config(c, dtype=torch.bfloat16).save_pretrained(src)
m = AutoModelForCausalLM.from_pretrained(src, quantization_config=BitsAndBytesConfig(load_in_4bit=True), device_map="cpu", dtype=torch.bfloat16)
print("transformers", version("transformers"), "bitsandbytes", version("bitsandbytes"))
kinds = {}
for n, p in m.named_parameters():
    if "experts." in n or "_proj" in n:
        kind = "experts" if "experts." in n else "attention"
        kinds.setdefault(kind, set()).add(str(p.dtype))
        print(n, p.dtype, list(p.shape))
sys.exit(kinds != {"experts": {"torch.bfloat16"}, "attention": {"torch.uint8"}})
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }; echo "lines on stderr that name experts or skipped modules: $(grep -aic "expert\|skipp" "$dir/err" || true)"
