//! What the config classes of transformers 5.24.0 assume where a config leaves a key out.
//!
//! Written by `tests/conformance/class_defaults.py`. Keys without a value of their own (null) are not listed.

/// A default value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole number, not negative.
    Whole(u64),
    /// A number.
    Real(f32),
    /// A switch.
    Flag(bool),
    /// A word.
    Word(&'static str),
}
use Value::{Flag, Real, Whole, Word};

/// The default of `key` for a model type.
pub fn default_of(model_type: &str, key: &str) -> Option<Value> {
    let i = DEFAULTS.binary_search_by_key(&model_type, |d| d.0).ok()?;
    let keys = DEFAULTS[i].1;
    keys.binary_search_by_key(&key, |d| d.0).ok().map(|k| keys[k].1)
}

/// The other names of `key` in configs of a model type, of which transformers takes each for the other.
pub fn other_names(model_type: &str, key: &str) -> impl Iterator<Item = &'static str> {
    let i = OTHER_NAMES.binary_search_by_key(&model_type, |d| d.0).ok();
    let pairs = i.map_or(&[][..], |i| OTHER_NAMES[i].1);
    let other = move |a: &str, b: &'static str| (a == key).then_some(b);
    pairs.iter().filter_map(move |&(a, b)| other(a, b).or_else(|| other(b, a)))
}

/// Model types, sorted, each with its keys, sorted.
const DEFAULTS: &[(&str, &[(&str, Value)])] = &[
    (
        "afmoe",
        &[
            ("hidden_act", Word("silu")),
            ("num_dense_layers", Whole(1)),
            ("num_shared_experts", Whole(2)),
            ("rms_norm_eps", Real(1e-05)),
            ("route_scale", Real(1.0)),
        ],
    ),
    ("aria_text", &[("hidden_act", Word("silu")), ("moe_num_shared_experts", Whole(2)), ("rms_norm_eps", Real(1e-06))]),
    (
        "axk1",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(8)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(2.5)),
            ("topk_group", Whole(4)),
        ],
    ),
    (
        "axk2",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(2.5)),
        ],
    ),
    (
        "bailing_hybrid",
        &[
            ("first_k_dense_replace", Whole(2)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(8)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(2.5)),
            ("topk_group", Whole(4)),
        ],
    ),
    (
        "beam",
        &[
            ("first_k_dense_replace", Whole(3)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(8)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(2.5)),
            ("topk_group", Whole(4)),
        ],
    ),
    (
        "cohere2_moe",
        &[
            ("expert_selection_fn", Word("softmax")),
            ("hidden_act", Word("silu")),
            ("norm_topk_prob", Flag(true)),
            ("num_shared_experts", Whole(0)),
            ("shared_expert_combination_strategy", Word("average")),
        ],
    ),
    ("dbrx", &[]),
    (
        "deepseek_ocr2",
        &[
            ("hidden_act", Word("silu")),
            ("n_shared_experts", Whole(2)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_method", Word("greedy")),
        ],
    ),
    (
        "deepseek_ocr2_text",
        &[
            ("hidden_act", Word("silu")),
            ("n_shared_experts", Whole(2)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_method", Word("greedy")),
        ],
    ),
    (
        "deepseek_v2",
        &[
            ("first_k_dense_replace", Whole(0)),
            ("hidden_act", Word("silu")),
            ("n_shared_experts", Whole(2)),
            ("norm_topk_prob", Flag(false)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_method", Word("greedy")),
        ],
    ),
    (
        "deepseek_v3",
        &[
            ("first_k_dense_replace", Whole(3)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(8)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(2.5)),
            ("topk_group", Whole(4)),
        ],
    ),
    (
        "deepseek_v32",
        &[
            ("first_k_dense_replace", Whole(3)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(8)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(2.5)),
            ("topk_group", Whole(4)),
        ],
    ),
    (
        "deepseek_v4",
        &[
            ("hidden_act", Word("silu")),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(1.5)),
            ("router_jitter_noise", Real(0.0)),
            ("scoring_func", Word("sqrtsoftplus")),
            ("swiglu_limit", Real(10.0)),
        ],
    ),
    ("diffusion_gemma", &[("hidden_activation", Word("gelu_pytorch_tanh")), ("rms_norm_eps", Real(1e-06))]),
    ("diffusion_gemma_text", &[("hidden_activation", Word("gelu_pytorch_tanh")), ("rms_norm_eps", Real(1e-06))]),
    ("doge", &[("hidden_act", Word("silu")), ("norm_topk_prob", Flag(false)), ("rms_norm_eps", Real(1e-06))]),
    (
        "dots1",
        &[
            ("first_k_dense_replace", Whole(0)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("norm_topk_prob", Flag(false)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "dots3_note_text",
        &[
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(1.0)),
            ("shared_experts_intermediate_size", Whole(1536)),
            ("topk_group", Whole(1)),
        ],
    ),
    ("dots3_note_vision_encoder", &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-05))]),
    (
        "ernie4_5_moe",
        &[
            ("hidden_act", Word("silu")),
            ("moe_layer_interval", Whole(1)),
            ("moe_layer_start_index", Whole(1)),
            ("moe_norm_min", Real(1e-12)),
            ("moe_num_shared_experts", Whole(2)),
            ("rms_norm_eps", Real(1e-05)),
        ],
    ),
    (
        "ernie4_5_vl_moe",
        &[
            ("hidden_act", Word("silu")),
            ("moe_norm_min", Real(1e-12)),
            ("moe_num_shared_experts", Whole(2)),
            ("rms_norm_eps", Real(1e-05)),
        ],
    ),
    (
        "ernie4_5_vl_moe_text",
        &[
            ("hidden_act", Word("silu")),
            ("moe_norm_min", Real(1e-12)),
            ("moe_num_shared_experts", Whole(2)),
            ("rms_norm_eps", Real(1e-05)),
        ],
    ),
    (
        "exaone_moe",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("num_shared_experts", Whole(1)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(2.5)),
            ("topk_group", Whole(1)),
        ],
    ),
    ("flex_olmo", &[("hidden_act", Word("silu")), ("norm_topk_prob", Flag(false)), ("rms_norm_eps", Real(1e-06))]),
    (
        "flint",
        &[
            ("decoder_sparse_step", Whole(1)),
            ("hidden_act", Word("silu")),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("shared_expert_intermediate_size", Whole(1024)),
        ],
    ),
    ("gemma4", &[("hidden_activation", Word("gelu_pytorch_tanh")), ("rms_norm_eps", Real(1e-06))]),
    ("gemma4_text", &[("hidden_activation", Word("gelu_pytorch_tanh")), ("rms_norm_eps", Real(1e-06))]),
    (
        "glm4_moe",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "glm4_moe_lite",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(1.8)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "glm4v_moe",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "glm4v_moe_text",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "glm5_next",
        &[
            ("first_k_dense_replace", Whole(3)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(2.5)),
            ("swiglu_limit", Real(10.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "glm5_next_text",
        &[
            ("first_k_dense_replace", Whole(3)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(2.5)),
            ("swiglu_limit", Real(10.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "glm_moe_dsa",
        &[
            ("first_k_dense_replace", Whole(3)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(2.5)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "gpt_oss",
        &[
            ("hidden_act", Word("silu")),
            ("rms_norm_eps", Real(1e-05)),
            ("swiglu_alpha", Real(1.702)),
            ("swiglu_limit", Real(7.0)),
        ],
    ),
    ("granitemoe", &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-06))]),
    (
        "granitemoe_swa",
        &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-06)), ("shared_intermediate_size", Whole(0))],
    ),
    (
        "granitemoehybrid",
        &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-06)), ("shared_intermediate_size", Whole(1024))],
    ),
    (
        "granitemoeshared",
        &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-06)), ("shared_intermediate_size", Whole(0))],
    ),
    ("hunyuan_v1_moe", &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-05))]),
    (
        "hy_v3",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("num_shared_experts", Whole(1)),
            ("rms_norm_eps", Real(1e-05)),
            ("router_scaling_factor", Real(2.826)),
        ],
    ),
    (
        "hy_v4",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(2.827)),
            ("swiglu_limit", Real(10.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "hy_v4_vl",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(2.827)),
            ("swiglu_limit", Real(10.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "hy_v4_vl_text",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(2.827)),
            ("swiglu_limit", Real(10.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "inkling2_loop_text",
        &[
            ("hidden_act", Word("silu")),
            ("mlp_gate_softcap", Real(4.0)),
            ("mlp_up_softcap", Real(25.0)),
            ("rms_norm_eps", Real(1e-06)),
            ("route_scale", Real(8.0)),
            ("scoring_func", Word("sigmoid")),
        ],
    ),
    (
        "inkling2_text",
        &[
            ("hidden_act", Word("silu")),
            ("mlp_gate_softcap", Real(4.0)),
            ("mlp_up_softcap", Real(25.0)),
            ("rms_norm_eps", Real(1e-06)),
            ("route_scale", Real(8.0)),
            ("scoring_func", Word("sigmoid")),
        ],
    ),
    (
        "inkling_text",
        &[
            ("hidden_act", Word("silu")),
            ("n_shared_experts", Whole(2)),
            ("rms_norm_eps", Real(1e-06)),
            ("route_scale", Real(8.0)),
        ],
    ),
    (
        "jamba",
        &[
            ("expert_layer_offset", Whole(1)),
            ("expert_layer_period", Whole(2)),
            ("hidden_act", Word("silu")),
            ("rms_norm_eps", Real(1e-06)),
        ],
    ),
    ("jetmoe", &[("activation_function", Word("silu")), ("rms_norm_eps", Real(1e-06))]),
    (
        "kimi_k2",
        &[
            ("first_k_dense_replace", Whole(3)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(8)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(2.5)),
            ("topk_group", Whole(4)),
        ],
    ),
    (
        "kimi_k25",
        &[
            ("first_k_dense_replace", Whole(3)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(8)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(2.5)),
            ("topk_group", Whole(4)),
        ],
    ),
    (
        "kimi_linear",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(2.446)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "kolibri1",
        &[
            ("hidden_act", Word("silu")),
            ("norm_topk_prob", Flag(false)),
            ("rms_norm_eps", Real(1e-06)),
            ("shared_expert_intermediate_size", Whole(512)),
        ],
    ),
    (
        "laguna",
        &[
            ("hidden_act", Word("silu")),
            ("moe_apply_router_weight_on_input", Flag(false)),
            ("moe_routed_scaling_factor", Real(1.0)),
            ("moe_router_logit_softcapping", Real(0.0)),
            ("rms_norm_eps", Real(1e-06)),
            ("shared_expert_intermediate_size", Whole(512)),
        ],
    ),
    (
        "lara_mini",
        &[
            ("hidden_act", Word("silu")),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("shared_expert_intermediate_size", Whole(512)),
        ],
    ),
    (
        "lfm2_moe",
        &[
            ("norm_topk_prob", Flag(true)),
            ("num_dense_layers", Whole(2)),
            ("routed_scaling_factor", Real(1.0)),
            ("use_expert_bias", Flag(true)),
        ],
    ),
    (
        "llama4",
        &[
            ("hidden_act", Word("silu")),
            ("interleave_moe_layer_step", Whole(1)),
            ("rms_norm_eps", Real(1e-05)),
            ("router_jitter_noise", Real(0.0)),
        ],
    ),
    (
        "llama4_text",
        &[
            ("hidden_act", Word("silu")),
            ("interleave_moe_layer_step", Whole(1)),
            ("rms_norm_eps", Real(1e-05)),
            ("router_jitter_noise", Real(0.0)),
        ],
    ),
    (
        "longcat_flash",
        &[
            ("hidden_act", Word("silu")),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(6.0)),
            ("zero_expert_num", Whole(256)),
        ],
    ),
    ("mellum", &[("hidden_act", Word("silu")), ("norm_topk_prob", Flag(true)), ("rms_norm_eps", Real(1e-06))]),
    (
        "mimo_v2_flash",
        &[
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    ("minimax", &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-05)), ("router_jitter_noise", Real(0.0))]),
    ("minimax_m2", &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-06)), ("router_jitter_noise", Real(0.0))]),
    (
        "minimax_m3_vl_text",
        &[
            ("hidden_act", Word("silu")),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(2.0)),
            ("router_jitter_noise", Real(0.0)),
            ("shared_intermediate_size", Whole(3072)),
            ("swiglu_alpha", Real(1.702)),
            ("swiglu_limit", Real(7.0)),
        ],
    ),
    (
        "mistral4",
        &[
            ("first_k_dense_replace", Whole(0)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "mistral_large4",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "mistral_large4_text",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    ("mixtral", &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-05)), ("router_jitter_noise", Real(0.0))]),
    (
        "muse_spark",
        &[
            ("hidden_act", Word("silu")),
            ("output_multiplier", Real(0.17677669)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(1.0)),
        ],
    ),
    (
        "muse_spark_text",
        &[
            ("hidden_act", Word("silu")),
            ("output_multiplier", Real(0.17677669)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(1.0)),
        ],
    ),
    (
        "nemotron_h",
        &[
            ("mlp_hidden_act", Word("relu2")),
            ("moe_shared_expert_intermediate_size", Whole(7688)),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    ("olmoe", &[("hidden_act", Word("silu")), ("norm_topk_prob", Flag(false)), ("rms_norm_eps", Real(1e-05))]),
    (
        "openai_privacy_filter",
        &[("rms_norm_eps", Real(1e-05)), ("swiglu_alpha", Real(1.702)), ("swiglu_limit", Real(7.0))],
    ),
    ("phimoe", &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-05)), ("router_jitter_noise", Real(0.01))]),
    (
        "qwen2_moe",
        &[
            ("decoder_sparse_step", Whole(1)),
            ("hidden_act", Word("silu")),
            ("norm_topk_prob", Flag(false)),
            ("rms_norm_eps", Real(1e-06)),
            ("shared_expert_intermediate_size", Whole(5632)),
        ],
    ),
    (
        "qwen3_5_moe",
        &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-06)), ("shared_expert_intermediate_size", Whole(512))],
    ),
    (
        "qwen3_5_moe_text",
        &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-06)), ("shared_expert_intermediate_size", Whole(512))],
    ),
    (
        "qwen3_moe",
        &[
            ("decoder_sparse_step", Whole(1)),
            ("hidden_act", Word("silu")),
            ("norm_topk_prob", Flag(false)),
            ("rms_norm_eps", Real(1e-06)),
        ],
    ),
    (
        "qwen3_next",
        &[
            ("decoder_sparse_step", Whole(1)),
            ("hidden_act", Word("silu")),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("shared_expert_intermediate_size", Whole(512)),
        ],
    ),
    (
        "qwen3_omni_moe_talker_text",
        &[
            ("decoder_sparse_step", Whole(1)),
            ("hidden_act", Word("silu")),
            ("norm_topk_prob", Flag(false)),
            ("rms_norm_eps", Real(1e-06)),
        ],
    ),
    (
        "qwen3_omni_moe_text",
        &[
            ("decoder_sparse_step", Whole(1)),
            ("hidden_act", Word("silu")),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
        ],
    ),
    (
        "qwen3_omni_moe_thinker",
        &[
            ("decoder_sparse_step", Whole(1)),
            ("hidden_act", Word("silu")),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
        ],
    ),
    ("qwen3_vl_moe", &[("decoder_sparse_step", Whole(1)), ("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-06))]),
    (
        "qwen3_vl_moe_text",
        &[("decoder_sparse_step", Whole(1)), ("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-06))],
    ),
    (
        "qwen4_exp_text",
        &[
            ("hidden_act", Word("silu")),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("shared_expert_intermediate_size", Whole(512)),
        ],
    ),
    (
        "sarvam_mla",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(2.5)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "sarvam_moe",
        &[
            ("first_k_dense_replace", Whole(1)),
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(2.5)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "solar_open",
        &[
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(1)),
            ("norm_topk_prob", Flag(true)),
            ("rms_norm_eps", Real(1e-05)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
        ],
    ),
    (
        "step3p5",
        &[
            ("hidden_act", Word("silu")),
            ("moe_router_scaling_factor", Real(1.0)),
            ("rms_norm_eps", Real(1e-05)),
            ("share_expert_dim", Whole(1280)),
        ],
    ),
    (
        "step3p7",
        &[
            ("hidden_act", Word("silu")),
            ("moe_router_scaling_factor", Real(1.0)),
            ("rms_norm_eps", Real(1e-05)),
            ("share_expert_dim", Whole(1280)),
        ],
    ),
    ("switch_transformers", &[("router_jitter_noise", Real(0.01))]),
    (
        "unlimited_ocr",
        &[
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(2)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
            ("topk_method", Word("greedy")),
        ],
    ),
    (
        "unlimited_ocr_text",
        &[
            ("hidden_act", Word("silu")),
            ("n_group", Whole(1)),
            ("n_shared_experts", Whole(2)),
            ("rms_norm_eps", Real(1e-06)),
            ("routed_scaling_factor", Real(1.0)),
            ("topk_group", Whole(1)),
            ("topk_method", Word("greedy")),
        ],
    ),
    ("zaya", &[("hidden_act", Word("silu")), ("rms_norm_eps", Real(1e-05)), ("router_hidden_size", Whole(256))]),
];

/// Model types, sorted, each with pairs of names for the same key.
const OTHER_NAMES: &[(&str, &[(&str, &str)])] = &[
    ("axk1", &[("num_local_experts", "n_routed_experts")]),
    ("axk2", &[("num_local_experts", "n_routed_experts")]),
    (
        "bailing_hybrid",
        &[
            ("n_shared_experts", "num_shared_experts"),
            ("norm_topk_prob", "moe_renormalize"),
            ("num_experts_per_tok", "num_experts_per_token"),
            ("num_local_experts", "num_experts"),
            ("num_mtp_layers", "num_nextn_predict_layers"),
        ],
    ),
    ("dbrx", &[("hidden_size", "d_model"), ("num_hidden_layers", "n_layers")]),
    ("deepseek_ocr2", &[("num_experts", "n_routed_experts")]),
    ("deepseek_ocr2_text", &[("num_experts", "n_routed_experts")]),
    ("deepseek_v2", &[("num_experts", "n_routed_experts")]),
    ("deepseek_v3", &[("num_local_experts", "n_routed_experts"), ("num_mtp_layers", "num_nextn_predict_layers")]),
    ("deepseek_v32", &[("num_local_experts", "n_routed_experts")]),
    ("deepseek_v4", &[("intermediate_size", "moe_intermediate_size"), ("num_local_experts", "n_routed_experts")]),
    ("dots1", &[("num_local_experts", "n_routed_experts")]),
    ("dots3_note_text", &[("num_local_experts", "n_routed_experts")]),
    ("ernie4_5_moe", &[("num_experts", "moe_num_experts"), ("num_experts_per_tok", "moe_k")]),
    ("ernie4_5_vl_moe", &[("num_experts", "moe_num_experts"), ("num_experts_per_tok", "moe_k")]),
    ("ernie4_5_vl_moe_text", &[("num_experts", "moe_num_experts"), ("num_experts_per_tok", "moe_k")]),
    ("flex_olmo", &[("num_local_experts", "num_experts")]),
    ("glm4_moe", &[("num_local_experts", "n_routed_experts"), ("num_mtp_layers", "num_nextn_predict_layers")]),
    ("glm4_moe_lite", &[("num_local_experts", "n_routed_experts")]),
    ("glm4v_moe", &[("num_local_experts", "n_routed_experts")]),
    ("glm4v_moe_text", &[("num_local_experts", "n_routed_experts")]),
    ("glm5_next", &[("num_local_experts", "n_routed_experts")]),
    ("glm5_next_text", &[("num_local_experts", "n_routed_experts")]),
    ("glm_moe_dsa", &[("num_local_experts", "n_routed_experts")]),
    ("gpt_oss", &[("num_experts", "num_local_experts")]),
    ("granitemoehybrid", &[("layers_block_type", "layer_types")]),
    ("hunyuan_v1_moe", &[("num_experts_per_tok", "moe_topk"), ("num_local_experts", "num_experts")]),
    ("hy_v3", &[("num_local_experts", "num_experts")]),
    ("hy_v4", &[("num_local_experts", "n_routed_experts")]),
    ("hy_v4_vl", &[("num_local_experts", "n_routed_experts")]),
    ("hy_v4_vl_text", &[("num_local_experts", "n_routed_experts")]),
    (
        "inkling2_loop_text",
        &[
            ("intermediate_size", "moe_intermediate_size"),
            ("num_local_experts", "n_routed_experts"),
            ("routed_scaling_factor", "route_scale"),
        ],
    ),
    (
        "inkling2_text",
        &[
            ("intermediate_size", "moe_intermediate_size"),
            ("num_local_experts", "n_routed_experts"),
            ("routed_scaling_factor", "route_scale"),
        ],
    ),
    ("inkling_text", &[("num_local_experts", "n_routed_experts")]),
    ("jamba", &[("num_local_experts", "num_experts")]),
    ("kimi_k2", &[("num_local_experts", "n_routed_experts"), ("num_mtp_layers", "num_nextn_predict_layers")]),
    ("kimi_k25", &[("num_local_experts", "n_routed_experts"), ("num_mtp_layers", "num_nextn_predict_layers")]),
    (
        "kimi_linear",
        &[
            ("n_shared_experts", "num_shared_experts"),
            ("norm_topk_prob", "moe_renormalize"),
            ("num_experts_per_tok", "num_experts_per_token"),
            ("num_local_experts", "num_experts"),
        ],
    ),
    ("kolibri1", &[("num_experts", "num_local_experts")]),
    (
        "longcat_flash",
        &[
            ("intermediate_size", "ffn_hidden_size"),
            ("moe_intermediate_size", "expert_ffn_hidden_size"),
            ("num_experts_per_tok", "moe_topk"),
            ("num_local_experts", "n_routed_experts"),
        ],
    ),
    ("mellum", &[("num_experts", "num_local_experts"), ("num_mtp_layers", "num_nextn_predict_layers")]),
    ("mimo_v2_flash", &[("num_local_experts", "n_routed_experts")]),
    ("minimax", &[("num_experts", "num_local_experts")]),
    ("minimax_m2", &[("num_experts", "num_local_experts")]),
    ("minimax_m3_vl_text", &[("num_experts", "num_local_experts")]),
    ("mistral4", &[("num_local_experts", "n_routed_experts")]),
    ("mistral_large4", &[("num_local_experts", "n_routed_experts")]),
    ("mistral_large4_text", &[("num_local_experts", "n_routed_experts")]),
    ("mixtral", &[("num_experts", "num_local_experts")]),
    ("nemotron_h", &[("num_local_experts", "n_routed_experts")]),
    ("olmoe", &[("num_local_experts", "num_experts")]),
    ("openai_privacy_filter", &[("num_experts", "num_local_experts")]),
    ("qwen3_moe", &[("num_experts", "num_local_experts")]),
    ("qwen3_omni_moe_talker_text", &[("num_experts", "num_local_experts")]),
    ("qwen3_vl_moe", &[("num_experts", "num_local_experts")]),
    ("qwen3_vl_moe_text", &[("num_experts", "num_local_experts")]),
    (
        "sarvam_mla",
        &[
            ("num_experts", "n_routed_experts"),
            ("num_local_experts", "n_routed_experts"),
            ("num_mtp_layers", "num_nextn_predict_layers"),
            ("num_shared_experts", "n_shared_experts"),
        ],
    ),
    (
        "sarvam_moe",
        &[
            ("num_experts", "n_routed_experts"),
            ("num_local_experts", "n_routed_experts"),
            ("num_mtp_layers", "num_nextn_predict_layers"),
            ("num_shared_experts", "n_shared_experts"),
        ],
    ),
    ("solar_open", &[("num_local_experts", "n_routed_experts")]),
    (
        "step3p5",
        &[
            ("moe_num_experts", "n_routed_experts"),
            ("moe_top_k", "num_experts_per_tok"),
            ("num_local_experts", "n_routed_experts"),
            ("num_mtp_layers", "num_nextn_predict_layers"),
            ("share_expert_dims", "share_expert_dim"),
        ],
    ),
    (
        "step3p7",
        &[
            ("moe_num_experts", "n_routed_experts"),
            ("moe_top_k", "num_experts_per_tok"),
            ("num_local_experts", "n_routed_experts"),
            ("num_mtp_layers", "num_nextn_predict_layers"),
            ("share_expert_dims", "share_expert_dim"),
        ],
    ),
    ("switch_transformers", &[("hidden_size", "d_model"), ("num_hidden_layers", "num_layers")]),
    ("unlimited_ocr", &[("num_experts", "n_routed_experts")]),
    ("unlimited_ocr_text", &[("num_experts", "n_routed_experts")]),
];
