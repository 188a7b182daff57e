//! The names and layouts that transformers 5 has in memory, which are much the same for all families. A checkpoint has
//! them when it is saved without a return to the published form (`save_original_format=False`).

use crate::keys::Keys;
use crate::layout::{GATE_UP_DOWN, Names, Part};
use crate::spec::MoeSpec;
use moec_ir::weights::{WeightSource, WeightStep};

/// `spec`, whose weights may have these names, too.
pub(super) fn or_in_memory(c: &Keys, layer: u32, spec: MoeSpec) -> MoeSpec {
    or_in_memory_below(c, layer, "mlp", spec)
}

/// As [`or_in_memory`], with router and routed experts below `block`.
pub(super) fn or_in_memory_below(c: &Keys, layer: u32, block: &str, mut spec: MoeSpec) -> MoeSpec {
    let names = Names::layer(c, layer);
    let below = |name: &str| format!("{block}.{name}");
    let router = &mut spec.router;
    also(&mut router.weight, names.tensor(&[&below("gate.weight"), &below("router.weight")]));
    if let Some(bias) = &mut router.selection_bias {
        let scored = spec.n_experts + spec.zero_experts;
        let bias_names =
            ["gate.e_score_correction_bias", "gate.moe_statics.e_score_correction_bias", "e_score_correction_bias"];
        let bias_names = bias_names.map(below);
        also(bias, names.vector(&bias_names.each_ref().map(String::as_str), scored));
    }
    if let Some((_, table)) = &mut router.table {
        also(table, names.tensor(&[&below("gate.tid2eid")]));
    }
    let e = &mut spec.experts;
    let (gate_up, down) = (below("experts.gate_up_proj"), below("experts.down_proj"));
    // LongCat's stack has room for the experts that return their input.
    let real = WeightStep::Slice { axis: 0, start: 0, step: 1, len: spec.n_experts, of: None };
    let half = |part: Part| {
        let start = if part == Part::Gate { 0 } else { e.ffn };
        let mut steps = vec![WeightStep::Slice { axis: 1, start, step: 1, len: e.ffn, of: Some(2 * e.ffn) }];
        steps.extend((spec.zero_experts > 0).then_some(real.clone()));
        names.steps(&[&gate_up], steps)
    };
    let (gate, up) = (half(Part::Gate), half(Part::Up));
    also(&mut e.gate, gate);
    also(&mut e.up, up);
    also(&mut e.down, names.tensor(&[&down]));
    if let Some(shared) = &mut spec.shared {
        let other = names.mlp("mlp.shared_experts", GATE_UP_DOWN, shared.ffn, shared.activation.clone());
        also(&mut shared.gate, other.gate);
        also(&mut shared.up, other.up);
        also(&mut shared.down, other.down);
        if let Some(biases) = &mut shared.biases {
            let other = names.mlp_biases("mlp.shared_experts", GATE_UP_DOWN);
            also(&mut biases.gate, other.gate);
            also(&mut biases.up, other.up);
            also(&mut biases.down, other.down);
        }
    }
    spec
}

/// Looks for `other` where `source` is not there.
fn also(source: &mut WeightSource, other: WeightSource) {
    match source {
        WeightSource::FirstOf(list) if list.contains(&other) => {}
        WeightSource::FirstOf(list) => list.push(other),
        s if *s == other => {}
        s => *s = WeightSource::FirstOf(vec![s.clone(), other]),
    }
}
