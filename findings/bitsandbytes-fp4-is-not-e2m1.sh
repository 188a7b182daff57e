#!/usr/bin/env bash
# bitsandbytes: its fp4 is not E2M1: the codes stand in another order, and the smallest value is 1/192 of the largest, not 1/12, so that E2M1 weights do not survive it. The first of two codes is in the high half of a byte, and blocks of 64 run on from row to row, also in NF4.
# Needs python3 (3.11 or later), about 6 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir bitsandbytes==0.50.2 torch==2.15.0 ml_dtypes==0.6.0 numpy==2.4.6
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys
import ml_dtypes, numpy as np, torch
from importlib.metadata import version
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

print("bitsandbytes", version("bitsandbytes"), "torch", torch.__version__)
bad = []
e2m1 = torch.from_numpy(np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32))
w = e2m1.repeat(4, 4).contiguous()  # four rows of all values of E2M1, so that the largest of a block is 6
packed, state = quantize_4bit(w, blocksize=64, quant_type="fp4")
own, back = state.code.float().cpu(), dequantize_4bit(packed, state)
show = lambda t: " ".join(f"{v:.4g}" for v in t)
print("values of codes 0 to 7, over the largest: fp4 of bitsandbytes", show(own[:8]), "; E2M1", show(e2m1[:8] / 6))
print("weights that E2M1 holds exactly, 0 to 6:", show(w[0, :8]), "; after fp4:", show(back[0, :8]))
bad += [torch.equal(own, e2m1 / 6), not torch.equal(torch.sort(own[:8]).values[2:], torch.sort(e2m1[:8] / 6).values[2:]), abs(1 / own[own > 0].min().item() - 192) > 1, torch.equal(back, w)]
# What a reader of E2M1 makes of the bytes, in the best of both orders of the halves.
high, low = packed.flatten() >> 4, packed.flatten() & 15
scale = state.absmax.repeat_interleave(64)
def far(values, first, second):
    v = values[torch.stack([first, second], 1).flatten().long()] * scale
    return ((v - w.flatten()).norm() / w.norm()).item()
for name, values in (("bitsandbytes' values", own), ("E2M1 over 6", e2m1 / 6)):
    d = far(values, high, low), far(values, low, high)
    print(f"distance from the weights with {name}: high half first {d[0]:.3f}, low half first {d[1]:.3f}")
    bad += [not (d[0] < .1 < d[1]) if values is own else min(d) < .3]
# Rows of 96 inputs, of which the first is 100 times as large.
rows = torch.ones(4, 96)
rows[0] *= 100
for kind in ("fp4", "nf4"):
    _, state = quantize_4bit(rows, blocksize=64, quant_type=kind)
    print(f"{kind} of 4 rows of 96, the first 100 times as large: scales of the blocks {show(state.absmax)}")
    bad += [state.absmax.tolist() != [100, 100, 1, 1, 1, 1]]
sys.exit(any(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
