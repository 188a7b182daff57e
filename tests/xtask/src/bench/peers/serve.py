"""What peers in Python have in common: they keep a layer, and answer as `turns.py` says."""

import resource
import sys
import time
from pathlib import Path

import numpy as np

from weights import FORMATS, Layer


def arguments() -> tuple[str, Layer, int, Path, list[str]]:
    """FORMAT E K H I OAI SCALE THREADS FOLDER …"""
    name, experts, top_k, hidden, ffn, oai, scale, threads, folder, *more = sys.argv[1:]
    layer = Layer(int(experts), int(top_k), int(hidden), int(ffn), oai == "1", float(scale))
    return name, layer, int(threads), Path(folder), more


def read(folder: Path, name: str, dtype, cols: int) -> np.ndarray:
    return np.fromfile(folder / name, dtype).reshape(-1, cols)


def floats(folder: Path, name: str, form: str, cols: int) -> np.ndarray:
    """A matrix or bias as float32; all that is not in float32 lies in bfloat16."""
    if form == "f32":
        return read(folder, name, np.float32, cols)
    return (read(folder, name, np.uint16, cols).astype(np.uint32) << 16).view(np.float32)


def by_expert(base: np.ndarray, n_experts: int) -> np.ndarray:
    """The arrays of all experts: expert `e` has the rows moved up by `e`."""
    out = np.empty((n_experts, *base.shape), base.dtype)
    for e in range(n_experts):
        out[e] = np.roll(base, -e, 0)
    return out


def biases(folder: Path, layer: Layer, form: str) -> dict[str, np.ndarray]:
    """f32[E, N] of each matrix, of layers that have them."""
    if not layer.oai:
        return {}
    return {m: by_expert(floats(folder, f"{m}_bias", form, 1), layer.experts)[..., 0] for m, _, _ in layer.matrices()}


def serve(layer: Layer, threads: int, prepare, run, finish) -> None:
    """Answers. Of `prepare(tokens, logits, ids, weights)`, `run(*prepared)` and `finish(out)`, which gives `f32[T, H]`, only `run` is timed."""
    print("ready", flush=True)
    for line in sys.stdin:
        n_tokens, inputs, result = line.split()
        shapes = [(layer.hidden, "<f4"), (layer.experts, "<f4"), (layer.top_k, "<i4"), (layer.top_k, "<f4")]
        parts, rest = [], Path(inputs).read_bytes()
        for cols, dtype in shapes:
            n = 4 * int(n_tokens) * cols
            parts.append(np.frombuffer(rest[:n], dtype).reshape(-1, cols).copy())
            rest = rest[n:]
        prepared = prepare(*parts)
        cpu, start = processor(), time.perf_counter()
        out = run(*prepared)
        wall, cpu = time.perf_counter() - start, processor() - cpu
        if result != "-":
            np.asarray(finish(out), np.float32).tofile(result)
        print(f"{wall:.9f} {cpu / threads:.9f}", flush=True)


def processor() -> float:
    """Seconds of the processor that this process took, all its threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
