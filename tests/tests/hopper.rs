//! What kernels for Hopper move, multiply and wait for in shared memory, counted by the emulator, is within bounds.
//!
//! The table of counts is a snapshot: `INSTA_UPDATE=always cargo test -p moec-tests --test hopper` writes it anew.

use moec_tests::runs::{check, runs, table};
use moec_tests::traffic::Routing;

#[test]
fn hopper_moves_little_more_than_the_least() {
    let runs = runs("sm_90a", &[Routing::Independent], |_| true);
    let table = table(&runs);
    check(&runs, &table);
    for run in &runs {
        let m = &run.measured;
        if run.is_decode {
            // Even without a cache: no expert's weights are read twice.
            assert!(m.weights_asked() <= 1.05, "{} reads weights twice\n{table}", run.name);
        }
        for l in m.launches.iter().filter(|l| l.is_contraction) {
            assert!(l.counters.tensor.keys().all(|k| k.starts_with("wgmma")), "{}: {}", run.name, l.name);
        }
    }
    insta::assert_snapshot!("sm_90a", table);
}
