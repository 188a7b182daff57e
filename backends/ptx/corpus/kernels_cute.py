"""Matrix products in CuTe DSL: c[m, n] = a[m, k] · b[n, k]ᵀ, both operands with k innermost, f32 results."""
import cutlass
import cutlass.cute as cute
import cutlass.utils.blackwell_helpers as blackwell
import cutlass.utils.hopper_helpers as hopper
from cutlass.cute.nvgpu import cpasync, make_tiled_tma_atom_A, make_tiled_tma_atom_B, tcgen05, warpgroup

STAGES = 2
F32, I32, I64 = cutlass.Float32, cutlass.Int32, cutlass.Int64


def tile_of(tensor, tile, at):
    """The tiles of `tile` elements in row `at`, all along k: (tile, steps of k)."""
    return cute.local_tile(tensor, tile, (at, None))


def tcgen05_product(dtype):
    """One `tcgen05.mma` of 128 x 128 x 16 a step, operands in shared memory."""
    major = tcgen05.OperandMajorMode.K
    return cute.make_tiled_mma(tcgen05.MmaF16BF16Op(dtype, F32, (128, 128, 16), tcgen05.CtaGroup.ONE, tcgen05.OperandSource.SMEM, major, major))


@cute.kernel
def tcgen05_kernel(load_a: cute.CopyAtom, a: cute.Tensor, load_b: cute.CopyAtom, b: cute.Tensor, c: cute.Tensor,
                   a_layout: cute.ComposedLayout, b_layout: cute.ComposedLayout, tile: cutlass.Constexpr, dtype: cutlass.Constexpr):
    thread, _, _ = cute.arch.thread_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    row, column, _ = cute.arch.block_idx()
    bm, bn, bk = tile
    mma = tcgen05_product(dtype)

    room = cutlass.utils.SmemAllocator()
    full = room.allocate_array(I64, STAGES)
    empty = room.allocate_array(I64, STAGES)
    done = room.allocate_array(I64, 1)
    columns = room.allocate_array(I32, 1)
    sa = room.allocate_tensor(dtype, a_layout.outer, byte_alignment=1024, swizzle=a_layout.inner)
    sb = room.allocate_tensor(dtype, b_layout.outer, byte_alignment=1024, swizzle=b_layout.inner)

    if warp == 0:
        with cute.arch.elect_one():
            for s in cutlass.range_constexpr(STAGES):
                cute.arch.mbarrier_init(full + s, 1)
                cute.arch.mbarrier_init(empty + s, 1)
            cute.arch.mbarrier_init(done, 1)
            cute.arch.mbarrier_init_fence()
        cute.arch.alloc_tmem(bn, columns)
        cute.arch.relinquish_tmem_alloc_permit()
    cute.arch.barrier()

    part = mma.get_slice(0)
    ga, gb = tile_of(a, (bm, bk), row), tile_of(b, (bn, bk), column)
    gc = cute.local_tile(c, (bm, bn), (row, column))
    pa, pb, pc = part.partition_A(ga), part.partition_B(gb), part.partition_C(gc)
    one = cute.make_layout(1)
    to_a, from_a = cpasync.tma_partition(load_a, 0, one, cute.group_modes(sa, 0, 3), cute.group_modes(pa, 0, 3))
    to_b, from_b = cpasync.tma_partition(load_b, 0, one, cute.group_modes(sb, 0, 3), cute.group_modes(pb, 0, 3))
    fa, fb = mma.make_fragment_A(sa), mma.make_fragment_B(sb)
    address = cute.arch.retrieve_tmem_ptr(F32, alignment=16, ptr_to_buffer_holding_addr=columns)
    acc = cute.make_tensor(address, mma.make_fragment_C(mma.partition_shape_C((bm, bn))).layout)

    steps = cute.size(ga, mode=[2])
    size = (bm + bn) * bk * dtype.width // 8
    if warp == 0:
        for k in cutlass.range(steps, unroll=1):
            s, turn = k % STAGES, k // STAGES % 2
            cute.arch.mbarrier_wait(empty + s, turn ^ 1)
            with cute.arch.elect_one():
                cute.arch.mbarrier_arrive_and_expect_tx(full + s, size)
            cute.copy(load_a, from_a[None, k], to_a[None, s], tma_bar_ptr=full + s)
            cute.copy(load_b, from_b[None, k], to_b[None, s], tma_bar_ptr=full + s)
    if warp == 1:
        for k in cutlass.range(steps, unroll=1):
            s, turn = k % STAGES, k // STAGES % 2
            cute.arch.mbarrier_wait(full + s, turn)
            for step in cutlass.range_constexpr(cute.size(fa, mode=[2])):
                mma.set(tcgen05.Field.ACCUMULATE, k != 0 or step != 0)
                cute.gemm(mma, acc, fa[None, None, step, s], fb[None, None, step, s], acc)
            with cute.arch.elect_one():
                tcgen05.commit(empty + s)
        with cute.arch.elect_one():
            tcgen05.commit(done)
    cute.arch.mbarrier_wait(done, 0)

    atom = cute.make_copy_atom(tcgen05.Ld32x32bOp(tcgen05.Repetition.x32, tcgen05.Pack.NONE), F32)
    pieces, places = cute.zipped_divide(acc, ((cute.size(acc, mode=[0, 0]), 32),)), cute.zipped_divide(pc, ((cute.size(acc, mode=[0, 0]), 32),))
    copy = tcgen05.make_tmem_copy(atom, pieces[None, 0])
    mine = copy.get_slice(thread)
    t, g = mine.partition_S(pieces), mine.partition_D(places)
    for i in cutlass.range_constexpr(cute.size(t, mode=[2])):
        values = cute.make_rmem_tensor(g[None, None, 0].shape, F32)
        cute.copy(copy, t[None, None, i], values)
        cute.arch.fence_view_async_tmem_load()
        cute.autovec_copy(values, g[None, None, i])
    cute.arch.barrier()
    if warp == 0:
        cute.arch.dealloc_tmem(address, bn)


@cute.jit
def tcgen05_matmul(a: cute.Tensor, b: cute.Tensor, c: cute.Tensor):
    tile = (128, 128, 64)
    mma = tcgen05_product(a.element_type)
    a_layout = blackwell.make_smem_layout_a(mma, tile, a.element_type, STAGES)
    b_layout = blackwell.make_smem_layout_b(mma, tile, b.element_type, STAGES)
    load = cpasync.CopyBulkTensorTileG2SOp(tcgen05.CtaGroup.ONE)
    load_a, ta = make_tiled_tma_atom_A(load, a, cute.select(a_layout, mode=[0, 1, 2]), tile, mma)
    load_b, tb = make_tiled_tma_atom_B(load, b, cute.select(b_layout, mode=[0, 1, 2]), tile, mma)
    grid = (c.shape[0] // 128, c.shape[1] // 128, 1)
    tcgen05_kernel(load_a, ta, load_b, tb, c, a_layout, b_layout, tile, a.element_type).launch(grid=grid, block=(128, 1, 1))


def wgmma_product(dtype):
    """Two warpgroups, one below the other, each with `wgmma` of 64 x 128 x 16."""
    major = warpgroup.OperandMajorMode.K
    return hopper.make_trivial_tiled_mma(dtype, dtype, major, major, F32, (2, 1, 1), (64, 128))


@cute.kernel
def wgmma_kernel(load_a: cute.CopyAtom, a: cute.Tensor, load_b: cute.CopyAtom, b: cute.Tensor, c: cute.Tensor,
                 a_layout: cute.ComposedLayout, b_layout: cute.ComposedLayout, tile: cutlass.Constexpr, dtype: cutlass.Constexpr):
    thread, _, _ = cute.arch.thread_idx()
    warp = cute.arch.make_warp_uniform(cute.arch.warp_idx())
    row, column, _ = cute.arch.block_idx()
    bm, bn, bk = tile
    mma = wgmma_product(dtype)

    room = cutlass.utils.SmemAllocator()
    full = room.allocate_array(I64, STAGES)
    sa = room.allocate_tensor(dtype, a_layout.outer, byte_alignment=1024, swizzle=a_layout.inner)
    sb = room.allocate_tensor(dtype, b_layout.outer, byte_alignment=1024, swizzle=b_layout.inner)
    if warp == 0:
        with cute.arch.elect_one():
            for s in cutlass.range_constexpr(STAGES):
                cute.arch.mbarrier_init(full + s, 1)
            cute.arch.mbarrier_init_fence()
    cute.arch.barrier()

    ga, gb = tile_of(a, (bm, bk), row), tile_of(b, (bn, bk), column)
    gc = cute.local_tile(c, (bm, bn), (row, column))
    one = cute.make_layout(1)
    to_a, from_a = cpasync.tma_partition(load_a, 0, one, cute.group_modes(sa, 0, 2), cute.group_modes(ga, 0, 2))
    to_b, from_b = cpasync.tma_partition(load_b, 0, one, cute.group_modes(sb, 0, 2), cute.group_modes(gb, 0, 2))
    part = mma.get_slice(thread)
    fa, fb = mma.make_fragment_A(part.partition_A(sa)), mma.make_fragment_B(part.partition_B(sb))
    pc = part.partition_C(gc)
    acc = cute.make_rmem_tensor(pc.shape, F32)
    acc.fill(0.0)

    steps = cute.size(ga, mode=[2])
    size = (bm + bn) * bk * dtype.width // 8
    for k in cutlass.range(steps, unroll=1):
        s, turn = k % STAGES, k // STAGES % 2
        # The stage was read in the last turn; everyone has waited for that product.
        if warp == 0:
            with cute.arch.elect_one():
                cute.arch.mbarrier_arrive_and_expect_tx(full + s, size)
            cute.copy(load_a, from_a[None, k], to_a[None, s], tma_bar_ptr=full + s)
            cute.copy(load_b, from_b[None, k], to_b[None, s], tma_bar_ptr=full + s)
        cute.arch.mbarrier_wait(full + s, turn)
        warpgroup.fence()
        mma.set(warpgroup.Field.ACCUMULATE, True)
        for step in cutlass.range_constexpr(cute.size(fa, mode=[2])):
            cute.gemm(mma, acc, fa[None, None, step, s], fb[None, None, step, s], acc)
        warpgroup.commit_group()
        warpgroup.wait_group(0)
        cute.arch.barrier()
    cute.autovec_copy(acc, pc)


@cute.jit
def wgmma_matmul(a: cute.Tensor, b: cute.Tensor, c: cute.Tensor):
    tile = (128, 128, 64)
    k_major = cutlass.utils.LayoutEnum.ROW_MAJOR
    a_layout = hopper.make_smem_layout_a(k_major, tile, a.element_type, STAGES)
    b_layout = hopper.make_smem_layout_b(k_major, tile, b.element_type, STAGES)
    load = cpasync.CopyBulkTensorTileG2SOp()
    load_a, ta = cpasync.make_tiled_tma_atom(load, a, cute.select(a_layout, mode=[0, 1]), (tile[0], tile[2]))
    load_b, tb = cpasync.make_tiled_tma_atom(load, b, cute.select(b_layout, mode=[0, 1]), (tile[1], tile[2]))
    grid = (c.shape[0] // 128, c.shape[1] // 128, 1)
    wgmma_kernel(load_a, ta, load_b, tb, c, a_layout, b_layout, tile, a.element_type).launch(grid=grid, block=(256, 1, 1))
