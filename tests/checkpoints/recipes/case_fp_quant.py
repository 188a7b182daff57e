"""Checkpoints of FP-Quant: `python case_fp_quant.py OUT [PART OF A NAME]`.

pip install fp_quant==0.3.2 transformers==4.57.6 torch accelerate scipy
Made to run without a GPU: Triton's interpreter stands in for one, `FPQuantHfQuantizer.validate_environment` (which asks for one) is passed over, and
kernels get one launch configuration, as choosing among several takes a driver. The interpreter reads bfloat16 wrong, so weights are quantised in
float32 and rounded to bfloat16 then. Only `pseudoquantization=True` runs so: `qweight` and `scales` come from QuTLASS, for Blackwell alone.
transformers 5 stacks the experts in one parameter, which fp_quant leaves as it is (cases `stacked-...`, when run with transformers 5); so version 4."""
import os

os.environ["TRITON_INTERPRET"] = "1"
from common import *
import contextlib, tempfile, traceback
import fp_quant
import fp_quant.module.triton.mxfp4 as mx
import fp_quant.module.triton.nvfp4 as nv
from transformers import AutoModelForCausalLM, FPQuantConfig
from transformers.quantizers.quantizer_fp_quant import FPQuantHfQuantizer

PACKAGES = ["fp_quant", "transformers", "torch", "triton"]
SIZES = dict(hidden_size=64, width=96, num_attention_heads=4, num_key_value_heads=2)
ROOT = "model.layers.0.mlp."
GATE = dict(modules_to_not_convert=["lm_head", "mlp.gate"])
CASES = {
    "mxfp4": dict(forward_dtype="mxfp4"), "mxfp4-quest": dict(forward_dtype="mxfp4", forward_method="quest"),
    "mxfp4-gsr": dict(forward_dtype="mxfp4", transform_init="gsr"), "mxfp4-identity": dict(forward_dtype="mxfp4", transform_init="identity"),
    "nvfp4": dict(forward_dtype="nvfp4"), "nvfp4-group-of-32": dict(forward_dtype="nvfp4", hadamard_group_size=32),
    "nvfp4-float-gate": dict(forward_dtype="nvfp4", **GATE), "mxfp4-float-gate": dict(forward_dtype="mxfp4", **GATE),
    "nvfp4-identity-float-gate": dict(forward_dtype="nvfp4", transform_init="identity", **GATE),
    "nvfp4-master-weights": dict(forward_dtype="nvfp4", store_master_weights=True),
    "real-mxfp4": dict(forward_dtype="mxfp4", pseudoquantization=False), "real-nvfp4": dict(forward_dtype="nvfp4", pseudoquantization=False),
}
FACTS = """`dqweight` BF16 [N,K] is the quantised weight as floats, ROTATED: W turned by `forward_hadamard_matrix` [g,g] in groups of g columns (row vectors: W.reshape(-1, g) @ H),
then rounded. The layer computes Q(x H) dqweight^T; so the weight for an input that is not turned is dqweight.reshape(-1, g) @ H^T (H is orthogonal). With `store_master_weights`
there is `weight` and it is neither turned nor rounded. `backward_hadamard_matrix` is the same matrix, for training; `weight_global_scale` and `act_global_scale` [1] count for `qweight`
only. With `pseudoquantization: false` (Blackwell): `qweight` U8 [N,K/2] and `scales` U8 (bytes of e8m0 [N,K/32], or of E4M3 [N,K/16]) instead of `dqweight`. The router is quantised too unless
`modules_to_not_convert` names it. Expected output: the weight turned back, activations as they are (the tool rounds them too)."""


def passes(self, **_):
    pass


def decode(t, b):
    if b + ".weight" in t:
        return t[b + ".weight"].float()
    w, h = t[b + ".dqweight"].float(), t[b + ".forward_hadamard_matrix"].float()
    return (w.reshape(-1, len(h)) @ h.T).reshape(w.shape)


def stack(t, n):
    """transformers 5 has stacks in memory and single experts in files."""
    parts = ("gate_proj", "up_proj") if "gate_up" in n else ("down_proj",)
    return torch.stack([torch.cat([decode(t, f"{ROOT}experts.{i}.{m}") for m in parts]) for i in range(E)])


def make(root, name, more, src, before, block):
    config = FPQuantConfig(**(dict(pseudoquantization=True) | more))
    model = AutoModelForCausalLM.from_pretrained(src, quantization_config=config, device_map="cpu", dtype=torch.bfloat16)
    folder = fresh(root, "fp_quant." + name)
    model.save_pretrained(folder)
    if os.path.exists(folder + "/generation_config.json"):
        os.remove(folder + "/generation_config.json")
    t = stored(folder)
    v = {n: decode(t, ROOT + n.removesuffix(".weight")) if p.dim() == 2 else stack(t, n) for n, p in before.items()}
    v = {n: v[n].reshape(p.shape) for n, p in before.items()}
    far = {n: round(distance(v[n], before[n]), 4) for n in list(before)[:4]}
    assert max(distance(v[n], before[n]) for n in before) < .25, far
    x = hidden(width=64)
    io(folder, x, expected("", v, x, block))
    print("CASE", name, far, sum(os.path.getsize(os.path.join(r, f)) for r, _, fs in os.walk(folder) for f in fs), flush=True)
    for n, p in sorted(t.items()):
        if "experts.0.down" in n or "mlp.gate" in n or "experts.down" in n:
            print("   ", n, p.dtype, list(p.shape))
    q = json.load(open(folder + "/config.json"))["quantization_config"]
    note(folder, f"FP-Quant {name}", PACKAGES, FACTS + f"\n\nRelative distance from the weights before: {far}.\n\n```json\n{json.dumps(q)}\n```")


if __name__ == "__main__":
    for kernel in (mx.mxfp4_forward_kernel, nv.nvfp4_forward_kernel):
        kernel.configs = kernel.configs[:1]
    src = tempfile.mkdtemp()
    model = tiny(**SIZES)
    model.save_pretrained(src)
    before, block = floats(model), reference("qwen3_moe", **SIZES)
    try:
        AutoModelForCausalLM.from_pretrained(src, quantization_config=FPQuantConfig(pseudoquantization=True), device_map="cpu", dtype=torch.bfloat16)
    except Exception as error:
        print("AS IT IS:", type(error).__name__, error, flush=True)
    FPQuantHfQuantizer.validate_environment = passes
    if not hasattr(torch.cpu, "device"):  # transformers 5.24 enters `torch.<device type>.device(...)`
        torch.cpu.device = lambda _: contextlib.nullcontext()
    plain = fp_quant.FPQuantLinear.pre_forward

    def pre_forward(self):
        self.weight.data = self.weight.data.float()
        plain(self)
        self.to(torch.bfloat16)
    fp_quant.FPQuantLinear.pre_forward = pre_forward
    cases = CASES if version("transformers").startswith("4") else {"stacked-" + n: CASES[n] for n in ("mxfp4", "nvfp4")}
    for name, more in cases.items():
        if len(sys.argv) > 2 and sys.argv[2] not in name:
            continue
        try:
            make(sys.argv[1], name, more, src, before, block)
        except Exception as error:
            print("FAILED", name, "".join(traceback.format_exception(error)[-3:])[-900:], flush=True)
