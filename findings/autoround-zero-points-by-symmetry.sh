#!/usr/bin/env bash
# AutoRound: auto_round and auto_round:auto_gptq store zero points less one when symmetric and as they are when not; packing_format in the config tells.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir auto-round==0.16.1 transformers==5.24.0 torch==2.15.0 safetensors accelerate==1.15.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import glob, json, sys, tempfile, torch
from importlib.metadata import version

def main():
    from safetensors.torch import load_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
    c = AutoConfig.for_model("qwen3", vocab_size=32, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96,
                             pad_token_id=0, bos_token_id=1, eos_token_id=2)
    src = tempfile.mkdtemp()
    m = AutoModelForCausalLM.from_config(c, dtype=torch.bfloat16)
    m.save_pretrained(src)
    w = m.model.layers[0].mlp.up_proj.weight.detach().float()
    k = Tokenizer(models.WordLevel({f"t{i}": i for i in range(32)}, unk_token="t3"))
    k.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=k, unk_token="t3", eos_token="t2", pad_token="t0", bos_token="t1").save_pretrained(src)
    from auto_round import AutoRound
    print("auto-round", version("auto-round"))
    data = [torch.randint(0, 32, (1, 16)) for _ in range(8)]
    bad = 0
    for fmt in ("auto_round", "auto_round:auto_gptq", "auto_round:gptqmodel"):
        for sym in (True, False):
            out = tempfile.mkdtemp()
            AutoRound(src, scheme="W4A16", group_size=32, sym=sym, iters=0, device_map="cpu", seqlen=16, nsamples=8, batch_size=1, dataset=data,
                      disable_opt_rtn=True).quantize_and_save(output_dir=out, format=fmt)
            t = {}
            for f in glob.glob(out + "/**/*.safetensors", recursive=True):
                t |= load_file(f)
            q = json.load(open(glob.glob(out + "/**/config.json", recursive=True)[0]))["quantization_config"]
            b = next(n for n in t if n.endswith("up_proj.qweight")).removesuffix("qweight")
            nib = lambda x: (x.long() & 0xFFFFFFFF)[..., None] >> 4 * torch.arange(8) & 15
            code, zero = nib(t[b + "qweight"].T).flatten(1).T, nib(t[b + "qzeros"]).flatten(1)
            far = {}
            for add in (0, 1):
                v = ((code - zero.repeat_interleave(32, 0) - add) * t[b + "scales"].float().repeat_interleave(32, 0)).T
                far[add] = ((v - w).norm() / w.norm()).item()
            print(f"{fmt}, sym={sym}: packing_format {q.get('packing_format')}; distance with zero points as stored {far[0]:.3f}, with one added {far[1]:.3f}", flush=True)
            want = 1 if fmt != "auto_round:gptqmodel" and sym else 0
            bad += not (far[want] < .2 < far[1 - want])
    sys.exit(bool(bad))

if __name__ == "__main__":
    main()
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" > "$dir/out" && rc=0 || rc=$?; grep -a "^auto-round\|^auto_round" "$dir/out" || true; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
