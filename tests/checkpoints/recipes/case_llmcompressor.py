"""Checkpoints of llm-compressor (compressed-tensors): `python case_llmcompressor.py OUT [PART OF A NAME]`.

pip install llmcompressor==0.14.0.1 compressed-tensors==0.19.0 transformers==5.17.0 torch==2.14.0"""
from common import *
import tempfile, traceback
from transformers import AutoModelForCausalLM
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

PACKAGES = ["llmcompressor", "compressed-tensors", "transformers", "torch"]
SIZES = dict(hidden_size=64, width=96, num_attention_heads=4, num_key_value_heads=2)
ROOT = "model.layers.0.mlp."
IGNORE = ["lm_head", "re:.*mlp.gate$", "re:.*self_attn.*"]
INT = lambda bits, **k: dict(weights=dict(num_bits=bits, type="int", **(dict(symmetric=True, strategy="group", group_size=32) | k)))
FLOAT = lambda bits, **k: dict(weights=dict(num_bits=bits, type="float", symmetric=True, **k))

CASES = {}
for b in range(2, 9):
    CASES[f"w{b}a16.sym"] = INT(b)
    CASES[f"w{b}a16.asym"] = INT(b, symmetric=False)
CASES |= {
    "w4a16.channel": INT(4, strategy="channel", group_size=None), "w4a16.channel-asym": INT(4, strategy="channel", group_size=None, symmetric=False),
    "w8a16.channel": INT(8, strategy="channel", group_size=None),
    "w4a16.gptq-weight": INT(4, actorder="weight"), "w4a16.gptq-static": INT(4, actorder="static"),
    "w4a16.gptq-asym": INT(4, symmetric=False), "w4a16.awq": INT(4, symmetric=False), "w4a16.awq-sym": INT(4),
    "nvfp4": "NVFP4", "nvfp4a16": "NVFP4A16", "mxfp4": "MXFP4", "mxfp4a16": "MXFP4A16", "mxfp8": "MXFP8", "mxfp8a16": "MXFP8A16", "fp8": "FP8", "fp8-dynamic": "FP8_DYNAMIC", "fp8-block": "FP8_BLOCK",
    "int8-w8a8": "W8A8", "w4a8": "W4A8", "w4afp8": "W4AFP8", "int8-naive": INT(8, strategy="channel", group_size=None) | dict(format="naive-quantized"),
    "int8-tensor": INT(8, strategy="tensor", group_size=None) | dict(format="int-quantized"),
    "fp8-naive": FLOAT(8, strategy="channel") | dict(format="naive-quantized"), "fp8-group": FLOAT(8, strategy="group", group_size=32),
    "int8-group": INT(8) | dict(format="int-quantized"), "int8-asym": INT(8, strategy="channel", group_size=None, symmetric=False) | dict(format="int-quantized"),
    "w4-int-quantized": INT(4) | dict(format="int-quantized"),
}


def own(t, base, config):
    """The tool's own way back to floats."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    c = {k: v for k, v in config.items() if k not in ("quant_method", "version", "sparsity_config", "transform_config")}
    group = next(iter(QuantizationConfig.model_validate(c).config_groups.values()))
    comp = BaseCompressor.get_value_from_registry(group.format or config["format"])
    d = {n[len(base) + 1:]: v for n, v in t.items() if n.startswith(base + ".")}
    if "weight_global_scale" in d:  # decompress rounds to bfloat16
        scale = d["weight_scale"].float() / d["weight_global_scale"]
        exact = E2M1[nibbles(d["weight_packed"]).long()] * scale.repeat_interleave(16, 1)
        assert distance(comp.decompress(dict(d), group)["weight"], exact) < 4e-3
        return exact
    # With scales in float32 it does not.
    d = {n: v.float() if v.dtype == torch.bfloat16 else v for n, v in d.items()}
    out = comp.decompress(dict(d), group)
    return out["weight"].float()


def recipe(scheme, name):
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    if isinstance(scheme, str):
        return QuantizationModifier(targets=["Linear"], scheme=scheme, ignore=IGNORE)
    groups = {"group_0": QuantizationScheme(targets=["Linear"], **scheme)}
    if "gptq" in name:
        return GPTQModifier(config_groups=groups, ignore=IGNORE)
    if "awq" in name:
        from llmcompressor.modifiers.transform.awq import AWQModifier
        torch.Tensor.pin_memory = lambda self, *_: self  # it asks for a GPU's driver
        return [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=IGNORE)]
    return QuantizationModifier(config_groups=groups, ignore=IGNORE)


FACTS = """pack-quantized: `weight_packed` I32, codes plus 2^(bits-1), packed along the input axis, lowest bits first; codes run on across words (3, 5, 6, 7 bits),
[N,ceil(K*bits/32)]. `weight_zero_point` I32 is packed the same way along the OUTPUT axis: [ceil(N*bits/32),groups], and has the same offset.
`weight_scale` [N,groups]. value = (code - zero) * scale.
int-quantized, float-quantized and naive-quantized: `weight` I8 or E4M3, not packed even for 4 bits (W4A8 and W4AFP8 too), value = (weight - zero) * scale.
nvfp4-pack-quantized: `weight_packed` U8, low half first; value = E2M1 * weight_scale (E4M3) / weight_global_scale (a divisor, [1]).
mxfp4-pack-quantized, mxfp8-quantized: `weight_scale` U8, value = code * 2^(scale-127)."""


def data():
    """Calibration: random tokens."""
    from datasets import Dataset
    rows = [torch.randint(0, 32, (16,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(8)]
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * 16] * 8})


def make(root, name, scheme):
    from llmcompressor import oneshot
    sizes = SIZES | (dict(hidden_size=128, width=128, num_experts=2) if "block" in name or name in ("w4a8", "w4afp8") else {})
    model = tiny(**sizes)
    before, block = floats(model), reference("qwen3_moe", **sizes)
    calibrate = any(w in name for w in ("gptq", "awq")) or name in ("nvfp4", "fp8", "w4a8")
    folder = fresh(root, "llmcompressor." + name)
    # The tool asks for the folder that a model came from.
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp)
        model = AutoModelForCausalLM.from_pretrained(tmp, dtype="auto")
        oneshot(model=model, recipe=recipe(scheme, name), **(dict(dataset=data(), num_calibration_samples=8, max_seq_length=16, pipeline="basic") if calibrate else {}))
        model.save_pretrained(folder, save_compressed=True)
    t, q = stored(folder), json.load(open(folder + "/config.json"))["quantization_config"]
    experts = sizes.get("num_experts", E)
    w = {n: torch.stack([own(t, f"{ROOT}experts.{i}.{n}", q) for i in range(experts)]) for n in ("gate_proj", "up_proj", "down_proj")}
    v = {"gate.weight": t[ROOT + "gate.weight"].float(), "experts.gate_up_proj": torch.cat((w["gate_proj"], w["up_proj"]), 1),
         "experts.down_proj": w["down_proj"]}
    far = {n: round(distance(v[n], before[n]), 4) for n in before}
    x = hidden(width=sizes["hidden_size"])
    io(folder, x, expected("qwen3_moe", v, x, block))
    size = sum(os.path.getsize(f"{folder}/{f}") for f in os.listdir(folder))
    print("CASE", name, q["format"], far, size, flush=True)
    note(folder, f"llm-compressor {name}", PACKAGES, FACTS + f"\n\nExpected values from compressed-tensors' own `decompress`, given float32 scales (with bfloat16 ones it rounds its result). Relative distance of the decoded "
         f"weights from those before: {far}.\n\n```json\n{json.dumps(q)}\n```")


if __name__ == "__main__":
    for name, scheme in CASES.items():
        if len(sys.argv) > 2 and sys.argv[2] not in name:
            continue
        try:
            make(sys.argv[1], name, scheme)
        except Exception as error:
            print("FAILED", name, "".join(traceback.format_exception(error)[-2:])[:600], flush=True)
