#!/usr/bin/env python3
"""Write the tables of ir/frontend/src/families/defaults: what transformers assumes where a config leaves a key out
(values.rs), and under which other names its config classes take keys (names.rs).

usage: class_defaults.py ../../ir/frontend/src/families/defaults
"""
import dataclasses, os, re, sys, textwrap, warnings

warnings.filterwarnings("ignore")
import golden, numpy, transformers
from stress import text_class

KEYS = """activation_function decoder_sparse_step expert_layer_offset expert_layer_period expert_selection_fn
first_k_dense_replace hidden_act hidden_activation interleave_moe_layer_step mlp_gate_softcap mlp_hidden_act
mlp_up_softcap moe_apply_router_weight_on_input moe_layer_end_index moe_layer_interval moe_layer_start_index moe_norm_min
moe_num_shared_experts moe_routed_scaling_factor moe_router_logit_softcapping moe_router_scaling_factor
moe_shared_expert_intermediate_size n_group n_shared_experts norm_topk_prob num_dense_layers num_shared_experts
output_multiplier rms_norm_eps route_scale routed_scaling_factor router_hidden_size router_jitter_noise
router_scaling_factor scoring_func share_expert_dim shared_expert_combination_strategy shared_expert_intermediate_size
shared_experts_intermediate_size shared_intermediate_size swiglu_alpha swiglu_limit topk_group topk_method
use_expert_bias zero_expert_num""".split()

# Keys of which another name is of interest here.
RENAMED = re.compile(r"expert|moe_|intermediate_size|ffn|^hidden_size|_layers$|layers_block_type|routed_scaling|norm_topk_prob|top_?k")

# What config classes work out when they are made.
FIRST_DENSE = {"axk1": 1, "axk2": 1, "kimi_linear": 1, "beam": 3, "glm4_moe_lite": 1, "glm5_next": 3, "hy_v3": 1, "hy_v4": 1, "hy_v4_vl": 1}


def literal(v):
    if isinstance(v, bool):
        return f"Flag({str(v).lower()})"
    if isinstance(v, int):
        return f"Whole({v})" if v >= 0 else None
    if isinstance(v, float):
        return f"Real({float(numpy.float32(v).astype(str))!r})"
    if isinstance(v, str):
        return f'Word("{v}")'
    return None


def words(types):
    """A Rust string of model types."""
    return '"' + " \\\n             ".join(textwrap.wrap(" ".join(sorted(types)), 100, break_on_hyphens=False)) + '"'


def values_of(rows):
    """values.rs of the keys and values of each model type."""
    types = {}
    for name, pairs in rows.items():
        for key, value in pairs:
            types.setdefault(key, {}).setdefault(value, []).append(name)
    lines = [f"""//! What the config classes of transformers {transformers.__version__} assume where a config leaves a key out.
//!
//! Written by `tests/conformance/class_defaults.py`. Keys without a value of their own (null) are not listed.

use super::Value::{{self, Flag, Real, Whole, Word}};

/// Keys, each with its defaults, each with the model types that have it.
pub(super) const VALUES: &[(&str, &[(Value, &str)])] = &["""]
    for key in sorted(types):
        lines.append(f'    ("{key}", &[' + ", ".join(f"({v}, {words(types[key][v])})" for v in sorted(types[key])) + "]),")
    return "\n".join(lines + ["];", ""])


def names_of(renamed):
    """names.rs of the pairs of each model type."""
    types = {}
    for name, pairs in renamed.items():
        for pair in pairs:
            types.setdefault(pair, []).append(name)
    lines = [f"""//! Under which other names the config classes of transformers {transformers.__version__} take keys.
//!
//! Written by `tests/conformance/class_defaults.py`.

/// Pairs of names for the same key, sorted, each with the model types that take one for the other.
pub(super) const NAMES: &[(&str, &str, &str)] = &["""]
    lines += [f'    ("{a}", "{b}", {words(types[a, b])}),' for a, b in sorted(types)]
    return "\n".join(lines + ["];", ""])


def read():
    """Defaults and pairs of names, by model type."""
    rows, renamed = {}, {}
    for family in golden.FAMILY:
        cls = text_class(family)
        have = {f.name: (f.default if f.default is not dataclasses.MISSING else None) for f in dataclasses.fields(cls)}
        if family in FIRST_DENSE:
            have.setdefault("first_k_dense_replace", FIRST_DENSE[family])
        found = [(k, literal(have[k])) for k in sorted(KEYS) if k in have and have[k] is not None]
        names = {family, cls.model_type} | ({"kimi_k2", "kimi_k25"} if family == "deepseek_v3" else set())
        for name in names:
            if name and (name == family or name not in golden.FAMILY):
                rows[name] = [(k, v) for k, v in found if v]
                pairs = sorted((getattr(cls, "attribute_map", None) or {}).items())
                renamed[name] = [p for p in pairs if RENAMED.search(p[0]) and "head" not in p[0]]
    return rows, renamed


if __name__ == "__main__":
    (out,) = sys.argv[1:]
    rows, renamed = read()
    for file, text in (("values.rs", values_of(rows)), ("names.rs", names_of(renamed))):
        with open(os.path.join(out, file), "w") as f:
            f.write(text)
