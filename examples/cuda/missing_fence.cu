// Scales rows of a matrix in shared memory and writes them back with a bulk copy. One line is missing: the copy reads through
// another proxy than the one the threads wrote through, and nothing orders the two. A B200 gives right numbers most of the time.
//
//   CUDA/bin/nvcc -arch=sm_100a -ptx -lineinfo missing_fence.cu      # wheels: nvidia-cuda-nvcc nvidia-cuda-cccl
//   moec emulate --driver driver                 # libcuda.so, for the linker
//   g++ -x c++ missing_fence.cu -I CUDA/include -L driver -lcuda -o missing_fence
//   moec emulate --gpu b200 -- ./missing_fence missing_fence.ptx
#include <cstdint>
[[maybe_unused]] constexpr int ROWS = 64;
constexpr int COLUMNS = 256;

#ifdef __CUDACC__
extern "C" __global__ void scale(const float *in, float *out, float factor) {
    __shared__ alignas(128) float row[COLUMNS];
    size_t at = size_t(blockIdx.x) * COLUMNS;
    row[threadIdx.x] = in[at + threadIdx.x] * factor;
    // Missing here: asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t from = (uint32_t)__cvta_generic_to_shared(row);
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                     ::"l"(out + at), "r"(from), "n"(COLUMNS * 4) : "memory");
        asm volatile("cp.async.bulk.commit_group;\n\tcp.async.bulk.wait_group 0;" ::: "memory");
    }
}
#else
#include <cstdio>
#include <cstdlib>
#include <cuda.h>
#include <fstream>
#include <sstream>
#include <vector>

#define CHECK(call)                                                                                  \
    if (CUresult code = (call)) {                                                                    \
        const char *name = "?";                                                                      \
        cuGetErrorName(code, &name);                                                                 \
        std::fprintf(stderr, "%s: %s\n", #call, name);                                               \
        std::exit(1);                                                                                \
    }

int main(int, char **argv) {
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUfunction scale;
    CUdeviceptr in, out;
    std::stringstream ptx;
    ptx << std::ifstream(argv[1]).rdbuf();
    CHECK(cuInit(0));
    CHECK(cuDeviceGet(&device, 0));
    CHECK(cuDevicePrimaryCtxRetain(&context, device));
    CHECK(cuCtxSetCurrent(context));
    CHECK(cuModuleLoadData(&module, ptx.str().c_str()));
    CHECK(cuModuleGetFunction(&scale, module, "scale"));
    std::vector<float> host(ROWS * COLUMNS, 3.0f);
    CHECK(cuMemAlloc(&in, host.size() * 4));
    CHECK(cuMemAlloc(&out, host.size() * 4));
    CHECK(cuMemcpyHtoD(in, host.data(), host.size() * 4));
    float factor = 0.5f;
    void *params[] = {&in, &out, &factor};
    CHECK(cuLaunchKernel(scale, ROWS, 1, 1, COLUMNS, 1, 1, 0, nullptr, params, nullptr));
    CHECK(cuCtxSynchronize());
    CHECK(cuMemcpyDtoH(host.data(), out, host.size() * 4));
    for (float x : host)
        if (x != 1.5f) return std::puts("wrong"), 1;
    std::puts("right");
}
#endif
