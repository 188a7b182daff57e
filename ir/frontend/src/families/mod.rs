//! The model families. To add one: a file here, a line in [`FAMILIES`], a config and a case in the tests.

mod deepseek_v2;
mod deepseek_v3;
mod gpt_oss;
mod minimax_m2;
mod mixtral;
mod olmoe;
mod qwen;

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
    deepseek_v3::FAMILY,
    gpt_oss::FAMILY,
    minimax_m2::FAMILY,
    mixtral::FAMILY,
    olmoe::FAMILY,
    qwen::QWEN2_MOE,
    qwen::QWEN3_MOE,
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

/// The family that `model_type` selects.
pub fn family(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|f| f.model_types.contains(&model_type))
}
