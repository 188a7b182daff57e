#!/usr/bin/env bash
# MLX: mx.load of a GGUF file ends at the first tensor of a type that it does not know, such as MXFP4, and gives those before it, without an error: the experts of a gpt-oss and all after them are not there. It turns BF16 into float16, where 1e5 is infinite.
# Needs python3 (3.11 or later), about 400 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir "mlx[cpu]==0.32.4" gguf==0.19.0 numpy==2.4.6
export TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, tempfile, warnings
from importlib.metadata import version
import gguf, mlx.core as mx, numpy as np

mx.set_default_device(mx.cpu)
print(*(f"{p} {version(p)}" for p in ("mlx", "gguf")))
T, path, bad = gguf.GGMLQuantizationType, tempfile.mkdtemp(), []
x = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)
large = np.concatenate([np.full((4, 1), 1e5, np.float32), x[:, 1:]], 1)
KINDS = {"attention": T.Q8_0, "norm": T.BF16, "router": T.F32, "experts.up": T.MXFP4, "experts.gate": T.Q8_0, "output": T.F32}

def written(kinds):
    w = gguf.GGUFWriter(path + "/model.gguf", "gpt-oss")
    for name, kind in kinds.items():
        w.add_tensor(name + ".weight", gguf.quants.quantize(large if kind in (T.F32, T.BF16) else x, kind), raw_dtype=kind)
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
    return gguf.GGUFReader(path + "/model.gguf").tensors

with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for unknown in (T.MXFP4, T.TQ1_0, T.TQ2_0, None):
        tensors = written({n: k if k != T.MXFP4 else unknown or T.Q4_0 for n, k in KINDS.items()})
        got = mx.load(path + "/model.gguf")
        there = [t.name in got for t in tensors]
        print(f"GGUF of {', '.join(f'{t.name} {t.tensor_type.name}' for t in tensors)}: mx.load gives {', '.join(t.name for t, g in zip(tensors, there) if g)}")
        bad += [there != ([True] * 3 + [False] * 3 if unknown else [True] * 6)]
value = gguf.quants.dequantize(tensors[1].data, tensors[1].tensor_type)[0, 0]
print(f"BF16 is given as {got['norm.weight'].dtype}: {value:g} by the gguf package is {got['norm.weight'][0, 0].item():g}; warnings {len(said)}")
bad += [got["router.weight"][0, 0].item() != 1e5, got["norm.weight"].dtype != mx.float16, not np.isinf(got["norm.weight"][0, 0].item()), bool(said)]
sys.exit(any(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
