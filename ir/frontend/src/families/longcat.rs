//! LongCat-Flash: softmax over real and zero-compute experts, a bias for the choice only, no renormalisation. A
//! zero-compute expert returns its input.

use super::Family;
use super::in_memory::or_in_memory;
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names};
use crate::spec::{MoeSpec, Router};
use moec_ir::DType;
use moec_ir::graph::Score;

pub(super) const FAMILY: Family = Family {
    model_types: &["longcat_flash", "longcat_flash_ngram"],
    prefixes: &[],
    moe_layers: layers::all,
    extra_layers: &[],
    spec,
};

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["n_routed_experts", "num_local_experts"], MAX_EXPERTS);
    let zero_experts = c.size_or(&["zero_expert_num"], 0, MAX_EXPERTS);
    let ffn = c.size(&["expert_ffn_hidden_size", "moe_intermediate_size"], MAX_WIDTH);
    c.one_of("zero_expert_type", &["identity"]);
    let mut router = Router::new(names.tensor(&["mlp.router.classifier.weight"]), Score::Softmax);
    router.weight_dtype = Some(DType::F32);
    let bias = names.vector(&["mlp.router.e_score_correction_bias"], n_experts + zero_experts);
    router.selection_bias = Some(bias);
    router.scale = c.real_or(&["routed_scaling_factor"], 1.0);
    let experts = names.experts("mlp.experts", GATE_UP_DOWN, n_experts, ffn, c.gated_activation("hidden_act"));
    let top_k = c.size(&["moe_topk", "num_experts_per_tok"], MAX_EXPERTS);
    let mut spec = MoeSpec::new(c.hidden(), n_experts, top_k, router, experts);
    spec.zero_experts = zero_experts;
    or_in_memory(c, layer, spec)
}
