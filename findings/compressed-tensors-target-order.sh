#!/usr/bin/env bash
# compressed-tensors: of two config_groups that both match a module, sorting of their targets decides, not the order of the groups: names, then regexes by alphabet, then classes by alphabet.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir compressed-tensors==0.20.1 transformers==5.24.0 torch==2.15.0 accelerate==1.15.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, torch
from importlib.metadata import version
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.utils.match import match_targets

NAME, SIZES = "experts.0.up_proj", (16, 32)

class Own(torch.nn.Linear):
    pass

def applied(*targets):
    """The target whose group size the module gets; groups stand in this order."""
    m = torch.nn.ModuleDict(dict(experts=torch.nn.ModuleList([torch.nn.ModuleDict(dict(up_proj=Own(64, 8)))])))
    groups = {f"group_{i}": dict(targets=[t], weights=dict(num_bits=4, type="int", strategy="group", group_size=g)) for i, (t, g) in enumerate(zip(targets, SIZES))}
    apply_quantization_config(m, QuantizationConfig(config_groups=groups, format="pack-quantized"), show_progress=False)
    module = m.get_submodule(NAME)
    winner = SIZES.index(64 // module.weight_scale.shape[1])
    assert match_targets(NAME, module, targets)[0] == targets[winner]
    return winner

print("compressed-tensors", version("compressed-tensors"), f"a layer {NAME} of a class Own made from Linear")
PAIRS = (NAME, "re:.*"), (NAME, "Linear"), ("re:.*", "Linear"), ("re:.*experts.*", "re:.*up_proj$"), ("re:.*experts.0.up_proj$", "re:.*ex"), ("re:.*[.]up_proj$", "re:.*"), ("Own", "Linear")
WANT = (NAME, NAME, "re:.*", "re:.*experts.*", "re:.*ex", "re:.*", "Linear")
bad = 0
for pair, want in zip(PAIRS, WANT):
    got = [pair[applied(*pair)], pair[::-1][applied(*pair[::-1])]]
    print(f"{pair[0]} against {pair[1]}: {got[0]} is applied; in the other order of groups {got[1]}")
    bad += got != [want, want]
same = applied("Linear", "Linear")
print(f"Linear in both groups: the {('first', 'last')[same]} group is applied")
sys.exit(bool(bad) or same != 1)
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
