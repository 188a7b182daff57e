#!/usr/bin/env bash
# JAX: beside an int4 array the number 8 is -8, without an error, so that codes < 8 is false for every code, codes + 8 is codes - 8 and maximum(codes, 8) is codes; so are int8 and 128. NumPy with ml_dtypes computes in int8, compares int8 with 128 as it should, and refuses to add them. Of floats, jnp.asarray(x, dtype=int4) and jnp.array wrap where x is NumPy's, so that 8 becomes -8, and x.astype(int4) saturates, so that it becomes 7.
# Needs python3 (3.11 or later), about 700 MB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= JAX_PLATFORMS=cpu TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys
from importlib.metadata import version
import jax, jax.numpy as jnp, ml_dtypes, numpy as np

print(*(f"{p} {version(p)}" for p in ("jax", "numpy", "ml_dtypes")))
bad = 0

def expect(what, got, wanted):
    global bad
    got = got if isinstance(got, str) else np.asarray(got).astype(np.int32).tolist()
    print(f"  {what}: {got}")
    bad += got != wanted

def or_error(run):
    try:
        return run()
    except OverflowError:
        return "OverflowError"

codes = np.arange(-8, 8, 5).astype(ml_dtypes.int4)
every = [-8, -3, 2, 7]
assert codes.astype(int).tolist() == every
for name, a, x in (("numpy", codes, np), ("jax", jnp.asarray(codes), jnp), ("jax, jit", jnp.asarray(codes), None)):
    wrap = jax.jit if x is None else lambda f: f
    x, is_jax = x or jnp, name != "numpy"
    print(f"{name}, int4 {every}")
    expect("codes < 8", wrap(lambda a: a < 8)(a), [0, 0, 0, 0] if is_jax else [1, 1, 1, 1])
    expect("codes + 8", wrap(lambda a: a + 8)(a), [0, 5, -6, -1] if is_jax else [0, 5, 10, 15])
    expect("maximum(codes, 8)", wrap(lambda a: x.maximum(a, 8))(a), every if is_jax else [8, 8, 8, 8])
    expect("codes & 15", wrap(lambda a: a & 15)(a), every if is_jax else [8, 13, 2, 7])
small = np.array([-128, 127], np.int8)
print(f"int8 {small.tolist()}")
expect("numpy, small < 128", or_error(lambda: small < 128), [1, 1])
expect("numpy, small + 128", or_error(lambda: small + 128), "OverflowError")
expect("jax, small < 128", or_error(lambda: jnp.asarray(small) < 128), [0, 0])
expect("jax, small + 128", or_error(lambda: jnp.asarray(small) + 128), [0, -1])

floats = np.array([6.9, 7.9, 8, 9, -9, 100], np.float32)
print(f"of floats {floats.tolist()}")
for dtype, wrapped, cut in ((jnp.int4, [6, 7, -8, -7, 7, 4], [6, 7, 7, 7, -8, 7]), (jnp.uint4, [6, 7, 8, 9, 7, 4], [6, 7, 8, 9, 0, 15])):
    name = np.dtype(dtype).name
    expect(f"numpy, x.astype({name})", floats.astype(dtype), wrapped)
    expect(f"jnp.asarray(x, dtype={name})", jnp.asarray(floats, dtype=dtype), wrapped)
    expect(f"jnp.array(x, dtype={name})", jnp.array(floats, dtype=dtype), wrapped)
    expect(f"jnp.asarray(x).astype({name})", jnp.asarray(floats).astype(dtype), cut)
    expect(f"jnp.asarray(jnp.asarray(x), dtype={name})", jnp.asarray(jnp.asarray(floats), dtype=dtype), cut)
    expect(f"under jit, jnp.asarray(x, dtype={name})", jax.jit(lambda v: jnp.asarray(v, dtype=dtype))(floats), cut)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
