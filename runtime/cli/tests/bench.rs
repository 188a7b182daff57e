//! `moec bench`: every figure is there, for models and bundles, alone and by turns.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{conformance, moec, moec_in};
use serde_json::Value;

/// That a spread is one: figures above zero, in order.
fn is_spread(v: &Value) -> bool {
    let [min, median, max] = ["min", "median", "max"].map(|name| v[name].as_f64().unwrap());
    0.0 < min && min <= median && median <= max
}

#[test]
fn a_model_has_times_by_kernel() {
    let model = conformance("mixtral.f32");
    let run = moec(&["bench", model.to_str().unwrap(), "-T", "1,5", "--rounds", "3", "--threads", "2", "--json"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let json: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&json["device"], &json["threads"]), (&"cpu".into(), &2.into()));
    assert!(is_spread(&json["read_gb_per_second"]));
    let runs = json["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for (run, n_tokens) in runs.iter().zip([1, 5]) {
        assert_eq!(run["tokens"], n_tokens);
        let experts = run["experts"].as_f64().unwrap();
        assert!((2.0..=8.0).contains(&experts), "two experts a token, of eight: {experts}");
        assert!(is_spread(&run["layer"]["milliseconds"]));
        let kernels = run["kernels"].as_array().unwrap();
        assert!(kernels.len() > 1 && kernels.iter().all(|k| is_spread(&k["milliseconds"])));
        let of = |k: &Value| k["weight_bytes"].as_f64().unwrap();
        assert_eq!(kernels.iter().map(of).sum::<f64>(), of(&run["layer"]));
        assert!(run["layer"]["share_of_read"].as_f64().unwrap() > 0.0);
        assert!(run["vs"].is_null());
    }
}

#[test]
fn two_bundles_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("mixtral.f32");
    for (name, level) in [("a", "-O2"), ("b", "-O0")] {
        let run = moec_in(dir.path(), &["compile", model.to_str().unwrap(), "--target", "cpu", level, "-o", name]);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    let args = ["bench", "a", "--vs", "b", "-T", "4", "--rounds", "2"];
    let run = moec_in(dir.path(), &args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("% of a read") && run.stdout.contains("ratio: min"), "{}", run.stdout);
    let json = moec_in(dir.path(), &[&args[..], &["--json"]].concat());
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(is_spread(&json["runs"][0]["vs"]["ratio"]) && is_spread(&json["runs"][0]["vs"]["milliseconds"]));
}

/// Times and counters of every kernel; what is counted of the same bundle twice is the same.
#[test]
fn an_emulator_counts_what_kernels_do() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("mixtral.bf16");
    let compile = ["compile", model.to_str().unwrap(), "--tokens", "0..64", "--target", "sm_90a", "-o", "a"];
    assert_eq!(moec_in(dir.path(), &compile).code, 0);
    let args = ["bench", "a", "--device", "emulator:sm_90a", "--vs", "a", "-T", "3", "--rounds", "2"];
    let run = moec_in(dir.path(), &[&args[..], &["--json"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    let json: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(json["device"] == "emulator:sm_90a" && json["target"] == "sm_90a" && json["read_gb_per_second"].is_null());
    let run = &json["runs"][0];
    let kernels = run["kernels"].as_array().unwrap();
    assert!(kernels.len() > 1 && kernels.iter().all(|k| is_spread(&k["milliseconds"])));
    for figure in ["bytes_read", "bytes_written", "tensor_flops", "warp_instructions", "blocks"] {
        let of = |v: &Value| v["counters"][figure].as_u64().unwrap();
        let sum: u64 = kernels.iter().map(of).sum();
        assert!(sum > 0 && sum == of(&run["layer"]), "{figure}: {json:#}");
        // How often a warp looks at a barrier depends on the host's threads.
        assert!(figure == "warp_instructions" || sum == of(&run["vs"]), "{figure}: {json:#}");
    }
    let weights = run["layer"]["weight_bytes"].as_f64().unwrap();
    assert!(run["layer"]["counters"]["bytes_read"].as_f64().unwrap() >= weights, "{json:#}");
    let table = moec_in(dir.path(), &args);
    assert!(table.stdout.contains("bank conflicts") && table.stdout.contains("emulator's own"), "{}", table.stdout);
}

#[test]
fn what_cannot_be_timed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("mixtral.f32");
    let model = model.to_str().unwrap();
    let other = conformance("mixtral.bf16");
    for (name, model) in [("a", model), ("b", other.to_str().unwrap())] {
        assert_eq!(moec_in(dir.path(), &["compile", model, "--target", "cpu", "-o", name]).code, 0);
    }
    for (args, code, says) in [
        (&["bench", model, "--device", "emulator:sm_90a", "--threads", "2"][..], 2, "--threads changes nothing"),
        (&["bench", "a", "--device", "emulator:sm_90a"], 1, "sm_90a"),
        (&["bench", model, "-T", "0"], 2, "token counts"),
        (&["bench", model, "--rounds", "0"], 2, "--rounds"),
        (&["bench", "a", "--layer", "1"], 2, "--layer changes nothing"),
        (&["bench", "a", "--vs", model], 1, "is a model, not a bundle"),
        (&["bench", "a", "--vs", "b"], 2, "the other"),
    ] {
        let run = moec_in(dir.path(), args);
        assert_eq!(run.code, code, "{args:?}: {}", run.stderr);
        assert!(run.stdout.is_empty() && run.stderr.contains(says), "{args:?}: {}", run.stderr);
    }
}
