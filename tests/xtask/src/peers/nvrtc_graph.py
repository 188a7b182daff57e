"""CUDA C++ compiled by NVRTC at run time, its launch captured into a graph and replayed: cuda-bindings, and cuda-core's stream."""

import numpy as np
from cuda.bindings import driver, nvrtc
from cuda.core import Device

SOURCE = b"""
extern "C" __global__ void saxpy(float a, const float *x, float *y, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] += a * x[i];
}
"""


def call(result):
    assert int(result[0]) == 0, result[0]
    return result[1] if len(result) == 2 else result[1:]


device = Device()
device.set_current()
stream = device.create_stream()
major, minor = device.compute_capability
program = call(nvrtc.nvrtcCreateProgram(SOURCE, b"saxpy.cu", 0, [], []))
call(nvrtc.nvrtcCompileProgram(program, 2, [f"--gpu-architecture=compute_{major}{minor}".encode(), b"-lineinfo"]))
ptx = b" " * call(nvrtc.nvrtcGetPTXSize(program))
call(nvrtc.nvrtcGetPTX(program, ptx))
kernel = call(driver.cuLibraryGetKernel(call(driver.cuLibraryLoadData(ptx, [], [], 0, [], [], 0)), b"saxpy"))
function = call(driver.cuKernelGetFunction(kernel))

n = 1000
x, y = np.arange(n, dtype=np.float32), np.ones(n, np.float32)
a, b = call(driver.cuMemAlloc(x.nbytes)), call(driver.cuMemAlloc(y.nbytes))
call(driver.cuMemcpyHtoD(a, x.ctypes.data, x.nbytes))
call(driver.cuMemcpyHtoD(b, y.ctypes.data, y.nbytes))
values = [np.array([2], np.float32), np.array([int(a)], np.uint64), np.array([int(b)], np.uint64), np.array([n], np.int32)]
params = np.array([v.ctypes.data for v in values], np.uint64)
handle = driver.CUstream(int(stream.handle))
call(driver.cuStreamBeginCapture(handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
call(driver.cuLaunchKernel(function, 4, 1, 1, 128, 1, 1, 0, handle, params.ctypes.data, 0))
graph = call(driver.cuStreamEndCapture(handle))
replay = call(driver.cuGraphInstantiate(graph, 0))
for _ in range(3):
    call(driver.cuGraphLaunch(replay, handle))
stream.sync()
call(driver.cuMemcpyDtoH(y.ctypes.data, b, y.nbytes))
assert np.array_equal(y, 1 + 6 * x)
print("right")
