//! Layer graphs that people wrote and that ended with an internal error once: an answer for each, the same from `check` and `run`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{diagnostics, moec_in};
use std::path::Path;

fn code(run: &common::Run) -> Option<String> {
    diagnostics(run).first().map(|d| d["code"].as_str().unwrap().to_string())
}

#[test]
fn reported_graphs_compile_or_are_told_why_not() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs");
    let dir = tempfile::tempdir().unwrap();
    let mut refused = 0;
    for i in 0..12 {
        let graph = folder.join(format!("graph-{i}.json")).display().to_string();
        let json = ["--message-format", "json"];
        let check = moec_in(dir.path(), &[&json[..], &["check", &graph, "--target", "cpu"]].concat());
        let run = [&json[..], &["run", &graph, "--weights", "random:seed=1", "--input", "random:T=2"]].concat();
        let run = moec_in(dir.path(), &run);
        assert!(check.code != 70 && run.code != 70, "graph-{i}: {} {}", check.stderr, run.stderr);
        assert_eq!(check.code, run.code, "graph-{i}: {} {}", check.stdout, run.stderr);
        if run.code != 0 {
            assert_eq!(code(&run).as_deref(), Some("element-type-not-on-cpu"), "graph-{i}: {}", run.stderr);
            assert!(check.stdout.contains("element-type-not-on-cpu"), "graph-{i}: {}", check.stdout);
            refused += 1;
        }
    }
    assert_eq!(refused, 11);
}

/// A product that shares a launch with gate and up, and that nothing adds up.
#[test]
fn a_second_result_beside_the_experts_has_a_program_on_every_gpu() {
    let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs/result-beside-experts.json");
    let dir = tempfile::tempdir().unwrap();
    for device in ["emulator:sm_80", "emulator:sm_90a", "emulator:sm_100a"] {
        let args = ["--weights", "random:seed=1", "--input", "random:T=1,seed=2", "--device", device];
        let run = moec_in(dir.path(), &[&["run", graph.to_str().unwrap()], &args[..]].concat());
        assert_eq!(run.code, 0, "{device}: {}", run.stderr);
    }
}

/// Whether values are kept between kernels or inside one, f64 is refused.
#[test]
fn logits_of_f64_have_one_answer_at_every_level() {
    let dir = tempfile::tempdir().unwrap();
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/graphs/graph-4.json")).unwrap();
    let mut graph: serde_json::Value = serde_json::from_str(&text).unwrap();
    for param in graph["params"].as_array_mut().unwrap() {
        param["dtype"] = "bf16".into();
    }
    let nodes = graph["nodes"].as_array_mut().unwrap();
    let at = nodes.iter().position(|n| n["name"] == "l32").unwrap();
    nodes[at]["inputs"] = serde_json::json!(["l64"]);
    nodes.insert(at, serde_json::json!({"name": "l64", "op": "cast", "inputs": ["logits"], "dtype": "f64"}));
    std::fs::write(dir.path().join("g.json"), graph.to_string()).unwrap();
    for target in ["cpu", "sm_80"] {
        let codes = ["-O0", "-O1", "-O2"].map(|level| {
            let args = ["--message-format", "json", "compile", "g.json", "--target", target, level, "-o", "b"];
            code(&moec_in(dir.path(), &args))
        });
        let want = if target == "cpu" { "element-type-not-on-cpu" } else { "element-type-not-on-gpu" };
        assert!(codes.iter().all(|c| c.as_deref() == Some(want)), "{target}: {codes:?}");
    }
}

#[test]
fn an_output_of_another_name_cannot_be_compared() {
    let dir = tempfile::tempdir().unwrap();
    let example = common::root().join("examples/layers");
    let text = std::fs::read_dir(example)
        .unwrap()
        .map(|e| std::fs::read_to_string(e.unwrap().path()).unwrap_or_default())
        .find(|t| t.contains("\"outputs\"") && t.contains("\"output\""))
        .unwrap();
    let mut graph: serde_json::Value = serde_json::from_str(&text).unwrap();
    let outputs = graph["outputs"].clone();
    graph["outputs"] = serde_json::from_str(&outputs.to_string().replace("\"output\"", "\"y\"")).unwrap();
    std::fs::write(dir.path().join("g.json"), graph.to_string()).unwrap();
    let run = ["--message-format", "json", "run", "g.json", "--weights", "random:seed=1", "--input", "random:T=2"];
    let made = moec_in(dir.path(), &[&run[..], &["--output", "out.safetensors"]].concat());
    assert_eq!(made.code, 0, "{}", made.stderr);
    // What was written has no `output` either; any file with one will do.
    let golden = common::conformance("mixtral.f32/golden.layer0.safetensors").display().to_string();
    let compared = moec_in(dir.path(), &[&run[..], &["--expect", &golden]].concat());
    assert_eq!((compared.code, code(&compared).as_deref()), (1, Some("output-name-mismatch")), "{}", compared.stderr);
}
