#!/usr/bin/env bash
# Megatron Core: its group-limited routing, whose documentation names DeepSeek-V2, ranks groups by a sum of their best experts, where DeepSeek-V2 takes the best one alone: a third of the tokens go to other experts. DeepSeek-V3's routing is right. With more groups than experts a token, some experts are never used.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir torch==2.15.0 transformers==5.24.0 megatron-core==0.16.1 numpy==2.4.6
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, torch
from importlib.metadata import version
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function
from transformers import AutoConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

T, H = 4096, 64
print("megatron-core", version("megatron-core"), "transformers", version("transformers"), "torch", torch.__version__)
g = torch.Generator().manual_seed(1)
x = torch.randn(T, H, generator=g)
CASES = {  # sizes as these models have them, but for the width
    "deepseek_v2": (DeepseekV2TopkRouter, dict(n_routed_experts=160, n_group=8, topk_group=3, num_experts_per_tok=6, topk_method="group_limited_greedy", routed_scaling_factor=16.), dict(use_pre_softmax=True)),
    "deepseek_v3": (DeepseekV3TopkRouter, dict(n_routed_experts=256, n_group=8, topk_group=4, num_experts_per_tok=8, norm_topk_prob=True, routed_scaling_factor=2.5), dict(score_function="sigmoid")),
}
bad = 0
for kind, (router, sizes, more) in CASES.items():
    c = AutoConfig.for_model(kind, hidden_size=H, **sizes)
    r = router(c)
    torch.nn.init.normal_(r.weight, std=H ** -.5, generator=g)
    e, k, groups, taken = sizes["n_routed_experts"], c.num_experts_per_tok, c.n_group, c.topk_group
    with torch.no_grad():
        logits, weights, ids = r(x)
        theirs, chosen = topk_routing_with_score_function(logits.float(), k, num_groups=groups, group_topk=taken, scaling_factor=c.routed_scaling_factor, **more)
    ours = torch.zeros(T, e).scatter(1, ids, weights.float())
    same = ((ours > 0) == chosen).all(-1)
    near = ((ours - theirs)[same].abs().max() / ours.max()).item()
    # What the rank of a group is: the sum of so many of its best scores.
    scores = logits.float().softmax(-1) if kind == "deepseek_v2" else logits.float().sigmoid()
    def by_sum_of(n):
        best = scores.view(T, groups, -1).topk(n).values.sum(-1).topk(taken).indices
        held = torch.zeros(T, groups).scatter(1, best, 1).repeat_interleave(e // groups, 1)
        return torch.zeros(T, e, dtype=torch.bool).scatter(1, (scores * held).topk(k).indices, True)
    ranks = {name: next((n for n in (1, 2, 3) if torch.equal(by_sum_of(n), m)), None) for name, m in (("transformers", ours > 0), ("Megatron Core", chosen))}
    print(f"{kind}, {k} of {e} experts, {taken} of {groups} groups: {1 - same.float().mean():.1%} of the tokens have other experts; the others' weights differ by {near:.0e}; best scores that make the rank of a group: {ranks}")
    bad += ranks != {"transformers": 1 if kind == "deepseek_v2" else 2, "Megatron Core": 2} or near > 1e-5 or (same.float().mean().item() < .8) != (kind == "deepseek_v2")
for k, taken in ((4, 4), (3, 4)):
    _, chosen = topk_routing_with_score_function(torch.randn(T, 64, generator=g), k, use_pre_softmax=True, num_groups=8, group_topk=taken)
    never = int((chosen.sum(0) == 0).sum())
    print(f"{k} of 64 experts, {taken} of 8 groups, {T} random tokens: {never} experts have no token")
    bad += (never >= 32) != (k < taken)
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
