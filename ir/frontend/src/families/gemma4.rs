//! Gemma 4: routed and dense branches side by side, each between its own norms; the layer's input is the residual stream.

use super::Family;
use crate::keys::{Keys, MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names};
use crate::spec::{InputNorm, MoeSpec, Norm, Precision, Router};
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};

pub(super) const FAMILY: Family = Family {
    model_types: &["gemma4", "gemma4_text"],
    prefixes: &[],
    moe_layers: |c| if c.flag_or("enable_moe_block", false) { layers::all(c) } else { Vec::new() },
    extra_layers: &[],
    spec,
};

/// DiffusionGemma: encoder and decoder share the weights of their layers, all of which have experts.
pub(super) const DIFFUSION: Family = Family {
    model_types: &["diffusion_gemma", "diffusion_gemma_text"],
    prefixes: &["model.decoder.", "model.encoder.language_model.", "model."],
    moe_layers: layers::all,
    extra_layers: &[],
    spec,
};

fn spec(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let hidden = c.hidden();
    let n_experts = c.size(&["num_experts"], MAX_EXPERTS);
    let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
    // The last layers read keys and values of earlier ones; some models spend what that saves on a wider dense branch.
    let n_reusing = c.size_or(&["num_kv_shared_layers"], 0, MAX_LAYERS) as u32;
    let reuses = n_reusing > 0 && layer >= c.n_layers().saturating_sub(n_reusing);
    let width = c.size(&["intermediate_size"], MAX_WIDTH)
        * if reuses && c.flag_or("use_double_wide_mlp", false) { 2 } else { 1 };
    let eps = c.real_or(&["rms_norm_eps"], 1e-6);
    let key = if c.text.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    let activation = match c.text.get(key) {
        Some(_) => c.gated_activation(key),
        None => moec_ir::Activation::GeGluTanh,
    };
    let mut router = Router::new(names.tensor(&["router.proj.weight"]), Score::Softmax);
    router.logits = Precision::Layer;
    router.renorm = Some(RenormRule::Sum { eps: Real(0.0) });
    router.expert_scale = Some(names.tensor(&["router.per_expert_scale"]));
    router.input_norm =
        Some(InputNorm { eps, scale: names.tensor(&["router.scale"]), factor: (1.0 / (hidden as f64).sqrt()) as f32 });
    let stacked = (["experts.gate_up_proj", "moe.gate_up_proj"], ["experts.down_proj", "moe.down_proj"]);
    let experts = names.stacked_experts(&stacked.0, &stacked.1, ffn, activation.clone());
    let mut spec = MoeSpec::new(hidden, n_experts, c.size(&["top_k_experts"], MAX_EXPERTS), router, experts);
    let norm = |name: &str| Some(Norm::new(eps, names.tensor(&[&format!("{name}.weight")])));
    spec.experts_norm = norm("pre_feedforward_layernorm_2");
    spec.routed_norm = norm("post_feedforward_layernorm_2");
    let mut dense = names.mlp("mlp", GATE_UP_DOWN, width, activation);
    dense.in_norm = norm("pre_feedforward_layernorm");
    dense.out_norm = norm("post_feedforward_layernorm_1");
    spec.shared = Some(dense);
    spec
}
