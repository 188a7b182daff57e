#!/usr/bin/env bash
# ptxas: tcgen05.mma on INT8 is there for B200 (sm_100a) and Thor (sm_110a), not for B300 (sm_103a) and what follows it, nor in the family's common code sm_100f even for a B200; FP16, TF32 and FP8 are everywhere. Hopper's wgmma on INT8 has no other heir, so that W8A8 experts are back at mma.sync there.
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
HEAD = ".version 9.5\n.target {arch}\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.reg .b64 %p, %a, %b; .reg .b32 %d, %i, %c<4>, %f<6>; .reg .pred %q;\nld.param.u64 %p, [p]; ld.global.b64 %a, [%p]; ld.global.b64 %b, [%p+8]; ld.global.b32 %d, [%p+16]; ld.global.b32 %i, [%p+20]; setp.ne.b32 %q, %d, 0;\n"
TCGEN05 = "tcgen05.mma.cta_group::1.kind::{kind} [%d], %a, %b, %i, %q;"
MMA = ("".join(f"mov.b32 %c{j}, %d; " for j in range(4)) + "".join(f"ld.global.b32 %f{j}, [%p+{4 * j}]; " for j in range(6))
       + "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {{%c0,%c1,%c2,%c3}}, {{%f0,%f1,%f2,%f3}}, {{%f4,%f5}}, {{%c0,%c1,%c2,%c3}};" + "".join(f" st.global.b32 [%p+{4 * j}], %c{j};" for j in range(4)))

def product(arch, code, **given):
    """The instruction that multiplies, or why there is none."""
    path = tempfile.mkdtemp() + "/k"
    open(path + ".ptx", "w").write((HEAD + code + "\nret;\n}}\n").format(arch=arch, **given))
    run = subprocess.run([BIN + "ptxas", "-arch=" + arch, path + ".ptx", "-o", path + ".cubin"], capture_output=True, text=True)
    if run.returncode:
        return None, next(l.split(":", 1)[1].strip() for l in (run.stdout + run.stderr).splitlines() if "error" in l)
    listing = subprocess.run([BIN + "nvdisasm", "-c", path + ".cubin"], capture_output=True, text=True, check=True).stdout
    return re.search(r"\b\w*MMA[\w.]*", listing)[0], ""

print("ptxas of nvidia-cuda-nvcc", version("nvidia-cuda-nvcc"))
ARCHS, INT8 = ("sm_100a", "sm_100f", "sm_103a", "sm_103f", "sm_107a", "sm_110a", "sm_110f"), ("sm_100a", "sm_110a")
bad = 0
for kind, name in (("f16", "UTCHMMA"), ("tf32", "UTCHMMA"), ("f8f6f4", "UTCQMMA"), ("i8", "UTCIMMA")):
    for arch in ARCHS:
        got, why = product(arch, TCGEN05, kind=kind)
        if kind == "i8":
            print(f"tcgen05.mma kind::i8 for {arch}: {got or why}")
        bad += got != (name if kind != "i8" or arch in INT8 else None)
print(f"kinds f16, tf32 and f8f6f4 for {', '.join(ARCHS)}: all assembled: {not bad}")
for arch in ("sm_100a", "sm_103a", "sm_107a", "sm_120a"):
    got, why = product(arch, MMA)
    print(f"mma.sync on s8 for {arch}: {got or why}")
    bad += got != "IMMA.16832.S8.S8"
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
