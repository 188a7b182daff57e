"""Inputs and expected values of kernels_scaled.cu: batched matrix products with block scales; used by gen.py."""
import struct

import numpy as np

from gen import BF, E4, F32, f32, rng, ue8m0, unpack_e2m1
from gen_inference import randn

STAGES, ROWS, SCALE_BLOCK = 2, 128, 512


def scale_blocks(scales):
    """[batch, rows, steps of k] as blocks of 512 bytes for 128 rows and 4 steps: row r at byte 16 (r % 32) + 4 (r / 32)."""
    batch, rows, steps = scales.shape
    padded = np.zeros((batch, -(-rows // 128) * 128, steps), scales.dtype)
    padded[:, :rows] = scales
    blocks = padded.reshape(batch, -1, 4, 32, steps // 4, 4)
    return np.ascontiguousarray(blocks.transpose(0, 1, 4, 3, 2, 5)).view(np.uint8).reshape(batch, -1, steps // 4, SCALE_BLOCK)


def operand(g, kind, shape, block):
    """Codes as they lie in memory, scales as they lie in memory, and the values."""
    batch, rows, k = shape
    if kind == "e2m1":
        codes = g.integers(0, 256, (batch, rows, k // 2)).astype(np.uint8)
        values = unpack_e2m1(codes)
    else:
        codes = randn(g, batch, rows, k, dt=E4, sc=2)
        values = f32(codes)
    if block == 32:
        scales = g.integers(121, 132, (batch, rows, k // block)).astype(np.uint8)
        factors = ue8m0(scales)
    else:
        scales = (np.abs(g.standard_normal((batch, rows, k // block))) + .1).astype(F32).astype(E4)
        factors = f32(scales)
    return codes, scale_blocks(scales), values.astype(float) * np.repeat(factors.astype(float), block, 2)


def tensor_map(buffer, dtype, dims, strides, box, swizzle):
    return {"buffer": buffer, "dtype": dtype, "dims": dims, "strides_bytes": strides, "box": box, "element_strides": [1] * len(dims),
            "swizzle": swizzle, "interleave": "none", "oob": "zero"}


def codes_map(name, kind, codes, k, rows):
    """One row of a box is 128 bytes in shared memory: 128 codes with a byte each, or 256 packed."""
    batch, n, row_bytes = codes.shape
    dtype = {"e4m3": "u8", "e2m1": "b4x16", "e2m1 in bytes": "b4x16_p64"}[kind]
    return tensor_map(name, dtype, [k, n, batch], [row_bytes, n * row_bytes], [256 if dtype == "b4x16" else 128, rows, 1], "128B")


def scales_map(name, scales, blocks, ctas):
    batch, row_blocks, steps, _ = scales.shape
    strides = [SCALE_BLOCK, steps * SCALE_BLOCK, row_blocks * steps * SCALE_BLOCK]
    return tensor_map(name, "u16", [256, steps, row_blocks, batch], strides, [256 // ctas, blocks, 1, 1], "none")


def cases():
    out = []

    def case(name, shape, kinds, block, key, cc, note, ctas=1, transposed=False):
        batch, m, n, k = shape
        g = rng("scaled_" + name)
        a, sa, av = operand(g, kinds[0].split()[0], (batch, m, k), block)
        b, sb, bv = operand(g, kinds[1], (batch, n, k), block)
        form = {("e2m1 in bytes", 32): 0, ("e2m1", 32): 1, ("e2m1", 16): 2}[kinds[0], block]
        blocks = [1, 2, 4][form]
        by_tma = transposed or key == "warp_mma"
        want = np.einsum("lmk,lnk->lnm" if transposed else "lmk,lnk->lmn", av, bv)
        d = np.zeros(want.shape, BF)
        columns = 64 if key == "warp_mma" else 128
        outer, inner = want.shape[1:]
        patch = [{"at": 0, "tensor_map": codes_map("a", kinds[0], a, k, ROWS)}, {"at": 128, "tensor_map": codes_map("b", kinds[1], b, k, columns // ctas)},
                 {"at": 256, "tensor_map": scales_map("sa", sa, blocks, 1)}, {"at": 384, "tensor_map": scales_map("sb", sb, blocks, ctas)}]
        if by_tma:
            patch.append({"at": 512, "tensor_map": tensor_map("d", "bf16", [inner, outer, batch], [2 * inner, 2 * inner * outer], [64, 128, 1], "128B")})
        else:
            patch.append({"at": 640, "buffer": "d"})
        k_tiles = k // (128 if form == 0 else 256)
        problem = bytes(640) + struct.pack("<Qiii", 0, m, n, k_tiles)
        problem += bytes(-len(problem) % 128)  # the alignment of a tensor map
        stage = (ROWS + columns // ctas) * 128 + 2 * blocks * SCALE_BLOCK
        smem = STAGES * stage + (2 * 128 * 128 if transposed else 128 * 128 if by_tma else 0) + 2048
        defs = (f"-DFORMAT={form}",) + (() if ctas == 1 else (f"-DCTAS={ctas}",)) + (("-DTRANSPOSED=1",) if transposed else ())
        out.append(dict(name="scaled_" + name, source="kernels_scaled.cu", key=key, defs=defs, params=[{"bytes": problem.hex(), "patch": patch}],
                        bufs=dict(a=a, b=b, sa=sa, sb=sb, d=d), exp=dict(d=want.astype(F32).astype(BF)), tol=dict(d=4e-3),
                        grid=[m // ROWS, -(-n // columns), batch], block=[256], cluster=ctas, smem=smem, targets=(cc,), note=note, sure="high"))

    mixed = ("e2m1 in bytes", "e4m3")
    case("mxfp4_mxfp8_pair", (2, 256, 200, 384), mixed, 32, "tcgen05", 100,
         "pairs of CTAs, fp4 widened to bytes by TMA, scales by tcgen05.cp, tiles by cluster launch control, results transposed by stmatrix", ctas=2, transposed=True)
    case("mxfp4_mxfp8", (2, 256, 128, 256), mixed, 32, "tcgen05", 100, "as nvcc_scaled_mxfp4_mxfp8_pair, without pairs; results from registers")
    case("mxfp4", (2, 128, 128, 768), ("e2m1", "e2m1"), 32, "tcgen05", 100, "both operands packed fp4 with ue8m0 scales")
    case("nvfp4", (2, 128, 128, 768), ("e2m1", "e2m1"), 16, "tcgen05", 100, "both operands packed fp4 with e4m3 scales")
    case("mxfp4_mxfp8", (2, 128, 128, 384), mixed, 32, "warp_mma", 120, "fp4 widened to bytes by TMA and ldmatrix, mma.sync with block scales")
    return out
