#!/usr/bin/env bash
# ptxas: red.shared.add of a float is a loop around compare-and-swap on every GPU from A100 to Blackwell, while integers, and floats in global memory, are one instruction; one f16 or bf16 in global memory is such a loop too, a pair of them is not.
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
PTX = """.version 8.7
.target {arch}
.address_size 64
.visible .entry k(.param .u64 p)
{{
.shared .align 16 .b8 sums[4096];
.reg .b64 %p, %q; .reg .b32 %s, %t, %r; .reg .b16 %h; .reg .f32 %f, %g; .reg .f64 %d;
ld.param.u64 %p, [p]; mov.u32 %t, %tid.x; and.b32 %t, %t, 63; shl.b32 %t, %t, 4;
cvt.u64.u32 %q, %t; add.u64 %q, %q, %p; mov.u32 %s, sums; add.u32 %s, %s, %t;
ld.global.b32 %r, [%p]; ld.global.f32 %f, [%p+4]; ld.global.f32 %g, [%p+8]; ld.global.b16 %h, [%p+12]; ld.global.f64 %d, [%p+16];
st.shared.b32 [%s], %r; bar.sync 0;
{red}
bar.sync 0; ld.shared.b32 %t, [%s]; st.global.b32 [%q+1024], %t; ret;
}}
"""

def swaps(arch, red):
    """The instructions that change memory atomically, and whether they stand in a loop of compare-and-swap."""
    path = tempfile.mkdtemp() + "/k"
    open(path + ".ptx", "w").write(PTX.format(arch=arch, red=red))
    run = subprocess.run([BIN + "ptxas", "-arch=" + arch, path + ".ptx", "-o", path + ".cubin"], capture_output=True, text=True, check=True)
    listing = subprocess.run([BIN + "nvdisasm", "-c", path + ".cubin"], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"\b(?:RED|REDG|ATOMS|ATOMG)\.[\w.]+", listing)
    return found, any(".CAS" in f for f in found) and bool(re.search(r"@!?P\d BRA", listing)), (run.stdout + run.stderr).strip()

print("ptxas of nvidia-cuda-nvcc", version("nvidia-cuda-nvcc"), "nvdisasm", version("nvidia-cuda-nvdisasm"))
ALL, NEW = ("sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120a"), ("sm_90a", "sm_100a", "sm_120a")
CASES = [
    ("red.shared.add.u32 [%s], %r;", ALL, False),
    ("red.shared.add.f32 [%s], %f;", ALL, True),
    ("red.shared.add.f64 [%s], %d;", ALL, True),
    ("red.shared.add.noftz.f16x2 [%s], %r;", ALL, True),
    ("red.shared.add.noftz.bf16x2 [%s], %r;", NEW, True),
    ("red.global.add.f32 [%q], %f;", ALL, False),
    ("red.global.add.f64 [%q], %d;", ALL, False),
    ("red.global.v4.f32.add [%q], {%f, %g, %f, %g};", NEW, False),
    ("red.global.add.noftz.f16x2 [%q], %r;", ALL, False),
    ("red.global.add.noftz.bf16x2 [%q], %r;", NEW, False),
    ("red.global.add.noftz.f16 [%q], %h;", ALL, True),
    ("red.global.add.noftz.bf16 [%q], %h;", NEW, True),
]
bad = 0
for red, archs, loop in CASES:
    for arch in archs:
        found, cas, said = swaps(arch, red)
        bad += cas != loop or len(found) != 1 or bool(said)
        if arch in ("sm_80", "sm_90a", "sm_100a"):
            print(f"{red.split(' ')[0]} on {arch}: {found[0]}{', in a loop' if cas else ''}; ptxas says {said or 'nothing'}")
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
