"""Inputs and expected values of kernels_gluon.py; used by gen.py."""
import numpy as np

from gen import BF, E4, E5, F16, F32, I32, f32, rng, ue8m0, unpack_e2m1
from gen_inference import B, D as inference_D, randn


def cases():
    import triton.language as tl
    import kernels_gluon as K
    out = []

    def case(name, fn, args, consts, bufs, exp, tol, targets=(100,), note="", **opts):
        out.append(dict(name="gluon_" + name, fn=fn, args=args, consts=consts, grid=(1, 1, 1), bufs=bufs, exp=exp, tol=tol, targets=targets,
                        opts=opts, note=note, interp=False, gluon=True))

    def shapes(name, M, N, Kd, shape, sw, tmem=False, dt=F16):
        g = rng("shapes" + name)
        a, b = randn(g, M, Kd, dt=dt), randn(g, N, Kd, dt=dt)
        c = (f32(a).astype(float) @ f32(b).T).astype(F32)
        case("tmem_" + name, K.tmem_shapes, dict(a_ptr=B("a"), b_ptr=B("b"), o_ptr=B("o"), r_ptr=B("r")),
             dict(M=M, N=N, K=Kd, SHAPE=shape, SW=sw, A_IN_TMEM=tmem), dict(a=a, b=b, o=np.zeros((M, N), F32), r=np.zeros((M, N), F32)),
             dict(o=c, r=c + 1), dict(o=1e-5, r=1e-5), num_warps=4)

    shapes("32x32b", 128, 32, 64, "32x32b", 128)
    shapes("32x32b_16", 128, 16, 64, "32x32b", 128)
    shapes("16x64b", 128, 32, 64, "16x64b", 128)
    shapes("16x128b", 128, 32, 32, "16x128b", 64)
    shapes("16x256b", 128, 64, 16, "16x256b", 32)
    shapes("64_16x64b", 64, 64, 64, "16x64b", 128)
    shapes("64_16x256b", 64, 32, 64, "16x256b", 128)
    shapes("64_16x128b", 64, 128, 32, "16x128b", 64, dt=BF)
    shapes("64_default", 64, 128, 64, "32x32b", 128, dt=BF)
    shapes("a_in_tmem", 128, 64, 64, "32x32b", 128, tmem=True)

    def transposed(name, M, N, Kd, dt, bits, sw, acc, odt, tol):
        g = rng("trans" + name)
        if np.dtype(dt) == np.int8:
            a, b = g.integers(-128, 128, (Kd, M)).astype(dt), g.integers(-128, 128, (Kd, N)).astype(dt)
            c = (a.astype(np.int64).T @ b.astype(np.int64)).astype(odt)
        else:
            a, b = randn(g, Kd, M, dt=dt), randn(g, Kd, N, dt=dt)
            c = (f32(a).astype(float).T @ f32(b)).astype(odt)
        case("mma_transposed_" + name, K.mma_transposed, dict(a_ptr=B("a"), b_ptr=B("b"), o_ptr=B("o")), dict(M=M, N=N, K=Kd, BITS=bits, SW=sw, ACC=acc, STRIDE=2 if odt is F16 else 1),
             dict(a=a, b=b, o=np.zeros((M, N), odt)), dict(o=c), dict(o=tol), num_warps=4)

    transposed("f16_128B", 128, 128, 64, F16, 16, 128, tl.float32, F32, 1e-5)
    transposed("bf16_64B", 128, 64, 32, BF, 16, 64, tl.float32, F32, 1e-5)
    transposed("f16_32B", 64, 32, 32, F16, 16, 32, tl.float32, F32, 1e-5)
    transposed("e5m2_128B", 128, 128, 64, E5, 8, 128, tl.float32, F32, 1e-5)
    transposed("f16_acc_f16", 128, 128, 64, F16, 16, 128, tl.float16, F16, 2e-3)

    def pair(name, M, N, Kd, dt, bits, steps=2):
        g = rng("pair" + name)
        a, b = randn(g, M, Kd * steps, dt=dt), randn(g, N, Kd * steps, dt=dt)
        case("mma_pair_" + name, K.mma_pair, dict(a_ptr=B("a"), b_ptr=B("b"), o_ptr=B("o")), dict(M=M, N=N, K=Kd, BITS=bits, STEPS=steps),
             dict(a=a, b=b, o=np.zeros((M, N), F32)), dict(o=(f32(a).astype(float) @ f32(b).T).astype(F32)), dict(o=1e-5), num_warps=4, num_ctas=2)

    pair("bf16", 256, 128, 64, BF, 16)
    pair("e4m3", 256, 64, 128, E4, 8)

    def scaled(name, M, N, Kd, fmt, vec, sdt):
        g = rng("pairscaled" + name)
        def operand(rows):
            if fmt == "e2m1":
                u = g.integers(0, 256, (rows, Kd // 2)).astype(np.uint8); v = unpack_e2m1(u)
            else:
                u = randn(g, rows, Kd, dt=E4, sc=2); v = f32(u)
            if sdt == "ue8m0":
                s = g.integers(122, 131, (rows, Kd // vec)).astype(np.uint8); sv = ue8m0(s)
            else:
                s = (np.abs(g.standard_normal((rows, Kd // vec))) + .1).astype(F32).astype(E4); sv = f32(s)
            return u, s, v.astype(float) * np.repeat(sv.astype(float), vec, 1)
        a, sa, av = operand(M); b, sb, bv = operand(N)
        case("mma_pair_" + name, K.mma_pair_scaled, dict(a_ptr=B("a"), b_ptr=B("b"), as_ptr=B("sa"), bs_ptr=B("sb"), o_ptr=B("o")),
             dict(M=M, N=N, K=Kd, PACK=2 if fmt == "e2m1" else 1, VEC=vec, FORMAT=fmt), dict(a=a, b=b, sa=sa, sb=sb, o=np.zeros((M, N), F32)),
             dict(o=(av @ bv.T).astype(F32)), dict(o=1e-5), num_warps=4, num_ctas=2)

    scaled("mxfp8", 256, 128, 128, "e4m3", 32, "ue8m0")
    scaled("mxfp4", 256, 128, 256, "e2m1", 32, "ue8m0")
    scaled("nvfp4", 256, 128, 256, "e2m1", 16, "e4m3")

    def D(name, block, layout):
        d = inference_D(name, block)
        d.layout = layout
        return d

    def shared(rank=2, cga=((1, 0),)):
        from triton.experimental.gluon import language as gl
        return repr(gl.NVMMASharedLayout(128, 16, rank, cga_layout=[list(c) for c in cga]))
    g = rng("pairtma")
    M, N, Kd = 256, 32, 192
    a, b = randn(g, M, Kd, dt=BF), randn(g, N, Kd, dt=BF)
    case("pair_tma", K.pair_tma, dict(a_desc=D("a", (M, 64), shared()), b_desc=D("b", (N, 64), shared()), o_ptr=B("o")), dict(M=M, N=N, K=64, STEPS=3),
         dict(a=a, b=b, o=np.zeros((M, N), F32)), dict(o=(f32(a).astype(float) @ f32(b).T).astype(F32)), dict(o=1e-5), num_warps=4, num_ctas=2)
    a, b = randn(g, 2 * M, 128, dt=BF), randn(g, N, 128, dt=BF)
    case("pairs_multicast", K.pairs_multicast, dict(a_desc=D("a", (2 * M, 64), shared(cga=((1, 0), (2, 0)))), b_desc=D("b", (N, 64), shared(cga=((1, 0), (0, 0)))), o_ptr=B("o")),
         dict(M=2 * M, N=N, K=64, STEPS=2), dict(a=a, b=b, o=np.zeros((2 * M, N), F32)), dict(o=(f32(a).astype(float) @ f32(b).T).astype(F32)), dict(o=1e-5), num_warps=4, num_ctas=4)
    b3 = np.stack([b[::-1], b])
    case("pairs_multicast_3d", K.pairs_multicast_3d, dict(a_desc=D("a", (2 * M, 64), shared(cga=((1, 0), (2, 0)))), b_desc=D("b", (1, N, 64), shared(3, ((0, 1, 0), (0, 0, 0)))), o_ptr=B("o")),
         dict(M=2 * M, N=N, K=64, STEPS=2), dict(a=a, b=b3, o=np.zeros((2 * M, N), F32)), dict(o=(f32(a).astype(float) @ f32(b).T).astype(F32)), dict(o=1e-5), num_warps=4, num_ctas=4)
    g = rng("pairgather")
    a, b, r = randn(g, 300, 64, dt=BF), randn(g, N, 64, dt=BF), g.integers(0, 300, M).astype(I32)
    case("pair_gather", K.pair_gather, dict(a_desc=D("a", (1, 64), shared(cga=((0, 0),))), b_desc=D("b", (N, 64), shared()), r_ptr=B("r"), o_ptr=B("o")),
         dict(M=M, N=N, K=64), dict(a=a, b=b, r=r, o=np.zeros((M, N), F32)), dict(o=(f32(a[r]).astype(float) @ f32(b).T).astype(F32)), dict(o=1e-5), num_warps=4, num_ctas=2)
    b = randn(rng("pairsgather"), 2 * N, 64, dt=BF)
    case("pairs_gather_multicast", K.pairs_gather_multicast, dict(a_desc=D("a", (1, 64), shared(cga=((0, 0), (0, 0)))), b_desc=D("b", (2 * N, 64), shared(cga=((1, 0), (2, 0)))), r_ptr=B("r"), o_ptr=B("o")),
         dict(M=M, N=2 * N, K=64), dict(a=a, b=b, r=r, o=np.zeros((M, 2 * N), F32)), dict(o=(f32(a[r]).astype(float) @ f32(b).T).astype(F32)), dict(o=1e-5), num_warps=4, num_ctas=4)
    x = rng("tma3d").integers(-999, 999, (3, 20, 72)).astype(F16)
    box = np.zeros((4, 16, 64), F16)
    box[:2, 2:] = x[1:, :14, 8:72]
    case("tma_3d", K.tma_3d, dict(x_desc=D("x", (4, 16, 64), shared(3, ())), o_ptr=B("o")), dict(B=4, R=16, C=64), dict(x=x, o=np.ones_like(box)), dict(o=box),
         dict(o=0), num_warps=4)

    for sw in (32, 128):
        x = randn(rng("tmemcopy"), 128, sw // 4)
        case(f"tmem_copy_{sw}B", K.tmem_copy, dict(x_ptr=B("x"), o_ptr=B("o")), dict(N=sw // 4, SW=sw), dict(x=x, o=np.zeros_like(x)), dict(o=x), dict(o=0), num_warps=4)

    def wgmma(name, M, N, Kd, dt, swa, swb, reg=False, ta=False, tb=True, odt=F32, tol=1e-5):
        g = rng("wgmma" + name)
        bits = np.dtype(dt).itemsize * 8
        if np.dtype(dt) == np.int8:
            a, b = g.integers(-128, 128, (M, Kd)).astype(dt), g.integers(-128, 128, (Kd, N)).astype(dt)
            c = a.astype(np.int64) @ b.astype(np.int64)
        else:
            a, b = randn(g, M, Kd, dt=dt), randn(g, Kd, N, dt=dt)
            if bits == 32:  # values that tf32 holds
                a, b = f32(a.astype(F16)), f32(b.astype(F16))
            c = f32(a).astype(float) @ f32(b)
        acc = tl.int32 if odt is I32 else tl.float16 if odt is F16 else tl.float32
        case("wgmma_" + name, K.wgmma, dict(a_ptr=B("a"), b_ptr=B("b"), o_ptr=B("o")),
             dict(M=M, N=N, K=Kd, BITS=bits, SWA=swa, SWB=swb, KI=256 // bits, REG=reg, TA=ta, TB=tb, ACC=acc),
             dict(a=np.ascontiguousarray(a.T if ta else a), b=np.ascontiguousarray(b.T if tb else b), o=np.zeros((M, N), odt)),
             dict(o=c.astype(odt)), dict(o=tol), targets=(90,), num_warps=4)

    wgmma("f16_reg", 64, 64, 64, F16, 128, 128, reg=True, tb=False)
    wgmma("e4m3_reg", 64, 32, 128, E4, 128, 128, reg=True)
    wgmma("e5m2_64B", 64, 32, 64, E5, 64, 64)
    wgmma("tf32_reg", 64, 64, 32, F32, 128, 128, reg=True)
    wgmma("s8_reg", 64, 64, 64, np.int8, 128, 64, reg=True, odt=I32, tol=0)
    wgmma("bf16_ta", 64, 128, 32, BF, 128, 128, ta=True, tb=False)
    wgmma("f16_ta_32B", 64, 16, 64, F16, 32, 32, ta=True, tb=False)
    wgmma("f16_64B", 128, 32, 32, F16, 64, 64, tb=True)
    wgmma("f16_32B", 64, 32, 16, F16, 32, 32, tb=False)
    wgmma("f16_acc_f16", 64, 128, 64, F16, 128, 128, tb=True, odt=F16, tol=2e-3)
    wgmma("bf16_wide", 64, 256, 64, BF, 128, 128, tb=True)
    return out
