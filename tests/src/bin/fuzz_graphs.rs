//! Layer graphs with changes, through reading, checking and compiling for every target and running on the CPU and in the emulator:
//! `fuzz-graphs COUNT SECONDS SEED [ONLY]`. `cargo xtask fuzz --graphs` runs it. Fails when something panics, ends with an internal
//! error, or is answered differently by those who should agree.
//!
//! Each graph is checked for all targets and compiled and run for the CPU and one GPU, by turns; each [`ALL`]th for all GPUs.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a developer's program")]

use moec::Target;
use moec_ir::target::TARGETS;
use moec_tests::graph_fuzz::Fuzzer;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

/// Of so many graphs one is compiled and run for every target.
const ALL: u64 = 40;

fn main() -> ExitCode {
    let args: Vec<u64> = std::env::args().skip(1).map(|a| a.parse().expect("COUNT SECONDS SEED [ONLY]")).collect();
    let (count, seconds, seed, only) = (args[0], args[1], args[2], args.get(3).copied());
    let fuzzer = Fuzzer::open().unwrap();
    let targets: Vec<&'static Target> = TARGETS.iter().collect();
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let gpus: Vec<&str> = targets.iter().filter(|t| !t.is_cpu()).map(|t| t.name).collect();
    let (mut done, mut compiled, mut findings) = (0u64, 0u64, 0u64);
    let mut ran = BTreeMap::<&str, u64>::new();
    let mut codes = BTreeMap::<String, u64>::new();
    for n in only.map_or(0..count, |n| n..n + 1) {
        if start.elapsed().as_secs() >= seconds {
            break;
        }
        let (graph, changes) = fuzzer.graph(seed, n);
        if only.is_some() {
            println!("{graph:#}\n{changes:?}");
        }
        let answer = {
            let gpu = gpus[(n % gpus.len() as u64) as usize];
            let full = |t: &Target| t.is_cpu() || t.name == gpu || n.is_multiple_of(ALL) || only.is_some();
            fuzzer.answer(&graph, &targets, full, seed ^ n)
        };
        done += 1;
        compiled += u64::from(!answer.compiled.is_empty());
        answer.ran.iter().for_each(|target| *ran.entry(target).or_default() += 1);
        for (by, code) in &answer.refused {
            *codes
                .entry(format!("{} {code}", if by == "read" || by == "run" { by } else { "compile" }))
                .or_default() += 1;
        }
        if only.is_some() {
            println!("{answer:#?}");
        }
        if let [first, others @ ..] = &answer.findings[..] {
            println!("graph {n}: {changes:?}: {first} (and {} more)", others.len());
        }
        findings += u64::from(!answer.findings.is_empty());
        if done.is_multiple_of(1000) {
            println!("{done} graphs, {findings} with findings, {} s", start.elapsed().as_secs());
        }
    }
    drop(std::panic::take_hook());
    println!(
        "{done} graphs in {} s (seed {seed}), each checked for {} targets: {compiled} can be compiled for one or more, {findings} have \
         findings; compiled and run: {ran:?}",
        start.elapsed().as_secs(),
        targets.len()
    );
    for (code, count) in codes {
        println!("  {code}: {count}");
    }
    ExitCode::from(u8::from(findings > 0 || done == 0))
}
