#!/usr/bin/env bash
# transformers 5: FineGrainedFP8Config(dequantize=True) does not take the block size of the config but the width divided by the number of scales, so that a width of 192 in blocks of 128 becomes blocks of 96, without an error, 17% of the values with another block's scale; 576, as in DeepSeek-V3's attention, is refused. The same comes of a width of whole blocks that tp_size=2 cuts within a block.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for. No GPU.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir transformers==5.24.0 torch==2.15.0 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1 TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import json, os, socket, sys, tempfile
import torch, transformers
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, FineGrainedFP8Config, Qwen3MoeConfig
from transformers.distributed import DistributedConfig

BLOCK = 128
SMALL = dict(vocab_size=64, hidden_size=128, intermediate_size=128, num_key_value_heads=2, num_experts_per_tok=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
def qwen(width):
    return Qwen3MoeConfig(**SMALL, num_hidden_layers=1, num_attention_heads=4, head_dim=128, moe_intermediate_size=width, num_experts=4)
# Latents of 512 and a rotary key of 64, as published.
DEEPSEEK = DeepseekV3Config(**SMALL, num_hidden_layers=1, first_k_dense_replace=1, num_attention_heads=2, q_lora_rank=128, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=64, v_head_dim=64)

def checkpoint(config):
    """A checkpoint as DeepSeek publishes its own (codes, and a scale for each block of 128 x 128, the last ones smaller), and what it means."""
    path = tempfile.mkdtemp()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    stored, meant = {}, {}
    for name, w in load_file(path + "/model.safetensors").items():
        stored[name] = meant[name] = w
        if w.ndim == 2 and "proj" in name:
            rows, columns = w.shape
            scale = torch.rand(-(-rows // BLOCK), -(-columns // BLOCK)) * 1e-3 + 1e-4
            each = scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
            stored[name], stored[name + "_scale_inv"] = (w / each).clamp(-448, 448).to(torch.float8_e4m3fn), scale
            meant[name] = stored[name].float() * each
    save_file(meant, path + "/model.safetensors", metadata={"format": "pt"})
    right = dict(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).named_parameters())
    save_file(stored, path + "/model.safetensors", metadata={"format": "pt"})
    given = json.load(open(path + "/config.json"))
    given["quantization_config"] = dict(quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[BLOCK, BLOCK])
    json.dump(given, open(path + "/config.json", "w"))
    return path, right

def load(path, right, **more):
    """Share of values that are wrong, by parameter; None if it is refused."""
    try:
        m = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True, weight_block_size=(BLOCK, BLOCK)), **more)
    except RuntimeError as e:
        return None
    found = {k: (v.full_tensor() if hasattr(v, "full_tensor") else v) for k, v in m.named_parameters()}
    shares = {k: ((found[k] - w).abs() > 1e-6).float().mean().item() for k, w in right.items()}
    return {k.split(".", 3)[-1]: round(share, 2) for k, share in shares.items() if share}

def rank(r, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE="2")
    dist.init_process_group("gloo", rank=r, world_size=2)
    box, right = [None], None
    if r == 0:
        box = list(checkpoint(qwen(384)))
    else:
        box = [None, None]
    dist.broadcast_object_list(box, 0)
    bad = 0
    for kind, given, wrong in (("tensor-parallel", dict(tp_size=2, tp_plan="auto"), True), ("expert-parallel", dict(ep_size=2, tp_size=2, tp_plan="auto"), False)):
        got = load(*box, distributed_config=DistributedConfig(**given))
        if r == 0:
            print(f"width 384, {kind} on two ranks: share of wrong values {got or 'none'}", flush=True)
        bad += bool(got) != wrong
    dist.destroy_process_group()
    sys.exit(bool(bad))

if __name__ == "__main__":
    print("transformers", transformers.__version__, "torch", torch.__version__, flush=True)
    bad = 0
    for width, wrong in ((128, False), (192, True), (384, False), (448, True)):
        got = load(*checkpoint(qwen(width)))
        print(f"width {width}, one process: share of wrong values {got or 'none'}", flush=True)
        bad += bool(got) != wrong
    got = load(*checkpoint(DEEPSEEK))
    print("DeepSeek-V3's latents, 576 rows:", "refused" if got is None else got, flush=True)
    bad += got is not None
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(rank, (port,), 2)
    sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
