//! `cargo xtask fuzz`: mutated configs, layer graphs and safetensors files, against panics, hangs and large allocations.
//!
//! Deterministic: the n-th execution depends on the seed and n only, so a finding is repeated by its number. An execution
//! must not panic, must not take longer than [`MAX_TIME`], and must not hold more memory than [`allowed_bytes`].

mod inputs;
mod memory;
mod mutate;

use anyhow::{Result, ensure};
use inputs::{Corpus, Kind};
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
}

/// Longest time of one execution; generous, because other work may run on the machine.
const MAX_TIME: Duration = Duration::from_secs(5);

/// Most memory that an execution may hold: a parsed form of every byte of its input, and a layer's graph.
fn allowed_bytes(input: usize) -> usize {
    (8 << 20) + 400 * input
}

/// Tries the inputs; `false` when one is a finding.
///
/// # Errors
/// When the inputs that are mutated cannot be read, or the folder for files cannot be written.
pub fn run(options: &Options) -> Result<bool> {
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
    while done < options.executions && start.elapsed().as_secs() < options.seconds {
        let (kind, input) = corpus.input(options.seed, done);
        if let Some(finding) = execute(&corpus, kind, &input) {
            println!("execution {done} ({kind:?}): {finding}");
            findings += 1;
        } else if corpus.was_accepted() {
            accepted += 1;
        }
        done += 1;
        if done.is_multiple_of(500_000) {
            println!("{done} executions, {accepted} accepted, {findings} findings, {} s", start.elapsed().as_secs());
        }
    }
    let _ = std::panic::take_hook();
    let seconds = start.elapsed().as_secs();
    println!("{done} executions in {seconds} s (seed {}): {accepted} accepted, {findings} findings", options.seed);
    ensure!(done > 0, "nothing was executed");
    Ok(findings == 0)
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
        let options = super::Options { executions: 20_000, seconds: 60, seed: 7, only: None };
        assert!(super::run(&options).expect("inputs should be there"), "see the findings above");
    }
}
