"""Kernels of Warp's own examples, compiled ahead of time."""

import importlib

import numpy as np

import warp as wp
from harness import Kernel, randn, wide

TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "sm_120": 120}


def array(name, values):
    """An array as Warp passes it: data, gradients, four sizes, four strides, the number of dimensions, a flag."""
    pad = lambda numbers: [*numbers, *[0] * (4 - len(numbers))]
    words = np.array([*pad(values.shape), *pad(values.strides), values.ndim, 0], np.int32)
    return {"bytes": (bytes(16) + words.tobytes()).hex(), "patch": [{"at": 0, "buffer": name}]}


def threads(n):
    """How many threads there are, as Warp passes it: of the one dimension, of all, and those that share a coordinate."""
    return {"bytes": np.array([n, n, 1], np.uint64).tobytes().hex()}


def compiled(work, target, module, kernel):
    wp.config.quiet = True
    out = work / "warp"
    wp.compile_aot_module(importlib.import_module(module), arch=TARGETS[target], module_dir=str(out), use_ptx=True, strip_hash=True)
    (path,) = out.glob(f"*sm{TARGETS[target]}.ptx")
    # Warp's files end with a zero byte.
    return path.read_text().rstrip("\0"), f"{kernel}_cuda_kernel_forward"


def wave(work, target):
    """A step of the wave equation on 17×13 points, whose edges repeat."""
    width, height = 17, 13
    before, now = randn(61, height * width), randn(62, height * width)
    grid = np.pad(wide(now).reshape(height, width), 1, mode="edge")
    centre = grid[1:-1, 1:-1]
    laplacian = grid[1:-1, 2:] + grid[1:-1, :-2] + grid[2:, 1:-1] + grid[:-2, 1:-1] - 4 * centre
    dt, speed, damp, inverse = 0.125, 1.5, 0.25, 2.0
    then = wide(before).reshape(height, width)
    want = 2 * centre - then + dt * dt * (speed * laplacian * inverse**2 - damp * (centre - then))
    ptx, entry = compiled(work, target, "warp.examples.core.example_wave", "wave_solve")
    params = [threads(width * height), array("before", before), array("now", now), {"i32": width}, {"i32": height}]
    params += [{"f32": value} for value in (inverse, speed, damp, dt)]
    return Kernel(ptx, [2], [128], params, dict(before=before, now=now), dict(before=(want.ravel(), 1e-6)), entry=entry)


def kernels(packages, work):
    for target in TARGETS:
        yield "warp-lang", "wave_solve", "wave equation", target, lambda target=target: wave(work, target)
