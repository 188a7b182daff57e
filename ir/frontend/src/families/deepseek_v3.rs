//! DeepSeek-V3 and its many relatives: f32 sigmoid scores, a bias for the choice only, groups by the sum of their two
//! best, renormalised and scaled weights, ungated shared experts. The relatives differ in names; see [`Parts`].

use super::{EXPERTS, Family, SHARED, TOP_K};
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names};
use crate::spec::{Groups, MoeSpec, Router, Shared};
use moec_ir::Activation;
use moec_ir::expr::Real;
use moec_ir::graph::{GroupScore, RenormRule, RowMask, Score};

pub(super) const FAMILY: Family = Family {
    model_types: &[
        "deepseek_v3",
        "deepseek_v32",
        "kimi_k2",
        "kimi_k25",
        "glm4_moe",
        "glm4_moe_lite",
        "glm4v_moe",
        "glm4v_moe_text",
        "glm_moe_dsa",
        "sarvam_mla",
        "solar_open",
    ],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &["num_nextn_predict_layers"],
    spec: |c, layer| v3(c, layer, &PARTS),
};

pub(super) const DOTS1: Family = Family {
    model_types: &["dots1"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &[],
    spec: |c, layer| v3(c, layer, &Parts { renormalises: false, ..PARTS }),
};

pub(super) const MIMO_V2: Family = Family {
    model_types: &["mimo_v2_flash", "mimo_v2"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 1),
    extra_layers: &[],
    spec: |c, layer| v3(c, layer, &PARTS),
};

/// Tensor names of a block like DeepSeek-V3's, and what its class assumes.
pub(super) struct Parts {
    /// The router.
    pub gate: &'static str,
    /// The bias for the choice.
    pub bias: &'static str,
    /// The stem of the experts and the names of their matrices.
    pub experts: (&'static str, [&'static str; 3]),
    /// The stem of the shared experts.
    pub shared: &'static str,
    /// Whether a config that does not say it renormalises.
    pub renormalises: bool,
}

pub(super) const PARTS: Parts = Parts {
    gate: "mlp.gate.weight",
    bias: "mlp.gate.e_score_correction_bias",
    experts: ("mlp.experts", GATE_UP_DOWN),
    shared: "mlp.shared_experts",
    renormalises: true,
};

/// A layer with DeepSeek-V3's router.
pub(super) fn v3(c: &Keys, layer: u32, parts: &Parts) -> MoeSpec {
    v3_with(c, layer, parts, c.gated_activation("hidden_act"))
}

/// As [`v3`], with the activation of routed and shared experts given.
pub(super) fn v3_with(c: &Keys, layer: u32, parts: &Parts, activation: Activation) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(EXPERTS, MAX_EXPERTS);
    let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
    c.one_of("scoring_func", &["sigmoid"]);
    c.one_of("topk_method", &["noaux_tc"]);
    let mut router = Router::new(names.tensor(&[parts.gate]), Score::Sigmoid);
    router.selection_bias = Some(names.vector(&[parts.bias], n_experts));
    router.groups = groups(c, RowMask::NegInf);
    let renormalise = c.flag_of(&["norm_topk_prob", "moe_renormalize"], parts.renormalises);
    router.renorm = renormalise.then_some(RenormRule::Sum { eps: Real(1e-20) });
    router.scale = c.real_or(&["routed_scaling_factor"], 1.0);
    let (stem, matrices) = parts.experts;
    let experts = names.experts(stem, matrices, n_experts, ffn, activation.clone());
    let mut spec = MoeSpec::new(c.hidden(), n_experts, c.size(TOP_K, MAX_EXPERTS), router, experts);
    spec.shared = shared(c, &names, parts.shared, ffn, activation);
    spec
}

/// Groups by the sum of their two best scores, when the config limits the choice to some of them.
pub(super) fn groups(c: &Keys, fill: RowMask) -> Option<Groups> {
    let n = c.size_or(&["n_group", "num_expert_group"], 1, MAX_EXPERTS);
    let keep = c.size_or(&["topk_group"], n.max(1), MAX_EXPERTS);
    // Keeping all groups changes nothing.
    (n > 1 && keep != n).then_some(Groups { n, keep, score: GroupScore::Top2Sum, fill, gather_filled: false })
}

/// Shared experts as one MLP of their joint width.
pub(super) fn shared(c: &Keys, names: &Names, stem: &str, ffn: u64, activation: Activation) -> Option<Shared> {
    let count = c.size_or(SHARED, 0, 1024);
    let shared = names.mlp(stem, GATE_UP_DOWN, count * ffn, activation);
    (count > 0).then_some(shared)
}
