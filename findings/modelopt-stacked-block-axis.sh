#!/usr/bin/env bash
# ModelOpt: on the stacked experts of one model, NVFP4 blocks run along the input axis, MXFP8, MXFP4 and W4A8_NVFP4_FP8 blocks across outputs.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir nvidia-modelopt==0.47.0 transformers==5.14.1 torch==2.15.0 accelerate==1.15.0 safetensors requests
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import copy, glob, sys, tempfile, torch
from importlib.metadata import version
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
import modelopt.torch.quantization as mtq
from modelopt.torch.export import export_hf_checkpoint

K, N, E = 64, 192, 4  # inputs, outputs of gate and up together, experts
def model():
    c = AutoConfig.for_model("llama4_text", vocab_size=32, hidden_size=K, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                             intermediate_size=N // 2, intermediate_size_mlp=N // 2, num_local_experts=E, num_experts_per_tok=1, interleave_moe_layer_step=1,
                             pad_token_id=0, bos_token_id=1, eos_token_id=2)
    m = AutoModelForCausalLM.from_config(c, dtype=torch.bfloat16).eval()
    m.config.architectures = [type(m).__name__]
    g = torch.Generator().manual_seed(1)
    for p in m.parameters():
        if p.dim() > 1:
            p.data = (torch.randn(p.shape, generator=g) * .1).to(p.dtype)
    return m

WANT = {"NVFP4_DEFAULT_CFG": [E, K // 16, N], "W4A16_NVFP4_CFG": [E, K // 16, N], "W4A8_NVFP4_FP8_CFG": [E, K, N // 32], "MXFP8_DEFAULT_CFG": [E, K, N // 32],
        "MXFP4_DEFAULT_CFG": [E, K, N // 32]}
print("nvidia-modelopt", version("nvidia-modelopt"), "transformers", version("transformers"))
print(f"gate_up_proj of a stack is [{E}, {K}, {N}]: experts, inputs, outputs")
bad = 0
for name, want in WANT.items():
    m = mtq.quantize(model(), copy.deepcopy(getattr(mtq, name)), lambda m: m(torch.arange(16)[None]))
    out = tempfile.mkdtemp()
    export_hf_checkpoint(m, export_dir=out)
    t = {}
    for f in glob.glob(out + "/*.safetensors"):
        t |= load_file(f)
    base = next(n for n in t if n.endswith("experts.gate_up_proj"))
    code, scale = t[base], t[base + "_weight_scale"]
    shared = next(t[n] for n in t if n.endswith("shared_expert.gate_proj.weight_scale"))
    print(f"{name}: codes {code.dtype} {list(code.shape)}, scales {list(scale.shape)}; of a plain linear layer [{N // 2}, {K}]: scales {list(shared.shape)}")
    bad += list(scale.shape) != want
# That the last axis is the block's axis, and not only the shape's: with codes of MXFP8, value = code * 2^(scale-127) along it.
src = next(p for n, p in model().named_parameters() if n.endswith("experts.gate_up_proj")).float()
m = mtq.quantize(model(), copy.deepcopy(mtq.MXFP8_DEFAULT_CFG), lambda m: m(torch.arange(16)[None]))
out = tempfile.mkdtemp(); export_hf_checkpoint(m, export_dir=out)
t = {}
for f in glob.glob(out + "/*.safetensors"): t |= load_file(f)
base = next(n for n in t if n.endswith("experts.gate_up_proj"))
v = t[base].float() * torch.exp2(t[base + "_weight_scale"].float() - 127).repeat_interleave(32, -1)
far = ((v - src).norm() / src.norm()).item()
print(f"MXFP8 decoded with one scale for 32 neighbouring outputs: distance from the weights {far:.4f}")
sys.exit(bool(bad) or far > .05)
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
