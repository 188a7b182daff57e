//! Times of one layer, run on request, so that two builds of it can take turns on one machine.
//!
//! `layer_times MODEL FORMAT THREADS` (qwen3, qwen3-e32 with 32 experts, mixtral or gpt-oss; bf16, fp8, mxfp4, nvfp4, int4, …) prints `ready`, then
//! answers every line `T` of its input with the seconds that a run with `T` random tokens took: of the clock, and of the
//! processor as the mean over the threads. Other memory goes through the caches before each run.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::clock::{read, run_layer};
use common::coded::{coded, fill};
use common::layer::{Layer, build_program};
use common::{Memory, Random, jit};
use moec_cpu::Jit;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::{Activation, DType};
use std::io::BufRead;

const MOST_TOKENS: u64 = 1024;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, format, threads] = args.as_slice() else {
        println!("layer_times MODEL FORMAT THREADS");
        return;
    };
    let threads = threads.parse().unwrap();
    let oai = Activation::SwiGluOai { alpha: 1.702.into(), limit: 7.0.into() };
    let layer = match model.as_str() {
        "qwen3" => Layer::new(128, 8, 2048, 768),
        "qwen3-e32" => Layer::new(32, 8, 2048, 768),
        "mixtral" => Layer::new(8, 2, 1024, 3584),
        "gpt-oss" => Layer { activation: oai, biases: true, ..Layer::new(32, 4, 2880, 2880) },
        other => panic!("no model is called {other}"),
    };
    let layer = layer.dtypes(DType::BF16, DType::BF16);
    let blocks = |code, scale, block_rows, block_cols| Some(QuantFormat { code, scale, block_rows, block_cols });
    let format = match format.as_str() {
        "bf16" => None,
        "fp8" => blocks(Code::E4M3, ScaleCode::F32, 128, 128),
        "mxfp8" => blocks(Code::E4M3, ScaleCode::E8M0, 1, 32),
        "mxfp4" => blocks(Code::E2M1, ScaleCode::E8M0, 1, 32),
        "nvfp4" => blocks(Code::E2M1, ScaleCode::E4M3, 1, 16),
        "int4" => blocks(Code::Int4, ScaleCode::BF16, 1, 32),
        "int4-g128" => blocks(Code::Int4, ScaleCode::BF16, 1, 128),
        other => panic!("no format is called {other}"),
    };
    let floats = build_program(&layer);
    let program = format.map_or(floats.clone(), |f| coded(&floats, f));
    let code = jit("native jit", Jit::native(), &program);
    let mut random = Random(11);
    let mut memory = fill(&program, MOST_TOKENS, format, &mut random);
    let other = vec![1u8; 64 << 20];
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let n_tokens: u64 = line.unwrap().trim().parse().unwrap();
        assert!(n_tokens <= MOST_TOKENS);
        let x = random.tensor(DType::BF16, &[n_tokens as usize, layer.hidden as usize], 1.0).to_bytes();
        memory[0].slice()[..x.len()].copy_from_slice(&x);
        std::hint::black_box(read(&other));
        let pointers: Vec<*mut u8> = memory.iter_mut().map(Memory::pointer).collect();
        let took = run_layer(&program, &code, &pointers, n_tokens, threads);
        println!("{:.9} {:.9}", took.wall, took.cpu);
    }
}
