//! `cargo xtask conformance --tools`: checkpoints that quantisation tools write now, against moec.
//!
//! Each `case_NAME.py` of `tests/checkpoints/recipes` names the packages that it needs, in lines `pip install PACKAGE… # ARGUMENTS`
//! of its docstring. Each line is an environment of its own in the target folder: the tools pin versions of each other.

use crate::places;
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// One run of a recipe.
struct Run {
    /// `gguf` of `case_gguf.py`.
    tool: String,
    script: PathBuf,
    packages: Vec<String>,
    args: Vec<String>,
}

/// Runs the recipes of `tools`, or all, and checks what they wrote; `false` when something is neither read right nor refused.
///
/// # Errors
/// When there is no such recipe, an environment cannot be made, or a recipe fails.
pub fn run(tools: &[String], python: Option<&Path>) -> Result<bool> {
    let home = places::target_dir().join("conformance");
    let cases = home.join("tools");
    if cases.exists() {
        std::fs::remove_dir_all(&cases).context("cannot remove the cases of an earlier run")?;
    }
    std::fs::create_dir_all(&cases)?;
    let all = recipes()?;
    if let Some(unknown) = tools.iter().find(|t| !all.iter().any(|r| r.tool == **t)) {
        let known: Vec<&str> = all.iter().map(|r| r.tool.as_str()).collect();
        bail!("there is no recipe of `{unknown}`; there are {}", known.join(", "));
    }
    for (i, run) in all.iter().enumerate().filter(|(_, r)| tools.is_empty() || tools.contains(&r.tool)) {
        let python = match python {
            Some(python) => python.to_path_buf(),
            None => install(&home.join(format!("python-{i}-{}", run.tool)), &run.packages)?,
        };
        eprintln!("{} {}", run.script.display(), run.args.join(" "));
        let status = Command::new(python).arg(&run.script).arg(&cases).args(&run.args).status();
        ensure!(status.context("cannot start Python")?.success(), "{} failed", run.script.display());
    }
    let tests = places::cargo()
        .args(["test", "--package", "moec-tests", "--test", "checkpoints", "--", "--show-output"])
        .env("MOEC_CHECKPOINT_CASES", &cases)
        .status()
        .context("cannot start cargo")?;
    Ok(tests.success())
}

/// All recipes, by name.
fn recipes() -> Result<Vec<Run>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(places::root().join("tests/checkpoints/recipes"))? {
        let script = entry?.path();
        let name = script.file_stem().and_then(|n| n.to_str()).unwrap_or_default();
        let Some(tool) = name.strip_prefix("case_").map(str::to_string) else { continue };
        let text = std::fs::read_to_string(&script)?;
        for line in text.lines().filter_map(|l| l.strip_prefix("pip install ")) {
            let (packages, args) =
                line.trim_end_matches('"').split_once('#').unwrap_or((line.trim_end_matches('"'), ""));
            let words = |s: &str| s.split_whitespace().map(str::to_string).collect();
            out.push(Run { tool: tool.clone(), script: script.clone(), packages: words(packages), args: words(args) });
        }
    }
    out.sort_by(|a, b| (&a.tool, &a.args).cmp(&(&b.tool, &b.args)));
    Ok(out)
}

/// A virtual environment with `packages` in `dir`; made once for these packages.
///
/// # Errors
/// When Python is missing or pip cannot install them.
pub fn install(dir: &Path, packages: &[String]) -> Result<PathBuf> {
    let python = dir.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    let ready = dir.join("ready");
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&ready).is_ok_and(|text| text == wanted) {
        return Ok(python);
    }
    eprintln!("installing {} into {}", packages.join(" "), dir.display());
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(dir).status();
    ensure!(made.context("python3 is not installed")?.success(), "cannot make a Python environment");
    let installed = Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages).status();
    ensure!(installed.context("cannot start pip")?.success(), "pip cannot install {}", packages.join(" "));
    std::fs::write(&ready, wanted).context("cannot note that the environment is ready")?;
    Ok(python)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_recipe_says_what_it_needs() {
        let all = super::recipes().expect("recipes should be readable");
        for tool in ["autoround", "gguf", "gptqmodel", "hf", "llmcompressor", "modelopt", "quark"] {
            let run = all.iter().find(|r| r.tool == tool).unwrap_or_else(|| panic!("{tool} has no packages"));
            assert!(run.packages.iter().any(|p| p.contains("==")), "{tool} pins nothing");
        }
        assert!(all.iter().any(|r| r.args == ["awq"]));
    }
}
