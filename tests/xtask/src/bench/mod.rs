//! `cargo xtask bench`: the benchmarks behind the figures of the README, and with `--peers` those of `docs/performance.md` beside other engines.

mod peers;

use crate::places;
use anyhow::{Context, Result};

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Only the benchmark of this name (`compile`, `cpu`, `pack`).
    name: Option<String>,
    /// Layers on the CPU beside ggml, PyTorch and ONNX Runtime instead, which are installed into the target folder.
    #[arg(long, conflicts_with = "name")]
    peers: bool,
    #[command(flatten)]
    with_peers: peers::Comparison,
}

/// Runs the benchmarks; they print their figures themselves.
///
/// # Errors
/// When cargo cannot be started, or what `--peers` needs beside the peers is missing.
pub fn run(options: &Options) -> Result<bool> {
    if options.peers {
        return peers::run(&options.with_peers);
    }
    let mut command = places::cargo();
    command.args(["bench", "--package", "moec-tests", "--package", "moec-weights"]);
    if let Some(name) = &options.name {
        command.args(["--bench", name]);
    }
    Ok(command.status().context("cannot run cargo bench")?.success())
}
