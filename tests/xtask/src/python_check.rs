//! `cargo xtask python-check`: the Python package against PyTorch, transformers, vLLM and SGLang, which the tests do without.

use crate::{engines, places};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What `cargo xtask python-check` takes.
#[derive(clap::Args)]
pub struct Options {
    /// What to check.
    #[arg(value_enum, default_value = "torch")]
    checks: Vec<Check>,
    /// A Python with torch and transformers [default: the one of `cargo xtask conformance`].
    #[arg(long)]
    python: Option<PathBuf>,
    /// Install this wheel and check it, instead of the package in the source.
    #[arg(long)]
    wheel: Option<PathBuf>,
    /// Write what the check prints to where the repository keeps it.
    #[arg(long)]
    record: bool,
}

/// A script, and what it is about.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// Operators, twelve families of transformers, torch.compile and torch.export.
    Torch,
    /// What a call costs beside the kernels.
    Calls,
    /// Every family of the conformance tests through transformers.
    Census,
    /// vLLM's and SGLang's own classes, without a GPU.
    Engines,
    /// A wheel in a clean folder: the same text from twelve families.
    Newcomer,
    /// Speed beside transformers' own experts.
    Compare,
}

impl Check {
    /// The scripts that it runs.
    fn commands(self, python: &Path, package: &Package) -> Result<Vec<Command>> {
        let (script, argument) = match self {
            Check::Torch => ("check_torch.py", Some("tests/conformance/mixtral.f32")),
            Check::Calls => ("bench_calls.py", Some("tests/conformance/mixtral.f32")),
            Check::Census => ("census.py", Some("tests/conformance")),
            Check::Engines => return engines::ALL.iter().map(|engine| engine.check(python, package)).collect(),
            Check::Newcomer => ("newcomer.py", None),
            Check::Compare => ("compare.py", None),
        };
        let mut command = Command::new(python);
        command.arg(places::root().join("runtime/python/tests").join(script));
        command.args(argument.map(|below| places::root().join(below)));
        package.apply(&mut command, &[]);
        Ok(vec![command])
    }

    /// Where the repository keeps what they print.
    fn kept(self) -> &'static str {
        match self {
            Check::Torch => "runtime/python/results/torch.txt",
            Check::Calls => "runtime/python/results/calls.txt",
            Check::Census => "docs/transformers.md",
            Check::Engines => "runtime/python/results/engines.txt",
            Check::Newcomer => "runtime/python/results/newcomer.txt",
            Check::Compare => "runtime/python/results/compare.txt",
        }
    }

    /// Whether it takes times, so that what it calls is built to be fast.
    fn measures(self) -> bool {
        matches!(self, Check::Calls | Check::Compare)
    }
}

/// Builds what the package calls, and runs the checks; `false` when one fails.
///
/// # Errors
/// When Python or a package cannot be installed, or a build fails.
pub fn run(options: &Options) -> Result<bool> {
    let python = match &options.python {
        Some(python) => std::path::absolute(python)?,
        None => crate::conformance::install(&places::target_dir().join("conformance/python"))?,
    };
    let mut good = true;
    for &check in &options.checks {
        ensure!(
            check != Check::Newcomer || options.wheel.is_some(),
            "newcomer tries a wheel: `cargo xtask dist` writes one, and --wheel names it"
        );
        let package = package(options, check, &python)?;
        let mut text = String::new();
        for mut command in check.commands(&python, &package)? {
            text += &output(&mut command, &mut good)?;
        }
        if options.record && good {
            let kept = check.kept();
            std::fs::write(places::root().join(kept), text).with_context(|| format!("cannot write {kept}"))?;
        }
    }
    Ok(good)
}

/// Where Python finds the package.
pub struct Package {
    path: PathBuf,
    /// Program and library, where they are not in the package.
    home: Option<PathBuf>,
}

impl Package {
    /// Sets the environment of a Python that has the package, with other folders to look into.
    pub fn apply(&self, command: &mut Command, more: &[PathBuf]) {
        let paths = std::iter::once(&self.path).chain(more);
        // None of these folders has a separator in its name: cargo would not have come so far.
        command.env("PYTHONPATH", std::env::join_paths(paths).unwrap_or_default());
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        // A clean folder: what is there must not be found.
        command.current_dir(&self.path);
        if let Some(home) = &self.home {
            command.env("MOEC_HOME", home);
        }
    }
}

/// The wheel, installed, or the package in the source with what it calls.
fn package(options: &Options, check: Check, python: &Path) -> Result<Package> {
    let home = places::target_dir().join("python-check").join(if check.measures() { "release" } else { "debug" });
    if home.exists() {
        std::fs::remove_dir_all(&home).context("cannot replace what an earlier run made")?;
    }
    std::fs::create_dir_all(&home)?;
    if let Some(wheel) = &options.wheel {
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]).arg(&home).arg(wheel);
        ensure!(pip.status().context("cannot start pip")?.success(), "pip cannot install {}", wheel.display());
        return Ok(Package { path: home, home: None });
    }
    // The compiler's own speed is nobody's measurement.
    for (package, folder, file, fast) in
        [("moec-cli", "bin", "moec", false), ("moec-capi", "lib", "libmoec_c.so", check.measures())]
    {
        let profile = if fast { "release" } else { "dev" };
        let built = places::cargo().args(["build", "--package", package, "--profile", profile]).status()?;
        ensure!(built.success(), "cargo build failed");
        let from = places::target_dir().join(if fast { "release" } else { "debug" }).join(file);
        std::fs::create_dir_all(home.join(folder))?;
        std::fs::copy(from, home.join(folder).join(file))?;
    }
    Ok(Package { path: places::root().join("runtime/python"), home: Some(home) })
}

/// Runs a script; what it wrote to standard output, which is shown as well.
fn output(command: &mut Command, good: &mut bool) -> Result<String> {
    use std::io::{BufRead, BufReader};
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start Python")?;
    let mut text = String::new();
    for line in BufReader::new(child.stdout.take().context("a child has an output")?).lines() {
        let line = line?;
        println!("{line}");
        text += &line;
        text.push('\n');
    }
    *good &= child.wait()?.success();
    Ok(text)
}
