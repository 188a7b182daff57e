#!/usr/bin/env python3
"""Writes the GGUF cases of this folder: tiny models as llama.cpp's converter would write them, and what they compute.

    pip install gguf==0.19.0 numpy==2.4.6 safetensors==0.8.0
    python gguf_cases.py [OUT]

The weights are those of the `<family>.f32` directories here, rounded to a type of GGUF by the Python package `gguf`; the
expected outputs are computed in float64 with numpy from the values that `gguf` gives for the stored blocks. That this
numpy code computes what transformers does is checked first, on the float weights and goldens of those directories.

`ggml-blocks.safetensors` holds random blocks of every type that moec reads, and their values by `gguf.dequantize`.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
READ = [T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS, T.MXFP4]
# Where the halves with scales stand in a block.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0], T.MXFP4: [],
}


def random_blocks(rng, qtype, rows, cols, scale=0.01):
    """Blocks of any bits, whose scales are ordinary numbers."""
    elements, size = gguf.GGML_QUANT_SIZES[qtype]
    blocks = rng.integers(0, 256, (rows, cols // elements, size), dtype=np.uint8)
    for at in HALVES[qtype]:
        d = (rng.uniform(0.2, 1.0, blocks.shape[:2]) * scale).astype(np.float16)
        blocks[..., at:at + 2] = d[..., None].view(np.uint8)
    if qtype == T.MXFP4:
        blocks[..., 0] = rng.integers(118, 124, blocks.shape[:2])
    return blocks.reshape(rows, -1)


def write_blocks(out):
    rng = np.random.default_rng(12)
    tensors = {}
    for qtype in READ:
        elements, _ = gguf.GGML_QUANT_SIZES[qtype]
        blocks = random_blocks(rng, qtype, 3, elements, scale=1.0)
        tensors[f"{qtype.name}.blocks"] = blocks
        tensors[f"{qtype.name}.values"] = gguf.dequantize(blocks, qtype)
    save_file(tensors, out / "ggml-blocks.safetensors")


# What a layer computes. `w` has router, gate, up, down ([E, N, K]) and whatever else the family has.


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def route(spec, w, x):
    logits = x @ w["router"].T + w.get("router_bias", 0)
    k = spec["top_k"]
    if spec["scores"] == "softmax-of-chosen":
        ids = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
        return ids, softmax(np.take_along_axis(logits, ids, -1))
    scores = softmax(logits) if spec["scores"] == "softmax" else 1 / (1 + np.exp(-logits))
    choice = scores + w.get("selection_bias", 0)
    if spec.get("groups", 1) > 1:
        grouped = choice.reshape(len(x), spec["groups"], -1)
        best = np.sort(grouped, -1)[..., -2:].sum(-1)
        kept = np.argsort(-best, axis=-1, kind="stable")[:, :spec["groups_kept"]]
        mask = np.zeros_like(best, dtype=bool)
        np.put_along_axis(mask, kept, True, -1)
        choice = np.where(mask[..., None], grouped, -np.inf).reshape(choice.shape)
    ids = np.argsort(-choice, axis=-1, kind="stable")[:, :k]
    weights = np.take_along_axis(scores, ids, -1)
    if spec["norm"]:
        weights = weights / (weights.sum(-1, keepdims=True) + spec.get("eps", 0))
    return ids, weights * spec.get("scale", 1.0)


def mlp(spec, x, gate, up, down, biases=(0, 0, 0)):
    g, u = x @ gate.T + biases[0], x @ up.T + biases[1]
    if "limit" in spec:
        g, u = np.minimum(g, spec["limit"]), np.clip(u, -spec["limit"], spec["limit"])
        h = (u + 1) * (g / (1 + np.exp(-1.702 * g)))
    else:
        h = silu(g) * u
    return h @ down.T + biases[2]


def forward(spec, w, x):
    w = {k: v.astype(np.float64) for k, v in w.items()}
    x = x.astype(np.float64)
    ids, weights = route(spec, w, x)
    out = np.zeros_like(x)
    for t, (row, chosen) in enumerate(zip(ids, weights)):
        for e, p in zip(row, chosen):
            biases = [w[f"{m}_bias"][e] if f"{m}_bias" in w else 0 for m in ("gate", "up", "down")]
            out[t] += p * mlp(spec, x[t], w["gate"][e], w["up"][e], w["down"][e], biases)
    if "shared_gate_proj" in w:
        shared = mlp(spec, x, w["shared_gate_proj"], w["shared_up_proj"], w["shared_down_proj"])
        if "shared_gate" in w:
            shared = shared / (1 + np.exp(-(x @ w["shared_gate"].reshape(-1, 1))))
        out = out + shared
    return out.astype(np.float32), ids, weights.astype(np.float32)


def layer_weights(family, config, all_tensors, layer):
    """The tensors of a layer of a Hugging Face checkpoint, stacked."""
    t = {k.split(f"layers.{layer}.", 1)[1]: v for k, v in all_tensors.items() if f"layers.{layer}." in k}
    sparse = family in ("mixtral", "minimax_m2")
    block = "block_sparse_moe" if sparse else "mlp"
    names = ("w1", "w3", "w2") if sparse else ("gate_proj", "up_proj", "down_proj")
    if family == "gpt_oss":
        gate_up, bias = t["mlp.experts.gate_up_proj"], t["mlp.experts.gate_up_proj_bias"]
        return {
            "router": t["mlp.router.weight"], "router_bias": t["mlp.router.bias"],
            "gate": gate_up[..., ::2].swapaxes(1, 2), "up": gate_up[..., 1::2].swapaxes(1, 2),
            "down": t["mlp.experts.down_proj"].swapaxes(1, 2),
            "gate_bias": bias[:, ::2], "up_bias": bias[:, 1::2], "down_bias": t["mlp.experts.down_proj_bias"],
        }
    n = sum(1 for k in t if k.startswith(f"{block}.experts.") and k.endswith(f".{names[0]}.weight"))
    w = {"router": t[f"{block}.gate.weight"]}
    for ours, theirs in zip(("gate", "up", "down"), names):
        w[ours] = np.stack([t[f"{block}.experts.{e}.{theirs}.weight"] for e in range(n)])
    for key in ("mlp.gate.e_score_correction_bias", "block_sparse_moe.e_score_correction_bias"):
        if key in t:
            w["selection_bias"] = t[key]
    for stem in ("mlp.shared_expert", "mlp.shared_experts"):
        for m in ("gate_proj", "up_proj", "down_proj"):
            if f"{stem}.{m}.weight" in t:
                w[f"shared_{m}"] = t[f"{stem}.{m}.weight"]
    if "mlp.shared_expert_gate.weight" in t:
        w["shared_gate"] = t["mlp.shared_expert_gate.weight"]
    return w


def spec_of(family, config):
    spec = {"top_k": config["num_experts_per_tok"], "scores": "softmax", "norm": family in ("mixtral", "qwen3_moe")}
    if family in ("deepseek_v3", "glm4_moe", "minimax_m2"):
        spec |= {"scores": "sigmoid", "norm": True, "scale": config.get("routed_scaling_factor", 1.0)}
        spec |= {"groups": config.get("n_group", 1), "groups_kept": config.get("topk_group", 1)}
    if family == "gpt_oss":
        spec |= {"scores": "softmax-of-chosen", "norm": False, "limit": config["swiglu_limit"]}
    return spec


CASES = {
    # Family: architecture, and the types of gate, up, down and of the shared expert.
    "mixtral": ("llama", [T.Q4_0, T.Q4_1, T.Q8_0], None),
    "qwen3_moe": ("qwen3moe", [T.Q8_0, T.Q8_0, T.Q8_0], None),
    "qwen2_moe": ("qwen2moe", [T.Q5_0, T.Q5_1, T.Q4_0], T.F16),
    "olmoe": ("olmoe", [T.F16, T.BF16, T.F32], None),
    "deepseek_v3": ("deepseek2", [T.IQ4_NL, T.IQ4_NL, T.Q8_0], T.Q8_0),
    "glm4_moe": ("glm4moe", [T.Q4_1, T.Q4_1, T.Q5_1], T.Q8_0),
    "gpt_oss": ("gpt-oss", [T.MXFP4, T.MXFP4, T.MXFP4], None),
    "minimax_m2": ("minimax-m2", [T.BF16, T.BF16, T.BF16], None),
}


def stored(rng, values, qtype):
    """A tensor as it is stored, and the values that it then has."""
    if qtype is None or qtype == T.F32:
        return values, values, T.F32
    if qtype in (T.IQ4_NL, T.IQ4_XS, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K):
        # The package reads these types and does not write them.
        rows = int(np.prod(values.shape[:-1]))
        blocks = random_blocks(rng, qtype, rows, values.shape[-1], scale=0.01 if "K" not in qtype.name else 0.002)
    else:
        blocks = gguf.quantize(values.reshape(-1, values.shape[-1]), qtype)
    if qtype == T.F16:
        return blocks.reshape(values.shape), blocks.reshape(values.shape).astype(np.float32), qtype
    decoded = gguf.dequantize(blocks.view(np.uint8), qtype).reshape(values.shape)
    return blocks.view(np.uint8).reshape(*values.shape[:-1], -1), decoded, qtype


def write_model(out, arch, family, config, layers, types, rng, inputs, groups_key=True, split=0):
    out.mkdir(parents=True, exist_ok=True)
    spec = spec_of(family, config)
    writer = gguf.GGUFWriter(out / "model.gguf", arch, split_max_tensors=split)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    first = next(iter(layers.values()))
    ffn = first["gate"].shape[1]
    writer.add_expert_count(first["gate"].shape[0])
    writer.add_expert_used_count(spec["top_k"])
    if family in ("mixtral", "olmoe"):
        writer.add_feed_forward_length(ffn)
    else:
        writer.add_expert_feed_forward_length(ffn)
    if family in ("deepseek_v3", "glm4_moe"):
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_leading_dense_block_count(config["first_k_dense_replace"])
        writer.add_expert_weights_scale(spec["scale"])
        writer.add_expert_weights_norm(spec["norm"])
        if groups_key:
            writer.add_expert_group_count(spec["groups"])
            writer.add_expert_group_used_count(spec["groups_kept"])
    if family == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(first["shared_gate_proj"].shape[0])
    if spec["scores"] == "sigmoid":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    # Lists that no reader of MoE layers needs, as real files have them.
    writer.add_token_list(["a", "b", "c"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5, 2.5])
    by_name = {"gate": types[0][0], "up": types[0][1], "down": types[0][2]}
    for layer, weights in layers.items():
        values, p = {}, f"blk.{layer}."

        def put(key, name, qtype=None, shape=None):
            raw, values[key], qtype = stored(rng, np.ascontiguousarray(weights[key]), qtype)
            writer.add_tensor(p + name, raw.reshape(shape) if shape else raw, raw_dtype=qtype)

        put("router", "ffn_gate_inp.weight")
        for m in ("gate", "up", "down"):
            put(m, f"ffn_{m}_exps.weight", by_name[m])
            if f"{m}_bias" in weights:
                put(f"{m}_bias", f"ffn_{m}_exps.bias")
            if f"shared_{m}_proj" in weights:
                # Rows that no block divides stay floats, as llama.cpp leaves them.
                whole = weights[f"shared_{m}_proj"].shape[-1] % 32 == 0
                put(f"shared_{m}_proj", f"ffn_{m}_shexp.weight", types[1] if whole else T.F16)
        if "router_bias" in weights:
            put("router_bias", "ffn_gate_inp.bias")
        if "selection_bias" in weights:
            put("selection_bias", "exp_probs_b.bias")
        if "shared_gate" in weights:
            put("shared_gate", "ffn_gate_inp_shexp.weight", shape=(-1,))
        x = inputs[layer]
        y, ids, p_ids = forward(spec, values, x)
        golden = {"input": x, "output": y, "topk_ids": ids.astype(np.int64), "topk_weights": p_ids}
        save_file(golden, out / f"golden.layer{layer}.safetensors")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    write_blocks(out)
    rng = np.random.default_rng(13)
    for family, (arch, types, shared) in CASES.items():
        source = HERE / f"{family}.f32"
        config = json.loads((source / "config.json").read_text())
        tensors = load_file(source / "model.safetensors")
        layers, inputs = {}, {}
        for path in sorted(source.glob("golden.layer*.safetensors")):
            layer = int(path.name.split("layer")[1].split(".")[0])
            golden = load_file(path)
            layers[layer] = layer_weights(family, config, tensors, layer)
            inputs[layer] = golden["input"]
            got, ids, _ = forward(spec_of(family, config), layers[layer], golden["input"])
            error = np.linalg.norm(got - golden["output"]) / np.linalg.norm(golden["output"])
            assert error < 2e-6, f"{family}: this is not what transformers computes ({error})"
        # The constant of llama.cpp, which files do not have.
        config |= {"swiglu_limit": 7.0} if family == "gpt_oss" else {}
        split = 3 if family == "qwen3_moe" else 0
        write_model(out / f"gguf.{arch}", arch, family, config, layers, (types, shared), rng, inputs, split=split)
    # Blocks of 256 need wider rows; rows that they do not divide have a smaller type, as llama.cpp does it.
    for name, types in {
        "gguf.qwen3moe-k23": [T.Q2_K, T.Q3_K, T.Q4_0], "gguf.qwen3moe-k45": [T.Q4_K, T.Q5_K, T.Q5_1],
        "gguf.qwen3moe-k6iq": [T.Q6_K, T.IQ4_XS, T.IQ4_NL],
    }.items():
        config = {"num_experts_per_tok": 2, "hidden_size": 256, "num_hidden_layers": 1}
        shapes = {"router": (4, 256), "gate": (4, 32, 256), "up": (4, 32, 256), "down": (4, 256, 32)}
        layer = {k: (rng.standard_normal(s) * 0.05).astype(np.float32) for k, s in shapes.items()}
        x = rng.standard_normal((9, 256)).astype(np.float32)
        write_model(out / name, "qwen3moe", "qwen3_moe", config, {0: layer}, (types, None), rng, {0: x})


if __name__ == "__main__":
    main()
