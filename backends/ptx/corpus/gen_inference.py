"""Inputs and expected values of kernels_inference.py; used by gen.py."""
import math

import numpy as np

from gen import BF, E4, F16, F32, I32, f32, rng


class B:  # pointer to a named buffer
    def __init__(s, name): s.name = name


class D:  # tensor descriptor over a named buffer (the whole array, row-major)
    def __init__(s, name, block): s.name, s.block = name, block


ALL = (80, 90, 100, 120)


def randn(g, *s, dt=F32, sc=1.0):
    return (g.standard_normal(s) * sc).astype(F32).astype(dt)


def sort_slots(ids, n_experts, block, local):
    """(slots sorted by expert and padded to blocks, expert of each block, padded count); experts not in `local` become -1"""
    slots, experts = [], []
    for e in range(n_experts):
        own = [i for i, x in enumerate(ids.ravel()) if x == e]
        own += [ids.size] * (-len(own) % block)
        slots += own
        experts += [e if e in local else -1] * (len(own) // block)
    return np.array(slots, I32), np.array(experts, I32), len(slots)


def cases():
    import triton.language as tl
    import kernels_inference as K
    out = []

    def case(name, fn, args, consts, grid, bufs, exp, tol, targets=ALL, note="", interp=True, **opts):
        out.append(dict(name=name, fn=fn, args=args, consts=consts, grid=tuple(grid) + (1,) * (3 - len(grid)), bufs=bufs,
                        exp=exp, tol=tol, targets=targets, opts=opts, note=note, interp=interp))

    def moe(name, T, E, k, N, Kd, BM, BN, BK, group=0, weigh=True, local=None, targets=ALL, tol=5e-3, **opts):
        g = rng("moe" + name)
        ids = np.stack([g.permutation(E)[:k] for _ in range(T)]).astype(I32)
        ids[:T // 2, 0] = E - 1  # one expert takes many tokens
        for t in range(T // 2):
            ids[t, 1:] = g.permutation(E - 2)[:k - 1]  # and expert E-2 takes few
        local = range(E) if local is None else local
        slots, experts, n_slots = sort_slots(ids, E, BM, local)
        room = -(-T * k // BM) * BM + E * BM  # what an engine reserves: blocks past n_slots are not touched
        slots = np.concatenate([slots, np.full(room - n_slots, T * k, I32)])
        experts = np.concatenate([experts, np.zeros(room // BM - len(experts), I32)])
        w = g.random((T, k)).astype(F32)
        if group:
            a, b = randn(g, T, Kd, dt=E4, sc=2), randn(g, E, N, Kd, dt=E4, sc=2)
            sa = (g.random((T, Kd // group)) + .5).astype(F32)
            sb = (g.random((E, -(-N // group), Kd // group)) + .5).astype(F32)
            av = f32(a).astype(float) * np.repeat(sa, group, 1)
            bv = f32(b).astype(float) * np.repeat(np.repeat(sb, group, 1)[:, :N], group, 2)
        else:
            a, b = randn(g, T, Kd, dt=BF, sc=.5), randn(g, E, N, Kd, dt=BF, sc=.5)
            sa = sb = np.zeros(1, F32)
            av, bv = f32(a).astype(float), f32(b).astype(float)
        c = np.zeros((T * k, N), float)
        for s in range(T * k):
            e = ids.ravel()[s]
            if e in local:
                c[s] = av[s // k] @ bv[e].T * (w.ravel()[s] if weigh else 1)
        grid = (room // BM * math.ceil(N / BN),)
        case("moe_" + name, K.fused_moe,
             dict(a_ptr=B("a"), b_ptr=B("b"), c_ptr=B("c"), as_ptr=B("sa"), bs_ptr=B("sb"), w_ptr=B("w"), slot_ptr=B("slots"),
                  expert_ptr=B("experts"), n_slots_ptr=B("n_slots"), N=N, K=Kd, n_valid=T * k),
             dict(TOP_K=k, WEIGH=weigh, GROUP=group, BM=BM, BN=BN, BK=BK, GM=4), grid,
             dict(a=a, b=b, c=np.full((T * k, N), 7, BF), sa=sa, sb=sb, w=w, slots=slots, experts=experts, n_slots=np.array([n_slots], I32)),
             dict(c=c.astype(F32).astype(BF)), dict(c=tol), targets=targets, **opts)

    moe("bf16", 37, 8, 3, 96, 160, 16, 64, 64, num_warps=4, num_stages=3)
    moe("bf16_wide", 70, 4, 2, 128, 128, 64, 128, 64, weigh=False, local=(0, 2, 3), num_warps=4, num_stages=3)
    moe("fp8_block", 40, 4, 2, 128, 256, 64, 64, 128, group=128, targets=(90, 100, 120), num_warps=4, num_stages=3)

    g = rng("swiglu"); R, Fd = 20, 300
    x = randn(g, R, 2 * Fd, dt=BF); xf = f32(x).astype(float)
    case("swiglu", K.swiglu, dict(x_ptr=B("x"), o_ptr=B("o"), F=Fd), dict(BLOCK=256), (R, 2), dict(x=x, o=np.zeros((R, Fd), BF)),
         dict(o=(xf[:, :Fd] / (1 + np.exp(-xf[:, :Fd])) * xf[:, Fd:]).astype(F32).astype(BF)), dict(o=4e-3))
    g = rng("sumslots"); T, k, H = 11, 3, 300
    x = randn(g, T * k, H, dt=BF)
    acc = np.zeros((T, H), F32)
    for i in range(k):
        acc += f32(x).reshape(T, k, H)[:, i]
    case("sum_slots", K.sum_slots, dict(x_ptr=B("x"), o_ptr=B("o"), H=H), dict(TOP_K=k, BLOCK=256), (T, 2), dict(x=x, o=np.zeros((T, H), BF)),
         dict(o=acc.astype(BF)), dict(o=0))
    g = rng("route"); T, E, k = 19, 60, 4
    x = np.round(randn(g, T, E) * 8) / 8  # many ties
    x = x.astype(F32)
    ids = np.argsort(-x, 1, kind="stable")[:, :k].astype(I32)
    top = np.take_along_axis(x, ids, 1).astype(float)
    w = np.exp(top - top[:, :1]); w /= w.sum(1, keepdims=True)
    case("route", K.route, dict(x_ptr=B("x"), id_ptr=B("id"), w_ptr=B("w"), count_ptr=B("count"), E=E), dict(TOP_K=k, BLOCK=64), (T,),
         dict(x=x, id=np.zeros((T, k), I32), w=np.zeros((T, k), F32), count=np.zeros(E, I32)),
         dict(id=ids, w=w.astype(F32), count=np.bincount(ids.ravel(), minlength=E).astype(I32)), dict(id=0, w=1e-6, count=0))

    def att(name, heads, N, Dd, BM, BN, causal, dt, targets=ALL, **opts):
        g = rng("att" + name)
        q, kk, v = (randn(g, heads, N, Dd, dt=dt) for _ in range(3))
        s = np.einsum("hmd,hnd->hmn", f32(q).astype(float), f32(kk).astype(float)) / math.sqrt(Dd)
        if causal:
            s = np.where(np.tri(N, dtype=bool), s, -np.inf)
        mx = s.max(-1, keepdims=True); p = np.exp(s - mx); l = p.sum(-1, keepdims=True)
        o = np.einsum("hmn,hnd->hmd", p / l, f32(v).astype(float))
        lse = ((mx + np.log(l))[..., 0] * math.log2(math.e)).astype(F32)
        case("attention_" + name, K.attention, dict(q_ptr=B("q"), k_ptr=B("k"), v_ptr=B("v"), o_ptr=B("o"), lse_ptr=B("lse"), scale=1 / math.sqrt(Dd), N=N),
             dict(CAUSAL=causal, BM=BM, BN=BN, D=Dd), (math.ceil(N / BM), heads),
             dict(q=q, k=kk, v=v, o=np.zeros((heads, N, Dd), dt), lse=np.zeros((heads, N), F32)), dict(o=o.astype(F32).astype(dt), lse=lse),
             dict(o=5e-3 if dt is BF else 1e-3, lse=1e-5), targets=targets, **opts)

    att("causal_f16", 2, 150, 64, 64, 32, True, F16, num_warps=4, num_stages=2)
    att("full_bf16", 2, 128, 128, 128, 64, False, BF, targets=(80, 90, 100), num_warps=8, num_stages=2)

    def att_tma(name, ws, targets, **opts):
        g = rng("atttma"); heads, N, Dd, BM, BN = 2, 256, 64, 128, 64
        q, kk, v = (randn(g, heads * N, Dd, dt=F16) for _ in range(3))
        h = lambda a: f32(a).astype(float).reshape(heads, N, Dd)
        s = np.einsum("hmd,hnd->hmn", h(q), h(kk)) / math.sqrt(Dd)
        p = np.exp(s - s.max(-1, keepdims=True)); p /= p.sum(-1, keepdims=True)
        o = np.einsum("hmn,hnd->hmd", p, h(v)).reshape(heads * N, Dd)
        case("attention_" + name, K.attention_tma, dict(q_desc=D("q", [BM, Dd]), k_desc=D("k", [BN, Dd]), v_desc=D("v", [BN, Dd]), o_desc=D("o", [BM, Dd]), scale=1 / math.sqrt(Dd), N=N),
             dict(BM=BM, BN=BN, D=Dd, WS=ws), (N // BM, heads), dict(q=q, k=kk, v=v, o=np.zeros((heads * N, Dd), F16)),
             dict(o=o.astype(F16)), dict(o=1e-3), targets=targets, **opts)

    att_tma("tma", False, (90, 100), num_warps=4, num_stages=2)
    att_tma("tma_roles", True, (100,), num_warps=4, num_stages=2)

    g = rng("ln"); R, C = 13, 300
    x = (randn(g, R, C) * 2 + 1).astype(F16); ga, be = randn(g, C), randn(g, C); X = f32(x).astype(float)
    mean = X.mean(1); rstd = 1 / np.sqrt(X.var(1) + 1e-5)
    case("layer_norm", K.layer_norm, dict(x_ptr=B("x"), g_ptr=B("g"), b_ptr=B("b"), o_ptr=B("o"), mean_ptr=B("mean"), rstd_ptr=B("rstd"), cols=C, eps=1e-5),
         dict(BLOCK=512), (R,), dict(x=x, g=ga, b=be, o=np.zeros((R, C), F16), mean=np.zeros(R, F32), rstd=np.zeros(R, F32)),
         dict(o=((X - mean[:, None]) * rstd[:, None] * ga + be).astype(F16), mean=mean.astype(F32), rstd=rstd.astype(F32)), dict(o=1e-3, mean=1e-5, rstd=1e-5))
    g = rng("rmsq"); R, C = 13, 200
    x = randn(g, R, C, dt=BF); res = randn(g, R, C); ga = (randn(g, C) * .1 + 1).astype(F32)
    X = (f32(x) + res).astype(F32); Y = X.astype(float); Y = Y / np.sqrt((Y * Y).mean(1, keepdims=True) + 1e-6) * ga
    s = np.abs(Y).max(1, keepdims=True) / 448
    case("rms_norm_quant", K.rms_norm_quant, dict(x_ptr=B("x"), res_ptr=B("res"), g_ptr=B("g"), q_ptr=B("q"), s_ptr=B("s"), cols=C, eps=1e-6), dict(BLOCK=256), (R,),
         dict(x=x, res=res, g=ga, q=np.zeros((R, C), E4), s=np.zeros(R, F32)), dict(res=X, q=np.clip(Y / s, -448, 448).astype(F32).astype(E4), s=s[:, 0].astype(F32)),
         dict(res=0, q=1e-2, s=1e-5), targets=(90, 100, 120), note="q: a rounding boundary may fall the other way in a few places")

    def roles(name, M, N, Kd, dt, targets, **opts):
        g = rng("roles" + name)
        a, b = randn(g, M, Kd, dt=dt, sc=.5), randn(g, N, Kd, dt=dt, sc=.5)
        ref = f32(a).astype(float) @ f32(b).T.astype(float)
        BM, BN, BK = 128, 128, 64
        case("matmul_" + name, K.matmul_roles, dict(a_desc=D("a", [BM, BK]), b_desc=D("b", [BN, BK]), c_desc=D("c", [BM, BN]), M=M, N=N, K=Kd),
             dict(BM=BM, BN=BN, BK=BK, OUT=tl.float16, NPROG=2), (2,), dict(a=a, b=b, c=np.zeros((M, N), F16)), dict(c=ref.astype(F16)), dict(c=1e-3), targets=targets, interp=False, **opts)

    roles("roles_f16", 200, 256, 192, F16, (100,), num_warps=4, num_stages=3)

    g = rng("grouped"); E, N, Kd = 4, 96, 64; off = np.array([0, 40, 40, 57, 130], I32)
    a, b = randn(g, 130, Kd, dt=BF, sc=.5), randn(g, E, Kd, N, dt=BF, sc=.5)
    c = np.zeros((130, N))
    for e in range(E):
        c[off[e]:off[e + 1]] = f32(a)[off[e]:off[e + 1]].astype(float) @ f32(b)[e]
    case("grouped_matmul", K.grouped_matmul, dict(a_ptr=B("a"), b_ptr=B("b"), c_ptr=B("c"), off_ptr=B("off"), N=N, K=Kd), dict(E=E, NPROG=3, BM=32, BN=64, BK=32), (3,),
         dict(a=a, b=b, c=np.zeros((130, N), BF), off=off), dict(c=c.astype(F32).astype(BF)), dict(c=4e-3), num_warps=4, num_stages=2)
    g = rng("scaletiles"); R, C, BM, BN = 40, 96, 16, 32
    x = g.integers(-50, 50, (R, C)).astype(F32)
    s = np.zeros((BM, BN))
    for r in range(0, R, BM):
        for c in range(0, C, BN):
            t = x[r:r + BM, c:c + BN]
            s[:t.shape[0]] += t
    case("device_tensor_maps", K.scale_tiles, dict(x_ptr=B("x"), o_ptr=B("o"), sum_ptr=B("sum"), R=R, C=C), dict(BM=BM, BN=BN), (math.ceil(R / BM),),
         dict(x=x, o=np.zeros((R, C), F32), sum=np.ones((BM, BN), F32)), dict(o=2 * x, sum=(s + 1).astype(F32)), dict(o=0, sum=0), targets=(90, 100, 120), interp=False,
         note="tensor maps made by the kernel in global scratch memory")
    g = rng("scatterrows"); n, R, C, BN = 64, 100, 128, 64
    x = randn(g, n, BN, dt=BF); row = g.permutation(R)[:n].astype(I32); o0 = randn(g, R, C, dt=BF); o = o0.copy(); o[row, 32:96] = x
    case("tma_scatter4", K.scatter_rows, dict(x_ptr=B("x"), o_desc=D("o", [1, BN]), row_ptr=B("row")), dict(BM=32, BN=BN), (2,),
         dict(x=x, o=o0, row=row), dict(o=o), dict(o=0), targets=(100,), interp=False, note="cp.async.bulk.tensor tile::scatter4")
    return out
