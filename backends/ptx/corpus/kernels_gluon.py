"""Gluon kernels: tensor-core forms that plain Triton does not choose. Layouts are those of Triton's compiler."""
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.blackwell import (TensorMemoryLayout, TensorMemoryScalesLayout, allocate_tensor_memory,
                                                                 fence_async_shared, mbarrier, tcgen05_commit, tcgen05_copy, tcgen05_mma,
                                                                 tcgen05_mma_barrier_count, tcgen05_mma_scaled, tma)


@gluon.jit
def offsets(R: gl.constexpr, C: gl.constexpr, stride, L: gl.constexpr):
    r = gl.arange(0, R, layout=gl.SliceLayout(1, L))
    c = gl.arange(0, C, layout=gl.SliceLayout(0, L))
    return r[:, None] * stride + c[None, :]


@gluon.jit
def tmem_shapes(a_ptr, b_ptr, o_ptr, r_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, SHAPE: gl.constexpr, SW: gl.constexpr,
                A_IN_TMEM: gl.constexpr):
    """o = a @ b.T, read from tensor memory in SHAPE; r = o + 1, written in SHAPE and read as 32x32b (M = 128) or 16x32bx2 (M = 64)."""
    B: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    a = gl.load(a_ptr + offsets(M, K, K, B))
    b = gl.load(b_ptr + offsets(N, K, K, B))
    S: gl.constexpr = gl.NVMMASharedLayout(SW, 16, 2)
    sb = gl.allocate_shared_memory(b.dtype, [N, K], S, b)
    T: gl.constexpr = TensorMemoryLayout([M, N], 1)
    acc = allocate_tensor_memory(gl.float32, [M, N], T)
    bar = mbarrier.allocate_mbarrier()
    mbarrier.init(bar, 1)
    if A_IN_TMEM:
        TA: gl.constexpr = TensorMemoryLayout([M, K], 1)
        ta = allocate_tensor_memory(a.dtype, [M, K], TA)
        LA: gl.constexpr = ta.get_reg_layout()
        ta.store(gl.convert_layout(a, LA))
        fence_async_shared()
        tcgen05_mma(ta, sb.permute((1, 0)), acc, use_acc=False)
    else:
        sa = gl.allocate_shared_memory(a.dtype, [M, K], S, a)
        fence_async_shared()
        tcgen05_mma(sa, sb.permute((1, 0)), acc, use_acc=False)
    tcgen05_commit(bar)
    mbarrier.wait(bar, 0)
    mbarrier.invalidate(bar)
    L: gl.constexpr = acc.get_reg_layout(instr_variant=SHAPE)
    x = acc.load(L)
    gl.store(o_ptr + offsets(M, N, N, L), x)
    acc.store(x + 1.0)
    P: gl.constexpr = acc.get_reg_layout()
    gl.store(r_ptr + offsets(M, N, N, P), acc.load(P))


@gluon.jit
def mma_transposed(a_ptr, b_ptr, o_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, BITS: gl.constexpr, SW: gl.constexpr, ACC: gl.constexpr,
                   STRIDE: gl.constexpr):
    """o = a.T @ b with a [K, M], b [K, N]: both operands with their long side contiguous."""
    B: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    a = gl.load(a_ptr + offsets(K, M, M, B))
    b = gl.load(b_ptr + offsets(K, N, N, B))
    S: gl.constexpr = gl.NVMMASharedLayout(SW, BITS, 2)
    sa = gl.allocate_shared_memory(a.dtype, [K, M], S, a)
    sb = gl.allocate_shared_memory(b.dtype, [K, N], S, b)
    T: gl.constexpr = TensorMemoryLayout([M, N], STRIDE)
    acc = allocate_tensor_memory(ACC, [M, N], T)
    bar = mbarrier.allocate_mbarrier()
    mbarrier.init(bar, 1)
    fence_async_shared()
    tcgen05_mma(sa.permute((1, 0)), sb, acc, use_acc=False, mbarriers=[bar])
    mbarrier.wait(bar, 0)
    mbarrier.invalidate(bar)
    L: gl.constexpr = acc.get_reg_layout()
    gl.store(o_ptr + offsets(M, N, N, L), acc.load(L))


@gluon.jit
def mma_pair(a_ptr, b_ptr, o_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, BITS: gl.constexpr, STEPS: gl.constexpr):
    """o = a @ b.T by a pair of CTAs: each holds half of the rows of a and half of the rows of b."""
    B: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0], [[1, 0]])
    SA: gl.constexpr = gl.NVMMASharedLayout(128, BITS, 2, cga_layout=[[1, 0]])
    T: gl.constexpr = TensorMemoryLayout([128, N], 1, [[1, 0]], True)
    acc = allocate_tensor_memory(gl.float32, [M, N], T)
    bar = mbarrier.allocate_mbarrier()
    mbarrier.init(bar, 1)
    sa = gl.allocate_shared_memory(a_ptr.dtype.element_ty, [M, K], SA)
    sb = gl.allocate_shared_memory(b_ptr.dtype.element_ty, [N, K], SA)
    for k in range(STEPS):
        sa.store(gl.load(a_ptr + k * K + offsets(M, K, K * STEPS, B)))
        sb.store(gl.load(b_ptr + k * K + offsets(N, K, K * STEPS, B)))
        fence_async_shared()
        hopper.cluster.barrier()
        tcgen05_mma(sa, sb.permute((1, 0)), acc, use_acc=k > 0)
        tcgen05_commit(bar)
        mbarrier.wait(bar, k & 1)
        hopper.cluster.barrier()
    mbarrier.invalidate(bar)
    L: gl.constexpr = acc.get_reg_layout()
    gl.store(o_ptr + offsets(M, N, N, L), acc.load(L))


@gluon.jit
def mma_pair_scaled(a_ptr, b_ptr, as_ptr, bs_ptr, o_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, PACK: gl.constexpr,
                    VEC: gl.constexpr, FORMAT: gl.constexpr):
    """As mma_pair, one step, with a scale for each VEC elements of K."""
    B: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0], [[1, 0]])
    SA: gl.constexpr = gl.NVMMASharedLayout(128, 8, 2, cga_layout=[[1, 0]])
    T: gl.constexpr = TensorMemoryLayout([128, N], 1, [[1, 0]], True)
    TS: gl.constexpr = TensorMemoryScalesLayout([[1, 0]])
    TB: gl.constexpr = TensorMemoryScalesLayout([[0, 0]])
    acc = allocate_tensor_memory(gl.float32, [M, N], T)
    sfa = allocate_tensor_memory(as_ptr.dtype.element_ty, [M, K // VEC], TS)
    sfb = allocate_tensor_memory(bs_ptr.dtype.element_ty, [N, K // VEC], TB)
    bar = mbarrier.allocate_mbarrier()
    mbarrier.init(bar, 1)
    LA: gl.constexpr = sfa.get_reg_layout()
    LB: gl.constexpr = sfb.get_reg_layout()
    sfa.store(gl.load(as_ptr + offsets(M, K // VEC, K // VEC, LA)))
    sfb.store(gl.load(bs_ptr + offsets(N, K // VEC, K // VEC, LB)))
    sa = gl.allocate_shared_memory(a_ptr.dtype.element_ty, [M, K // PACK], SA)
    sb = gl.allocate_shared_memory(b_ptr.dtype.element_ty, [N, K // PACK], SA)
    sa.store(gl.load(a_ptr + offsets(M, K // PACK, K // PACK, B)))
    sb.store(gl.load(b_ptr + offsets(N, K // PACK, K // PACK, B)))
    fence_async_shared()
    hopper.cluster.barrier()
    tcgen05_mma_scaled(sa, sb.permute((1, 0)), acc, sfa, sfb, FORMAT, FORMAT, use_acc=False)
    tcgen05_commit(bar)
    mbarrier.wait(bar, 0)
    hopper.cluster.barrier()
    mbarrier.invalidate(bar)
    L: gl.constexpr = acc.get_reg_layout()
    gl.store(o_ptr + offsets(M, N, N, L), acc.load(L))


@gluon.jit
def tmem_copy(x_ptr, o_ptr, N: gl.constexpr, SW: gl.constexpr):
    """o = x through tcgen05.cp; x f32 [128, N]."""
    B: gl.constexpr = gl.BlockedLayout([1, 4], [4, 8], [4, 1], [1, 0])
    S: gl.constexpr = gl.NVMMASharedLayout(SW, 32, 2)
    s = gl.allocate_shared_memory(gl.float32, [128, N], S, gl.load(x_ptr + offsets(128, N, N, B)))
    t = allocate_tensor_memory(gl.float32, [128, N], TensorMemoryLayout([128, N], 1))
    bar = mbarrier.allocate_mbarrier()
    mbarrier.init(bar, 1)
    fence_async_shared()
    tcgen05_copy(s, t)
    tcgen05_commit(bar)
    mbarrier.wait(bar, 0)
    mbarrier.invalidate(bar)
    L: gl.constexpr = t.get_reg_layout()
    gl.store(o_ptr + offsets(128, N, N, L), t.load(L))


@gluon.jit
def wgmma(a_ptr, b_ptr, o_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, BITS: gl.constexpr, SWA: gl.constexpr, SWB: gl.constexpr,
          KI: gl.constexpr, REG: gl.constexpr, TA: gl.constexpr, TB: gl.constexpr, ACC: gl.constexpr):
    """o = a @ b; a [M, K] (TA: stored [K, M]), b [K, N] (TB: stored [N, K]); REG: a in registers."""
    B: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    D: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, KI])
    SA: gl.constexpr = gl.NVMMASharedLayout(SWA, BITS, 2)
    SB: gl.constexpr = gl.NVMMASharedLayout(SWB, BITS, 2)
    RA: gl.constexpr = K if TA else M
    CA: gl.constexpr = M if TA else K
    RB: gl.constexpr = N if TB else K
    CB: gl.constexpr = K if TB else N
    a = gl.load(a_ptr + offsets(RA, CA, CA, B))
    b = gl.load(b_ptr + offsets(RB, CB, CB, B))
    sb = gl.allocate_shared_memory(b.dtype, [RB, CB], SB, b)
    acc = gl.zeros([M, N], ACC, layout=D)
    if TB:
        vb = sb.permute((1, 0))
    else:
        vb = sb
    if REG:
        ra = gl.convert_layout(a, gl.DotOperandLayout(0, D, 32 // BITS))
        fence_async_shared()
        acc = hopper.warpgroup_mma(ra, vb, acc, is_async=True)
    else:
        sa = gl.allocate_shared_memory(a.dtype, [RA, CA], SA, a)
        fence_async_shared()
        if TA:
            acc = hopper.warpgroup_mma(sa.permute((1, 0)), vb, acc, is_async=True)
        else:
            acc = hopper.warpgroup_mma(sa, vb, acc, is_async=True)
    acc = hopper.warpgroup_mma_wait(0, deps=[acc])
    gl.store(o_ptr + offsets(M, N, N, D), acc)


@gluon.jit
def pair_tma(a_desc, b_desc, o_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, STEPS: gl.constexpr):
    """o = a @ b.T by a pair of CTAs: TMA brings halves of both to each, and counts the bytes at one barrier of the pair."""
    T: gl.constexpr = TensorMemoryLayout([128, N], 1, [[1, 0]], True)
    acc = allocate_tensor_memory(gl.float32, [M, N], T)
    full = mbarrier.allocate_mbarrier(two_ctas=True)
    done = mbarrier.allocate_mbarrier()
    mbarrier.init(full, 1)
    mbarrier.init(done, 1)
    hopper.cluster.barrier()
    sa = gl.allocate_shared_memory(a_desc.dtype, [M, K], a_desc.layout)
    sb = gl.allocate_shared_memory(b_desc.dtype, [N, K], b_desc.layout)
    for k in range(STEPS):
        mbarrier.expect(full, a_desc.nbytes_per_cta + b_desc.nbytes_per_cta)
        tma.async_load(a_desc, [0, k * K], full, sa)
        tma.async_load(b_desc, [0, k * K], full, sb)
        mbarrier.wait(full, k & 1, deps=[sa, sb])
        tcgen05_mma(sa, sb.permute((1, 0)), acc, use_acc=k > 0)
        tcgen05_commit(done)
        mbarrier.wait(done, k & 1, deps=[sa, sb])
    mbarrier.invalidate(full)
    mbarrier.invalidate(done)
    L: gl.constexpr = acc.get_reg_layout()
    gl.store(o_ptr + offsets(M, N, N, L), acc.load(L))


@gluon.jit
def pairs_multicast(a_desc, b_desc, o_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, STEPS: gl.constexpr):
    """As pair_tma, by two pairs of CTAs with rows of a of their own; one pair's copies of b go to both."""
    T: gl.constexpr = TensorMemoryLayout([128, N], 1, [[1, 0], [2, 0]], True)
    acc = allocate_tensor_memory(gl.float32, [M, N], T)
    sa = gl.allocate_shared_memory(a_desc.dtype, [M, K], a_desc.layout)
    sb = gl.allocate_shared_memory(b_desc.dtype, [N, K], b_desc.layout)
    full = mbarrier.allocate_mbarrier(two_ctas=True)
    done = mbarrier.allocate_mbarrier()
    mbarrier.init(full, 1)
    mbarrier.init(done, tcgen05_mma_barrier_count([sa, sb], True, True))
    hopper.cluster.barrier()
    for k in range(STEPS):
        mbarrier.expect(full, a_desc.nbytes_per_cta + b_desc.nbytes_per_cta)
        tma.async_load(a_desc, [0, k * K], full, sa, multicast=True)
        tma.async_load(b_desc, [0, k * K], full, sb, multicast=True)
        mbarrier.wait(full, k & 1, deps=[sa, sb])
        tcgen05_mma(sa, sb.permute((1, 0)), acc, use_acc=k > 0, multicast=True, mbarriers=[done])
        mbarrier.wait(done, k & 1, deps=[sa, sb])
    mbarrier.invalidate(full)
    mbarrier.invalidate(done)
    L: gl.constexpr = acc.get_reg_layout()
    gl.store(o_ptr + offsets(M, N, N, L), acc.load(L))


@gluon.jit
def pairs_multicast_3d(a_desc, b_desc, o_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, STEPS: gl.constexpr):
    """As pairs_multicast, with the second matrix of b."""
    T: gl.constexpr = TensorMemoryLayout([128, N], 1, [[1, 0], [2, 0]], True)
    acc = allocate_tensor_memory(gl.float32, [M, N], T)
    sa = gl.allocate_shared_memory(a_desc.dtype, [M, K], a_desc.layout)
    sb3 = gl.allocate_shared_memory(b_desc.dtype, [1, N, K], b_desc.layout)
    sb = sb3.reshape((N, K))
    full = mbarrier.allocate_mbarrier(two_ctas=True)
    done = mbarrier.allocate_mbarrier()
    mbarrier.init(full, 1)
    mbarrier.init(done, 2)  # commits of both pairs
    hopper.cluster.barrier()
    for k in range(STEPS):
        mbarrier.expect(full, a_desc.nbytes_per_cta + b_desc.nbytes_per_cta)
        tma.async_load(a_desc, [0, k * K], full, sa, multicast=True)
        tma.async_load(b_desc, [1, 0, k * K], full, sb3, multicast=True)
        mbarrier.wait(full, k & 1, deps=[sa, sb])
        tcgen05_mma(sa, sb.permute((1, 0)), acc, use_acc=k > 0, multicast=True, mbarriers=[done])
        mbarrier.wait(done, k & 1, deps=[sa, sb])
    mbarrier.invalidate(full)
    mbarrier.invalidate(done)
    L: gl.constexpr = acc.get_reg_layout()
    gl.store(o_ptr + offsets(M, N, N, L), acc.load(L))


@gluon.jit
def pair_gather(a_desc, b_desc, r_ptr, o_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr):
    """o = a[r] @ b.T by a pair of CTAs; TMA gathers the rows of a."""
    T: gl.constexpr = TensorMemoryLayout([128, N], 1, [[1, 0]], True)
    X: gl.constexpr = gl.SliceLayout(0, gl.BlockedLayout([1, 4], [32, 1], [1, 4], [1, 0], [[0, 1]]))
    SA: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2, cga_layout=[[1, 0]])
    acc = allocate_tensor_memory(gl.float32, [M, N], T)
    full = mbarrier.allocate_mbarrier(two_ctas=True)
    done = mbarrier.allocate_mbarrier()
    mbarrier.init(full, 1)
    mbarrier.init(done, 1)
    hopper.cluster.barrier()
    sa = gl.allocate_shared_memory(a_desc.dtype, [M, K], SA)
    sb = gl.allocate_shared_memory(b_desc.dtype, [N, K], b_desc.layout)
    rows = gl.load(r_ptr + gl.arange(0, M, layout=X))
    mbarrier.expect(full, (M * K + N * K) // 2 * 2)
    tma.async_gather(a_desc, rows, 0, full, sa)
    tma.async_load(b_desc, [0, 0], full, sb)
    mbarrier.wait(full, 0, deps=[sa, sb])
    tcgen05_mma(sa, sb.permute((1, 0)), acc, use_acc=False)
    tcgen05_commit(done)
    mbarrier.wait(done, 0, deps=[sa, sb])
    mbarrier.invalidate(full)
    mbarrier.invalidate(done)
    L: gl.constexpr = acc.get_reg_layout()
    gl.store(o_ptr + offsets(M, N, N, L), acc.load(L))


@gluon.jit
def pairs_gather_multicast(a_desc, b_desc, r_ptr, o_ptr, M: gl.constexpr, N: gl.constexpr, K: gl.constexpr):
    """As pair_gather, by two pairs of CTAs with rows of b of their own; the gathered rows go to both."""
    T: gl.constexpr = TensorMemoryLayout([128, N // 2], 1, [[1, 0], [0, 1]], True)
    X: gl.constexpr = gl.SliceLayout(0, gl.BlockedLayout([1, 4], [32, 1], [1, 4], [1, 0], [[0, 1], [0, 0]]))
    SA: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2, cga_layout=[[1, 0], [0, 0]])
    acc = allocate_tensor_memory(gl.float32, [M, N], T)
    sa = gl.allocate_shared_memory(a_desc.dtype, [M, K], SA)
    sb = gl.allocate_shared_memory(b_desc.dtype, [N, K], b_desc.layout)
    full = mbarrier.allocate_mbarrier(two_ctas=True)
    done = mbarrier.allocate_mbarrier()
    mbarrier.init(full, 1)
    mbarrier.init(done, tcgen05_mma_barrier_count([sa, sb], True, True))
    hopper.cluster.barrier()
    rows = gl.load(r_ptr + gl.arange(0, M, layout=X))
    mbarrier.expect(full, M * K + b_desc.nbytes_per_cta)
    tma.async_gather(a_desc, rows, 0, full, sa, multicast=True)
    tma.async_load(b_desc, [0, 0], full, sb, multicast=True)
    mbarrier.wait(full, 0, deps=[sa, sb])
    tcgen05_mma(sa, sb.permute((1, 0)), acc, use_acc=False, multicast=True, mbarriers=[done])
    mbarrier.wait(done, 0, deps=[sa, sb])
    mbarrier.invalidate(full)
    mbarrier.invalidate(done)
    L: gl.constexpr = acc.get_reg_layout()
    gl.store(o_ptr + offsets(M, N, N, L), acc.load(L))


@gluon.jit
def tma_3d(x_desc, o_ptr, B: gl.constexpr, R: gl.constexpr, C: gl.constexpr):
    """o = the box [B, R, C] of x at [1, -2, 8]."""
    bar = mbarrier.allocate_mbarrier()
    mbarrier.init(bar, 1)
    s = gl.allocate_shared_memory(x_desc.dtype, [B, R, C], x_desc.layout)
    mbarrier.expect(bar, x_desc.nbytes_per_cta)
    tma.async_load(x_desc, [1, -2, 8], bar, s)
    mbarrier.wait(bar, 0)
    mbarrier.invalidate(bar)
    L: gl.constexpr = gl.BlockedLayout([1, 1, 1], [1, 1, 32], [1, 4, 1], [2, 1, 0])
    b = gl.arange(0, B, layout=gl.SliceLayout(1, gl.SliceLayout(2, L)))
    r = gl.arange(0, R, layout=gl.SliceLayout(0, gl.SliceLayout(2, L)))
    c = gl.arange(0, C, layout=gl.SliceLayout(0, gl.SliceLayout(1, L)))
    gl.store(o_ptr + b[:, None, None] * (R * C) + r[None, :, None] * C + c[None, None, :], s.load(L))
