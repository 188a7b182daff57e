//! Switch Transformers, NLLB-MoE and the picture encoder of Dots-3: which layers have experts, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_frontend::{LayerOptions, ModelConfig};
use serde_json::{Value, json};

fn open(config: &Value) -> ModelConfig {
    ModelConfig::from_text("config.json", config.to_string()).unwrap()
}

fn code(config: &Value) -> String {
    match open(config).layer(None, &LayerOptions::default()) {
        Ok(_) => String::new(),
        Err(d) => d[0].code.to_string(),
    }
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

fn switch() -> Value {
    json!({ "model_type": "switch_transformers", "d_model": 64, "d_ff": 32, "num_layers": 12, "num_decoder_layers": 6,
            "num_experts": 8, "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 2, "expert_capacity": null })
}

fn nllb() -> Value {
    json!({ "model_type": "nllb-moe", "d_model": 64, "encoder_ffn_dim": 32, "decoder_ffn_dim": 48, "encoder_layers": 8,
            "decoder_layers": 8, "num_experts": 8, "encoder_sparse_step": 4, "decoder_sparse_step": 2 })
}

#[test]
fn layers_of_the_decoder_are_numbered_after_the_encoders() {
    assert_eq!(open(&switch()).moe_layers(), [1, 5, 9, 13, 16]);
    assert_eq!(open(&nllb()).moe_layers(), [3, 7, 9, 11, 13, 15]);
    let ffn = |layer| open(&nllb()).layer(Some(layer), &LayerOptions::default()).unwrap().description.ffn;
    assert_eq!((ffn(7), ffn(9)), (32, 48));
}

#[test]
fn asking_switch_for_no_layer_with_experts_gives_one() {
    // The class divides by nothing and falls back to a step of all layers, from the second on.
    let none = with(switch(), "num_sparse_encoder_layers", json!(0));
    assert_eq!(open(&none).moe_layers(), [1, 13, 16]);
}

#[test]
fn a_limit_on_the_tokens_of_an_expert_has_to_be_lifted() {
    assert_eq!(code(&switch()), "");
    assert_eq!(code(&with(switch(), "expert_capacity", json!(64))), "unsupported-layer");
    let mut default = switch();
    default.as_object_mut().unwrap().remove("expert_capacity");
    assert_eq!(code(&default), "unsupported-layer");
    assert_eq!(code(&nllb()), "");
    assert_eq!(code(&with(nllb(), "moe_eval_capacity_token_fraction", json!(0.5))), "unsupported-layer");
    assert_eq!(code(&with(nllb(), "moe_eval_capacity_token_fraction", json!(-1.0))), "unsupported-layer");
}

#[test]
fn the_pyramid_of_dots_has_more_experts_from_layer_to_layer() {
    let config = |extra: &[(&str, Value)]| {
        let mut config = json!({ "model_type": "dots3_note_vision_encoder", "embed_dim": 64, "moe_intermediate_size": 32,
                                 "num_hidden_layers": 42 });
        extra.iter().for_each(|(key, value)| config[key] = value.clone());
        config
    };
    let sizes = |config: &Value, layer| {
        let facts = open(config).layer(Some(layer), &LayerOptions::default()).unwrap().description;
        (facts.n_experts, facts.top_k)
    };
    let released = config(&[]);
    assert_eq!(open(&released).moe_layers(), (25..42).collect::<Vec<u32>>());
    assert_eq!([sizes(&released, 25), sizes(&released, 41)], [(4, 2), (64, 2)]);
    let list: Vec<i64> = (0..42).map(|i| if i < 40 { -1 } else { i - 39 }).collect();
    let listed = config(&[("pyramid_num_routed", json!(list)), ("capacity_factor", json!(3))]);
    assert_eq!(open(&listed).moe_layers(), [40, 41]);
    assert_eq!([sizes(&listed, 40), sizes(&listed, 41)], [(1, 1), (2, 2)]);
    let types: Vec<&str> = (0..42).map(|i| if i == 7 { "sparse" } else { "dense" }).collect();
    let per_layer = json!({ "7": { "num_local_experts": 12, "num_experts_per_tok": 5 } });
    let saved = config(&[("mlp_layer_types", json!(types)), ("per_layer_config", per_layer)]);
    assert_eq!(open(&saved).moe_layers(), [7]);
    assert_eq!(sizes(&saved, 7), (12, 5));
}
