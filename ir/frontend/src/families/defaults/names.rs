//! Under which other names the config classes of transformers 5.24.0 take keys.
//!
//! Written by `tests/conformance/class_defaults.py`.

/// Pairs of names for the same key, sorted, each with the model types that take one for the other.
pub(super) const NAMES: &[(&str, &str, &str)] = &[
    ("hidden_size", "d_model", "dbrx switch_transformers"),
    ("intermediate_size", "ffn_hidden_size", "longcat_flash"),
    ("intermediate_size", "moe_intermediate_size", "deepseek_v4 inkling2_loop_text inkling2_text"),
    ("layers_block_type", "layer_types", "granitemoehybrid"),
    ("moe_intermediate_size", "expert_ffn_hidden_size", "longcat_flash"),
    ("moe_num_experts", "n_routed_experts", "step3p5 step3p7"),
    ("moe_top_k", "num_experts_per_tok", "step3p5 step3p7"),
    ("n_shared_experts", "num_shared_experts", "bailing_hybrid kimi_linear"),
    ("norm_topk_prob", "moe_renormalize", "bailing_hybrid kimi_linear"),
    ("num_experts", "moe_num_experts", "ernie4_5_moe ernie4_5_vl_moe ernie4_5_vl_moe_text"),
    (
        "num_experts",
        "n_routed_experts",
        "deepseek_ocr2 deepseek_ocr2_text deepseek_v2 sarvam_mla sarvam_moe unlimited_ocr unlimited_ocr_text",
    ),
    (
        "num_experts",
        "num_local_experts",
        "gpt_oss kolibri1 mellum minimax minimax_m2 minimax_m3_vl_text mixtral openai_privacy_filter \
             qwen3_moe qwen3_omni_moe_talker_text qwen3_vl_moe qwen3_vl_moe_text",
    ),
    ("num_experts_per_tok", "moe_k", "ernie4_5_moe ernie4_5_vl_moe ernie4_5_vl_moe_text"),
    ("num_experts_per_tok", "moe_topk", "hunyuan_v1_moe longcat_flash"),
    ("num_experts_per_tok", "num_experts_per_token", "bailing_hybrid kimi_linear"),
    ("num_hidden_layers", "n_layers", "dbrx"),
    ("num_hidden_layers", "num_layers", "switch_transformers"),
    (
        "num_local_experts",
        "n_routed_experts",
        "axk1 axk2 deepseek_v3 deepseek_v32 deepseek_v4 dots1 dots3_note_text glm4_moe glm4_moe_lite \
             glm4v_moe glm4v_moe_text glm5_next glm5_next_text glm_moe_dsa hy_v4 hy_v4_vl hy_v4_vl_text \
             inkling2_loop_text inkling2_text inkling_text kimi_k2 kimi_k25 longcat_flash mimo_v2_flash mistral4 \
             mistral_large4 mistral_large4_text nemotron_h sarvam_mla sarvam_moe solar_open step3p5 step3p7",
    ),
    ("num_local_experts", "num_experts", "bailing_hybrid flex_olmo hunyuan_v1_moe hy_v3 jamba kimi_linear olmoe"),
    (
        "num_mtp_layers",
        "num_nextn_predict_layers",
        "bailing_hybrid deepseek_v3 glm4_moe kimi_k2 kimi_k25 mellum sarvam_mla sarvam_moe step3p5 step3p7",
    ),
    ("num_shared_experts", "n_shared_experts", "sarvam_mla sarvam_moe"),
    ("routed_scaling_factor", "route_scale", "inkling2_loop_text inkling2_text"),
    ("share_expert_dims", "share_expert_dim", "step3p5 step3p7"),
];
