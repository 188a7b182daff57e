//! `cargo xtask gpu-pack`: a folder that checks and times every kernel on a GPU machine without Rust.

use crate::places;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Largest pack: it has to travel.
const MAX_BYTES: u64 = 64 << 20;

/// What `cargo xtask gpu-pack` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Where the pack goes [default: target/gpu-pack]; what is there is replaced.
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// Builds the program without LLVM, writes the layers, and puts both into one folder.
///
/// # Errors
/// When a build fails, or the pack is larger than it may be.
pub fn run(options: &Options) -> Result<bool> {
    let dir = places::root().join(options.output.clone().unwrap_or_else(|| places::target_dir().join("gpu-pack")));
    if dir.exists() {
        if !dir.join("pack.json").exists() {
            bail!("{} exists and is no pack", dir.display());
        }
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot replace {}", dir.display()))?;
    }
    std::fs::create_dir_all(&dir)?;
    // Without the emulator the program is smaller; the GPU is what it is for.
    let program = ["build", "--release", "--package", "moec-runtime", "--bin", "moec-gpu-pack"];
    cargo(&[&program[..], &["--no-default-features", "--features", "cuda"]].concat())?;
    let built = places::target_dir().join("release/moec-gpu-pack");
    std::fs::copy(&built, dir.join("moec-gpu-pack")).with_context(|| format!("cannot copy {}", built.display()))?;
    let to = dir.to_string_lossy().into_owned();
    cargo(&["run", "--quiet", "--package", "moec-tests", "--bin", "write-pack", "--", &to])?;
    std::fs::write(dir.join("peers.py"), include_str!("../pack/peers.py"))?;
    let script = "#!/bin/sh\n# Checks and times every kernel of this folder; needs an NVIDIA driver and nothing else.\n\
                  cd \"$(dirname \"$0\")\" && exec ./moec-gpu-pack . --json results.json \"$@\"\n";
    std::fs::write(dir.join("run.sh"), script)?;
    make_executable(&dir.join("run.sh"))?;
    let bytes = size(&dir)?;
    println!("{}: {:.1} MB", dir.display(), bytes as f64 / 1e6);
    if bytes > MAX_BYTES {
        bail!("the pack has {bytes} bytes, more than {MAX_BYTES}");
    }
    Ok(true)
}

fn cargo(args: &[&str]) -> Result<()> {
    let status = places::cargo().args(args).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo {} failed", args.join(" "));
    }
    Ok(())
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> Result<()> {
    Ok(())
}

/// Bytes of all files below a folder.
fn size(dir: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        total += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(total)
}
