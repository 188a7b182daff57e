"""Checkpoints of GPTQModel: `python case_gptqmodel.py OUT [PART OF A NAME]`.

pip install gptqmodel==7.7.0 transformers==5.24.0 torch"""
from common import *
import tempfile, traceback

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

PACKAGES = ["gptqmodel", "transformers", "torch"]
SIZES = dict(hidden_size=64, width=128 if sys.argv[2:] == ["awq"] else 96, num_attention_heads=4, num_key_value_heads=4)
ROOT = "model.layers.0.mlp."
CASES = {
    "gptq4": dict(bits=4, group_size=32), "gptq4-asym": dict(bits=4, group_size=32, sym=False), "gptq4-desc": dict(bits=4, group_size=32, desc_act=True, act_group_aware=False),
    "gptq4-v2": dict(bits=4, group_size=32, format="gptq_v2"), "gptq4-v2-asym": dict(bits=4, group_size=32, format="gptq_v2", sym=False),
    "gptq2": dict(bits=2, group_size=32), "gptq3": dict(bits=3, group_size=32), "gptq3-asym": dict(bits=3, group_size=32, sym=False), "gptq8": dict(bits=8, group_size=32),
    "gptq5": dict(bits=5, group_size=32), "gptq6": dict(bits=6, group_size=32), "gptq7": dict(bits=7, group_size=32),
    "gptq3-planar": dict(bits=3, group_size=32, format="gptq_p"), "gptq4-whole-rows": dict(bits=4, group_size=-1, act_group_aware=False), "awq": dict(bits=4, group_size=32, method="awq", format="gemm"),
    "gptq4-dynamic": dict(bits=4, group_size=32, dynamic={r"+:.*down_proj": dict(bits=8, group_size=32), r"-:.*experts\.3\..*": {}}),
}


def unpack(words, bits):
    """Codes along the first axis from 32-bit words, the lowest bits first; codes may cross words."""
    flat = words.long() & 0xFFFFFFFF
    bit = (flat[:, None] >> torch.arange(32)[:, None]) & 1
    bit = bit.reshape(flat.shape[0] * 32, *flat.shape[1:])
    return (bit.reshape(-1, bits, *flat.shape[1:]) << torch.arange(bits)[:, None]).sum(1)


PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def planes(words, bits):
    """gptq_p: for 32 codes first the words of their low bits, then those of higher planes."""
    w = (words.long() & 0xFFFFFFFF).reshape(-1, bits, words.shape[1])
    out, row, at = 0, 0, 0
    for width in PLANES[bits]:
        shifts = torch.arange(0, 32, width)[:, None]
        part = (w[:, row:row + width, None] >> shifts) & (2 ** width - 1)
        out, row, at = out | part.reshape(len(w), 32, -1) << at, row + width, at + width
    return out.reshape(-1, words.shape[1])


AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


def linear(t, b, q):
    if b + ".weight" in t:
        return t[b + ".weight"].float(), "float"
    s = t[b + ".scales"].float()
    if q.get("quant_method") == "awq":
        un = lambda w: unpack(w.T, 4).T.reshape(w.shape[0], -1, 8)[..., AWQ_ORDER].reshape(w.shape[0], -1)
        c, z = un(t[b + ".qweight"]), un(t[b + ".qzeros"])
        plus, group = 0, torch.arange(c.shape[0]) // (c.shape[0] // z.shape[0])
    else:
        plus = 0 if q.get("checkpoint_format") == "gptq_v2" else 1
        bits = t[b + ".qweight"].shape[0] * 32 // len(t[b + ".g_idx"])
        planar = q.get("checkpoint_format") == "gptq_p"
        un = planes if planar else unpack
        plus = 0 if planar else plus
        c, z, group = un(t[b + ".qweight"], bits), un(t[b + ".qzeros"].T, bits).T, t[b + ".g_idx"].long()
    return ((c - z[group] - plus) * s[group]).T, f"+{plus}"


FACTS = """checkpoint_format gptq: zero points are stored less one; gptq_v2 and gptq_p: as they are. Codes of 3 bits in gptq and gptq_v2 run on
across words, lowest bits first; qzeros too, along their last axis. gptq_p (always for 5, 6 and 7 bits, whatever the config asked for): for each 32
codes `bits` words, first those of the low plane (4 bits; 2 for 3-bit codes), then those of the next 2-bit plane, then those of the 1-bit plane. Shapes are
the same as in gptq. """


def source(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    tiny(**SIZES).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(32)}, unk_token="t3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t3", eos_token="t2", pad_token="t0", bos_token="t1").save_pretrained(folder)


def main():
    src = tempfile.mkdtemp()
    before, block = floats(tiny(**SIZES)), reference("qwen3_moe", **SIZES)
    source(src)
    from gptqmodel import GPTQModel, QuantizeConfig
    data = [dict(input_ids=torch.randint(0, 32, (16,), generator=torch.Generator().manual_seed(i)).tolist(), attention_mask=[1] * 16) for i in range(16)]
    for name, more in CASES.items():
        if len(sys.argv) > 2 and sys.argv[2] not in name:
            continue
        try:
            model = GPTQModel.load(src, QuantizeConfig(**more), device="cpu")
            model.quantize(data, batch_size=1)
            folder = fresh(sys.argv[1], "gptqmodel." + name)
            model.save(folder)
            for f in os.listdir(folder):
                if "token" in f or f.endswith((".csv", ".log", ".jinja")):
                    os.remove(f"{folder}/{f}")
            t, q = stored(folder), json.load(open(folder + "/config.json"))["quantization_config"]
            w = {n: torch.stack([linear(t, f"{ROOT}experts.{i}.{n}", q)[0] for i in range(E)]) for n in ("gate_proj", "up_proj", "down_proj")}
            v = {"gate.weight": t[ROOT + "gate.weight"].float(), "experts.gate_up_proj": torch.cat((w["gate_proj"], w["up_proj"]), 1), "experts.down_proj": w["down_proj"]}
            far = {n: round(distance(v[n], before[n]), 4) for n in before}
            x = hidden(width=64)
            io(folder, x, expected("", v, x, block))
            brief = {k: x for k, x in q.items() if k != "meta"}
            print("CASE", name, far, linear(t, f"{ROOT}experts.0.down_proj", q)[1], brief, sum(os.path.getsize(os.path.join(r, f)) for r, _, fs in os.walk(folder) for f in fs), flush=True)
            note(folder, f"GPTQModel {name}", PACKAGES, FACTS + f" Relative distance from the weights before: {far}.\n\n```json\n{json.dumps(brief)}\n```")
        except Exception as error:
            print("FAILED", name, "".join(traceback.format_exception(error)[-2:])[:500], flush=True)


if __name__ == "__main__":
    main()
