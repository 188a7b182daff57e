#!/usr/bin/env bash
# transformers 5 with compressed-tensors: all experts are unpacked as one config group says; with dequantize=True dense layers are, too. With gate and up in 4 bits and down in 8, down is other numbers, without an error or a missing key.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir compressed-tensors==0.20.1 transformers==5.24.0 torch==2.15.0 accelerate==1.15.0 safetensors
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import json, re, sys, tempfile, torch
from importlib.metadata import version
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.utils.helpers import calculate_qparams
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

H, F, X = 64, 96, "model.layers.1.mlp.experts.2."
c = AutoConfig.for_model("qwen3_moe", vocab_size=32, hidden_size=H, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4,
                         num_experts_per_tok=2, moe_intermediate_size=F, intermediate_size=F, decoder_sparse_step=1, mlp_only_layers=[0], pad_token_id=0, bos_token_id=1, eos_token_id=2)
torch.manual_seed(1)
src = tempfile.mkdtemp()
AutoModelForCausalLM.from_config(c, dtype=torch.float32).save_pretrained(src)
plain = load_file(src + "/model.safetensors")  # layer 0 is dense, layer 1 has experts
tool = BaseCompressor.get_value_from_registry("pack-quantized")
print("CHECK transformers", version("transformers"), "compressed-tensors", version("compressed-tensors"))

def distances(first, second, **how):
    """How far weights are after loading from what compressed-tensors gives, with the bits of gate and up, and of down."""
    groups = {f"group_{i}": dict(targets=[t], weights=dict(num_bits=b, type="int", strategy="group", group_size=32), format="pack-quantized")
              for i, (t, b) in enumerate(((r"re:.*mlp\..*(gate|up)_proj$", first), (r"re:.*mlp\..*down_proj$", second)))}
    config = QuantizationConfig(config_groups=groups, format="pack-quantized", quantization_status="compressed", ignore=["lm_head"])
    t, own = {}, {}
    for n, w in plain.items():
        scheme = next((g for g in config.config_groups.values() if re.match(g.targets[0][3:], n.removesuffix(".weight"))), None)
        if scheme is None:
            t[n] = w
            continue
        g = w.unflatten(1, (-1, 32))
        scale, zero = calculate_qparams(g.amin(-1), g.amax(-1), scheme.weights)
        packed = tool.compress({"weight": w, "weight_scale": scale, "weight_zero_point": zero}, scheme)
        own[n] = tool.decompress(dict(packed), scheme)["weight"].float()
        t |= {n.removesuffix("weight") + k: v.contiguous() for k, v in packed.items() if k != "weight_zero_point"}
    out = tempfile.mkdtemp()
    save_file(t, out + "/model.safetensors", metadata={"format": "pt"})
    json.dump(json.load(open(src + "/config.json")) | {"quantization_config": json.loads(config.model_dump_json()) | {"quant_method": "compressed-tensors"}}, open(out + "/config.json", "w"))
    m, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True, **how)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    far = lambda a, b: ((a - b).norm() / b.norm()).item()
    e, dense = m.model.layers[1].mlp.experts, m.model.layers[0].mlp
    d = {"gate of an expert": far(e.gate_up_proj[2][:F].detach(), own[X + "gate_proj.weight"]), "down of an expert": far(e.down_proj[2].detach(), own[X + "down_proj.weight"])}
    if how:
        d |= {f"{k} of the dense layer": far(dense.get_submodule(k + "_proj").weight.detach(), own[f"model.layers.0.mlp.{k}_proj.weight"]) for k in ("gate", "down")}
    return d

bad = 0
for how in {}, {"quantization_config": CompressedTensorsConfig(dequantize=True)}:
    for first, second in (4, 4), (8, 8), (4, 8):
        d = distances(first, second, **how)
        print(f"CHECK {'dequantize=True, ' if how else ''}gate and up in {first} bits, down in {second}: distance from compressed-tensors' own values:", ", ".join(f"{k} {v:.1e}" for k, v in d.items()))
        wrong = {k for k, v in d.items() if v > .5}
        bad += wrong != ({k for k in d if "down" in k} if first != second else set()) or any(v > 1e-4 for k, v in d.items() if k not in wrong)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" > "$dir/out" 2> "$dir/err" && rc=0 || rc=$?; grep -ao "CHECK .*" "$dir/out" | cut -c7- || true; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
