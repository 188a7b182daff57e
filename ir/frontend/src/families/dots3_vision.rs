//! The picture encoder of Dots-3: a router like DeepSeek-V3's without groups, and more experts from layer to layer.

use super::Family;
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH};
use crate::layers;
use crate::layout::{Names, W1_W3_W2};
use crate::spec::{MoeSpec, Router};
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};

pub(super) const FAMILY: Family = Family {
    model_types: &["dots3_note_vision_encoder"],
    prefixes: &[],
    moe_layers: |c| match layers::from_types(c, "mlp_layer_types", c.n_layers()) {
        Some(layers) => layers,
        None => (0..c.n_layers()).filter(|&i| n_experts(c, i) > 0).collect(),
    },
    extra_layers: &[],
    spec,
};

/// Experts of the layers of the released model; 0 for a dense MLP.
const PYRAMID: [u64; 42] = [
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40,
    44, 48, 52, 56, 60, 64, 64,
];

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    // Published with a tower before the decoder, and saved alone.
    let bases = ["vision_encoder.", "model.vision_encoder.", "model.vision_tower.", "vision_tower.", ""];
    let bases = bases.map(|b| format!("{b}blocks.{layer}."));
    let names = Names::exact(&bases.each_ref().map(String::as_str));
    let n_experts = n_experts(c, layer);
    let top_k = match per_layer(c, layer, "num_experts_per_tok") {
        Some(k) => k,
        None => c.size_or(&["num_experts_per_tok", "capacity_factor"], 2, MAX_EXPERTS).clamp(1, n_experts.max(1)),
    };
    let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
    let mut router = Router::new(names.tensor(&["mlp.gate_weight", "mlp.gate.weight"]), Score::Sigmoid);
    router.selection_bias = Some(names.vector(&["mlp.router_bias", "mlp.e_score_correction_bias"], n_experts));
    router.renorm = Some(RenormRule::Sum { eps: Real(1e-20) });
    router.scale = c.real_or(&["router_scaling_factor", "router_scale"], 1.0);
    let activation = c.gated_activation("hidden_act");
    let [gate, up, down] = W1_W3_W2.map(|w| w.replace('w', "fc"));
    let single = names.experts("mlp.experts", [&gate, &up, &down], n_experts, ffn, activation);
    MoeSpec::new(c.size(&["hidden_size", "embed_dim"], MAX_WIDTH), n_experts, top_k, router, single)
}

/// The number of experts of a layer; 0 where it has none.
fn n_experts(c: &Keys, layer: u32) -> u64 {
    if let Some(n) = per_layer(c, layer, "num_local_experts") {
        return n;
    }
    match c.text.get("pyramid_num_routed") {
        // Dense layers have -1.
        Some(list) => match list.list().map(|l| l.get(layer as usize).cloned()) {
            Ok(Some(v)) if v.real().is_ok_and(|n| n <= 0.0) => 0,
            Ok(Some(v)) => v.whole(0..=MAX_EXPERTS).unwrap_or_else(|d| {
                c.problem(d);
                0
            }),
            Ok(None) => {
                c.problem(list.out_of_range(&format!("a list with an entry for layer {layer}")));
                0
            }
            Err(d) => {
                c.problem(d);
                0
            }
        },
        None if c.text.get("mlp_layer_types").is_some() => c.size_or(&["num_local_experts"], 64, MAX_EXPERTS),
        None => PYRAMID.get(layer as usize).copied().unwrap_or(0),
    }
}

/// What `per_layer_config` says of one layer, whose number is a key.
fn per_layer(c: &Keys, layer: u32, key: &str) -> Option<u64> {
    let layers = c.text.get("per_layer_config")?;
    let entry = layers.object().and_then(|o| o.get(&layer.to_string()).map(|v| v.object()).transpose());
    let value = entry.and_then(|o| o.and_then(|o| o.get(key).map(|v| v.whole(1..=MAX_EXPERTS))).transpose());
    value.unwrap_or_else(|d| {
        c.problem(d);
        None
    })
}
