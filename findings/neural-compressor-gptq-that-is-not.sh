#!/usr/bin/env bash
# Intel neural-compressor: save(format="huggingface") says quant_method gptq and bits 4 also where the codes are NF4, FP4 or 8-bit integers; and 3 bits are not laid out as GPTQ's.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir neural-compressor-pt==3.10 transformers==4.57.6 torch==2.15.0 accelerate==1.15.0 safetensors
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cd "$dir"; cat > "$dir/check.py" <<'PY'
import copy, json, sys, tempfile, torch
from importlib.metadata import version
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
import neural_compressor.torch.quantization as Q
from neural_compressor.torch.algorithms.weight_only.utility import FLOAT_MAPPING, INT_MAPPING

K, N, G = 64, 96, 32  # inputs, outputs, inputs in a group
c = AutoConfig.for_model("qwen3", vocab_size=32, hidden_size=K, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=N)
torch.manual_seed(1)
src = AutoModelForCausalLM.from_config(c, dtype=torch.float32)
w = src.model.layers[0].mlp.up_proj.weight.detach().clone()
far = lambda v: ((v - w).norm() / w.norm()).item()
fit = lambda v: v * ((v * w).sum() / (v * v).sum())  # the factor that brings it nearest to the weights

def save(**more):
    m = Q.convert(Q.prepare(copy.deepcopy(src), Q.RTNConfig(group_size=G, use_layer_wise=False, **more)))
    out = tempfile.mkdtemp()
    Q.save(m, out, format="huggingface")
    t = {n.split("up_proj.")[1]: v for n, v in load_file(out + "/model.safetensors").items() if "up_proj" in n}
    q = json.load(open(out + "/config.json"))["quantization_config"]
    print(f"CHECK {more}: config.json says quant_method {q['quant_method']}, bits {q['bits']}, and names no dtype: {'dtype' not in q};", {n: f"{str(t[n].dtype)[6:]} {list(t[n].shape)}" for n in ("qweight", "qzeros", "scales") if n in t})
    return t, q

def codes(x, bits):  # along the last axis; as many whole codes in a word as fit
    return ((x.long() & 0xFFFFFFFF)[..., None] >> bits * torch.arange(32 // bits) & 2 ** bits - 1).flatten(-2)

def integers(t, bits):
    zero = codes(t["qzeros"], bits)[:, :N] + 1 & 2 ** bits - 1
    return (codes(t["qweight"].T, bits)[:, :K] - zero.T.repeat_interleave(G, 1)) * t["scales"].float().T.repeat_interleave(G, 1)

print("CHECK neural-compressor-pt", version("neural-compressor-pt"), "transformers", version("transformers"), f"weight [{N}, {K}], groups of {G}")
t, plain = save(bits=4)
d = far(integers(t, 4))
print(f"CHECK    read as GPTQ of 4 bits: distance from the weights {d:.3f}")
bad = [plain["quant_method"] != "gptq", d > .2, list(t["qweight"].shape) != [K // 8, N]]
for dtype in ("nf4", "fp4"):
    t, q = save(bits=4, dtype=dtype)
    u, s = codes(t["qweight"], 4), t["scales"].repeat_interleave(G, 1)
    name = dict(zip(INT_MAPPING[dtype], FLOAT_MAPPING[dtype]))  # the tool's own: a number from -8 to 7, and the value that it stands for
    own = torch.tensor([name.get(i - 16 if i > 7 else i, 0.) for i in range(16)])
    order = torch.tensor(sorted(FLOAT_MAPPING[dtype]) + [0.] * (16 - len(FLOAT_MAPPING[dtype])))
    a, b, signed = far(own[u] * s), far(fit(order[u] * s)), far(fit(torch.where(u > 7, u - 16, u) * s))
    print(f"CHECK    config as for integers of 4 bits: {q == plain}; distance with the tool's own numbering of the values {a:.3f}, with the values in ascending order {b:.3f}, as integers {signed:.3f} (both times the best factor)")
    bad += [q != plain, "qzeros" in t, list(t["qweight"].shape) != [N, K // 8], not a < .3 < min(b, signed)]
t, q = save(bits=4, dtype="int8")
d = far(integers(t, 8))
print(f"CHECK    config as for integers of 4 bits: {q == plain}; {len(t['qweight'])} words hold {K} codes, GPTQ of 4 bits has {K // 8}; distance read as 8 bits {d:.4f}")
bad += [q != plain, len(t["qweight"]) != K // 4, d > .02]
t, q = save(bits=3)
d = far(integers(t, 3))
print(f"CHECK    {len(t['qweight'])} words hold {K} codes, GPTQ of 3 bits has {K * 3 // 32}; distance with ten whole codes in each word {d:.3f}")
bad += [q["quant_method"] != "gptq", len(t["qweight"]) != -(-K // 10), d > .4]
sys.exit(any(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" > "$dir/out" && rc=0 || rc=$?; grep -ao "CHECK .*" "$dir/out" || true; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
