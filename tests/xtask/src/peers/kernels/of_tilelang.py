"""Kernels of SGLang in TileLang, lowered to CUDA C++ in an environment of their own (TileLang brings PyTorch), compiled by nvcc."""

import json
import pathlib
import subprocess

import numpy as np
from ml_dtypes import bfloat16, float8_e4m3fn

from harness import Kernel, randn, wide
from of_cuda import nvcc

LOWER = pathlib.Path(__file__).with_name("tile_compile.py")
TARGETS = ("sm_80", "sm_90a", "sm_100a", "sm_120a")


def lowered(packages, work, target, module, factory, **arguments):
    """PTX, the names of the arguments in their order, and bytes of shared memory."""
    home = work.parent / "tilelang"
    source = work / "tilelang.cu"
    command = [home / "bin/python", LOWER, packages / module, factory, target, source, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    words = done.stdout.splitlines()[-1].split(", ")
    (package,) = home.glob("lib/python3*/site-packages/tilelang")
    ptx = nvcc(source.read_text(), target, work / "nvcc", package / "src", package / "3rdparty/cutlass/include")
    return ptx, words, int(words[-1])


def quantise(packages, work, target):
    """Rows to fp8 codes, a scale for each 128 elements; 37 rows in blocks of 32."""
    m, n = 37, 512
    x = randn(51, m, n, dtype=bfloat16)
    groups = x.astype(np.float32).reshape(m, n // 128, 128)
    scale = np.maximum(np.abs(groups).max(2), np.float32(1e-4)) * np.float32(1 / 448)
    codes = np.clip(groups / scale[..., None], -448, 448).astype(float8_e4m3fn).reshape(m, n)
    ptx, words, shared = lowered(packages, work, target, "sglang/kernels/ops/quantization/act_quant_tilelang.py", "act_quant_kernel", N=n)
    buffers = dict(X=x, Y=np.zeros((m, n), float8_e4m3fn), S=np.zeros((m, n // 128), np.float32))
    params = [{"buffer": word} if word in buffers else {"i32": m} for word in words[:4]]
    return Kernel(ptx, [2, 4], [128], params, buffers, dict(Y=(codes, 0), S=(scale, 0)), shared)


def attention(packages, work, target):
    """Three queries of 64 heads over 128 chosen places of 150: latent attention, values are the first 128 of 192 elements."""
    heads, dim, tail, top_k, queries, places = 64, 128, 64, 128, 3, 150
    q, kv = randn(52, 1, queries, heads, dim + tail, dtype=bfloat16), randn(53, 1, places, 1, dim + tail, dtype=bfloat16)
    g = np.random.default_rng(54)
    indices = np.stack([g.permutation(places)[:top_k] for _ in range(queries)]).astype(np.int32).reshape(1, queries, 1, top_k)
    scores = np.einsum("shd,std->sht", wide(q[0]), wide(kv[0, :, 0])[indices[0, :, 0]]) / (dim + tail) ** 0.5
    p = np.exp(scores - scores.max(2, keepdims=True))
    out = np.einsum("sht,std->shd", p / p.sum(2, keepdims=True), wide(kv[0, :, 0, :dim])[indices[0, :, 0]])
    module = "sglang/kernels/ops/attention/dsa/tilelang_kernel.py"
    ptx, words, shared = lowered(packages, work, target, module, "sparse_attention_fwd_kernel_v1", num_heads=heads, dim=dim, tail_dim=tail, topk=top_k)
    buffers = dict(Q=q, KV=kv, Indices=indices, Output=np.zeros((1, queries, heads, dim), bfloat16))
    sizes = dict(batch=1, seq_len=queries, seq_len_kv=places)
    # On Hopper the second of two blocks of places is copied by `cp.async` and multiplied by `wgmma` with no fence of proxies between.
    findings = ("proxy",) if target == "sm_90a" else ()
    params = [{"buffer": word} if word in buffers else {"i32": sizes[word]} for word in words[:7]]
    return Kernel(ptx, [queries, 1, 1], [256], params, buffers, dict(Output=(out[None].astype(bfloat16), 6e-3)), shared, findings=findings)


def kernels(packages, work):
    for name, what, make in [("act_quant_kernel", "fp8 codes, TileLang", quantise), ("sparse_attention_fwd_kernel_v1", "sparse attention, TileLang", attention)]:
        for target in TARGETS:
            yield "sglang", name, what, target, lambda make=make, target=target: make(packages, work, target)
