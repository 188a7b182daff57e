#!/usr/bin/env bash
# ptxas: mma.sync on FP8 assembles for H100, B200 and B300, but becomes FP16 products with 12 conversions: only Ada and consumer Blackwell multiply FP8 there. mma.sync on INT4 becomes INT8 products and some 180 instructions from H100 on. ptxas does not say so.
# Needs python3 (3.10 or later), about 400 MB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir --no-deps nvidia-cuda-nvcc==13.5.37 nvidia-cuda-nvdisasm==13.5.37
export TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import collections, glob, re, subprocess, sys, tempfile
from importlib.metadata import version

BIN = glob.glob(sys.prefix + "/lib/python*/site-packages/nvidia/cu13/bin/")[0]

def sass(arch, shape, kind, accumulator):
    """Instructions of a kernel that loads its fragments, multiplies once and stores, by name; and what ptxas says."""
    regs = [f"%{r}{i}" for r, n in (("c", 4), ("a", 4), ("b", 2)) for i in range(n)]
    c, a, b = ("{" + ",".join(regs[i:j]) + "}" for i, j in ((0, 4), (4, 8), (8, 10)))
    text = [f".version 9.0\n.target {arch}\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.reg .b64 %p; .reg .b32 %a<4>, %b<2>; .reg .{accumulator} %c<4>;\nld.param.u64 %p, [p];"]
    text += [f"ld.global.{accumulator if r[1] == 'c' else 'b32'} {r}, [%p+{4 * i}];" for i, r in enumerate(regs)]
    text += [f"mma.sync.aligned.{shape}.row.col.{accumulator}.{kind}.{kind}.{accumulator} {c}, {a}, {b}, {c};"]
    text += [f"st.global.{accumulator} [%p+{4 * i}], %c{i};" for i in range(4)] + ["ret;\n}\n"]
    path = tempfile.mkdtemp() + "/k"
    open(path + ".ptx", "w").write("\n".join(text))
    run = subprocess.run([BIN + "ptxas", "-arch=" + arch, path + ".ptx", "-o", path + ".cubin"], capture_output=True, text=True, check=True)
    listing = subprocess.run([BIN + "nvdisasm", "-c", path + ".cubin"], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", listing)
    return collections.Counter(n for n in names if n != "NOP"), run.stdout + run.stderr

print("ptxas of nvidia-cuda-nvcc", version("nvidia-cuda-nvcc"), "nvdisasm", version("nvidia-cuda-nvdisasm"))
FP8, INT4 = ("m16n8k32", "e4m3", "f32"), ("m16n8k64", "s4", "s32")
CASES = {  # what multiplies, how often, and how many conversions
    FP8: {"sm_89": ("QMMA.16832.F32.E4M3.E4M3", 1, 0), "sm_90a": ("HMMA.16816.F32", 2, 12), "sm_100a": ("HMMA.16816.F32", 2, 12), "sm_103a": ("HMMA.16816.F32", 2, 12),
          "sm_120a": ("QMMA.16832.F32.E4M3.E4M3", 1, 0)},
    INT4: {"sm_80": ("IMMA.16864.S4.S4", 1, 0), "sm_89": ("IMMA.16864.S4.S4", 1, 0), "sm_90a": ("IMMA.16832.S8.S8", 2, 0), "sm_100a": ("IMMA.16832.S8.S8", 2, 0),
           "sm_120a": ("IMMA.16832.S8.S8", 2, 0)},
    ("m16n8k32", "s8", "s32"): {a: ("IMMA.16832.S8.S8", 1, 0) for a in ("sm_80", "sm_90a", "sm_100a", "sm_120a")},
    ("m16n8k16", "bf16", "f32"): {a: ("HMMA.16816.F32.BF16", 1, 0) for a in ("sm_80", "sm_90a", "sm_100a", "sm_120a")},
}
bad = 0
for case, archs in CASES.items():
    native = None
    for arch, (name, times, conversions) in archs.items():
        found, said = sass(arch, *case)
        native = native or found.total()
        products = {n: k for n, k in found.items() if "MMA" in n}
        unpacked = sum(k for n, k in found.items() if n.startswith("F2FP") and "E4M3" in n)
        print(f"mma.sync {case[0]} {case[1]} on {arch}: {products}, {unpacked} conversions from FP8, {found.total()} instructions in the kernel; ptxas says {said.strip() or 'nothing'}")
        bad += products != {name: times} or unpacked != conversions or bool(said.strip()) or (found.total() > native + 100) != (case == INT4 and times == 2)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
