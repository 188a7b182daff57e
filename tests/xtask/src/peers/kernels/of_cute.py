"""Kernels of vLLM in CuTe DSL: a router of float32 weights on `tcgen05`, and one of few tokens."""

import os
import pathlib
import subprocess
import sys

import numpy as np
from ml_dtypes import bfloat16

from harness import Kernel, randn, wide

COMPILE = pathlib.Path(__file__).with_name("cute_compile.py")


def compiled(packages, work, target, *words):
    out = work / "cute"
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.ptx"):
        old.unlink()
    environment = os.environ | dict(CUTE_DSL_ARCH=target, CUTE_DSL_KEEP="ptx", CUTE_DSL_DUMP_DIR=str(out))
    done = subprocess.run([sys.executable, COMPILE, packages, out, *map(str, words)], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    (path,) = out.glob("*.ptx")
    return path.read_text()


def tensor_map(buffer, dtype, rows, columns, row_bytes, box_rows, box_columns):
    return {"tensor_map": {"buffer": buffer, "dtype": dtype, "dims": [columns, rows], "strides_bytes": [row_bytes], "box": [box_columns, box_rows],
                           "element_strides": [1, 1], "swizzle": "128B", "interleave": "none", "oob": "zero"}}


def router(packages, work, target):
    """Logits of 40 tokens and 200 experts, k in two parts: float32 weights as three bfloat16 terms, multiplied from tensor memory."""
    t, e, k = 40, 200, 640
    x, w = randn(41, t, k, dtype=bfloat16), randn(42, e, k, scale=k**-0.5)
    tiles = np.arange(k) // 64 % 2
    parts = np.stack([wide(x)[:, tiles == i] @ wide(w)[:, tiles == i].T for i in range(2)])
    params = [tensor_map("x", "bf16", t, k, 2 * k, 32, 64), tensor_map("w", "f32", e, k, 4 * k, 128, 32), {"buffer": "out"}]
    shared = 2 * (32 * 64 * 2 + 128 * 64 * 4) + 128
    ptx = compiled(packages, work, target, "router", t, e, k)
    return Kernel(ptx, [2, 2, 2], [320], params, dict(x=x, w=w, out=np.zeros((2, t, e), np.float32)), dict(out=(parts, 1e-6)), shared)


def dot_product(packages, work, target):
    t, n, k = 3, 50, 2100
    a, b = randn(43, t, k, dtype=bfloat16), randn(44, n, k, dtype=bfloat16)
    ptx = compiled(packages, work, target, "dot_product", t, n, k)
    return Kernel(ptx, [n], [128], [{"buffer": name} for name in ("a", "b", "out")], dict(a=a, b=b, out=np.zeros((t, n), np.float32)),
                  dict(out=(wide(a) @ wide(b).T, 1e-6)), 64)


def kernels(packages, work):
    for name, what, make, targets in [("Sm100BF16x3RouterGemm", "router, CuTe DSL", router, ("sm_100a", "sm_103a")),
                                      ("LLBf16Dotprod", "router of few tokens, CuTe DSL", dot_product, ("sm_90a", "sm_100a", "sm_120a"))]:
        for target in targets:
            yield "vllm", name, what, target, lambda make=make, target=target: make(packages, work, target)
