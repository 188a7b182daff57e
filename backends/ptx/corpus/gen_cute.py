"""Inputs and expected values of kernels_cute.py: matrix products in CuTe DSL; used by gen.py.

The compiler runs in a process of its own, since it reads its target and where PTX goes from the environment at import. It needs no GPU: tensors
are given by shape, type and order of dimensions alone.
"""
import glob, os, re, subprocess, sys, tempfile

import numpy as np

from gen import ARCH, BF, F16, F32, HERE, f32, ptx_entries, rng, write_entry
from gen_inference import randn

TYPES = {"bf16": ("BFloat16", BF), "f16": ("Float16", F16)}
COMPILE = """
import sys
import cutlass
import cutlass.cute as cute
from cutlass.cute.runtime import make_fake_compact_tensor
import kernels_cute
name, dtype, m, n, k = sys.argv[1], getattr(cutlass, sys.argv[2]), *map(int, sys.argv[3:])
tensor = lambda dtype, *shape: make_fake_compact_tensor(dtype, shape, stride_order=(1, 0), assumed_align=16)
cute.compile(getattr(kernels_cute, name), tensor(dtype, m, k), tensor(dtype, n, k), tensor(cutlass.Float32, m, n))
"""


def compiled(c, cc):
    with tempfile.TemporaryDirectory() as d:
        env = dict(os.environ, CUTE_DSL_ARCH=ARCH[cc], CUTE_DSL_KEEP="ptx", CUTE_DSL_DUMP_DIR=d, PYTHONPATH=HERE)
        r = subprocess.run([sys.executable, "-c", COMPILE, c["kernel"], c["dtype"], *map(str, c["shape"])], env=env, capture_output=True, text=True)
        if r.returncode:
            raise RuntimeError(r.stderr[-700:])
        (path,) = glob.glob(d + "/*.ptx")
        ptx = open(path).read().rstrip("\0")
    # The compiler's names spell out the types of all arguments.
    (entry,) = ptx_entries(ptx)
    return ptx.replace(entry, c["kernel"])


def build(c, cc, root):
    ptx = compiled(c, cc)
    launch = {"entry": c["kernel"], "target": re.search(r"\.target\s+(\w+)", ptx).group(1), "grid": c["grid"], "block": [c["threads"], 1, 1],
              "cluster": [1, 1, 1], "dynamic_smem_bytes": c["smem"], "params": c["params"], "outputs": ["c"], "tolerance": {"c": {"rel_fro": 1e-5}}}
    return write_entry(root, f"cute_{c['name']}_sm{cc}", ptx, launch, c["bufs"], c["exp"], "cute", "high", c["note"])


def cases():
    out = []

    def case(name, kernel, dtype, shape, cc, threads, note):
        m, n, k = shape
        dsl, numpy_type = TYPES[dtype]
        g = rng("cute_" + name)
        a, b = randn(g, m, k, dt=numpy_type), randn(g, n, k, dt=numpy_type)
        c = (f32(a).astype(float) @ f32(b).astype(float).T).astype(F32)
        box = lambda buffer, rows: {"tensor_map": {"buffer": buffer, "dtype": dtype, "dims": [k, rows], "strides_bytes": [2 * k], "box": [64, 128],
                                                   "element_strides": [1, 1], "swizzle": "128B", "interleave": "none", "oob": "zero"}}
        out.append(dict(name=name, kernel=kernel, dtype=dsl, shape=shape, targets=(cc,), grid=[m // 128, n // 128, 1], threads=threads,
                        smem=2 * 2 * 128 * 64 * 2 + 1024, params=[box("a", m), box("b", n), {"buffer": "c"}],
                        bufs=dict(a=a, b=b, c=np.zeros((m, n), F32)), exp=dict(c=c), note=note))

    case("tcgen05_bf16", "tcgen05_matmul", "bf16", (256, 128, 320), 100, 128, "TMA, tcgen05.mma and tcgen05.ld; a warp that loads, a warp that multiplies")
    case("wgmma_f16", "wgmma_matmul", "f16", (256, 128, 320), 90, 256, "TMA and wgmma, two warpgroups side by side")
    return out
