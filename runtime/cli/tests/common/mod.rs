//! Runs the binary.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a run of `moec` gave.
pub struct Run {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `moec` with these arguments in `dir`.
pub fn moec_in(dir: &Path, args: &[&str]) -> Run {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_moec"))
        .args(args)
        .current_dir(dir)
        .env_remove("NO_COLOR")
        .output()
        .expect("moec should start");
    Run {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs `moec` at the root of the workspace.
pub fn moec(args: &[&str]) -> Run {
    moec_in(&root(), args)
}

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace should exist")
}

/// The checkpoint of a family in `tests/conformance`.
pub fn conformance(name: &str) -> PathBuf {
    root().join("tests/conformance").join(name)
}

/// The diagnostics of a run with `--message-format json`.
pub fn diagnostics(run: &Run) -> Vec<serde_json::Value> {
    run.stderr.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}
