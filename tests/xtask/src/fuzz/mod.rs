//! `cargo xtask fuzz`: mutated configs, layer graphs and safetensors files, against panics, hangs and large allocations.
//!
//! Deterministic: the n-th execution depends on the seed and n only, so a finding is repeated by its number. An execution
//! must not panic, must not take longer than [`MAX_TIME`], and must not hold more memory than [`allowed_bytes`].
//!
//! # Memory
//!
//! What an input says about sizes is never asked for: the length of a header, the length of a tensor and the sizes in a
//! config are compared with what is there, and memory follows the bytes of the input. It is a multiple of them, because
//! a read form is larger than its text: `0,` is two bytes in a file, eight as a number of a shape, and 24 as a value
//! that knows its place for messages; a short entry of an object, seven bytes or so, has a name with memory of its own and takes
//! up to 170. [`PER_BYTE`] is that multiple (24 for the value with its place, 1 for the text, 1 for
//! the copy that this program makes of it, the rest for messages); [`FIXED`] is a layer's graph and its description,
//! which do not grow with the numbers of experts, layers or columns.

mod inputs;
mod memory;
mod mutate;

use anyhow::{Context, Result, ensure};
use inputs::{Corpus, Kind};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What `cargo xtask fuzz` takes.
#[derive(clap::Args)]
pub struct Options {
    /// How many inputs are tried.
    #[arg(long, default_value = "1000000")]
    executions: u64,
    /// Stop after this many seconds.
    #[arg(long, default_value = "3600")]
    seconds: u64,
    /// Start of the random numbers.
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Run one execution only, by its number, and print its input.
    #[arg(long)]
    only: Option<u64>,
    /// Change one thing in valid quantised checkpoints instead: what loads has to have the same values as before.
    #[arg(long, conflicts_with = "executions")]
    checkpoints: bool,
    /// Change layer graphs instead: each is checked for every target, and compiled and run on the CPU and for one GPU in the emulator.
    #[arg(long, conflicts_with = "checkpoints")]
    graphs: bool,
}

/// Longest time of one execution; generous, because other work may run on the machine.
const MAX_TIME: Duration = Duration::from_secs(5);

/// Memory for each byte of an input.
const PER_BYTE: usize = 28;

/// Memory for a layer, whatever its input.
const FIXED: usize = 128 << 10;

/// Most memory that an execution may hold.
fn allowed_bytes(input: usize) -> usize {
    FIXED + PER_BYTE * input
}

/// The most memory that inputs of one kind took, to say how far the allowance is from what is needed.
#[derive(Default)]
struct Needed {
    /// Beyond [`PER_BYTE`] times the input, in bytes.
    fixed: usize,
    /// Beyond [`FIXED`], in hundredths of a byte for each byte of the input.
    per_byte: usize,
}

/// Tries the inputs; `false` when one is a finding.
///
/// # Errors
/// When the inputs that are mutated cannot be read, or the folder for files cannot be written.
pub fn run(options: &Options) -> Result<bool> {
    if options.checkpoints {
        return checkpoints(options);
    }
    if options.graphs {
        return graphs(options);
    }
    let corpus = Corpus::open()?;
    let start = Instant::now();
    // Findings are reported here; the default message of each would drown them.
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(n) = options.only {
        let (kind, input) = corpus.input(options.seed, n);
        println!("{kind:?}: {}", String::from_utf8_lossy(&input));
        let finding = execute(&corpus, kind, &input);
        println!("{}", finding.as_deref().unwrap_or("nothing is wrong with it"));
        return Ok(finding.is_none());
    }
    let (mut done, mut accepted, mut findings) = (0u64, 0u64, 0u64);
    let mut needed = BTreeMap::<&str, Needed>::new();
    while done < options.executions && start.elapsed().as_secs() < options.seconds {
        let (kind, input) = corpus.input(options.seed, done);
        if let Some(finding) = execute(&corpus, kind, &input) {
            println!("execution {done} ({kind:?}): {finding}");
            findings += 1;
        } else if corpus.was_accepted() {
            accepted += 1;
        }
        let n = needed.entry(kind.name()).or_default();
        n.fixed = n.fixed.max(memory::most_held().saturating_sub(PER_BYTE * input.len()));
        n.per_byte = n.per_byte.max(memory::most_held().saturating_sub(FIXED) * 100 / input.len().max(1));
        done += 1;
        if done.is_multiple_of(500_000) {
            println!("{done} executions, {accepted} accepted, {findings} findings, {} s", start.elapsed().as_secs());
        }
    }
    let _ = std::panic::take_hook();
    let seconds = start.elapsed().as_secs();
    println!("{done} executions in {seconds} s (seed {}): {accepted} accepted, {findings} findings", options.seed);
    for (kind, n) in &needed {
        let (kib, per_byte) = (n.fixed.div_ceil(1024), n.per_byte as f64 / 100.0);
        println!("memory, {kind}: at most {kib} KiB + {PER_BYTE} x input, or {} KiB + {per_byte} x input", FIXED >> 10);
    }
    ensure!(done > 0, "nothing was executed");
    Ok(findings == 0)
}

/// The same for whole checkpoints, by a program that has the layers.
fn checkpoints(options: &Options) -> Result<bool> {
    let numbers = [Some(options.seconds), Some(options.seed), options.only];
    let numbers = numbers.into_iter().flatten().map(|n| n.to_string());
    let program = ["run", "--quiet", "--package", "moec-tests", "--bin", "fuzz-checkpoints", "--"];
    let status = crate::places::cargo().args(program).args(numbers).status().context("cannot run cargo")?;
    Ok(status.success())
}

/// The same for layer graphs, by a program that has the compiler.
fn graphs(options: &Options) -> Result<bool> {
    let numbers = [Some(options.executions), Some(options.seconds), Some(options.seed), options.only];
    let numbers = numbers.into_iter().flatten().map(|n| n.to_string());
    let program = ["run", "--quiet", "--package", "moec-tests", "--bin", "fuzz-graphs", "--"];
    let status = crate::places::cargo().args(program).args(numbers).status().context("cannot run cargo")?;
    Ok(status.success())
}

/// Runs one input; what is wrong, if anything.
fn execute(corpus: &Corpus, kind: Kind, input: &[u8]) -> Option<String> {
    memory::start();
    let start = Instant::now();
    let ended = catch_unwind(AssertUnwindSafe(|| corpus.execute(kind, input)));
    let (time, bytes) = (start.elapsed(), memory::most_held());
    match ended {
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
            Some(format!("panicked: {}", text.unwrap_or_default()))
        }
        Ok(Err(wrong)) => Some(wrong),
        Ok(Ok(())) if time > MAX_TIME => Some(format!("took {time:?}")),
        Ok(Ok(())) if bytes > allowed_bytes(input.len()) => {
            Some(format!("held {bytes} bytes for an input of {}", input.len()))
        }
        Ok(Ok(())) => None,
    }
}

/// The root of the workspace's test inputs.
fn below_root(path: &str) -> PathBuf {
    crate::places::root().join(path)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_short_run_finds_nothing() {
        let options =
            super::Options { executions: 20_000, seconds: 60, seed: 7, only: None, checkpoints: false, graphs: false };
        assert!(super::run(&options).expect("inputs should be there"), "see the findings above");
    }
}
