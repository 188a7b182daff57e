"""Kernels of header libraries in CUDA C++, instantiated and compiled to PTX by nvcc: CUB, FlashInfer."""

import pathlib
import subprocess

import numpy as np
import nvidia
from ml_dtypes import bfloat16

from harness import Kernel, randn, wide

CUDA = pathlib.Path(list(nvidia.__path__)[0]) / "cu13"
ALL = ("sm_80", "sm_90a", "sm_100a", "sm_120a")

SORT = """
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_load.cuh>
#include <cub/block/block_store.cuh>
extern "C" __global__ void sort_pairs(const float *keys, const int *values, float *keys_out, int *values_out) {
    using Sort = cub::BlockRadixSort<float, 128, 8, int>;
    __shared__ typename Sort::TempStorage storage;
    float key[8]; int value[8];
    cub::LoadDirectBlocked(threadIdx.x, keys + blockIdx.x * 1024, key);
    cub::LoadDirectBlocked(threadIdx.x, values + blockIdx.x * 1024, value);
    Sort(storage).SortDescendingBlockedToStriped(key, value);
    cub::StoreDirectStriped<128>(threadIdx.x, keys_out + blockIdx.x * 1024, key);
    cub::StoreDirectStriped<128>(threadIdx.x, values_out + blockIdx.x * 1024, value);
}
"""
OFFSETS = """
#include <cub/block/block_scan.cuh>
#include <cub/block/block_reduce.cuh>
// Tokens of each expert, and where each expert's begin: the counts that an engine's alignment of experts starts with.
extern "C" __global__ void expert_offsets(const int *ids, int n, int *counts, int *offsets) {
    using Scan = cub::BlockScan<int, 256>;
    __shared__ typename Scan::TempStorage storage;
    __shared__ int count[256];
    count[threadIdx.x] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += 256) atomicAdd(&count[ids[i]], 1);
    __syncthreads();
    int mine = count[threadIdx.x], before;
    Scan(storage).ExclusiveSum(mine, before);
    counts[threadIdx.x] = mine;
    offsets[threadIdx.x] = before;
}
"""
NORM = """
#include <cfloat>
#include <flashinfer/norm.cuh>
template __global__ void flashinfer::norm::RMSNormKernel<8, __nv_bfloat16>(
    __nv_bfloat16 *, __nv_bfloat16 *, __nv_bfloat16 *, uint32_t, uint32_t, uint32_t, float, float);
"""
SAMPLE = """
#include <flashinfer/sampling.cuh>
template __global__ void flashinfer::sampling::OnlineSoftmaxFusedKernel<512, 4, float, true>(float *, float *, float *, float, uint32_t);
"""
ACTIVATION = """
#include <cuda_bf16.h>
#include <flashinfer/activation.cuh>
__device__ __forceinline__ float silu(const float &x) { return x / (1.f + __expf(-x)); }
template __global__ void flashinfer::activation::act_and_mul_kernel<__nv_bfloat16, silu, 8>(__nv_bfloat16 *, const __nv_bfloat16 *, int);
"""


def nvcc(source, target, work, *includes):
    work.mkdir(parents=True, exist_ok=True)
    path = work / "source.cu"
    path.write_text(source)
    command = [CUDA / "bin/nvcc", "-ptx", f"-arch={target}", "-std=c++17", "-lineinfo", "-o", work / "source.ptx", path]
    for folder in (*includes, CUDA / "include/cccl", CUDA / "cccl"):
        command += ["-I", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[:3000])
    return (work / "source.ptx").read_text()


def sort(ptx):
    keys = np.round(randn(21, 3, 1024), 1)  # Many are equal: the order of those is the test.
    values = np.arange(3 * 1024, dtype=np.int32).reshape(3, 1024)
    order = np.argsort(-keys, axis=1, kind="stable")
    params = [{"buffer": name} for name in ("keys", "values", "keys_out", "values_out")]
    buffers = dict(keys=keys, values=values, keys_out=np.zeros_like(keys), values_out=np.zeros_like(values))
    want = dict(keys_out=(np.take_along_axis(keys, order, 1), 0), values_out=(np.take_along_axis(values, order, 1), 0))
    return Kernel(ptx, [3], [128], params, buffers, want)


def offsets(ptx):
    ids = np.random.default_rng(22).integers(0, 200, 3000).astype(np.int32)
    counts = np.bincount(ids, minlength=256).astype(np.int32)
    params = [{"buffer": "ids"}, {"i32": 3000}, {"buffer": "counts"}, {"buffer": "offsets"}]
    buffers = dict(ids=ids, counts=np.zeros(256, np.int32), offsets=np.zeros(256, np.int32))
    return Kernel(ptx, [1], [256], params, buffers, dict(counts=(counts, 0), offsets=((np.cumsum(counts) - counts).astype(np.int32), 0)))


def norm(ptx):
    d, rows = 1536, 5
    x, w = randn(23, rows, d, dtype=bfloat16), randn(24, d, dtype=bfloat16)
    y = (wide(x) / np.sqrt((wide(x) ** 2).mean(1, keepdims=True) + 1e-6) * wide(w)).astype(bfloat16)
    params = [{"buffer": "x"}, {"buffer": "w"}, {"buffer": "y"}, {"u32": d}, {"u32": d}, {"u32": d}, {"f32": 0.0}, {"f32": 1e-6}]
    return Kernel(ptx, [rows], [32, 6], params, dict(x=x, w=w, y=np.zeros_like(x)), dict(y=(y, 1e-3)), smem=6 * 4)


def activation(ptx):
    d, rows = 1000, 4
    x = randn(25, rows, 2 * d, dtype=bfloat16)
    gate, up = wide(x[:, :d]), wide(x[:, d:])
    y = (gate / (1 + np.exp(-gate)) * up).astype(bfloat16)
    params = [{"buffer": "y"}, {"buffer": "x"}, {"i32": d}]
    return Kernel(ptx, [rows], [125], params, dict(x=x, y=np.zeros((rows, d), bfloat16)), dict(y=(y, 1e-3)))


def softmax(ptx):
    # Shared memory as FlashInfer's launch has it: what its threads reduce over (below 512 bytes), and a vector more than the row.
    d, rows = 3000, 3
    x = randn(26, rows, d, scale=3)
    temperature = np.array([0.7, 1.0, 1.5], np.float32)
    e = np.exp((wide(x) - wide(x).max(1, keepdims=True)) / wide(temperature)[:, None])
    y = (e / e.sum(1, keepdims=True)).astype(np.float32)
    params = [{"buffer": "x"}, {"buffer": "y"}, {"buffer": "temperature"}, {"f32": 1.0}, {"u32": d}]
    return Kernel(ptx, [rows], [512], params, dict(x=x, y=np.zeros_like(x), temperature=temperature), dict(y=(y, 1e-5)), smem=512 + 4 * (d + 4))


KERNELS = [
    ("nvidia-cuda-cccl", "BlockRadixSort", "pairs, descending", SORT, sort),
    ("nvidia-cuda-cccl", "BlockScan", "where experts begin", OFFSETS, offsets),
    ("flashinfer-python", "RMSNormKernel", "RMS norm", NORM, norm),
    ("flashinfer-python", "act_and_mul_kernel", "SwiGLU", ACTIVATION, activation),
    ("flashinfer-python", "OnlineSoftmaxFusedKernel", "softmax of logits", SAMPLE, softmax),
]


def kernels(packages, work):
    for package, name, what, source, make in KERNELS:
        for target in ALL:
            def build(source=source, make=make, target=target):
                return make(nvcc(source, target, work / "nvcc", packages / "flashinfer/data/include"))

            yield package, name, what, target, build
