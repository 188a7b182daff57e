// Batched matrix products with block scales, written for this corpus: D[l] = A[l] · B[l]ᵀ, where the values of a row of A and B are codes that one
// scale for 16 or 32 of them multiplies. gen_scaled.py compiles one at a time:
//
// * -DK_tcgen05: sm_100a, tensor memory. -DCTAS=2 lets pairs of CTAs multiply. -DFORMAT: 0 = e2m1 widened to bytes by TMA times e4m3 (mxf8f6f4),
//   1 = e2m1 times e2m1 with powers of two (mxf4), 2 = the same with e4m3 scales (mxf4nvf4). Stores from registers, or with -DTRANSPOSED=1 by
//   stmatrix and TMA, D[l] transposed.
// * -DK_warp_mma: sm_120a, FORMAT 0 by mma.sync.
//
// All walk over their tiles by cluster launch control: a CTA that is done takes the place of one that has not started.
//
// Scales lie in blocks of 512 bytes for 128 rows and 4 steps along k: row r at byte 16 (r % 32) + 4 (r / 32).
#include <cuda.h>
#include <cuda_bf16.h>
#include <cstdint>

using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;

struct Problem {
  CUtensorMap a, b, scales_a, scales_b, out;
  __nv_bfloat16* d;
  int m, n, k_tiles;
};

constexpr int ROWS = 128;        // rows of A in one CTA
constexpr int ROW_BYTES = 128;   // of an operand in a stage: one swizzle atom
constexpr int SCALE_BLOCK = 512;
constexpr int STAGES = 2;

#define DEVICE __device__ __forceinline__

DEVICE u32 shared(const void* p) { return (u32)__cvta_generic_to_shared(p); }

DEVICE bool elect() {
  u32 yes;
  asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}" : "=r"(yes));
  return yes;
}

DEVICE u32 rank_in_cluster() {
  u32 r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}

DEVICE u32 in_cta(u32 address, u32 rank) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

DEVICE void barrier_init(u32 bar, u32 count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count)); }

DEVICE void expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

DEVICE void expect_in(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cluster.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

DEVICE void arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }

template <int PARTNERS>
DEVICE void arrive_in(u32 bar) {
  // Without a peer the scope of one CTA, the default, is enough.
  if (PARTNERS == 1) asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
  else asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}

DEVICE void wait(u32 bar, u32 parity) {
  asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again;}" ::"r"(bar), "r"(parity) : "memory");
}

DEVICE void wait_cluster(u32 bar, u32 parity) {
  asm volatile("{.reg .pred p; again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1; @!p bra again;}" ::"r"(bar), "r"(parity)
               : "memory");
}

DEVICE bool is_complete(u32 bar, u32 parity) {
  u32 yes;
  asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}" : "=r"(yes) : "r"(bar), "r"(parity) : "memory");
  return yes;
}

DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A place in a ring: the stage and how often the ring was walked, as the parity of its barriers.
struct Place {
  u32 stage = 0, parity = 0;
  DEVICE void next() {
    stage += 1;
    if (stage == STAGES) { stage = 0; parity ^= 1; }
  }
};

struct Tile {
  int x, y, z;
};

// What clusterlaunchcontrol answered: whether a cluster was cancelled, and its first CTA.
DEVICE bool read_answer(u32 answer, Tile& tile) {
  u32 yes, x, y, z;
  asm volatile(
      "{.reg .b128 q; .reg .pred p; .reg .b32 w; ld.shared.b128 q, [%4];\n"
      "mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
      "clusterlaunchcontrol.query_cancel.is_canceled.pred.b128 p, q;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "@p clusterlaunchcontrol.query_cancel.get_first_ctaid.v4.b32.b128 {%1, %2, %3, w}, q;}"
      : "=r"(yes), "=&r"(x), "=&r"(y), "=&r"(z)
      : "r"(answer)
      : "memory");
  tile = {(int)x, (int)y, (int)z};
  return yes;
}

DEVICE void ask(u32 answer, u32 bar) {
  asm volatile(
      "clusterlaunchcontrol.try_cancel.async.shared::cta.mbarrier::complete_tx::bytes.multicast::cluster::all.b128 [%0], [%1];" ::"r"(answer), "r"(bar)
      : "memory");
}

DEVICE u64 policy_evict_first() {
  u64 p;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
  return p;
}

DEVICE u32 pack(float low, float high) {
  u32 both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

DEVICE void store_tile(const CUtensorMap* map, u32 from, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(from), "r"(x), "r"(y), "r"(z) : "memory");
}

DEVICE void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
DEVICE void wait_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
DEVICE void wait_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
DEVICE void sync_storing_warps() { asm volatile("bar.sync 1, 128;" ::: "memory"); }

#ifdef K_tcgen05
#ifndef CTAS
#define CTAS 1
#endif
#ifndef TRANSPOSED
#define TRANSPOSED 0
#endif
#if CTAS == 2
#define GROUP "cta_group::2"
#else
#define GROUP "cta_group::1"
#endif

constexpr int COLUMNS = 128;  // of D
constexpr int B_ROWS = COLUMNS / CTAS;
constexpr int BLOCKS = FORMAT == 0 ? 1 : FORMAT == 1 ? 2 : 4;  // of scales, for 128 rows of a stage
constexpr int K_TILE = FORMAT == 0 ? 128 : 256;
// Of e2m1 in bytes of its own, TMA counts only what it reads.
constexpr u32 COPIED_BYTES = (FORMAT == 0 ? ROWS / 2 : ROWS) * ROW_BYTES + B_ROWS * ROW_BYTES + 2 * BLOCKS * SCALE_BLOCK;
constexpr u32 TMEM_COLUMNS = 256, SCALES_A = 128, SCALES_B = 160;

struct Shared {
  unsigned char a[STAGES][ROWS * ROW_BYTES], b[STAGES][B_ROWS * ROW_BYTES];
  unsigned char scales_a[STAGES][BLOCKS * SCALE_BLOCK], scales_b[STAGES][BLOCKS * SCALE_BLOCK];
#if TRANSPOSED
  __align__(1024) __nv_bfloat16 out[2][COLUMNS][64];
#endif
  __align__(16) uint4 answer;
  u64 full[STAGES], empty[STAGES], product, product_read, answered, answer_read;
  u32 tmem;
};

DEVICE void await(u32 bar, u32 parity) {
  if (CTAS == 1) wait(bar, parity);
  else wait_cluster(bar, parity);
}

DEVICE void load_operand(u32 to, const CUtensorMap* map, u32 bar, int k, int row, int batch, u64 policy) {
#if CTAS == 2
  asm volatile(
      "cp.async.bulk.tensor.3d.cta_group::2.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(map), "r"(bar), "r"(k), "r"(row), "r"(batch), "l"(policy)
      : "memory");
#else
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
               "l"(map), "r"(bar), "r"(k), "r"(row), "r"(batch), "l"(policy)
               : "memory");
#endif
}

DEVICE void load_scales(u32 to, const CUtensorMap* map, u32 bar, int byte, int k_block, int row_block, int batch, bool to_both, u64 policy) {
  int x = byte / 2;  // the map's elements are two bytes: a box has at most 256
#if CTAS == 2
  if (to_both)
    asm volatile(
        "cp.async.bulk.tensor.4d.cta_group::2.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint"
        " [%0], [%1, {%3, %4, %5, %6}], [%2], %7, %8;" ::"r"(to),
        "l"(map), "r"(bar), "r"(x), "r"(k_block), "r"(row_block), "r"(batch), "h"((u16)3), "l"(policy)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.4d.cta_group::2.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(
            to),
        "l"(map), "r"(bar), "r"(x), "r"(k_block), "r"(row_block), "r"(batch), "l"(policy)
        : "memory");
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to), "l"(map),
      "r"(bar), "r"(x), "r"(k_block), "r"(row_block), "r"(batch), "l"(policy)
      : "memory");
#endif
}

// When everything that this thread gave to the tensor core is done, the barrier has one arrival more: in both CTAs of a pair.
DEVICE void commit(u32 bar) {
#if CTAS == 2
  asm volatile("tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64 [%0], %1;" ::"r"(bar), "h"((u16)3) : "memory");
#else
  asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(bar) : "memory");
#endif
}

DEVICE void copy_scales(u32 tmem, u32 from) {
  u64 desc = (u64)(from >> 4) | (u64)1 << 16 | (u64)(128 >> 4) << 32 | (u64)1 << 46;  // no swizzle, 128 bytes from 8 rows to the next
  asm volatile("tcgen05.cp." GROUP ".32x128b.warpx4 [%0], %1;" ::"r"(tmem), "l"(desc) : "memory");
}

DEVICE void multiply(u32 d, u32 a, u32 b, u32 idesc, u32 scales_a, u32 scales_b, bool adds) {
  const u64 rest = (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 46 | (u64)2 << 61;  // k-major, swizzle of 128 bytes
  u64 da = (u64)(a >> 4) | rest, db = (u64)(b >> 4) | rest;
#if FORMAT == 0
#define KIND "kind::mxf8f6f4.block_scale"
#elif FORMAT == 1
#define KIND "kind::mxf4.block_scale.block32"
#else
#define KIND "kind::mxf4nvf4.block_scale.block16"
#endif
  asm volatile("{.reg .pred p; setp.ne.b32 p, %6, 0; tcgen05.mma." GROUP "." KIND " [%0], %1, %2, %3, [%4], [%5], p;}" ::"r"(d), "l"(da), "l"(db), "r"(idesc),
               "r"(scales_a), "r"(scales_b), "r"((u32)adds)
               : "memory");
}

DEVICE u32 descriptor(int step) {
  u32 d = (COLUMNS / 8) << 17 | (ROWS * CTAS / 128) << 27;
  if (FORMAT == 0) d |= 5 << 7 | 0 << 10 | 1 << 23 | step << 4 | (u32)step << 29;       // e2m1, e4m3, ue8m0; the byte of the scales
  if (FORMAT == 1) d |= 1 << 7 | 1 << 10 | 1 << 23 | (step % 2 * 2) << 4 | (u32)(step % 2 * 2) << 29;
  if (FORMAT == 2) d |= 1 << 7 | 1 << 10;
  return d;
}

extern "C" __global__ void __launch_bounds__(256, 1)
#if CTAS == 2
    __cluster_dims__(2, 1, 1)
#endif
    scaled(const __grid_constant__ Problem p) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared& s = *reinterpret_cast<Shared*>(raw);
  const u32 warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const u32 rank = CTAS == 1 ? 0 : rank_in_cluster();
  const bool leads = rank == 0;

  if (warp == 0 && elect()) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&p.a));
    asm volatile("prefetch.tensormap [%0];" ::"l"(&p.b));
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(shared(&s.full[i]), 1);
      barrier_init(shared(&s.empty[i]), 1);
    }
    barrier_init(shared(&s.product), 1);
    barrier_init(shared(&s.product_read), 4 * CTAS);
    barrier_init(shared(&s.answered), 1);
    // Who reads: the copying thread and four storing warps of each CTA, the multiplying and the asking thread.
    barrier_init(shared(&s.answer_read), 5 * CTAS + 2);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (warp == 3) {
    asm volatile("tcgen05.alloc." GROUP ".sync.aligned.shared::cta.b32 [%0], %1;" ::"r"(shared(&s.tmem)), "r"(TMEM_COLUMNS) : "memory");
    asm volatile("tcgen05.relinquish_alloc_permit." GROUP ".sync.aligned;");
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
  }
#if CTAS == 2
  // What the barriers hold is released by the fence above.
  __syncthreads();
  asm volatile("barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
  asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
  const u32 tmem = s.tmem;

  Tile tile = {(int)(blockIdx.x - rank), (int)blockIdx.y, (int)blockIdx.z};
  u32 answers = 0;
  // Waits for the next tile; the caller then says that it has read it.
  auto next_tile = [&] {
    await(shared(&s.answered), answers & 1);
    ++answers;
    bool more = read_answer(shared(&s.answer), tile);
    fence_async();  // the next answer is written by another proxy
    return more;
  };
  const u32 answer_read = in_cta(shared(&s.answer_read), 0);

  if (warp == 0 && elect()) {
    const u64 policy = policy_evict_first();
    Place at;
    bool more = true;
    while (more) {
      for (int k = 0; k < p.k_tiles; ++k, at.next()) {
        await(shared(&s.empty[at.stage]), at.parity ^ 1);
        // Both CTAs' copies count at the first one's barrier.
        u32 bar = CTAS == 1 ? shared(&s.full[at.stage]) : in_cta(shared(&s.full[at.stage]), 0);
        if (leads) expect(shared(&s.full[at.stage]), COPIED_BYTES * CTAS);
        int row = (tile.x + rank) * ROWS;
        load_operand(shared(s.a[at.stage]), &p.a, bar, k * K_TILE, row, tile.z, policy);
        load_operand(shared(s.b[at.stage]), &p.b, bar, k * K_TILE, tile.y * COLUMNS + rank * B_ROWS, tile.z, policy);
        load_scales(shared(s.scales_a[at.stage]), &p.scales_a, bar, 0, k * BLOCKS, row / ROWS, tile.z, false, policy);
        // Each CTA multiplies with all columns: of their scales it copies its part to both.
        const int part = rank * (SCALE_BLOCK / CTAS);
        load_scales(shared(s.scales_b[at.stage]) + part, &p.scales_b, bar, part, k * BLOCKS, tile.y, tile.z, true, policy);
      }
      more = next_tile();
      arrive_in<CTAS>(answer_read);
    }
  } else if (warp == 1 && leads && elect()) {
    Place at;
    bool more = true;
    for (u32 n = 0; more; ++n) {
      await(shared(&s.product_read), (n & 1) ^ 1);
      asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
      for (int k = 0; k < p.k_tiles; ++k, at.next()) {
        if (!is_complete(shared(&s.full[at.stage]), at.parity)) await(shared(&s.full[at.stage]), at.parity);
        asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
        for (int i = 0; i < BLOCKS; ++i) {
          copy_scales(tmem + SCALES_A + 4 * i, shared(s.scales_a[at.stage]) + i * SCALE_BLOCK);
          copy_scales(tmem + SCALES_B + 4 * i, shared(s.scales_b[at.stage]) + i * SCALE_BLOCK);
        }
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          const u32 block = FORMAT == 0 ? 0 : FORMAT == 1 ? step / 2 : step;
          // The two highest bits of the scales' address may repeat the byte that the descriptor names.
          const u32 scales = tmem + 4 * block + (FORMAT == 1 ? (u32)(step % 2 * 2) << 30 : 0);
          multiply(tmem, shared(s.a[at.stage]) + 32 * step, shared(s.b[at.stage]) + 32 * step, descriptor(step), scales + SCALES_A, scales + SCALES_B,
                   k > 0 || step > 0);
        }
        commit(shared(&s.empty[at.stage]));
      }
      commit(shared(&s.product));
      more = next_tile();
      arrive_in<CTAS>(answer_read);
    }
  } else if (warp == 2 && leads && elect()) {
    bool more = true;
    for (u32 n = 0; more; ++n) {
      await(shared(&s.answer_read), (n & 1) ^ 1);
      for (u32 cta = 0; cta < CTAS; ++cta) expect_in(in_cta(shared(&s.answered), cta), 16);
      ask(shared(&s.answer), shared(&s.answered));
      more = next_tile();
      arrive_in<CTAS>(answer_read);
    }
  } else if (warp >= 4) {
    const u32 first_lane = (warp - 4) * 32;
    bool more = true;
    for (u32 n = 0; more; ++n) {
      await(shared(&s.product), n & 1);
      asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
      const u32 from = tmem + (first_lane << 16);
#if TRANSPOSED
      if (warp == 4 && lane == 0) wait_stores_read();
      sync_storing_warps();
      for (int c = 0; c < COLUMNS; c += 8) {
        // 32 rows by 8 columns: four matrices of 8 by 8, which stmatrix turns round.
        u32 v[8];
        asm volatile("tcgen05.ld.sync.aligned.16x256b.x1.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(from + c));
        asm volatile("tcgen05.ld.sync.aligned.16x256b.x1.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v[4]), "=r"(v[5]), "=r"(v[6]), "=r"(v[7])
                     : "r"(from + (16 << 16) + c));
        asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
        u32 q[4];
        for (int i = 0; i < 4; ++i) q[i] = pack(__uint_as_float(v[2 * i]), __uint_as_float(v[2 * i + 1]));
        const u32 row = first_lane + lane / 8 * 8, column = c + lane % 8;
        const u32 to = shared(&s.out[row / 64][column][0]) + ((row % 64 / 8) ^ (column & 7)) * 16;
        asm volatile("stmatrix.sync.aligned.x4.m8n8.shared.b16.trans [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(q[0]), "r"(q[1]), "r"(q[2]), "r"(q[3])
                     : "memory");
      }
#else
      __nv_bfloat16* to = p.d + ((u64)tile.z * p.m + (tile.x + rank) * ROWS + first_lane + lane) * p.n + tile.y * COLUMNS;
      for (int c = 0; c < COLUMNS; c += 64) {
        u32 v[64];
#define R8(i) "=r"(v[i]), "=r"(v[i + 1]), "=r"(v[i + 2]), "=r"(v[i + 3]), "=r"(v[i + 4]), "=r"(v[i + 5]), "=r"(v[i + 6]), "=r"(v[i + 7])
        asm volatile(
            "tcgen05.ld.sync.aligned.32x32b.x64.b32 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, "
            "%23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "
            "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, [%64];"
            : R8(0), R8(8), R8(16), R8(24), R8(32), R8(40), R8(48), R8(56)
            : "r"(from + c));
        asm volatile("tcgen05.wait::ld.sync.aligned;" ::: "memory");
        for (int i = 0; i < 64; i += 8) {
          u32 q[4];
          for (int j = 0; j < 4; ++j) q[j] = pack(__uint_as_float(v[i + 2 * j]), __uint_as_float(v[i + 2 * j + 1]));
          *reinterpret_cast<uint4*>(to + c + i) = make_uint4(q[0], q[1], q[2], q[3]);
        }
      }
#endif
      asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
      __syncwarp();
      if (lane == 0) arrive_in<CTAS>(in_cta(shared(&s.product_read), 0));
#if TRANSPOSED
      fence_async();
      sync_storing_warps();
      if (warp == 4 && lane == 0) {
        for (int half = 0; half < 2; ++half) store_tile(&p.out, shared(s.out[half]), (tile.x + rank) * ROWS + half * 64, tile.y * COLUMNS, tile.z);
        commit_stores();
      }
#endif
      more = next_tile();
      __syncwarp();
      if (lane == 0) arrive_in<CTAS>(answer_read);
    }
    if (TRANSPOSED && warp == 4 && lane == 0) wait_stores();
  }
  __syncwarp();
  asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
  // The peer's barriers and tensor memory are used to the end.
  if (CTAS == 2) cluster_sync();
  else __syncthreads();
  if (warp == 3) {
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
    asm volatile("tcgen05.dealloc." GROUP ".sync.aligned.b32 %0, %1;" ::"r"(tmem), "r"(TMEM_COLUMNS));
  }
}
#endif

#ifdef K_warp_mma
constexpr int COLUMNS = 64, K_TILE = 128;
constexpr u32 COPIED_BYTES = ROWS / 2 * ROW_BYTES + COLUMNS * ROW_BYTES + 2 * SCALE_BLOCK;

struct Shared {
  unsigned char a[STAGES][ROWS * ROW_BYTES], b[STAGES][COLUMNS * ROW_BYTES];
  __align__(1024) __nv_bfloat16 out[ROWS][COLUMNS];
  __align__(128) unsigned char scales_a[STAGES][SCALE_BLOCK], scales_b[STAGES][SCALE_BLOCK];
  __align__(16) uint4 answer;
  u64 full[STAGES], empty[STAGES], answered, answer_read;
};

DEVICE void load_operand(u32 to, const CUtensorMap* map, u32 bar, int k, int row, int batch, u64 policy) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to), "l"(map),
               "r"(bar), "r"(k), "r"(row), "r"(batch), "l"(policy)
               : "memory");
}

DEVICE void load_scales(u32 to, const CUtensorMap* map, u32 bar, int k_block, int row_block, int batch, u64 policy) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to), "l"(map),
               "r"(bar), "r"(0), "r"(k_block), "r"(row_block), "r"(batch), "l"(policy)
               : "memory");
}

// Byte `byte` of row `row` of a tile of 128-byte rows under the 128-byte swizzle.
DEVICE u32 swizzled(u32 base, u32 row, u32 byte) { return base + row * ROW_BYTES + (byte ^ (row & 7) * 16); }

DEVICE u32 scale_word(const unsigned char* scales, u32 row) { return *reinterpret_cast<const u32*>(scales + row % 32 * 16 + row / 32 * 4); }

// One step of 32 along k: byte `STEP` of the scales.
template <int STEP>
DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, u32 scale_a, u32 scale_b) {
  asm volatile(
      "mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e2m1.e4m3.f32.ue8m0 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3}, {%10}, {%12, 0}, {%11}, {%12, 0};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(scale_a), "r"(scale_b), "n"(STEP));
}

template <int STEP>
DEVICE void step(float (&d)[2][8][4], u32 a_tile, u32 b_tile, u32 warp, u32 lane, const u32 (&scales_a)[2], const u32 (&scales_b)[8]) {
  u32 a[2][4];
  for (int i = 0; i < 2; ++i) {
    // Matrices of 8 rows by 16 codes: rows 0-7 and 8-15 of the first half of k, then of the second.
    u32 row = warp * 32 + i * 16 + lane % 16, byte = STEP * 32 + lane / 16 * 16;
    asm volatile("ldmatrix.sync.aligned.m8n16.x4.shared.b8x16.b4x16_p64 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[i][0]), "=r"(a[i][1]), "=r"(a[i][2]), "=r"(a[i][3])
                 : "r"(swizzled(a_tile, row, byte))
                 : "memory");
    for (int j = 0; j < 4; ++j) a[i][j] <<= 2;  // mma.sync reads e2m1 in bits 2 to 5
  }
  for (int n = 0; n < 8; n += 2) {
    u32 b[4], row = n * 8 + lane / 16 * 8 + lane % 8, byte = STEP * 32 + lane / 8 % 2 * 16;
    asm volatile("ldmatrix.sync.aligned.x4.m8n8.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(swizzled(b_tile, row, byte))
                 : "memory");
    for (int i = 0; i < 2; ++i) {
      multiply<STEP>(d[i][n], a[i], b[0], b[1], scales_a[i], scales_b[n]);
      multiply<STEP>(d[i][n + 1], a[i], b[2], b[3], scales_a[i], scales_b[n + 1]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256, 1) scaled(const __grid_constant__ Problem p) {
  extern __shared__ __align__(1024) unsigned char raw[];
  Shared& s = *reinterpret_cast<Shared*>(raw);
  const u32 warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (warp == 0 && elect()) {
    for (int i = 0; i < STAGES; ++i) {
      barrier_init(shared(&s.full[i]), 1);
      barrier_init(shared(&s.empty[i]), 4);
    }
    barrier_init(shared(&s.answered), 1);
    barrier_init(shared(&s.answer_read), 6);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  Tile tile = {(int)blockIdx.x, (int)blockIdx.y, (int)blockIdx.z};
  u32 answers = 0;
  auto next_tile = [&] {
    wait(shared(&s.answered), answers & 1);
    ++answers;
    bool more = read_answer(shared(&s.answer), tile);
    fence_async();  // the next answer is written by another proxy
    return more;
  };
  const u32 answer_read = in_cta(shared(&s.answer_read), 0);

  if (warp >= 4) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp == 4 && elect()) {
      const u64 policy = policy_evict_first();
      Place at;
      bool more = true;
      while (more) {
        for (int k = 0; k < p.k_tiles; ++k, at.next()) {
          wait(shared(&s.empty[at.stage]), at.parity ^ 1);
          u32 bar = shared(&s.full[at.stage]);
          expect(bar, COPIED_BYTES);
          load_operand(shared(s.a[at.stage]), &p.a, bar, k * K_TILE, tile.x * ROWS, tile.z, policy);
          load_operand(shared(s.b[at.stage]), &p.b, bar, k * K_TILE, tile.y * COLUMNS, tile.z, policy);
          load_scales(shared(s.scales_a[at.stage]), &p.scales_a, bar, k, tile.x, tile.z, policy);
          load_scales(shared(s.scales_b[at.stage]), &p.scales_b, bar, k, tile.y / 2, tile.z, policy);
        }
        more = next_tile();
        arrive_in<1>(answer_read);
      }
    } else if (warp == 5 && elect()) {
      bool more = true;
      for (u32 n = 0; more; ++n) {
        wait(shared(&s.answer_read), (n & 1) ^ 1);
        expect_in(in_cta(shared(&s.answered), 0), 16);
        ask(shared(&s.answer), shared(&s.answered));
        more = next_tile();
        arrive_in<1>(answer_read);
      }
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  Place at;
  bool more = true;
  while (more) {
    float d[2][8][4] = {};
    for (int k = 0; k < p.k_tiles; ++k, at.next()) {
      if (!is_complete(shared(&s.full[at.stage]), at.parity)) wait(shared(&s.full[at.stage]), at.parity);
      // Of a quad, lane 0 gives the scale of its row and lane 1 that of the row eight below; of columns, lane 0.
      u32 scales_a[2], scales_b[8];
      for (int i = 0; i < 2; ++i) scales_a[i] = scale_word(s.scales_a[at.stage], warp * 32 + i * 16 + lane / 4 + lane % 2 * 8);
      for (int n = 0; n < 8; ++n) scales_b[n] = scale_word(s.scales_b[at.stage], tile.y % 2 * 64 + n * 8 + lane / 4);
      const u32 a = shared(s.a[at.stage]), b = shared(s.b[at.stage]);
      step<0>(d, a, b, warp, lane, scales_a, scales_b);
      step<1>(d, a, b, warp, lane, scales_a, scales_b);
      step<2>(d, a, b, warp, lane, scales_a, scales_b);
      step<3>(d, a, b, warp, lane, scales_a, scales_b);
      __syncwarp();
      if (lane == 0) arrive(shared(&s.empty[at.stage]));
    }
    if (threadIdx.x == 0) wait_stores_read();
    sync_storing_warps();
    for (int i = 0; i < 2; ++i)
      for (int n = 0; n < 8; ++n) {
        u32 row = warp * 32 + i * 16 + lane % 16;
        asm volatile("stmatrix.sync.aligned.x2.m8n8.shared.b16 [%0], {%1, %2};" ::"r"(swizzled(shared(s.out), row, n * 16)), "r"(pack(d[i][n][0], d[i][n][1])),
                     "r"(pack(d[i][n][2], d[i][n][3]))
                     : "memory");
      }
    fence_async();
    sync_storing_warps();
    if (threadIdx.x == 0) {
      store_tile(&p.out, shared(s.out), tile.y * COLUMNS, tile.x * ROWS, tile.z);
      commit_stores();
    }
    more = next_tile();
    __syncwarp();
    if (lane == 0) arrive_in<1>(answer_read);
  }
  if (threadIdx.x == 0) wait_stores();
}
#endif
