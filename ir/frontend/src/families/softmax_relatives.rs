//! Families like Mixtral, OLMoE or Qwen with one difference each.

use super::Family;
use super::granite::either;
use super::in_memory::or_in_memory;
use super::qwen::{gated_shared, qwen};
use crate::keys::{Keys, MAX_EXPERTS, MAX_WIDTH, Missing};
use crate::layers;
use crate::layout::{GATE_UP_DOWN, Names, W1_W3_W2};
use crate::spec::{Experts, MoeSpec, Precision, Router};
use moec_ir::expr::Real;
use moec_ir::graph::{RenormRule, Score};
use moec_ir::weights::WeightStep;
use moec_ir::{Activation, DType};

const SUM: RenormRule = RenormRule::Sum { eps: Real(0.0) };

/// Qwen3-Next: Qwen2's shared expert, renormalised unless the config says otherwise.
pub(super) const QWEN3_NEXT: Family = Family {
    model_types: &["qwen3_next", "qwen4_exp_text", "qwen4_exp"],
    prefixes: &[],
    moe_layers: layers::by_sparse_step,
    extra_layers: &[],
    spec: |c, layer| {
        let mut spec = qwen(c, layer, c.flag_or("norm_topk_prob", true));
        spec.shared = gated_shared(c, layer);
        spec
    },
};

/// Qwen3.5 to 3.8: always renormalised, whatever the config says.
pub(super) const QWEN3_5: Family = Family {
    model_types: &["qwen3_5_moe", "qwen3_5_moe_text"],
    prefixes: &[],
    moe_layers: layers::by_sparse_step,
    extra_layers: &[],
    spec: |c, layer| {
        let mut spec = qwen(c, layer, true);
        spec.shared = gated_shared(c, layer);
        spec
    },
};

/// Qwen3-VL: always renormalised; published with stacked experts, transposed.
pub(super) const QWEN3_VL: Family = Family {
    model_types: &["qwen3_vl_moe", "qwen3_vl_moe_text"],
    prefixes: &[],
    moe_layers: layers::by_sparse_step,
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let mut spec = qwen(c, layer, true);
        let (gate_up, down) = (["mlp.experts.gate_up_proj"], ["mlp.experts.down_proj"]);
        let e = &spec.experts;
        let t = names.transposed_experts(&gate_up, &down, e.ffn, e.activation.clone());
        // Saved again by transformers 5, the same names hold the other orientation; the shapes tell which.
        spec.experts = Experts {
            gate: either(e.gate.clone(), t.gate),
            up: either(e.up.clone(), t.up),
            down: either(e.down.clone(), t.down),
            ..e.clone()
        };
        spec
    },
};

/// Qwen3-Omni, the thinker's decoder.
pub(super) const QWEN3_OMNI: Family = Family {
    model_types: &["qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_omni_moe_text"],
    prefixes: &["thinker.model.", "model.", "thinker.model.language_model.", "model.language_model."],
    moe_layers: layers::by_sparse_step,
    extra_layers: &[],
    spec: |c, layer| qwen(c, layer, c.flag_or("norm_topk_prob", true)),
};

/// Qwen3-Omni, the talker's decoder, every layer of which has experts: Qwen2's layer.
pub(super) const QWEN3_OMNI_TALKER: Family = Family {
    model_types: &["qwen3_omni_moe_talker", "qwen3_omni_moe_talker_text"],
    prefixes: &["talker.model.", "model.", ""],
    moe_layers: layers::all,
    extra_layers: &[],
    spec: |c, layer| {
        let mut spec = qwen(c, layer, c.flag_or("norm_topk_prob", false));
        spec.shared = gated_shared(c, layer);
        spec
    },
};

/// Lara-4-Mini: Qwen3-Next with f32 logits, and a shared expert without a gate.
pub(super) const LARA_MINI: Family = Family {
    model_types: &["lara_mini"],
    prefixes: &[],
    moe_layers: layers::all,
    extra_layers: &[],
    spec: |c, layer| {
        let mut spec = qwen(c, layer, c.flag_or("norm_topk_prob", true));
        spec.router.logits = Precision::F32;
        spec.shared = gated_shared(c, layer);
        if let Some(shared) = &mut spec.shared {
            shared.out_gate = None;
        }
        spec
    },
};

/// Mellum: Qwen3 that renormalises unless the config says otherwise.
pub(super) const MELLUM: Family = Family {
    model_types: &["mellum"],
    prefixes: &[],
    moe_layers: layers::by_sparse_step,
    extra_layers: &[],
    spec: |c, layer| qwen(c, layer, c.flag_or("norm_topk_prob", true)),
};

/// Flint: f32 sigmoid scores, an ungated shared expert.
pub(super) const FLINT: Family = Family {
    model_types: &["flint"],
    prefixes: &[],
    moe_layers: layers::by_sparse_step,
    extra_layers: &[],
    spec: |c, layer| {
        let mut spec = qwen(c, layer, c.flag_or("norm_topk_prob", true));
        spec.router.score = Score::Sigmoid;
        spec.router.logits = Precision::F32;
        spec.router.weights_round = Precision::F32;
        spec.shared = gated_shared(c, layer);
        if let Some(shared) = &mut spec.shared {
            shared.out_gate = None;
        }
        spec
    },
};

/// Jamba: OLMoE without renormalisation, under other names.
pub(super) const JAMBA: Family = Family {
    model_types: &["jamba"],
    prefixes: &[],
    moe_layers: |c| {
        let period = c.size_or(&["expert_layer_period"], 2, u64::from(u32::MAX)).max(1) as u32;
        let offset = c.size_or(&["expert_layer_offset"], 1, u64::from(u32::MAX)) as u32;
        (0..c.n_layers()).filter(|i| i % period == offset).collect()
    },
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let n_experts = c.size(&["num_experts", "num_local_experts"], MAX_EXPERTS);
        let ffn = c.size(&["intermediate_size"], MAX_WIDTH);
        let mut router = Router::new(names.tensor(&["feed_forward.router.weight"]), Score::Softmax);
        router.logits = Precision::Layer;
        router.weights_round = Precision::Layer;
        let activation = c.gated_activation("hidden_act");
        let experts = names.experts("feed_forward.experts", GATE_UP_DOWN, n_experts, ffn, activation);
        MoeSpec::new(c.hidden(), n_experts, c.size(&["num_experts_per_tok"], MAX_EXPERTS), router, experts)
    },
};

/// MiniMax-Text-01 and M1: Mixtral; what stands around the layer differs.
pub(super) const MINIMAX: Family = Family {
    model_types: &["minimax", "minimax_m1", "minimax_text_01"],
    prefixes: &[],
    moe_layers: layers::all,
    extra_layers: &[],
    spec: |c, layer| {
        if c.size_or(&["shared_intermediate_size"], 0, MAX_WIDTH) > 0 {
            let detail = "a shared expert that is blended with the routed ones by a learned coefficient";
            c.refuse(Missing::Structure, detail, Some("shared_intermediate_size"));
        }
        super::mixtral::spec(c, layer)
    },
};

/// DBRX: weights divided by their p-norm, experts in one tensor per matrix.
pub(super) const DBRX: Family =
    Family { model_types: &["dbrx"], prefixes: &[], moe_layers: layers::all, extra_layers: &[], spec: dbrx };

fn dbrx(c: &Keys, layer: u32) -> MoeSpec {
    let hidden = c.size(&["d_model", "hidden_size"], MAX_WIDTH);
    let names = Names::exact(&[&format!("transformer.blocks.{layer}.")]);
    let ffn_config = c.text.get("ffn_config").map(|v| v.object());
    let keys = match ffn_config {
        Some(Ok(object)) => Keys::new(object, c.model_type.clone(), c.dtype, c.prefixes.clone()),
        Some(Err(d)) => {
            c.problem(d);
            Keys::new(c.text.clone(), c.model_type.clone(), c.dtype, c.prefixes.clone())
        }
        None => {
            c.problem(c.text.missing(&["ffn_config"]));
            Keys::new(c.text.clone(), c.model_type.clone(), c.dtype, c.prefixes.clone())
        }
    };
    let n_experts = keys.size(&["moe_num_experts"], MAX_EXPERTS);
    let top_k = keys.size(&["moe_top_k"], MAX_EXPERTS);
    let ffn = keys.size(&["ffn_hidden_size"], MAX_WIDTH);
    let norm = match keys.text.get_or_null("moe_normalize_expert_weights") {
        Some(v) if v.is_null() => None,
        _ => Some(keys.real_or(&["moe_normalize_expert_weights"], 1.0)),
    };
    let activation = match keys.text.get("ffn_act_fn").map(|v| v.object()) {
        Some(Ok(act)) => {
            let act = Keys::new(act, c.model_type.clone(), c.dtype, Vec::new());
            let activation = act.gated_activation("name");
            c.adopt(act);
            activation
        }
        Some(Err(d)) => {
            c.problem(d);
            Activation::SwiGlu
        }
        None => Activation::SwiGlu,
    };
    c.adopt(keys);
    let mut router = Router::new(names.tensor(&["ffn.router.layer.weight"]), Score::Softmax);
    router.logits = Precision::Layer;
    router.renorm = norm.map(|p| RenormRule::PNorm { p: Real(p) });
    router.weights_round = Precision::Layer;
    // Every matrix is stored [E*F, H]; the way down is used from the other side.
    // A reshape takes any matrix with as many elements: that it has these rows is looked at first.
    let rows = WeightStep::Slice { axis: 0, start: 0, step: 1, len: n_experts * ffn, of: Some(n_experts * ffn) };
    let stack = || [rows.clone(), WeightStep::Reshape { shape: vec![n_experts, ffn, hidden] }];
    // AutoAWQ and GPTQModel make a Linear of each, with the usual orientation.
    let linear = |name: &str| names.per_expert(&[&format!("ffn.experts.mlp.{{e}}.{name}.weight")], n_experts);
    let experts = Experts {
        ffn,
        activation,
        gate: either(names.steps(&["ffn.experts.mlp.w1"], stack().to_vec()), linear("w1")),
        up: either(names.steps(&["ffn.experts.mlp.v1"], stack().to_vec()), linear("v1")),
        down: either(
            names.steps(&["ffn.experts.mlp.w2"], [&stack()[..], &[WeightStep::Transpose]].concat()),
            linear("w2"),
        ),
        biases: None,
        out_norm: None,
    };
    MoeSpec::new(hidden, n_experts, top_k, router, experts)
}

/// Hunyuan-A13B: an f32 router, lists with one entry for each layer, an ungated shared MLP.
pub(super) const HUNYUAN: Family = Family {
    model_types: &["hunyuan_v1_moe", "hunyuan"],
    prefixes: &[],
    moe_layers: |c| layers::from_number(c, "moe_layer_num_skipped", 0),
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let n_experts = c.size_at(&["num_experts"], layer, MAX_EXPERTS);
        let ffn = match c.size_at_or(&["moe_intermediate_size"], layer, 0, MAX_WIDTH) {
            0 => c.size(&["intermediate_size"], MAX_WIDTH),
            ffn => ffn,
        };
        let mut router = Router::new(names.tensor(&["mlp.gate.wg.weight"]), Score::Softmax);
        router.weight_dtype = Some(DType::F32);
        router.renorm = Some(SUM);
        let activation = c.gated_activation("hidden_act");
        let experts = names.experts("mlp.experts", GATE_UP_DOWN, n_experts, ffn, activation.clone());
        let top_k = c.size_at(&["moe_topk", "num_experts_per_tok"], layer, MAX_EXPERTS);
        let mut spec = MoeSpec::new(c.hidden(), n_experts, top_k, router, experts);
        let count = c.size_at_or(&["num_shared_expert", "num_shared_experts"], layer, 1, 1024);
        if c.flag_or("use_mixed_mlp_moe", true) && count > 0 {
            spec.shared = Some(names.mlp("mlp.shared_mlp", GATE_UP_DOWN, count * ffn, activation));
        }
        spec
    },
};

/// LFM2-MoE: sigmoid scores rounded to the model's type, a bias for the choice only.
pub(super) const LFM2: Family = Family {
    model_types: &["lfm2_moe"],
    prefixes: &[],
    moe_layers: |c| layers::from_number(c, "num_dense_layers", 2),
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let n_experts = c.size(&["num_experts"], MAX_EXPERTS);
        let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
        let mut router = Router::new(names.tensor(&["feed_forward.gate.weight"]), Score::Sigmoid);
        router.logits = Precision::Layer;
        router.score_round = Precision::Layer;
        let bias = names.vector(&["feed_forward.expert_bias"], n_experts);
        router.selection_bias = c.flag_or("use_expert_bias", true).then_some(bias);
        router.renorm = c.flag_or("norm_topk_prob", true).then_some(RenormRule::Sum { eps: Real(1e-6) });
        router.scale = c.real_or(&["routed_scaling_factor"], 1.0);
        router.weights_round = Precision::Layer;
        let experts = names.experts("feed_forward.experts", W1_W3_W2, n_experts, ffn, Activation::SwiGlu);
        MoeSpec::new(c.hidden(), n_experts, c.size(&["num_experts_per_tok"], MAX_EXPERTS), router, experts)
    },
};

/// Cohere2-MoE: top-k on the logits, then softmax or sigmoid of the chosen; the mean of routed and shared experts.
pub(super) const COHERE2: Family = Family {
    model_types: &["cohere2_moe"],
    prefixes: &[],
    moe_layers: |c| layers::from_number(c, "first_k_dense_replace", 0),
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let n_experts = c.size(&["num_experts", "num_local_experts"], MAX_EXPERTS);
        let ffn = c.size(&["intermediate_size"], MAX_WIDTH);
        let mut router = Router::new(names.tensor(&["mlp.gate.weight"]), Score::Softmax);
        router.logits = Precision::Layer;
        router.choose_first = true;
        router.weights_round = Precision::Layer;
        if c.one_of("expert_selection_fn", &["softmax", "sigmoid"]) == "sigmoid" {
            router.score = Score::Sigmoid;
            router.score_round = Precision::Layer;
            router.renorm = c.flag_or("norm_topk_prob", true).then_some(SUM);
        }
        let activation = c.gated_activation("hidden_act");
        let experts = names.experts("mlp.experts", GATE_UP_DOWN, n_experts, ffn, activation.clone());
        let top_k = c.size(&["num_experts_per_tok"], MAX_EXPERTS);
        let mut spec = MoeSpec::new(c.hidden(), n_experts, top_k, router, experts);
        let count = c.size_or(&["num_shared_experts"], 0, 1024);
        if count > 0 {
            spec.shared = Some(names.mlp("mlp.shared_experts", GATE_UP_DOWN, count * ffn, activation));
            if c.one_of("shared_expert_combination_strategy", &["average", "sum"]) == "average" {
                spec.sum_scale = 0.5;
            }
        }
        spec
    },
};

/// Kolibri-1: the bias for the choice is added to the logits; weights are sigmoids of the chosen logits.
pub(super) const KOLIBRI: Family = Family {
    model_types: &["kolibri1"],
    prefixes: &[],
    moe_layers: |c| layers::from_number(c, "first_k_dense_replace", 0),
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let n_experts = c.size(&["num_local_experts", "num_experts"], MAX_EXPERTS);
        let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
        let mut router = Router::new(names.tensor(&["mlp.gate.weight"]), Score::Sigmoid);
        router.choose_first = true;
        router.selection_bias = Some(names.vector(&["moe.router.expert_bias"], n_experts));
        router.renorm = c.flag_or("norm_topk_prob", false).then_some(SUM);
        let activation = c.gated_activation("hidden_act");
        let experts = names.experts("mlp.experts", GATE_UP_DOWN, n_experts, ffn, activation.clone());
        let top_k = c.size(&["num_experts_per_tok"], MAX_EXPERTS);
        let mut spec = MoeSpec::new(c.hidden(), n_experts, top_k, router, experts);
        let width = c.size_or(&["shared_expert_intermediate_size"], 0, MAX_WIDTH);
        spec.shared = (width > 0).then(|| names.mlp("mlp.shared_experts", GATE_UP_DOWN, width, activation));
        or_in_memory(c, layer, spec)
    },
};

/// Inkling-2: sigmoid scores, soft-capped SwiGLU, gate and up in interleaved rows. The looped model runs some of its layers
/// several times, with the same weights.
pub(super) const INKLING2: Family = Family {
    model_types: &["inkling2", "inkling2_text", "inkling2_loop", "inkling2_loop_text"],
    prefixes: &["model.llm.", "model.language_model.", "model."],
    moe_layers: |c| layers::from_types(c, "mlp_layer_types", c.n_layers()).unwrap_or_else(|| layers::all(c)),
    extra_layers: &[],
    spec: |c, layer| {
        let names = Names::layer(c, layer);
        let n_experts = c.size(&["n_routed_experts", "num_local_experts"], MAX_EXPERTS);
        let ffn = c.size(&["moe_intermediate_size"], MAX_WIDTH);
        let score = match c.one_of("scoring_func", &["sigmoid", "sqrtsoftplus", "softmax"]) {
            "sqrtsoftplus" => Score::SqrtSoftplus,
            "softmax" => Score::Softmax,
            _ => Score::Sigmoid,
        };
        let mut router = Router::new(names.tensor(&["mlp.gate.weight"]), score);
        router.selection_bias = Some(names.vector(&["mlp.gate.bias"], n_experts));
        router.renorm = Some(RenormRule::Sum { eps: Real(1e-20) });
        router.scale = c.real_or(&["route_scale"], 1.0);
        let rows = |start| {
            let every_other = WeightStep::Slice { axis: 1, start, step: 2, len: ffn, of: Some(2 * ffn) };
            names.steps(&["mlp.experts.w13_weight"], vec![every_other])
        };
        let experts = Experts {
            ffn,
            activation: Activation::SiTu {
                beta: Real(c.real_or(&["mlp_gate_softcap"], 4.0)),
                linear_beta: Real(c.real_or(&["mlp_up_softcap"], 25.0)),
            },
            gate: rows(0),
            up: rows(1),
            down: names.tensor(&["mlp.experts.w2_weight"]),
            biases: None,
            out_norm: None,
        };
        let top_k = c.size(&["num_experts_per_tok"], MAX_EXPERTS);
        or_in_memory(c, layer, MoeSpec::new(c.hidden(), n_experts, top_k, router, experts))
    },
};
