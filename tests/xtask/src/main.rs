//! `cargo xtask COMMAND`: what developers of moec run.
//!
//! * `test` — everything that has to be green, with ptxas fetched first and a table of what ran at the end.
//! * `aarch64` — the kernels' tests and compiled layers on an emulated 64-bit Arm processor.
//! * `dist` — what users get who do not build moec, as a folder and an archive.
//! * `gpu-pack` — a self-contained folder for a GPU machine.
//! * `conformance` — many small checkpoints of every family, made by transformers, against moec; with
//!   `--tools`, checkpoints that quantisation tools write.
//! * `python-check` — the Python package against PyTorch, transformers, vLLM and SGLang.
//! * `candle` — tests and lints of `runtime/candle`, which the workspace leaves out.
//! * `peers` — programs and test suites of others over the emulated CUDA driver, and kernels of others in the emulator.
//! * `sanitize` — the examples in C and C++ under the compiler's sanitizers, the CPU's kernels under AddressSanitizer and valgrind.
//! * `fuzz` — mutated configs and weights, against panics, hangs and large allocations; with `--graphs`, layer graphs through the
//!   compiler and the CPU; with `--checkpoints`, against values
//!   that change without a word.
//! * `models` — measures every model family and writes `docs/models.md`.
//! * `time-model` — writes `docs/time-model.md` from the programs and the chips' figures.
//! * `calibrate` — fits that model's guesses to what a GPU pack measured.
//! * `bench` — the benchmarks behind the figures of the README; with `--peers`, layers on the CPU beside ggml, PyTorch and ONNX Runtime.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a developer's command line talks to its terminal")]

mod aarch64;
mod bench;
mod candle;
mod conformance;
mod dist;
mod elf;
mod engines;
mod fuzz;
mod gpu_pack;
mod models;
mod peers;
mod places;
mod python_check;
mod report;
mod sanitize;
mod test;
mod tool_checkpoints;
mod wheel;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of moec")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every test of the workspace, the lints and the format check.
    Test(test::Options),
    /// Run the kernels' tests and compiled layers for 64-bit Arm in an emulator, on Debian 12.
    Aarch64(aarch64::Options),
    /// Write what users get who do not build moec, as a folder and an archive, and try it.
    Dist(dist::Options),
    /// Write a folder that checks and times every kernel on a GPU machine without Rust.
    GpuPack(gpu_pack::Options),
    /// Make many small checkpoints of every family with transformers, and check moec against them.
    Conformance(conformance::Options),
    /// Check the Python package against PyTorch, transformers, vLLM and SGLang.
    PythonCheck(python_check::Options),
    /// Build and test the crate for candle.
    Candle,
    /// Run programs and test suites of others over the emulated CUDA driver, and kernels of others in the emulator.
    Peers(peers::Options),
    /// Run the examples in C and C++ under the address, undefined-behaviour and thread sanitizers, and the CPU's kernels under
    /// AddressSanitizer (a nightly toolchain) and valgrind.
    Sanitize(sanitize::Options),
    /// Try mutated configs, layer graphs and safetensors files.
    Fuzz(fuzz::Options),
    /// Run the benchmarks and print their figures, or those of layers beside other engines.
    Bench(bench::Options),
    /// Measure every model family in every weight format and write docs/models.md.
    Models,
    /// Model the time of layers on Blackwell and write docs/time-model.md.
    TimeModel,
    /// Fit the guesses of the model of time to what a GPU pack measured, and print how far off it is.
    Calibrate(models::Calibrate),
}

fn main() -> ExitCode {
    let done = match Args::parse().command {
        Command::Test(options) => test::run(&options),
        Command::Aarch64(options) => aarch64::run(&options),
        Command::Dist(options) => dist::run(&options),
        Command::GpuPack(options) => gpu_pack::run(&options),
        Command::Conformance(options) => conformance::run(&options),
        Command::PythonCheck(options) => python_check::run(&options),
        Command::Candle => candle::run(),
        Command::Peers(options) => peers::run(&options),
        Command::Sanitize(options) => sanitize::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Models => models::run(),
        Command::TimeModel => models::time_model(),
        Command::Calibrate(options) => models::calibrate(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Args;
    use clap::{CommandFactory, Parser};

    #[test]
    fn options_are_consistent() {
        Args::command().debug_assert();
        let with = |words: &[&str]| Args::try_parse_from([&["cargo xtask", "bench"], words].concat()).is_ok();
        assert!(with(&[]) && with(&["cpu"]) && with(&["--peers", "--layers", "qwen3,gpt-oss", "--tokens", "1,16"]));
        assert!(!with(&["--layers", "qwen3"]) && !with(&["cpu", "--peers"]) && !with(&["--peers", "--tokens", "0"]));
    }
}
