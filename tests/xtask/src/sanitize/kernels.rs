//! The CPU's kernels under AddressSanitizer, all of their tests on all instructions of this processor, and under valgrind, which
//! knows AVX2, those of bounds.

use crate::places;
use anyhow::{Context, Result, bail, ensure};
use std::path::PathBuf;
use std::process::{Command, Output};

const PACKAGE: [&str; 2] = ["--package", "moec-cpu-kernels"];
/// Checks of every access make what users get too large to compile in minutes.
const SMALL: [&str; 2] = ["--config", "profile.dev.package.moec-cpu-kernels.opt-level='s'"];
/// The example that reads what is not there.
const PROBE: &str = "past_the_end";

/// Runs both; `false` when one finds something.
///
/// # Errors
/// When something cannot be built or started, or finds nothing in a program that has a fault.
pub fn run(toolchain: &str) -> Result<bool> {
    let address = address(toolchain)?;
    println!("{:<28} {:<20} {address}", "moec-cpu-kernels", "address");
    let valgrind = valgrind()?;
    println!("{:<28} {:<20} {valgrind}", "moec-cpu-kernels", "valgrind");
    Ok(address == CLEAN && valgrind == CLEAN)
}

const CLEAN: &str = "clean";

/// The last lines of what a program says that has not ended well.
fn words(out: &Output) -> String {
    if out.status.success() {
        return CLEAN.into();
    }
    let text = [String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)].concat();
    let lines: Vec<&str> = text.lines().collect();
    format!("FOUND\n{}\n{}", out.status, lines[lines.len().saturating_sub(60)..].join("\n"))
}

fn address(toolchain: &str) -> Result<String> {
    let cargo = |args: &[&str]| {
        let mut cargo = Command::new("rustup");
        cargo
            .args(["run", toolchain, "cargo"])
            .args(args)
            .args(PACKAGE)
            .args(SMALL)
            .args(["--target", "x86_64-unknown-linux-gnu"]);
        cargo.current_dir(places::root());
        for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
            cargo.env_remove(variable);
        }
        cargo
            .env("RUSTFLAGS", "-Zsanitizer=address")
            .env("CARGO_TARGET_DIR", places::target_dir().join("sanitize/address"));
        cargo.output().with_context(|| format!("rustup cannot be started, or has no {toolchain} toolchain"))
    };
    let probe = cargo(&["run", "--example", PROBE])?;
    let said = String::from_utf8_lossy(&probe.stderr);
    ensure!(
        said.contains("AddressSanitizer: heap-buffer-overflow"),
        "the address sanitizer of the {toolchain} toolchain does not find what {PROBE} does:\n{said}"
    );

    Ok(words(&cargo(&["test", "--tests"])?))
}

fn valgrind() -> Result<String> {
    let valgrind = |program: &PathBuf| {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--quiet", "--error-exitcode=9"]).arg(program).output().context("valgrind cannot be started")
    };
    let probe = valgrind(&built(&["build", "--example", PROBE], PROBE)?)?;
    let said = String::from_utf8_lossy(&probe.stderr);
    ensure!(said.contains("Invalid read"), "valgrind does not find what {PROBE} does:\n{said}");
    Ok(words(&valgrind(&built(&["test", "--no-run", "--test", "bounds"], "bounds")?)?))
}

/// Builds a program of the kernels' crate.
fn built(args: &[&str], name: &str) -> Result<PathBuf> {
    let out = places::cargo().args(args).args(PACKAGE).arg("--message-format=json").output()?;
    ensure!(out.status.success(), "{name} cannot be built:\n{}", String::from_utf8_lossy(&out.stderr));
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if message["target"]["name"] == name
            && let Some(path) = message["executable"].as_str()
        {
            return Ok(path.into());
        }
    }
    bail!("cargo does not say where {name} is")
}
