#!/usr/bin/env bash
# GPTQModel: 5, 6 and 7 bits are written in a layout of bit planes, gptq_p, whatever format was asked for, and with zero points as they are.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir gptqmodel==7.7.0 transformers==5.24.0 torch==2.15.0 accelerate==1.15.0 safetensors
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cd "$dir"; cat > "$dir/check.py" <<'PY'
import glob, json, os, sys, tempfile, torch
from importlib.metadata import version

def main():
    from safetensors.torch import load_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
    c = AutoConfig.for_model("qwen3", vocab_size=32, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, head_dim=16, intermediate_size=96,
                             pad_token_id=0, bos_token_id=1, eos_token_id=2)
    src = tempfile.mkdtemp()
    m = AutoModelForCausalLM.from_config(c, dtype=torch.bfloat16)
    for p in m.parameters():
        if p.dim() > 1:
            p.data = (torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * .1).to(p.dtype)
    m.save_pretrained(src)
    w = m.model.layers[0].mlp.up_proj.weight.detach().float()
    k = Tokenizer(models.WordLevel({f"t{i}": i for i in range(32)}, unk_token="t3"))
    k.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=k, unk_token="t3", eos_token="t2", pad_token="t0", bos_token="t1").save_pretrained(src)
    from gptqmodel import GPTQModel, QuantizeConfig
    data = [dict(input_ids=torch.randint(0, 32, (16,), generator=torch.Generator().manual_seed(i)).tolist(), attention_mask=[1] * 16) for i in range(16)]
    q = GPTQModel.load(src, QuantizeConfig(bits=6, group_size=32, format="gptq"), device="cpu")
    q.quantize(data, batch_size=1)
    out = tempfile.mkdtemp()
    q.save(out)
    t = {}
    for f in glob.glob(out + "/*.safetensors"):
        t |= load_file(f)
    conf = json.load(open(out + "/config.json"))["quantization_config"]
    b = next(n for n in t if n.endswith("up_proj.qweight")).removesuffix("qweight")

    def stream(x):  # codes run on across words
        bit = ((x.long() & 0xFFFFFFFF)[:, None] >> torch.arange(32)[:, None] & 1).reshape(x.shape[0] * 32, x.shape[1])
        return (bit.reshape(-1, 6, x.shape[1]) << torch.arange(6)[:, None]).sum(1)

    def planes(x):  # of 32 codes: four words of low halves, two words of high pairs
        u = (x.long() & 0xFFFFFFFF).reshape(-1, 6, 1, x.shape[1])
        low = (u[:, :4] >> torch.arange(0, 32, 4)[:, None] & 15).reshape(len(u), 32, -1)
        return (low | (u[:, 4:] >> torch.arange(0, 32, 2)[:, None] & 3).reshape(len(u), 32, -1) << 4).reshape(-1, x.shape[1])
    print("CHECK gptqmodel", version("gptqmodel"), "asked for gptq with 6 bits; checkpoint_format is", conf["checkpoint_format"])
    far = {}
    for name, un in (("stream", stream), ("planes", planes)):
        for add in (0, 1):
            s = t[b + "scales"].float()[t[b + "g_idx"].long()]
            z = un(t[b + "qzeros"].T.contiguous()).T[t[b + "g_idx"].long()]
            v = ((un(t[b + "qweight"]) - z - add) * s).T
            far[name, add] = ((v - w).norm() / w.norm()).item()
            print(f"CHECK read as {name}, zero points plus {add}: distance from the weights {far[name, add]:.3f}")
    best = min(far, key=far.get)
    sys.stdout.flush()
    os._exit(int(best != ("planes", 0) or conf["checkpoint_format"] != "gptq_p"))

if __name__ == "__main__":
    main()
PY
export GPTQMODEL_CPU_WORKERS=2
"$dir/venv/bin/python" "$dir/check.py" > "$dir/out" 2> "$dir/err" && rc=0 || rc=$?; grep -ao "CHECK .*" "$dir/out" || tail -5 "$dir/err"; exit $rc
