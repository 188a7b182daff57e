//! What the config classes of transformers 5.24.0 assume where a config leaves a key out.
//!
//! Written by `tests/conformance/class_defaults.py`. Keys without a value of their own (null) are not listed.

use super::Value::{self, Flag, Real, Whole, Word};

/// Keys, each with its defaults, each with the model types that have it.
pub(super) const VALUES: &[(&str, &[(Value, &str)])] = &[
    ("activation_function", &[(Word("silu"), "jetmoe")]),
    (
        "decoder_sparse_step",
        &[(
            Whole(1),
            "flint qwen2_moe qwen3_moe qwen3_next qwen3_omni_moe_talker_text qwen3_omni_moe_text \
             qwen3_omni_moe_thinker qwen3_vl_moe qwen3_vl_moe_text",
        )],
    ),
    ("expert_layer_offset", &[(Whole(1), "jamba")]),
    ("expert_layer_period", &[(Whole(2), "jamba")]),
    ("expert_selection_fn", &[(Word("softmax"), "cohere2_moe")]),
    (
        "first_k_dense_replace",
        &[
            (Whole(0), "deepseek_v2 dots1 mistral4"),
            (
                Whole(1),
                "axk1 axk2 exaone_moe glm4_moe glm4_moe_lite glm4v_moe glm4v_moe_text hy_v3 hy_v4 hy_v4_vl \
             hy_v4_vl_text kimi_linear mistral_large4 mistral_large4_text sarvam_mla sarvam_moe",
            ),
            (Whole(2), "bailing_hybrid"),
            (Whole(3), "beam deepseek_v3 deepseek_v32 glm5_next glm5_next_text glm_moe_dsa kimi_k2 kimi_k25"),
        ],
    ),
    (
        "hidden_act",
        &[(
            Word("silu"),
            "afmoe aria_text axk1 axk2 bailing_hybrid beam cohere2_moe deepseek_ocr2 deepseek_ocr2_text \
             deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 doge dots1 dots3_note_text \
             dots3_note_vision_encoder ernie4_5_moe ernie4_5_vl_moe ernie4_5_vl_moe_text exaone_moe flex_olmo \
             flint glm4_moe glm4_moe_lite glm4v_moe glm4v_moe_text glm5_next glm5_next_text glm_moe_dsa gpt_oss \
             granitemoe granitemoe_swa granitemoehybrid granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 hy_v4_vl \
             hy_v4_vl_text inkling2_loop_text inkling2_text inkling_text jamba kimi_k2 kimi_k25 kimi_linear \
             kolibri1 laguna lara_mini llama4 llama4_text longcat_flash mellum mimo_v2_flash minimax minimax_m2 \
             minimax_m3_vl_text mistral4 mistral_large4 mistral_large4_text mixtral muse_spark muse_spark_text \
             olmoe phimoe qwen2_moe qwen3_5_moe qwen3_5_moe_text qwen3_moe qwen3_next qwen3_omni_moe_talker_text \
             qwen3_omni_moe_text qwen3_omni_moe_thinker qwen3_vl_moe qwen3_vl_moe_text qwen4_exp_text sarvam_mla \
             sarvam_moe solar_open step3p5 step3p7 unlimited_ocr unlimited_ocr_text zaya",
        )],
    ),
    ("hidden_activation", &[(Word("gelu_pytorch_tanh"), "diffusion_gemma diffusion_gemma_text gemma4 gemma4_text")]),
    ("interleave_moe_layer_step", &[(Whole(1), "llama4 llama4_text")]),
    ("mlp_gate_softcap", &[(Real(4.0), "inkling2_loop_text inkling2_text")]),
    ("mlp_hidden_act", &[(Word("relu2"), "nemotron_h")]),
    ("mlp_up_softcap", &[(Real(25.0), "inkling2_loop_text inkling2_text")]),
    ("moe_apply_router_weight_on_input", &[(Flag(false), "laguna")]),
    ("moe_layer_interval", &[(Whole(1), "ernie4_5_moe")]),
    ("moe_layer_start_index", &[(Whole(1), "ernie4_5_moe")]),
    ("moe_norm_min", &[(Real(1e-12), "ernie4_5_moe ernie4_5_vl_moe ernie4_5_vl_moe_text")]),
    ("moe_num_shared_experts", &[(Whole(2), "aria_text ernie4_5_moe ernie4_5_vl_moe ernie4_5_vl_moe_text")]),
    ("moe_routed_scaling_factor", &[(Real(1.0), "laguna")]),
    ("moe_router_logit_softcapping", &[(Real(0.0), "laguna")]),
    ("moe_router_scaling_factor", &[(Real(1.0), "step3p5 step3p7")]),
    ("moe_shared_expert_intermediate_size", &[(Whole(7688), "nemotron_h")]),
    (
        "n_group",
        &[
            (
                Whole(1),
                "dots1 dots3_note_text exaone_moe glm4_moe glm4_moe_lite glm4v_moe glm4v_moe_text glm5_next \
             glm5_next_text glm_moe_dsa hy_v4 hy_v4_vl hy_v4_vl_text kimi_linear mimo_v2_flash mistral4 \
             mistral_large4 mistral_large4_text nemotron_h sarvam_mla sarvam_moe solar_open unlimited_ocr \
             unlimited_ocr_text",
            ),
            (Whole(8), "axk1 bailing_hybrid beam deepseek_v3 deepseek_v32 kimi_k2 kimi_k25"),
        ],
    ),
    (
        "n_shared_experts",
        &[
            (
                Whole(1),
                "axk1 axk2 bailing_hybrid deepseek_v3 deepseek_v32 deepseek_v4 dots3_note_text glm4_moe glm4_moe_lite \
             glm4v_moe glm4v_moe_text glm5_next glm5_next_text glm_moe_dsa hy_v4 hy_v4_vl hy_v4_vl_text kimi_k2 \
             kimi_k25 kimi_linear mistral4 mistral_large4 mistral_large4_text nemotron_h sarvam_mla sarvam_moe \
             solar_open",
            ),
            (Whole(2), "deepseek_ocr2 deepseek_ocr2_text deepseek_v2 inkling_text unlimited_ocr unlimited_ocr_text"),
        ],
    ),
    (
        "norm_topk_prob",
        &[
            (
                Flag(false),
                "deepseek_v2 doge dots1 flex_olmo kolibri1 olmoe qwen2_moe qwen3_moe qwen3_omni_moe_talker_text",
            ),
            (
                Flag(true),
                "axk1 axk2 bailing_hybrid beam cohere2_moe deepseek_v3 deepseek_v32 deepseek_v4 dots3_note_text \
             exaone_moe flint glm4_moe glm4_moe_lite glm4v_moe glm4v_moe_text glm5_next glm5_next_text \
             glm_moe_dsa hy_v4 hy_v4_vl hy_v4_vl_text kimi_k2 kimi_k25 kimi_linear lara_mini lfm2_moe mellum \
             mimo_v2_flash mistral4 nemotron_h qwen3_next qwen3_omni_moe_text qwen3_omni_moe_thinker \
             qwen4_exp_text sarvam_mla sarvam_moe solar_open",
            ),
        ],
    ),
    ("num_dense_layers", &[(Whole(1), "afmoe"), (Whole(2), "lfm2_moe")]),
    ("num_shared_experts", &[(Whole(0), "cohere2_moe"), (Whole(1), "exaone_moe hy_v3"), (Whole(2), "afmoe")]),
    ("output_multiplier", &[(Real(0.17677669), "muse_spark muse_spark_text")]),
    (
        "rms_norm_eps",
        &[
            (
                Real(1e-05),
                "afmoe dots3_note_text dots3_note_vision_encoder ernie4_5_moe ernie4_5_vl_moe ernie4_5_vl_moe_text \
             exaone_moe glm4_moe glm4_moe_lite glm4v_moe glm4v_moe_text glm5_next glm5_next_text glm_moe_dsa \
             gpt_oss hunyuan_v1_moe hy_v3 hy_v4 hy_v4_vl hy_v4_vl_text kimi_linear llama4 llama4_text \
             longcat_flash mimo_v2_flash minimax mistral_large4 mistral_large4_text mixtral muse_spark \
             muse_spark_text olmoe openai_privacy_filter phimoe solar_open step3p5 step3p7 zaya",
            ),
            (
                Real(1e-06),
                "aria_text axk1 axk2 bailing_hybrid beam deepseek_ocr2 deepseek_ocr2_text deepseek_v2 deepseek_v3 \
             deepseek_v32 deepseek_v4 diffusion_gemma diffusion_gemma_text doge dots1 flex_olmo flint gemma4 \
             gemma4_text granitemoe granitemoe_swa granitemoehybrid granitemoeshared inkling2_loop_text \
             inkling2_text inkling_text jamba jetmoe kimi_k2 kimi_k25 kolibri1 laguna lara_mini mellum minimax_m2 \
             minimax_m3_vl_text mistral4 qwen2_moe qwen3_5_moe qwen3_5_moe_text qwen3_moe qwen3_next \
             qwen3_omni_moe_talker_text qwen3_omni_moe_text qwen3_omni_moe_thinker qwen3_vl_moe qwen3_vl_moe_text \
             qwen4_exp_text sarvam_mla sarvam_moe unlimited_ocr unlimited_ocr_text",
            ),
        ],
    ),
    ("route_scale", &[(Real(1.0), "afmoe"), (Real(8.0), "inkling2_loop_text inkling2_text inkling_text")]),
    (
        "routed_scaling_factor",
        &[
            (
                Real(1.0),
                "deepseek_ocr2 deepseek_ocr2_text deepseek_v2 dots1 dots3_note_text glm4_moe glm4v_moe glm4v_moe_text \
             lfm2_moe mimo_v2_flash mistral4 mistral_large4 mistral_large4_text muse_spark muse_spark_text \
             nemotron_h solar_open unlimited_ocr unlimited_ocr_text",
            ),
            (Real(1.5), "deepseek_v4"),
            (Real(1.8), "glm4_moe_lite"),
            (Real(2.0), "minimax_m3_vl_text"),
            (Real(2.446), "kimi_linear"),
            (
                Real(2.5),
                "axk1 axk2 bailing_hybrid beam deepseek_v3 deepseek_v32 exaone_moe glm5_next glm5_next_text \
             glm_moe_dsa kimi_k2 kimi_k25 sarvam_mla sarvam_moe",
            ),
            (Real(2.827), "hy_v4 hy_v4_vl hy_v4_vl_text"),
            (Real(6.0), "longcat_flash"),
        ],
    ),
    ("router_hidden_size", &[(Whole(256), "zaya")]),
    (
        "router_jitter_noise",
        &[
            (Real(0.0), "deepseek_v4 llama4 llama4_text minimax minimax_m2 minimax_m3_vl_text mixtral"),
            (Real(0.01), "phimoe switch_transformers"),
        ],
    ),
    ("router_scaling_factor", &[(Real(2.826), "hy_v3")]),
    ("scoring_func", &[(Word("sigmoid"), "inkling2_loop_text inkling2_text"), (Word("sqrtsoftplus"), "deepseek_v4")]),
    ("share_expert_dim", &[(Whole(1280), "step3p5 step3p7")]),
    ("shared_expert_combination_strategy", &[(Word("average"), "cohere2_moe")]),
    (
        "shared_expert_intermediate_size",
        &[
            (Whole(1024), "flint"),
            (Whole(512), "kolibri1 laguna lara_mini qwen3_5_moe qwen3_5_moe_text qwen3_next qwen4_exp_text"),
            (Whole(5632), "qwen2_moe"),
        ],
    ),
    ("shared_experts_intermediate_size", &[(Whole(1536), "dots3_note_text")]),
    (
        "shared_intermediate_size",
        &[
            (Whole(0), "granitemoe_swa granitemoeshared"),
            (Whole(1024), "granitemoehybrid"),
            (Whole(3072), "minimax_m3_vl_text"),
        ],
    ),
    ("swiglu_alpha", &[(Real(1.702), "gpt_oss minimax_m3_vl_text openai_privacy_filter")]),
    (
        "swiglu_limit",
        &[
            (Real(10.0), "deepseek_v4 glm5_next glm5_next_text hy_v4 hy_v4_vl hy_v4_vl_text"),
            (Real(7.0), "gpt_oss minimax_m3_vl_text openai_privacy_filter"),
        ],
    ),
    (
        "topk_group",
        &[
            (
                Whole(1),
                "dots1 dots3_note_text exaone_moe glm4_moe glm4_moe_lite glm4v_moe glm4v_moe_text glm5_next \
             glm5_next_text glm_moe_dsa hy_v4 hy_v4_vl hy_v4_vl_text kimi_linear mimo_v2_flash mistral4 \
             mistral_large4 mistral_large4_text nemotron_h sarvam_mla sarvam_moe solar_open unlimited_ocr \
             unlimited_ocr_text",
            ),
            (Whole(4), "axk1 bailing_hybrid beam deepseek_v3 deepseek_v32 kimi_k2 kimi_k25"),
        ],
    ),
    (
        "topk_method",
        &[(Word("greedy"), "deepseek_ocr2 deepseek_ocr2_text deepseek_v2 unlimited_ocr unlimited_ocr_text")],
    ),
    ("use_expert_bias", &[(Flag(true), "lfm2_moe")]),
    ("zero_expert_num", &[(Whole(256), "longcat_flash")]),
];
