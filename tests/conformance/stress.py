#!/usr/bin/env python3
"""Make many small checkpoints of every family, of random sizes and with random settings, to compare moec with.

usage: stress.py OUT [--families a,b] [--rounds N] [--seed S] [--dtype float32|bfloat16|float16|mixed]

Each case is a folder OUT/<family>.<round> as golden.py makes it. What is varied: hidden size, expert width, number of
experts (odd ones too), experts per token (up to all), shared width, tokens, activation, renormalisation, scales, groups,
clamps, biases, scoring functions, which of three layers have experts, wherever the family's config class has such a key;
names and layouts of tensors (as published, or as transformers has them in memory); one file or two. Half of the cases
leave out keys of the config whose value is the default of the config class, as published configs do; a quarter has keys under the
other names that the class takes. Cases that the model's own code refuses
are listed and left out; so are cases in two bytes whose choice of experts depends on the order of additions.
"""
import argparse, glob, json, os, random, re, shutil, sys, warnings

warnings.filterwarnings("ignore")
import golden
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

ACTS = ["silu"] * 6 + ["gelu", "gelu_pytorch_tanh", "relu", "gelu_fast", "gelu_10", "hardswish", "laplace", "leaky_relu",
                       "linear", "mish", "quick_gelu", "relu2", "relu6", "sigmoid", "sqrtsoftplus", "tanh"]
# key -> values to choose from; a key that the class does not have is ignored
VARY = {
    "hidden_act": ACTS,
    "activation_function": ACTS,
    "mlp_hidden_act": ["relu2", "relu2"] + ACTS,
    "norm_topk_prob": [True, False],
    "routed_scaling_factor": [1.0, 2.5, 0.75],
    "router_scaling_factor": [1.0, 2.826],
    "moe_router_scaling_factor": [1.0, 3.0],
    "moe_routed_scaling_factor": [1.0, 2.5],
    "moe_router_logit_softcapping": [0.0, 2.0],
    "route_scale": [1.0, 2.5],
    "n_shared_experts": [1, 2, 3],
    "num_shared_experts": [1, 2],
    "moe_num_shared_experts": [1, 3],
    "swiglu_limit": [0.7, 1.5, 7.0],
    "swiglu_alpha": [1.702, 1.1],
    "scoring_func": ["sigmoid", "sqrtsoftplus", "softmax"],
    "topk_method": ["greedy", "group_limited_greedy"],
    "expert_selection_fn": ["softmax", "sigmoid"],
    "shared_expert_combination_strategy": ["average", "sum"],
    "use_expert_bias": [True, False],
    "moe_norm_min": [1e-12, 0.3],
    "output_multiplier": [0.3, 0.7],
    "mlp_gate_softcap": [1.0, 4.0],
    "mlp_up_softcap": [1.5, 25.0],
    "router_jitter_noise": [0.01, 0.2],
    "moe_latent_size": [None, 12],
    "router_hidden_size": [7, 16],
    "rms_norm_eps": [1e-6, 1e-3],
    "zero_expert_num": [0, 3],
    "mlp_bias": [True, False],
    "use_bias": [True, False],
    "router_bias": [True, False],
    "shared_expert_sink": [True, False],
    "enable_moe_fp32_combine": [True, False],
    "use_double_wide_mlp": [True, False],
    "hidden_activation": ["gelu_pytorch_tanh", "silu", "gelu"],
    "post_norm_eps": [1e-6, 1e-2],
    "layer_norm_eps": [1e-6, 1e-3],
}
# For models of more than two layers: which of them are MoE layers.
LAYERS = {
    "first_k_dense_replace": [0, 1, 2],
    "num_dense_layers": [0, 1, 2],
    "decoder_sparse_step": [1, 2],
    "mlp_only_layers": [[], [0], [1, 2]],
    "expert_layer_period": [1, 2],
    "expert_layer_offset": [0, 1],
    "moe_layers": [[0], [1, 2], [0, 2]],
    "mlp_layer_types": [["sparse", "dense", "sparse"], ["dense", "dense", "sparse"], ["sparse", "sparse", "dense"]],
}
# config keys that published configs may leave out
OPTIONAL = set(VARY) | {"n_group", "topk_group", "mlp_only_layers", "decoder_sparse_step", "moe_layer_interval", "hidden_activation",
                        "enable_moe_fp32_combine", "shared_expert_sink", "mlp_bias", "moe_apply_router_weight_on_input", "first_k_dense_replace"}
SKIP = {"router_jitter_noise": lambda f: f != "phimoe",
        "zero_expert_num": lambda f: f != "longcat_flash",
        "norm_topk_prob": lambda f: f == "deepseek_v2",  # transformers ignores it, the published code does not
        "scoring_func": lambda f: f not in ("deepseek_v4", "inkling2_text", "inkling2_loop_text"),
        "hidden_act": lambda f: f in ("gpt_oss", "minimax_m3_vl_text", "inkling2_text", "deepseek_v4", "glm5_next", "hy_v4", "hy_v4_vl", "inkling2_loop_text", "qwen4_exp_text")}


def text_class(family):
    cls = CONFIG_MAPPING[golden.ALIAS.get(family, family)]
    if "text_config" in golden.FAMILY[family](golden.Sizes()):
        sub = cls.sub_configs["text_config"]
        cls = sub if sub.__name__ != "AutoConfig" else CONFIG_MAPPING[family + "_text"]
    return cls


def sizes(rng, family):
    experts = rng.randint(4, 20) if rng.random() < 0.8 else rng.choice([1, 2, 3, 32, 50, 65])
    s = golden.Sizes(H=rng.choice([24, 40, 48, 64, 72]), I=rng.randint(1, 40), E=experts, S=rng.randint(1, 50),
                     layers=2 if family in ("nemotron_h", "deepseek_v4", "switch_transformers", "zaya") else rng.choice([1, 1, 3]))
    if "vl" in family or family in ("glm4v_moe", "qwen3_omni_moe_thinker"):
        s.H = rng.choice([48, 72])
    if family == "ernie4_5_vl_moe":
        s.I = 2 * rng.randint(3, 12)
    # Some choose every expert.
    s.k = rng.choice([1, s.E, rng.randint(1, s.E), rng.randint(1, min(s.E, 6)), rng.randint(1, min(s.E, 6))])
    return s


def settings(rng, family, s):
    have = golden.fields(text_class(family))
    sets = {}
    for key, values in VARY.items():
        if key in have and not SKIP.get(key, lambda f: False)(family) and rng.random() < 0.5:
            sets[key] = rng.choice(values)
    for key, values in LAYERS.items() if s.layers == 3 else ():
        if key in have and rng.random() < 0.6:
            sets[key] = rng.choice(values)
    if "n_group" in have and ("topk_method" in have or rng.random() < 0.7):
        # Groups of at least two, which the published score of a group needs.
        n = rng.choice([n for n in (1, 2, 3, 4) if s.E % n == 0 and s.E // n >= 2] or [1])
        keep = rng.randint(1, n)
        s.k = min(s.k, s.E // n * keep)
        sets |= {"n_group": n, "topk_group": keep, "num_experts_per_tok": s.k}
    elif "n_group" in have:
        sets |= {"n_group": 1, "topk_group": 1}
    if family == "dbrx" and rng.random() < 0.7:
        sets["ffn_config.moe_normalize_expert_weights"] = rng.choice([1.0, 2.0, None])
        sets["ffn_config.ffn_act_fn"] = {"name": rng.choice(ACTS)}
    return sets


def leave_out(rng, path, family):
    """Drops keys that have the default of the class."""
    conf = json.load(open(path))
    inner = conf.get("text_config", conf)
    cls = text_class(family)
    defaults = cls().to_dict() if family != "ernie4_5_vl_moe" else {}
    dropped = [k for k in sorted(inner) if k in OPTIONAL and k in defaults and inner[k] == defaults[k] and rng.random() < 0.7]
    for k in dropped:
        del inner[k]
    json.dump(conf, open(path, "w"), indent=2)
    return dropped


def rename(path, family):
    """Puts keys under the other names that the class takes."""
    conf = json.load(open(path))
    inner = conf.get("text_config", conf)
    pairs = (getattr(text_class(family), "attribute_map", None) or {}).items()
    renamed = {other: inner.pop(name) for other, name in pairs if name in inner and other not in inner and "head" not in other}
    inner |= renamed
    json.dump(conf, open(path, "w"), indent=2)
    return sorted(renamed)


def split(dir):
    """Two files and an index in place of one file."""
    path = os.path.join(dir, "model.safetensors")
    tensors = load_file(path)
    names = sorted(tensors)
    parts, where = (names[::2], names[1::2]), {}
    for n, part in enumerate(parts, 1):
        name = f"model-{n:05}-of-00002.safetensors"
        save_file({k: tensors[k] for k in part}, os.path.join(dir, name), metadata={"format": "pt"})
        where |= {k: name for k in part}
    os.remove(path)
    json.dump({"metadata": {}, "weight_map": where}, open(path + ".index.json", "w"))


def case(out, family, n, seed, dtype):
    rng = random.Random(f"{seed}/{family}/{n}")
    s = sizes(rng, family)
    sets = settings(rng, family, s)
    if dtype == "mixed":
        dtype = rng.choice(["float32", "float32", "float32", "bfloat16", "float16"])
    dir = os.path.join(out, f"{family}.{n}")
    shutil.rmtree(dir, ignore_errors=True)
    if family == "qwen3_vl_moe":
        (golden.TRANSPOSED.add if rng.random() < 0.5 else golden.TRANSPOSED.discard)(family)
    args = [f"{k}={json.dumps(v)}" for k, v in sets.items()]
    seed, tokens, as_published = rng.randrange(10**6), rng.randint(1, 9), rng.random() < 0.7
    for seed in range(seed, seed + 4):  # in two bytes, few seeds make choices that every order of additions agrees with
        summary = golden.make(dir, family, seed, tokens, dtype, s, args, as_published)
        if dtype == "float32" or any(v["routing_stable"] is True for v in summary.values()):
            break
    # Another choice of experts, or the reference itself is that far from its own value in float32.
    unsure = lambda v: v["routing_stable"] is not True or v["noise"] is None or v["noise"] > 4e-3
    unstable = [l for l, v in summary.items() if dtype != "float32" and unsure(v)]
    for l in unstable:
        os.remove(os.path.join(dir, f"golden.layer{l}.safetensors"))
    if not glob.glob(dir + "/golden.*"):
        shutil.rmtree(dir)
        return "left out: the choice of experts is not stable"
    dropped = leave_out(rng, os.path.join(dir, "config.json"), family) if rng.random() < 0.5 else []
    if rng.random() < 0.3:
        split(dir)
    renamed = rename(os.path.join(dir, "config.json"), family) if rng.random() < 0.25 else []
    note = dict(renamed=renamed, family=family, dtype=dtype, as_published=as_published, sizes=vars(s), settings=sets, left_out=dropped)
    json.dump(note, open(os.path.join(dir, "case.json"), "w"))
    return json.dumps(note)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out"); ap.add_argument("--families", default="")
    ap.add_argument("--rounds", type=int, default=3); ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--dtype", default="mixed")
    a = ap.parse_args()
    families = [f for f in a.families.split(",") if f] or sorted(set(golden.FAMILY) - {"doge"})  # doge is refused
    made = 0
    for n in range(a.rounds):
        for f in families:
            try:
                text = case(a.out, f, n, a.seed, a.dtype)
                made += not text.startswith("left out")
            except (Exception, SystemExit) as e:
                shutil.rmtree(os.path.join(a.out, f"{f}.{n}"), ignore_errors=True)
                text = f"the model refuses: {type(e).__name__}: {str(e)[:160]!r}"
            print(f"{f}.{n}: {text}", flush=True)
    print(f"{made} cases")


if __name__ == "__main__":
    main()
