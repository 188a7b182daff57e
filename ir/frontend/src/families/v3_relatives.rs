//! Relatives of DeepSeek-V3 with other names on disk or one difference each.

use super::deepseek_v3::{PARTS, Parts, groups, v3, v3_with};
use super::in_memory::or_in_memory;
use super::{Family, TOP_K};
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH, Missing};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names, Part, W1_W3_W2};
use crate::spec::{After, Latent, MoeSpec, Norm, NormForm, Precision, Router};
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, RowMask, Score};
use moec_ir::weights::WeightSource;
use moec_ir::{Activation, DType};

/// A.X-K1: an RMS norm on routed plus shared experts, inside the block.
pub(super) const AXK1: Family = Family {
    model_types: &["axk1"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &["num_nextn_predict_layers"],
    spec: |c, layer| {
        let mut spec = v3(c, layer, &PARTS);
        let weight = Names::layer(c, layer).tensor(&["post_mlp_layernorm.weight", "mlp.post_mlp_layernorm.weight"]);
        spec.after = After::Norm(Norm::new(c.real_or(&["rms_norm_eps"], 1e-6), weight));
        spec
    },
};

/// A.X-K2: experts outside the chosen groups count 0 instead of -inf.
pub(super) const AXK2: Family = Family {
    model_types: &["axk2"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &["num_nextn_predict_layers"],
    spec: |c, layer| {
        let mut spec = v3(c, layer, &PARTS);
        spec.router.groups = groups(c, RowMask::Zero);
        spec
    },
};

/// Ling and Ring with linear attention.
pub(super) const BAILING_HYBRID: Family = Family {
    model_types: &["bailing_hybrid"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &[],
    spec: |c, layer| or_in_memory(c, layer, v3(c, layer, &Parts { bias: "mlp.gate.expert_bias", ..PARTS })),
};

/// Sarvam 30B: GLM-4.5 under Ling's name for the bias.
pub(super) const SARVAM_MOE: Family = Family {
    model_types: &["sarvam_moe"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 1),
    extra_layers: &["num_nextn_predict_layers"],
    spec: |c, layer| or_in_memory(c, layer, v3(c, layer, &Parts { bias: "mlp.gate.expert_bias", ..PARTS })),
};

/// K-EXAONE.
pub(super) const EXAONE: Family = Family {
    model_types: &["exaone_moe"],
    prefixes: &[],
    moe_layers: |c| match c.text.get("is_moe_layer") {
        Some(list) if list.is_list() => layers::from_mask(c, list, c.n_layers()),
        _ => layers::after_first_dense(c, 1),
    },
    extra_layers: &["num_nextn_predict_layers"],
    spec: |c, layer| or_in_memory(c, layer, v3(c, layer, &Parts { bias: "mlp.e_score_correction_bias", ..PARTS })),
};

/// Hunyuan Hy3.
pub(super) const HY_V3: Family = Family {
    model_types: &["hy_v3"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 1),
    extra_layers: &["num_nextn_predict_layers"],
    spec: |c, layer| {
        let parts =
            Parts { gate: "mlp.router.gate.weight", bias: "mlp.expert_bias", shared: "mlp.shared_mlp", ..PARTS };
        let mut spec = v3(c, layer, &parts);
        always_renormalised(&mut spec, 1e-20);
        spec.router.scale = c.real_or(&["router_scaling_factor"], 1.0);
        if let Some(shared) = &mut spec.shared {
            let biases = || Names::layer(c, layer).mlp_biases(parts.shared, GATE_UP_DOWN);
            shared.biases = c.flag_or("mlp_bias", false).then(biases);
        }
        or_in_memory(c, layer, spec)
    },
};

/// Hunyuan Hy4: experts that clamp before their activation, stacked on disk.
pub(super) const HY_V4: Family = Family {
    model_types: &["hy_v4", "hy_v4_vl", "hy_v4_vl_text"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &["num_nextn_predict_layers"],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let mut spec = v3(c, layer, &PARTS);
        spec.experts.activation = clamped_before(c);
        if let Some(shared) = &mut spec.shared {
            shared.gate =
                names.tensor(&["mlp.shared_experts.linear_gate.weight", "mlp.shared_experts.gate_proj.weight"]);
        }
        spec
    },
};

/// GLM-5-Next: routed and shared experts clamp before their activation.
pub(super) const GLM5_NEXT: Family = Family {
    model_types: &["glm5_next", "glm5_next_text"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &["num_nextn_predict_layers"],
    spec: |c, layer| {
        let mut spec = v3(c, layer, &PARTS);
        spec.experts.activation = clamped_before(c);
        if let Some(shared) = &mut spec.shared {
            shared.activation = clamped_before(c);
        }
        spec
    },
};

/// Dots-3: the shared expert has a width of its own.
pub(super) const DOTS3: Family = Family {
    model_types: &["dots3_note", "dots3_note_text"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &["num_nextn_predict_layers"],
    spec: |c, layer| {
        let mut spec = v3(c, layer, &PARTS);
        if let Some(shared) = &mut spec.shared {
            let (count, one) = (c.size_or(super::SHARED, 1, 1024), spec.experts.ffn);
            shared.ffn = (c.size_or(&["shared_experts_intermediate_size"], one, MAX_WIDTH) * count).max(1);
        }
        spec
    },
};

/// AFMoE (Trinity): logits in the model's type, a scale of its own.
pub(super) const AFMOE: Family = Family {
    model_types: &["afmoe"],
    prefixes: &[],
    moe_layers: |c| layers::from_number(c, "num_dense_layers", 1),
    extra_layers: &[],
    spec: |c, layer| {
        let mut spec = v3(c, layer, &Parts { gate: "mlp.router.gate.weight", bias: "mlp.expert_bias", ..PARTS });
        spec.router.logits = Precision::Layer;
        always_renormalised(&mut spec, 1e-20);
        spec.router.scale = c.real_or(&["route_scale"], 1.0);
        spec
    },
};

/// Beam: the scale is on the sum of experts.
pub(super) const BEAM: Family = Family {
    model_types: &["beam"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &[],
    spec: |c, layer| {
        let mut spec = v3(c, layer, &PARTS);
        spec.routed_scale = std::mem::replace(&mut spec.router.scale, 1.0);
        spec.shared = None;
        spec
    },
};

/// Kimi-Linear, and Kimi K3 with experts in a latent space.
pub(super) const KIMI_LINEAR: Family = Family {
    model_types: &["kimi_linear", "kimi_k3"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &["num_nextn_predict_layers"],
    spec: kimi_linear,
};

fn kimi_linear(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    c.one_of("moe_router_activation_func", &["sigmoid"]);
    let parts = Parts {
        gate: "block_sparse_moe.gate.weight",
        bias: "block_sparse_moe.gate.e_score_correction_bias",
        experts: ("block_sparse_moe.experts", W1_W3_W2),
        shared: "block_sparse_moe.shared_experts",
        ..PARTS
    };
    let activation = match c.word_or("hidden_act", "silu").as_str() {
        "situ" => Activation::SiTu {
            beta: Real(c.real_or(&["activation_situ_beta"], 4.0)),
            linear_beta: Real(c.real_or(&["activation_situ_linear_beta"], 25.0)),
        },
        _ => c.gated_activation("hidden_act"),
    };
    let mut spec = v3_with(c, layer, &parts, activation);
    let latent = c.size_or(&["routed_expert_hidden_size"], 0, MAX_WIDTH);
    if latent > 0 {
        let norm = names.tensor(&["block_sparse_moe.routed_expert_norm.weight"]);
        let eps = c.real_or(&["rms_norm_eps"], 1e-5);
        spec.latent = Some(Latent {
            width: latent,
            down: names.tensor(&["block_sparse_moe.routed_expert_down_proj.weight"]),
            up: names.tensor(&["block_sparse_moe.routed_expert_up_proj.weight"]),
            biases: None,
            in_norm: None,
            norm: c.flag_or("latent_moe_use_norm", true).then_some(Norm::new(eps, norm)),
        });
    }
    or_in_memory(c, layer, spec)
}

/// MiniMax-M3: the activation of gpt-oss over halves, a scale on the sum of experts.
pub(super) const MINIMAX_M3: Family = Family {
    model_types: &["minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &["num_nextn_predict_layers"],
    spec: minimax_m3,
};

fn minimax_m3(c: &Keys, layer: u32) -> MoeSpec {
    let names = Names::layer(c, layer);
    let n_experts = c.size(&["num_local_experts", "num_experts"], MAX_EXPERTS);
    let ffn = c.size(&["intermediate_size"], MAX_WIDTH);
    let activation = Activation::SwiGluOai {
        alpha: Real(c.real_or(&["swiglu_alpha"], 1.702)),
        limit: Real(c.real_or(&["swiglu_limit"], 7.0)),
    };
    c.one_of("scoring_func", &["sigmoid"]);
    let gate = names.tensor(&["mlp.gate.weight", "block_sparse_moe.gate.weight"]);
    let mut router = Router::new(gate, Score::Sigmoid);
    router.weight_dtype = Some(DType::F32);
    let bias =
        names.vector(&["mlp.gate.e_score_correction_bias", "block_sparse_moe.e_score_correction_bias"], n_experts);
    router.selection_bias = c.flag_or("use_routing_bias", true).then_some(bias);
    router.renorm = Some(RenormRule::Sum { eps: Real(0.0) });
    let mut experts = names.experts("block_sparse_moe.experts", W1_W3_W2, n_experts, ffn, activation.clone());
    let stacked =
        names.stacked_experts(&["mlp.experts.gate_up_proj"], &["mlp.experts.down_proj"], ffn, activation.clone());
    experts.gate = first(experts.gate, stacked.gate);
    experts.up = first(experts.up, stacked.up);
    experts.down = first(experts.down, stacked.down);
    let mut spec = MoeSpec::new(c.hidden(), n_experts, c.size(TOP_K, MAX_EXPERTS), router, experts);
    spec.routed_scale = c.real_or(&["routed_scaling_factor"], 1.0);
    let width = c.size_or(&["shared_intermediate_size"], 0, MAX_WIDTH);
    if width > 0 {
        let fused = ["mlp.shared_experts.gate_up_proj.weight", "block_sparse_moe.shared_experts.gate_up_proj.weight"];
        let mut shared = names.mlp("block_sparse_moe.shared_experts", GATE_UP_DOWN, width, activation);
        shared.gate = first(names.dense_half(&fused, Part::Gate, width), shared.gate);
        shared.up = first(names.dense_half(&fused, Part::Up, width), shared.up);
        shared.down = first(names.tensor(&["mlp.shared_experts.down_proj.weight"]), shared.down);
        spec.shared = Some(shared);
    }
    spec
}

fn first(a: WeightSource, b: WeightSource) -> WeightSource {
    WeightSource::FirstOf(vec![a, b])
}

/// Laguna: logits in the model's type, weights rounded, a scale on the sum of experts.
pub(super) const LAGUNA: Family = Family {
    model_types: &["laguna"],
    prefixes: &[],
    moe_layers: |c| layers::after_first_dense(c, 1),
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let mut spec = v3(c, layer, &Parts { bias: "mlp.experts.e_score_correction_bias", ..PARTS });
        spec.router.soft_cap = Some(c.real_or(&["moe_router_logit_softcapping"], 0.0)).filter(|cap| *cap > 0.0);
        if c.flag_or("moe_apply_router_weight_on_input", false) {
            let detail = "the weights multiply the experts' inputs";
            c.refuse(Missing::ScaledInputs, detail, Some("moe_apply_router_weight_on_input"));
        }
        spec.router.logits = Precision::Layer;
        spec.router.weights_round = Precision::Layer;
        spec.router.scale = 1.0;
        always_renormalised(&mut spec, 0.0);
        spec.routed_scale = c.real_or(&["moe_routed_scaling_factor"], 1.0);
        let width = c.size_or(&["shared_expert_intermediate_size"], 0, MAX_WIDTH);
        let activation = c.gated_activation("hidden_act");
        spec.shared = (width > 0).then(|| names.mlp("mlp.shared_expert", GATE_UP_DOWN, width, activation));
        or_in_memory(c, layer, spec)
    },
};

/// Step-3.5 and 3.7: stacked experts that clamp after their activation in some layers, a scale on the sum.
pub(super) const STEP3P5: Family = Family {
    model_types: &["step3p5", "step3p7", "step3p7_text"],
    prefixes: &[],
    moe_layers: |c| super::step3::moe_layers(c, 3),
    extra_layers: &["num_nextn_predict_layers"],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let mut spec = v3(c, layer, &Parts { gate: "moe.gate.weight", bias: "moe.router_bias", ..PARTS });
        if !c.flag_or("use_moe_router_bias", true) {
            spec.router.selection_bias = None;
        }
        always_renormalised(&mut spec, 0.0);
        spec.router.scale = 1.0;
        spec.routed_scale = c.real_or(&["moe_router_scaling_factor", "routed_scaling_factor"], 1.0);
        super::step3::stacked(&mut spec, &names);
        // A limit of 0 or null means none.
        let clamp = |key: &str| match c.real_at_or(&[key], layer, 0.0) {
            limit if limit > 0.0 => Activation::SwiGluClampAfter { limit: Real(limit) },
            _ => Activation::SwiGlu,
        };
        spec.experts.activation = clamp("swiglu_limits");
        let width = c.size_or(&["share_expert_dim"], 0, MAX_WIDTH);
        let mut shared = names.mlp("share_expert", GATE_UP_DOWN, width, clamp("swiglu_limits_shared"));
        shared.biases = c.flag_or("mlp_bias", false).then(|| names.mlp_biases("share_expert", GATE_UP_DOWN));
        spec.shared = (width > 0).then_some(shared);
        or_in_memory(c, layer, spec)
    },
};

/// Muse-Spark: experts in a narrower space with norms around them.
pub(super) const MUSE_SPARK: Family = Family {
    model_types: &["muse_spark", "muse_spark_text"],
    prefixes: &["model.language_model.", "language_model.model.", "model."],
    moe_layers: |c| layers::after_first_dense(c, 0),
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let mut spec = v3(c, layer, &PARTS);
        spec.router.logit_scale = c.real_or(&["output_multiplier"], 0.176_776_7);
        always_renormalised(&mut spec, 1e-15);
        let width = c.size(&["moe_hidden_size"], MAX_WIDTH);
        let in_norm = names.tensor(&["mlp.pre_expert_norm.weight"]);
        let eps = c.real_or(&["rms_norm_eps"], 1e-5);
        spec.latent = Some(Latent {
            width,
            down: names.tensor(&["mlp.pre_expert_proj.weight"]),
            up: names.tensor(&["mlp.post_expert_proj.weight"]),
            biases: None,
            in_norm: Some(Norm { form: NormForm::Centered, ..Norm::new(eps, in_norm) }),
            norm: None,
        });
        let out_norm = Norm::new(
            c.real_or(&["post_norm_eps"], 1e-8),
            names.tensor(&["mlp.experts.post_expert_norm.weight", "mlp.post_expert_norm.weight"]),
        );
        spec.experts.out_norm = Some(Norm { form: NormForm::ScaledInput, ..out_norm });
        spec.shared = None;
        spec
    },
};

fn always_renormalised(spec: &mut MoeSpec, eps: f32) {
    spec.router.renorm = Some(RenormRule::Sum { eps: Real(eps) });
}

/// SwiGLU whose arguments are clamped at `swiglu_limit`, when there is a limit.
pub(super) fn clamped_before(c: &Keys) -> Activation {
    match c.real_or(&["swiglu_limit"], 0.0) {
        limit if limit > 0.0 && c.gated_activation("hidden_act") != Activation::SwiGlu => {
            c.refuse(Missing::Activation, "clamped arguments with another activation than silu", Some("hidden_act"));
            Activation::SwiGlu
        }
        limit if limit > 0.0 => Activation::SwiGluClampBefore { limit: Real(limit) },
        _ => c.gated_activation("hidden_act"),
    }
}
