"""Checkpoints of Intel neural-compressor: `python case_inc.py OUT [START OF A NAME]`.

pip install neural-compressor-pt==3.10 auto-round==0.16.1 transformers==4.57.6 torch accelerate
transformers 5 stacks the experts in one parameter, which neural-compressor leaves as it is (cases `stacked-...`, when run with transformers 5); so version 4."""
from common import *
import tempfile, traceback
import neural_compressor.torch.quantization as Q

PACKAGES = ["neural-compressor-pt", "transformers", "torch"]
SIZES = dict(hidden_size=64, width=96, num_attention_heads=4, num_key_value_heads=2)
BASE = "model.layers.0."
ROOT = BASE + "mlp."
NORM = {BASE + "post_attention_layernorm": [ROOT + "gate", *(f"{ROOT}experts.{i}.{m}_proj" for i in range(E) for m in ("gate", "up"))]}
woq = lambda config, **more: lambda: getattr(Q, config + "Config")(**(dict(bits=4, group_size=32) | ({} if config in ("AWQ", "TEQ") else dict(use_layer_wise=False)) | more))
SAVED = {"fp8-qdq-compressed": "vllm"}
CASES = {
    "rtn4": woq("RTN"), "rtn4-asym": woq("RTN", use_sym=False), "rtn4-asym-zero-points-of-0": woq("RTN", use_sym=False),
    "rtn8": woq("RTN", bits=8), "rtn8-asym": woq("RTN", bits=8, use_sym=False), "rtn2": woq("RTN", bits=2), "rtn2-asym-zero-points-of-0": woq("RTN", bits=2, use_sym=False),
    "rtn8-asym-zero-points-of-0": woq("RTN", bits=8, use_sym=False),
    "rtn3": woq("RTN", bits=3), "rtn5": woq("RTN", bits=5), "rtn6": woq("RTN", bits=6), "rtn7": woq("RTN", bits=7),
    "rtn4-whole-rows": woq("RTN", group_size=-1), "rtn4-group-of-64": woq("RTN", group_size=64), "rtn4-outputs": woq("RTN", group_dim=0), "rtn4-full-range": woq("RTN", use_full_range=True), "rtn4-full-range-float-gate": woq("RTN", use_full_range=True),
    "rtn4-double-quant": woq("RTN", use_double_quant=True), "rtn4-float-gate": woq("RTN"), "rtn4-mse": woq("RTN", use_mse_search=True),
    "rtn-nf4": woq("RTN", dtype="nf4"), "rtn-fp4": woq("RTN", dtype="fp4"), "rtn-fp4-e2m1": woq("RTN", dtype="fp4_e2m1"), "rtn-int8": woq("RTN", dtype="int8"), "rtn-fp8": woq("RTN", dtype="fp8_e4m3fn"),
    "gptq4": woq("GPTQ"), "gptq4-whole-rows": woq("GPTQ", group_size=-1), "gptq4-asym": woq("GPTQ", use_sym=False), "gptq4-desc": woq("GPTQ", act_order=True), "gptq4-desc-static": woq("GPTQ", act_order=True, static_groups=True),
    "gptq8": woq("GPTQ", bits=8), "gptq3": woq("GPTQ", bits=3), "gptq-nf4": woq("GPTQ", dtype="nf4"),
    "awq4": woq("AWQ"), "awq4-asym": woq("AWQ", use_sym=False), "awq4-folded": woq("AWQ", folding=True, absorb_layer_dict=NORM),
    "teq4": woq("TEQ", absorb_to_layer=NORM, folding=False), "teq4-folded": woq("TEQ", absorb_to_layer=NORM),
    "hqq4": lambda: Q.HQQConfig(bits=4, group_size=64), "mx-fp4": lambda: Q.MXQuantConfig(w_dtype="fp4", weight_only=True),
    "fp8-qdq": lambda: Q.FP8Config(use_qdq=True, dump_stats_path=tempfile.mkdtemp() + "/m", scale_method="maxabs_pow2"),
    "fp8-qdq-compressed": lambda: Q.FP8Config(use_qdq=True, dump_stats_path=tempfile.mkdtemp() + "/m", scale_method="maxabs_pow2", allowlist=dict(names=[], types=["Linear"])),
    "qat-mxfp8": "MXFP8", "qat-mxfp4": "MXFP4",
    "autoround4": lambda: Q.AutoRoundConfig(bits=4, group_size=32, iters=2, nsamples=4, seqlen=16, export_format="auto_round", output_dir=tempfile.mkdtemp(), reloading=False, device_map="cpu"),
}
FACTS = """RTN, GPTQ, AWQ and TEQ, `save(..., format="huggingface")`: `config.json` always says `quant_method: gptq` (and `quantize_config.json` the same), whatever the codes are; the same settings for all modules; no list of
modules that stay floats. Integers: `qweight` I32 [ceil(K/n),N] with n = 32 // bits codes in a word, lowest bits first; codes do NOT cross words, so 3, 5, 6 and 7 bits have other shapes than GPTQ's. `qzeros` I32 [G,ceil(N/n)] less one
within `bits` bits (a zero point of 0 is stored as all ones and means 0, not 2^bits), `scales` F16 [G,N], `bias` F16 [N], zeros where the layer has none, `scale_bf16_to_fp8` BF16 [1] (0; for W4A8 only), `g_idx` I32 [K] only with act_order.
value = (code - zero) * scale; with use_full_range scales may be negative. The config keeps `bits` of the settings even where `dtype: int8` means 8 and NF4 means no integers; with
`dtype: fp8_...` weights are rounded floats under `weight`, without scales. 8 bits without symmetry: the tool's own `recover()` overflows I8, its codes are right. NF4 and FP4: `qweight` I32 [N,ceil(K/8)], `scales` F32 [N,G], no `qzeros`; a code is four bits of two's complement, a name of a value in the tool's own table (`FLOAT_MAPPING`, `INT_MAPPING` in `weight_only/utility.py`).
AWQ, TEQ without folding: `MODULE.linear.qweight` ... and `MODULE.input_scale` F32 [K], which is multiplied into the input: the weight is dequantised * input_scale (columns). TEQ without folding puts
`input_scale` and `linear.weight` under the norm before it, which is outside the layer. FP8 (`FP8Config`, QDQ only on a CPU), "huggingface": `weight` F8 [K,N], TRANSPOSED, * `dequant_weights.scale` []; `quantization_config` without
`quant_method`. "vllm": as compressed-tensors says, but the scales keep the names above, and of `...proj.weight` alone the matrix is turned back: the router is [K,N]. vLLM cannot load that. MXFP8 and MXFP4 (`prepare_qat`, `export_hf2compressored_model`; not
from the package's front): compressed-tensors with `format: float-quantized` and `is_mx: true` in `weights`; the router's codes are there though nothing excepts it."""


def words(w, bits, count, signed=False):
    """Codes along the last axis; 32 // bits of them in a word."""
    u = ((w.long() & 0xFFFFFFFF)[..., None] >> (bits * torch.arange(32 // bits)) & (2 ** bits - 1)).flatten(-2)[..., :count]
    return torch.where(u >= 2 ** (bits - 1), u - 2 ** bits, u) if signed else u


def decode(t, b, q):
    """A matrix as floats."""
    if b + ".weight" in t:
        w = t[b + ".weight"].float()
        if b + ".weight_scale" in t and t[b + ".weight_scale"].dtype == torch.uint8:
            s = t[b + ".weight_scale"]
            return w * torch.exp2(s.float() - 127).repeat_interleave(w.shape[1] // s.shape[1], 1)
        s = t.get(b + ".weight_scale", t.get(b + ".scale_weight", t.get(b + ".dequant_weights.scale")))
        return w if s is None else w * s.float()
    if b + ".weight_packed" in t:
        w, s = E2M1[nibbles(t[b + ".weight_packed"]).long()], t[b + ".weight_scale"]
        return w * torch.exp2(s.float() - 127).repeat_interleave(w.shape[1] // s.shape[1], 1)
    inner = b + (".linear" if b + ".linear.qweight" in t else "")
    w, s, z = t[inner + ".qweight"], t[inner + ".scales"].float(), t.get(inner + ".qzeros")
    assert not t[inner + ".bias"].any() if inner + ".bias" in t else True
    dtype = q["dtype of the recipe"] or "int"
    bits = int(dtype[3:] or q["bits"]) if dtype.startswith("int") else 4  # the config keeps 4 for `int8`
    if z is None:
        from neural_compressor.torch.algorithms.weight_only.utility import FLOAT_MAPPING, INT_MAPPING
        table = dict(zip(INT_MAPPING[dtype], FLOAT_MAPPING[dtype]))
        k = w.shape[1] * 8
        v = torch.tensor([table.get(c, 0.) for c in range(-8, 8)])[words(w, 4, k, True) + 8]
        return v * s.repeat_interleave(-(-k // s.shape[1]), 1)[:, :k]
    n, k = w.shape[1], t.get(inner + ".input_scale", torch.empty(0))
    k = q["columns of the recipe"]
    c, z = words(w.T, bits, k), words(z, bits, n).T
    z = (z + 1) & (2 ** bits - 1)
    group = t[inner + ".g_idx"].long() if inner + ".g_idx" in t else torch.arange(k) // (k if q["group_size"] == -1 else q["group_size"])
    v = (c - z[:, group]) * s.T[:, group]
    return v * t[b + ".input_scale"].float() if b + ".input_scale" in t else v


def stack(t, n, q):
    """transformers 5 has stacks in memory and single experts in files."""
    parts = ("gate_proj", "up_proj") if "gate_up" in n else ("down_proj",)
    return torch.stack([torch.cat([decode(t, f"{ROOT}experts.{i}.{m}", q) for m in parts]) for i in range(E)])


def own(module):
    """The weight as the tool multiplies with it."""
    if hasattr(module, "linear"):
        return own(module.linear) * module.input_scale
    if hasattr(module, "recover"):
        return module.recover().float()
    if hasattr(module, "dequant_weights"):
        return module.dequant_weights(module.weight).T.float()
    if hasattr(module, "weight_quantizer") and not module.weight_quantizer._disabled:
        return module.weight_quantizer._fake_quantize(module.weight)[0].float()
    return module.weight.float()


def source(name):
    """The model from a folder, as GPTQ looks for one. Zero points, NF4 and FP4 are packed by numpy, which has no bfloat16."""
    model = tiny(dtype=torch.float32 if any(w in name for w in ("asym", "desc", "nf4", "fp4")) and "mx" not in name else torch.bfloat16, **SIZES)
    if not name.startswith("gptq"):
        return model
    from transformers import AutoModelForCausalLM
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make(root, name, config, block):
    model = source(name)
    if "zero-points-of-0" in name:  # groups without a negative value
        for n, p in moe_of(model).named_parameters():
            p.data[: len(p) // 2] = p.data[: len(p) // 2].abs()
    before = floats(model)
    tokens = [torch.randint(0, 32, (1, 16), generator=torch.Generator().manual_seed(i)) for i in range(16)]
    folder = fresh(root, "inc." + name)
    if isinstance(config, str):
        from neural_compressor.torch.export.export_hf import export_hf2compressored_model
        from neural_compressor.torch.quantization.quantize import prepare_qat
        model.train()
        prepare_qat(model, {torch.nn.Linear: config})
        model.eval()
    else:
        config = config()
        if name.endswith("float-gate"):
            config.set_local(".*mlp.gate", type(config)(dtype="fp32"))
        more = dict(example_inputs=tokens[0]) if name.startswith(("awq", "teq")) else {}
        model = Q.prepare(model, config, **more)
        if not name.startswith(("rtn", "mx", "teq", "stacked")):
            for x in tokens:
                model(x)
        model = Q.convert(model)
    v = {}
    if name.startswith("autoround"):  # saved by auto-round itself, while converting
        inner, = os.listdir(config.output_dir)
        shutil.copytree(f"{config.output_dir}/{inner}", folder, dirs_exist_ok=True)
    if name in ("hqq4", "mx-fp4"):  # no other format than the tool's own, a pickle; there is nothing to compare
        Q.save(model, folder, format="default")
        print("    saved as", os.listdir(folder))
        return Q.save(model, folder, format="huggingface")
    parts = dict(moe_of(model).named_modules())
    with torch.no_grad():
        tools = {} if name.startswith("autoround") else {n: own(parts[n.removesuffix(".weight")]).detach().float() if p.dim() == 2 else parts["experts"].get_parameter(n.split(".")[1]).detach().float() for n, p in before.items()}
    if isinstance(config, str):
        export_hf2compressored_model(model, folder, config)
    elif not name.startswith("autoround"):
        Q.save(model, folder, format=SAVED.get(name, "huggingface"))
    for f in os.listdir(folder):
        if f == "generation_config.json":
            os.remove(f"{folder}/{f}")
    t, q = stored(folder), json.load(open(folder + "/config.json")).get("quantization_config", {})
    x = hidden(width=64)
    dtype = getattr(config, "dtype", None)
    for n, p in before.items():
        b = ROOT + n.removesuffix(".weight")
        q_ = q | {"dtype of the recipe": dtype, "columns of the recipe": p.shape[-1]}
        v[n] = decode(t, b, q_) if p.dim() == 2 else stack(t, n, q_)
        if v[n].shape != p.shape:
            v[n] = v[n].T
    for n in tools:  # the tool's own values are rounded to float16 or bfloat16
        if distance(v[n], tools[n]) > 6e-3:
            print("    NOT THE TOOL'S", n, distance(v[n], tools[n]))
    far = {n: round(distance(v[n], before[n]), 4) for n in list(before)[:4]}
    x = hidden(width=64)
    io(folder, x, expected("", v, x, block))
    print("CASE", name, far, sum(os.path.getsize(os.path.join(r, f)) for r, _, fs in os.walk(folder) for f in fs), sorted(os.listdir(folder)), flush=True)
    for n, p in sorted(t.items()):
        if "experts.0.down" in n or "mlp.gate" in n:
            print("   ", n, p.dtype, list(p.shape))
    print("   ", json.dumps(q)[:700])
    note(folder, f"Intel neural-compressor {name}", PACKAGES, FACTS + f"\n\nRelative distance from the weights before: {far}.\n\n```json\n{json.dumps(q)}\n```")


if __name__ == "__main__":
    block = reference("qwen3_moe", **SIZES)
    cases = CASES if version("transformers").startswith("4") else {"stacked-rtn4": CASES["rtn4"]}
    for name, config in cases.items():
        if len(sys.argv) > 2 and not (name.startswith(sys.argv[2]) or sys.argv[2] == name):
            continue
        try:
            make(sys.argv[1], name, config, block)
        except Exception as error:
            print("FAILED", name, "".join(traceback.format_exception(error)[-3:])[-900:], flush=True)
