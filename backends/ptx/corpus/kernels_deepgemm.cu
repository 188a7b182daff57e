// One kernel of DeepGEMM, as its just-in-time compiler would ask for it: bf16 d = fp8 a times fp4 b, transposed, by pairs of CTAs, with the
// operands swapped, so that b is the first one of the tensor cores.
#include <deep_gemm/impls/sm100_fp8_fp4_gemm_1d1d.cuh>
using namespace deep_gemm;
using cute::UMMA::Major;
void* instantiated() {
  return reinterpret_cast<void*>(&sm100_fp8_fp4_gemm_1d1d_impl<
      Major::K, Major::K, 128, 32, 128,  // one scale for 128 elements of a, for 32 of b
      0, 256, 512,                       // m n k; m when it is launched
      128, 128, 128, 1,                  // a block; groups
      128, 128, 128, 4,                  // bytes of swizzle of a, b, d; stages
      128, 128, 2, true,                 // threads; CTAs of a cluster, with halves of a
      2, true, false, GemmType::Normal, false,  // CTAs of the grid, the operands swapped
      cutlass::float_e4m3_t, cutlass::detail::float_e2m1_unpacksmem_t, cutlass::bfloat16_t, epilogue::transform::EpilogueIdentity>);
}
