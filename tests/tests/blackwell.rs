//! What kernels for Blackwell move, multiply and wait for in shared memory, counted by the emulator, is within bounds; every
//! instruction that they use is one that kernels of other compilers in the emulator's corpus use too.
//!
//! The table of counts is a snapshot: `INSTA_UPDATE=always cargo test -p moec-tests --test blackwell` writes it anew.

use moec_tests::traffic::{Measured, Proportions, Routing, compile, measure, models};
use std::fmt::Write;
use std::sync::Mutex;

struct Run {
    name: String,
    is_decode: bool,
    measured: Measured,
}

/// Runs models at decode and prefill with each routing; two models at a time.
fn runs(target: &'static str, routings: &[Routing], which: impl Fn(&Proportions) -> bool) -> Vec<Run> {
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
fn table(runs: &[Run]) -> String {
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
fn check(runs: &[Run], table: &str) {
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

#[test]
fn blackwell_moves_little_more_than_the_least() {
    let runs = runs("sm_100f", &[Routing::Independent, Routing::Alike], |_| true);
    let table = table(&runs);
    check(&runs, &table);
    for Run { name, is_decode, measured: m } in &runs {
        if *is_decode {
            assert!(m.over_layer() <= 1.05, "{name} moves too much\n{table}");
            // Even without a cache: no expert's weights are read twice.
            assert!(m.weights_asked() <= 1.05, "{name} reads weights twice\n{table}");
        }
        for l in m.launches.iter().filter(|l| l.is_contraction) {
            assert!(l.counters.tensor.keys().all(|k| k.starts_with("tcgen05")), "{name}: {}", l.name);
            assert_eq!(l.conflicts(), [], "{name}: bank conflicts in {}", l.name);
        }
    }
    insta::assert_snapshot!("sm_100f", table);
}

#[test]
fn consumer_blackwell_moves_little_more_than_the_least() {
    let runs =
        runs("sm_120f", &[Routing::Independent], |m| m.name.starts_with("Qwen3") || m.name.starts_with("DeepSeek"));
    let table = table(&runs);
    check(&runs, &table);
    insta::assert_snapshot!("sm_120f", table);
}

#[test]
fn instructions_are_those_of_kernels_of_other_compilers() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/blackwell-instructions.md");
    let (page, missing) = moec_tests::instructions::page();
    if std::env::var_os("MOEC_BLESS").is_some() {
        std::fs::write(&path, &page).expect("docs should be writable");
    }
    assert!(missing.is_empty(), "no kernel of the corpus has these: {missing:#?}");
    assert_eq!(moec_tests::instructions::unused_exceptions(&page), [""; 0], "exceptions that nothing needs");
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == written, "docs/blackwell-instructions.md is not current; run with MOEC_BLESS=1");
}

#[test]
fn the_time_model_is_current_and_no_faster_than_memory() {
    let (time, floor) = moec_tests::time_model::floor_check();
    assert!(time > floor && time < 3.0 * floor, "{time} s for bytes that take {floor} s");
    assert_eq!(moec_tests::time_model::pairs_that_do_not_pay(), [""; 0]);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/time-model.md");
    let page = moec_tests::time_model::page();
    if std::env::var_os("MOEC_BLESS").is_some() {
        std::fs::write(&path, &page).expect("docs should be writable");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == written, "docs/time-model.md is not current; run `cargo xtask time-model`");
}
