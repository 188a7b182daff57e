//! Phi-3.5-MoE: two dependent choices (sparsemixer) on rounded logits; the jitter counts at inference too.

use super::Family;
use super::in_memory::or_in_memory;
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH, Missing};
use crate::layers;
use crate::layout::{Names, W1_W3_W2};
use crate::spec::{MoeSpec, Precision, Router};
use moec_ir::graph::Score;

pub(super) const FAMILY: Family =
    Family { model_types: &["phimoe"], prefixes: &[], moe_layers: layers::all, extra_layers: &[], spec };

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["num_local_experts"], MAX_EXPERTS);
    let ffn = c.size(&["intermediate_size"], MAX_WIDTH);
    let top_k = c.size_or(&["num_experts_per_tok"], 2, MAX_EXPERTS);
    if top_k != 2 || n_experts < 2 {
        let detail = format!("it chooses two experts, whatever the config says: here {top_k} of {n_experts}");
        c.refuse(Missing::RouterVariant, detail, Some("num_experts_per_tok"));
    }
    let gate = names.tensor(&["block_sparse_moe.gate.weight", "mlp.router.weight"]);
    let mut router = Router::new(gate, Score::Softmax);
    router.logits = Precision::Layer;
    router.sparse_mixer = Some(c.real_or(&["router_jitter_noise"], 0.01));
    let activation = c.gated_activation("hidden_act");
    let experts = names.experts("block_sparse_moe.experts", W1_W3_W2, n_experts, ffn, activation);
    or_in_memory(c, layer, MoeSpec::new(c.hidden(), n_experts, top_k, router, experts))
}
