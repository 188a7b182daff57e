"""Checkpoints of AMD Quark: `PATH=$VENV/bin:$PATH python case_quark.py OUT` (ninja has to be on the path, and a C++ compiler).

pip install amd-quark==0.13 transformers==4.57.6 torch
transformers 5 stacks the experts in one parameter, which Quark leaves as it is; so version 4."""
from common import *
import traceback
import quark.torch.quantization.config.config as C
from quark.torch import ModelQuantizer, export_safetensors

PACKAGES = ["amd-quark", "transformers", "torch"]
SIZES = dict(hidden_size=64, width=96, num_attention_heads=4, num_key_value_heads=2)
ROOT = "model.layers.0.mlp."
GROUP = dict(ch_axis=-1, is_dynamic=False)
CASES = {
    "mxfp4": lambda: C.OCP_MXFP4Spec(**GROUP), "mxfp6-e3m2": lambda: C.OCP_MXFP6E3M2Spec(**GROUP), "mxfp6-e2m3": lambda: C.OCP_MXFP6E2M3Spec(**GROUP),
    "mxfp8-e4m3": lambda: C.OCP_MXFP8E4M3Spec(**GROUP), "mxfp8-e5m2": lambda: C.OCP_MXFP8E5M2Spec(**GROUP), "mxint8": lambda: C.OCP_MXINT8Spec(**GROUP),
    "fp8-tensor": lambda: C.FP8E4M3PerTensorSpec(observer_method="min_max", is_dynamic=False),
    "fp8-channel": lambda: C.FP8E4M3PerChannelSpec(is_dynamic=False, ch_axis=0),
    "fp8-group": lambda: C.FP8E4M3PerGroupSpec(ch_axis=-1, group_size=32, is_dynamic=False, scale_format="float32"),
    "int8-channel": lambda: C.Int8PerChannelSpec(symmetric=True, scale_type="float", round_method="half_even", ch_axis=0, is_dynamic=False),
    "int8-tensor": lambda: C.Int8PerTensorSpec(observer_method="min_max", symmetric=True, scale_type="float", round_method="half_even", is_dynamic=False),
    "int4-group": lambda: C.Int4PerGroupSpec(symmetric=True, scale_type="float", round_method="half_even", ch_axis=1, is_dynamic=False, group_size=32),
    "uint4-group": lambda: C.Uint4PerGroupSpec(symmetric=False, scale_type="float", round_method="half_even", ch_axis=1, is_dynamic=False, group_size=32),
    "int4-channel": lambda: C.Int4PerChannelSpec(symmetric=True, scale_type="float", round_method="half_even", ch_axis=0, is_dynamic=False),
    "uint4-group-order": lambda: C.Uint4PerGroupSpec(symmetric=False, scale_type="float", round_method="half_even", ch_axis=1, is_dynamic=False, group_size=32),
}


REORDER = [0, 4, 1, 5, 2, 6, 3, 7]
MINIFLOAT = {"fp6_e3m2": (3, 2, 3), "fp6_e2m3": (2, 3, 1)}


def words(w, order, signed):
    """Codes of four bits along the last axis of 32-bit words."""
    u = (w.long() & 0xFFFFFFFF)[..., None] >> (4 * torch.arange(8)) & 15
    u = (u if order else u[..., REORDER]).flatten(-2)
    return torch.where(u > 7, u - 16, u) if signed else u


def minifloat(codes, exponent, mantissa, bias):
    sign = 1 - 2 * (codes >> (exponent + mantissa)).float()
    e, m = (codes >> mantissa) & (2 ** exponent - 1), (codes & (2 ** mantissa - 1)).float()
    return sign * torch.where(e == 0, m * 2.0 ** (1 - bias - mantissa), (1 + m / 2 ** mantissa) * torch.exp2(e.float() - bias))


def decode(t, b, q):
    """One linear layer as floats."""
    spec, w, s = q["global_quant_config"]["weight"], t[b + ".weight"], t[b + ".weight_scale"]
    dtype, z = spec["dtype"], t.get(b + ".weight_zero_point")
    if w.dtype == torch.uint8 or dtype.startswith("fp6"):
        if dtype == "fp4":
            v = E2M1[nibbles(w).long()]
        else:  # four codes in three bytes, the lowest bits first
            x = w.long().reshape(w.shape[0], -1, 3)
            x = x[..., 0] | x[..., 1] << 8 | x[..., 2] << 16
            v = minifloat((x[..., None] >> (6 * torch.arange(4)) & 63).flatten(1), *MINIFLOAT[dtype])
        return v * torch.exp2(s.float() - 127).repeat_interleave(v.shape[1] // s.shape[1], 1)
    if w.dtype == torch.int32:
        order, signed = q["export"]["pack_method"] == "order", dtype == "int4"
        w, z = words(w, order, signed), words(z, order, signed)
        if s.dim() == 2:  # [K,N/8], scales [K/g,N]: the transposed matrix
            g = w.shape[0] // s.shape[0]
            return ((w - z.repeat_interleave(g, 0)) * s.float().repeat_interleave(g, 0)).T
        return (w - z[:, None]) * s.float()[:, None]
    w = w.float() - (0 if z is None else z.float() if z.dim() == 0 else z.float()[:, None])
    return w * (s.float() if s.dim() == 0 else s.float()[:, None])


FACTS = """mxfp4: U8 [N,K/2], low half first, `weight_scale` U8 [N,K/32], value = E2M1 * 2^(scale-127). mxfp6: four codes in three bytes, lowest bits first (code 0 is the low
six bits of byte 0), U8 [N,3K/4], the same scales; E3M2 has bias 3, E2M3 bias 1, no infinities. FP8: value = E4M3 * weight_scale ([] or [N], the type of the model or f32).
int8: value = (weight - weight_zero_point) * weight_scale. 4 bits in groups: `weight` I32 [K,N/8] is the TRANSPOSED matrix, packed along outputs, scales [K/g,N], zero points
I32 [K/g,N/8]; 4 bits a row: `weight` I32 [N,K/8], not transposed, packed along inputs, scales [N], zero points I32 [N/8]. `export.pack_method` "reorder" (the usual one): nibble i of a word
holds code [0,2,4,6,1,3,5,7][i] (as AWQ); "order": code i. int4 is two's complement (not offset), uint4 has zero points as they are; both: value = (code - zero) * scale.
mxfp8, FP8 in groups and mxint8 cannot be exported by 0.13."""


def make(root, name, spec, block):
    model = tiny(**SIZES)
    before = floats(model)
    config = C.QConfig(global_quant_config=C.QLayerConfig(weight=spec().to_quantization_spec()), exclude=["lm_head", "*mlp.gate", "*self_attn*"])
    quantizer = ModelQuantizer(config)
    model = quantizer.quantize_model(model, [torch.arange(16)[None]])
    model = quantizer.freeze(model)
    # The tool's own values: what its frozen layers multiply with.
    v = {n: p.float() for n, p in before.items()}
    parts = dict(moe_of(model).named_modules())
    for n in v:
        m = parts[n.removesuffix(".weight")]
        if "experts" in n:
            w = m.get_quant_weight(m.weight) if hasattr(m, "get_quant_weight") else m._weight_quantizer(m.weight)
            v[n] = w.detach().float()
    folder = fresh(root, "quark." + name)
    with torch.no_grad():
        export_safetensors(model, folder, custom_mode="quark", weight_format="real_quantized", pack_method="order" if name.endswith("-order") else "reorder")
    q, t = json.load(open(folder + "/config.json"))["quantization_config"], stored(folder)
    for n in v:
        if "experts" in n:
            own, v[n] = v[n], decode(t, ROOT + n.removesuffix(".weight"), q)
            # The tool's own values are rounded to bfloat16.
            assert distance(v[n], own) < 4e-3, (n, distance(v[n], own))
    x = hidden(width=64)
    io(folder, x, expected("", v, x, block))
    far = {n: round(distance(v[n], before[n]), 4) for n in list(before)[:4]}
    print("CASE", name, far, sum(os.path.getsize(os.path.join(r, f)) for r, _, fs in os.walk(folder) for f in fs), flush=True)
    for n, t in sorted(stored(folder).items()):
        if "experts.0.down" in n:
            print("   ", n, t.dtype, list(t.shape))
    shown = {k: q[k] for k in ("global_quant_config", "exclude", "export", "quant_method") if k in q}
    note(folder, f"Quark {name}", PACKAGES, FACTS + f"\n\nRelative distance from the weights before: {far}.\n\n```json\n{json.dumps(shown)}\n```")


if __name__ == "__main__":
    block = reference("qwen3_moe", **SIZES)
    for name, spec in CASES.items():
        if len(sys.argv) > 2 and sys.argv[2] not in name:
            continue
        try:
            make(sys.argv[1], name, spec, block)
        except Exception as error:
            print("FAILED", name, "".join(traceback.format_exception(error)[-2:])[:500], flush=True)
