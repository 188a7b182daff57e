//! `cargo xtask python-check`: the Python package against PyTorch and transformers, which the tests do without.

use crate::places;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;

/// What `cargo xtask python-check` takes.
#[derive(clap::Args)]
pub struct Options {
    /// A Python with torch and transformers [default: the one of `cargo xtask conformance`].
    #[arg(long)]
    python: Option<PathBuf>,
    /// Install this wheel and check it, instead of the package in the source.
    #[arg(long)]
    wheel: Option<PathBuf>,
}

/// Builds what the package calls, and runs `check_torch.py`; `false` when a check fails.
///
/// # Errors
/// When Python or a package cannot be installed, or a build fails.
pub fn run(options: &Options) -> Result<bool> {
    let python = match &options.python {
        Some(python) => python.clone(),
        None => crate::conformance::install(&places::target_dir().join("conformance/python"))?,
    };
    let home = places::target_dir().join("python-check");
    if home.exists() {
        std::fs::remove_dir_all(&home).context("cannot replace what an earlier run made")?;
    }
    let mut check = Command::new(&python);
    check.arg(places::root().join("runtime/python/tests/check_torch.py"));
    check.arg(places::root().join("tests/conformance/mixtral.f32"));
    if let Some(wheel) = &options.wheel {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]).arg(&home).arg(wheel);
        ensure!(pip.status().context("cannot start pip")?.success(), "pip cannot install {}", wheel.display());
        check.env("PYTHONPATH", &home);
    } else {
        let built = places::cargo().args(["build", "--package", "moec-cli", "--package", "moec-capi"]).status()?;
        ensure!(built.success(), "cargo build failed");
        for (folder, file) in [("bin", "moec"), ("lib", "libmoec_c.so")] {
            std::fs::create_dir_all(home.join(folder))?;
            std::fs::copy(places::target_dir().join("debug").join(file), home.join(folder).join(file))?;
        }
        check.env("PYTHONPATH", places::root().join("runtime/python")).env("MOEC_HOME", &home);
    }
    Ok(check.status().context("cannot start Python")?.success())
}
