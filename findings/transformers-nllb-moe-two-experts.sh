#!/usr/bin/env bash
# transformers 5: NLLB-MoE gives every token to the experts 0 and 1, whatever its router chose (transformers 4 does not).
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir transformers==5.24.0 torch==2.15.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, torch, transformers
from transformers import NllbMoeConfig
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP

torch.manual_seed(1)
c = NllbMoeConfig(d_model=16, encoder_ffn_dim=8, num_experts=8, vocab_size=32)
moe = NllbMoeSparseMLP(c, ffn_dim=8).eval()
x = torch.randn(1, 12, 16)
with torch.no_grad():
    y = moe(x)
    _, weights, _ = moe.router(x.view(-1, 16))
    chosen = weights.topk(2, dim=-1).indices
    others = (chosen >= 2).all(dim=-1)
    print("transformers", transformers.__version__, "experts that the router chose:", sorted(set(chosen.flatten().tolist())))

    def change(numbers):
        """How much the output of tokens that chose neither expert 0 nor 1 changes when these experts become 0."""
        kept = {n: p.clone() for n, p in moe.named_parameters()}
        for e in numbers:
            for p in moe.experts[f"expert_{e}"].parameters():
                p.zero_()
        d = (moe(x) - y)[0][others].norm().item()
        for n, p in moe.named_parameters():
            p.copy_(kept[n])
        return d

    mine, zero_one = change(range(2, 8)), change((0, 1))
print(f"{int(others.sum())} tokens chose neither 0 nor 1; their output has norm {y[0][others].norm():.2f}")
print(f"it changes by {mine:.2f} when the experts 2 to 7 become 0, and by {zero_one:.2f} when the experts 0 and 1 do")
sys.exit(not (others.sum() > 3 and mine == 0 and zero_one > 0.1))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
