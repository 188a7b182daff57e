//! Every case of `tests/cases` on every engine, against the reference evaluator of the graph.
#![allow(clippy::unwrap_used)]

use libtest_mimic::{Arguments, Failed, Trial};
use moec_ir::graph;
use moec_tests::engines::{self, Engine};
use moec_tests::{cases, compare};
use std::sync::Arc;

fn main() {
    let args = Arguments::from_args();
    let mut trials = Vec::new();
    for case in cases::all() {
        let case = Arc::new(case);
        {
            let case = case.clone();
            trials.push(Trial::test(format!("reference/{}", case.name), move || check_case(&case)));
        }
        for &engine in engines::FAST.iter().chain(engines::EMULATORS) {
            let case = case.clone();
            trials.push(Trial::test(format!("{}/{}", engine.name(), case.name), move || check_engine(&case, engine)));
        }
    }
    libtest_mimic::run(&args, trials).exit();
}

/// The case still makes the routing that it is named after.
fn check_case(case: &cases::Case) -> Result<(), Failed> {
    for &n_tokens in &case.tokens {
        let out = graph::evaluate(&case.graph, &[case.input(n_tokens)], &case.params).map_err(|d| d.to_string())?;
        case.check_routing(&out[1]);
    }
    Ok(())
}

fn check_engine(case: &cases::Case, engine: Engine) -> Result<(), Failed> {
    // A batch of more than a hundred tokens has nothing for the emulator that seven have not, but for the next variant.
    let emulated = matches!(engine, Engine::Emulator { .. });
    let all = case.routing == cases::Routing::Random && case.name.contains("mixtral/");
    let tokens: Vec<usize> = case.tokens.iter().copied().filter(|&t| !emulated || all || t < 100).collect();
    let most = tokens.iter().copied().max().unwrap_or(1);
    let mut run = engine.load(&case.graph, &case.params, most).map_err(|d| format!("{d} {:?}", d.notes))?;
    for n_tokens in tokens {
        let input = case.input(n_tokens);
        let want =
            graph::evaluate(&case.graph, std::slice::from_ref(&input), &case.params).map_err(|d| d.to_string())?;
        let got = run(&[input]).map_err(|d| format!("T={n_tokens}: {d} {:?}", d.notes))?;
        compare::outputs(&case.graph, &got, &want, case.tolerance).map_err(|e| format!("T={n_tokens}: {e}"))?;
    }
    Ok(())
}
