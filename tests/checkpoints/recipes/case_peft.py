"""LoRA adapters on experts, as PEFT saves them: `python case_peft.py OUT`.

pip install peft==0.21.2 transformers==5.24.0 torch
Each case is a model folder with `adapter/` inside; `io/` is for the merged model, `io-base/` for the model without adapter."""
from common import *
from peft import LoraConfig, get_peft_model

PACKAGES = ["peft", "transformers", "torch"]
STACKED = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CASES = {
    "experts": ("qwen3_moe", dict(target_parameters=STACKED)),
    "experts-rank-pattern": ("qwen3_moe", dict(target_parameters=STACKED, rank_pattern={"experts.down_proj": 2}, alpha_pattern={"experts.down_proj": 5})),
    "experts-rslora": ("qwen3_moe", dict(target_parameters=STACKED, use_rslora=True)),
    "router-and-shared": ("qwen2_moe", dict(target_modules=["shared_expert.gate_proj", "shared_expert.up_proj", "shared_expert.down_proj", "q_proj"])),
    "gpt-oss": ("gpt_oss", dict(target_parameters=STACKED)),
    "mixtral": ("mixtral", dict(target_parameters=STACKED)),
    "down-only": ("qwen3_moe", dict(target_parameters=["mlp.experts.down_proj"])),
    "gate": ("qwen3_moe", dict(target_parameters=["mlp.gate.weight", *STACKED])),
    "dora": ("qwen2_moe", dict(target_modules=["shared_expert.gate_proj", "shared_expert.down_proj"], use_dora=True)),
}

FACTS = """
`adapter/` is what PEFT saved; `io/` belongs to the merged model, `io-base/` to the model alone.
For parameters of stacked experts (`target_parameters`) PEFT stores one pair of matrices for all experts together: `lora_A.weight` [E*r,in] and
`lora_B.weight` [out,E*r]. The names do not say which parameter a pair belongs to. When two parameters of `experts` are adapted, the first in the module's
own order (gate_up_proj) has the inner name, `experts.base_layer.lora_A`, and the other (down_proj) `experts.lora_A`, whatever the order in the config;
when one is adapted it has the outer name.
Row of A for rank j of expert e: e*r + j. Column of B: j*E + e. delta[e] = scale * B_e @ A_e, which is [out,in]; parameters stored [E,in,out] (gpt-oss) get
its transpose. scale is lora_alpha/r, with use_rslora lora_alpha/sqrt(r); rank_pattern and alpha_pattern may change r and lora_alpha for a parameter.
With DoRA (`lora_magnitude_vector` [out], linear layers): weight = magnitude * (W + delta) / norm of each row of (W + delta).
"""


def make(root, name, family, more):
    folder = fresh(root, "peft." + name)
    sizes = dict(hidden_size=64, width=24)
    model = tiny(family, dtype=torch.float32, **sizes)
    model.save_pretrained(folder)
    base = floats(model)
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, **more))
    g = torch.Generator().manual_seed(9)
    for n, p in peft.named_parameters():
        if "lora_" in n:
            p.data = torch.randn(p.shape, generator=g) * (p.shape[-1] ** -.5 if "lora_A" in n else .3)
    peft.save_pretrained(folder + "/adapter")
    merged = floats(peft.merge_and_unload())
    x = hidden(width=64)
    io(folder, x, expected(family, merged, x, **sizes))
    shutil.move(folder + "/io", folder + "/merged")
    io(folder, x, expected(family, base, x, **sizes))
    shutil.move(folder + "/io", folder + "/io-base"), shutil.move(folder + "/merged", folder + "/io")
    a = stored(folder + "/adapter")
    print("CASE", name, sum(os.path.getsize(os.path.join(r, f)) for r, _, fs in os.walk(folder) for f in fs))
    lines = []
    for n, t in a.items():
        print("   ", n, list(t.shape))
        lines.append(f"* `{n}` {list(t.shape)} {t.dtype}")
    measured = []
    experts = E
    prefix = "base_model.model.model.layers.0.mlp.experts."
    for short in ("gate_up_proj", "down_proj"):
        if "experts." + short not in merged:
            continue
        delta = merged["experts." + short] - base["experts." + short]
        if not delta.any():
            continue
        for key in [n[:-len("lora_A.weight")] for n in a if n.startswith(prefix) and n.endswith("lora_A.weight")]:
            A, B = a[key + "lora_A.weight"], a[key + "lora_B.weight"]
            for order in ("e*r+j", "j*E+e"):
                for order_b in ("e*r+j", "j*E+e"):
                    r = A.shape[0] // experts
                    cut = lambda m, o: m.reshape(experts, r, -1) if o == "e*r+j" else m.reshape(r, experts, -1).transpose(0, 1)
                    d = torch.einsum("eri,ero->eoi", cut(A, order), cut(B.T, order_b))
                    for how, d in (("[out,in] as B@A", d), ("(B@A) transposed", d.transpose(1, 2))):
                        if d.shape == delta.shape:
                            f = (d * delta).sum() / (d * d).sum()
                            if distance(d * f, delta) < 1e-3:
                                measured.append(f"`experts.{short}` {list(delta.shape)}: delta = {f:.6g} * {how}; A `{key}lora_A.weight` {list(A.shape)}, row of rank j of "
                                                f"expert e is {order}; B {list(B.shape)}, column is {order_b}.")
    print("\n".join(measured))
    note(folder, f"PEFT adapter: {name}, {family}", PACKAGES, FACTS + "\nMeasured from the merged model:\n\n" + "\n".join("* " + m for m in measured) + "\n\nAdapter:\n\n" + "\n".join(lines))


if __name__ == "__main__":
    for name, (family, more) in CASES.items():
        try:
            make(sys.argv[1], name, family, more)
        except Exception as error:
            print("FAILED", name, repr(error)[:500])
