#!/usr/bin/env bash
# CUDA C++: a * b + c of __nv_bfloat16 is rounded twice on A100 and Ada and once from Hopper on, where the PTX still has a product and a sum, also over two statements; __half is rounded once everywhere, as both are in Triton. -fmad=false must reach ptxas for these types: PTX made with it is fused again without it, float's is not.
# Needs python3 (3.11 or later), about 1.5 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir nvidia-cuda-nvcc==13.5.37 nvidia-cuda-nvdisasm==13.5.37 nvidia-cuda-nvrtc==13.5.37 nvidia-cuda-runtime==13.5.37 triton==3.9.0 ml_dtypes==0.6.0 numpy==2.4.6
export TMPDIR="$dir" TRITON_CACHE_DIR="$dir/cache"; unset TRITON_INTERPRET TRITON_DEFAULT_FP_FUSION
cat > "$dir/check.py" <<'PY'
import ctypes, glob, re, subprocess, sys, tempfile
from importlib.metadata import version
import ml_dtypes, numpy as np, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOME = glob.glob(sys.prefix + "/lib/python*/site-packages/nvidia/cu13/")[0]
LIB = ctypes.CDLL(HOME + "lib/libnvrtc.so.13")
SOURCE = '#include <cuda_bf16.h>\n#include <cuda_fp16.h>\nextern "C" __global__ void k({t}* p) {{ {body} }}'
BODIES = {"in one expression": "p[3] = p[0] * p[1] + p[2];", "in two statements": "{t} y = __hmul(p[0], p[1]); p[3] = __hadd(y, p[2]);", "with __hmul_rn": "p[3] = __hadd(__hmul_rn(p[0], p[1]), p[2]);"}

def nvrtc(arch, what, kind, body, *flags):
    """What NVRTC makes, and the floating-point instructions of the PTX on its way."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    source = SOURCE.format(t=kind, body=BODIES[body].format(t=kind))
    assert LIB.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"k.cu", 0, None, None) == 0
    options = ["-arch=" + arch, "-I" + HOME + "include", *flags]
    assert LIB.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*[o.encode() for o in options])) == 0
    def read(what):
        assert getattr(LIB, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
        data = ctypes.create_string_buffer(size.value)
        assert getattr(LIB, "nvrtcGet" + what)(program, data) == 0
        return data.raw
    return read(what), named(read("PTX").decode())

def named(ptx):
    return re.findall(r"\b(?:fma|mul|add)\.(?:rn\.)?b?f\w+", ptx)

def computes(cubin):
    path = tempfile.mkdtemp() + "/k.cubin"
    open(path, "wb").write(cubin)
    listing = subprocess.run([HOME + "bin/nvdisasm", "-c", path], capture_output=True, text=True, check=True).stdout
    return [n.split(".")[0] for n in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?((?:HFMA2|HADD2|HMUL2|FFMA|FADD|FMUL)\b[.\w]*)", listing)]

def ptxas(ptx, arch, *flags):
    path = tempfile.mkdtemp() + "/k"
    open(path + ".ptx", "wb").write(ptx.rstrip(b"\0"))
    subprocess.run([HOME + "bin/ptxas", "-arch=" + arch, *flags, path + ".ptx", "-o", path + ".cubin"], check=True, capture_output=True)
    return computes(open(path + ".cubin", "rb").read())

@triton.jit
def fused(a, b, c, y):
    tl.store(y, tl.load(a) * tl.load(b) + tl.load(c))

print("nvidia-cuda-nvrtc", version("nvidia-cuda-nvrtc"), "ptxas of nvidia-cuda-nvcc", version("nvidia-cuda-nvcc"), "triton", triton.__version__)
BF16, HALF = "__nv_bfloat16", "__half"
NAMES = {BF16: "bf16", HALF: "fp16", "float": "fp32"}
bad = 0
for kind in (BF16, HALF):
    for body in BODIES:
        for arch in ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120"):
            cubin, ptx = nvrtc(arch, "CUBIN", kind, body)
            n = len(computes(cubin))
            twice = body == "with __hmul_rn" or kind == BF16 and arch in ("sm_80", "sm_89")
            bad += n != (2 if twice else 1) or len(ptx) != 2
            if arch in ("sm_80", "sm_90"):
                print(f"{kind} {body} for {arch}: PTX {' '.join(ptx)}, machine code {' '.join(computes(cubin))}: rounded {('once', 'twice')[n - 1]}")
    made = [triton.compile(ASTSource(fused, {n: "*" + NAMES[kind] for n in "abcy"}, {}), target=GPUTarget("cuda", a, 32)).asm["ptx"] for a in (80, 90)]
    print(f"{NAMES[kind]} in Triton for sm_80 and sm_90: PTX {' '.join(named(made[0]))} and {' '.join(named(made[1]))}")
    bad += any(len(named(m)) != 1 for m in made)
for kind in (BF16, HALF, "float"):
    ptx, found = nvrtc("compute_90", "PTX", kind, "in one expression", "-fmad=false")
    got = {f: ptxas(ptx, "sm_90", *f) for f in ((), ("-fmad=false",))}
    print(f"{kind}, PTX made with -fmad=false, {' '.join(found)}: ptxas makes {' '.join(got[()])} of it, with -fmad=false {' '.join(got['-fmad=false',])}")
    bad += len(got[()]) != (2 if kind == "float" else 1) or len(got["-fmad=false",]) != 2

# What that is in numbers: products are exact in float32, sums in float64.
rng, bf = np.random.default_rng(1), ml_dtypes.bfloat16
a, b, c = (rng.standard_normal(100000).astype(bf).astype(np.float32) for _ in range(3))
once = (a.astype(np.float64) * b + c).astype(np.float32).astype(bf).astype(np.float32)
twice = ((a * b).astype(bf).astype(np.float32) + c).astype(bf).astype(np.float32)
far = np.abs(once - twice) / np.maximum(np.abs(once), 1e-6)
print(f"random a, b and c: the two differ in {np.mean(once != twice):.1%}, by more than 1% in {np.mean(far > .01):.2%}; 1.0078125 * 1.0078125 - 1.015625 is {1.0078125 ** 2 - 1.015625:g} or {float(np.float32(1.0078125 ** 2).astype(bf)) - 1.015625:g}")
sys.exit(bool(bad or np.mean(once != twice) < .05))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
