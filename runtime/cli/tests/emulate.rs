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

/// Rank 0 gives rank 1 a number and a flag.
const PASSES_ON: &str = ".version 8.7 .target sm_90a .address_size 64
.visible .entry give(.param .u64 window) { .reg .b64 %rd<4>; ld.param.u64 %rd1, [window];
    st.global.u32 [%rd1], 7; st.release.sys.global.u32 [%rd1+8], 1; ret; }
.visible .entry take(.param .u64 window, .param .u64 out) { .reg .b64 %rd<4>; .reg .b32 %r<4>; .reg .pred %p<2>;
    ld.param.u64 %rd1, [window]; ld.param.u64 %rd2, [out];
    POLL: ld.acquire.sys.global.u32 %r1, [%rd1+8]; setp.eq.u32 %p1, %r1, 0; @%p1 bra POLL;
    ld.global.u32 %r2, [%rd1]; st.global.u32 [%rd2], %r2; ret; }";

fn two_ranks(dir: &Path, ptx: &str) -> Run {
    let buffer = |n: usize| moec_ptx::buffers::Buffer {
        dtype: moec_ptx::buffers::Dtype::I32,
        shape: vec![n],
        bytes: vec![0; 4 * n],
    };
    let buffers = [("w".to_owned(), buffer(3)), ("out".to_owned(), buffer(1))].into_iter().collect();
    std::fs::write(dir.join("buffers.safetensors"), moec_ptx::buffers::write(&buffers).unwrap()).unwrap();
    std::fs::write(dir.join("kernel.ptx"), ptx).unwrap();
    let recipe = r#"{"target": "sm_90a", "windows": [[], ["w"]], "outputs": ["out"], "ranks": [
        [{"entry": "give", "grid": [1,1,1], "block": [1,1,1], "params": [{"buffer": "w"}]}],
        [{"entry": "take", "grid": [1,1,1], "block": [1,1,1], "params": [{"buffer": "w"}, {"buffer": "out"}]}]]}"#;
    std::fs::write(dir.join("launch.json"), recipe).unwrap();
    emulate(dir, &["--counters", "counters.json", "--seed", "1"])
}

#[test]
fn ranks_pass_on_what_they_release() {
    let dir = tempfile::tempdir().unwrap();
    let run = two_ranks(dir.path(), PASSES_ON);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("2 ranks: ") && run.stdout.contains("0 findings"), "{}", run.stdout);
    let out = moec_ptx::buffers::read(&std::fs::read(dir.path().join("out.safetensors")).unwrap()).unwrap();
    assert_eq!(out["out"].bytes, [7, 0, 0, 0]);
    let counters = std::fs::read(dir.path().join("counters.json")).unwrap();
    let counters: serde_json::Value = serde_json::from_slice(&counters).unwrap();
    assert_eq!(counters[0][0]["entry"], "give");
    assert_eq!(counters[0][0]["counters"]["far_store_bytes"], 8);
    assert_eq!(counters[1][0]["counters"]["far_load_bytes"], 0);
}

#[test]
fn a_scope_too_narrow_for_ranks_is_a_finding() {
    let dir = tempfile::tempdir().unwrap();
    let run = two_ranks(dir.path(), &PASSES_ON.replace("st.release.sys", "st.release.gpu"));
    assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
    let finding = diagnostics(&run).into_iter().next().unwrap();
    assert_eq!((finding["check"].as_str(), finding["rank"].as_u64()), (Some("race"), Some(1)), "{finding}");
    assert!(finding["other"].as_str().unwrap().contains("rank 0"), "{finding}");
}

#[test]
fn ranks_that_wait_for_ever_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let run = two_ranks(dir.path(), &PASSES_ON.replace("[%rd1+8], 1;", "[%rd1+8], 0;"));
    assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
    let d = diagnostics(&run).into_iter().next().unwrap();
    assert_eq!(d["code"], "ptx-execution-failed");
    assert!(d["message"].as_str().unwrap().contains("rank 1, `take`"), "{d}");
}
