//! DeepSeek-V3 and its relatives (R1, V3.2, Kimi K2, GLM-4.5): f32 sigmoid scores, a bias for the choice only, groups by
//! the sum of their two best, renormalised and scaled weights, ungated shared experts.

use super::Family;
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names};
use crate::spec::{Groups, MoeSpec, Router, Shared};
use moec_ir::expr::Real;
use moec_ir::graph::{GroupScore, RenormRule, RowMask, Score};

pub(super) const FAMILY: Family = Family {
    model_types: &["deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25", "glm4_moe"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &["num_nextn_predict_layers"],
    spec,
};

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["n_routed_experts", "num_local_experts", "num_experts"], MAX_EXPERTS);
    let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
    c.one_of("scoring_func", &["sigmoid"]);
    c.one_of("topk_method", &["noaux_tc"]);
    let bias = names.vector(&["mlp.gate.e_score_correction_bias"], n_experts);
    let mut router = Router::new(names.tensor(&["mlp.gate.weight"]), Score::Sigmoid);
    router.selection_bias = Some(bias);
    biased_choice(c, &mut router);
    let experts = names.experts("mlp.experts", GATE_UP_DOWN, n_experts, ffn, c.gated_activation("hidden_act"));
    let mut spec = MoeSpec::new(c.hidden(), n_experts, c.size(&["num_experts_per_tok"], MAX_EXPERTS), router, experts);
    spec.shared = shared(c, &names, ffn, "n_shared_experts");
    spec
}

/// What follows the biased scores: groups, renormalisation and scale, under DeepSeek's keys.
pub(super) fn biased_choice(c: &Keys, router: &mut Router) {
    let n = c.size_or(&["n_group"], 1, MAX_EXPERTS);
    let keep = c.size_or(&["topk_group"], n.max(1), MAX_EXPERTS);
    // Keeping all groups changes nothing.
    if n > 1 && keep != n {
        router.groups =
            Some(Groups { n, keep, score: GroupScore::Top2Sum, fill: RowMask::NegInf, gather_filled: false });
    }
    router.renorm = c.flag_or("norm_topk_prob", true).then_some(RenormRule::Sum { eps: Real(1e-20) });
    router.scale = c.real_or(&["routed_scaling_factor"], 1.0);
}

/// `count_key` shared experts as one MLP of their joint width, under DeepSeek's names.
pub(super) fn shared(c: &Keys, names: &Names, ffn: u64, count_key: &str) -> Option<Shared> {
    let count = c.size_or(&[count_key], 0, 1024);
    let matrix = |m: &str| names.tensor(&[&format!("mlp.shared_experts.{m}_proj.weight")]);
    let shared =
        Shared::new(count * ffn, c.gated_activation("hidden_act"), matrix("gate"), matrix("up"), matrix("down"));
    (count > 0).then_some(shared)
}
