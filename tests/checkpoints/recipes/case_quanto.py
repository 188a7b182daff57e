"""Checkpoints of optimum-quanto: `PATH=$VENV/bin:$PATH python case_quanto.py OUT [PART OF A NAME]`.

Ninja has to be on the path: 2 and 4 bits compile a C++ extension with ninja on first use.
pip install optimum-quanto==0.2.7 transformers==4.57.6 torch accelerate ninja
transformers 5 stacks the experts in one parameter, which quanto leaves as it is (cases `stacked-...`, when run with transformers 5); so version 4."""
from common import *
import tempfile, traceback
from optimum.quanto import HqqOptimizer, QuantizedModelForCausalLM, qfloat8_e4m3fn, qfloat8_e5m2, qint2, qint4, qint8

PACKAGES = ["optimum-quanto", "transformers", "torch"]
ROOT = "model.layers.0.mlp."
FLOAT_GATE = dict(exclude=["lm_head", "*mlp.gate"])
CASES = {  # quanto's own arguments, then the expert width: 2 and 4 bits have groups where a row is longer than 128
    "int8": (dict(weights=qint8), 96), "fp8": (dict(weights=qfloat8_e4m3fn), 96), "fp8-e5m2": (dict(weights=qfloat8_e5m2), 96),
    "int4": (dict(weights=qint4), 96), "int2": (dict(weights=qint2), 96), "int4-float-gate": (dict(weights=qint4, **FLOAT_GATE), 96),
    "int8-float-gate": (dict(weights=qint8, **FLOAT_GATE), 96),
    "int4-groups-of-96": (dict(weights=qint4), 192), "int4-groups-of-128": (dict(weights=qint4), 256), "int2-groups-of-32": (dict(weights=qint2), 160),
    "int4-hqq": (dict(weights=qint4, optimizer=HqqOptimizer()), 192), "int8-activations": (dict(weights=qint8, activations=qint8), 96),
    "int8-down-only": (dict(weights=qint8, include="*down_proj"), 96),
}
FACTS = """`config.json` says nothing of weights: `quanto_qmap.json` beside it maps each module to `{"weights": "qint8", "activations": "none"}`.
8 bits: `N._data` I8 or F8 [N,K], `N._scale` [N,1] in the model's type; value = data * scale. 4 and 2 bits: the matrix is cut into groups, rows first: [R,g], where g is
the whole row if K <= 128, else the first of 128, 96, 64, 32 that divides K, else the whole row (no key tells: g = N*K / number of scales). `N._data._data` U8 [ceil(R*bits/8),g]:
row i of the group matrix is the LOW bits of packed row i, the next part of the rows (i + R*bits/8) the next higher bits: halves or quarters share bytes, not neighbours.
`N._scale` [R,1], `N._shift` [R,1], both in the model's type; value = code * scale - shift, where shift is a float (it is -min(row)) and code is 0..2^bits-1 without a sign. (An `_shift` of an integer type would mean
value = (code - shift) * scale; `quantize` of 0.2.7 never writes one, with HqqOptimizer neither.) `input_scale` and `output_scale` [] are of activations (1 where they stay floats)."""


def decode(t, b):
    """A matrix as floats, and its number of values in a group."""
    if b + ".weight" in t:
        return t[b + ".weight"].float()
    w, s = t.get(b + ".weight._data"), t[b + ".weight._scale"].float()
    if w is not None:
        return w.float() * s
    w, z = t[b + ".weight._data._data"], t[b + ".weight._shift"]
    count = round(len(s) / len(w))  # codes in a byte
    bits = 8 // count
    assert bits in (2, 4) and bits * count == 8, (w.shape, s.shape)
    codes = torch.cat([w >> (bits * i) & (2 ** bits - 1) for i in range(count)])[:len(s)].float()
    return codes * s - z.float() if z.dtype.is_floating_point else (codes - z.float()) * s


def stack(t, n):
    """transformers 5 has stacks in memory and single experts in files."""
    parts = ("gate_proj", "up_proj") if "gate_up" in n else ("down_proj",)
    return torch.stack([torch.cat([decode(t, f"{ROOT}experts.{i}.{m}") for m in parts]) for i in range(E)])


def make(root, name, more, width):
    sizes = dict(hidden_size=64, width=width, num_attention_heads=4, num_key_value_heads=2)
    block = reference("qwen3_moe", **sizes)
    model = tiny(**sizes)
    before = floats(model)
    folder = fresh(root, "quanto." + name)
    quantised = QuantizedModelForCausalLM.quantize(model, **({"exclude": "lm_head"} | more if "include" not in more else more))
    quantised.save_pretrained(folder)
    for f in os.listdir(folder):
        if f.endswith(".md") or f == "generation_config.json":
            os.remove(f"{folder}/{f}")
    t = stored(folder)
    own = {}
    for n, p in moe_of(quantised._wrapped).named_parameters():
        own[n] = (p.dequantize() if hasattr(p, "dequantize") and "Q" in type(p.data if type(p) is torch.nn.Parameter else p).__name__ else p).detach().float()
    v = {n: decode(t, ROOT + n.removesuffix(".weight")) if p.dim() == 2 else stack(t, n) for n, p in before.items()}
    v = {n: v[n].reshape(p.shape) for n, p in before.items()}
    for n in v:  # quanto's own values are rounded to the model's type
        assert distance(v[n], own[n]) < 8e-3, (n, distance(v[n], own[n]))
    again = QuantizedModelForCausalLM.from_pretrained(folder)  # the tool reads its own file: the same values again
    for n, p in moe_of(again._wrapped).named_parameters():
        again_ = (p.dequantize() if hasattr(p, "dequantize") and "Q" in type(p).__name__ else p).detach().float()
        if distance(again_, v[n]) > 8e-3:
            print("    REREAD DIFFERS", n, distance(again_, v[n]))
    x = hidden(width=64)
    io(folder, x, expected("", v, x, block))
    far = {n: round(distance(v[n], before[n]), 4) for n in list(before)[:4]}
    print("CASE", name, far, sum(os.path.getsize(os.path.join(r, f)) for r, _, fs in os.walk(folder) for f in fs), flush=True)
    for n, p in sorted(t.items()):
        if "experts.0.down" in n or "mlp.gate" in n or "experts.down" in n:
            print("   ", n, p.dtype, list(p.shape))
    qmap = json.load(open(folder + "/quanto_qmap.json"))
    note(folder, f"optimum-quanto {name}", PACKAGES, FACTS + f"\n\nRelative distance from the weights before: {far}. `quanto_qmap.json` has {len(qmap)} modules, so:\n\n```json\n"
         + json.dumps(dict(list(qmap.items())[-3:])) + "\n```")


if __name__ == "__main__":
    cases = CASES if version("transformers").startswith("4") else {"stacked-int8": (dict(weights=qint8), 96), "stacked-int8-float-gate": (dict(weights=qint8, **FLOAT_GATE), 96)}
    for name, (more, width) in cases.items():
        if len(sys.argv) > 2 and sys.argv[2] not in name:
            continue
        try:
            make(sys.argv[1], name, more, width)
        except Exception as error:
            print("FAILED", name, "".join(traceback.format_exception(error)[-3:])[-900:], flush=True)
