#!/usr/bin/env bash
# ptxas: exponentials of a pair (ex2.approx.f16x2, .bf16x2) are one instruction on B300 alone, two on A100, H100, B200 and consumer Blackwell; tanh of a pair is two everywhere. fma.f32x2 and maxima of three are one on B200 and two on consumer Blackwell (sm_120), where redux of floats does not assemble. ptxas does not say so.
# Needs python3 (3.10 or later), about 400 MB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir --no-deps nvidia-cuda-nvcc==13.5.37 nvidia-cuda-nvdisasm==13.5.37
export TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import glob, re, subprocess, sys, tempfile
from importlib.metadata import version

BIN = glob.glob(sys.prefix + "/lib/python*/site-packages/nvidia/cu13/bin/")[0]
PTX = """.version 9.0
.target {arch}
.address_size 64
.visible .entry k(.param .u64 p)
{{
.reg .b64 %p, %d<4>; .reg .b32 %r<4>; .reg .b16 %h<2>; .reg .f32 %f<4>;
ld.param.u64 %p, [p]; ld.global.v2.b64 {{%d0, %d1}}, [%p]; ld.global.b64 %d2, [%p+16]; ld.global.b32 %r0, [%p+24]; ld.global.b16 %h0, [%p+28];
ld.global.f32 %f0, [%p+32]; ld.global.f32 %f1, [%p+36]; ld.global.f32 %f2, [%p+40];
{body}
ret;
}}
"""
# What computes; loads, stores, moves and what puts halves of a register together are left out.
WORK = r"(?:MUFU|HFMA2|HADD2|HMUL2|HMNMX2|FFMA2?|FADD2?|FMUL2?|FMNMX3?|C?REDUX)\b[.\w]*"

def sass(arch, body):
    path = tempfile.mkdtemp() + "/k"
    open(path + ".ptx", "w").write(PTX.format(arch=arch, body=body))
    run = subprocess.run([BIN + "ptxas", "-arch=" + arch, path + ".ptx", "-o", path + ".cubin"], capture_output=True, text=True)
    said = (run.stdout + run.stderr).strip()
    if run.returncode:
        return "refused" if re.search("requires|not supported", said) else said
    listing = subprocess.run([BIN + "nvdisasm", "-c", path + ".cubin"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(" + WORK + ")", listing), said

print("ptxas of nvidia-cuda-nvcc", version("nvidia-cuda-nvcc"), "nvdisasm", version("nvidia-cuda-nvdisasm"))
ARCHS = "sm_80", "sm_90a", "sm_100a", "sm_103a", "sm_120a"
NO = "refused"
CASES = {  # how many instructions compute, in the order of ARCHS
    "ex2.approx.f16x2": ("ex2.approx.f16x2 %r1, %r0; st.global.b32 [%p], %r1;", (2, 2, 2, 1, 2)),
    "ex2.approx.ftz.bf16x2": ("ex2.approx.ftz.bf16x2 %r1, %r0; st.global.b32 [%p], %r1;", (NO, 2, 2, 1, 2)),
    "ex2.approx.f16": ("ex2.approx.f16 %h1, %h0; st.global.b16 [%p], %h1;", (1, 1, 1, 1, 1)),
    "tanh.approx.f16x2": ("tanh.approx.f16x2 %r1, %r0; st.global.b32 [%p], %r1;", (2, 2, 2, 2, 2)),
    "tanh.approx.bf16x2": ("tanh.approx.bf16x2 %r1, %r0; st.global.b32 [%p], %r1;", (NO, 2, 2, 2, 2)),
    "fma.rn.bf16x2": ("fma.rn.bf16x2 %r1, %r0, %r0, %r0; st.global.b32 [%p], %r1;", (1, 1, 1, 1, 1)),
    "max.bf16x2": ("mov.b32 %r1, %f0; max.bf16x2 %r2, %r0, %r1; st.global.b32 [%p], %r2;", (1, 1, 1, 1, 1)),
    "fma.rn.f32x2": ("fma.rn.f32x2 %d3, %d0, %d1, %d2; st.global.b64 [%p], %d3;", (NO, NO, 1, 1, 2)),
    "add.rn.f32x2": ("add.rn.f32x2 %d3, %d0, %d1; st.global.b64 [%p], %d3;", (NO, NO, 1, 1, 2)),
    "max.f32 of three": ("max.f32 %f3, %f0, %f1, %f2; st.global.f32 [%p], %f3;", (NO, NO, 1, 1, 2)),
    "redux.sync.max.f32": ("redux.sync.max.f32 %f3, %f0, -1; st.global.f32 [%p], %f3;", (NO, NO, 1, 1, NO)),
}
bad = 0
for name, (body, want) in CASES.items():
    line = []
    for arch, n in zip(ARCHS, want):
        got = sass(arch, body)
        line.append(f"{arch} {got if got == NO else ' '.join(got[0])}")
        bad += got != NO if n == NO else got == NO or len(got[0]) != n or bool(got[1])
    print(name + ":", "; ".join(line))
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
