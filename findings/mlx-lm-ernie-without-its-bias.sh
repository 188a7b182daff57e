#!/usr/bin/env bash
# mlx-lm: it drops the e_score_correction_bias of an ERNIE 4.5 checkpoint while loading, so tokens go to other experts; the biases of GLM-4.5 are kept. Nothing is said, and strict loading passes.
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
SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=48, moe_intermediate_size=24,
             pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
CASES = {
    "ernie4_5_moe": dict(SMALL, moe_num_experts=16, moe_k=4, moe_layer_start_index=0, moe_layer_end_index=1, moe_num_shared_experts=1, moe_use_aux_free=True, use_bias=False),
    "glm4_moe": dict(SMALL, n_routed_experts=16, num_experts_per_tok=4, n_group=1, topk_group=1, n_shared_experts=1, first_k_dense_replace=0, use_qk_norm=False, attention_bias=False),
}
ids = np.random.default_rng(1).integers(3, 64, (1, 64))
far = lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b))
found = {}
for kind, sizes in CASES.items():
    torch.manual_seed(1)
    m = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.float32).eval()
    for n, p in m.named_parameters():
        if p.dim() > 1:
            p.data = torch.randn(p.shape) * .2
    biases = [t for n, t in m.state_dict().items() if n.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    for t in biases:
        t.copy_(torch.randn(t.shape) * .05)
    out = pathlib.Path(tempfile.mkdtemp())
    m.save_pretrained(out)
    config = json.load(open(out / "config.json"))
    rope = config["rope_parameters"]  # as the published configs of both have it
    json.dump(config | dict(rope_theta=rope["rope_theta"], rope_scaling=None, partial_rotary_factor=rope.get("partial_rotary_factor", 1.)), open(out / "config.json", "w"))
    logits = lambda: m(torch.tensor(ids), use_cache=False).logits.numpy()
    with torch.no_grad():
        own = logits()
        for t in biases:
            t.zero_()
        without = logits()
    got = np.array(load_model(out, strict=True)[0](mx.array(ids)).astype(mx.float32))
    found[kind] = far(got, own), far(got, without)
    print(f"{kind}: mlx-lm's logits are {found[kind][0]:.1e} from transformers', {found[kind][1]:.1e} from transformers' with the bias set to 0")
sys.exit(not (found["ernie4_5_moe"][0] > .05 and found["ernie4_5_moe"][1] < 1e-4 and found["glm4_moe"][0] < 1e-4 and found["glm4_moe"][1] > .05))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" && rc=0 || rc=$?; [ $rc = 0 ] || tail -5 "$dir/err"; exit $rc
