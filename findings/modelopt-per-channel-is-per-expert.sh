#!/usr/bin/env bash
# ModelOpt: FP8_PER_CHANNEL_PER_TOKEN gives stacked experts one scale an expert, not one a channel.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir nvidia-modelopt==0.47.0 transformers==5.14.1 torch==2.15.0 accelerate==1.15.0 safetensors requests
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import copy, glob, json, sys, tempfile, torch
from importlib.metadata import version
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
import modelopt.torch.quantization as mtq
from modelopt.torch.export import export_hf_checkpoint

c = AutoConfig.for_model("gpt_oss", vocab_size=32, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16, intermediate_size=96,
                         num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"], pad_token_id=0, bos_token_id=1, eos_token_id=2)
m = AutoModelForCausalLM.from_config(c, dtype=torch.bfloat16).eval()
m.config.architectures = [type(m).__name__]
for n, p in m.named_parameters():
    if n.endswith("gate_up_proj"):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p.dtype)
        p.data *= torch.logspace(-2, 0, p.shape[-1]).to(p.dtype)  # outputs of very different size
m = mtq.quantize(m, copy.deepcopy(mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG), lambda m: m(torch.arange(16)[None]))
out = tempfile.mkdtemp()
export_hf_checkpoint(m, export_dir=out)
t = {}
for f in glob.glob(out + "/*.safetensors"):
    t |= load_file(f)
base = next(n for n in t if n.endswith("experts.gate_up_proj"))
linear = next(n for n in t if n.endswith("q_proj.weight"))
print("nvidia-modelopt", version("nvidia-modelopt"), json.load(open(out + "/hf_quant_config.json"))["quantization"]["quant_algo"])
print("stack", list(t[base].shape), "scale", list(t[base + "_weight_scale"].shape))
print("linear layer", list(t[linear].shape), "scale", list(t[linear + "_scale"].shape))
sys.exit(list(t[base + "_weight_scale"].shape) != [4] or list(t[linear + "_scale"].shape) != [t[linear].shape[0]])
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
