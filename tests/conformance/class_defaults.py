#!/usr/bin/env python3
"""Write ir/frontend/src/families/defaults.rs: what transformers assumes where a config leaves a key out, and under which
other names its config classes take keys.

usage: class_defaults.py > ../../ir/frontend/src/families/defaults.rs
"""
import dataclasses, re, sys, warnings

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


print(f"""//! What the config classes of transformers {transformers.__version__} assume where a config leaves a key out.
//!
//! Written by `tests/conformance/class_defaults.py`. Keys without a value of their own (null) are not listed.

/// A default value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {{
    /// A whole number, not negative.
    Whole(u64),
    /// A number.
    Real(f32),
    /// A switch.
    Flag(bool),
    /// A word.
    Word(&'static str),
}}
use Value::{{Flag, Real, Whole, Word}};

/// The default of `key` for a model type.
pub fn default_of(model_type: &str, key: &str) -> Option<Value> {{
    let i = DEFAULTS.binary_search_by_key(&model_type, |d| d.0).ok()?;
    let keys = DEFAULTS[i].1;
    keys.binary_search_by_key(&key, |d| d.0).ok().map(|k| keys[k].1)
}}

/// The other names of `key` in configs of a model type, of which transformers takes each for the other.
pub fn other_names(model_type: &str, key: &str) -> impl Iterator<Item = &'static str> {{
    let i = OTHER_NAMES.binary_search_by_key(&model_type, |d| d.0).ok();
    let pairs = i.map_or(&[][..], |i| OTHER_NAMES[i].1);
    let other = move |a: &str, b: &'static str| (a == key).then_some(b);
    pairs.iter().filter_map(move |&(a, b)| other(a, b).or_else(|| other(b, a)))
}}

/// Model types, sorted, each with its keys, sorted.
const DEFAULTS: &[(&str, &[(&str, Value)])] = &[""")
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
for name in sorted(rows):
    print(f'    ("{name}", &[' + ", ".join(f'("{k}", {v})' for k, v in rows[name]) + "]),")
print("];")
print("""
/// Model types, sorted, each with pairs of names for the same key.
const OTHER_NAMES: &[(&str, &[(&str, &str)])] = &[""")
for name in sorted(n for n in renamed if renamed[n]):
    print(f'    ("{name}", &[' + ", ".join(f'("{a}", "{b}")' for a, b in renamed[name]) + "]),")
print("];")
