"""One turn: random tokens and their experts, as a file that every program reads; and how far two results are from each other.

The file has, one after the other, tokens `f32[T, H]` (numbers of bfloat16), logits `f32[T, E]`, the experts that they choose
`i32[T, K]`, and the weights of these `f32[T, K]`.
"""

import math
import random
from array import array
from pathlib import Path

from weights import Layer, masked


def write(path: Path, layer: Layer, n_tokens: int, seed: int) -> int:
    """Writes a turn; gives how many experts have a token."""
    source = random.Random(seed)
    # Magnitudes from 2^-3 to 2.
    halves = masked(2 * n_tokens * layer.hidden, b"\xff\x81", b"\x00\x3e", source)
    tokens = bytearray(2 * len(halves))
    tokens[2::4], tokens[3::4] = halves[0::2], halves[1::2]
    logits, ids, weights = array("f"), array("i"), array("f")
    for _ in range(n_tokens):
        # Through float32, so that everyone orders the same numbers; of equal ones the first expert is chosen.
        row = array("f", (source.gauss(0, 1) for _ in range(layer.experts)))
        chosen = sorted(range(layer.experts), key=lambda e: (-row[e], e))[: layer.top_k]
        shares = [math.exp(row[e] - row[chosen[0]]) for e in chosen]
        logits.extend(row)
        ids.extend(chosen)
        weights.extend(layer.scale * share / sum(shares) for share in shares)
    path.write_bytes(bytes(tokens) + logits.tobytes() + ids.tobytes() + weights.tobytes())
    return len(set(ids))


def distance(result: Path, other: Path, n_cols: int) -> float:
    """The largest distance of a row of `result` from that of `other`, over the length of the latter; NaN counts as infinitely far."""
    mine, theirs = result.read_bytes(), other.read_bytes()
    if len(mine) != len(theirs):
        return math.inf
    a, b = array("f", mine), array("f", theirs)
    most = 0.0
    for start in range(0, len(a), n_cols):
        row = b[start : start + n_cols]
        far = math.dist(a[start : start + n_cols], row) / (math.hypot(*row) or 1.0)
        most = max(most, far if math.isfinite(far) else math.inf)
    return most
