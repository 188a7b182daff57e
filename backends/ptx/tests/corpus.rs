//! Every kernel of the corpus comes out right, with all checks on and no finding, under three schedules.
//!
//! Prints a table and writes it to `target/ptx-reports/corpus.md`. A filter works as in every test: `cargo test --test
//! corpus -- wgmma`. `MOEC_CORPUS` names another folder of entries, `MOEC_CORPUS_OUT` a folder for the results.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::Entry;
use libtest_mimic::{Arguments, Failed, Trial};
use moec_ptx::ast::Module;
use moec_ptx::buffers;
use moec_ptx::exec::{Check, Counters, Finding, Schedule};
use moec_ptx::launch::{Options, emulate};

/// More than three times what the longest kernel executes.
const INSTRUCTION_LIMIT: u64 = 30_000_000;

/// What one kernel did.
#[derive(Default)]
struct Row {
    compiler: String,
    target: String,
    exercised: Vec<String>,
    /// Greatest relative error of an output over all schedules.
    error: f64,
    counters: Counters,
    time: Duration,
    problems: Vec<String>,
}

type Table = Arc<Mutex<BTreeMap<String, Row>>>;

fn main() {
    let arguments = Arguments::from_args();
    let table = Table::default();
    let trials = common::entry_names()
        .into_iter()
        .map(|name| {
            let table = Arc::clone(&table);
            Trial::test(name.clone(), move || run(&name, &table))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let rows = table.lock().expect("no trial should panic while it writes its row");
    if !arguments.list && !rows.is_empty() {
        println!("{}", console(&rows));
        if arguments.filter.is_none() {
            let path = common::report_folder().join("corpus.md");
            std::fs::write(&path, markdown(&rows)).expect("the report folder should be writable");
            println!("written to {}", path.display());
        }
    }
    conclusion.exit();
}

fn run(name: &str, table: &Table) -> Result<(), Failed> {
    let entry = common::entry(name);
    let mut row = Row { compiler: entry.launch.source.clone(), target: entry.launch.target.clone(), ..Row::default() };
    match Module::parse(&entry.ptx) {
        Ok(module) => row.exercised = common::exercised(&module),
        Err(error) => row.problems.push(format!("line {error}")),
    }
    let schedules = [Schedule::RoundRobin, Schedule::Random(1), Schedule::Random(0x9e37_79b9_7f4a_7c15)];
    for (index, schedule) in schedules.into_iter().enumerate() {
        let options = Options { schedule, instruction_limit: INSTRUCTION_LIMIT, ..Options::default() };
        let started = Instant::now();
        let problems = launch(&entry, &options, &mut row);
        if index == 0 {
            row.time = started.elapsed();
        }
        row.problems.extend(problems.into_iter().map(|problem| format!("{schedule:?}: {problem}")));
    }
    let problems = row.problems.join("\n");
    if let Ok(mut rows) = table.lock() {
        rows.insert(name.to_string(), row);
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.into()) }
}

/// Runs the kernel once and returns what is wrong.
fn launch(entry: &Entry, options: &Options, row: &mut Row) -> Vec<String> {
    let result = match emulate(&entry.ptx, &entry.launch_json, &entry.buffers, options) {
        Ok(result) => result,
        Err(error) => return vec![error.to_string()],
    };
    if let Some(folder) = std::env::var_os("MOEC_CORPUS_OUT") {
        let file = buffers::write(&result.outputs).expect("results should have the shapes of their buffers");
        let path = std::path::Path::new(&folder).join(format!("{}.safetensors", entry.name));
        std::fs::write(&path, file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let mut problems: Vec<String> = result.report.findings.iter().take(6).map(ToString::to_string).collect();
    problems.extend(
        result.report.notes.iter().filter(|note| !is_deserved(entry, note)).map(|note| format!("note: {note}")),
    );
    for name in &entry.launch.outputs {
        let tolerance = entry.launch.tolerance.get(name).copied().unwrap_or(0.0);
        match buffers::compare(&result.outputs[name], &entry.expected[name]) {
            Ok(difference) => {
                row.error = row.error.max(difference.rel_fro);
                if !difference.within(tolerance) {
                    problems.push(format!(
                        "`{name}`: relative error {:.3e}, allowed {tolerance:e}; {} elements differ, the first at {:?}",
                        difference.rel_fro, difference.unequal, difference.first
                    ));
                }
            }
            Err(error) => problems.push(format!("`{name}`: {error}")),
        }
    }
    row.counters = result.report.counters.clone();
    problems
}

/// Compilers do two things that PTX forbids: Triton writes no `tcgen05.fence`, and CUDA's headers read weakly what `atom.cas` changes.
fn is_deserved(entry: &Entry, note: &Finding) -> bool {
    match note.check {
        Check::TensorMemory => !entry.ptx.contains("tcgen05.fence"),
        Check::Race => entry.ptx.contains(".cas."),
        _ => false,
    }
}

fn flops(counters: &Counters) -> u64 {
    counters.tensor.values().map(|count| count.flops).sum()
}

fn totals(rows: &BTreeMap<String, Row>) -> String {
    let right = rows.values().filter(|row| row.problems.is_empty()).count();
    let time: Duration = rows.values().map(|row| row.time).sum();
    let lanes: u64 = rows.values().map(|row| row.counters.lane_instructions).sum();
    format!(
        "{right} of {} kernels right; {lanes} lane instructions in {:.1} s (one schedule)",
        rows.len(),
        time.as_secs_f64()
    )
}

fn console(rows: &BTreeMap<String, Row>) -> String {
    let mut out = format!(
        "\n{:<44} {:<7} {:<8} {:>9} {:>12} {:>12} {:>10} {:>9}  {}\n",
        "kernel", "from", "target", "error", "lane instr", "tensor flops", "DRAM bytes", "time ms", "instructions"
    );
    for (name, row) in rows {
        let mut instructions = common::families(&row.exercised);
        if instructions.len() > 90 {
            instructions.truncate(87);
            instructions.push_str("...");
        }
        let verdict = if row.problems.is_empty() { ' ' } else { '!' };
        let _ = writeln!(
            out,
            "{name:<43}{verdict} {:<7} {:<8} {:>9.1e} {:>12} {:>12} {:>10} {:>9.1}  {instructions}",
            row.compiler,
            row.target,
            row.error,
            row.counters.lane_instructions,
            flops(&row.counters),
            row.counters.dram_read_bytes + row.counters.dram_write_bytes,
            row.time.as_secs_f64() * 1e3,
        );
    }
    out.push_str(&totals(rows));
    out
}

fn markdown(rows: &BTreeMap<String, Row>) -> String {
    let mut out = format!("# Kernels of the corpus under the emulator\n\n{}.\n\n", totals(rows));
    out.push_str("| kernel | compiler | target | error | warp instr | lane instr | tensor flops | global load B | global store B | TMA in B | time ms | instructions beside plain arithmetic, loads and stores |\n");
    out.push_str("|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (name, row) in rows {
        let c = &row.counters;
        let verdict = match row.problems.first() {
            None => format!("{:.1e}", row.error),
            Some(problem) => format!("**{}**", problem.replace(['|', '\n'], " ")),
        };
        let _ = writeln!(
            out,
            "| `{name}` | {} | {} | {verdict} | {} | {} | {} | {} | {} | {} | {:.1} | {} |",
            row.compiler,
            row.target,
            c.warp_instructions,
            c.lane_instructions,
            flops(c),
            c.global_load_bytes,
            c.global_store_bytes,
            c.copy_in_bytes,
            row.time.as_secs_f64() * 1e3,
            row.exercised.join(", "),
        );
    }
    out
}
