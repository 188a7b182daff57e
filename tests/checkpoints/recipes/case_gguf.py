"""GGUF files of small models with the gguf package, tensors and metadata as llama.cpp's converter names them: `python case_gguf.py OUT`.

pip install gguf==0.19.0 transformers==5.24.0 torch
Types that the package can quantise are quantised; of the others blocks are random bytes with scales that fit, and the package's
dequantiser says what they mean. `config.json` is the Hugging Face config that the metadata stands for."""
from common import *
import gguf
from gguf import GGMLQuantizationType as Q

PACKAGES = ["gguf", "transformers", "torch"]
WIDTH, HIDDEN = 32, 256
rng = np.random.default_rng(3)
HALF = {Q.Q2_K: (80, 82), Q.Q3_K: (108,), Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,), Q.IQ4_XS: (0,), Q.IQ4_NL: (0,), Q.IQ2_XXS: (0,), Q.IQ2_XS: (0,),
        Q.IQ2_S: (0,), Q.IQ3_XXS: (0,), Q.IQ3_S: (0,), Q.IQ1_S: (0,)}


def random_blocks(shape, kind):
    """Bytes of a tensor of this shape [.., K] whose values have about variance 1/K."""
    per, size = gguf.GGML_QUANT_SIZES[kind]
    n = int(np.prod(shape)) // per
    b = rng.integers(0, 256, (n, size), dtype=np.uint8)

    def scaled(d):
        d = np.asarray(d, np.float16).reshape(-1)
        d = np.broadcast_to(d, n) if len(d) == 1 else d
        if kind == Q.IQ1_M:  # the four parts of the scale are the high bits of four words
            w = b[:, 48:56].copy().view(np.uint16).reshape(n, 4)
            bits = d.view(np.uint16) if d.flags.c_contiguous else d.copy().view(np.uint16)
            for i in range(4):
                w[:, i] = (w[:, i] & 0x0FFF) | (((bits >> (4 * i)) & 15) << 12)
            b[:, 48:56] = w.view(np.uint8).reshape(n, 8)
        elif kind == Q.NVFP4:
            b[:, :4] = rng.integers(0x28, 0x38, (n, 4))
        else:
            for i, at in enumerate(HALF[kind]):
                v = (d * np.float16(1 if i == 0 else 4)).astype(np.float16)
                b[:, at:at + 2] = v.reshape(n, 1).view(np.uint8)
        return gguf.quants.dequantize(b.reshape(*shape[:-1], -1), kind)
    spread = scaled(1.0).std()
    if kind != Q.NVFP4:
        scaled(shape[-1] ** -.5 / spread * rng.uniform(.7, 1.3, n))
    return b.reshape(*shape[:-1], shape[-1] // per * size)


def coded(w, kind):
    """The tensor in a type: what is stored, and its values."""
    w = np.ascontiguousarray(w.float().numpy())
    if kind in HALF or kind in (Q.IQ1_M, Q.NVFP4):
        raw = random_blocks(w.shape, kind)
    else:
        raw = gguf.quants.quantize(w, kind)
    return raw, torch.from_numpy(gguf.quants.dequantize(raw, kind).reshape(w.shape).astype(np.float32).copy())


SETS = {
    "q8_0": (Q.Q8_0,) * 3, "q4_0-q4_1-q5_0": (Q.Q4_0, Q.Q4_1, Q.Q5_0), "q5_1-bf16-f16": (Q.Q5_1, Q.BF16, Q.F16), "q4_k-q5_0": (Q.Q4_K, Q.Q4_K, Q.Q5_0),
    "q5_k-q6_k-q8_0": (Q.Q5_K, Q.Q6_K, Q.Q8_0), "q2_k-q3_k-iq4_nl": (Q.Q2_K, Q.Q3_K, Q.IQ4_NL), "iq4_xs-iq3_s-iq4_nl": (Q.IQ4_XS, Q.IQ3_S, Q.IQ4_NL),
    "iq2_xxs-iq2_xs-iq4_nl": (Q.IQ2_XXS, Q.IQ2_XS, Q.IQ4_NL), "iq2_s-iq3_xxs-iq4_nl": (Q.IQ2_S, Q.IQ3_XXS, Q.IQ4_NL),
    "iq1_s-iq1_m-iq4_nl": (Q.IQ1_S, Q.IQ1_M, Q.IQ4_NL), "tq1_0-tq2_0-q4_0": (Q.TQ1_0, Q.TQ2_0, Q.Q4_0), "nvfp4-mxfp4": (Q.NVFP4, Q.NVFP4, Q.MXFP4), "mxfp4": (Q.MXFP4,) * 3,
}
CASES = [("qwen3_moe", n) for n in SETS] + [("mixtral", "q4_k-q5_0"), ("gpt_oss", "mxfp4"), ("deepseek_v3", "q8_0"), ("deepseek_v3", "q4_k-q5_0"),
                                          ("qwen2_moe", "q4_k-q5_0"), ("qwen3_moe.fused-gate-up", "q8_0")]
ARCH = {"qwen3_moe": "qwen3moe", "mixtral": "llama", "gpt_oss": "gpt-oss", "deepseek_v3": "deepseek2", "qwen2_moe": "qwen2moe"}


def metadata(w, family, c):
    w.add_block_count(c.num_hidden_layers), w.add_context_length(c.max_position_embeddings), w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size), w.add_head_count(c.num_attention_heads), w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps), w.add_rope_freq_base(10000.0), w.add_vocab_size(c.vocab_size)
    w.add_expert_used_count(c.num_experts_per_tok), w.add_expert_count(E)
    if family == "qwen3_moe" or family == "gpt_oss":
        w.add_expert_feed_forward_length(WIDTH)
    if family == "qwen2_moe":
        w.add_expert_feed_forward_length(WIDTH), w.add_expert_shared_feed_forward_length(WIDTH)
    if family == "deepseek_v3":
        w.add_leading_dense_block_count(c.first_k_dense_replace), w.add_expert_feed_forward_length(WIDTH)
        w.add_expert_shared_count(c.n_shared_experts), w.add_expert_weights_scale(c.routed_scaling_factor), w.add_expert_weights_norm(c.norm_topk_prob)
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        w.add_expert_group_count(c.n_group), w.add_expert_group_used_count(c.topk_group)


def make(root, family, kinds):
    family, _, fused = family.partition(".")
    folder = fresh(root, f"gguf-{ARCH[family]}.{'fused-gate-up-' if fused else ''}{kinds}")
    sizes = dict(hidden_size=HIDDEN, width=WIDTH, vocab_size=16)
    if family == "deepseek_v3":
        sizes |= dict(n_group=2, topk_group=1, routed_scaling_factor=2.5)
    model = tiny(family, dtype=torch.float32, **sizes)
    model.config.save_pretrained(folder)
    v = floats(model)
    w = gguf.GGUFWriter(f"{folder}/model.gguf", ARCH[family])
    metadata(w, family, model.config)
    rows = []

    def add(name, values, kind=Q.F32):
        raw, back = coded(values, kind)
        w.add_tensor(name, raw, raw_dtype=kind)
        rows.append(f"| `{name}` | {kind.name} | {list(values.shape)} |")
        return back
    g = lambda n: v[n]
    a, b, d = SETS[kinds]
    up_axis = 1
    gu, down = v["experts.gate_up_proj"], v["experts.down_proj"]
    if family == "gpt_oss":
        gu, down = gu.transpose(1, 2), down.transpose(1, 2)
        gate, up = gu[:, 0::2], gu[:, 1::2]
    else:
        gate, up = gu.chunk(2, 1)
    p = "blk.0."
    router = next(n for n in v if n in ("gate.weight", "router.weight"))
    v[router] = add(p + "ffn_gate_inp.weight", v[router])
    if fused:
        both = add(p + "ffn_gate_up_exps.weight", gu, a)
        gate, up = both.chunk(2, 1)
    else:
        gate, up = add(p + "ffn_gate_exps.weight", gate, a), add(p + "ffn_up_exps.weight", up, b)
    down = add(p + "ffn_down_exps.weight", down, d)
    if family == "gpt_oss":
        v["experts.gate_up_proj"] = torch.stack((gate, up), 2).flatten(1, 2).transpose(1, 2).contiguous()
        v["experts.down_proj"] = down.transpose(1, 2).contiguous()
        add(p + "ffn_gate_inp.bias", v["router.bias"])
        bias = v["experts.gate_up_proj_bias"]
        add(p + "ffn_gate_exps.bias", bias[:, 0::2]), add(p + "ffn_up_exps.bias", bias[:, 1::2]), add(p + "ffn_down_exps.bias", v["experts.down_proj_bias"])
    else:
        v["experts.gate_up_proj"], v["experts.down_proj"] = torch.cat((gate, up), 1), down
    for n in [n for n in v if n.startswith("shared_expert") and n.endswith("_proj.weight")]:
        kind = {"gate": a, "up": b, "down": d}[n.split(".")[1].split("_")[0]]
        v[n] = add(p + f"ffn_{n.split('.')[1].split('_')[0]}_shexp.weight", v[n], kind)
    if "shared_expert_gate.weight" in v:
        add(p + "ffn_gate_inp_shexp.weight", v["shared_expert_gate.weight"].reshape(-1))
    if "gate.e_score_correction_bias" in v:
        add(p + "exp_probs_b.bias", v["gate.e_score_correction_bias"])
    add(p + ("post_attention_norm.weight" if family == "gpt_oss" else "ffn_norm.weight"), torch.ones(HIDDEN))
    add("token_embd.weight", model.get_input_embeddings().weight.detach(), Q.F16)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    x = hidden(width=HIDDEN)
    io(folder, x, expected(family, v, x, **sizes))
    reader = gguf.GGUFReader(f"{folder}/model.gguf")
    keys = "\n".join(f"| `{k}` | {f.contents()} |" for k, f in reader.fields.items() if not k.startswith("GGUF."))
    print("CASE", os.path.basename(folder), sum(os.path.getsize(os.path.join(r, f)) for r, _, fs in os.walk(folder) for f in fs))
    with open(f"{folder}/NOTE.md", "w") as f:
        f.write(f"# GGUF, architecture {ARCH[family]} ({family}), {kinds}\n\nMade with " + ", ".join(f"{q} {version(q)}" for q in PACKAGES) + ". Remade by "
                "`recipes/case_gguf.py`. The attention's tensors are left out.\n\nShapes here are in the order of Hugging Face (slowest first); the file lists them the "
                "other way round, so `ffn_gate_exps` is (K, N, E) there. Blocks run along K, the last axis here.\n\n"
                f"| metadata | value |\n|---|---|\n{keys}\n\n| tensor | type | shape |\n|---|---|---|\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    for family, kinds in CASES:
        try:
            make(sys.argv[1], family, kinds)
        except Exception as error:
            import traceback
            print("FAILED", family, kinds, "".join(traceback.format_exception(error)[-2:])[:500])
