#!/usr/bin/env bash
# JAX: under jit, bfloat16 logits of a router are not rounded before their softmax, so that tokens go to other experts than without jit. A cast to bfloat16 and back and optimization_barrier do not bring the rounding back; lax.reduce_precision does.
# Needs python3 (3.11 or later), about 600 MB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 ml_dtypes==0.6.0
export JAX_PLATFORMS=cpu TMPDIR="$dir"; unset XLA_FLAGS
cat > "$dir/check.py" <<'PY'
import sys
import jax, jax.numpy as jnp, ml_dtypes, numpy as np

T, H, E, K = 4096, 256, 128, 8
rng = np.random.default_rng(1)
x, w = rng.standard_normal((T, H)).astype(ml_dtypes.bfloat16), (rng.standard_normal((H, E)) / 16).astype(ml_dtypes.bfloat16)

def top(logits):
    return jax.lax.top_k(jax.nn.softmax(logits.astype(jnp.float32), -1), K)[1]

WAYS = {  # x and w are bfloat16, and so is x @ w
    "x @ w": lambda x, w: top(x @ w),
    "a product in float32, then a cast to bfloat16": lambda x, w: top((x.astype(jnp.float32) @ w.astype(jnp.float32)).astype(jnp.bfloat16)),
    "optimization_barrier(x @ w)": lambda x, w: top(jax.lax.optimization_barrier(x @ w)),
    "reduce_precision(x @ w)": lambda x, w: top(jax.lax.reduce_precision(x @ w, 8, 7)),
}
# Without JAX: the experts by the exact logits, and by these in bfloat16; of equal ones the lower index, which is top_k's rule.
exact = x.astype(np.float64) @ w.astype(np.float64)
experts = lambda logits: np.sort(np.argsort(-logits, -1, kind="stable")[:, :K], -1)
kept, rounded = experts(exact), experts(exact.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64))
apart = lambda a, b: float((np.sort(np.array(a), -1) != b).any(-1).mean())
print("jax", jax.__version__, "on", jax.devices()[0].platform, f"{T} tokens, top {K} of {E} experts; rounding the logits gives {apart(kept, rounded):.1%} of the tokens other experts")
bad = 0
for name, route in WAYS.items():
    shares = {}
    for how, f in (("without jit", route), ("with jit", jax.jit(route))):
        got = f(jnp.asarray(x), jnp.asarray(w))
        shares[how] = apart(got, rounded), apart(got, kept)
        print(f"{name}, {how}: {shares[how][0]:.1%} of the tokens get other experts than by rounded logits, {shares[how][1]:.1%} than by unrounded ones")
    bad += shares["without jit"][0] > .005 or (shares["with jit"][0] > .02) != (not name.startswith("reduce")) or (shares["with jit"][1] < .005) != (not name.startswith("reduce"))
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
