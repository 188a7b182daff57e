//! Streams, exit codes and promises of the command line.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says why it was skipped")]

mod common;

use common::{conformance, moec, moec_in, root};
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn wrong_usage_has_exit_code_2_and_says_what_is_known() {
    for args in [
        &["compile"][..],
        &["compile", "examples/models/mixtral-8x7b", "--target", "sm_42", "-o", "/tmp/x"],
        &["run", "m", "--device", "tpu", "--input", "random:"],
        &["frobnicate"],
    ] {
        let run = moec(args);
        assert_eq!(run.code, 2, "{args:?}: {}", run.stderr);
        assert!(run.stdout.is_empty());
    }
    assert!(moec(&["compile", "m", "--target", "sm_42", "-o", "x"]).stderr.contains("sm_90a"));
}

#[test]
fn help_and_version_go_to_standard_output() {
    for args in [&["--help"][..], &["--version"], &["compile", "--help"], &["help", "run"]] {
        let run = moec(args);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{args:?}");
        assert!(!run.stdout.is_empty());
    }
}

#[test]
fn every_command_of_the_reference_is_in_the_help() {
    let help = moec(&["--help"]).stdout;
    for command in [
        "compile", "pack", "run", "bench", "emulate", "check", "explain", "inspect", "diff", "place", "rules",
        "schema", "doctor",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
    }
}

/// By the convention of `NO_COLOR`, a variable that is empty is not set.
#[test]
fn plain_sentences_are_asked_for_by_a_variable_that_says_something() {
    let of = |value: Option<&str>| {
        let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_moec"));
        run.args(["explain", "none"]).env_remove("NO_GRAPHICS");
        run.envs(value.map(|value| ("NO_GRAPHICS", value)));
        String::from_utf8(run.output().unwrap().stderr).unwrap()
    };
    let drawn = of(None);
    assert!(drawn == of(Some("")) && drawn != of(Some("0")) && of(Some("0")) == of(Some("1")), "{drawn}");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_moec"))
        .arg("rules")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty());
}

#[test]
fn doctor_always_answers() {
    let run = moec(&["doctor"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for part in ["cpu", "memory", "llvm", "cuda", "ptxas"] {
        assert!(run.stdout.contains(part), "{part}: {}", run.stdout);
    }
    let json: serde_json::Value = serde_json::from_str(&moec(&["doctor", "--json"]).stdout).unwrap();
    assert!(json["findings"].as_array().is_some_and(|f| f.len() >= 5));
}

#[test]
fn the_same_input_gives_the_same_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let config = root().join("examples/models/gpt-oss-120b/config.json");
    for out in ["a", "b"] {
        let run = moec_in(dir.path(), &["compile", config.to_str().unwrap(), "--target", "sm_90a,cpu", "-o", out]);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    let sums = |out: &str| std::fs::read_to_string(dir.path().join(out).join("SHA256SUMS")).unwrap();
    assert_eq!(sums("a"), sums("b"));
}

#[test]
fn compile_prints_a_table_and_writes_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let config = root().join("examples/models/mixtral-8x7b/config.json");
    let emit = "graph,egraph,tile,llvm,ptx,manifest,header,c,rust";
    let args =
        ["compile", config.to_str().unwrap(), "--target", "h200", "--tokens", "1..64", "-o", "out", "--emit", emit];
    let run = moec_in(dir.path(), &args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("sm_90a") && run.stdout.contains("kernel"), "{}", run.stdout);
    for file in ["manifest.json", "proof.json", "egraph.json", "graph.txt", "layer.h", "layer.c", "layer.rs"] {
        assert!(dir.path().join("out").join(file).is_file(), "{file}");
    }
    let names: Vec<String> = std::fs::read_dir(dir.path().join("out/sm_90a"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    for ending in [".ptx", ".ll", ".txt"] {
        assert!(names.iter().any(|n| n.ends_with(ending)), "{ending}: {names:?}");
    }
    let inspect = moec_in(dir.path(), &["inspect", "out"]);
    assert_eq!(inspect.code, 0, "{}", inspect.stderr);
    assert!(inspect.stdout.contains("router.weight"), "{}", inspect.stdout);
    assert!(inspect.stdout.contains("contract "), "{}", inspect.stdout);
    // What was decided when it was compiled cannot be asked for any more.
    for option in [&["--layer", "1"][..], &["-O", "0"], &["--numerics", "fast"], &["--activations", "fp8-token"]] {
        let run = moec_in(dir.path(), &[&["run", "out", "--input", "random:"], option].concat());
        assert!(run.code == 2 && run.stderr.contains(option[0]), "{option:?}: {} {}", run.code, run.stderr);
    }
}

#[test]
fn run_compares_with_expected_results() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("qwen2_moe.f32");
    let golden = model.join("golden.layer0.safetensors");
    let (model, golden) = (model.to_str().unwrap(), golden.to_str().unwrap());
    let args = ["run", model, "--layer", "0", "--input", golden, "--expect", golden, "--output", "y.safetensors"];
    let cached = ["--weight-cache", "cache"];
    for more in [&[][..], &["--jit"], &["--device", "emulator:sm_90a"], &cached, &cached] {
        let run = moec_in(dir.path(), &[&args[..], more].concat());
        assert_eq!(run.code, 0, "{more:?}: {}{}", run.stdout, run.stderr);
        assert!(run.stdout.contains("relative error"), "{}", run.stdout);
        assert!(dir.path().join("y.safetensors").is_file());
    }
    let strict = moec_in(dir.path(), &[&args[..], &["--tolerance", "0"]].concat());
    assert_eq!(strict.code, 1, "an error above the tolerance should be a failure: {}", strict.stdout);
}

#[cfg(target_os = "linux")]
#[test]
fn a_memory_limit_is_kept_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("mixtral.bf16");
    let model = model.to_str().unwrap();
    let args = ["run", model, "--input", "random:T=5", "--output", "y.safetensors"];
    let result = |more: &[&str]| {
        let run = moec_in(dir.path(), &[&args[..], more].concat());
        assert_eq!(run.code, 0, "{more:?}: {}", run.stderr);
        std::fs::read(dir.path().join("y.safetensors")).unwrap()
    };
    let want = result(&[]);
    for limit in ["64KiB", "1.5 MB", "1GiB"] {
        assert!(result(&["--weight-cache", "cache", "--memory-limit", limit]) == want, "{limit}");
    }
    assert!(result(&["--jit", "--weight-cache", "cache", "--memory-limit", "64KiB"]) == want);
    let code = |more: &[&str]| {
        let run = moec_in(dir.path(), &[&["--message-format", "json"], &args[..], more].concat());
        (
            run.code,
            common::diagnostics(&run).first().and_then(|d| Some(d["code"].as_str()?.to_string())).unwrap_or_default(),
        )
    };
    let cached = ["--weight-cache", "cache", "--memory-limit"];
    assert_eq!(code(&[&cached[..], &["4KiB"]].concat()), (1, "memory-limit-too-small".into()));
    assert_eq!(code(&["--memory-limit", "1GiB"]), (1, "memory-limit-needs-file".into()));
    let emulated = [&cached[..], &["1GiB", "--device", "emulator:sm_90a"]].concat();
    assert_eq!(code(&emulated), (2, "memory-limit-unsupported".into()));
    let nonsense = moec_in(dir.path(), &[&args[..], &["--memory-limit", "8gigs"]].concat());
    assert_eq!(nonsense.code, 2);
    assert!(nonsense.stderr.contains("`8gigs` is not a number of bytes"), "{}", nonsense.stderr);
    let bench =
        ["bench", model, "-T", "3", "--rounds", "2", "--weight-cache", "cache", "--memory-limit", "64KiB", "--json"];
    let bench = moec_in(dir.path(), &bench);
    assert_eq!(bench.code, 0, "{}", bench.stderr);
}

#[test]
fn an_emulator_counts_what_kernels_move() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("mixtral.bf16");
    let args = ["run", model.to_str().unwrap(), "--input", "random:T=2"];
    let more = ["--device", "emulator:sm_90a", "--counters=counters.json"];
    let run = moec_in(dir.path(), &[&args[..], &more].concat());
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    let json = std::fs::read(dir.path().join("counters.json")).unwrap();
    let kernels: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let input = kernels[0]["buffers"].as_array().unwrap().iter().find(|b| b["buffer"] == "input").unwrap();
    // Two rows of 64 bf16.
    assert_eq!(input["loads"]["once_bytes"], 2 * 64 * 2);
    let table = moec_in(dir.path(), &[&args[..], &["--device", "emulator:sm_90a", "--counters"]].concat());
    assert!(table.stdout.contains("router.weight"), "{}", table.stdout);
    let cpu = moec_in(dir.path(), &[&args[..], &["--counters"]].concat());
    assert_eq!(cpu.code, 2, "{}", cpu.stdout);
    assert!(cpu.stderr.contains("wrong-usage"), "{}", cpu.stderr);
}

#[test]
fn a_bundle_runs_with_the_weights_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("mixtral.bf16");
    let golden = model.join("golden.layer1.safetensors");
    let (model, golden) = (model.to_str().unwrap(), golden.to_str().unwrap());
    let made = moec_in(dir.path(), &["compile", model, "--layer", "1", "--target", "cpu", "-o", "b"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let run = moec_in(dir.path(), &["run", "b", "--weights", model, "--input", golden, "--expect", golden]);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
}

#[test]
fn check_says_yes_and_explain_says_why() {
    let check = moec(&["check", "examples/models/kimi-k2", "--target", "gb200,cpu", "--json"]);
    assert_eq!(check.code, 0, "{}", check.stderr);
    let value: serde_json::Value = serde_json::from_str(&check.stdout).unwrap();
    assert_eq!(value["targets"][0]["compiles"], true);
    let explain = moec(&["explain", "examples/models/kimi-k2"]);
    assert!(explain.stdout.contains("merge-gate-and-up"), "{}", explain.stdout);
}

#[test]
fn every_code_has_a_page_with_a_meaning() {
    let codes = moec(&["explain"]).stdout;
    assert!(codes.lines().count() > 30);
    for code in codes.lines() {
        let page = moec(&["explain", code]).stdout;
        assert!(page.starts_with(&format!("# {code}\n")), "{code}: {page}");
    }
}

#[test]
fn what_contradicts_itself_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("mixtral.f32");
    let model = model.to_str().unwrap();
    assert_eq!(moec_in(dir.path(), &["compile", model, "--target", "cpu", "-o", "b"]).code, 0);
    let args = ["run", "b", "--jit", "--weights", model, "--input", "random:T=2", "--message-format", "json"];
    let run = moec_in(dir.path(), &args);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert_eq!(common::diagnostics(&run)[0]["code"], "wrong-usage");
}

#[test]
fn without_an_assembler_cubins_name_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let config = root().join("examples/models/mixtral-8x7b/config.json");
    let output = Command::new(env!("CARGO_BIN_EXE_moec"))
        .args(["compile", config.to_str().unwrap(), "--target", "sm_90a", "--tokens", "1..1", "-o", "b"])
        .args(["--emit", "cubin", "--message-format", "json"])
        .env("PATH", "/nonexistent")
        .env_remove("MOEC_PTXAS")
        .current_dir(dir.path())
        .output()
        .unwrap();
    if Path::new("/usr/local/cuda/bin/ptxas").exists() {
        println!("skipped: no machine without a CUDA toolkit");
        return;
    }
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("no-ptxas") && text.contains("pip install"), "{text}");
    assert!(!dir.path().join("b").exists(), "half an output was left behind");
}

#[test]
fn activations_are_rounded_as_a_checkpoint_says_or_the_reason_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("deepseek_v3.fp8-block.h256");
    let model = model.to_str().unwrap();
    let run = |activations: &str, output: &str| {
        let args = ["run", model, "--input", "random:T=3", "--activations", activations, "--output", output];
        let run = moec_in(dir.path(), &args);
        assert_eq!(run.code, 0, "{}", run.stderr);
        std::fs::read(dir.path().join(output)).unwrap()
    };
    assert_eq!(run("as-published", "a.safetensors"), run("fp8-block", "b.safetensors"));
    let model = conformance("qwen3_moe.fp8-tensor");
    let args = ["run", model.to_str().unwrap(), "--input", "random:T=3", "--activations", "as-published"];
    let refused = moec_in(dir.path(), &args);
    assert_eq!(refused.code, 1, "{}{}", refused.stdout, refused.stderr);
    assert!(refused.stderr.contains("activation-format-needs-scale"), "{}", refused.stderr);
}

#[test]
fn the_schema_of_layer_graphs_is_served() {
    let run = moec(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(run.code == 0 && schema["properties"]["moec_graph"].is_object(), "{}", run.stderr);
    assert!(moec(&["--help"]).stdout.contains("moec schema"));
}

#[test]
fn rules_are_checked() {
    let run = moec(&["rules", "--verify", "--json"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let lines: Vec<serde_json::Value> = run.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines.len() > 10 && lines.iter().all(|l| l["places"].as_u64().unwrap() > 0), "{}", run.stdout);
    let table = moec(&["rules", "--verify"]).stdout;
    assert!(table.contains("join-scales") && !table.contains("WRONG"), "{table}");
}

#[test]
fn a_page_on_a_layer_needs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("page.html");
    let page = |target: &str| {
        let args = ["explain", "examples/models/deepseek-r1", "--target", target, "--html", file.to_str().unwrap()];
        moec(&args)
    };
    let run = page("h200");
    assert_eq!((run.code, run.stdout.trim()), (0, file.to_str().unwrap()), "{}", run.stderr);
    let text = std::fs::read_to_string(&file).unwrap();
    for part in ["As written", "experts_act", "Roofline", "Programs by token counts", "one-hot", "merge-gate-and-up"] {
        assert!(text.contains(part), "no {part}");
    }
    // Nothing is fetched, and no figure is missing.
    assert!(!text.contains("http") && !text.contains("NaN") && !text.contains("inf%"));
    assert_eq!(text.matches("<svg").count(), text.matches("</svg>").count());
    let cpu = page("cpu");
    assert!(cpu.code == 2 && cpu.stderr.contains("wrong-usage"), "{}", cpu.stderr);
}
