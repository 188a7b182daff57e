#!/usr/bin/env bash
# PyTorch: on a CPU, rows after the last offset of grouped_mm are memory that nobody wrote, in the result and in the gradient of the input, so that a weight of 0 for padding still gives NaN; JAX's ragged_dot gives 0 there.
# Needs python3 (3.11 or later), about 6 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= JAX_PLATFORMS=cpu TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys
import jax, jax.numpy as jnp, numpy as np, torch
from torch.nn.functional import grouped_mm

# PyTorch's own way to see memory that an operator left as it was: it fills it with NaN first.
torch.use_deterministic_algorithms(True)
torch.utils.deterministic.fill_uninitialized_memory = True
print("torch", torch.__version__, "jax", jax.__version__)
T, H, N = 16, 32, 24
g = torch.Generator().manual_seed(1)
x, w = torch.randn(T, H, generator=g), torch.randn(3, H, N, generator=g)
rows = lambda y: [i for i, r in enumerate(torch.isnan(y).any(-1).tolist()) if r]
tail = list(range(10, T))
bad = 0
for kind in (torch.float32, torch.bfloat16):
    a = x.to(kind, copy=True).requires_grad_()
    b = w.to(kind, copy=True).requires_grad_()
    y = grouped_mm(a, b, offs=torch.tensor([4, 4, 10], dtype=torch.int32))  # 16 rows, of which the last 6 are padding
    weight = (torch.arange(T) < 10).to(kind)[:, None]
    (y * weight).float().sum().backward()
    print(f"{kind}: rows of the result that are not written {rows(y)}, also after a weight of 0 {rows(y * weight)}; of the gradient of the input {rows(a.grad)}; the gradient of the weights has NaN: {bool(torch.isnan(b.grad).any())}")
    bad += rows(y) != tail or rows(y * weight) != tail or rows(a.grad) != tail or bool(torch.isnan(b.grad).any())
other = np.array(jax.lax.ragged_dot(jnp.asarray(x.numpy()), jnp.asarray(w.numpy()), jnp.array([4, 0, 6])))
near = np.abs(other[:10] - grouped_mm(x, w, offs=torch.tensor([4, 4, 10], dtype=torch.int32))[:10].numpy()).max()
print(f"ragged_dot of JAX: the first 10 rows are {near:.1e} from grouped_mm's, the largest of the last 6 is {np.abs(other[10:]).max():g}")
sys.exit(bool(bad) or near > 1e-3 or bool(np.any(other[10:])))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
