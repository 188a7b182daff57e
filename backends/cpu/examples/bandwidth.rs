//! How close a layer of the size of Qwen3-30B-A3B comes to the memory bandwidth of the machine.
//!
//! Times a plain read loop over the weights and the layer at several token counts by turns, on the same threads, and
//! prints the medians: `cargo run --release -p moec-cpu --example bandwidth [-- threads]`.
//! With a second argument, a kernel's number, it prints that kernel's assembly instead.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::clock::{cpu_seconds, median, read, run_layer, time};
use common::layer::{Layer, build_program};
use common::{Memory, Random, jit, load_object};
use moec_cpu::{Jit, ObjectOptions, print_assembly};
use moec_ir::DType;
use moec_ir::tile::Role;
use std::time::Instant;

const ROUNDS: usize = 15;

fn main() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let threads = std::env::args().nth(1).map_or(cores, |a| a.parse().unwrap());
    let asm = std::env::args().nth(2);
    let l = Layer::new(128, 8, 2048, 768).dtypes(DType::BF16, DType::BF16);
    let program = build_program(&l);
    if let Some(kernel) = asm {
        let options = ObjectOptions::default();
        println!("{}", print_assembly(&program, kernel.parse().unwrap(), &options).unwrap());
        return;
    }
    let start = Instant::now();
    let native = jit("native jit", Jit::native(), &program);
    println!("compiled {} kernels in {:.1} ms", native.kernels.len(), start.elapsed().as_secs_f64() * 1e3);
    let object = load_object(&program);

    let most_tokens = 512;
    let mut memory: Vec<Memory> = program.buffers.iter().map(|b| Memory::new(b.bytes(most_tokens) as usize)).collect();
    let mut random = Random(11);
    for (b, m) in program.buffers.iter().zip(&mut memory) {
        if let Role::Weight(_) = b.role {
            // bf16 values of about ±2⁻⁵.
            m.slice().chunks_exact_mut(8).for_each(|c| {
                let bits = random.next() & 0x80ff_80ff_80ff_80ff | 0x3c00_3c00_3c00_3c00;
                c.copy_from_slice(&bits.to_le_bytes());
            });
        }
    }
    let largest = memory.iter().enumerate().max_by_key(|(i, _)| program.buffers[*i].bytes(1)).unwrap().0;
    let weights = memory[largest].slice().to_vec();
    let expert_bytes = 3 * l.hidden * l.ffn * 2;
    let router_bytes = l.experts * l.hidden * 2;

    for n_tokens in [1, 2, 4, 16, 64] {
        let (mut plain, mut forms) = (Vec::new(), [Vec::new(), Vec::new()]);
        let mut touched = Vec::new();
        for _ in 0..ROUNDS.min(2 + 256 / n_tokens as usize) {
            let x = random.tensor(DType::BF16, &[n_tokens as usize, l.hidden as usize], 1.0).to_bytes();
            memory[0].slice()[..x.len()].copy_from_slice(&x);
            let part = weights.len() / threads / 128 * 128;
            plain.push(time(threads, |i| {
                let start = cpu_seconds();
                std::hint::black_box(read(&weights[i * part..(i + 1) * part]));
                cpu_seconds() - start
            }));
            for (code, took) in [&native, &object].into_iter().zip(&mut forms) {
                // Other weights go through the caches between two runs.
                std::hint::black_box(read(&weights[..weights.len() / 2]));
                let pointers: Vec<*mut u8> = memory.iter_mut().map(Memory::pointer).collect();
                took.push(run_layer(&program, code, &pointers, n_tokens, threads));
            }
            let offsets = program.buffers.iter().position(|b| b.name == "offsets").unwrap();
            let offsets: Vec<i32> =
                memory[offsets].slice().chunks_exact(4).map(|c| i32::from_le_bytes(c.try_into().unwrap())).collect();
            touched.push(offsets.windows(2).filter(|w| w[0] < w[1]).count() as f64);
        }
        let bytes = median(&touched, |x| *x) * expert_bytes as f64 + router_bytes as f64;
        let flops = 2.0 * (n_tokens * l.top_k * 3 * l.hidden * l.ffn + n_tokens * l.experts * l.hidden) as f64;
        let read_bytes = (weights.len() / threads / 128 * 128 * threads) as f64;
        let plain = [median(&plain, |t| read_bytes / t.wall), median(&plain, |t| read_bytes / t.cpu)];
        for (name, took) in ["native jit", "object"].into_iter().zip(forms) {
            for (clock, plain, seconds) in
                [("wall", plain[0], median(&took, |t| t.wall)), ("cpu", plain[1], median(&took, |t| t.cpu))]
            {
                println!(
                    "T = {n_tokens:3}, {name:10}, {clock:4}: {:8.3} ms, {:5.1} GB/s of weights = {:3.0} % of a plain read ({:.1} GB/s), {:6.1} Gflop/s",
                    seconds * 1e3,
                    bytes / seconds / 1e9,
                    bytes / seconds / plain * 100.0,
                    plain / 1e9,
                    flops / seconds / 1e9,
                );
            }
        }
    }
}
