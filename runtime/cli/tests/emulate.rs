//! `moec emulate`: corpus kernels, findings, and mistakes in what it is given.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Run, diagnostics, moec_in, root};
use std::path::Path;

fn corpus(name: &str) -> std::path::PathBuf {
    root().join("backends/ptx/corpus").join(name)
}

/// Copies a corpus kernel into `dir`, where a test may damage it.
fn bring(dir: &Path, name: &str) {
    for file in ["kernel.ptx", "launch.json", "buffers.safetensors"] {
        std::fs::copy(corpus(name).join(file), dir.join(file)).unwrap();
    }
}

fn emulate(dir: &Path, more: &[&str]) -> Run {
    let args = [
        "emulate",
        "kernel.ptx",
        "--launch",
        "launch.json",
        "--buffers",
        "buffers.safetensors",
        "--output",
        "out.safetensors",
    ];
    moec_in(dir, &[&args[..], &["--message-format", "json"], more].concat())
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from}: {text}");
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_corpus_kernel_gives_the_expected_results() {
    let dir = tempfile::tempdir().unwrap();
    bring(dir.path(), "triton_vec_add_sm90");
    let run = emulate(dir.path(), &["--counters", "counters.json"]);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("0 findings"), "{}", run.stdout);
    let read = |p: &Path| moec_ptx::buffers::read(&std::fs::read(p).unwrap()).unwrap();
    let (got, want) =
        (read(&dir.path().join("out.safetensors")), read(&corpus("triton_vec_add_sm90").join("expected.safetensors")));
    for (name, buffer) in &got {
        assert!(moec_ptx::buffers::compare(buffer, &want[name]).unwrap().within(1e-6), "{name}");
    }
    let counters: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("counters.json")).unwrap()).unwrap();
    assert!(counters.is_object());
}

#[test]
fn mistakes_are_told_apart() {
    type Damage = fn(&Path);
    let list: [(&str, Damage); 6] = [
        ("file-unreadable", |d| std::fs::remove_file(d.join("kernel.ptx")).unwrap()),
        ("launch-invalid", |d| replace(&d.join("launch.json"), "\"grid\"", "\"gird\"")),
        ("ptx-syntax", |d| replace(&d.join("kernel.ptx"), ".visible", ".visible ???")),
        ("ptx-not-emulated", |d| replace(&d.join("kernel.ptx"), "ret;", "frobnicate.u32 %r1, %r1; ret;")),
        ("ptx-execution-failed", |d| replace(&d.join("kernel.ptx"), "ret;", "trap; ret;")),
        ("safetensors-header-invalid", |d| std::fs::write(d.join("buffers.safetensors"), "noise").unwrap()),
    ];
    for (code, damage) in list {
        let dir = tempfile::tempdir().unwrap();
        bring(dir.path(), "triton_vec_add_sm90");
        damage(dir.path());
        let run = emulate(dir.path(), &[]);
        assert_eq!(run.code, 1, "{code}: {}{}", run.stdout, run.stderr);
        let codes: Vec<_> = diagnostics(&run).iter().map(|d| d["code"].as_str().unwrap().to_string()).collect();
        assert_eq!(codes, [code], "{}", run.stderr);
        assert!(!dir.path().join("out.safetensors").exists(), "{code}: an output was left behind");
    }
}

#[test]
fn results_are_compared_with_what_is_expected() {
    let dir = tempfile::tempdir().unwrap();
    bring(dir.path(), "triton_vec_add_sm90");
    let expected = corpus("triton_vec_add_sm90").join("expected.safetensors");
    let right = emulate(dir.path(), &["--expect", expected.to_str().unwrap()]);
    assert!(right.code == 0 && right.stdout.contains("o: relative error 0"), "{}{}", right.stdout, right.stderr);
    replace(&dir.path().join("kernel.ptx"), "add.f32", "sub.f32");
    let wrong = emulate(dir.path(), &["--expect", expected.to_str().unwrap()]);
    assert!(wrong.code == 1 && wrong.stdout.contains("elements differ, the first at 0"), "{}", wrong.stdout);
    let other = corpus("triton_softmax_sm90").join("expected.safetensors");
    let other = emulate(dir.path(), &["--expect", other.to_str().unwrap()]);
    assert_eq!(diagnostics(&other)[0]["code"], "buffer-shape-mismatch");
}

#[test]
fn a_recipe_is_written_for_any_kernel() {
    for name in ["triton_vec_add_sm90", "triton_matmul_tma_bf16_tn_sm90", "nvcc_tma_tile_128B_sm90"] {
        let kernel = corpus(name).join("kernel.ptx");
        let run = moec_in(&root(), &["emulate", "--init", kernel.to_str().unwrap()]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        let given =
            moec_ptx::launch::parse(&std::fs::read_to_string(corpus(name).join("launch.json")).unwrap()).unwrap();
        let made = moec_ptx::launch::parse(&run.stdout).unwrap();
        assert_eq!((&made.entry, &made.target), (&given.entry, &given.target), "{name}");
        let sizes = |l: &moec_ptx::launch::Launch| l.params.iter().map(|p| p.size_bytes()).collect::<Vec<_>>();
        assert_eq!(sizes(&made), sizes(&given), "{name}");
    }
}

#[test]
fn wrong_usage_is_json_for_those_who_ask() {
    let run = moec_in(&root(), &["emulate", "--frobnicate", "--message-format", "json"]);
    let d = &diagnostics(&run)[0];
    assert_eq!((run.code, &d["code"], &d["severity"]), (2, &"wrong-usage".into(), &"error".into()), "{}", run.stderr);
    assert!(d["message"].as_str().unwrap().contains("--frobnicate"));
}
