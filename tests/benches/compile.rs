//! How long and in how much memory a layer of DeepSeek-R1 is compiled. Prints ratios to the goals; asserts nothing.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use moec::{CompileRequest, Model, Target};
use moec_passes::{CompileOptions, Limits, normalise};
use std::path::Path;
use std::time::Instant;

/// One layer for one GPU target, all token buckets, in seconds.
const COMPILE_GOAL: f64 = 1.0;
/// One saturation, in seconds.
const SATURATION_GOAL: f64 = 0.020;
/// Passes for one GPU target, without code generation, in seconds.
const PLAN_GOAL: f64 = 0.050;
/// Peak memory, in bytes.
const MEMORY_GOAL: f64 = 1e9;

fn main() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/deepseek-r1");
    let layer = Model::open(model).unwrap().layer(None).unwrap();
    for name in ["sm_90a", "sm_100f", "sm_120f", "cpu"] {
        let target = Target::by_name(name).unwrap();
        let best = best_of(5, || drop(moec::compile(&CompileRequest::new(&layer.graph, vec![target])).unwrap()));
        println!("compile deepseek-r1 {name}: {:.0} ms, {:.2} of the goal of 1 s", best * 1e3, best / COMPILE_GOAL);
    }
    let best = best_of(20, || drop(normalise(&layer.graph, moec::Numerics::default(), Limits::default()).unwrap()));
    println!("saturate deepseek-r1: {:.2} ms, {:.3} of the goal of 20 ms", best * 1e3, best / SATURATION_GOAL);
    let plan = || {
        drop(
            moec_passes::compile(&layer.graph, Target::by_name("sm_100f").unwrap(), &CompileOptions::default())
                .unwrap(),
        )
    };
    let best = best_of(20, plan);
    println!("plan deepseek-r1 sm_100f: {:.2} ms, {:.3} of the goal of 50 ms", best * 1e3, best / PLAN_GOAL);
    if let Some(bytes) = peak_memory() {
        println!("peak memory of all of this: {:.0} MB, {:.2} of the goal of 1 GB", bytes / 1e6, bytes / MEMORY_GOAL);
    }
}

fn best_of(n: usize, mut f: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..n).map(time).fold(f64::INFINITY, f64::min)
}

/// Largest resident size of this process so far, in bytes.
fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? * 1024.0)
}
