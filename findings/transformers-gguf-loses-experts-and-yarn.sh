#!/usr/bin/env bash
# transformers: of a GGUF file it leaves YaRN out without a word, so that a Qwen3-MoE of long contexts is another model, at every length; a Mixtral's file becomes a dense Llama whose MLPs are random numbers, other ones at each loading, with a report but no error. Qwen3-MoE without YaRN is read exactly.
# Needs python3 (3.11 or later), about 7 GB of disk for a while, and the package index that pip is set up for.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --no-cache-dir transformers==5.24.0 torch==2.15.0 accelerate==1.15.0 gguf==0.19.0 numpy==2.4.6
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= TMPDIR="$dir"
cat > "$dir/check.py" <<'PY'
import contextlib, io, logging, sys, tempfile
from importlib.metadata import version
import gguf, numpy as np, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM

V, H, E, HEADS, KV = 64, 64, 8, 4, 2
SMALL = dict(vocab_size=V, hidden_size=H, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=KV, head_dim=16, max_position_embeddings=4096, num_experts_per_tok=2,
             pad_token_id=0, bos_token_id=1, eos_token_id=2)
QWEN = dict(SMALL, num_experts=E, moe_intermediate_size=768, intermediate_size=96, norm_topk_prob=True)
YARN = dict(rope_theta=1e6, rope_type="yarn", factor=4., original_max_position_embeddings=1024)
CASES = {"Qwen3-MoE": ("qwen3moe", "qwen3_moe", QWEN), "Qwen3-MoE with YaRN": ("qwen3moe", "qwen3_moe", dict(QWEN, rope_parameters=YARN)),
         "Mixtral": ("llama", "mixtral", dict(SMALL, num_local_experts=E, intermediate_size=96))}

def parts(name, t, arch):
    """The tensors of a parameter under the names that the converter of llama.cpp looks up."""
    if name.endswith("experts.gate_up_proj"):
        gate, up = t.reshape(E, 2, -1, H).swapaxes(0, 1)
        return [(name.replace("gate_up", "gate") + ".weight", gate), (name.replace("gate_up", "up") + ".weight", up)]
    if name.endswith("experts.down_proj"):
        return [(name + ".weight", t)]
    if arch == "llama" and ("q_proj" in name or "k_proj" in name):  # halves of a head's rotation side by side
        t = t.reshape(HEADS if "q_proj" in name else KV, 2, -1, H).swapaxes(1, 2).reshape(t.shape)
    return [(name, t)]

def write(model, arch):
    c, folder = model.config, tempfile.mkdtemp()
    w = gguf.GGUFWriter(folder + "/m.gguf", arch)
    w.add_name("m")
    for add, value in ((w.add_context_length, 4096), (w.add_embedding_length, H), (w.add_block_count, 2), (w.add_feed_forward_length, c.intermediate_size), (w.add_head_count, HEADS),
                       (w.add_head_count_kv, KV), (w.add_key_length, 16), (w.add_value_length, 16), (w.add_rope_dimension_count, 16), (w.add_rope_freq_base, c.rope_parameters["rope_theta"]),
                       (w.add_layer_norm_rms_eps, c.rms_norm_eps), (w.add_expert_count, E), (w.add_expert_used_count, 2), (w.add_vocab_size, V)):
        add(value)
    if c.rope_parameters["rope_type"] == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(YARN["factor"])
        w.add_rope_scaling_orig_ctx_len(YARN["original_max_position_embeddings"])
    names = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch), 2)
    for name, t in model.state_dict().items():
        for own, part in parts(name, t.numpy(), arch):
            w.add_tensor(names.get_name(own, try_suffixes=(".weight",)), np.ascontiguousarray(part))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return folder

def load(folder):
    """The model, and what was logged about it, warnings and worse."""
    said = io.StringIO()
    log, handler = logging.getLogger("transformers"), logging.StreamHandler(said)
    log.addHandler(handler)
    with contextlib.redirect_stderr(said):
        m = AutoModelForCausalLM.from_pretrained(folder, gguf_file="m.gguf", dtype=torch.float32).eval()
    log.removeHandler(handler)
    return m, said.getvalue()

transformers.logging.set_verbosity_warning()
print("transformers", version("transformers"), "gguf", version("gguf"), "torch", torch.__version__)
bad = 0
for name, (arch, kind, sizes) in CASES.items():
    torch.manual_seed(1)
    m = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.float32).eval()
    for n, p in m.named_parameters():
        if "norm" not in n:
            torch.nn.init.normal_(p, std=.1)
    folder = write(m, arch)
    (a, said), (b, _) = load(folder), load(folder)
    keys = [k for k in gguf.GGUFReader(folder + "/m.gguf").fields if "scaling" in k or "expert" in k]
    far = {}
    for length in (8, 200):
        x = torch.randint(3, V, (1, length), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            y, first, second = (f(x).logits for f in (m, a, b))
        far[length] = ((first - y).norm() / y.norm()).item()
    missing, yarn = "MISSING" in said, any(s in said.lower() for s in ("yarn", "rope", "scaling"))
    print(f"{name}: file has {', '.join(keys)}; read as {type(a).__name__}, rope {a.config.rope_parameters['rope_type']}; distance of logits {far[8]:.1e} at 8 tokens, {far[200]:.1e} at 200; loaded twice they are the same: {torch.equal(first, second)}; messages about missing weights: {missing}, about rope: {yarn}")
    bad += (max(far.values()) < 1e-4) != (name == "Qwen3-MoE") or (min(far.values()) > .1) == (name == "Qwen3-MoE") or torch.equal(first, second) != (arch != "llama") or missing != (arch == "llama") or yarn
    bad += a.config.rope_parameters["rope_type"] != "default" or type(a).__name__ != ("LlamaForCausalLM" if arch == "llama" else "Qwen3MoeForCausalLM")
sys.exit(bool(bad))
PY
"$dir/venv/bin/python" "$dir/check.py" 2> "$dir/err" || { tail -5 "$dir/err"; exit 1; }
