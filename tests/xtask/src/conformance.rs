//! `cargo xtask conformance`: many small checkpoints of every family, made by transformers, against moec.

use crate::{places, tool_checkpoints};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;

/// What `cargo xtask conformance` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Checkpoints of each family.
    #[arg(long, default_value = "3")]
    rounds: u32,
    /// Start of the random numbers.
    #[arg(long, default_value = "0")]
    seed: u64,
    /// Only these families.
    #[arg(long, value_delimiter = ',')]
    families: Vec<String>,
    /// A Python with torch and transformers [default: one that is installed into the target folder].
    #[arg(long)]
    python: Option<PathBuf>,
    /// Run the recipes of quantisation tools instead: all, or these (`gguf,modelopt`).
    #[arg(long, value_delimiter = ',', num_args = 0..)]
    tools: Option<Vec<String>>,
}

/// Makes the checkpoints and checks them; `false` when one differs.
///
/// # Errors
/// When Python or a package cannot be installed, or the tests cannot be started.
pub fn run(options: &Options) -> Result<bool> {
    if let Some(tools) = &options.tools {
        return tool_checkpoints::run(tools, options.python.as_deref());
    }
    let scripts = places::root().join("tests/conformance");
    let home = places::target_dir().join("conformance");
    let python = match &options.python {
        Some(python) => python.clone(),
        None => install(&home.join("python"))?,
    };
    let cases = home.join(format!("cases-{}", options.seed));
    if cases.exists() {
        std::fs::remove_dir_all(&cases).context("cannot remove the cases of an earlier run")?;
    }
    let mut make = Command::new(&python);
    make.current_dir(&scripts).arg("stress.py").arg(&cases);
    make.args(["--rounds", &options.rounds.to_string(), "--seed", &options.seed.to_string()]);
    if !options.families.is_empty() {
        make.args(["--families", &options.families.join(",")]);
    }
    ensure!(make.status().context("cannot start Python")?.success(), "stress.py failed");
    let tests = places::cargo()
        .args(["test", "--package", "moec-tests", "--test", "conformance"])
        .env("MOEC_CONFORMANCE_CASES", &cases)
        .status()
        .context("cannot start cargo")?;
    Ok(tests.success())
}

/// A virtual environment with what the scripts need, in `dir`; made once.
///
/// # Errors
/// When Python is missing or pip cannot install the packages.
pub fn install(dir: &std::path::Path) -> Result<PathBuf> {
    tool_checkpoints::install(dir, &packages()?)
}

/// What the scripts need.
fn packages() -> Result<Vec<String>> {
    let wanted = places::root().join("tests/conformance/requirements.txt");
    // The first five are enough to make float checkpoints, and to load FP8; the others are for quantise.py.
    let text = std::fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    Ok(text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).take(5).map(str::to_string).collect())
}
