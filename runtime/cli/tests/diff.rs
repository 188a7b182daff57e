//! `moec diff`, `moec check A B` and `moec inspect --json`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{moec, moec_in};
use serde_json::Value;
use std::path::Path;

/// A small Mixtral with `k` experts for each token, compiled to `NAME` in `dir`.
fn compiled(dir: &Path, name: &str, k: u32) {
    let config = format!(
        r#"{{"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_local_experts": 8,
            "num_experts_per_tok": {k}, "num_hidden_layers": 1, "hidden_act": "silu", "torch_dtype": "bfloat16"}}"#
    );
    std::fs::write(dir.join("config.json"), config).unwrap();
    let run = moec_in(dir, &["compile", "config.json", "--target", "sm_90a", "--tokens", "1..64", "-o", name]);
    assert_eq!(run.code, 0, "{}", run.stderr);
}

#[test]
fn a_change_of_top_k_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    compiled(dir.path(), "four", 4);
    compiled(dir.path(), "five", 5);
    compiled(dir.path(), "again", 4);
    let same = moec_in(dir.path(), &["diff", "four", "again"]);
    assert_eq!((same.code, same.stdout.as_str()), (0, "the same programs, launches and instructions\n"));

    let run = moec_in(dir.path(), &["diff", "four", "five", "--json"]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    let value: Value = serde_json::from_str(&run.stdout).unwrap();
    let changes = value["changes"].as_array().unwrap();
    let of = |section: &str| changes.iter().find(|c| c["section"] == section).unwrap();
    let route = of("sm_90a/route.t1.ptx: route");
    let lines = route["added"].as_u64().unwrap() + route["removed"].as_u64().unwrap();
    assert!(lines > 4 && lines < 60, "{lines} lines: {}", route["text"].as_str().unwrap());
    assert!(of("layer")["text"].as_str().unwrap().contains("+top_k 5"));
    // The products do not change.
    assert!(!changes.iter().any(|c| c["section"].as_str().unwrap().contains("experts_act.t1.ptx")));

    let brief = moec_in(dir.path(), &["diff", "four", "five", "--brief"]);
    assert!(brief.code == 1 && brief.stdout.contains("instructions ") && !brief.stdout.contains("ld.global"));
}

#[test]
fn files_are_compared_whatever_they_are_called() {
    let dir = tempfile::tempdir().unwrap();
    compiled(dir.path(), "four", 4);
    let route = std::fs::read_to_string(dir.path().join("four/sm_90a/route.t1.ptx")).unwrap();
    std::fs::write(dir.path().join("a.ptx"), &route).unwrap();
    std::fs::write(dir.path().join("b.ptx"), route.replace("%r", "%x").replace("$L__BB0", "BLOCK")).unwrap();
    std::fs::write(dir.path().join("c.ptx"), route.replacen("min.u32", "max.u32", 1).replacen("setp.lt", "setp.gt", 1))
        .unwrap();
    assert_eq!(moec_in(dir.path(), &["diff", "a.ptx", "b.ptx"]).code, 0);
    let run = moec_in(dir.path(), &["diff", "a.ptx", "c.ptx"]);
    assert!(run.code == 1 && run.stdout.contains("+  "), "{}", run.stdout);
    std::fs::write(dir.path().join("bad.ptx"), "nothing").unwrap();
    assert_eq!(moec_in(dir.path(), &["diff", "a.ptx", "bad.ptx"]).code, 1);
    assert!(moec(&["diff", "/nowhere.ptx", "/nowhere.ptx"]).stderr.contains("/nowhere.ptx"));
}

#[test]
fn a_bundle_is_inspected_as_json() {
    let dir = tempfile::tempdir().unwrap();
    compiled(dir.path(), "four", 4);
    let run = moec_in(dir.path(), &["inspect", "four", "--json"]);
    let value: Value = serde_json::from_str(&run.stdout).unwrap();
    let file = &value["files"]["sm_90a/route.t1.ptx"];
    let stored = std::fs::read(dir.path().join("four/sm_90a/route.t1.ptx")).unwrap();
    assert_eq!(file["bytes"], stored.len());
    assert_eq!(file["sha256"].as_str().unwrap().len(), 64);
    assert!(file["kernels"][0]["figures"]["instructions"].as_u64().unwrap() > 100);
}

#[test]
fn bundles_of_the_same_bits_are_told_from_others() {
    let dir = tempfile::tempdir().unwrap();
    compiled(dir.path(), "four", 4);
    compiled(dir.path(), "five", 5);
    let config = dir.path().join("config.json");
    let compile = |name: &str, more: &[&str]| {
        let run = moec_in(dir.path(), &[&["compile", config.to_str().unwrap(), "-o", name], more].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
    };
    compile("unmerged", &["--target", "sm_90a", "-O1"]);
    compile("both", &["--target", "sm_80,cpu"]);

    let same = moec_in(dir.path(), &["check", "five", "unmerged"]);
    assert_eq!((same.code, same.stdout.as_str()), (0, "sm_90a: the same bits on one machine\n"), "{}", same.stderr);
    let other = moec_in(dir.path(), &["check", "four", "five", "--json"]);
    assert_eq!(other.code, 1, "{}", other.stderr);
    let value: Value = serde_json::from_str(&other.stdout).unwrap();
    assert_eq!(value["same"], false);
    let ids = value["targets"][0]["differ"].as_array().unwrap().iter().find(|d| d["output"] == "topk_ids").unwrap();
    assert!(ids["lines"][0].as_str().unwrap().contains(", 4]"), "{ids}");
    let text = moec_in(dir.path(), &["check", "four", "five"]).stdout;
    assert!(text.contains("`output` differs, first at `"), "{text}");

    // Nothing to compare, a model, a text that was changed.
    let code = |args: &[&str]| {
        let run = moec_in(dir.path(), &[args, &["--message-format", "json"]].concat());
        common::diagnostics(&run)[0]["code"].as_str().unwrap().to_string()
    };
    assert_eq!(code(&["check", "four", "both"]), "bundles-not-comparable");
    assert_eq!(code(&["check", "four", "config.json"]), "bundle-not-found");
    let file = dir.path().join("four/sm_90a/fingerprint.txt");
    let changed = std::fs::read_to_string(&file).unwrap().replace("1 parts", "2 parts");
    std::fs::write(&file, changed).unwrap();
    assert_eq!(code(&["check", "four", "five"]), "bundle-corrupt");
}

#[test]
fn the_proof_of_a_bundle_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    compiled(dir.path(), "four", 4);
    let run = moec_in(dir.path(), &["check", "four"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for rule in ["permute-into-gather", "merge-gate-and-up", "activation-into-epilogue", "unpermute-into-combine"] {
        assert!(run.stdout.contains(rule), "{}", run.stdout);
    }
    let run = moec_in(dir.path(), &["check", "config.json", "--message-format", "json"]);
    assert_eq!((run.code, &common::diagnostics(&run)[0]["code"]), (2, &Value::from("wrong-usage")));
}

#[test]
fn what_two_bundles_decided_is_told_with_times() {
    let dir = tempfile::tempdir().unwrap();
    compiled(dir.path(), "four", 4);
    let compile = |name: &str, target: &str| {
        let args = ["compile", "config.json", "--target", target, "--emit", "tile", "-o", name];
        assert_eq!(moec_in(dir.path(), &args).code, 0);
    };
    compile("hopper", "h200");
    compile("blackwell", "b200");
    let run = moec_in(dir.path(), &["explain", "hopper", "blackwell"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for part in ["the same 5 rewrites", "sm_90a and sm_100f", "other bits", "us, modelled", "then combine"] {
        assert!(run.stdout.contains(part), "no {part}: {}", run.stdout);
    }
    let without = moec_in(dir.path(), &["explain", "four", "hopper"]);
    assert!(without.stdout.contains("the same bits") && without.stdout.contains("--emit tile"), "{}", without.stdout);
}
