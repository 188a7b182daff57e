//! ERNIE 4.5: f32 softmax over an f32 router, a bias for the choice only, the sum of weights bounded from below.

use super::Family;
use super::in_memory::or_in_memory_below;
use crate::keys::{Keys, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names};
use crate::spec::{MoeSpec, Precision, Router};
use moec_ir::DType;
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};
use moec_ir::weights::WeightStep;

pub(super) const FAMILY: Family = Family {
    model_types: &["ernie4_5_moe"],
    prefixes: &[],
    moe_layers,
    extra_layers: &["num_nextn_predict_layers"],
    spec: |c, layer| ernie(c, layer, false),
};

/// The text experts of the multimodal model: its router is stored transposed, its values are lists (text, vision).
pub(super) const VL: Family = Family {
    model_types: &["ernie4_5_vl_moe", "ernie4_5_vl_moe_text", "ernie4_5_moe_vl"],
    prefixes: &["model.language_model.", "model."],
    moe_layers,
    extra_layers: &[],
    spec: |c, layer| ernie(c, layer, true),
};

/// Lists have one entry for text and one for vision; this is the text's.
const TEXT: u32 = 0;

fn moe_layers(c: &Keys) -> Vec<u32> {
    let n = c.n_layers();
    if let Some(layers) = layers::from_types(c, "mlp_layer_types", n) {
        return layers;
    }
    let start = c.size_at_or(&["moe_layer_start_index"], TEXT, 1, MAX_LAYERS) as u32;
    let interval = c.size_or(&["moe_layer_interval"], 1, MAX_LAYERS).max(1) as u32;
    // -1 stands for the last layer.
    let end = match c.text.get("moe_layer_end_index") {
        Some(v) if v.raw() == "-1" || v.is_list() => n,
        _ => c.size_or(&["moe_layer_end_index"], MAX_LAYERS, u64::from(u32::MAX)) as u32,
    };
    (start..n).filter(|i| (i + 1).is_multiple_of(interval) && *i <= end).collect()
}

fn ernie(c: &Keys, layer: u32, multimodal: bool) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size_at(&["moe_num_experts", "num_experts"], TEXT, MAX_EXPERTS);
    let ffn = c.size_at(&["moe_intermediate_size"], TEXT, MAX_WIDTH);
    let bias = ["mlp.moe_statics.e_score_correction_bias"];
    let flat = WeightStep::Reshape { shape: vec![n_experts] };
    let (gate, bias) = if multimodal {
        let text_row = WeightStep::Slice { axis: 0, start: 0, step: 1, len: 1, of: None };
        (names.transposed(&["mlp.gate.weight"]), names.steps(&bias, vec![text_row, flat]))
    } else {
        (names.tensor(&["mlp.gate.weight"]), names.steps(&bias, vec![flat]))
    };
    let mut router = Router::new(gate, Score::Softmax);
    router.weight_dtype = Some(DType::F32);
    router.selection_bias = c.flag_or("moe_use_aux_free", true).then_some(bias);
    router.renorm = Some(RenormRule::SumAtLeast { min: Real(c.real_or(&["moe_norm_min"], 1e-12)) });
    router.weights_round = Precision::Layer;
    let activation = c.gated_activation("hidden_act");
    let experts = names.experts("mlp.experts", GATE_UP_DOWN, n_experts, ffn, activation.clone());
    let top_k = c.size(&["moe_k", "num_experts_per_tok"], MAX_EXPERTS);
    let mut spec = MoeSpec::new(c.hidden(), n_experts, top_k, router, experts);
    let count = c.size_or(&["moe_num_shared_experts"], 0, 1024);
    let mut shared = names.mlp("mlp.shared_experts", GATE_UP_DOWN, count * ffn, activation);
    shared.biases = c.flag_or("use_bias", false).then(|| names.mlp_biases("mlp.shared_experts", GATE_UP_DOWN));
    spec.shared = (count > 0).then_some(shared);
    or_in_memory_below(c, layer, if multimodal { "mlp.text_moe" } else { "mlp" }, spec)
}
