#!/usr/bin/env bash
# FP4: one matrix of 6 by 64 values is [6, 32] in PyTorch, [6, 64] in the header of the safetensors file that it writes, where get_slice then fails on every axis, and [6, 64] with nbytes of twice its memory in JAX. As DLPack it is pairs or single values: neither of the two takes the other's, TVM-FFI takes both in different shapes.
# Needs python3 (3.11 or later), about 6 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 safetensors==0.8.0 jax==0.10.2 jaxlib==0.10.2 apache-tvm-ffi==0.1.15.post2 ml_dtypes==0.6.0 numpy==2.4.6
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= JAX_PLATFORMS=cpu TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import ctypes, json, struct, sys, tempfile
from importlib.metadata import version
import jax, jax.numpy as jnp, numpy as np, torch, tvm_ffi
from safetensors import safe_open
from safetensors.torch import save_file

print(*(f"{p} {version(p)}" for p in ("torch", "safetensors", "jax", "apache-tvm-ffi")))
bad = []
codes = np.random.default_rng(1).integers(0, 16, (6, 64)).astype(np.uint8)
packed = torch.from_numpy(codes[:, ::2] | codes[:, 1::2] << 4)
ours = packed.clone().view(torch.float4_e2m1fn_x2)
theirs = jax.block_until_ready(jax.lax.bitcast_convert_type(jnp.asarray(codes).astype(jnp.uint4), jnp.float4_e2m1fn))

path = tempfile.mkdtemp() + "/model.safetensors"
save_file({"w": ours, "plain": packed}, path)
data = open(path, "rb").read()
header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
with safe_open(path, "pt") as f:
    s, whole = f.get_slice("w"), f.get_tensor("w")
    print(f"PyTorch: {list(ours.shape)}; safetensors: header {header['w']['dtype']} {header['w']['shape']}, get_slice().get_shape() {s.get_shape()}, get_tensor() {list(whole.shape)}")
    bad += [header["w"]["shape"] != [6, 64], s.get_shape() != [6, 64], list(whole.shape) != [6, 32], not torch.equal(whole.view(torch.uint8), packed)]
    for name, part in (("[:3]", np.s_[:3]), ("[:, :16]", np.s_[:, :16])):
        try:
            bad += [bool(s[part].shape)]
        except Exception as e:
            print(f"get_slice()[{name[1:-1]}] of FP4: {type(e).__name__}: {e}; of the same bytes as uint8: {list(f.get_slice('plain')[part].shape)}")

held = ctypes.string_at(theirs.unsafe_buffer_pointer(), packed.numel()) == packed.numpy().tobytes()
print(f"JAX: {list(theirs.shape)}, nbytes {theirs.nbytes}, on_device_size_in_bytes {theirs.on_device_size_in_bytes()}; its memory is PyTorch's {packed.numel()} bytes, two values in each: {held}")
bad += [theirs.nbytes != 384, not held]
for name, take, x in (("PyTorch takes JAX's", torch.from_dlpack, theirs), ("JAX takes PyTorch's", jax.dlpack.from_dlpack, ours)):
    try:
        take(x)
        bad += [True]
    except Exception as e:
        print(f"DLPack, {name}: {type(e).__name__}: {str(e).splitlines()[0]}")
seen = {}
for name, x in (("PyTorch", ours), ("JAX", theirs)):
    v = tvm_ffi.from_dlpack(x)
    seen[name] = str(v.dtype), tuple(v.shape)
    print(f"DLPack, TVM-FFI takes {name}'s: {v.dtype} {list(v.shape)}")
bad += [seen != {"PyTorch": ("float4_e2m1fnx2", (6, 32)), "JAX": ("float4_e2m1fn", (6, 64))}]
sys.exit(any(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
