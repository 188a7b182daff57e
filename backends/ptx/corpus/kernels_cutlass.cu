// A GEMM of CUTLASS, and a host program that prints how CUTLASS itself would launch it.
#include "cutlass/cutlass.h"
#include "cute/tensor.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/detail/sm100_blockscaled_layout.hpp"
#include "cutlass/gemm/device/gemm_universal_adapter.h"
#include "cutlass/gemm/kernel/gemm_universal.hpp"
#include "cutlass/util/packed_stride.hpp"
#include <cstdio>
using namespace cute;

#ifndef K_SCHED
#define K_SCHED cutlass::gemm::collective::KernelScheduleAuto
#define K_EPI cutlass::epilogue::collective::EpilogueScheduleAuto
#endif
using ElementA = K_EA;
using ElementB = K_EB;
using Row = cutlass::layout::RowMajor;
using Col = cutlass::layout::ColumnMajor;
using ElementD = cutlass::bfloat16_t;
using TileShape = Shape<Int<K_TM>, Int<K_TN>, Int<K_TK>>;
using ClusterShape = Shape<Int<K_CM>, Int<K_CN>, _1>;
using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::K_ARCH, K_OPCLASS, TileShape, ClusterShape,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, Row, 8, ElementD, Row, 8, K_EPI>::CollectiveOp;
using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::K_ARCH, K_OPCLASS, ElementA, Row, K_AA, ElementB, Col, K_AB, float, TileShape,
    ClusterShape, cutlass::gemm::collective::StageCount<K_STAGES>, K_SCHED>::CollectiveOp;
using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue, void>;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

static int n_maps;
extern "C" CUresult CUDAAPI cuTensorMapEncodeTiled(CUtensorMap* m, CUtensorMapDataType t, cuuint32_t rank, void* p, const cuuint64_t* dims,
    const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* es, CUtensorMapInterleave il, CUtensorMapSwizzle sw, CUtensorMapL2promotion, CUtensorMapFloatOOBfill oob) {
  printf("map %d type %d ptr %llx interleave %d swizzle %d oob %d rank %u\n dims", n_maps, t, (unsigned long long)p, il, sw, oob, rank);
  for (unsigned i = 0; i < rank; i++) printf(" %llu", (unsigned long long)dims[i]);
  printf("\n strides");
  for (unsigned i = 0; i + 1 < rank; i++) printf(" %llu", (unsigned long long)strides[i]);
  printf("\n box");
  for (unsigned i = 0; i < rank; i++) printf(" %u", box[i]);
  printf("\n es");
  for (unsigned i = 0; i < rank; i++) printf(" %u", es[i]);
  printf("\n");
  char* c = (char*)m;
  for (int i = 0; i < 128; i++) c[i] = 0;
  snprintf(c, 64, "TENSORMAP%d", n_maps++);
  return CUDA_SUCCESS;
}
extern "C" CUresult CUDAAPI cuTensorMapEncodeIm2col(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const int*, const int*, cuuint32_t, cuuint32_t, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) { return CUDA_ERROR_NOT_SUPPORTED; }

template <class T> T* fake(int i) { return reinterpret_cast<T*>(0x7e0000000000ull + (unsigned long long)i * 0x100000000ull); }

int main() {
  int M = K_PM, N = K_PN, K = K_PK, L = K_PL;
  auto sa = cutlass::make_cute_packed_stride(typename Kernel::StrideA{}, {M, K, L});
  auto sb = cutlass::make_cute_packed_stride(typename Kernel::StrideB{}, {N, K, L});
  auto sd = cutlass::make_cute_packed_stride(typename Kernel::StrideD{}, {M, N, L});
  typename Kernel::StrideC sc{};
  typename Gemm::Arguments args{cutlass::gemm::GemmUniversalMode::kGemm, {M, N, K, L}};
  args.mainloop.ptr_A = fake<std::remove_const_t<std::remove_pointer_t<decltype(args.mainloop.ptr_A)>>>(1);
  args.mainloop.dA = sa;
  args.mainloop.ptr_B = fake<std::remove_const_t<std::remove_pointer_t<decltype(args.mainloop.ptr_B)>>>(2);
  args.mainloop.dB = sb;
#ifdef K_SCALED
  using Cfg = typename Mainloop::Sm1xxBlkScaledConfig;
  args.mainloop.ptr_SFA = fake<std::remove_const_t<std::remove_pointer_t<decltype(args.mainloop.ptr_SFA)>>>(3);
  args.mainloop.layout_SFA = Cfg::tile_atom_to_shape_SFA(make_shape(M, N, K, L));
  args.mainloop.ptr_SFB = fake<std::remove_const_t<std::remove_pointer_t<decltype(args.mainloop.ptr_SFB)>>>(4);
  args.mainloop.layout_SFB = Cfg::tile_atom_to_shape_SFB(make_shape(M, N, K, L));
  print("SFA "); print(args.mainloop.layout_SFA); print("\nSFB "); print(args.mainloop.layout_SFB); print("\n");
#endif
  args.epilogue.thread = {1.0f, 0.0f};
  args.epilogue.ptr_C = nullptr;
  args.epilogue.dC = sc;
  args.epilogue.ptr_D = fake<ElementD>(5);
  args.epilogue.dD = sd;
  args.hw_info.device_id = 0;
  args.hw_info.sm_count = 148;
  args.hw_info.max_active_clusters = 32;
  args.hw_info.cluster_shape = dim3(K_CM, K_CN, 1);
  args.hw_info.cluster_shape_fallback = dim3(K_CM, K_CN, 1);
  auto params = Kernel::to_underlying_arguments(args, fake<void*>(6));
  dim3 g = Kernel::get_grid_shape(params), b = Kernel::get_block_shape();
  printf("workspace %zu\n", Kernel::get_workspace_size(args));
  printf("grid %u %u %u block %u %u %u cluster %d %d 1 smem %d size %zu\n", g.x, g.y, g.z, b.x, b.y, b.z, K_CM, K_CN, (int)Kernel::SharedStorageSize, sizeof(params));
  printf("params ");
  for (size_t i = 0; i < sizeof(params); i++) printf("%02x", ((unsigned char*)&params)[i]);
  printf("\n");
  void* p = (void*)&cutlass::device_kernel<Kernel>;
  return p == nullptr;
}
