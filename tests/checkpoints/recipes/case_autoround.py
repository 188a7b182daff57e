"""Checkpoints of Intel AutoRound, each in every format that it exports: `python case_autoround.py OUT`.

pip install auto-round==0.16.1 compressed-tensors==0.20.1 gguf==0.19.0 transformers==5.24.0 torch"""
from common import *
import glob, tempfile, traceback

PACKAGES = ["auto-round", "transformers", "torch"]
SIZES = dict(hidden_size=64, width=96, num_attention_heads=4, num_key_value_heads=2)
ROOT = "model.layers.0.mlp."


def source(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    model = tiny(**SIZES)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(32)}, unk_token="t3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t3", eos_token="t2", pad_token="t0", bos_token="t1").save_pretrained(folder)
    return floats(model)


def unpack(words, bits):
    """Codes along the first axis from 32-bit words, the lowest bits first; codes may cross words."""
    flat = words.long() & 0xFFFFFFFF
    bit = (flat[:, None] >> torch.arange(32)[:, None]) & 1
    bit = bit.reshape(flat.shape[0] * 32, *flat.shape[1:])
    return (bit.reshape(-1, bits, *flat.shape[1:]) << torch.arange(bits)[:, None]).sum(1)


AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


def gptq(t, b, bits, plus):
    q = unpack(t[b + ".qweight"], bits)
    z = unpack(t[b + ".qzeros"].T, bits).T + plus
    group = torch.arange(q.shape[0]) // (q.shape[0] // z.shape[0])
    if b + ".g_idx" in t:
        group = t[b + ".g_idx"].long()
    return ((q - z[group]) * t[b + ".scales"].float()[group]).T


def awq(t, b, bits):
    un = lambda w: unpack(w.T, 4).T.reshape(w.shape[0], -1, 8)[..., AWQ_ORDER].reshape(w.shape[0], -1)
    q, z = un(t[b + ".qweight"]), un(t[b + ".qzeros"])
    group = torch.arange(q.shape[0]) // (q.shape[0] // z.shape[0])
    return ((q - z[group]) * t[b + ".scales"].float()[group]).T


FACTS = """`packing_format` in the config says how zero points are stored; the format's name on the command line does not: `auto_round` and `auto_round:auto_gptq` are both written as auto_round:auto_gptq when symmetric
(zero points less one) and as plain auto_round (as they are) when not; auto_round:gptqmodel always as they are. `qweight` I32 [K*bits/32,N], lowest bits first, codes of 3 bits run on across words; `qzeros`
[groups,N*bits/32]; `scales` F16 [groups,N]; g_idx only in some (see the table). With awq in its name: [K,N/8] in AWQ's order. `extra_config` gives single layers (full
names, or regular expressions) other bits. MXFP4 and NVFP4 as compressed-tensors: `weight_packed` low half first, E8M0 U8 scales, or E4M3 scales / weight_global_scale. MXFP8: `weight` E4M3, U8
scales. FP8 blocks: `weight_scale_inv` (auto_round) or `weight_scale` (llm_compressor). INT8_W8A8 as auto_round stores the rounded weights as floats."""


def decode(t, b, q):
    """One linear layer as floats; q is its quantization_config."""
    bits = q.get("bits")
    if b + ".qweight" in t:
        packing = q.get("packing_format", q["quant_method"])
        if "awq" in packing:
            return awq(t, b, bits), "awq"
        plus = int("gptqmodel" not in packing and packing != "auto_round")
        return gptq(t, b, bits, plus), f"gptq+{plus}"
    if b + ".weight_packed" in t:
        p = t[b + ".weight_packed"]
        if p.dtype == torch.int32:
            g = q["config_groups"]["group_0"]["weights"]
            c = (unpack(p.T, g["num_bits"]).T - 2 ** (g["num_bits"] - 1)).float()
            s = t[b + ".weight_scale"].float()
            if b + ".weight_zero_point" in t:  # packed along the rows
                z = unpack(t[b + ".weight_zero_point"], g["num_bits"])[:c.shape[0]] - 2 ** (g["num_bits"] - 1)
                c = c - z.repeat_interleave(c.shape[1] // z.shape[1], 1)
            return c * s.repeat_interleave(c.shape[1] // s.shape[1], 1), "pack-quantized"
        c, s = E2M1[nibbles(p).long()], t[b + ".weight_scale"]
        s = torch.exp2(s.float() - 127) if s.dtype == torch.uint8 else s.float() / t[b + ".weight_global_scale"]
        return c * s.repeat_interleave(c.shape[1] // s.shape[1], 1), "fp4"
    w, s = t[b + ".weight"], t.get(b + ".weight_scale", t.get(b + ".weight_scale_inv"))
    if s is None:
        return w.float(), "float"
    if s.dtype == torch.uint8:
        s = torch.exp2(s.float() - 127)
    s = s.float()
    if s.dim() == 2:
        s = s.repeat_interleave(w.shape[0] // s.shape[0], 0).repeat_interleave(w.shape[1] // s.shape[1], 1)
    elif s.dim() == 1 and len(s) == w.shape[0]:
        s = s[:, None]
    return w.float() * s, "8 bits"


FORMATS = [("W4A16", f, s) for f in ("auto_round", "auto_round:gptqmodel", "auto_round:auto_gptq", "auto_round:auto_awq", "auto_gptq", "auto_awq",
                                    "llm_compressor") for s in (True, False)]
FORMATS += [(f"W{b}A16", "auto_round", s) for b in (2, 3, 8) for s in (True, False)]
FORMATS += [(s, f, None) for s in ("MXFP4", "MXFP8", "NVFP4", "FP8_STATIC", "INT8_W8A8", "FP8_BLOCK") for f in ("auto_round", "llm_compressor")]
FORMATS += [("W4A16-mixed", "auto_round", True), ("MXFP4-mixed", "auto_round", None)]


def make(root, src, block, before, scheme, fmt, sym):
    from auto_round import AutoRound
    mixed = scheme.endswith("-mixed")
    more = {} if sym is None else dict(group_size=32, sym=sym)
    if mixed and sym:
        more["layer_config"] = {f"model.layers.0.mlp.experts.{i}.down_proj": dict(bits=8, group_size=32, sym=True) for i in range(E)}
    elif mixed:
        more["layer_config"] = {f"model.layers.0.mlp.experts.{i}.down_proj": dict(bits=8, data_type="mx_fp", group_size=32, act_bits=16) for i in range(E)}
    data = [torch.randint(0, 32, (1, 16), generator=torch.Generator().manual_seed(i)) for i in range(8)]
    ar = AutoRound(src, scheme=scheme.removesuffix("-mixed"), iters=0, device_map="cpu", seqlen=16, nsamples=8, batch_size=1, dataset=data,
                   disable_opt_rtn=True, **more)
    name = f"autoround-{scheme.lower().replace('_', '-')}.{fmt.replace(':', '-')}" + {None: "", True: ".sym", False: ".asym"}[sym]
    with tempfile.TemporaryDirectory() as tmp:
        ar.quantize_and_save(output_dir=tmp, format=fmt)
        made = os.path.dirname(glob.glob(tmp + "/**/config.json", recursive=True)[0])
        folder = fresh(root, name)
        for f in os.listdir(made):
            if os.path.isfile(f"{made}/{f}") and "token" not in f:
                shutil.copy(f"{made}/{f}", f"{folder}/{f}")
    t, q = stored(folder), json.load(open(folder + "/config.json"))["quantization_config"]
    how, w = set(), {}
    for n in ("gate_proj", "up_proj", "down_proj"):
        each = []
        for i in range(E):
            here = q | q.get("extra_config", {}).get(f"{ROOT}experts.{i}.{n}", {})
            v, h = decode(t, f"{ROOT}experts.{i}.{n}", here)
            each.append(v), how.add(h)
        w[n] = torch.stack(each)
    v = {"gate.weight": t[ROOT + "gate.weight"].float(), "experts.gate_up_proj": torch.cat((w["gate_proj"], w["up_proj"]), 1),
         "experts.down_proj": w["down_proj"]}
    far = {n: round(distance(v[n], before[n]), 4) for n in before}
    x = hidden(width=64)
    io(folder, x, expected("qwen3_moe", v, x, block))
    size = sum(os.path.getsize(f"{folder}/{f}") for f in os.listdir(folder))
    print("CASE", name, how, far, size, flush=True)
    facts = FACTS + f"\n\nScheme {scheme}, format {fmt}, sym {sym}; decoded as {', '.join(how)}. Relative distance of the decoded weights from those before: {far}.\n\n" \
            f"```json\n{json.dumps(q)}\n```"
    note(folder, f"AutoRound {scheme} as {fmt}", PACKAGES, facts)


if __name__ == "__main__":
    src = tempfile.mkdtemp()
    before, block = source(src), reference("qwen3_moe", hidden_size=64, width=96)
    for scheme, fmt, sym in FORMATS:
        if len(sys.argv) > 2 and sys.argv[2] not in f"{scheme}.{fmt}":
            continue
        try:
            make(sys.argv[1], src, block, before, scheme, fmt, sym)
        except Exception as error:
            print("FAILED", scheme, fmt, sym, traceback.format_exception(error)[-1][:400], flush=True)
