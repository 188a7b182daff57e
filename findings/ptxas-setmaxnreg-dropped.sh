#!/usr/bin/env bash
# ptxas: setmaxnreg is left out of the code unless the count of registers at entry is known, and a block size alone does not tell it: .minnctapersm beside it or .maxnreg does. -maxrregcount tells it only where no block size is given. NVRTC does the same from __launch_bounds__; exit code 0 and an info line.
# Needs python3 (3.10 or later), about 600 MB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir --no-deps nvidia-cuda-nvcc==13.5.37 nvidia-cuda-nvdisasm==13.5.37 nvidia-cuda-nvrtc==13.5.37
export TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import ctypes, glob, re, subprocess, sys, tempfile
from importlib.metadata import version

HOME = glob.glob(sys.prefix + "/lib/python*/site-packages/nvidia/cu13/")[0]
ARCH, LIMIT = "sm_90a", "-maxrregcount=168"
# Three warpgroups: one gives registers back, two take them.
PTX = """.version 9.0
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 p) {given}
{{
.reg .b64 %p; .reg .b32 %t; .reg .pred %q;
mov.u32 %t, %tid.x; setp.lt.u32 %q, %t, 128; @%q bra LOAD;
setmaxnreg.inc.sync.aligned.u32 240; bra DONE;
LOAD: setmaxnreg.dec.sync.aligned.u32 24;
DONE: ld.param.u64 %p, [p]; st.global.b32 [%p], %t; ret;
}}
"""
CUDA = """extern "C" __global__ void {given} k(int* p) {{
    if (threadIdx.x < 128) asm volatile("setmaxnreg.dec.sync.aligned.u32 24;"); else asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    p[0] = threadIdx.x;
}}"""

def kept(cubin, said):
    listing = subprocess.run([HOME + "bin/nvdisasm", "-c", cubin], capture_output=True, text=True, check=True).stdout
    return len(re.findall(r"\bUSETMAXREG", listing)), "C7508" in said

def ptxas(given, *flags):
    path = tempfile.mkdtemp() + "/k"
    open(path + ".ptx", "w").write(PTX.format(given=given))
    run = subprocess.run([HOME + "bin/ptxas", "-arch=" + ARCH, *flags, path + ".ptx", "-o", path + ".cubin"], capture_output=True, text=True, check=True)
    return kept(path + ".cubin", run.stdout + run.stderr)

def nvrtc(given, *flags):
    lib, program, size = ctypes.CDLL(HOME + "lib/libnvrtc.so.13"), ctypes.c_void_p(), ctypes.c_size_t()
    def read(what):
        assert getattr(lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
        data = ctypes.create_string_buffer(size.value)
        assert getattr(lib, "nvrtcGet" + what)(program, data) == 0
        return data.raw
    assert lib.nvrtcCreateProgram(ctypes.byref(program), CUDA.format(given=given).encode(), b"k.cu", 0, None, None) == 0
    options = ["-arch=" + ARCH, *flags]
    assert lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*[o.encode() for o in options])) == 0
    path = tempfile.mkdtemp() + "/k.cubin"
    open(path, "wb").write(read("CUBIN"))
    return kept(path, read("ProgramLog").decode())

print("ptxas of nvidia-cuda-nvcc", version("nvidia-cuda-nvcc"), "nvidia-cuda-nvrtc", version("nvidia-cuda-nvrtc"), "for", ARCH)
CASES = [(ptxas, "", 0, 2), (ptxas, ".maxntid 384", 0, 0), (ptxas, ".reqntid 384", 0, 0), (ptxas, ".reqntid 384 .minnctapersm 1", 2, 2), (ptxas, ".reqntid 384 .maxnreg 168", 2, 2), (ptxas, ".maxnreg 168", 2, 2),
         (nvrtc, "__launch_bounds__(384)", 0, 0), (nvrtc, "__launch_bounds__(384, 1)", 2, 2)]
bad = 0
for tool, given, plain, limited in CASES:
    for flags, want in ((), plain), ((LIMIT,), limited):
        n, info = tool(given, *flags)
        print(f"{' '.join((tool.__name__, *flags, given or 'with no directive'))}: {n} of 2 setmaxnreg are in the code; an info line says that they are ignored: {info}")
        bad += n != want or info != (want == 0)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
