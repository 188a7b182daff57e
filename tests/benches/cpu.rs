//! A layer of the size of Qwen3-30B-A3B's at T = 1 on the CPU: the share of the memory bandwidth that a plain read loop
//! reaches on the same cores in the same run. Prints the ratio; asserts nothing.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use moec::{CompileRequest, Session, Target, Weights};
use moec_frontend::{LayerOptions, ModelConfig};
use std::hint::black_box;
use std::time::Instant;

const CONFIG: &str = r#"{ "model_type": "qwen3_moe", "hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128,
    "num_experts_per_tok": 8, "norm_topk_prob": true, "num_hidden_layers": 1, "hidden_act": "silu",
    "decoder_sparse_step": 1, "mlp_only_layers": [], "torch_dtype": "bfloat16" }"#;

fn main() {
    let layer =
        ModelConfig::from_text("qwen3-30b-a3b", CONFIG.to_string()).unwrap().layer(None, &LayerOptions::default());
    let layer = layer.unwrap();
    let compiled = moec::compile(&CompileRequest::new(&layer.graph, vec![Target::by_name("cpu").unwrap()])).unwrap();
    let mut session = Session::jit(&compiled, &Weights::Random { seed: 1 }, 1).unwrap();
    let active = layer.description.active_weight_bytes as f64;
    // Other experts for every run, so that their weights come from memory and not from a cache.
    let inputs: Vec<_> = (0..16).map(|s| moec::random_tensor(&layer.graph.inputs[0].ty, 1, s, "input")).collect();
    let mut seconds = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        for input in &inputs {
            black_box(session.run(&[("input", input)]).unwrap());
        }
        seconds = seconds.min(start.elapsed().as_secs_f64() / inputs.len() as f64);
    }
    let (rate, plain) = (active / seconds, read_bandwidth());
    println!("qwen3-30b-a3b layer, T=1, bf16: {:.2} ms, {:.1} GB/s of weights", seconds * 1e3, rate / 1e9);
    println!("plain read loop on the same cores: {:.1} GB/s", plain / 1e9);
    println!("ratio: {:.2} (goal 0.60)", rate / plain);
}

/// Bytes a second that all cores read from a gigabyte of memory, adding it up.
fn read_bandwidth() -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let data: Vec<u64> = (0..1u64 << 27).collect();
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in data.chunks(data.len().div_ceil(threads)) {
                scope.spawn(move || black_box(part.iter().fold(0u64, |sum, x| sum.wrapping_add(*x))));
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    data.len() as f64 * 8.0 / best
}
