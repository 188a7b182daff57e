//! Mixtral: softmax in f32 over bf16 logits, the best two, renormalised.

use super::Family;
use super::in_memory::or_in_memory;
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::{Names, W1_W3_W2};
use crate::spec::{MoeSpec, Precision, Router};
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};

pub(super) const FAMILY: Family =
    Family { model_types: &["mixtral"], prefixes: &[], moe_layers: layers::all, extra_layers: &[], spec };

pub(super) fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["num_local_experts"], MAX_EXPERTS);
    let ffn = c.size(&["intermediate_size"], MAX_WIDTH);
    let mut router = Router::new(names.tensor(&["block_sparse_moe.gate.weight", "mlp.gate.weight"]), Score::Softmax);
    router.logits = Precision::Layer;
    router.renorm = Some(RenormRule::Sum { eps: Real(0.0) });
    let experts = names.experts("block_sparse_moe.experts", W1_W3_W2, n_experts, ffn, c.gated_activation("hidden_act"));
    let top_k = c.size(&["num_experts_per_tok"], MAX_EXPERTS);
    or_in_memory(c, layer, MoeSpec::new(c.hidden(), n_experts, top_k, router, experts))
}
