"""Weights of one layer as files that every program of the comparison reads, each for its own arrangement in memory.

`gate`, `up`, `down` hold one matrix each, rows of floats or of codes; `gate_scale` the scales, `gate_bias` a bias. Expert `e` has all
of them with the rows moved up by `e`, the first ones to the end, so that experts differ and files stay small.

Scales have at most three significant bits and codes at most four, so that every value is a number of bfloat16 and no engine has to
round it: what differs between results comes from the rows.
"""

import random
import struct
from pathlib import Path
from typing import NamedTuple


class Layer(NamedTuple):
    """Sizes of a layer; `oai` is gpt-oss's activation, with biases. Routing weights are the softmax of the chosen logits times `scale`."""

    experts: int
    top_k: int
    hidden: int
    ffn: int
    oai: bool
    scale: float

    def matrices(self):
        """Name, rows and columns of each."""
        return [("gate", self.ffn, self.hidden), ("up", self.ffn, self.hidden), ("down", self.hidden, self.ffn)]


class Format(NamedTuple):
    """Bytes of an element (a half for four bits), bits of each byte of codes that stay random, that are always set; scales to draw from, and rows and columns
    of a block."""

    element_bytes: float
    keep: bytes
    always: bytes
    scales: tuple[bytes, ...] = ()
    block_rows: int = 1
    block_cols: int = 1

    def scale_grid(self, rows: int, cols: int) -> tuple[int, int]:
        return -(-rows // self.block_rows), -(-cols // self.block_cols)

    def matrix_bytes(self, rows: int, cols: int) -> int:
        """Bytes that a product with one matrix reads."""
        grid = self.scale_grid(rows, cols)
        return int(rows * cols * self.element_bytes) + (grid[0] * grid[1] * len(self.scales[0]) if self.scales else 0)


def scales(kind: str, exponent: int) -> tuple[bytes, ...]:
    """1, 1.25, 1.5 and 1.75 times a power of two."""
    floats = [struct.pack("<f", m * 2.0**exponent) for m in (1, 1.25, 1.5, 1.75)]
    # bfloat16 is the upper half of a float32.
    return tuple(f if kind == "f32" else f[2:] for f in floats)


FORMATS = {
    # Magnitudes from 2^-7 to 2^-5.
    "bf16": Format(2, b"\xff\x80", b"\x00\x3c"),
    "f32": Format(4, b"\xff\xff\xff\x80", b"\x00\x00\x00\x3c"),
    # Codes below 2, no NaN; e4m3.
    "fp8": Format(1, b"\xbf", b"\x00", scales("f32", -6), 128, 128),
    # e2m1 by powers of two.
    "mxfp4": Format(0.5, b"\xff", b"\x00", (b"\x77", b"\x78", b"\x79"), 1, 32),
    # e2m1 by e4m3: 1, 1.25, 1.5 and 1.75 times 2^-6.
    "nvfp4": Format(0.5, b"\xff", b"\x00", (b"\x08", b"\x0a", b"\x0c", b"\x0e"), 1, 16),
    # A nibble less 8, by bfloat16.
    "int4": Format(0.5, b"\xff", b"\x00", scales("bf16", -8), 1, 32),
}


def masked(n_bytes: int, keep: bytes, always: bytes, source: random.Random) -> bytes:
    """Random bytes, some bits of which are given."""
    times = n_bytes // len(keep)
    number = int.from_bytes(source.randbytes(n_bytes), "little")
    number = number & int.from_bytes(keep * times, "little") | int.from_bytes(always * times, "little")
    return number.to_bytes(n_bytes, "little")


def write(folder: Path, layer: Layer, name: str) -> None:
    """Makes the files of a layer in the format called `name`."""
    source, form = random.Random(1), FORMATS[name]
    for matrix, rows, cols in layer.matrices():
        (folder / matrix).write_bytes(masked(int(rows * cols * form.element_bytes), form.keep, form.always, source))
        if form.scales:
            n_scales = form.scale_grid(rows, cols)[0] * form.scale_grid(rows, cols)[1]
            (folder / f"{matrix}_scale").write_bytes(b"".join(source.choices(form.scales, k=n_scales)))
        if layer.oai:
            # Magnitudes from 2^-5 to 2^-3, in the type of the layer's floats.
            bias = FORMATS["f32" if name == "f32" else "bf16"]
            always = bias.always[:-1] + b"\x3d"
            (folder / f"{matrix}_bias").write_bytes(masked(int(rows * bias.element_bytes), bias.keep, always, source))
