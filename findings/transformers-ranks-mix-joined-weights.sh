#!/usr/bin/env bash
# transformers 5: from_pretrained with a DistributedConfig cuts each tensor of the checkpoint as it will cut the whole, and joins the parts after that, so that joined weights have their rows in another order, without an error: under tp_size=2 gate and up of the experts of Step-3.7-Flash; under fsdp_size=2 gate and up of MiniMax-M3's dense and shared MLPs, the convolutions of Kimi Linear, and, where one tensor becomes three, q, k and v of Step's image tower. Qwen3-MoE is right under both.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir transformers==5.24.0 torch==2.15.0 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1 TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import sys, tempfile
import torch, transformers
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, KimiLinearConfig, MiniMaxM3VLConfig, Qwen3MoeConfig, Step3p7Config
from transformers.distributed import DistributedConfig

SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
             num_experts_per_tok=2, mlp_layer_types=["dense", "sparse"])
KIMI = KimiLinearConfig(**SMALL, intermediate_size=48, moe_intermediate_size=16, num_local_experts=8, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
                        v_head_dim=8, linear_head_dim=8, linear_num_heads=4, layer_types=["linear_attention", "full_attention"])
MINIMAX = MiniMaxM3VLConfig(
    text_config=dict(SMALL, model_type="minimax_m3_vl_text", intermediate_size=16, head_dim=8, rotary_dim=8, num_local_experts=8, dense_intermediate_size=48,
                     shared_intermediate_size=16, layer_types=["full_attention"] * 2),
    vision_config=dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14),
    projector_hidden_size=16, image_token_index=60, video_token_index=61)
QWEN = Qwen3MoeConfig(**{k: v for k, v in SMALL.items() if k != "mlp_layer_types"}, intermediate_size=48, moe_intermediate_size=16, head_dim=8, num_experts=8)
STEP = Step3p7Config(
    text_config=dict({k: v for k, v in SMALL.items() if k != "mlp_layer_types"}, model_type="step3p5", intermediate_size=48, moe_intermediate_size=16, head_dim=8, n_routed_experts=8,
                     share_expert_dim=16, sliding_window=64, layer_types=["full_attention"] * 2, mlp_layer_types=["dense", "sparse"], swiglu_limits=[0.0, 0.0], swiglu_limits_shared=[0.0, 0.0], query_pre_attn_scalar=8,
                     rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e4}}),
    vision_config=dict(width=16, layers=1, heads=2, image_size=28, patch_size=14))
# What comes out wrong, under fsdp_size=2 and under tp_size=2.
CASES = {
    "kimi_linear": (AutoModelForCausalLM, KIMI, ["model.layers.0.self_attn.conv1d.weight"], []),
    "minimax_m3_vl": (AutoModelForImageTextToText, MINIMAX, ["model.language_model.layers.0.mlp.gate_up_proj.weight", "model.language_model.layers.1.mlp.shared_experts.gate_up_proj.weight"], []),
    "step3p7": (AutoModelForImageTextToText, STEP, [f"model.vision_model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"], ["model.language_model.layers.1.mlp.experts.gate_up_proj"]),
    "qwen3_moe": (AutoModelForCausalLM, QWEN, [], []),
}
whole = lambda x: x.full_tensor() if hasattr(x, "full_tensor") else x

def rank(r, folder, port):
    import os
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE="2")
    dist.init_process_group("gloo", rank=r, world_size=2)
    tokens, bad = torch.arange(3, 20)[None], 0
    for name, (kind, _, under_fsdp, under_tp) in CASES.items():
        one = kind.from_pretrained(f"{folder}/{name}", dtype=torch.float32).eval()
        for given in (dict(fsdp_size=2), dict(tp_size=2, tp_plan="auto")):
            two = kind.from_pretrained(f"{folder}/{name}", dtype=torch.float32, distributed_config=DistributedConfig(**given)).eval()
            want, got = dict(one.named_parameters()), {k: whole(v) for k, v in two.named_parameters()}
            other = sorted(k for k in want if not torch.equal(want[k], got[k]))
            # The same rows, in another order; those of an image tower's q, k and v go to each other.
            rows = all("vision" in k or sorted(want[k].reshape(-1, want[k].shape[-1]).tolist()) == sorted(got[k].reshape(-1, want[k].shape[-1]).tolist()) for k in other)
            with torch.no_grad():
                a, b = one(input_ids=tokens).logits, whole(two(input_ids=tokens).logits)
            error = ((a - b).norm() / a.norm()).item()
            if r == 0:
                print(f"{name} with {given}: of {len(want)} parameters {len(other)} differ{': ' + ', '.join(other) + '' if other else ''}; relative error of the logits of a text {error:.1e}", flush=True)
            wrong = under_fsdp if "fsdp_size" in given else under_tp
            bad += other != sorted(wrong) or not rows or (error > 1e-3) != any("vision" not in k for k in wrong)
    dist.destroy_process_group()
    sys.exit(bool(bad))

if __name__ == "__main__":
    import socket
    print("transformers", transformers.__version__, "torch", torch.__version__, flush=True)
    folder = tempfile.mkdtemp()
    for name, (kind, config, *_) in CASES.items():
        torch.manual_seed(0)
        kind.from_config(config, dtype=torch.float32).save_pretrained(f"{folder}/{name}")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(rank, (folder, port), 2)
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
