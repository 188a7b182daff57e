//! `cargo xtask aarch64`: the kernels' tests and compiled layers on an emulated 64-bit Arm processor.
//!
//! * The tests of `moec-cpu-kernels`: NEON and portable code have the documented bits, and touch nothing that is not theirs.
//! * Recorded layers: `moec compile --target cpu --cpu-arch aarch64 --emit c`, linked with the kernels as a C library, against the
//!   record and the bits of x86-64.
//!
//! QEMU tells whether code is right, not how fast it is. Debian 12 only: what is needed is unpacked from its packages.

mod layers;
mod tools;

use anyhow::{Result, ensure};

/// What `cargo xtask aarch64` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Leave out the kernels' tests, which take most of the time.
    #[arg(long)]
    layers_only: bool,
    /// Layers of checkpoints of `tests/conformance` whose names have this in them.
    #[arg(long, default_value = "")]
    filter: String,
}

/// Runs all of it; `false` when a layer is wrong.
///
/// # Errors
/// When something cannot be fetched, built or started, or a kernel's test fails.
pub fn run(options: &Options) -> Result<bool> {
    let tools = tools::Tools::install()?;
    if !options.layers_only {
        // Those of the documentation would be built for this machine.
        let tests = ["test", "--package", "moec-cpu-kernels", "--tests"];
        let tests = tools.cargo().args(tests).args(tools::Tools::CARGO).status()?;
        ensure!(tests.success(), "tests of the kernels failed on aarch64");
    }
    layers::run(&tools, &options.filter)
}
