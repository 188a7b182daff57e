//! `moec emulate`: one PTX kernel on the emulator, from a launch recipe.

use super::subject::unreadable;
use crate::output::{self, Ended, Outcome};
use crate::progress::Progress;
use moec::Diagnostic;
use moec_ptx::buffers::{self, Buffers};
use moec_ptx::exec::{Checks, findings};
use moec_ptx::launch::{EmulateError, Options as Run, emulate_launch, parse};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub struct Options {
    /// The PTX text.
    pub kernel: PathBuf,
    /// The launch recipe: entry, target, grid, block, parameters, outputs.
    #[arg(long, value_name = "LAUNCH.json")]
    pub launch: PathBuf,
    /// Initial content of every buffer that a parameter names.
    #[arg(long, value_name = "IN.safetensors")]
    pub buffers: PathBuf,
    /// Where the buffers that the recipe calls outputs go.
    #[arg(long, short, value_name = "OUT.safetensors")]
    pub output: PathBuf,
    /// What is checked: all, none, or a list of bounds, alignment, uninitialized, race, proxy, mbarrier, divergence, …
    #[arg(long, default_value = "all", value_parser = Checks::parse, value_name = "all|none|LIST")]
    pub checks: Checks,
    /// Where the counters go, as JSON.
    #[arg(long, value_name = "FILE.json")]
    pub counters: Option<PathBuf>,
}

pub fn run(options: &Options) -> Outcome {
    emulate(options).map_err(|d| vec![d])
}

fn emulate(options: &Options) -> Result<Ended, Diagnostic> {
    let ptx = text(&options.kernel)?;
    let recipe = text(&options.launch)?;
    let launch = parse(&recipe).map_err(|e| invalid("launch-invalid", &options.launch, &e.to_string()))?;
    let bytes = std::fs::read(&options.buffers).map_err(|e| unreadable(&options.buffers, &e))?;
    let input: Buffers =
        buffers::read(&bytes).map_err(|e| invalid("safetensors-header-invalid", &options.buffers, &e.to_string()))?;
    let run = Run { checks: options.checks, ..Run::default() };
    let progress = Progress::start(&format!("emulating {}", launch.entry));
    let emulation = emulate_launch(&ptx, &launch, &input, &run).map_err(|e| failed(options, e))?;
    drop(progress);
    let out = buffers::write(&emulation.outputs).map_err(|e| Diagnostic::internal("internal-error", e.to_string()))?;
    write(&options.output, &out)?;
    if let Some(path) = &options.counters {
        let text = serde_json::to_string_pretty(emulation.counters()).unwrap_or_default();
        write(path, format!("{text}\n").as_bytes())?;
    }
    let findings = &emulation.report.findings;
    let mut lines = vec![emulation.report.printed.clone()];
    if !emulation.report.printed.is_empty() && !emulation.report.printed.ends_with('\n') {
        lines.push("\n".to_owned());
    }
    lines.extend(findings.iter().map(|f| format!("finding: {f}\n")));
    lines.extend(emulation.report.notes.iter().map(|f| format!("note: {f}\n")));
    lines.push(format!(
        "{}: {} lane instructions, {} findings\n",
        launch.entry,
        emulation.report.instructions,
        findings.len()
    ));
    output::print(&lines.concat());
    Ok(if findings.is_empty() { Ended::Well } else { Ended::WithFindings })
}

fn text(path: &Path) -> Result<String, Diagnostic> {
    std::fs::read_to_string(path).map_err(|e| unreadable(path, &e))
}

fn invalid(code: &'static str, path: &Path, why: &str) -> Diagnostic {
    Diagnostic::input(code, format!("`{}`: {why}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Diagnostic> {
    output::write_file(path, bytes)
}

/// What went wrong, at the file that has to be changed.
fn failed(options: &Options, error: EmulateError) -> Diagnostic {
    match error {
        EmulateError::Launch(e) => invalid("launch-invalid", &options.launch, &e.to_string()),
        EmulateError::Parse(e) => invalid("ptx-syntax", &options.kernel, &format!("line {e}")),
        EmulateError::Compile(e) => invalid("ptx-not-emulated", &options.kernel, &e.to_string()),
        other => invalid("ptx-execution-failed", &options.kernel, &other.to_string()),
    }
}
