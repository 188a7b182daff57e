//! The layers of published models, in numbers: every file of `configs` is understood or refused with its reason.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_frontend::{LayerOptions, ModelConfig, layers};
use std::path::PathBuf;

/// Name; MoE layers: experts, per token, hidden size, expert width, width of the shared expert; router; activation.
const UNDERSTOOD: &[(&str, &str)] = &[
    ("dbrx", "0-39: 16 4 6144 10752 0; bf16 logits, softmax over 16, top 4, weights divided by their 1.0-norm; SwiGLU"),
    (
        "deepseek-r1",
        "3-60: 256 8 7168 2048 2048; f32 logits, sigmoid over 256, a bias for the choice only, the best 4 of 8 groups by sum of two largest scores, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    ("deepseek-v2-lite", "1-26: 64 6 2048 1408 2816; f32 logits, softmax over 64, top 6; SwiGLU"),
    (
        "deepseek-v2.reconstructed",
        "1-59: 160 6 5120 1536 3072; f32 logits, softmax over 160, the best 3 of 8 groups by largest score, top 6, times 16; SwiGLU",
    ),
    (
        "deepseek-v3",
        "3-60: 256 8 7168 2048 2048; f32 logits, sigmoid over 256, a bias for the choice only, the best 4 of 8 groups by sum of two largest scores, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    (
        "deepseek-v3.1",
        "3-60: 256 8 7168 2048 2048; f32 logits, sigmoid over 256, a bias for the choice only, the best 4 of 8 groups by sum of two largest scores, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    (
        "deepseek-v3.1-nvfp4",
        "3-60: 256 8 7168 2048 2048; f32 logits, sigmoid over 256, a bias for the choice only, the best 4 of 8 groups by sum of two largest scores, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    (
        "deepseek-v3.2",
        "3-60: 256 8 7168 2048 2048; f32 logits, sigmoid over 256, a bias for the choice only, the best 4 of 8 groups by sum of two largest scores, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    (
        "ernie-4.5-21b-a3b.reconstructed",
        "1-27: 64 6 2560 1536 3072; f32 logits, softmax over 64, a bias for the choice only, top 6, weights divided by their sum, at least 1e-12; SwiGLU",
    ),
    (
        "ernie-4.5-300b-a47b.reconstructed",
        "3-53: 64 8 8192 3584 0; f32 logits, softmax over 64, a bias for the choice only, top 8, weights divided by their sum, at least 1e-12; SwiGLU",
    ),
    (
        "gemma-4-26b-a4b",
        "0-29: 128 8 2816 704 2112; bf16 logits, softmax over 128, top 8, weights divided by their sum, times a factor per expert; GeGLU (tanh)",
    ),
    (
        "glm-4.5-air",
        "1-45: 128 8 4096 1408 1408; f32 logits, sigmoid over 128, a bias for the choice only, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "glm-4.5.reconstructed",
        "3-91: 160 8 5120 1536 1536; f32 logits, sigmoid over 160, a bias for the choice only, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    (
        "glm-4.6.reconstructed",
        "3-91: 160 8 5120 1536 1536; f32 logits, sigmoid over 160, a bias for the choice only, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    (
        "glm-4.7-flash.reconstructed",
        "1-46: 64 4 2048 1536 1536; f32 logits, sigmoid over 64, a bias for the choice only, top 4, weights divided by their sum, times 1.8; SwiGLU",
    ),
    (
        "glm-4.7.reconstructed",
        "3-91: 160 8 5120 1536 1536; f32 logits, sigmoid over 160, a bias for the choice only, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    (
        "glm-5",
        "3-77: 256 8 6144 2048 2048; f32 logits, sigmoid over 256, a bias for the choice only, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    (
        "glm-5-fp8",
        "3-77: 256 8 6144 2048 2048; f32 logits, sigmoid over 256, a bias for the choice only, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    (
        "gpt-oss-120b",
        "0-35: 128 4 2880 2880 0; bf16 logits with bias, top 4, softmax over the chosen; clamped SwiGLU of gpt-oss (alpha 1.702, limit 7.0)",
    ),
    (
        "gpt-oss-20b",
        "0-23: 32 4 2880 2880 0; bf16 logits with bias, top 4, softmax over the chosen; clamped SwiGLU of gpt-oss (alpha 1.702, limit 7.0)",
    ),
    (
        "granite-3.0-1b-a400m.reconstructed",
        "0-23: 32 8 1024 512 0; bf16 logits, top 8, softmax over the chosen; SwiGLU",
    ),
    (
        "granite-3.0-3b-a800m.reconstructed",
        "0-31: 40 8 1536 512 0; bf16 logits, top 8, softmax over the chosen; SwiGLU",
    ),
    (
        "granite-4.0-h-small.reconstructed",
        "0-39: 72 10 4096 768 1536; bf16 logits, top 10, softmax over the chosen; SwiGLU",
    ),
    (
        "granite-4.0-h-tiny.reconstructed",
        "0-39: 64 6 1536 512 1024; bf16 logits, top 6, softmax over the chosen; SwiGLU",
    ),
    (
        "hunyuan-a13b",
        "0-31: 64 8 4096 3072 3072; f32 logits, softmax over 64, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "hy3-preview-295b-a21b",
        "1-79: 192 8 4096 1536 1536; f32 logits, sigmoid over 192, a bias for the choice only, top 8, weights divided by their sum, times 2.826; SwiGLU",
    ),
    ("jamba-1.5-large.reconstructed", "36 layers: 16 2 8192 24576 0; bf16 logits, softmax over 16, top 2; SwiGLU"),
    ("jamba-1.5-mini.reconstructed", "16 layers: 16 2 4096 14336 0; bf16 logits, softmax over 16, top 2; SwiGLU"),
    (
        "kimi-k2-instruct",
        "1-60: 384 8 7168 2048 2048; f32 logits, sigmoid over 384, a bias for the choice only, top 8, weights divided by their sum, times 2.827; SwiGLU",
    ),
    (
        "kimi-k2-thinking.reconstructed",
        "1-60: 384 8 7168 2048 2048; f32 logits, sigmoid over 384, a bias for the choice only, top 8, weights divided by their sum, times 2.827; SwiGLU",
    ),
    (
        "kimi-k2.5",
        "1-60: 384 8 7168 2048 2048; f32 logits, sigmoid over 384, a bias for the choice only, top 8, weights divided by their sum, times 2.827; SwiGLU",
    ),
    (
        "kimi-k2.6-nvfp4",
        "1-60: 384 8 7168 2048 2048; f32 logits, sigmoid over 384, a bias for the choice only, top 8, weights divided by their sum, times 2.827; SwiGLU",
    ),
    (
        "kimi-k3",
        "1-92: 896 16 7168 3072 6144; f32 logits, sigmoid over 896, a bias for the choice only, top 16, weights divided by their sum; SiTU (4.0, 25.0)",
    ),
    (
        "llama4-maverick",
        "24 layers: 128 1 5120 8192 8192; bf16 logits, top 1, sigmoid over the chosen, the weight multiplies the expert's input; SwiGLU",
    ),
    (
        "llama4-scout",
        "0-47: 16 1 5120 8192 8192; bf16 logits, top 1, sigmoid over the chosen, the weight multiplies the expert's input; SwiGLU",
    ),
    (
        "mimo-v2-flash",
        "1-47: 256 8 4096 2048 0; f32 logits, sigmoid over 256, a bias for the choice only, top 8, weights divided by their sum; SwiGLU",
    ),
    ("minimax-m1", "0-79: 32 2 6144 9216 0; bf16 logits, softmax over 32, top 2, weights divided by their sum; SwiGLU"),
    (
        "minimax-m2",
        "0-61: 256 8 3072 1536 0; f32 logits, sigmoid over 256, a bias for the choice only, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "minimax-m2.5",
        "0-61: 256 8 3072 1536 0; f32 logits, sigmoid over 256, a bias for the choice only, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "minimax-m2.7",
        "0-61: 256 8 3072 1536 0; f32 logits, sigmoid over 256, a bias for the choice only, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "minimax-m3.reconstructed",
        "3-59: 128 4 6144 3072 3072; f32 logits, sigmoid over 128, a bias for the choice only, top 4, weights divided by their sum, the sum of experts times 2; clamped SwiGLU of gpt-oss (alpha 1.702, limit 7.0)",
    ),
    (
        "mistral-large-3.reconstructed",
        "3-60: 128 4 7168 4096 4096; f32 logits, softmax over 128, top 4, weights divided by their sum; SwiGLU",
    ),
    (
        "mixtral-8x22b-v0.1",
        "0-55: 8 2 6144 16384 0; bf16 logits, softmax over 8, top 2, weights divided by their sum; SwiGLU",
    ),
    (
        "mixtral-8x7b-v0.1",
        "0-31: 8 2 4096 14336 0; bf16 logits, softmax over 8, top 2, weights divided by their sum; SwiGLU",
    ),
    (
        "nemotron-3-nano-30b-a3b",
        "23 layers: 128 6 2688 1856 3712; f32 logits, sigmoid over 128, a bias for the choice only, top 6, weights divided by their sum, times 2.5; squared ReLU, ungated",
    ),
    (
        "nemotron-3-nano-30b-a3b-nvfp4",
        "23 layers: 128 6 2688 1856 3712; f32 logits, sigmoid over 128, a bias for the choice only, top 6, weights divided by their sum, times 2.5; squared ReLU, ungated",
    ),
    (
        "nemotron-3-super-120b-a12b-fp8",
        "40 layers: 512 22 4096 2688 5376; f32 logits, sigmoid over 512, a bias for the choice only, top 22, weights divided by their sum, times 5; squared ReLU, ungated",
    ),
    (
        "nemotron-3-super-120b-a12b-nvfp4",
        "40 layers: 512 22 4096 2688 5376; f32 logits, sigmoid over 512, a bias for the choice only, top 22, weights divided by their sum, times 5; squared ReLU, ungated",
    ),
    (
        "nemotron-3-ultra-550b-a55b",
        "48 layers: 512 22 8192 5120 10240; f32 logits, sigmoid over 512, a bias for the choice only, top 22, weights divided by their sum, times 5; squared ReLU, ungated",
    ),
    ("olmoe-1b-7b-0125-instruct", "0-15: 64 8 2048 1024 0; bf16 logits, softmax over 64, top 8; SwiGLU"),
    ("qwen1.5-moe-a2.7b.reconstructed", "0-23: 60 4 2048 1408 5632; bf16 logits, softmax over 60, top 4; SwiGLU"),
    ("qwen2-57b-a14b.reconstructed", "0-27: 64 8 3584 2560 20480; bf16 logits, softmax over 64, top 8; SwiGLU"),
    (
        "qwen3-235b-a22b",
        "0-93: 128 8 4096 1536 0; bf16 logits, softmax over 128, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "qwen3-235b-a22b-fp8",
        "0-93: 128 8 4096 1536 0; bf16 logits, softmax over 128, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "qwen3-235b-a22b-nvfp4",
        "0-93: 128 8 4096 1536 0; bf16 logits, softmax over 128, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "qwen3-30b-a3b",
        "0-47: 128 8 2048 768 0; bf16 logits, softmax over 128, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "qwen3-30b-a3b-fp8",
        "0-47: 128 8 2048 768 0; bf16 logits, softmax over 128, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "qwen3-30b-a3b-nvfp4",
        "0-47: 128 8 2048 768 0; bf16 logits, softmax over 128, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "qwen3-coder-480b-a35b",
        "0-61: 160 8 6144 2560 0; bf16 logits, softmax over 160, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "qwen3-next-80b-a3b",
        "0-47: 512 10 2048 512 512; bf16 logits, softmax over 512, top 10, weights divided by their sum; SwiGLU",
    ),
    (
        "qwen3.5-35b-a3b",
        "0-39: 256 8 2048 512 512; bf16 logits, softmax over 256, top 8, weights divided by their sum; SwiGLU",
    ),
    (
        "qwen3.5-397b-a17b",
        "0-59: 512 10 4096 1024 1024; bf16 logits, softmax over 512, top 10, weights divided by their sum; SwiGLU",
    ),
    (
        "qwen3.8-2.4t-a95b",
        "0-91: 512 10 8192 2048 2048; bf16 logits, softmax over 512, top 10, weights divided by their sum; SwiGLU",
    ),
    ("step-3-321b.reconstructed", "4-59: 48 3 7168 5120 5120; f32 logits, softmax over 48, top 3; SwiGLU"),
    (
        "step-3.7-flash.reconstructed",
        "3-44: 288 8 4096 1280 1280; f32 logits, sigmoid over 288, a bias for the choice only, top 8, weights divided by their sum, the sum of experts times 3; SwiGLU",
    ),
    (
        "deepseek-v4-flash",
        "0-42: 256 6 4096 2048 2048; f32 logits, sqrt(softplus) over 256, 6 experts by token id, weights divided by their sum, times 1.5; SwiGLU, its arguments clamped at 10.0",
    ),
    (
        "deepseek-v4-pro",
        "0-60: 384 6 7168 3072 3072; f32 logits, sqrt(softplus) over 384, 6 experts by token id, weights divided by their sum, times 2.5; SwiGLU, its arguments clamped at 10.0",
    ),
    (
        "deepseek-v4-pro-nvfp4",
        "0-60: 384 6 7168 3072 3072; f32 logits, sqrt(softplus) over 384, 6 experts by token id, weights divided by their sum, times 2.5; SwiGLU, its arguments clamped at 10.0",
    ),
    (
        "longcat-flash-chat.reconstructed",
        "0-27: 512 12 6144 2048 0; f32 logits, softmax over 768, a bias for the choice only, 256 of them return their input, top 12, times 6; SwiGLU",
    ),
    (
        "longcat-flash-lite",
        "0-13: 256 12 3072 1024 0; f32 logits, softmax over 384, a bias for the choice only, 128 of them return their input, top 12, times 6; SwiGLU",
    ),
    (
        "deepseek-v2-236b.native-inference",
        "1-59: 160 6 5120 1536 3072; f32 logits, softmax over 160, the best 3 of 8 groups by largest score, top 6, times 16; SwiGLU",
    ),
    ("deepseek-v2-lite-16b.native-inference", "1-26: 64 6 2048 1408 2816; f32 logits, softmax over 64, top 6; SwiGLU"),
    (
        "deepseek-v3-671b.native-inference",
        "3-60: 256 8 7168 2048 2048; f32 logits, sigmoid over 256, a bias for the choice only, the best 4 of 8 groups by sum of two largest scores, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    (
        "deepseek-v3.2.native-inference",
        "3-60: 256 8 7168 2048 2048; f32 logits, sigmoid over 256, a bias for the choice only, the best 4 of 8 groups by sum of two largest scores, top 8, weights divided by their sum, times 2.5; SwiGLU",
    ),
    (
        "mistral-large-3.params.reconstructed",
        "3-60: 128 4 7168 4096 4096; f32 logits, softmax over 128, top 4, weights divided by their sum; SwiGLU",
    ),
    (
        "phi-3.5-moe.reconstructed",
        "0-31: 16 2 4096 6400 0; bf16 logits, the best expert and the best of the others, each weighted by a softmax over the scores near it (jitter 0.01); SwiGLU",
    ),
];

/// Name and the reason in the message.
///
/// ModelOpt's description of a quantised checkpoint stands beside a config, and is none itself.
const REFUSED: &[(&str, &str)] = &[
    ("deepseek-v3.1-nvfp4.hf_quant_config", "says how weights are quantised"),
    ("deepseek-v4-pro-nvfp4.hf_quant_config", "says how weights are quantised"),
    ("kimi-k2.6-nvfp4.hf_quant_config", "says how weights are quantised"),
    ("nemotron-3-super-120b-a12b-nvfp4.hf_quant_config", "says how weights are quantised"),
    ("qwen3-235b-a22b-nvfp4.hf_quant_config", "says how weights are quantised"),
    ("qwen3-30b-a3b-nvfp4.hf_quant_config", "says how weights are quantised"),
];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/configs").join(format!("{name}.json"))
}

fn open(name: &str) -> ModelConfig {
    ModelConfig::open(path(name)).unwrap_or_else(|d| panic!("{name}: {d:?}"))
}

fn line(name: &str) -> String {
    let config = open(name);
    let layer = config.layer(None, &LayerOptions::default()).unwrap_or_else(|d| panic!("{name}: {d:?}"));
    let f = layer.description;
    let shared = f.shared.map_or(0, |s| s.ffn);
    let moe = config.moe_layers();
    // Long lists of single layers are counted.
    let moe = if moe.len() > 60 || layers::ranges(&moe).len() < 12 {
        layers::ranges(&moe)
    } else {
        format!("{} layers", moe.len())
    };
    format!("{moe}: {} {} {} {} {shared}; {}; {}", f.n_experts, f.top_k, f.hidden, f.ffn, f.router, f.activation)
}

#[test]
fn published_configs_are_understood() {
    let mut wrong = Vec::new();
    for (name, want) in UNDERSTOOD {
        let got = line(name);
        if got != *want {
            wrong.push(format!("    ({name:?}, {got:?}),"));
        }
    }
    assert!(wrong.is_empty(), "these lines differ:\n{}", wrong.join("\n"));
}

#[test]
fn what_cannot_be_expressed_is_refused_with_its_reason() {
    for (name, reason) in REFUSED {
        let d = ModelConfig::open(path(name)).expect_err(name);
        assert_eq!(d.len(), 1, "{name}: {d:?}");
        assert_eq!(d[0].code, "not-a-model");
        assert!(d[0].message.contains(reason), "{name}: {}", d[0].message);
    }
}

#[test]
fn every_config_is_in_one_of_the_lists() {
    let mut files: Vec<String> = std::fs::read_dir(path("x").parent().unwrap())
        .unwrap()
        .map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_string())
        .collect();
    files.sort();
    let mut listed: Vec<&str> = UNDERSTOOD.iter().chain(REFUSED).map(|(n, _)| *n).collect();
    listed.sort_unstable();
    assert_eq!(files, listed);
}

#[test]
fn later_layers_of_deepseek_v4_are_routed_by_scores() {
    let config = open("deepseek-v4-flash");
    let layer = config.layer(Some(3), &LayerOptions::default()).unwrap();
    assert_eq!(
        layer.description.router,
        "f32 logits, sqrt(softplus) over 256, a bias for the choice only, top 6, weights divided by their sum, times 1.5"
    );
    assert_eq!(layer.description.activation, "SwiGLU, its arguments clamped at 10.0");
}

#[test]
fn layers_for_further_tokens_follow_the_decoder() {
    let layer = open("deepseek-r1").layer(Some(61), &LayerOptions::default()).unwrap();
    assert_eq!((layer.layer, layer.description.n_experts), (61, 256));
    assert!(open("deepseek-r1").layer(Some(62), &LayerOptions::default()).is_err());
}

#[test]
fn quantised_checkpoints_load_where_their_format_is_read() {
    for (name, format) in [
        ("deepseek-r1", "fp8 e4m3 128x128 blocks"),
        ("gpt-oss-120b", "mxfp4"),
        ("kimi-k2.5", "compressed-tensors pack-quantized"),
    ] {
        let layer = open(name).layer(None, &LayerOptions::default()).unwrap();
        assert_eq!(layer.quantization.as_deref(), Some(format), "{name}");
        assert_eq!(layer.loadable(), Ok(()), "{name}");
    }
    let aqlm = std::fs::read_to_string(path("qwen3-30b-a3b")).unwrap().replacen(
        '{',
        r#"{ "quantization_config": { "quant_method": "aqlm", "bits": 2 },"#,
        1,
    );
    let layer = ModelConfig::from_text("config.json", aqlm).unwrap().layer(None, &LayerOptions::default()).unwrap();
    assert_eq!(layer.loadable().unwrap_err().code, "quantised-checkpoint");
    assert_eq!(open("qwen3-30b-a3b").layer(None, &LayerOptions::default()).unwrap().loadable(), Ok(()));
}

#[test]
fn a_layer_is_described_in_one_paragraph() {
    let text = open("deepseek-r1").layer(None, &LayerOptions::default()).unwrap().description.paragraph();
    assert_eq!(
        text,
        "deepseek_v3 layer 3: 256 experts of width 2048 on a hidden size of 7168, 8 of them for each token, and a shared \
         expert of width 2048. Router: f32 logits, sigmoid over 256, a bias for the choice only, the best 4 of 8 groups by \
         sum of two largest scores, top 8, weights divided by their sum, times 2.5. Activation: SwiGLU. The checkpoint is \
         quantised (fp8 e4m3 128x128 blocks); as published in memory: FP8 in blocks of 128x128 (21.09 GiB as bf16): 10.55 GiB for \
         the layer, of which one token reads 381.59 MiB; 796.39 Mflop per token."
    );
}

#[test]
fn the_element_type_can_be_chosen() {
    let options = LayerOptions { dtype: Some(moec_ir::DType::F32), ..LayerOptions::default() };
    let layer = open("qwen1.5-moe-a2.7b.reconstructed").layer(None, &options).unwrap();
    assert!(layer.graph.nodes.iter().all(|n| n.ty.dtype != moec_ir::DType::BF16));
    let bf16 = open("qwen1.5-moe-a2.7b.reconstructed").layer(None, &LayerOptions::default()).unwrap();
    assert_eq!(bf16.description.weight_bytes * 2, layer.description.weight_bytes);
}

#[test]
fn every_config_is_described_in_one_paragraph() {
    let mut text = String::new();
    for (name, _) in UNDERSTOOD {
        let layer = open(name).layer(None, &LayerOptions::default()).unwrap_or_else(|d| panic!("{name}: {d:?}"));
        text += &format!("{name}: {}\n\n", layer.description.paragraph());
    }
    insta::assert_snapshot!("paragraphs", text);
}

#[test]
fn keys_may_have_the_other_names_that_config_classes_take() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (family, pairs) in [
        ("mixtral", &[("num_local_experts", "num_experts")][..]),
        ("deepseek_v3", &[("n_routed_experts", "num_local_experts")]),
        ("deepseek_v4", &[("n_routed_experts", "num_local_experts"), ("moe_intermediate_size", "intermediate_size")]),
        ("ernie4_5_moe", &[("moe_num_experts", "num_experts"), ("moe_k", "num_experts_per_tok")]),
        ("hunyuan_v1_moe", &[("num_experts", "num_local_experts"), ("moe_topk", "num_experts_per_tok")]),
        ("inkling2_text", &[("n_routed_experts", "num_local_experts"), ("route_scale", "routed_scaling_factor")]),
        ("longcat_flash", &[("expert_ffn_hidden_size", "moe_intermediate_size"), ("moe_topk", "num_experts_per_tok")]),
        ("minimax_m2", &[("num_local_experts", "num_experts")]),
        ("dbrx", &[("d_model", "hidden_size"), ("n_layers", "num_hidden_layers")]),
    ] {
        let text = std::fs::read_to_string(golden.join(family).join("config.json")).unwrap();
        let layer = |text: String| {
            let config = ModelConfig::from_text("config.json", text).unwrap_or_else(|d| panic!("{family}: {d:?}"));
            config.layer(None, &LayerOptions::default()).unwrap_or_else(|d| panic!("{family}: {d:?}")).graph
        };
        let mut renamed: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        for (published, other) in pairs {
            let value = renamed.remove(*published).unwrap_or_else(|| panic!("{family}: no {published}"));
            renamed.insert((*other).to_string(), value);
        }
        assert_eq!(layer(serde_json::to_string(&renamed).unwrap()), layer(text), "{family}");
    }
}
