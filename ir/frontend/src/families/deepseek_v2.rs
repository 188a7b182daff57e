//! DeepSeek-V2: softmax in f32, groups by their largest score, weights either renormalised or scaled.

use super::Family;
use super::deepseek_v3::shared;
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names};
use crate::spec::{Groups, MoeSpec, Router};
use moec_ir::expr::Real;
use moec_ir::graph::{GroupScore, RenormRule, RowMask, Score};

pub(super) const FAMILY: Family = Family {
    model_types: &["deepseek_v2"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &[],
    spec,
};

/// Models that read pages with a decoder like DeepSeek-V2's.
pub(super) const OCR: Family = Family {
    model_types: &["deepseek_ocr2", "deepseek_ocr2_text", "unlimited_ocr", "unlimited_ocr_text"],
    prefixes: &["model.", "model.language_model."],
    moe_layers: |c| layers::after_first_dense(c, 1),
    extra_layers: &[],
    spec,
};

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["n_routed_experts", "num_local_experts", "num_experts"], MAX_EXPERTS);
    let top_k = c.size(&["num_experts_per_tok"], MAX_EXPERTS);
    let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
    c.one_of("scoring_func", &["softmax"]);
    let mut router = Router::new(names.tensor(&["mlp.gate.weight"]), Score::Softmax);
    if c.one_of("topk_method", &["greedy", "group_limited_greedy"]) == "group_limited_greedy" {
        let (n, keep) = (c.size(&["n_group"], MAX_EXPERTS), c.size(&["topk_group"], MAX_EXPERTS));
        router.groups = Some(Groups { n, keep, score: GroupScore::Max, fill: RowMask::Zero, gather_filled: true });
    }
    // The published code normalises without scaling, or scales without normalising.
    if top_k > 1 && c.flag_or("norm_topk_prob", false) {
        router.renorm = Some(RenormRule::Sum { eps: Real(1e-20) });
    } else {
        router.scale = c.real_or(&["routed_scaling_factor"], 1.0);
    }
    let experts = names.experts("mlp.experts", GATE_UP_DOWN, n_experts, ffn, c.gated_activation("hidden_act"));
    let mut spec = MoeSpec::new(c.hidden(), n_experts, top_k, router, experts);
    spec.shared = shared(c, &names, "mlp.shared_experts", ffn, c.gated_activation("hidden_act"));
    if let Some(shared) = &mut spec.shared {
        let biases = || names.mlp_biases("mlp.shared_experts", GATE_UP_DOWN);
        shared.biases = c.flag_or("mlp_bias", false).then(biases);
    }
    spec
}
