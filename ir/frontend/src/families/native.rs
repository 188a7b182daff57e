//! Configs in their publishers' own form, without a `model_type`: DeepSeek's inference code, and Mistral's `params.json`.

use super::Family;
use crate::json::Object;
use crate::keys::{Keys, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH};
use crate::layout::{Names, W1_W3_W2};
use crate::spec::{Groups, MoeSpec, Router};
use moec_ir::Activation;
use moec_ir::expr::Real;
use moec_ir::graph::{GroupScore, RenormRule, RowMask, Score};

/// The model type of a config that has none but the keys of one of these forms.
pub fn model_type_of(root: &Object) -> Option<&'static str> {
    let has = |key: &str| root.get(key).is_some();
    let moe = root.get("moe").and_then(|v| v.object().ok());
    match moe {
        Some(moe) if has("dim") && moe.get("expert_hidden_dim").is_some() => Some("mistral_params"),
        _ if has("dim") && has("moe_inter_dim") && has("n_activated_experts") => Some("deepseek_native"),
        _ => None,
    }
}

/// DeepSeek V2, V3 and V3.2 as their inference code has them. Only the largest model has a bias for the choice, and
/// groups are scored by it.
pub(super) const DEEPSEEK: Family = Family {
    model_types: &["deepseek_native"],
    prefixes: &["", "model."],
    moe_layers: |c| {
        let first = c.size_or(&["n_dense_layers"], 1, MAX_LAYERS) as u32;
        (first..c.n_layers()).collect()
    },
    extra_layers: &[],
    spec: deepseek,
};

fn deepseek(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let hidden = c.size(&["dim"], MAX_WIDTH);
    let n_experts = c.size(&["n_routed_experts"], MAX_EXPERTS);
    let ffn = c.size(&["moe_inter_dim"], MAX_WIDTH);
    let sigmoid = c.one_of("score_func", &["softmax", "sigmoid"]) == "sigmoid";
    let gate = names.tensor(&["ffn.gate.weight"]);
    let mut router = Router::new(gate, if sigmoid { Score::Sigmoid } else { Score::Softmax });
    let with_bias = sigmoid && hidden == 7168;
    router.selection_bias = with_bias.then(|| names.vector(&["ffn.gate.bias"], n_experts));
    let n = c.size_or(&["n_expert_groups"], 1, MAX_EXPERTS);
    let keep = c.size_or(&["n_limited_groups"], 1, MAX_EXPERTS);
    let score = if with_bias { GroupScore::Top2Sum } else { GroupScore::Max };
    router.groups = (n > 1).then_some(Groups { n, keep, score, fill: RowMask::NegInf, gather_filled: false });
    router.renorm = sigmoid.then_some(RenormRule::Sum { eps: Real(0.0) });
    router.scale = c.real_or(&["route_scale"], 1.0);
    let experts = names.experts("ffn.experts", W1_W3_W2, n_experts, ffn, Activation::SwiGlu);
    let top_k = c.size(&["n_activated_experts"], MAX_EXPERTS);
    let mut spec = MoeSpec::new(hidden, n_experts, top_k, router, experts);
    let width = ffn * c.size_or(&["n_shared_experts"], 0, 1024);
    spec.shared = (width > 0).then(|| names.mlp("ffn.shared_experts", W1_W3_W2, width, Activation::SwiGlu));
    spec
}

/// Mistral Large 3 as it is published: softmax over all, the best renormalised, no bias.
pub(super) const MISTRAL: Family = Family {
    model_types: &["mistral_params"],
    prefixes: &["", "model."],
    moe_layers: |c| {
        let moe = moe_keys(c);
        let first = moe.size_or(&["first_k_dense_replace"], 0, MAX_LAYERS) as u32;
        let every = moe.size_or(&["route_every_n"], 1, MAX_LAYERS).max(1) as u32;
        c.adopt(moe);
        (first..c.n_layers()).filter(|i| i.is_multiple_of(every)).collect()
    },
    extra_layers: &[],
    spec: mistral,
};

fn mistral(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let moe = moe_keys(c);
    let hidden = c.size(&["dim"], MAX_WIDTH);
    let n_experts = moe.size(&["num_experts"], MAX_EXPERTS);
    let ffn = moe.size(&["expert_hidden_dim"], MAX_WIDTH);
    let mut router = Router::new(names.tensor(&["gate.weight"]), Score::Softmax);
    let n = moe.size_or(&["num_expert_groups"], 1, MAX_EXPERTS);
    let keep = moe.size_or(&["num_expert_groups_per_tok"], 1, MAX_EXPERTS);
    let score = GroupScore::Top2Sum;
    router.groups = (n > 1).then_some(Groups { n, keep, score, fill: RowMask::Zero, gather_filled: false });
    router.renorm = Some(RenormRule::Sum { eps: Real(1e-20) });
    router.scale = moe.real_or(&["routed_scale"], 1.0);
    let experts = names.experts("experts", W1_W3_W2, n_experts, ffn, Activation::SwiGlu);
    let mut spec = MoeSpec::new(hidden, n_experts, moe.size(&["num_experts_per_tok"], MAX_EXPERTS), router, experts);
    let width = ffn * moe.size_or(&["num_shared_experts"], 0, 1024);
    spec.shared = (width > 0).then(|| names.mlp("shared_experts", W1_W3_W2, width, Activation::SwiGlu));
    c.adopt(moe);
    spec
}

/// A reader of the object `moe`.
fn moe_keys(c: &Keys) -> Keys {
    let object = match c.text.get("moe").map(|v| v.object()) {
        Some(Ok(object)) => object,
        Some(Err(d)) => {
            c.problem(d);
            c.text.clone()
        }
        None => {
            c.problem(c.text.missing(&["moe"]));
            c.text.clone()
        }
    };
    Keys::new(object, c.model_type.clone(), c.dtype, c.prefixes.clone())
}
