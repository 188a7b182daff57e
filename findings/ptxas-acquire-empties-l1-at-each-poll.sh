#!/usr/bin/env bash
# ptxas: a loop that waits for a flag with ld.acquire of GPU or system scope invalidates the whole L1 cache (CCTL.IVALL) at every poll, from A100 to Blackwell; ld.relaxed in the loop and fence.acquire or fence.acq_rel after it does so once. A release store invalidates nothing, fence.acq_rel before a relaxed store does. The same comes of cuda::atomic_ref in CUDA C++.
# Needs python3 (3.10 or later), about 800 MB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir --no-deps nvidia-cuda-nvcc==13.5.37 nvidia-cuda-nvdisasm==13.5.37 nvidia-cuda-nvrtc==13.5.37 nvidia-cuda-cccl==13.3.5.0.6 nvidia-cuda-runtime==13.5.37
export TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import ctypes, glob, re, subprocess, sys, tempfile
from importlib.metadata import version

HOME = glob.glob(sys.prefix + "/lib/python*/site-packages/nvidia/cu13/")[0]
ARCHS = ["sm_80", "sm_90a", "sm_100a", "sm_120a"]
PTX = """.version 9.0
.target {arch}
.address_size 64
.visible .entry k(.param .u64 flag, .param .u64 from, .param .u64 to) {{
.reg .b64 %f, %a, %b; .reg .b32 %r, %v; .reg .pred %q;
ld.param.u64 %f, [flag]; ld.param.u64 %a, [from]; ld.param.u64 %b, [to];
{body}
ret;
}}
"""
COPY = "ld.global.b32 %v, [%a]; st.global.b32 [%b], %v;"
WAIT = "AGAIN: {load} %r, [%f]; setp.ne.u32 %q, %r, 1; @%q bra AGAIN; {fence}" + COPY
FORMS = {  # PTX, CCTL.IVALL in a loop, and elsewhere
    "wait with ld.acquire.sys": (WAIT.format(load="ld.acquire.sys.global.b32", fence=""), 1, 0),
    "wait with ld.acquire.gpu": (WAIT.format(load="ld.acquire.gpu.global.b32", fence=""), 1, 0),
    "wait with ld.acquire.cta": (WAIT.format(load="ld.acquire.cta.global.b32", fence=""), 0, 0),
    "wait with ld.relaxed.sys, then fence.acq_rel.sys": (WAIT.format(load="ld.relaxed.sys.global.b32", fence="fence.acq_rel.sys; "), 0, 1),
    "wait with ld.relaxed.sys, then fence.acquire.sys": (WAIT.format(load="ld.relaxed.sys.global.b32", fence="fence.acquire.sys; "), 0, 1),
    "st.release.sys": (COPY + " st.release.sys.global.b32 [%f], 1;", 0, 0),
    "fence.acq_rel.sys, then st.relaxed.sys": (COPY + " fence.acq_rel.sys; st.relaxed.sys.global.b32 [%f], 1;", 0, 1),
}
CUDA = """#include <cuda/atomic>
extern "C" __global__ void k(unsigned* flag, int* from, int* to) {
    cuda::atomic_ref<unsigned, cuda::thread_scope_system> f(*flag);
    while (f.load(cuda::std::memory_order_acquire) != 1) {}
    *to = *from;
}"""

def count(cubin):
    """CCTL.IVALL in loops and outside of them."""
    text = subprocess.run([HOME + "bin/nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    lines = [re.sub(r"/\*.*?\*/", "", line).strip() for line in text.splitlines()]
    label = {line[:-1]: i for i, line in enumerate(lines) if re.fullmatch(r"\.L_x_\d+:", line)}
    loops = [(label[m[1]], i) for i, line in enumerate(lines) if (m := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)) and label[m[1]] < i]
    end = next(i for i, line in enumerate(lines) if re.search(r"\bEXIT\b", line) and not line.startswith("@"))
    at = [i for i, line in enumerate(lines) if "CCTL.IVALL" in line]
    inside = sum(any(a < i < b for a, b in loops if a < end) for i in at)
    return inside, len(at) - inside

def ptxas(body, arch):
    path = tempfile.mkdtemp() + "/k"
    open(path + ".ptx", "w").write(PTX.format(arch=arch, body=body))
    subprocess.run([HOME + "bin/ptxas", "-arch=" + arch, path + ".ptx", "-o", path + ".cubin"], check=True, capture_output=True)
    return count(path + ".cubin")

def nvrtc(arch):
    lib, program, size = ctypes.CDLL(glob.glob(HOME + "lib/libnvrtc.so.*")[0]), ctypes.c_void_p(), ctypes.c_size_t()
    assert lib.nvrtcCreateProgram(ctypes.byref(program), CUDA.encode(), b"k.cu", 0, None, None) == 0
    options = [b"-arch=" + arch.encode(), b"-I" + (HOME + "include/cccl").encode(), b"-I" + (HOME + "include").encode()]
    code = lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if code:
        lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        lib.nvrtcGetProgramLog(program, log)
        sys.exit(log.value.decode()[:2000])
    assert lib.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    data = ctypes.create_string_buffer(size.value)
    assert lib.nvrtcGetCUBIN(program, data) == 0
    path = tempfile.mkdtemp() + "/k.cubin"
    open(path, "wb").write(data.raw)
    return count(path)

print("ptxas of nvidia-cuda-nvcc", version("nvidia-cuda-nvcc"), "nvidia-cuda-nvrtc", version("nvidia-cuda-nvrtc"), "for", ", ".join(ARCHS))
bad = 0
for name, (body, inside, outside) in FORMS.items():
    archs = [a for a in ARCHS if "fence.acquire" not in body or a != "sm_80"]  # sm_80 has no fence.acquire
    found = {ptxas(body, a) for a in archs}
    print(f"{name}: CCTL.IVALL in the loop and elsewhere {sorted(found)}")
    bad += found != {(inside, outside)}
found = {nvrtc(a) for a in ARCHS}
print(f"CUDA C++, wait with cuda::atomic_ref::load(acquire) of system scope: {sorted(found)}")
bad += any(n[0] < 1 for n in found)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
