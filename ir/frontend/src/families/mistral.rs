//! Mistral Small 4, Large 3 and Large 4: softmax scores, groups by the sum of their two best, no bias.

use super::deepseek_v3::{groups, shared};
use super::in_memory::or_in_memory;
use super::{EXPERTS, Family, TOP_K};
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names, W1_W3_W2};
use crate::spec::{MoeSpec, Precision, Router};
use moec_ir::DType;
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, RowMask, Score};

/// Small 4: logits and scores in the model's type.
pub(super) const MISTRAL4: Family = Family {
    model_types: &["mistral4"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &[],
    spec: |c, layer| {
        let mut spec = mistral(c, layer, c.flag_or("norm_topk_prob", true));
        spec.router.logits = Precision::Layer;
        spec.router.score_round = Precision::Layer;
        spec
    },
};

/// Large 3, in the config that runtimes make of its own format: logits in f32.
pub(super) const LARGE3: Family = Family {
    model_types: &["mistral_large3"],
    prefixes: &["model.", ""],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &[],
    spec: |c, layer| native_names(c, layer, mistral(c, layer, c.flag_or("norm_topk_prob", true))),
};

/// Large 4: an f32 router, always renormalised.
pub(super) const LARGE4: Family = Family {
    model_types: &["mistral_large4", "mistral_large4_text"],
    prefixes: &["", "model.", "language_model.model.", "model.language_model."],
    moe_layers: |c| layers::after_first_dense(c, 1),
    extra_layers: &[],
    spec: |c, layer| {
        let mut spec = mistral(c, layer, true);
        spec.router.weight_dtype = Some(DType::F32);
        native_names(c, layer, spec)
    },
};

fn mistral(c: &Keys, layer: u32, renormalise: bool) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(EXPERTS, MAX_EXPERTS);
    let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
    let mut router = Router::new(names.tensor(&["mlp.gate.weight"]), Score::Softmax);
    // The scores of other groups are set to 0, which is less than any softmax.
    router.groups = groups(c, RowMask::Zero);
    router.renorm = renormalise.then_some(RenormRule::Sum { eps: Real(1e-20) });
    router.scale = c.real_or(&["routed_scaling_factor"], 1.0);
    let activation = c.gated_activation("hidden_act");
    let experts = names.experts("mlp.experts", GATE_UP_DOWN, n_experts, ffn, activation.clone());
    let mut spec = MoeSpec::new(c.hidden(), n_experts, c.size(TOP_K, MAX_EXPERTS), router, experts);
    spec.shared = shared(c, &names, "mlp.shared_experts", ffn, activation);
    spec
}

/// Mistral's own tensor names, which have no `mlp.`.
fn native_names(c: &Keys, layer: u32, mut spec: MoeSpec) -> MoeSpec {
    let names = Names::layer(c, layer);
    let e = &spec.experts;
    spec.router.weight = names.tensor(&["gate.weight", "mlp.gate.weight"]);
    spec.experts = names.experts("experts", W1_W3_W2, spec.n_experts, e.ffn, e.activation.clone());
    spec.shared = spec.shared.map(|s| names.mlp("shared_experts", W1_W3_W2, s.ffn, s.activation));
    or_in_memory(c, layer, spec)
}
