#!/usr/bin/env bash
# Triton: x / y in float32 is div.full.f32, off by up to 2 units in the last place, a maximum over 448 even div.approx.f32, and tl.sqrt flushes subnormals, so that an FP8 scale is not the number that the same line gives in PyTorch, CUDA C++ or LLVM, which round exactly. tl.div_rn and tl.sqrt_rn do.
# Needs python3 (3.11 or later), about 1 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir triton==3.9.0 nvidia-cuda-nvrtc==13.5.37 llvmlite==0.50.0
export TMPDIR="$dir" TRITON_CACHE_DIR="$dir/cache"; unset TRITON_INTERPRET
cat > "$dir/check.py" <<'PY'
import ctypes, glob, re, sys
from importlib.metadata import version
import llvmlite.binding as llvm, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def scale(X, S, N: tl.constexpr):
    tl.store(S, tl.max(tl.abs(tl.load(X + tl.arange(0, N)))) / 448.0)

@triton.jit
def quantise(X, S, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(X + i, tl.load(X + i) / tl.load(S))

@triton.jit
def root(X, S, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(X + i, tl.sqrt(tl.load(X + i)))

@triton.jit
def asked_scale(X, S, N: tl.constexpr):
    tl.store(S, tl.div_rn(tl.max(tl.abs(tl.load(X + tl.arange(0, N)))), 448.0))

@triton.jit
def asked_quantise(X, S, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(X + i, tl.div_rn(tl.load(X + i), tl.load(S)))

@triton.jit
def asked_root(X, S, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(X + i, tl.sqrt_rn(tl.load(X + i)))

used = lambda ptx: sorted(set(re.findall(r"\b(?:div|sqrt|rcp)\.(?!s32|u32|s64|u64)[\w.]+", ptx)))
by_triton = lambda kernel, cc: used(triton.compile(ASTSource(kernel, {"X": "*fp32", "S": "*fp32", "N": "constexpr"}, {(2,): 128}), target=GPUTarget("cuda", cc, 32)).asm["ptx"])

def by_nvrtc(line):
    lib = ctypes.CDLL(glob.glob(sys.prefix + "/lib/python*/site-packages/nvidia/cu13/lib/libnvrtc.so.13")[0])
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert lib.nvrtcCreateProgram(ctypes.byref(program), f'extern "C" __global__ void k(float* x, float* s) {{ float v = x[threadIdx.x]; x[threadIdx.x] = {line}; }}'.encode(), b"k.cu", 0, None, None) == 0
    assert lib.nvrtcCompileProgram(program, 1, (ctypes.c_char_p * 1)(b"-arch=compute_90")) == 0
    assert lib.nvrtcGetPTXSize(program, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert lib.nvrtcGetPTX(program, text) == 0
    return used(text.value.decode())

def by_llvm(line):
    llvm.initialize_all_targets(); llvm.initialize_all_asmprinters()
    m = llvm.parse_assembly(f'target triple = "nvptx64-nvidia-cuda"\ndeclare float @llvm.sqrt.f32(float)\ndefine float @k(float %v, float %s) {{\n%r = {line}\nret float %r\n}}')
    return used(llvm.Target.from_triple("nvptx64-nvidia-cuda").create_target_machine(cpu="sm_90", features="+ptx80", opt=2).emit_assembly(m))

print("triton", triton.__version__, "nvidia-cuda-nvrtc", version("nvidia-cuda-nvrtc"), "llvmlite", version("llvmlite"))
bad = []
for cc in (80, 90, 100, 120):
    found = {k.__name__: by_triton(k, cc) for k in (scale, quantise, root, asked_scale, asked_quantise, asked_root)}
    if cc == 90:
        for (name, got), line in zip(found.items(), ("max(abs(x)) / 448.0", "x / s", "tl.sqrt(x)", "tl.div_rn(max(abs(x)), 448.0)", "tl.div_rn(x, s)", "tl.sqrt_rn(x)")):
            print(f"Triton for sm_90, {line}: {' '.join(got)}")
    bad += [found != {"scale": ["div.approx.f32"], "quantise": ["div.full.f32"], "root": ["sqrt.approx.ftz.f32"], "asked_scale": ["div.rn.f32"], "asked_quantise": ["div.rn.f32"], "asked_root": ["sqrt.rn.f32"]}]
for name, got, want in (("NVRTC, v / 448.0f", by_nvrtc("v / 448.0f"), "div.rn.f32"), ("NVRTC, v / s[0]", by_nvrtc("v / s[0]"), "div.rn.f32"), ("NVRTC, sqrtf(v)", by_nvrtc("sqrtf(v)"), "sqrt.rn.f32"),
                        ("LLVM, fdiv", by_llvm("fdiv float %v, %s"), "div.rn.f32"), ("LLVM, llvm.sqrt", by_llvm("call float @llvm.sqrt.f32(float %v)"), "sqrt.rn.f32")):
    print(f"{name}: {' '.join(got)}")
    bad += [got != [want]]
sys.exit(any(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
