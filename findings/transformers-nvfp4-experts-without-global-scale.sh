#!/usr/bin/env bash
# transformers 5 with compressed-tensors: the experts of an NVFP4 checkpoint are dequantised without their weight_global_scale, without an error; MXFP4 and INT4 experts of the same model are right.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir compressed-tensors==0.20.1 transformers==5.24.0 torch==2.15.0 accelerate==1.15.0 safetensors
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import json, sys, tempfile, torch
from importlib.metadata import version
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

c = AutoConfig.for_model("qwen3_moe", vocab_size=32, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4,
                         num_experts_per_tok=2, moe_intermediate_size=96, decoder_sparse_step=1, mlp_only_layers=[], pad_token_id=0, bos_token_id=1, eos_token_id=2)
torch.manual_seed(1)
src = tempfile.mkdtemp()
AutoModelForCausalLM.from_config(c, dtype=torch.float32).save_pretrained(src)
plain = load_file(src + "/model.safetensors")
FORMATS = {"nvfp4-pack-quantized": dict(num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn"),
           "mxfp4-pack-quantized": dict(num_bits=4, type="float", strategy="group", group_size=32, scale_dtype="torch.uint8"),
           "pack-quantized": dict(num_bits=4, type="int", strategy="group", group_size=32)}

def checkpoint(form, weights):
    """The model with its experts in a format, as compressed-tensors' own compressor writes and reads them."""
    config = QuantizationConfig(config_groups={"group_0": dict(targets=["re:.*experts.*"], weights=weights, format=form)}, format=form, quantization_status="compressed", ignore=["lm_head"])
    scheme, tool = config.config_groups["group_0"], BaseCompressor.get_value_from_registry(form)
    t, own = {}, {}
    for n, w in plain.items():
        if ".experts." not in n:
            t[n] = w
            continue
        g = w.unflatten(1, (-1, weights["group_size"]))
        whole = {"global_scale": generate_gparam(w.min(), w.max())} if "nvfp4" in form else {}
        scale, zero = calculate_qparams(g.amin(-1), g.amax(-1), scheme.weights, **whole)
        state = {"weight": w, "weight_scale": scale, "weight_zero_point": zero} | {"weight_" + k: v.reshape(1) for k, v in whole.items()}
        packed = tool.compress(state, scheme)
        own[n] = tool.decompress(dict(packed), scheme)["weight"].float()
        t |= {n.removesuffix("weight") + k: v.contiguous() for k, v in packed.items() if k != "weight_zero_point"}
    out = tempfile.mkdtemp()
    save_file(t, out + "/model.safetensors", metadata={"format": "pt"})
    json.dump(json.load(open(src + "/config.json")) | {"quantization_config": json.loads(config.model_dump_json()) | {"quant_method": "compressed-tensors"}}, open(out + "/config.json", "w"))
    return out, own, t

print("CHECK transformers", version("transformers"), "compressed-tensors", version("compressed-tensors"))
far = lambda a, b: ((a - b).norm() / b.norm()).item()
bad = []
for form, weights in FORMATS.items():
    out, own, t = checkpoint(form, weights)
    m, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    name = "model.layers.0.mlp.experts.2.down_proj."
    got, want = m.model.layers[0].mlp.experts.down_proj[2].detach(), own[name + "weight"]
    s = t.get(name + "weight_global_scale", torch.ones(1))
    a, b = far(got, want), far(got / s, want)
    print(f"CHECK {form}: compressed-tensors' own values are {far(want, plain[name + 'weight']):.3f} from the weights; what transformers loads is {a:.3g} from them,"
          f" {b:.3g} once it is divided by the weight_global_scale {s.item():.5g}; missing {len(info['missing_keys'])}, unexpected {len(info['unexpected_keys'])}")
    bad += [far(want, plain[name + "weight"]) > .25, bool(info["missing_keys"] or info["unexpected_keys"]), b > .02, (a > 100) != ("nvfp4" in form)]
sys.exit(any(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" > "$dir/out" 2> "$dir/err" && rc=0 || rc=$?; grep -ao "CHECK .*" "$dir/out" | cut -c7- || true; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
