//! `cargo xtask models`: measures every family in every format, and writes `docs/models.md`.

use crate::places;
use anyhow::{Context, Result};

/// Runs the measurement; some minutes.
///
/// # Errors
/// When it cannot be built or run.
pub fn run() -> Result<bool> {
    let to = places::root().join("docs/models.md");
    let args = ["run", "--quiet", "--package", "moec-tests", "--bin", "write-models", "--"];
    let status = places::cargo().args(args).arg(&to).status().context("cannot run cargo")?;
    Ok(status.success())
}

/// What `cargo xtask calibrate` takes.
#[derive(clap::Args)]
pub struct Calibrate {
    /// What a GPU pack wrote when it ran: `results.json`.
    results: std::path::PathBuf,
}

/// Prints which guesses of the model of time would have told what a GPU measured, and how far off it is.
///
/// # Errors
/// When it cannot be built or run.
pub fn calibrate(options: &Calibrate) -> Result<bool> {
    let results = std::path::absolute(&options.results)?;
    let args = ["run", "--quiet", "--package", "moec-tests", "--bin", "calibrate", "--"];
    let status = places::cargo().args(args).arg(results).status().context("cannot run cargo")?;
    Ok(status.success())
}

/// Writes `docs/time-model.md`; seconds.
///
/// # Errors
/// When it cannot be built or run.
pub fn time_model() -> Result<bool> {
    let args = ["test", "--quiet", "--package", "moec-tests", "--test", "blackwell", "time_model"];
    let status = places::cargo().args(args).env("MOEC_BLESS", "1").status().context("cannot run cargo")?;
    Ok(status.success())
}
