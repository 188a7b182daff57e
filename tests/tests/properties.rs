//! What holds for any valid layer.

use moec::{CompileRequest, Target};
use moec_ir::graph::{self, arbitrary};
use moec_tests::compare;
use moec_tests::engines::Engine;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// The same layers on every machine: a failure is a fact, not a coincidence.
fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn optimised_and_unoptimised_programs_compute_the_same() {
    let layers = (arbitrary::moe_graph(), 0usize..6, any::<u64>());
    let run = runner(48).run(&layers, |(graph, n_tokens, seed)| {
        let (inputs, params) = arbitrary::tensors(&graph, n_tokens, seed);
        let want = graph::evaluate(&graph, &inputs, &params).map_err(|d| TestCaseError::fail(d.to_string()))?;
        let tolerance = if moec_tests::cases::dtype_of(&graph) == moec_ir::DType::F32 { 1e-5 } else { 2e-2 };
        for engine in [
            Engine::Tile { target: "cpu", opt_level: 0 },
            Engine::Tile { target: "sm_90a", opt_level: 2 },
            Engine::CpuJit { opt_level: 0 },
            Engine::CpuJit { opt_level: 2 },
        ] {
            let fail = |d: moec::Diagnostic| TestCaseError::fail(format!("{}: {d}", engine.name()));
            let mut layer = engine.load(&graph, &params, n_tokens).map_err(fail)?;
            let got = layer(&inputs).map_err(fail)?;
            compare::outputs(&graph, &got, &want, tolerance)
                .map_err(|e| TestCaseError::fail(format!("{}: {e}", engine.name())))?;
        }
        Ok(())
    });
    assert!(run.is_ok(), "{}", run.err().map_or(String::new(), |e| e.to_string()));
}

#[test]
fn the_same_layer_gives_the_same_bytes_twice() {
    let run = runner(6).run(&arbitrary::moe_graph(), |graph| {
        let targets: Vec<_> = ["cpu", "sm_90a"].iter().filter_map(|t| Target::by_name(t)).collect();
        let request = CompileRequest { tokens: (1, 64), ..CompileRequest::new(&graph, targets) };
        let fail = |d: moec::Diagnostic| TestCaseError::fail(d.to_string());
        let (a, b) = (moec::compile(&request).map_err(fail)?, moec::compile(&request).map_err(fail)?);
        prop_assert!(a.bundle == b.bundle);
        Ok(())
    });
    assert!(run.is_ok(), "{}", run.err().map_or(String::new(), |e| e.to_string()));
}

#[test]
fn text_forms_read_back() {
    let run = runner(64).run(&arbitrary::moe_graph(), |graph| {
        let text = graph::print(&graph);
        let back = graph::parse("layer.mir", &text).map_err(|d| TestCaseError::fail(d.to_string()))?;
        prop_assert_eq!(graph::print(&back), text);
        Ok(())
    });
    assert!(run.is_ok(), "{}", run.err().map_or(String::new(), |e| e.to_string()));
}
