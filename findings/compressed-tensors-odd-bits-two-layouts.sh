#!/usr/bin/env bash
# compressed-tensors: pack-quantized of 3, 5, 6 and 7 bits has another layout from one release to a later one, under the same format name.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir compressed-tensors==0.17.1 transformers==5.17.0 torch==2.14.0 accelerate==1.15.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, torch
from importlib.metadata import version
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
print("compressed-tensors", version("compressed-tensors"))
new = version("compressed-tensors") >= "0.19"
bad = 0
for bits in (3, 4, 5, 6, 7):
    x = torch.randint(-2 ** (bits - 1), 2 ** (bits - 1), (2, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    p = pack_to_int32(x, bits)
    per = 32 // bits
    want = -(-64 * bits // 32) if new else -(-64 // per)
    u = (p.long() & 0xFFFFFFFF)[..., None]
    padded = ((u >> bits * torch.arange(per)) & (2 ** bits - 1)).flatten(1)[:, :64]
    bit = ((u >> torch.arange(32)) & 1).flatten(1)
    dense = (bit[:, :64 * bits].reshape(2, 64, bits) << torch.arange(bits)).sum(-1) if bit.shape[1] >= 64 * bits else padded
    same = lambda c: c.shape == x.shape and torch.equal(c, x + 2 ** (bits - 1))
    print(f"{bits} bits, 64 codes: {p.shape[1]} words; whole codes in each word: {same(padded)}; codes run on across words: {same(dense) and not (same(padded) and 32 % bits)}")
    bad += p.shape[1] != want or (32 % bits and same(padded) == new)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py"
"$dir/venv/bin/pip" install --quiet --no-cache-dir compressed-tensors==0.19.0
"$dir/venv/bin/python" "$dir/check.py"
