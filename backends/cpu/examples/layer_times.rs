//! Times of one layer, run on request, so that it can take turns with another build of it, or with other programs, on one machine.
//!
//! `layer_times [--int16] MODEL FORMAT THREADS` (qwen3, qwen3-e32 with 32 experts, mixtral or gpt-oss; bf16, f32, fp8, mxfp4, nvfp4, int4, …)
//! prints `ready`, then answers every line `T` of its input with the seconds that a run with `T` random tokens took: of the clock, and
//! of the processor as the mean over the threads. With `--int16` rows become 16-bit integers where weights are codes of four bits.
//! Other memory goes through the caches before each run.
//!
//! `layer_times [--int16] MODEL FORMAT THREADS FOLDER` has the weights of that folder ([`fill_from`]) and answers lines `T INPUTS RESULT`:
//! tokens, then logits are read from the file `INPUTS` as f32, the output is written to `RESULT` unless that is `-`. Nothing is read in
//! between: whoever asks sees to the caches.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::clock::{read, run_layer};
use common::coded::{coded, fill, fill_from, with_integers};
use common::layer::{Layer, build_program};
use common::{Memory, Random, jit};
use moec_cpu::Jit;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::tile::{Program, Role};
use moec_ir::{Activation, DType, Tensor};
use std::io::BufRead;
use std::path::Path;

const MOST_TOKENS: u64 = 1024;

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let integers = args.first().is_some_and(|a| a == "--int16");
    args.drain(..usize::from(integers));
    let ([model, format, threads], folder) = (match args.as_slice() {
        [rest @ .., folder] if rest.len() == 3 => (rest, Some(Path::new(folder))),
        all => (all, None),
    }) else {
        println!("layer_times [--int16] MODEL FORMAT THREADS [FOLDER]");
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
    let dtype = if format == "f32" { DType::F32 } else { DType::BF16 };
    let layer = Layer { given_logits: folder.is_some(), ..layer.dtypes(dtype, dtype) };
    let blocks = |code, scale, block_rows, block_cols| Some(QuantFormat { code, scale, block_rows, block_cols });
    let format = match format.as_str() {
        "bf16" | "f32" => None,
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
    let program = if integers { with_integers(&program) } else { program };
    let code = jit("native jit", Jit::native(), &program);
    let mut random = Random(11);
    let mut memory = match folder {
        Some(folder) => fill_from(&program, MOST_TOKENS, folder),
        None => fill(&program, MOST_TOKENS, format, &mut random),
    };
    let other = vec![1u8; 64 << 20];
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let n_tokens: u64 = words[0].parse().unwrap();
        assert!(n_tokens <= MOST_TOKENS);
        if let [_, inputs, _] = words[..] {
            read_inputs(&program, n_tokens, &std::fs::read(inputs).unwrap(), &mut memory);
        } else {
            let x = random.tensor(dtype, &[n_tokens as usize, layer.hidden as usize], 1.0).to_bytes();
            memory[0].slice()[..x.len()].copy_from_slice(&x);
            std::hint::black_box(read(&other));
        }
        let pointers: Vec<*mut u8> = memory.iter_mut().map(Memory::pointer).collect();
        let took = run_layer(&program, &code, &pointers, n_tokens, threads);
        if let [_, _, result] = words[..]
            && result != "-"
        {
            std::fs::write(result, output(&program, n_tokens, &mut memory)).unwrap();
        }
        println!("{:.9} {:.9}", took.wall, took.cpu);
    }
}

/// Tokens and logits, which follow each other as f32.
fn read_inputs(program: &Program, n_tokens: u64, mut bytes: &[u8], memory: &mut [Memory]) {
    for (b, m) in program.buffers.iter().zip(memory).filter(|(b, _)| matches!(b.role, Role::Input(_))) {
        let shape = [n_tokens as usize, b.cols as usize];
        let (mine, rest) = bytes.split_at(4 * shape[0] * shape[1]);
        bytes = rest;
        let floats = Tensor::from_bytes(DType::F32, &shape, mine).unwrap();
        let to = Tensor { dtype: b.dtype, ..floats }.to_bytes();
        m.slice()[..to.len()].copy_from_slice(&to);
    }
}

/// The output as f32.
fn output(program: &Program, n_tokens: u64, memory: &mut [Memory]) -> Vec<u8> {
    let out = program.buffers.iter().position(|b| b.role == Role::Output(0)).unwrap();
    let b = &program.buffers[out];
    let shape = [n_tokens as usize, b.cols as usize];
    let bytes = &memory[out].slice()[..shape[0] * shape[1] * b.dtype.bytes()];
    Tensor { dtype: DType::F32, ..Tensor::from_bytes(b.dtype, &shape, bytes).unwrap() }.to_bytes()
}
