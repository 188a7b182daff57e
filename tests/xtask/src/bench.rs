//! `cargo xtask bench`: the benchmarks behind the figures of the README.

use crate::places;
use anyhow::{Context, Result};

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Only the benchmark of this name (`compile`, `cpu`, `pack`).
    name: Option<String>,
}

/// Runs the benchmarks; they print their figures themselves.
///
/// # Errors
/// When cargo cannot be started.
pub fn run(options: &Options) -> Result<bool> {
    let mut command = places::cargo();
    command.args(["bench", "--package", "moec-tests", "--package", "moec-weights"]);
    if let Some(name) = &options.name {
        command.args(["--bench", name]);
    }
    Ok(command.status().context("cannot run cargo bench")?.success())
}
