"""A Triton kernel, compiled ahead of time for the GPU that the driver shows, launched through cuda-bindings."""

import numpy as np
import triton
import triton.language as tl
from cuda.bindings import driver
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def call(result):
    assert int(result[0]) == 0, result[0]
    return result[1] if len(result) == 2 else result[1:]


@triton.jit
def softmax(x, out, n, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < n
    values = tl.load(x + row * n + columns, mask=inside, other=-float("inf"))
    values = tl.exp(values - tl.max(values, 0))
    tl.store(out + row * n + columns, values / tl.sum(values, 0), mask=inside)


call(driver.cuInit(0))
device = call(driver.cuDeviceGet(0))
call(driver.cuCtxSetCurrent(call(driver.cuDevicePrimaryCtxRetain(device))))
major = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
capability = call(driver.cuDeviceGetAttribute(major, device)) * 10
types = {"x": "*fp32", "out": "*fp32", "n": "i32", "BLOCK": "constexpr"}
kernel = triton.compile(ASTSource(softmax, types, {"BLOCK": 256}), target=GPUTarget("cuda", capability, 32))
ptx = kernel.asm["ptx"]
module = call(driver.cuModuleLoadData(ptx.encode() + b"\0"))
function = call(driver.cuModuleGetFunction(module, kernel.metadata.name.encode()))

x = np.random.default_rng(0).standard_normal((37, 200), dtype=np.float32)
got = np.zeros_like(x)
stream = call(driver.cuStreamCreate(1))
a, b = (call(driver.cuMemAllocAsync(x.nbytes, stream)) for _ in range(2))
call(driver.cuMemcpyHtoDAsync(a, x.ctypes.data, x.nbytes, stream))
n_params = ptx[ptx.index(".entry") : ptx.index(")", ptx.index(".entry"))].count(".param")
values = [np.array([int(a)], np.uint64), np.array([int(b)], np.uint64), np.array([x.shape[1]], np.int32)]
values += [np.zeros(1, np.uint64)] * (n_params - 3)
params = np.array([v.ctypes.data for v in values], np.uint64)
threads = 32 * kernel.metadata.num_warps
call(driver.cuLaunchKernel(function, 37, 1, 1, threads, 1, 1, kernel.metadata.shared, stream, params.ctypes.data, 0))
call(driver.cuMemcpyDtoHAsync(got.ctypes.data, b, x.nbytes, stream))
call(driver.cuStreamSynchronize(stream))
want = np.exp(x - x.max(1, keepdims=True))
want /= want.sum(1, keepdims=True)
error = np.abs(got - want).max()
assert error < 1e-6, error
print(f"largest error {error:.1e}")
