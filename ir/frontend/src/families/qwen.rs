//! Qwen2-MoE and Qwen3-MoE: softmax in f32 over bf16 logits; Qwen2 has a shared expert behind a sigmoid gate.

use super::Family;
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names};
use crate::spec::{MoeSpec, Precision, Router, Shared};
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};

pub(super) const QWEN2_MOE: Family = Family {
    model_types: &["qwen2_moe"],
    prefixes: &[],
    moe_layers: layers::by_sparse_step,
    extra_layers: &[],
    spec: |c, layer| {
        let mut spec = qwen(c, layer, c.flag_or("norm_topk_prob", false));
        spec.shared = gated_shared(c, layer);
        spec
    },
};

pub(super) const QWEN3_MOE: Family = Family {
    model_types: &["qwen3_moe"],
    prefixes: &[],
    moe_layers: layers::by_sparse_step,
    extra_layers: &[],
    spec: |c, layer| qwen(c, layer, c.flag_or("norm_topk_prob", false)),
};

/// A layer of the Qwen line without its shared expert.
pub(super) fn qwen(c: &Keys, layer: u32, renormalise: bool) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["num_experts", "num_local_experts"], MAX_EXPERTS);
    let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
    let experts = names.experts("mlp.experts", GATE_UP_DOWN, n_experts, ffn, c.gated_activation("hidden_act"));
    MoeSpec::new(
        c.hidden(),
        n_experts,
        c.size(&["num_experts_per_tok"], MAX_EXPERTS),
        router(&names, renormalise),
        experts,
    )
}

/// The router of the Qwen line.
pub(super) fn router(names: &Names, renormalise: bool) -> Router {
    let mut router = Router::new(names.tensor(&["mlp.gate.weight"]), Score::Softmax);
    router.logits = Precision::Layer;
    router.renorm = renormalise.then_some(RenormRule::Sum { eps: Real(0.0) });
    router.weights_round = Precision::Layer;
    router
}

/// The shared expert behind a sigmoid gate; a width of 0 means that there is none.
pub(super) fn gated_shared(c: &Keys, layer: u32) -> Option<Shared> {
    let names = Names::layer(c, layer);
    let ffn = c.size_or(&["shared_expert_intermediate_size"], 0, MAX_WIDTH);
    let matrix = |m: &str| names.tensor(&[&format!("mlp.shared_expert.{m}_proj.weight")]);
    let mut shared = Shared::new(ffn, c.gated_activation("hidden_act"), matrix("gate"), matrix("up"), matrix("down"));
    shared.out_gate = Some(names.tensor(&["mlp.shared_expert_gate.weight"]));
    (ffn > 0).then_some(shared)
}
