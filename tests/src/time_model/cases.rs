//! The layers whose times are modelled.

use moec_frontend::{LayerOptions, ModelConfig};
use moec_ir::ActQuant;
use moec_ir::graph::{Graph, quantise_activations};
use moec_ir::target::Target;
use moec_ir::tile::Program;
use moec_passes::{CompileOptions, Variant};
use serde_json::{Value, json};

/// A model, and the format of its activations.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) config: Value,
    pub(super) activations: Option<&'static str>,
}

pub(crate) fn nvfp4() -> Value {
    let weights = json!({ "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": true,
                          "dynamic": false });
    json!({ "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "ignore": ["lm_head"],
            "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } } })
}

/// The same with rows rounded to NVFP4, too, by a scale that the checkpoint gives.
fn nvfp4_rows() -> Value {
    let mut all = nvfp4();
    let rows = json!({ "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": true,
                       "dynamic": "local" });
    all["config_groups"]["group_0"]["input_activations"] = rows;
    all
}

pub(crate) fn with(mut base: Value, more: &Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more.clone());
    }
    base
}

pub(super) fn cases() -> Vec<Case> {
    let sized = |prefix: &str, sizes: Value| {
        let models = crate::traffic::models();
        let base = models.into_iter().find(|m| m.name.starts_with(prefix)).expect("a model of the table");
        with(base.config, &sizes)
    };
    let v3 = json!({ "hidden_size": 7168, "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8 });
    let deepseek = sized("DeepSeek", v3.clone());
    let kimi = sized("Kimi", with(v3, &json!({ "n_routed_experts": 384 })));
    let gpt =
        json!({ "hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 128, "num_experts_per_tok": 4 });
    let gpt = sized("gpt-oss", gpt);
    let qwen =
        json!({ "hidden_size": 4096, "moe_intermediate_size": 1536, "num_experts": 128, "num_experts_per_tok": 8 });
    let qwen = sized("Qwen3", qwen);
    let mixtral = sized("Mixtral", json!({ "hidden_size": 4096, "intermediate_size": 14336 }));
    let in_nvfp4 = |config: &Value| with(config.clone(), &json!({ "quantization_config": nvfp4() }));
    let in_both = |config: &Value| with(config.clone(), &json!({ "quantization_config": nvfp4_rows() }));
    let case = |name, config, activations| Case { name, config, activations };
    vec![
        case("DeepSeek-V3, NVFP4 × NVFP4", in_both(&deepseek), Some("nvfp4-static")),
        case("DeepSeek-V3, NVFP4 weights", in_nvfp4(&deepseek), None),
        case("DeepSeek-V3, FP8 × FP8", deepseek.clone(), Some("fp8-block")),
        case("DeepSeek-V3, FP8 weights", deepseek, None),
        case("Kimi K2, NVFP4 × NVFP4", in_both(&kimi), Some("nvfp4-static")),
        case("gpt-oss-120b, MXFP4 × MXFP8", gpt.clone(), Some("mxfp8")),
        case("gpt-oss-120b, MXFP4 weights", gpt, None),
        case("Qwen3-235B, NVFP4 × NVFP4", in_both(&qwen), Some("nvfp4-static")),
        case("Qwen3-235B, bf16", qwen, None),
        case("Mixtral 8x7B, bf16", mixtral, None),
    ]
}

/// A rank of a tensor-parallel group: width of its part of an expert, and the model.
pub(super) fn ranks() -> [(u32, Case); 3] {
    let all = cases();
    let of = |name: &str, sizes: Value| {
        let case = all.iter().find(|c| c.name == name).expect("a case");
        Case { name: case.name, config: with(case.config.clone(), &sizes), activations: None }
    };
    [
        (8, of("Mixtral 8x7B, bf16", json!({ "intermediate_size": 14336 / 8 }))),
        (8, of("Qwen3-235B, bf16", json!({ "moe_intermediate_size": 1536 / 8 }))),
        (4, of("gpt-oss-120b, MXFP4 weights", json!({ "intermediate_size": 2880 / 4 }))),
    ]
}

/// Ranks as engines spread these layers over eight GPUs: an expert-parallel one that holds an eighth of the experts and takes
/// the rows of all ranks, which come to eight for each of its own tokens, and a tensor-parallel one.
pub(super) fn shards() -> [Case; 3] {
    let all = cases();
    let config = |name: &str| all.iter().find(|c| c.name == name).expect("a case").config.clone();
    let deepseek = with(config("DeepSeek-V3, FP8 × FP8"), &json!({ "n_routed_experts": 32 }));
    let fp8 = json!({ "quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic" });
    let qwen = json!({ "moe_intermediate_size": 1536 / 8, "quantization_config": fp8 });
    let qwen = with(config("Qwen3-235B, bf16"), &qwen);
    [
        Case { name: "DeepSeek-V3, EP8, FP8 × FP8", config: deepseek.clone(), activations: Some("fp8-block") },
        Case { name: "DeepSeek-V3, EP8, FP8 weights", config: deepseek, activations: None },
        Case { name: "Qwen3-235B, TP8, FP8 weights", config: qwen, activations: None },
    ]
}

pub(super) fn graph(case: &Case) -> Graph {
    let config = ModelConfig::from_text(case.name, case.config.to_string()).unwrap_or_else(|d| panic!("{d:?}"));
    let graph = config.layer(None, &LayerOptions::default()).unwrap_or_else(|d| panic!("{d:?}")).graph;
    let format = case.activations.map(|a| ActQuant::from_name(a).expect("a known format"));
    format.map_or(Ok(graph.clone()), |f| quantise_activations(&graph, f)).unwrap_or_else(|d| panic!("{d:?}"))
}

pub(super) fn variant(variants: &[Variant], n_tokens: u64) -> &Program {
    &variants.iter().find(|v| v.tokens.1 >= n_tokens).expect("a variant for any token count").program
}

/// The programs of a layer for a target.
pub(super) fn compile(case: &Case, target: &Target) -> Vec<Variant> {
    moec_passes::compile(&graph(case), target, &CompileOptions::default())
        .unwrap_or_else(|d| panic!("{}: {d:?}", case.name))
}
