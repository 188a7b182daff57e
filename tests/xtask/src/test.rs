//! `cargo xtask test`: tools, tests, lints, format, in this order; a table of what ran at the end.

use crate::places;
use crate::report::Report;
use crate::tool_checkpoints;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader, Write};
use std::time::Instant;

/// An MPI with the standard ABI, from Python's package index.
const MPI: &str = "mpich==5.0.2";

/// What `cargo xtask test` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Run without NVIDIA's assembler: its tests are then skipped, and the table says so.
    #[arg(long)]
    without_ptxas: bool,
    /// Run without MPI: tests of ranks that are processes are then skipped, and the table says so.
    #[arg(long)]
    without_mpi: bool,
    /// Run the tests only, not the lints and the format check.
    #[arg(long)]
    tests_only: bool,
    /// Most compiler processes at a time [default: by cores and free memory].
    #[arg(long, short)]
    jobs: Option<usize>,
    /// Only tests of this package.
    #[arg(long, short)]
    package: Vec<String>,
}

/// Runs everything; `false` when something is not green.
///
/// # Errors
/// When a tool is missing or cannot be started.
pub fn run(options: &Options) -> Result<bool> {
    let start = Instant::now();
    let jobs = options.jobs.unwrap_or_else(places::jobs);
    let mut env: Vec<(&str, std::ffi::OsString)> = vec![("INSTA_UPDATE", "no".into())];
    let mut required = Vec::new();
    if !options.without_ptxas {
        let ptxas = moec_ptx::ptxas::install(&places::tools_dir()).context(
            "cannot install ptxas; `cargo xtask test --without-ptxas` runs without it and skips what needs it",
        )?;
        eprintln!("ptxas {} at {}", moec_ptx::ptxas::release(&ptxas)?, ptxas.display());
        env.push(("MOEC_PTXAS", ptxas.into_os_string()));
        required.push("ptxas");
    }
    if !options.without_mpi {
        let dir = places::tools_dir().join("mpi");
        tool_checkpoints::install(&dir, &[MPI.to_string()])
            .context("cannot install MPI; `cargo xtask test --without-mpi` runs without it and skips what needs it")?;
        env.push(("MOEC_MPI", dir.into_os_string()));
        required.push("mpi");
    }
    env.push(("MOEC_REQUIRE", required.join(",").into()));

    let (report, tests_ended_well) = run_tests(options, jobs, &env)?;
    let mut green = report.is_green() && tests_ended_well;
    let mut outcomes = vec![format!("tests: {}", word(green))];
    if !options.tests_only {
        let jobs = jobs.to_string();
        let lints = ["clippy", "--workspace", "--all-targets", "--quiet", "--jobs", &jobs, "--", "-D", "warnings"];
        for (name, args) in [("lints", &lints[..]), ("format", &["fmt", "--all", "--check"][..])] {
            eprintln!("cargo {}", args.join(" "));
            let good = places::cargo().args(args).status().with_context(|| format!("cannot run cargo {}", args[0]))?;
            green &= good.success();
            outcomes.push(format!("{name}: {}", word(good.success())));
        }
    }

    println!("\n{}", report.table());
    for name in &report.failures {
        println!("failed: {name}");
    }
    for reason in report.unknown_reasons() {
        println!("failed: a test skipped itself for a reason that is not agreed: {reason}");
    }
    println!("{} ({:.0} s)", outcomes.join(", "), start.elapsed().as_secs_f64());
    Ok(green)
}

fn word(good: bool) -> &'static str {
    if good { "green" } else { "RED" }
}

/// One `cargo test` over the workspace: everything is kept in `target/test.log`, progress and failures are shown.
fn run_tests(options: &Options, jobs: usize, env: &[(&str, std::ffi::OsString)]) -> Result<(Report, bool)> {
    let mut command = places::cargo();
    command.args(["test", "--no-fail-fast", "--jobs", &jobs.to_string()]);
    if options.package.is_empty() {
        command.arg("--workspace");
    }
    for package in &options.package {
        command.args(["--package", package]);
    }
    command.args(["--", "--show-output"]);
    command.envs(env.iter().map(|(k, v)| (k, v)));

    // Cargo names the binaries on standard error, the binaries print on standard output: one pipe keeps the order.
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().context("cannot run cargo test")?;
    drop(command);

    let log_path = places::target_dir().join("test.log");
    let mut log = std::fs::File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut report = Report::default();
    let mut in_failures = false;
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(log, "{line}")?;
        let shown = report.line(&line);
        in_failures = line == "failures:" || (in_failures && !line.starts_with("test result"));
        if shown || in_failures {
            eprintln!("{line}");
        }
    }
    let status = child.wait()?;
    if !status.success() && report.failures.is_empty() {
        eprintln!("cargo test failed; its output is in {}", log_path.display());
    }
    Ok((report, status.success()))
}
