//! What it costs to multiply by codes, against the same weights as bf16: a layer of the size of Qwen3-30B-A3B's.
//!
//! Every format runs by turns with bf16, after other weights have gone through the caches; prints the medians of processor
//! time and of the ratios of neighbouring runs: `cargo run --release -p moec-cpu --example codes [-- threads]`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::clock::{median, read, run_layer};
use common::coded::{coded, fill};
use common::layer::{Layer, build_program};
use common::{Memory, Random, jit};
use moec_cpu::Jit;
use moec_ir::DType;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::tile::Program;

const FORMATS: [(&str, Code, ScaleCode, u64, u64); 7] = [
    ("FP8 128x128", Code::E4M3, ScaleCode::F32, 128, 128),
    ("FP8 per channel", Code::E4M3, ScaleCode::F32, 1, 0),
    ("MXFP8", Code::E4M3, ScaleCode::E8M0, 1, 32),
    ("MXFP4", Code::E2M1, ScaleCode::E8M0, 1, 32),
    ("NVFP4", Code::E2M1, ScaleCode::E4M3, 1, 16),
    ("INT4 g32", Code::Int4, ScaleCode::BF16, 1, 32),
    ("INT4 g128", Code::Int4, ScaleCode::BF16, 1, 128),
];

fn main() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads = std::env::args().nth(1).map_or(cores, |a| a.parse().unwrap());
    let wanted = std::env::args().nth(2);
    let l = Layer::new(128, 8, 2048, 768).dtypes(DType::BF16, DType::BF16);
    let floats = build_program(&l);
    let float_code = jit("native jit", Jit::native(), &floats);
    let most_tokens = 512;
    let mut random = Random(11);
    let mut float_memory = fill(&floats, most_tokens, None, &mut random);
    let other = vec![1u8; 64 << 20];
    println!("T, ms as bf16 and as codes, ratio of times (codes / bf16), {threads} threads");
    for (name, code, scale, block_rows, block_cols) in FORMATS {
        if wanted.as_ref().is_some_and(|w| w != name) {
            continue;
        }
        let format = QuantFormat { code, scale, block_rows, block_cols };
        let codes = coded(&floats, format);
        let code = jit("native jit", Jit::native(), &codes);
        let mut memory = fill(&codes, most_tokens, Some(format), &mut random);
        for n_tokens in [1, 4, 64, 512] {
            let mut took = Vec::new();
            for _ in 0..(2 + 64 / n_tokens as usize).clamp(3, 15) {
                let x = random.tensor(DType::BF16, &[n_tokens as usize, l.hidden as usize], 1.0).to_bytes();
                let one = |p: &Program, c, memory: &mut [Memory]| {
                    memory[0].slice()[..x.len()].copy_from_slice(&x);
                    std::hint::black_box(read(&other));
                    let pointers: Vec<*mut u8> = memory.iter_mut().map(Memory::pointer).collect();
                    run_layer(p, c, &pointers, n_tokens, threads).cpu
                };
                took.push([one(&floats, &float_code, &mut float_memory), one(&codes, &code, &mut memory)]);
            }
            let [a, b] = [0, 1].map(|i| median(&took, |t| t[i]) * 1e3);
            println!("{name:16} T = {n_tokens:3}: {a:8.2} {b:8.2}   {:5.2}", median(&took, |t| t[1] / t[0]));
        }
    }
}
