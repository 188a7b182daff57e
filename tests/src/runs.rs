//! What kernels move, multiply and wait for in shared memory, counted by the emulator: models at few and many tokens.

use crate::traffic::{Measured, Proportions, Routing, compile, measure, models};
use std::fmt::Write;
use std::sync::Mutex;

/// One model at one token count with one routing.
pub struct Run {
    /// What was run.
    pub name: String,
    /// Few tokens, or many.
    pub is_decode: bool,
    /// What the emulator counted.
    pub measured: Measured,
}

/// Runs models at decode and prefill with each routing; two models at a time.
pub fn runs(target: &'static str, routings: &[Routing], which: impl Fn(&Proportions) -> bool) -> Vec<Run> {
    let models: Vec<Proportions> = models().into_iter().filter(which).collect();
    let done: Vec<Mutex<Vec<Run>>> = models.iter().map(|_| Mutex::new(Vec::new())).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(model) = models.get(i) else { break };
                    let ready = compile(model, target);
                    let mut out = Vec::new();
                    for (phase, &n_tokens) in ["decode", "prefill"].iter().zip(&model.tokens) {
                        for &routing in routings {
                            let name = format!("{:<19} {phase:<7} {routing:?}", model.name);
                            let measured = measure(&ready, n_tokens, routing);
                            out.push(Run { name, is_decode: *phase == "decode", measured });
                        }
                    }
                    *done[i].lock().expect("no panics above") = out;
                }
            });
        }
    });
    done.into_iter().flat_map(|runs| runs.into_inner().expect("no panics above")).collect()
}

/// | column | of the run |
/// |---|---|
/// | experts | chosen, of how many |
/// | busiest | rows of the expert with most, over the mean |
/// | launches | bytes of sectors touched, over what each launch needs once |
/// | layer | the same bytes, over weights, input and output: what lies between launches is on top |
/// | weights | bytes of weights that products ask for without any cache, over the weights of the chosen experts |
/// | other | the same of all else that products read and write |
/// | useful | flops that the products need, over those of the tensor-core instructions |
/// | conflicts | passes over shared memory beyond the least, by kernel |
pub fn table(runs: &[Run]) -> String {
    let mut out = format!(
        "{:<39} {:>7} {:>7} {:>8} {:>6} {:>7} {:>6} {:>6}  conflicts\n",
        "", "experts", "busiest", "launches", "layer", "weights", "other", "useful"
    );
    for Run { name, measured: m, .. } in runs {
        let per_kernel = m.launches.iter().map(|l| l.conflicts().iter().map(|(_, n)| n).sum::<u64>());
        let conflicts: Vec<String> = per_kernel.map(|n| n.to_string()).collect();
        let experts = format!("{}/{}", m.touched.0, m.touched.1);
        let figures = [m.over_launches(), m.over_layer(), m.weights_asked(), m.activations_asked(), m.useful()];
        let [launches, layer, weights, other, useful] = figures;
        writeln!(
            out,
            "{name:<39} {experts:>7} {:>7.2} {launches:>8.3} {layer:>6.3} {weights:>7.3} {other:>6.2} {useful:>6.3}  {}",
            m.busiest,
            conflicts.join(" ")
        )
        .expect("memory");
    }
    out
}

/// Bytes are within bounds, and no loop over K waits for banks.
pub fn check(runs: &[Run], table: &str) {
    for Run { name, is_decode, measured: m } in runs {
        let most = if *is_decode { 1.05 } else { 1.15 };
        assert!(m.over_launches() <= most, "{name} moves too much\n{table}");
        for l in &m.launches {
            let loops = l.product_loops();
            assert!(!l.is_contraction || !loops.is_empty(), "{name}: no loop of products in {}", l.name);
            for (line, n) in l.conflicts() {
                let inside = loops.iter().any(|lines| lines.contains(&line));
                assert!(!inside, "{name}: {n} passes too many in a main loop of {}, line {line}\n{table}", l.name);
            }
        }
    }
}
