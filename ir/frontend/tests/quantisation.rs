//! Which weights stay as published: every spelling of a quantised config that is in use.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_frontend::{Layer, LayerOptions, ModelConfig};

/// A small DeepSeek layer with a shared expert, and the members `more` in its config.
fn layer(more: &str) -> Layer {
    let text = format!(
        r#"{{ "model_type": "deepseek_v3", "hidden_size": 256, "moe_intermediate_size": 256, "n_routed_experts": 8,
             "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_hidden_layers": 8,
             "first_k_dense_replace": 1, "routed_scaling_factor": 1.0 {more} }}"#
    );
    ModelConfig::from_text("config.json", text).unwrap().layer(Some(3), &LayerOptions::default()).unwrap()
}

/// Formats of gate, up and down of the routed experts, then of the shared one; `-` for floats.
fn stored(layer: &Layer) -> String {
    let one = |name: &str| {
        let p = layer.graph.params.iter().find(|p| p.name == name).unwrap();
        p.stored.map_or_else(|| "-".to_string(), |f| f.to_string())
    };
    let group = |kind: &str| {
        let all = ["gate", "up", "down"].map(|m| one(&format!("{kind}.{m}")));
        if all.iter().all(|f| *f == all[0]) { all[0].clone() } else { all.join(", ") }
    };
    format!("{} | {}", group("experts"), group("shared"))
}

fn quantised(config: &str) -> Layer {
    layer(&format!(r#", "quantization_config": {config}"#))
}

#[test]
fn formats_of_one_kind() {
    const GROUP: &str = r#"{ "quant_method": "compressed-tensors", "format": "FORMAT",
        "config_groups": { "group_0": { "targets": ["Linear"], "weights": WEIGHTS } } }"#;
    let group = |format: &str, weights: &str| GROUP.replace("FORMAT", format).replace("WEIGHTS", weights);
    let fp8 = |strategy: &str| {
        let weights = format!(r#"{{ "num_bits": 8, "type": "float", "symmetric": true, "strategy": {strategy} }}"#);
        group("float-quantized", &weights)
    };
    let int4 = |more: &str| group("pack-quantized", &format!(r#"{{ "num_bits": 4, "type": "int", {more} }}"#));
    let (tensor, row, block) = ("e4m3 by f32(0, 0)", "e4m3 by f32(1, 0)", "e4m3 by f32(128, 128)");
    let (mxfp8, mxfp4, nvfp4) = ("e4m3 by e8m0(1, 32)", "e2m1 by e8m0(1, 32)", "e2m1 by e4m3(1, 16)");
    for (config, want) in [
        (r#"{ "quant_method": "fp8", "weight_block_size": [128, 128] }"#.to_string(), block),
        (r#"{ "quant_method": "fp8", "weight_block_size": [64, 32] }"#.to_string(), "e4m3 by f32(64, 32)"),
        (r#"{ "quant_method": "fp8", "weight_block_size": [1, 32] }"#.to_string(), mxfp8),
        (r#"{ "quant_method": "fp8", "activation_scheme": "static" }"#.to_string(), tensor),
        (r#"{ "quant_method": "fbgemm_fp8" }"#.to_string(), row),
        (r#"{ "quant_method": "mxfp8" }"#.to_string(), mxfp8),
        (r#"{ "quant_method": "nvfp4" }"#.to_string(), nvfp4),
        (r#"{ "quant_method": "modelopt", "quant_algo": "FP8" }"#.to_string(), tensor),
        (r#"{ "quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN" }"#.to_string(), row),
        (r#"{ "quant_method": "modelopt", "quant_algo": "FP8_PB_WO" }"#.to_string(), block),
        (r#"{ "quant_method": "modelopt", "quant_algo": "MXFP8" }"#.to_string(), mxfp8),
        (r#"{ "quant_method": "modelopt", "quant_algo": "NVFP4" }"#.to_string(), nvfp4),
        (r#"{ "quant_method": "modelopt_fp4", "quant_algo": "nvfp4" }"#.to_string(), nvfp4),
        (r#"{ "quant_algo": "W4A8_MXFP4_FP8" }"#.to_string(), mxfp4),
        (fp8(r#""tensor""#), tensor),
        (fp8(r#""channel""#), row),
        (fp8(r#""block", "block_structure": [128, 128]"#), block),
        (fp8(r#""group", "group_size": 128"#), "e4m3 by f32(1, 128)"),
        (fp8(r#""group", "group_size": 32, "scale_dtype": "torch.uint8""#), mxfp8),
        (group("mxfp4-pack-quantized", r#"{ "num_bits": 4, "type": "float", "group_size": 32 }"#), mxfp4),
        (
            group(
                "nvfp4-pack-quantized",
                r#"{ "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16 }"#,
            ),
            nvfp4,
        ),
        (int4(r#""strategy": "group", "group_size": 32, "symmetric": true"#), "int4 by bf16(1, 32)"),
        (int4(r#""strategy": "group", "group_size": 128, "actorder": null"#), "int4 by bf16(1, 128)"),
        (int4(r#""strategy": "channel", "group_size": null, "symmetric": true"#), "int4 by bf16(1, 0)"),
        // Zero points, orders of columns and integers of eight bits become floats.
        (int4(r#""strategy": "group", "group_size": 32, "symmetric": false"#), "-"),
        (int4(r#""strategy": "group", "group_size": 32, "symmetric": true, "actorder": "group""#), "-"),
        (group("int-quantized", r#"{ "num_bits": 8, "type": "int", "strategy": "channel" }"#), "-"),
        (r#"{ "quant_method": "gptq", "bits": 4, "group_size": 128 }"#.to_string(), "-"),
        (r#"{ "quant_method": "awq", "bits": 4 }"#.to_string(), "-"),
    ] {
        let layer = quantised(&config);
        assert_eq!(stored(&layer), format!("{want} | {want}"), "{config}");
        assert_eq!(layer.loadable(), Ok(()), "{config}");
    }
    // Scales have the model's own type.
    let half = layer(&format!(
        r#", "dtype": "float16", "quantization_config": {}"#,
        int4(r#""strategy": "group", "group_size": 32"#)
    ));
    assert_eq!(stored(&half), "int4 by f16(1, 32) | int4 by f16(1, 32)");
}

#[test]
fn groups_have_targets_of_their_own() {
    let nvfp4 = r#"{ "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16 }"#;
    let fp8 = r#"{ "num_bits": 8, "type": "float", "strategy": "channel" }"#;
    let mixed = |targets: &str| {
        quantised(&format!(
            r#"{{ "quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {{
                "group_0": {{ "format": "float-quantized", "targets": ["Linear"], "weights": {fp8} }},
                "group_1": {{ "format": "nvfp4-pack-quantized", "targets": {targets}, "weights": {nvfp4} }} }} }}"#
        ))
    };
    // A name counts before a class, whatever the order of the groups.
    let layer = mixed(r#"["re:.*mlp\\.experts\\.\\d+\\.(gate|up|down)_proj$"]"#);
    assert_eq!(stored(&layer), "e2m1 by e4m3(1, 16) | e4m3 by f32(1, 0)");
    let layer = mixed(r#"["model.layers.3.mlp.shared_experts.down_proj"]"#);
    assert_eq!(stored(&layer), "e4m3 by f32(1, 0) | e4m3 by f32(1, 0), e4m3 by f32(1, 0), e2m1 by e4m3(1, 16)");
    // Only attention is quantised.
    let layer = quantised(&format!(
        r#"{{ "quant_method": "compressed-tensors", "config_groups": {{
            "group_0": {{ "targets": ["re:.*self_attn.*"], "weights": {fp8} }} }} }}"#
    ));
    assert_eq!(stored(&layer), "- | -");
}

#[test]
fn layers_of_a_mixture_say_what_they_are() {
    let layer = quantised(
        r#"{ "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {
            "model.layers.3.mlp.experts": { "quant_algo": "NVFP4", "group_size": 16 },
            "model.layers.3.mlp.shared_experts.up_proj": { "quant_algo": "FP8" },
            "model.layers.4.mlp.shared_experts": { "quant_algo": "FP8" } } }"#,
    );
    assert_eq!(stored(&layer), "e2m1 by e4m3(1, 16) | -, e4m3 by f32(0, 0), -");
}

#[test]
fn excluded_modules_stay_floats_in_every_spelling() {
    let both = "e4m3 by f32(0, 0)";
    for (key, pattern, want) in [
        ("ignore", "re:.*shared_experts.*", "e4m3 by f32(0, 0) | -"),
        ("modules_to_not_convert", "shared_experts", "e4m3 by f32(0, 0) | -"),
        ("exclude_modules", "*mlp.shared_experts*", "e4m3 by f32(0, 0) | -"),
        ("exclude_modules", "model.layers.3*", "- | -"),
        ("ignored_layers", "model.layers.3.mlp.experts", "- | e4m3 by f32(0, 0)"),
        ("ignore", "re:.*mlp\\\\.(gate|up|gate_up|down)_proj.*", "e4m3 by f32(0, 0) | e4m3 by f32(0, 0)"),
        ("ignore", "re:(not understood", "- | -"),
        ("modules_to_not_convert", "model.layers.30", "e4m3 by f32(0, 0) | e4m3 by f32(0, 0)"),
    ] {
        let layer = quantised(&format!(r#"{{ "quant_method": "fp8", "{key}": ["lm_head", "{pattern}"] }}"#));
        assert_eq!(stored(&layer), want, "{key}: {pattern}");
    }
    assert_eq!(stored(&quantised(r#"{ "quant_method": "fp8", "ignore": null }"#)), format!("{both} | {both}"));
}

#[test]
fn methods_that_are_not_read_are_told() {
    for config in [
        r#"{ "quant_method": "bitsandbytes", "load_in_4bit": true }"#,
        r#"{ "quant_method": "gptq", "bits": 5 }"#,
        r#"{ "quant_method": "awq", "bits": 8 }"#,
        r#"{ "quant_method": "modelopt", "quant_algo": "W3A16" }"#,
        r#"{ "quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": { "group_0": {
            "targets": ["Linear"], "weights": { "num_bits": 4, "type": "int", "group_size": 128 } } } }"#,
        r#"{ "bits": 2 }"#,
    ] {
        let layer = quantised(config);
        assert_eq!(layer.loadable().unwrap_err().code, "quantised-checkpoint", "{config}");
        assert_eq!(stored(&layer), "- | -", "{config}");
    }
}

#[test]
fn modelopt_writes_a_file_beside_the_config() {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("modelopt");
    std::fs::create_dir_all(&dir).unwrap();
    let config = include_str!("configs/qwen3-30b-a3b.json");
    std::fs::write(dir.join("config.json"), config).unwrap();
    let beside = r#"{ "producer": { "name": "modelopt" }, "quantization": { "quant_algo": "NVFP4", "group_size": 16,
        "exclude_modules": ["lm_head", "model.layers.*.mlp.gate", "model.layers.0.mlp.experts*"] } }"#;
    std::fs::write(dir.join("hf_quant_config.json"), beside).unwrap();
    for path in [dir.clone(), dir.join("config.json")] {
        let model = ModelConfig::open(path).unwrap();
        assert_eq!(model.quantization(), Some("modelopt NVFP4"));
        let formats = |n| {
            let layer = model.layer(Some(n), &LayerOptions::default()).unwrap();
            layer.graph.params.iter().filter_map(|p| p.stored).map(|f| f.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(formats(1), ["e2m1 by e4m3(1, 16)"; 3]);
        assert!(formats(0).is_empty());
    }
}

#[test]
fn expert_dtype_says_what_quant_method_does_not() {
    let text = std::fs::read_to_string(
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs/deepseek-v4-flash.json"),
    );
    let model = ModelConfig::from_text("config.json", text.unwrap()).unwrap();
    let layer = model.layer(None, &LayerOptions::default()).unwrap();
    assert_eq!(stored(&layer), "e2m1 by e8m0(1, 32) | e4m3 by f32(128, 128)");
}

#[test]
fn mistral_says_the_format_in_its_params() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/models/mistral-large-3-nvfp4");
    let layer = ModelConfig::open(&path).unwrap().layer(None, &LayerOptions::default()).unwrap();
    assert_eq!(stored(&layer), "e2m1 by e4m3(1, 16) | e2m1 by e4m3(1, 16)");
    assert_eq!(layer.loadable(), Ok(()));
    let text = std::fs::read_to_string(path.join("params.json")).unwrap();
    let start = text.find("\"quantization\"").unwrap();
    for (value, want, read) in [
        (r#"{ "qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR" }"#, "e4m3 by f32(0, 0)", true),
        (r#"{ "qformat_weight": "int3" }"#, "-", false),
    ] {
        let text = format!("{}\"quantization\": {value} }}", &text[..start]);
        let layer = ModelConfig::from_text("params.json", text).unwrap().layer(None, &LayerOptions::default()).unwrap();
        assert_eq!((stored(&layer), layer.loadable().is_ok()), (format!("{want} | {want}"), read));
    }
}
