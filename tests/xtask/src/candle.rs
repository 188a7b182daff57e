//! `cargo xtask candle`: the crate for candle, which is no part of the workspace: candle alone takes
//! 160 s of a core to build.

use crate::places;
use anyhow::{Context, Result};

/// Tests, lints and the format check; `false` when something is not green.
///
/// # Errors
/// When cargo cannot be started.
pub fn run() -> Result<bool> {
    let mut good = true;
    for args in [
        &["test"][..],
        &["run", "--example", "experts"],
        &["clippy", "--all-targets", "--", "-D", "warnings"],
        &["fmt", "--check"],
    ] {
        eprintln!("cargo {}", args.join(" "));
        let mut cargo = places::cargo();
        cargo.current_dir(places::root().join("runtime/candle"));
        cargo.args(args).env("CARGO_TARGET_DIR", places::target_dir().join("candle"));
        good &= cargo.status().with_context(|| format!("cannot run cargo {}", args[0]))?.success();
    }
    Ok(good)
}
