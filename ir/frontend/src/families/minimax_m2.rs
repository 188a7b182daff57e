//! MiniMax-M2: sigmoid scores of an f32 router, a bias for the choice only, renormalised.

use super::Family;
use super::in_memory::or_in_memory;
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::{Names, W1_W3_W2};
use crate::spec::{MoeSpec, Router};
use moec_ir::DType;
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};

pub(super) const FAMILY: Family =
    Family { model_types: &["minimax_m2"], prefixes: &[], moe_layers: layers::all, extra_layers: &[], spec };

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["num_local_experts"], MAX_EXPERTS);
    let ffn = c.size(&["intermediate_size"], MAX_WIDTH);
    c.one_of("scoring_func", &["sigmoid"]);
    let mut router = Router::new(names.tensor(&["block_sparse_moe.gate.weight"]), Score::Sigmoid);
    // Published in f32; a rounded router would choose other experts near ties.
    router.weight_dtype = Some(DType::F32);
    let bias = names.vector(&["block_sparse_moe.e_score_correction_bias"], n_experts);
    router.selection_bias = c.flag_or("use_routing_bias", true).then_some(bias);
    router.renorm = Some(RenormRule::Sum { eps: Real(0.0) });
    let experts = names.experts("block_sparse_moe.experts", W1_W3_W2, n_experts, ffn, c.gated_activation("hidden_act"));
    let top_k = c.size(&["num_experts_per_tok"], MAX_EXPERTS);
    or_in_memory(c, layer, MoeSpec::new(c.hidden(), n_experts, top_k, router, experts))
}
