//! OLMoE: softmax in f32 over bf16 logits, weights not renormalised in the published models, rounded for the experts.

use super::Family;
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names};
use crate::spec::{MoeSpec, Precision, Router};
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};

pub(super) const FAMILY: Family =
    Family { model_types: &["olmoe", "flex_olmo"], prefixes: &[], moe_layers: layers::all, extra_layers: &[], spec };

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["num_experts", "num_local_experts"], MAX_EXPERTS);
    let ffn = c.size(&["intermediate_size"], MAX_WIDTH);
    let mut router = Router::new(names.tensor(&["mlp.gate.weight"]), Score::Softmax);
    router.logits = Precision::Layer;
    router.renorm = c.flag_or("norm_topk_prob", false).then_some(RenormRule::Sum { eps: Real(0.0) });
    router.weights_round = Precision::Layer;
    let experts = names.experts("mlp.experts", GATE_UP_DOWN, n_experts, ffn, c.gated_activation("hidden_act"));
    MoeSpec::new(c.hidden(), n_experts, c.size(&["num_experts_per_tok"], MAX_EXPERTS), router, experts)
}
