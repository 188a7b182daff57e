//! The table of architectures: what their metadata are called in a `config.json`, and how Hugging Face names their tensors.
//!
//! What llama.cpp does the same way for all models of an architecture, and therefore does not write into files, stands
//! here: whether weights are renormalised, and the function of the scores. Sources: `convert_hf_to_gguf.py`,
//! `src/models/*.cpp` (the calls of `build_moe_ffn`) of <https://github.com/ggml-org/llama.cpp>, and the tables of the Python
//! package `gguf` 0.19.

use super::config::Keys;
use super::container::{Gguf, Value};
use moec_ir::diag::Diagnostic;
use serde_json::{Map, json};
use std::path::Path;

type Config = Map<String, serde_json::Value>;

/// An architecture.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// The keys of a `config.json`.
    pub config: fn(&Keys<'_>) -> Result<Config, Diagnostic>,
    /// The names of tensors.
    pub names: Names,
}

/// How Hugging Face names what is below `model.layers.N.`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    /// The router, without `.weight`.
    pub router: &'static str,
    /// The bias for the choice of experts.
    pub selection_bias: Option<&'static str>,
    /// What stands before the number of an expert, and its gate, up and down.
    pub experts: (&'static str, [&'static str; 3]),
    /// What stands before the matrices of the shared expert.
    pub shared: Option<&'static str>,
    /// The gate of the shared expert.
    pub shared_gate: Option<&'static str>,
}

const MLP: Names = Names {
    router: "mlp.gate",
    selection_bias: None,
    experts: ("mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
    shared: None,
    shared_gate: None,
};
const MLP_WITH_GATED_SHARED: Names =
    Names { shared: Some("mlp.shared_expert"), shared_gate: Some("mlp.shared_expert_gate.weight"), ..MLP };
const MLP_WITH_SHARED: Names =
    Names { selection_bias: Some("mlp.gate.e_score_correction_bias"), shared: Some("mlp.shared_experts"), ..MLP };
const SPARSE_BLOCK: Names =
    Names { router: "block_sparse_moe.gate", experts: ("block_sparse_moe.experts", ["w1", "w3", "w2"]), ..MLP };

const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "deepseek2", config: deepseek2, names: MLP_WITH_SHARED },
    Architecture { name: "dots1", config: |k| relative_of_v3(k, "dots1"), names: MLP_WITH_SHARED },
    Architecture { name: "glm4moe", config: |k| relative_of_v3(k, "glm4_moe"), names: MLP_WITH_SHARED },
    Architecture { name: "gpt-oss", config: gpt_oss, names: Names { router: "mlp.router", ..MLP } },
    Architecture { name: "llama", config: mixtral, names: SPARSE_BLOCK },
    Architecture {
        name: "minimax-m2",
        config: minimax_m2,
        names: Names { selection_bias: Some("block_sparse_moe.e_score_correction_bias"), ..SPARSE_BLOCK },
    },
    Architecture { name: "olmoe", config: olmoe, names: MLP },
    Architecture { name: "qwen2moe", config: |k| qwen(k, "qwen2_moe", false, true), names: MLP_WITH_GATED_SHARED },
    Architecture {
        name: "qwen35moe",
        config: |k| qwen(k, "qwen3_5_moe_text", true, true),
        names: MLP_WITH_GATED_SHARED,
    },
    Architecture { name: "qwen3moe", config: |k| qwen(k, "qwen3_moe", true, false), names: MLP },
    Architecture { name: "qwen3next", config: |k| qwen(k, "qwen3_next", true, true), names: MLP_WITH_GATED_SHARED },
    Architecture { name: "qwen3vlmoe", config: |k| qwen(k, "qwen3_vl_moe_text", true, false), names: MLP },
];

/// The numbers that `expert_gating_func` has for functions of the scores.
const SOFTMAX: u64 = 1;
const SIGMOID: u64 = 2;
const SOFTMAX_OF_CHOSEN: u64 = 3;

impl Architecture {
    /// The architecture that a file names.
    pub(crate) fn of(file: &Path, gguf: &Gguf) -> Result<&'static Architecture, Diagnostic> {
        let name = match gguf.metadata.get("general.architecture") {
            Some(Value::Text(name)) => name,
            _ => {
                let message = format!("`{}` does not say `general.architecture`, a name", file.display());
                return Err(Diagnostic::input("gguf-metadata-missing", message)
                    .help("give the first part of a split model, or convert it again"));
            }
        };
        ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|a| a.name).collect();
            let shown: String = name.chars().take(60).collect();
            Diagnostic::input(
                "gguf-model-unsupported",
                format!(
                    "`{}` is of the architecture `{shown}`, which moec does not read from GGUF files",
                    file.display()
                ),
            )
            .note(format!("architectures that are read: {}", known.join(", ")))
            .help("use the model's safetensors checkpoint, which more families are read from")
        })
    }
}

/// What all architectures have.
fn common(k: &Keys<'_>, model_type: &str) -> Result<Config, Diagnostic> {
    let n_experts = k.whole_or_none("expert_count")?.unwrap_or(0);
    if n_experts == 0 {
        return Err(k.missing("expert_count", "the number of experts").note("the model may be a dense one"));
    }
    let blocks = k.whole("block_count")?;
    let further = k.whole_or_none("nextn_predict_layers")?.unwrap_or(0);
    if further >= blocks {
        return Err(k.mismatch(format!("says that {further} of its {blocks} blocks predict further tokens")));
    }
    let mut config = Config::new();
    config.insert("model_type".into(), json!(model_type));
    config.insert("hidden_size".into(), json!(k.whole("embedding_length")?));
    config.insert("hidden_act".into(), json!("silu"));
    config.insert("num_hidden_layers".into(), json!(blocks - further));
    config.insert("num_experts_per_tok".into(), json!(k.whole("expert_used_count")?));
    Ok(config)
}

fn n_experts(k: &Keys<'_>) -> Result<serde_json::Value, Diagnostic> {
    k.whole("expert_count").map(|n| json!(n))
}

/// Checks that nothing is said about routing other than what llama.cpp does for the architecture.
fn routes_as(k: &Keys<'_>, gating: u64, renormalises: bool) -> Result<(), Diagnostic> {
    k.expect("expert_gating_func", &[gating], "all models of the architecture have another function of the scores")?;
    k.expect("expert_group_count", &[0, 1], "its models do not choose groups of experts")?;
    k.expect("expert_group_used_count", &[0, 1], "its models do not choose groups of experts")?;
    k.expect("leading_dense_block_count", &[0], "all its layers have experts")?;
    if let Some(other) = k.flag_or_none("expert_weights_norm")?.filter(|n| *n != renormalises) {
        return Err(k.unsupported(
            "expert_weights_norm",
            &other.to_string(),
            "llama.cpp does the opposite for the architecture",
        ));
    }
    scale(k).and_then(|s| match s {
        1.0 => Ok(()),
        other => {
            Err(k.unsupported("expert_weights_scale", &other.to_string(), "its models do not scale expert weights"))
        }
    })
}

/// What the weights of experts are multiplied with; 0 stands for nothing.
fn scale(k: &Keys<'_>) -> Result<f64, Diagnostic> {
    Ok(k.real_or_none("expert_weights_scale")?.filter(|s| *s != 0.0).unwrap_or(1.0))
}

/// Checks that the width of an expert, where it is said a second time, is the same.
fn same_width(k: &Keys<'_>, other: &str, ffn: u64) -> Result<(), Diagnostic> {
    match k.whole_or_none(other)? {
        Some(n) if n != ffn && n != 0 => {
            Err(k.mismatch(format!("says `{other}` = {n}, but elsewhere that experts are {ffn} wide")))
        }
        _ => Ok(()),
    }
}

/// Qwen: softmax, and with a shared expert a sigmoid gate of it.
fn qwen(k: &Keys<'_>, model_type: &str, renormalises: bool, shared: bool) -> Result<Config, Diagnostic> {
    let mut config = common(k, model_type)?;
    routes_as(k, SOFTMAX, renormalises)?;
    config.insert("num_experts".into(), n_experts(k)?);
    config.insert("moe_intermediate_size".into(), json!(k.whole("expert_feed_forward_length")?));
    config.insert("norm_topk_prob".into(), json!(renormalises));
    config.insert("decoder_sparse_step".into(), json!(1));
    config.insert("mlp_only_layers".into(), json!([]));
    if shared {
        k.expect("expert_shared_count", &[1], "its models have one shared expert")?;
        config.insert("shared_expert_intermediate_size".into(), json!(k.whole("expert_shared_feed_forward_length")?));
    }
    Ok(config)
}

/// Mixtral, whose architecture is that of Llama: softmax, renormalised.
fn mixtral(k: &Keys<'_>) -> Result<Config, Diagnostic> {
    let mut config = common(k, "mixtral")?;
    routes_as(k, SOFTMAX, true)?;
    let ffn = k.whole("feed_forward_length")?;
    same_width(k, "expert_feed_forward_length", ffn)?;
    config.insert("num_local_experts".into(), n_experts(k)?);
    config.insert("intermediate_size".into(), json!(ffn));
    Ok(config)
}

/// OLMoE: softmax, not renormalised.
fn olmoe(k: &Keys<'_>) -> Result<Config, Diagnostic> {
    let mut config = common(k, "olmoe")?;
    routes_as(k, SOFTMAX, false)?;
    let ffn = k.whole("feed_forward_length")?;
    same_width(k, "expert_feed_forward_length", ffn)?;
    config.insert("num_experts".into(), n_experts(k)?);
    config.insert("intermediate_size".into(), json!(ffn));
    config.insert("norm_topk_prob".into(), json!(false));
    Ok(config)
}

/// gpt-oss: softmax over the chosen; the constants of its activation are llama.cpp's too.
fn gpt_oss(k: &Keys<'_>) -> Result<Config, Diagnostic> {
    let mut config = common(k, "gpt_oss")?;
    routes_as(k, SOFTMAX_OF_CHOSEN, false)?;
    for key in ["swiglu_clamp_exp", "swiglu_clamp_shexp"] {
        if let Some(limit) = k.real_or_none(key)?.filter(|l| *l != 7.0) {
            return Err(k.unsupported(key, &limit.to_string(), "the activation of its models is clamped at 7"));
        }
    }
    config.insert("num_local_experts".into(), n_experts(k)?);
    config.insert("intermediate_size".into(), json!(k.whole("expert_feed_forward_length")?));
    Ok(config)
}

/// MiniMax-M2: sigmoid with a bias for the choice, renormalised.
fn minimax_m2(k: &Keys<'_>) -> Result<Config, Diagnostic> {
    let mut config = common(k, "minimax_m2")?;
    if k.whole_or_none("expert_gating_func")?.is_none() {
        return Err(k.missing("expert_gating_func", "the function of the scores"));
    }
    routes_as(k, SIGMOID, true)?;
    config.insert("num_local_experts".into(), n_experts(k)?);
    config.insert("intermediate_size".into(), json!(k.whole("expert_feed_forward_length")?));
    config.insert("scoring_func".into(), json!("sigmoid"));
    config.insert("use_routing_bias".into(), json!(k.has_tensor(".exp_probs_b.bias") || k.has_tensor(".exp_probs_b")));
    Ok(config)
}

/// DeepSeek-V2 (softmax), and V3 and Kimi-K2 (sigmoid), which have one name.
fn deepseek2(k: &Keys<'_>) -> Result<Config, Diagnostic> {
    let bias = k.has_tensor(".exp_probs_b.bias") || k.has_tensor(".exp_probs_b");
    let sigmoid = match k.whole_or_none("expert_gating_func")? {
        Some(SIGMOID) => true,
        Some(SOFTMAX) => false,
        // Files of DeepSeek-V2 are older than the key; llama.cpp takes softmax for them.
        None if !bias => false,
        None => return Err(k.missing("expert_gating_func", "the function of the scores")),
        Some(n) => return Err(k.unsupported("expert_gating_func", &n.to_string(), "1 is softmax, 2 is sigmoid")),
    };
    if sigmoid != bias {
        let (function, are) = if sigmoid { ("sigmoid", "are no") } else { ("softmax", "are") };
        return Err(k.mismatch(format!("says that scores are a {function}, but there {are} tensors `exp_probs_b`")));
    }
    // DeepSeek-V3 chooses among groups, Kimi-K2 does not; old files tell neither.
    let (groups, kept) =
        groups(k)?.ok_or_else(|| k.missing("expert_group_count", "the number of groups of experts"))?;
    let mut config = with_shared(k, if sigmoid { "deepseek_v3" } else { "deepseek_v2" })?;
    if !sigmoid {
        let renormalises = config.get("norm_topk_prob") == Some(&json!(true));
        if renormalises && scale(k)? != 1.0 {
            let why = "DeepSeek-V2 renormalises the weights of experts or scales them, not both";
            return Err(k.unsupported("expert_weights_scale", &scale(k)?.to_string(), why));
        }
        config.insert("scoring_func".into(), json!("softmax"));
        let method = if groups > 1 { "group_limited_greedy" } else { "greedy" };
        config.insert("topk_method".into(), json!(method));
    }
    config.insert("n_group".into(), json!(groups));
    config.insert("topk_group".into(), json!(kept));
    Ok(config)
}

/// GLM-4.5 and dots.llm1, as DeepSeek-V3; without groups of experts where a file says nothing of them, as all published
/// models of these architectures are.
fn relative_of_v3(k: &Keys<'_>, model_type: &str) -> Result<Config, Diagnostic> {
    // llama.cpp takes the sigmoid where a file says nothing.
    k.expect("expert_gating_func", &[SIGMOID], "its models have sigmoid scores")?;
    let (groups, kept) = groups(k)?.unwrap_or((1, 1));
    let mut config = with_shared(k, model_type)?;
    config.insert("n_group".into(), json!(groups));
    config.insert("topk_group".into(), json!(kept));
    Ok(config)
}

/// How many groups of experts there are, and how many of them are chosen.
fn groups(k: &Keys<'_>) -> Result<Option<(u64, u64)>, Diagnostic> {
    match (k.whole_or_none("expert_group_count")?, k.whole_or_none("expert_group_used_count")?) {
        (None, None) => Ok(None),
        (Some(groups @ (0 | 1)), _) => Ok(Some((groups.max(1), 1))),
        (Some(groups), Some(kept)) => Ok(Some((groups, kept))),
        (Some(_), None) => Err(k.missing("expert_group_used_count", "how many groups of experts are chosen")),
        (None, Some(_)) => Err(k.missing("expert_group_count", "the number of groups of experts")),
    }
}

/// Experts and shared experts of one width, after dense layers.
fn with_shared(k: &Keys<'_>, model_type: &str) -> Result<Config, Diagnostic> {
    let mut config = common(k, model_type)?;
    let ffn = k.whole("expert_feed_forward_length")?;
    let shared = k.whole("expert_shared_count")?;
    same_width(k, "expert_shared_feed_forward_length", shared.saturating_mul(ffn))?;
    config.insert("n_routed_experts".into(), n_experts(k)?);
    config.insert("n_shared_experts".into(), json!(shared));
    config.insert("moe_intermediate_size".into(), json!(ffn));
    config.insert("first_k_dense_replace".into(), json!(k.whole("leading_dense_block_count")?));
    config.insert("num_nextn_predict_layers".into(), json!(k.whole_or_none("nextn_predict_layers")?.unwrap_or(0)));
    // Without the key llama.cpp does not renormalise.
    config.insert("norm_topk_prob".into(), json!(k.flag_or_none("expert_weights_norm")?.unwrap_or(false)));
    config.insert("routed_scaling_factor".into(), json!(scale(k)?));
    Ok(config)
}
