#!/usr/bin/env bash
# transformers: experts_implementation is accepted and ignored without a word by models whose experts are not under its decorator, such as llama4 and jetmoe.
# Needs python3 (3.10 or later), about 6 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 transformers==5.24.0 numpy
cat > "$dir/check.py" <<'PY'
import sys, tempfile, warnings, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

print("torch", torch.__version__, "transformers", transformers.__version__)
calls = []
own = ALL_EXPERTS_FUNCTIONS["batched_mm"]
ALL_EXPERTS_FUNCTIONS.register("counted", lambda *a, **k: calls.append(1) or own(*a, **k))
SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
             pad_token_id=0, bos_token_id=1, eos_token_id=2)
MIXTRAL = dict(SMALL, intermediate_size=48, num_local_experts=4, num_experts_per_tok=2)
CASES = {
    "mixtral": MIXTRAL,
    "llama4_text": dict(MIXTRAL, intermediate_size_mlp=64, interleave_moe_layer_step=1, layer_types=["full_attention"] * 2, no_rope_layers=[1, 1]),
    "jetmoe": dict(MIXTRAL, kv_channels=16, num_attention_heads=4),
}
found = {}
for kind, sizes in CASES.items():
    config = AutoConfig.for_model(kind, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="counted")
    calls.clear()
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    found[kind] = len(calls)
    about = [str(w.message) for w in said if "experts" in str(w.message)]
    print(f"{kind}: from_pretrained(experts_implementation=\"counted\") called it {len(calls)} times in 2 MoE layers; warnings about experts: {about}")
try:
    AutoModelForCausalLM.from_config(config, experts_implementation="no-such")
    ok = False
except ValueError as e:
    ok = True
    print("an unknown name is refused even there:", str(e)[:70])
sys.exit(not (ok and found == {"mixtral": 2, "llama4_text": 0, "jetmoe": 0}))
PY
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=warning CUDA_VISIBLE_DEVICES= "$dir/venv/bin/python" "$dir/check.py" 2>"$dir/err" || { tail -5 "$dir/err"; exit 1; }
