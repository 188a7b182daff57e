//! The model families. To add one: a file here, a line in [`FAMILIES`], a config and a case in the tests.

mod deepseek_v2;
mod deepseek_v3;
mod deepseek_v4;
pub mod defaults;
mod dots3_vision;
mod encoder_decoder;
mod ernie;
mod gemma4;
mod gpt_oss;
mod granite;
mod in_memory;
mod inkling;
mod llama4;
mod longcat;
mod minimax_m2;
mod mistral;
mod mixtral;
pub mod native;
mod nemotron_h;
mod olmoe;
mod phimoe;
mod qwen;
mod refused;
pub(crate) mod single_experts;
mod softmax_relatives;
mod step3;
mod v3_relatives;
mod zaya;

use crate::keys::Keys;
use crate::spec::MoeSpec;

/// A family: models whose MoE layers are read by the same function.
#[derive(Debug)]
pub struct Family {
    /// The `model_type` values that select it.
    pub model_types: &'static [&'static str],
    /// What stands before `layers.N.` in tensor names; empty for the usual spellings.
    pub prefixes: &'static [&'static str],
    /// Which layers are MoE layers.
    pub moe_layers: fn(&Keys) -> Vec<u32>,
    /// Keys for the number of further MoE layers after the decoder's own (multi-token prediction).
    pub extra_layers: &'static [&'static str],
    /// What one of them computes.
    pub spec: fn(&Keys, u32) -> MoeSpec,
}

/// Every family.
pub const FAMILIES: &[Family] = &[
    deepseek_v2::FAMILY,
    deepseek_v2::OCR,
    deepseek_v3::DOTS1,
    deepseek_v3::FAMILY,
    deepseek_v3::MIMO_V2,
    deepseek_v4::FAMILY,
    dots3_vision::FAMILY,
    encoder_decoder::NLLB,
    encoder_decoder::SWITCH,
    ernie::FAMILY,
    ernie::VL,
    gemma4::DIFFUSION,
    gemma4::FAMILY,
    gpt_oss::FAMILY,
    gpt_oss::PRIVACY_FILTER,
    granite::ARIA,
    granite::GRANITE,
    granite::JETMOE,
    llama4::FAMILY,
    minimax_m2::FAMILY,
    mistral::LARGE3,
    mistral::LARGE4,
    mistral::MISTRAL4,
    mixtral::FAMILY,
    native::DEEPSEEK,
    native::MISTRAL,
    nemotron_h::FAMILY,
    olmoe::FAMILY,
    qwen::QWEN2_MOE,
    qwen::QWEN3_MOE,
    refused::DOGE,
    refused::VITPOSE,
    inkling::FAMILY,
    longcat::FAMILY,
    phimoe::FAMILY,
    softmax_relatives::COHERE2,
    softmax_relatives::DBRX,
    softmax_relatives::FLINT,
    softmax_relatives::HUNYUAN,
    softmax_relatives::INKLING2,
    softmax_relatives::JAMBA,
    softmax_relatives::KOLIBRI,
    softmax_relatives::LARA_MINI,
    softmax_relatives::LFM2,
    softmax_relatives::MELLUM,
    softmax_relatives::MINIMAX,
    softmax_relatives::QWEN3_5,
    softmax_relatives::QWEN3_NEXT,
    softmax_relatives::QWEN3_OMNI,
    softmax_relatives::QWEN3_OMNI_TALKER,
    softmax_relatives::QWEN3_VL,
    step3::FAMILY,
    v3_relatives::AFMOE,
    v3_relatives::AXK1,
    v3_relatives::AXK2,
    v3_relatives::BAILING_HYBRID,
    v3_relatives::BEAM,
    v3_relatives::DOTS3,
    v3_relatives::EXAONE,
    v3_relatives::GLM5_NEXT,
    v3_relatives::HY_V3,
    v3_relatives::HY_V4,
    v3_relatives::KIMI_LINEAR,
    v3_relatives::LAGUNA,
    v3_relatives::MINIMAX_M3,
    v3_relatives::MUSE_SPARK,
    v3_relatives::SARVAM_MOE,
    v3_relatives::STEP3P5,
    zaya::FAMILY,
];

/// The keys under which configs give the number of experts per token.
pub const TOP_K: &[&str] = &[
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_k",
    "moe_top_k",
    "top_k_experts",
];

/// The keys under which configs give the number of routed experts.
pub const EXPERTS: &[&str] = &["n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts"];

/// The keys under which configs give the number of shared experts.
pub const SHARED: &[&str] = &["n_shared_experts", "num_shared_experts"];

/// The family that `model_type` selects.
pub fn family(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|f| f.model_types.contains(&model_type))
}
