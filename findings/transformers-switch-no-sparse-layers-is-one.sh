#!/usr/bin/env bash
# transformers: Switch Transformers with `num_sparse_encoder_layers=0` has a sparse layer: the second.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir transformers==5.24.0 torch==2.15.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, transformers
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration as Model

def sparse(asked):
    c = SwitchTransformersConfig(vocab_size=32, d_model=16, d_ff=8, d_kv=8, num_heads=2, num_layers=12, num_decoder_layers=12,
                                 num_experts=4, num_sparse_encoder_layers=asked, num_sparse_decoder_layers=asked)
    return [i for i, b in enumerate(Model(c).encoder.block) if b.layer[-1].is_sparse]

print("transformers", transformers.__version__)
found = {asked: sparse(asked) for asked in (0, 1, 3, 5)}
for asked, layers in found.items():
    print(f"of 12 layers, num_sparse_encoder_layers={asked}: {len(layers)} sparse: {layers}")
sys.exit(found != {0: [1], 1: [1], 3: [1, 5, 9], 5: [1, 3, 5, 7, 9, 11]})
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
