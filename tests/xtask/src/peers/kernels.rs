//! Kernels that others wrote, in six languages, compiled by their compilers without a GPU, run in the emulator against numpy.
//!
//! `kernels/run.py` does the work and prints a row for each kernel and target.

use crate::places;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// Compilers, beside those that the programs use.
const COMPILERS: [&str; 5] = [
    "ml-dtypes==0.6.0",
    "warp-lang==1.19.0",
    "nvidia-cutlass-dsl==4.8.1",
    "nvidia-cuda-cccl==13.3.5.0.6",
    "nvidia-curand",
];

/// Packages whose modules and headers are read. What they need themselves, half of it for a GPU, is left out.
const ENGINES: [&str; 5] =
    ["vllm==0.33.0", "sglang==0.5.23", "liger-kernel==0.8.5", "fla-core==0.6.0", "flashinfer-python==0.7.2.post1"];

/// In an environment of its own: it brings PyTorch, and that other versions of CUDA's headers.
const TILELANG: &str = "tilelang==0.1.15";

/// Installs what is missing below `dir`, and runs; `false` when a kernel is not right.
///
/// # Errors
/// When a package cannot be installed.
pub fn run(dir: &Path, python: &Path, moec: &Path, only: Option<&str>) -> Result<bool> {
    pip(python, &[], &COMPILERS)?;
    let engines = dir.join("engines");
    // With --target, pip would install anew each time.
    let (installed, wanted) = (engines.join("installed.txt"), ENGINES.join("\n"));
    if !std::fs::read_to_string(&installed).is_ok_and(|text| text == wanted) {
        pip(python, &["--no-deps", "--upgrade", "--target", &engines.to_string_lossy()], &ENGINES)?;
        std::fs::write(&installed, wanted)?;
    }
    let tilelang = dir.join("tilelang");
    if !tilelang.exists() {
        super::run_well(Command::new("python3").args(["-m", "venv"]).arg(&tilelang))?;
    }
    pip(&tilelang.join("bin/python"), &[], &[TILELANG])?;
    let mut command = Command::new(python);
    command.arg(places::root().join("tests/xtask/src/peers/kernels/run.py"));
    command.arg(moec).arg(engines).arg(dir.join("kernels"));
    // Said aloud, as Triton warns where it is not: what Triton has done so far.
    command.env("TRITON_DEFAULT_FP_FUSION", "1");
    if let Some(only) = only {
        command.args(["--only", only]);
    }
    Ok(command.status()?.success())
}

fn pip(python: &Path, how: &[&str], packages: &[&str]) -> Result<()> {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(how).args(packages);
    super::run_well(&mut pip)
}
