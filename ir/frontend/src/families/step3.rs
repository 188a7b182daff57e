//! Step-3: softmax scores without renormalisation, experts in three stacked tensors, an ungated shared expert.

use super::Family;
use crate::keys::{Keys, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names};
use crate::spec::{MoeSpec, Router};
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};

pub(super) const FAMILY: Family = Family {
    model_types: &["step3_vl", "step3_text"],
    prefixes: &[],
    moe_layers: |c| moe_layers(c, 0),
    extra_layers: &[],
    spec,
};

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["moe_num_experts"], MAX_EXPERTS);
    let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
    let mut router = Router::new(names.tensor(&["moe.gate.weight"]), Score::Softmax);
    let renormalise = c.flag_or("norm_expert_weight", false);
    router.renorm = renormalise.then_some(RenormRule::Sum { eps: Real(0.0) });
    let experts = names.experts("moe", GATE_UP_DOWN, n_experts, ffn, c.gated_activation("hidden_act"));
    let mut spec = MoeSpec::new(c.hidden(), n_experts, c.size(&["moe_top_k"], MAX_EXPERTS), router, experts);
    stacked(&mut spec, &names);
    let width = c.size_or(&["share_expert_dim"], 0, MAX_WIDTH);
    let shared = names.mlp("share_expert", GATE_UP_DOWN, width, c.gated_activation("hidden_act"));
    spec.shared = (width > 0).then_some(shared);
    spec
}

/// Puts the three stacked tensors of Step's experts in place.
pub(super) fn stacked(spec: &mut MoeSpec, names: &Names) {
    spec.experts.gate = names.tensor(&["moe.gate_proj.weight"]);
    spec.experts.up = names.tensor(&["moe.up_proj.weight"]);
    spec.experts.down = names.tensor(&["moe.down_proj.weight"]);
}

/// `moe_layers_enum`, a string of numbers, unless there is a list of layer types; else the rule with a first MoE layer.
pub(super) fn moe_layers(c: &Keys, default_first: u64) -> Vec<u32> {
    let enumeration = c.text.get("moe_layers_enum").filter(|_| c.text.get("mlp_layer_types").is_none());
    let Some(node) = enumeration else { return layers::after_first_dense(c, default_first) };
    let n = c.n_layers();
    let numbers = node.string().map(|text| {
        text.split(',').map(|part| part.trim().parse::<u32>().ok().filter(|&l| l < n)).collect::<Option<Vec<u32>>>()
    });
    match numbers {
        Ok(Some(mut list)) if list.len() as u64 <= MAX_LAYERS => {
            list.sort_unstable();
            list.dedup();
            list
        }
        Ok(_) => {
            c.problem(node.out_of_range(&format!("layer numbers below {n}, separated by commas")));
            Vec::new()
        }
        Err(d) => {
            c.problem(d);
            Vec::new()
        }
    }
}
