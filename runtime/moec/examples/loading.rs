//! What a load takes: `loading make FOLDER bf16|mxfp4` writes a checkpoint of Qwen3-30B-A3B's sizes, `loading FOLDER [CACHE]` loads it, by
//! way of a weight cache where there is one, runs a step of one token, and prints the milliseconds of both.
//!
//! `loading.py` runs two builds of it by turns.
#![allow(clippy::print_stdout, reason = "a program")]

use moec::{
    CachedWeights, Checkpoint, CompileRequest, DType, Layer, LayerOptions, LoadOptions, Model, Target, Tensor, Weights,
};
use moec_weights::safetensors::write_safetensors;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const EXPERTS: usize = 128;
const HIDDEN: usize = 2048;
const FFN: usize = 768;

fn config(format: &str) -> Value {
    let mut config = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "dtype": "bfloat16", "hidden_size": HIDDEN,
        "moe_intermediate_size": FFN, "intermediate_size": 6144, "num_experts": EXPERTS, "num_experts_per_tok": 8,
        "num_hidden_layers": 1, "hidden_act": "silu", "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 64
    });
    if format == "mxfp4" {
        let weights = json!({"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": true});
        config["quantization_config"] = json!({
            "quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "ignore": [],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}
        });
    }
    config
}

/// Numbers that look random: xorshift64.
fn random(n: usize) -> impl Iterator<Item = u64> {
    let next = |x: &u64| {
        let mut x = *x;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        Some(x)
    };
    std::iter::successors(Some(0x9E37_79B9_7F4A_7C15), next).take(n)
}

fn floats(rows: usize, cols: usize) -> Tensor {
    let values = random(rows * cols).map(|x| (x >> 40) as f32 / (1 << 24) as f32 * 0.05 - 0.025);
    Tensor::float(DType::BF16, &[rows, cols], values.collect())
}

/// Codes, and the exponents of their scales from 2⁻⁹ to 2⁻⁷.
fn codes(rows: usize, cols: usize) -> [Tensor; 2] {
    let bytes = |cols: usize, byte: fn(u64) -> u64| {
        Tensor::int(DType::U8, &[rows, cols], random(rows * cols).map(|x| byte(x >> 40) as i64).collect())
    };
    [bytes(cols / 2, |x| x & 255), bytes(cols / 32, |x| 118 + x % 3)]
}

fn make(folder: &Path, format: &str) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), config(format).to_string())?;
    // All experts alike: only how many bytes there are counts, and where they lie.
    let matrices = |rows, cols| match format {
        "bf16" => Ok(vec![("weight", floats(rows, cols))]),
        "mxfp4" => Ok(["weight_packed", "weight_scale"].into_iter().zip(codes(rows, cols)).collect()),
        _ => Err("give bf16 or mxfp4"),
    };
    let (router, gate, down) = (floats(EXPERTS, HIDDEN), matrices(FFN, HIDDEN)?, matrices(HIDDEN, FFN)?);
    let mut tensors = vec![("model.layers.0.mlp.gate.weight".to_string(), &router)];
    for e in 0..EXPERTS {
        for (name, parts) in [("gate", &gate), ("up", &gate), ("down", &down)] {
            let named = |(part, tensor)| (format!("model.layers.0.mlp.experts.{e}.{name}_proj.{part}"), tensor);
            tensors.extend(parts.iter().map(|(part, tensor)| named((part, tensor))));
        }
    }
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), *t)).collect();
    Ok(write_safetensors(&folder.join("model.safetensors"), &named)?)
}

fn load(folder: &Path, cache: Option<&Path>) -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::open(folder).map_err(|d| d[0].clone())?;
    let layer = model.layer_with(Some(0), &LayerOptions::default()).map_err(|d| d[0].clone())?;
    let bundle =
        moec::compile(&CompileRequest::new(&layer.graph, Target::by_name("cpu").into_iter().collect()))?.bundle;
    let input = moec::random_tensor(&bundle.manifest().inputs[0].ty, 1, 7, "input");
    let start = Instant::now();
    let checkpoint = Arc::new(Checkpoint::open(folder)?);
    let weights = match cache {
        Some(cache) => Weights::Cached(CachedWeights::new(checkpoint, cache)?),
        None => Weights::Checkpoint(checkpoint),
    };
    let mut layer = Layer::load(&bundle, &weights, LoadOptions { max_tokens: 64, ..LoadOptions::default() })?;
    let loaded = start.elapsed();
    layer.run_host(&[("input", &input)])?;
    let step = start.elapsed() - loaded;
    println!("{:.2} {:.2}", loaded.as_secs_f64() * 1e3, step.as_secs_f64() * 1e3);
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["make", folder, format] => make(Path::new(folder), format),
        [folder] => load(Path::new(folder), None),
        [folder, cache] => load(Path::new(folder), Some(Path::new(cache))),
        _ => Err("give `make FOLDER bf16|mxfp4`, or `FOLDER [CACHE]`".into()),
    }
}
