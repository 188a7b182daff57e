//! How long it takes to compile a DeepSeek-R1 layer to PTX for one target, all token buckets. Prints; asserts nothing.
#![allow(clippy::print_stdout)]

#[path = "../tests/common/programs.rs"]
mod programs;

use moec_ir::target::TARGETS;
use programs::{Layer, Schedules, layer};
use std::time::Instant;

fn main() {
    let programs: Vec<_> =
        [16, 32, 64, 128].map(|m| layer(&Layer::deepseek_r1(), &Schedules::for_rows(m))).into_iter().collect();
    for target in TARGETS.iter().filter(|t| !t.is_cpu()) {
        let start = Instant::now();
        let mut bytes = 0;
        for program in &programs {
            match moec_nvptx::emit(program, target) {
                Ok(images) => bytes += images.iter().map(|i| i.ptx.len()).sum::<usize>(),
                Err(e) => println!("{}: {e}", target.name),
            }
        }
        let kernels: usize = programs.iter().map(|p| p.kernels.len()).sum();
        let ms = start.elapsed().as_secs_f64() * 1e3;
        println!("{:<8} {kernels} kernels, {:>4} KiB of PTX, {ms:>6.1} ms", target.name, bytes / 1024);
    }
}
