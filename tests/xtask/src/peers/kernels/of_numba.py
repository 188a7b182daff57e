"""Kernels that Numba compiles: a reduction that the package carries, and its random numbers."""

import numpy as np
import numba.cuda.dispatcher
from numba import cuda, types
from numba.cuda.kernels.reduction import _gpu_reduce_factory
from numba.cuda.random import init_xoroshiro128p_states_cpu, xoroshiro128p_dtype, xoroshiro128p_type, xoroshiro128p_uniform_float32

from harness import Kernel, randn

CAPABILITIES = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0), "sm_120": (12, 0)}


def array(name, values):
    """An array as Numba's calling convention has it: two owners, items, their size, data, shape, strides."""
    sizes = [values.size, values.itemsize]
    return [{"u64": 0}, {"u64": 0}, *({"i64": s} for s in sizes), {"buffer": name}, *({"i64": s} for s in values.shape + values.strides)]


class Device:
    """In the place of a GPU, which device functions ask for its compute capability."""

    def __init__(self, capability):
        self.compute_capability = capability


def ptx(function, signature, target):
    numba.cuda.dispatcher.get_current_device = lambda: Device(CAPABILITIES[target])
    text, _ = cuda.compile_ptx(function, signature, device=False, cc=CAPABILITIES[target])
    return text


def reduction(target):
    """The largest of 3000 numbers: four blocks, a partial result each."""
    kernel = _gpu_reduce_factory(lambda a, b: max(a, b), types.float32)
    signature = (types.float32[::1], types.float32[::1], types.float32, types.boolean)
    x, partials = randn(31, 3000), np.zeros(4, np.float32)
    want = np.array([max(x[at : at + 128].max() for at in range(128 * b, 3000, 512)) for b in range(4)], np.float32)
    params = [*array("x", x), *array("partials", partials), {"f32": 0.0}, {"u8": 0}]
    return Kernel(ptx(kernel.py_func, signature, target), [4], [128], params, dict(x=x, partials=partials), dict(partials=(want, 0)))


def uniform(states, out, n):
    i = cuda.grid(1)
    if i < out.shape[0]:
        total = np.float32(0)
        for _ in range(n):
            total += xoroshiro128p_uniform_float32(states, i)
        out[i] = total


def random(target):
    """Sums of three random numbers of each of 100 generators."""
    states = np.empty(100, xoroshiro128p_dtype)
    init_xoroshiro128p_states_cpu(states, np.uint64(7), np.uint64(0))
    words = np.ascontiguousarray(states).view(np.uint64).reshape(100, 2)
    out = np.zeros(100, np.float32)
    s0, s1 = (words[:, i].copy() for i in range(2))
    turn = lambda x, k: x << np.uint64(k) | x >> np.uint64(64 - k)
    want = np.zeros(100, np.float32)
    for _ in range(3):
        drawn = s0 + s1
        s1 ^= s0
        s0, s1 = turn(s0, 55) ^ s1 ^ s1 << np.uint64(14), turn(s1, 36)
        want += ((drawn >> np.uint64(11)) * (1.0 / (1 << 53))).astype(np.float32)
    signature = (xoroshiro128p_type[::1], types.float32[::1], types.int32)
    params = [*array("states", states), *array("out", out), {"i32": 3}]
    return Kernel(ptx(uniform, signature, target), [4], [32], params, dict(states=words, out=out), dict(out=(want, 0), states=(np.stack([s0, s1], 1), 0)))


def kernels(packages, work):
    for name, what, make in [("gpu_reduce_block_strided", "largest", reduction), ("xoroshiro128p", "random numbers", random)]:
        for target in CAPABILITIES:
            yield "numba-cuda", name, what, target, lambda make=make, target=target: make(target)
