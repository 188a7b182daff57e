//! Packs, run on the emulator: the same program that a GPU machine gets.
#![cfg(feature = "emulator")]

mod common;

use common::*;
use moec_ir::{DType, Tensor};
use moec_runtime::gpu_pack::{Pack, PackCase, PackReport, PackWeights};
use moec_weights::safetensors::write_safetensors;
use std::path::Path;
use std::process::Command;

fn times(factor: f32) -> Tensor {
    Tensor::float(DType::F32, &[3, COLS], (0..3 * COLS).map(|i| factor * i as f32).collect())
}

/// A pack of two cases: one as it should be, one that expects something else.
fn write_pack(dir: &Path) {
    gpu_bundle(0).write(dir.join("bundles/quadruple")).expect("bundle");
    let rows = Tensor::int(DType::I32, &[3], vec![1, 0, 1]);
    let mut mid = times(2.0).floats().to_vec();
    mid[COLS..2 * COLS].fill(f32::NAN);
    let mid = Tensor::float(DType::F32, &[3, COLS], mid);
    let good = [("input", &times(1.0)), ("expected.output", &times(4.0)), ("buffer.mid", &mid), ("rows.mid", &rows)];
    std::fs::create_dir(dir.join("data")).expect("mkdir");
    write_safetensors(&dir.join("data/good.safetensors"), &good).expect("data");
    let bad = [("input", &times(1.0)), ("expected.output", &times(5.0)), ("buffer.gone", &mid)];
    write_safetensors(&dir.join("data/bad.safetensors"), &bad).expect("data");
    let case = |name: &str| PackCase {
        name: name.into(),
        bundle: "bundles/quadruple".into(),
        weights: PackWeights::Random(1),
        data: format!("data/{name}.safetensors"),
        repeat: 1,
        tolerance: 1e-6,
        time: true,
    };
    let pack = Pack { moec_pack: 1, cases: vec![case("good"), case("bad"), case("missing")] };
    std::fs::write(dir.join("pack.json"), serde_json::to_string(&pack).expect("json")).expect("write");
}

fn program(dir: &Path, device: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moec-gpu-pack"));
    let json = dir.join("out.json");
    let out =
        command.arg(dir).args(["--device", device, "--json"]).arg(json).output().expect("the program should start");
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

#[test]
fn a_pack_reports_what_holds_and_what_does_not() {
    let dir = tempfile::tempdir().expect("dir");
    write_pack(dir.path());
    let (code, table, errors) = program(dir.path(), "emulator:sm_80");
    assert_eq!(code, Some(1), "{table}{errors}");
    let json = std::fs::read(dir.path().join("out.json")).expect("a report");
    let report: PackReport = serde_json::from_slice(&json).expect("json");
    let [good, bad, missing] = &report.cases[..] else { panic!("three cases") };
    assert!(good.ok() && good.checks.len() == 2 && good.same_bits_again == Some(true), "{good:?}");
    assert!(!bad.ok() && bad.checks.len() == 1 && bad.checks[0].error >= 0.2 - 1e-6, "{bad:?}");
    assert!(missing.error.as_deref().is_some_and(|e| e.contains("checkpoint-not-found")), "{missing:?}");
    for word in ["good", "bad", "ok", "WRONG", "checkpoint-not-found"] {
        assert!(table.contains(word), "{word} in {table}");
    }
}

/// A file may hold what is expected of a few tokens, and its rows may be run many times; with nothing to compare, nothing is
/// shown to be right.
#[test]
fn samples_are_compared_and_without_any_a_case_fails() {
    let dir = tempfile::tempdir().expect("dir");
    write_pack(dir.path());
    let all = times(4.0);
    let row = |r: usize| all.floats()[r * COLS..(r + 1) * COLS].to_vec();
    let expected =
        |rows: &[usize]| Tensor::float(DType::F32, &[rows.len(), COLS], rows.iter().flat_map(|&r| row(r)).collect());
    let marks = Tensor::int(DType::I32, &[3], vec![0, 1, 1]);
    let input = times(1.0);
    let right = [("input", &input), ("sampled", &marks), ("expected.output", &expected(&[1, 2]))];
    write_safetensors(&dir.path().join("data/sampled.safetensors"), &right).expect("data");
    let wrong = [("input", &input), ("sampled", &marks), ("expected.output", &expected(&[0, 2]))];
    write_safetensors(&dir.path().join("data/others.safetensors"), &wrong).expect("data");
    write_safetensors(&dir.path().join("data/nothing.safetensors"), &[("input", &input)]).expect("data");
    let path = dir.path().join("pack.json");
    let mut pack: Pack = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("json");
    let good = pack.cases[0].clone();
    pack.cases = ["sampled", "others", "nothing"]
        .map(|n| PackCase { name: n.into(), data: format!("data/{n}.safetensors"), repeat: 5, ..good.clone() })
        .to_vec();
    std::fs::write(&path, serde_json::to_string(&pack).expect("json")).expect("write");
    let (code, table, errors) = program(dir.path(), "emulator:sm_80");
    assert_eq!(code, Some(1), "{table}{errors}");
    let report: PackReport =
        serde_json::from_slice(&std::fs::read(dir.path().join("out.json")).expect("a report")).expect("json");
    let verdicts: Vec<(bool, u64)> = report.cases.iter().map(|c| (c.ok(), c.n_tokens)).collect();
    assert_eq!(verdicts, [(true, 15), (false, 15), (false, 15)], "{table}");
    assert!(table.contains("nothing to compare") && table.contains("WRONG"), "{table}");
}

#[test]
fn a_good_pack_ends_well() {
    let dir = tempfile::tempdir().expect("dir");
    write_pack(dir.path());
    let path = dir.path().join("pack.json");
    let mut pack: Pack = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("json");
    pack.cases.truncate(1);
    std::fs::write(&path, serde_json::to_string(&pack).expect("json")).expect("write");
    let (code, table, errors) = program(dir.path(), "emulator:sm_80");
    assert_eq!(code, Some(0), "{table}{errors}");
}

#[test]
fn wrong_usage_and_missing_packs_have_their_own_codes() {
    let dir = tempfile::tempdir().expect("dir");
    assert_eq!(program(dir.path(), "emulator:sm_80").0, Some(1), "no pack.json");
    assert_eq!(program(dir.path(), "toaster").0, Some(2));
    write_pack(dir.path());
    #[cfg(feature = "cuda")]
    if let Err(d) = moec_runtime::cuda::device_count() {
        let (code, _, errors) = program(dir.path(), "cuda:0");
        assert_eq!(code, Some(2));
        assert!(errors.contains(&d.code) && !errors.contains("panicked"), "{errors}");
    }
}
