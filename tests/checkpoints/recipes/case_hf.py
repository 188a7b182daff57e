"""Checkpoints that transformers saves with bitsandbytes, HQQ and torchao: `python case_hf.py OUT`.

pip install transformers==4.57.6 torchao==0.18.0 bitsandbytes==0.50.2 hqq==0.2.8.post1 torch accelerate
transformers 5 stacks the experts in one parameter, which these tools leave as it is; so version 4, as published files have it."""
from common import *
import tempfile, traceback
from transformers import AutoModelForCausalLM

SIZES = dict(hidden_size=64, width=128, num_attention_heads=4, num_key_value_heads=2)
ROOT = "model.layers.0.mlp."


def configs():
    import torchao.quantization as q
    from transformers import BitsAndBytesConfig, HqqConfig, TorchAoConfig
    for kind in ("nf4", "fp4"):
        for double in (False, True):
            yield "bitsandbytes", kind + "-double" * double, BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double)
    yield "bitsandbytes", "int8", BitsAndBytesConfig(load_in_8bit=True)
    yield "torchao", "fp8-rows", TorchAoConfig(q.Float8WeightOnlyConfig())
    for bits in (8, 4, 3, 2):
        yield "hqq", f"{bits}-bits", HqqConfig(nbits=bits, group_size=64)
    yield "hqq", "4-bits-axis0", HqqConfig(nbits=4, group_size=64, axis=0)


def own(module):
    """The weight as the tool itself makes it a float."""
    if hasattr(module, "dequantize"):
        return module.dequantize()
    w = module.weight
    if hasattr(w, "quant_state") and w.quant_state is not None:
        import bitsandbytes.functional as f
        return f.dequantize_4bit(w.data, w.quant_state)
    if hasattr(w, "SCB") and w.SCB is not None:
        return w.CB.float() * w.SCB[:, None] / 127
    return w.dequantize() if hasattr(w, "dequantize") and w.dtype != torch.float32 or "Float8" in type(w).__name__ else w.data


FACTS = {
    "bitsandbytes": """4 bits: `weight` is U8 [N*K/2,1] of the flattened matrix (rows first), the HIGH half of a byte first. `weight.quant_map` [16] holds
the values of the codes, `weight.absmax` one factor for each block of `blocksize` (64) values of the flattened matrix; `weight.quant_state.bitsandbytes__nf4`
(or `__fp4`) is JSON in bytes: `blocksize`, `shape`, `dtype`, and with double quantisation `nested_blocksize`, `nested_offset`. Value = quant_map[code] *
absmax. With double quantisation absmax is U8: absmax[i] = nested_quant_map[absmax_u8[i]] * nested_absmax[i / nested_blocksize] + nested_offset.
8 bits: I8 `weight` [N,K], `SCB` f32 [N]: value = weight * SCB / 127 (not 128); `weight_format` 0 is row by row.
The router (`mlp.gate`) is quantised too unless the config's list says otherwise.""",
    "hqq": """`W_q` holds codes, `scale` and `zero` one number for each group of `group_size` values of the flattened matrix (axis 1: groups are rows of
[N*K/g, g]; axis 0: groups are columns of [g, N*K/g]). Value = (code - zero) * scale; `zero` is a float. Packing of 4 bits (`4bit_u8`): row i of the
group matrix is the HIGH half of packed row i, row i + half is its LOW half: halves of the matrix share bytes, not neighbours. 2 bits: quarters, the first in
the highest bits. 3 bits (`3bit_32`): ten codes in an I32, tenths of the (padded) rows, the first in the highest of 30 bits. Names of packing, dtypes and such
are bytes of text. The router is quantised too.""",
    "torchao": "`_weight_qdata` E4M3 [N,K] * `_weight_scale` [N,1]: no tensor is called `weight`. The safetensors' `__metadata__` holds JSON for each weight.",
}

if __name__ == "__main__":
    src = tempfile.mkdtemp()
    model = tiny("qwen3_moe", dtype=torch.float32, **SIZES)
    model.save_pretrained(src)
    before, block = floats(model), reference("qwen3_moe", **SIZES)
    for tool, name, config in configs():
        if len(sys.argv) > 2 and sys.argv[2] not in f"{tool}.{name}":
            continue
        try:
            model = AutoModelForCausalLM.from_pretrained(src, quantization_config=config, device_map="cpu", dtype=torch.float32)
            folder = fresh(sys.argv[1], f"{tool}.{name}")
            model.save_pretrained(folder)
            parts = dict(moe_of(model).named_modules())
            v = {n: own(parts[n.removesuffix(".weight")]).float().reshape(before[n].shape) for n in before}
            x = hidden(width=64)
            io(folder, x, expected("", v, x, block))
            far = {n: round(distance(v[n], before[n]), 4) for n in list(before)[:4]}
            print("CASE", tool, name, far, sum(os.path.getsize(os.path.join(r, f)) for r, _, fs in os.walk(folder) for f in fs), flush=True)
            q = json.load(open(folder + "/config.json"))["quantization_config"]
            note(folder, f"{tool} {name}", [tool, "transformers", "torch"], f"{FACTS[tool]}\n\nRelative distance from the weights before: {far}.\n\n```json\n{json.dumps(q)}\n```")
        except Exception as error:
            print("FAILED", tool, name, "".join(traceback.format_exception(error)[-2:])[:500], flush=True)
