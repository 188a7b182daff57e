//! `moec emulate`: one PTX kernel from a launch recipe, or a program whose CUDA driver is the emulator.

mod program;
mod recipe;

use super::subject::unreadable;
use crate::output::{self, Ended, Outcome};
use crate::progress::Progress;
use crate::report::MessageFormat;
use moec::Diagnostic;
use moec_ptx::ast::Module;
use moec_ptx::buffers::{self, Buffers};
use moec_ptx::exec::{Checks, Finding, Report, Schedule, findings};
use moec_ptx::launch::{
    EmulateError, Emulation, Launch, LaunchError, Options as Run, RanksEmulation, RanksLaunch, emulate_launch,
    emulate_ranks, parse, parse_ranks,
};
use moec_ptx::names::readable;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
#[command(
    override_usage = "moec emulate KERNEL.ptx --launch LAUNCH.json --buffers IN.safetensors -o OUT.safetensors\n       \
moec emulate --init KERNEL.ptx > LAUNCH.json\n       moec emulate [--gpu b200] -- PROGRAM ARGS…\n       moec emulate --driver FOLDER"
)]
pub struct Options {
    /// The PTX text.
    #[arg(required_unless_present_any = ["program", "driver"])]
    pub kernel: Option<PathBuf>,
    /// The launch recipe: entry, target, grid, block, parameters, outputs; or launches for each of several ranks.
    #[arg(long, value_name = "LAUNCH.json", required_unless_present_any = ["program", "init", "driver"])]
    pub launch: Option<PathBuf>,
    /// Initial content of every buffer that a parameter names.
    #[arg(long, value_name = "IN.safetensors", required_unless_present_any = ["program", "init", "driver"])]
    pub buffers: Option<PathBuf>,
    /// Where the buffers that the recipe calls outputs go.
    #[arg(long, short, value_name = "OUT.safetensors")]
    pub output: Option<PathBuf>,
    /// Outputs as they should be: the recipe's `tolerance` says how near, 0 where it says nothing.
    #[arg(long, value_name = "FILE.safetensors")]
    pub expect: Option<PathBuf>,
    /// What is checked: all, none, or a list of bounds, alignment, uninitialized, race, proxy, mbarrier, divergence, …
    #[arg(long, value_name = "all|none|LIST")]
    pub checks: Option<String>,
    /// Take turns of warps and completions at random, from this number.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Where the counters go, as JSON.
    #[arg(long, value_name = "FILE.json")]
    pub counters: Option<PathBuf>,
    /// Write a recipe for the kernel, to fill in.
    #[arg(long, conflicts_with_all = ["launch", "buffers", "output", "expect", "counters"])]
    pub init: bool,
    /// The GPU that the program sees: b200, h100, a100, rtx5090, …, sm_90a; several with commas.
    #[arg(long, value_name = "CHIP", requires = "program")]
    pub gpu: Option<String>,
    /// Put the emulated driver into a folder, as libcuda.so and libcuda.so.1: to link with, or to start programs otherwise.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["kernel", "program"])]
    pub driver: Option<PathBuf>,
    /// A program that calls the CUDA driver, with its arguments; its kernels run in the emulator.
    #[arg(last = true, value_name = "PROGRAM", conflicts_with_all = ["kernel", "launch", "buffers", "output", "expect", "counters", "init"])]
    pub program: Vec<OsString>,
}

pub fn run(options: &Options, format: MessageFormat) -> Outcome {
    let wrong = |why: String| Err(vec![Diagnostic::machine("wrong-usage", why)]);
    let checks = match Checks::parse(options.checks.as_deref().unwrap_or("all")) {
        Ok(checks) => checks,
        Err(why) => return wrong(format!("--checks: {why}")),
    };
    let done = if let Some(folder) = &options.driver {
        program::link(folder).map(|()| Ended::Well)
    } else if !options.program.is_empty() {
        let setting = program::Setting {
            gpu: options.gpu.as_deref(),
            checks: options.checks.as_deref(),
            seed: options.seed,
            format,
        };
        program::run(&options.program, &setting)
    } else {
        match (&options.kernel, &options.launch, &options.buffers) {
            (Some(kernel), ..) if options.init => init(kernel),
            (Some(kernel), Some(launch), Some(buffers)) => {
                emulate(options, checks, format, &Files { kernel, launch, buffers })
            }
            _ => return wrong("`moec emulate` needs a kernel, or a program after `--`".to_owned()),
        }
    };
    done.map_err(|d| vec![d])
}

/// What a recipe needs.
struct Files<'a> {
    kernel: &'a Path,
    launch: &'a Path,
    buffers: &'a Path,
}

fn init(kernel: &Path) -> Result<Ended, Diagnostic> {
    let ptx = text(kernel)?;
    let module = Module::parse(&ptx).map_err(|e| invalid("ptx-syntax", kernel, &format!("line {e}")))?;
    let Some(entry) = module.entries().next() else {
        return Err(invalid("ptx-not-emulated", kernel, "it has no kernel (`.entry`)"));
    };
    output::print(&recipe::initial(&module, entry));
    let others: Vec<&str> = module.entries().skip(1).map(|f| f.name.as_str()).collect();
    if !others.is_empty() {
        output::remark(&format!("the recipe is for `{}`; there are also {}", entry.name, others.join(", ")));
    }
    Ok(Ended::Well)
}

/// What came of a recipe, of one launch or of several.
struct Done {
    /// Its name in the last line.
    name: String,
    outputs: Buffers,
    tolerance: BTreeMap<String, f64>,
    printed: String,
    findings: Vec<Finding>,
    notes: Vec<Finding>,
    instructions: u64,
    /// As `--counters` writes them.
    counters: serde_json::Value,
}

fn emulate(options: &Options, checks: Checks, format: MessageFormat, files: &Files<'_>) -> Result<Ended, Diagnostic> {
    let ptx = text(files.kernel)?;
    let recipe = text(files.launch)?;
    let refused = |e: LaunchError| invalid("launch-invalid", files.launch, &e.to_string());
    let ranks = parse_ranks(&recipe).map_err(refused)?;
    let launch = if ranks.is_none() { Some(parse(&recipe).map_err(refused)?) } else { None };
    let input = read(files.buffers)?;
    let expected = options.expect.as_deref().map(read).transpose()?;
    let schedule = options.seed.map_or(Schedule::RoundRobin, Schedule::Random);
    let run = Run { checks, schedule, ..Run::default() };
    let name = match (&launch, &ranks) {
        (Some(launch), _) => launch.entry.clone(),
        (None, Some(recipe)) => format!("{} ranks", recipe.ranks.len()),
        (None, None) => String::new(),
    };
    let progress = Progress::start(&format!("emulating {name}"));
    let done = match (launch, ranks) {
        (_, Some(recipe)) => ranks_done(name, &recipe, emulate_ranks(&ptx, &recipe, &input, &run)),
        (Some(launch), None) => one_done(name, &launch, emulate_launch(&ptx, &launch, &input, &run)),
        (None, None) => return Err(Diagnostic::internal("internal-error", "a recipe without launches")),
    };
    let done = done.map_err(|e| failed(files, e))?;
    drop(progress);
    if let Some(path) = &options.output {
        let out = buffers::write(&done.outputs).map_err(|e| Diagnostic::internal("internal-error", e.to_string()))?;
        write(path, &out)?;
    }
    if let Some(path) = &options.counters {
        let text = serde_json::to_string_pretty(&done.counters).unwrap_or_default();
        write(path, format!("{text}\n").as_bytes())?;
    }
    let mut lines = vec![done.printed.clone()];
    if !done.printed.is_empty() && !done.printed.ends_with('\n') {
        lines.push("\n".to_owned());
    }
    let (found, notes) = (&done.findings, &done.notes);
    match format {
        MessageFormat::Human => lines.extend([findings::pictures("error", found), findings::pictures("note", notes)]),
        MessageFormat::Json => {
            let text = findings::json_lines("error", found) + &findings::json_lines("note", notes);
            if !text.is_empty() {
                output::remark(text.trim_end());
            }
        }
    }
    let mut right = true;
    if let (Some(expected), Some(path)) = (&expected, &options.expect) {
        let (text, within) = compared(&done, expected, path)?;
        lines.push(text);
        right = within;
    }
    let (name, n) = (readable(&done.name), findings::grouped(found).len() as u64);
    lines.push(format!("{name}: {} lane instructions, {}\n", done.instructions, output::counted(n, "finding")));
    output::print(&lines.concat());
    Ok(if found.is_empty() && right { Ended::Well } else { Ended::WithFindings })
}

fn one_done(name: String, launch: &Launch, result: Result<Emulation, EmulateError>) -> Result<Done, EmulateError> {
    let Emulation { outputs, report } = result?;
    Ok(Done {
        name,
        outputs,
        tolerance: launch.tolerance.clone(),
        counters: serde_json::to_value(&report.counters).unwrap_or_default(),
        printed: report.printed,
        findings: report.findings,
        notes: report.notes,
        instructions: report.instructions,
    })
}

/// The counters of several ranks are a list for each rank: entry and counters of each launch.
fn ranks_done(
    name: String,
    recipe: &RanksLaunch,
    result: Result<RanksEmulation, EmulateError>,
) -> Result<Done, EmulateError> {
    let RanksEmulation { outputs, report } = result?;
    let of = |(launches, reports): (&Vec<Launch>, &Vec<Report>)| {
        let of = |(l, r): (&Launch, &Report)| serde_json::json!({ "entry": l.entry, "counters": r.counters });
        launches.iter().zip(reports).map(of).collect::<Vec<_>>()
    };
    let counters: Vec<_> = recipe.ranks.iter().zip(&report.launches).map(of).collect();
    Ok(Done {
        name,
        outputs,
        tolerance: recipe.tolerance.clone(),
        counters: counters.into(),
        printed: report.all().map(|r| r.printed.as_str()).collect(),
        findings: report.all().flat_map(|r| r.findings.clone()).collect(),
        notes: report.all().flat_map(|r| r.notes.clone()).collect(),
        instructions: report.all().map(|r| r.instructions).sum(),
    })
}

/// A line for each output, and whether all are within the recipe's tolerance.
fn compared(done: &Done, want: &Buffers, path: &Path) -> Result<(String, bool), Diagnostic> {
    let (mut text, mut all) = (String::new(), true);
    for (name, got) in &done.outputs {
        let Some(want) = want.get(name) else {
            return Err(invalid(
                "buffer-shape-mismatch",
                path,
                &format!("it has no `{name}`, which is an output of the recipe"),
            ));
        };
        let tolerance = done.tolerance.get(name).copied().unwrap_or(0.0);
        let difference = buffers::compare(got, want)
            .map_err(|e| invalid("buffer-shape-mismatch", path, &format!("`{name}`: {e}")))?;
        let within = difference.within(tolerance);
        all &= within;
        let allowed = if tolerance == 0.0 { "equal values".to_owned() } else { format!("{tolerance:e}") };
        text += &format!("{name}: relative error {:.3e}, allowed {allowed}", difference.rel_fro);
        match difference.first.filter(|_| !within) {
            Some(first) => text += &format!("; {} elements differ, the first at {first}\n", difference.unequal),
            None => text.push('\n'),
        }
    }
    Ok((text, all))
}

fn read(path: &Path) -> Result<Buffers, Diagnostic> {
    let bytes = std::fs::read(path).map_err(|e| unreadable(path, &e))?;
    buffers::read(&bytes).map_err(|e| invalid("safetensors-header-invalid", path, &e.to_string()))
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
fn failed(files: &Files<'_>, error: EmulateError) -> Diagnostic {
    match error {
        EmulateError::Launch(e) => invalid("launch-invalid", files.launch, &e.to_string()),
        EmulateError::Parse(e) => invalid("ptx-syntax", files.kernel, &format!("line {e}")),
        EmulateError::Compile(e) => invalid("ptx-not-emulated", files.kernel, &e.to_string()),
        other => invalid("ptx-execution-failed", files.kernel, &other.to_string()),
    }
}
