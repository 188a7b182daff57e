#!/usr/bin/env bash
# LLVM 22 for NVPTX: atomicrmw loses its ordering and its scope: seq_cst and release become relaxed at GPU scope, with no fence, so that a counter does not publish what was written before it, and not to another GPU. cmpxchg, atomic loads and stores keep both.
# Needs python3 (3.11 or later), about 200 MB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir llvmlite==0.50.0
cat > "$dir/check.py" <<'PY'
import re, sys
import llvmlite
import llvmlite.binding as llvm

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
machine = llvm.Target.from_triple("nvptx64-nvidia-cuda").create_target_machine(cpu="sm_90", features="+ptx80", opt=2)
G = "ptr addrspace(1)"
# A block writes its part, then counts itself: who sees the last count may read all parts.
FORMS = {
    "atomicrmw": "%r = atomicrmw add {G} %count, i32 1 {scope}{order}",
    "atomicrmw fadd": "%r = atomicrmw fadd {G} %count, float 1.0 {scope}{order}",
    "cmpxchg": "%r = cmpxchg {G} %count, i32 0, i32 1 {scope}{order} monotonic",
    "store atomic": "store atomic i32 1, {G} %count {scope}{order}, align 4",
}

def ptx(form, order, scope):
    scope = f'syncscope("{scope}") ' if scope else ""
    body = FORMS[form].format(G=G, order=order, scope=scope)
    m = llvm.parse_assembly(f'target triple = "nvptx64-nvidia-cuda"\ndefine void @publish({G} %part, i32 %value, {G} %count) {{\nstore i32 %value, {G} %part\n{body}\nret void\n}}')
    m.verify()
    return [" ".join(l.split()).split(" ")[0] for l in machine.emit_assembly(m).splitlines() if re.match(r"\s+(st\.(?!param)|atom|red|fence|membar)", l)][1:]

print("llvmlite", llvmlite.__version__, "LLVM", ".".join(map(str, llvm.llvm_version_info)), "for sm_90")
bad = 0
for form in FORMS:
    for order, scope in (("release", ""), ("seq_cst", ""), ("release", "device"), ("release", "block"), ("monotonic", "block")):
        got = " ".join(ptx(form, order, scope))
        print(f"{form} {order} of scope {scope or 'system'}: {got}{', which is relaxed at GPU scope' if got.startswith('atom.global') else ''}")
        kept = any(w in got for w in (".release", ".acq_rel", "fence")), {"": ".sys", "device": ".gpu", "block": ".cta"}[scope] in got
        bad += kept != ((False, False) if "rmw" in form else (order != "monotonic", True))
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
