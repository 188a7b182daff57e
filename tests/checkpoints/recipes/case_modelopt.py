"""Checkpoints of NVIDIA ModelOpt: `python case_modelopt.py OUT`.

pip install nvidia-modelopt==0.47.0 transformers==5.14.1 torch accelerate
pip install nvidia-modelopt==0.47.0 transformers==4.57.6 torch accelerate  # awq
INT4_AWQ and W4A8_AWQ refuse the stacked experts of transformers 5: `python case_modelopt.py OUT awq` makes those, and SmoothQuant
with its pre_quant_scale, with the transformers of the second line."""
from common import *
import copy
import modelopt.torch.quantization as mtq
from modelopt.torch.export import export_hf_checkpoint

PACKAGES = ["nvidia-modelopt", "transformers", "torch"]
STACKED = {"llama4_text", "gpt_oss"}


def last(codes, scale, block):
    """One scale for `block` neighbours of the last axis."""
    return codes * scale.repeat_interleave(block, -1)


def pack_axis(base, t, algo):
    """A weight as floats. `base` names it; names of scales are appended to it."""
    stacked = base in t
    q = t[base] if stacked else t[base + ".weight"]
    s = lambda n: t[base + ("_" if stacked else ".") + n]
    if algo in ("NVFP4", "W4A16_NVFP4") and stacked:
        q, sc = nibbles(q.transpose(1, 2)), s("weight_scale").transpose(1, 2)
        return last(E2M1[q.long()], sc.float() * s("weight_scale_2"), 16).transpose(1, 2)
    if "NVFP4" in algo:
        block = 32 if algo == "W4A8_NVFP4_FP8" else 16
        return last(E2M1[nibbles(q).long()], s("weight_scale").float() * s("weight_scale_2"), block)
    if "MXFP4" in algo.upper():
        return last(E2M1[nibbles(q).long()], torch.exp2(s("weight_scale").float() - 127), 32)
    if algo == "MXFP8":
        return last(q.float(), torch.exp2(s("weight_scale").float() - 127), 32)
    if algo == "fp8_pb_wo":
        sc = s("weight_scale").reshape(*q.shape[:-2], q.shape[-2] // 128, q.shape[-1] // 128)
        return q.float() * sc.repeat_interleave(128, -2).repeat_interleave(128, -1)
    if algo in ("INT4_AWQ", "W4A16_AWQ", "W4A8_AWQ"):
        # Codes of row 2i in the low halves, of row 2i+1 in the high halves; two's complement.
        codes = torch.stack((q & 15, q >> 4), 1).flatten(0, 1).to(torch.int8)
        codes = torch.where(codes > 7, codes - 16, codes).float()
        scale = s("weight_scale").float()
        if base + ".weight_scale_2" in t:
            scale = scale * s("weight_scale_2")
        w = last(codes, scale, q.shape[-1] // scale.shape[-1])
    else:  # FP8, FP8_PER_CHANNEL_PER_TOKEN, W8A8_SQ_PER_CHANNEL, W8A16
        sc = s("weight_scale")
        w = q.float() * (sc if sc.dim() == 0 else sc.reshape(-1, *[1] * (q.dim() - 1)))
    # The input is multiplied by pre_quant_scale before the product.
    return w * s("pre_quant_scale").float() if not stacked and base + ".pre_quant_scale" in t else w


def values(family, folder, algo, experts):
    """The tensors of the MoE block as floats, under the names of transformers 5."""
    t = stored(folder)
    root = "model.layers.0." + ("feed_forward." if family == "llama4_text" else "mlp.")
    out = {}
    for n in t:
        if n.startswith(root) and "experts." not in n.replace("shared_experts", "") and not n.endswith("scale") and not n.endswith("scale_2"):
            short = n[len(root):]
            coded = t[n].dtype in (torch.uint8, torch.int8, torch.float8_e4m3fn)
            out[short] = pack_axis(n.removesuffix(".weight"), t, algo) if coded else t[n].float()
    if family in STACKED:
        for n in ("gate_up_proj", "down_proj"):
            out["experts." + n] = pack_axis(root + "experts." + n, t, algo)
            if root + f"experts.{n}_bias" in t:
                out[f"experts.{n}_bias"] = t[root + f"experts.{n}_bias"].float()
    else:
        e = lambda n: torch.stack([pack_axis(f"{root}experts.{i}.{n}", t, algo) for i in range(experts)])
        out["experts.gate_up_proj"] = torch.cat((e("gate_proj"), e("up_proj")), 1)
        out["experts.down_proj"] = e("down_proj")
    return out


def make(root, family, cfg, width=96, hidden_size=64):
    more = dict(hidden_size=hidden_size)
    if hidden_size == 128:
        more |= dict(head_dim=64)  # groups of 128 in attention too
    if family == "deepseek_v3":
        more |= dict(q_lora_rank=32, kv_lora_rank=32)
    if width == hidden_size and "FP8" in cfg:
        more["num_experts" if "qwen" in family else "num_local_experts"] = 2  # blocks of 128x128 are large
    x = hidden(width=hidden_size)
    model = tiny(family, width=width, **more)
    before = floats(model)
    tokens = lambda i: torch.randint(0, 32, (4, 16), generator=torch.Generator().manual_seed(i))
    model = mtq.quantize(model, copy.deepcopy(getattr(mtq, cfg)), lambda m: [m(tokens(i)) for i in range(4)])
    name = f"modelopt-{family}.{cfg.removesuffix('_CFG').removesuffix('_DEFAULT').lower().replace('_', '-')}"
    folder = fresh(root, name)
    export_hf_checkpoint(model, export_dir=folder)
    algo = json.load(open(folder + "/hf_quant_config.json"))["quantization"]["quant_algo"]
    v = values(family, folder, algo, more.get("num_experts", E))
    if version("transformers").startswith("5"):
        far = {n: distance(v[n], before[n]) for n in before if n.startswith("experts") and "bias" not in n}
        y = expected(family, v, x, width=width, **more)
    else:
        block, w = moe_of(tiny(family, dtype=torch.float32, width=width, **more)).double(), {}
        for n, p in block.named_parameters():
            b = f"model.layers.0.mlp.{n.removesuffix('.weight')}"
            p.data = (pack_axis(b, stored(folder), algo) if "experts" in n else before[n]).double()
            w[n] = distance(p.data, before[n])
        far, y = dict(sorted(w.items())[:3]), run(block, x.double()).float()
    io(folder, x, y)
    print(name, algo, far, sum(os.path.getsize(f"{folder}/{f}") for f in os.listdir(folder)))
    return folder, algo


BLOCKS = "`codes * scale`, one scale for {} neighbours of the last axis of the tensor as it is stored; the low half of a byte is the first code."
FACTS = {
    "NVFP4": "Value = E2M1 code * `weight_scale` (E4M3) * `weight_scale_2` (f32 scalar); blocks of 16 input channels. In stacked experts "
             "[E,K,N] the codes and scales lie along the middle axis: bytes [E,K/2,N] (byte k holds rows 2k, low half, and 2k+1), scales "
             "[E,K/16,N]; one `weight_scale_2` for the whole stack. `input_scale` is for activations only.",
    "FP8": "Value = E4M3 * `weight_scale`, an f32 scalar. For stacked experts one scalar is for all experts of the stack.",
    "FP8_PER_CHANNEL_PER_TOKEN": "Value = E4M3 * `weight_scale`: f32 [N], one a row, for linear layers, of one axis. For stacked experts the scale is "
                                 "[E]: one for an expert, not for a channel.",
    "fp8_pb_wo": "Value = E4M3 * `weight_scale` of its 128x128 block. The scale keeps unit axes: [N/128,1,K/128,1] (a matrix), [E,a,1,b,1] "
                 "(a stack, a blocks of the middle axis, b of the last) — and a single block is squeezed to a scalar, but only for some of the "
                 "tensors. `quant_algo` is written in lower case, `fp8_pb_wo`.",
    "MXFP8": "Value = E4M3 * 2^(scale-127), scale U8. " + BLOCKS.format(32).replace("; the low half of a byte is the first code", "") +
             " In stacked experts [E,K,N] that axis is the OUTPUT axis N: blocks run across 32 outputs, unlike NVFP4 of the same tool.",
    "MXFP4": "Value = E2M1 * 2^(scale-127), scale U8. " + BLOCKS.format(32) + " In stacked experts [E,K,N] that axis is the OUTPUT axis N: bytes "
             "[E,K,N/2], scales [E,K,N/32], unlike NVFP4 of the same tool. `quant_algo` is `mxfp4` in lower case or `W4A8_MXFP4_FP8`.",
    "W4A8_NVFP4_FP8": "Value = E2M1 * `weight_scale` (E4M3) * `weight_scale_2`; blocks of 32, not 16. " + BLOCKS.format(32) + " In stacked experts "
                      "[E,K,N] that axis is the OUTPUT axis N, although NVFP4 of the same tool packs along K.",
    "W8A8_SQ_PER_CHANNEL": "Value = I8 * `weight_scale` [N]. Where `pre_quant_scale` [K] is stored, the input of the layer is multiplied by it first "
                           "(in floats: column k of the weight times pre_quant_scale[k]).",
    "W8A16": "Value = I8 * `weight_scale` [N].",
    "AWQ": "U8 [N/2,K]: byte (i,k) holds row 2i in its low half and row 2i+1 in its high half (packed along the OUTPUT axis), two's complement. "
           "`weight_scale` [N,K/128]; with W4A8_AWQ also the scalar `weight_scale_2`: value = code * weight_scale * weight_scale_2. `pre_quant_scale` [K], "
           "where stored, multiplies the input of the layer first.",
}
FACTS["W4A16_NVFP4"] = FACTS["NVFP4"]
FACTS["mxfp4"] = FACTS["W4A8_MXFP4_FP8"] = FACTS["MXFP4"]

if __name__ == "__main__":
    out = sys.argv[1]
    if sys.argv[2:] == ["awq"]:
        cases = [(f, c, 128) for f in ("qwen3_moe",) for c in ("INT4_AWQ_CFG", "W4A8_AWQ_BETA_CFG")]
        cases += [("qwen3_moe", "INT8_SMOOTHQUANT_CFG", 96)]
    elif len(sys.argv) > 2:
        cases = [(sys.argv[2], sys.argv[3], 96)]
    else:
        both = ("qwen3_moe", "llama4_text", "gpt_oss")
        cases = [(f, c, 96) for c in ("NVFP4_DEFAULT_CFG", "FP8_DEFAULT_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG", "MXFP8_DEFAULT_CFG",
                                      "MXFP4_DEFAULT_CFG", "W4A8_MXFP4_FP8_CFG", "W4A8_NVFP4_FP8_CFG", "W4A16_NVFP4_CFG") for f in both]
        cases += [(f, "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", 128) for f in both]
        cases += [("qwen3_moe", c, 96) for c in ("INT8_DEFAULT_CFG", "INT8_WEIGHT_ONLY_CFG")]
        cases += [("deepseek_v3", "NVFP4_DEFAULT_CFG", 96), ("deepseek_v3", "MXFP8_DEFAULT_CFG", 96)]
    for family, cfg, width in cases:
        try:
            folder, algo = make(out, family, cfg, width, 128 if width == 128 else 64)
            note(folder, f"ModelOpt {cfg}, {family}", PACKAGES, FACTS.get(algo, FACTS["AWQ"]))
        except Exception as error:
            print("FAILED", family, cfg, repr(error)[:300])
