//! The CUDA side of the loader, against a driver of host memory (`fake_driver/libcuda.rs`): parameters, grids, token
//! counts, graphs, and that everything is given back. What a real GPU does is checked by packs.
#![cfg(all(feature = "cuda", target_os = "linux"))]

mod common;

use common::*;
use moec_bundle::Bundle;
use moec_bundle::manifest::Launch;
use moec_ir::{DType, Tensor};
use moec_runtime::gpu_pack::{Pack, PackCase, PackReport, PackWeights};
use moec_weights::safetensors::write_safetensors;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the fake driver into a folder of its own.
fn fake_driver(dir: &Path) -> PathBuf {
    let folder = dir.join("driver");
    std::fs::create_dir(&folder).expect("mkdir");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_driver/libcuda.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let out = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "cuda", "-A", "unsafe_op_in_unsafe_fn"])
        .arg("-o")
        .arg(folder.join("libcuda.so"))
        .arg(source)
        .output()
        .expect("rustc should run");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    folder
}

fn tensor(n_tokens: usize, factor: f32) -> Tensor {
    Tensor::float(DType::F32, &[n_tokens, COLS], (0..n_tokens * COLS).map(|i| factor * i as f32).collect())
}

/// A pack with the cases: `(name, bundle, tokens)`.
fn write_pack(dir: &Path, cases: &[(&str, &Bundle, usize)]) {
    std::fs::create_dir_all(dir.join("data")).expect("mkdir");
    let mut list = Vec::new();
    for (name, bundle, n) in cases {
        bundle.write(dir.join("bundles").join(name)).expect("bundle");
        let data =
            [("input", &tensor(*n, 1.0)), ("expected.output", &tensor(*n, 4.0)), ("buffer.mid", &tensor(*n, 2.0))];
        write_safetensors(&dir.join(format!("data/{name}.safetensors")), &data).expect("data");
        list.push(PackCase {
            name: name.to_string(),
            bundle: format!("bundles/{name}"),
            weights: PackWeights::Random(1),
            data: format!("data/{name}.safetensors"),
            repeat: 1,
            tolerance: 0.0,
            time: true,
        });
    }
    let pack = Pack { moec_pack: 1, cases: list };
    std::fs::write(dir.join("pack.json"), serde_json::to_string(&pack).expect("json")).expect("write");
}

fn run(dir: &Path, driver: &Path, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_moec-gpu-pack"))
        .arg(dir)
        .arg("--json")
        .arg(dir.join("out.json"))
        .env("LD_LIBRARY_PATH", driver)
        .envs(settings.iter().copied())
        .output()
        .expect("the program should start");
    (out.status.code(), format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)))
}

fn report(dir: &Path) -> PackReport {
    serde_json::from_slice(&std::fs::read(dir.join("out.json")).expect("a report")).expect("json")
}

fn changed(change: impl Fn(&mut Launch)) -> Bundle {
    let good = gpu_bundle(0);
    let mut m = good.manifest().clone();
    change(&mut m.targets[0].variants[0].kernels[0].launch);
    Bundle::new(m, good.files().map(|(p, c)| (p.to_string(), c.to_vec())).collect()).expect("valid")
}

#[test]
fn layers_run_are_captured_and_timed_and_give_everything_back() {
    let dir = tempfile::tempdir().expect("dir");
    let driver = fake_driver(dir.path());
    let good = gpu_bundle(0);
    write_pack(dir.path(), &[("none", &good, 0), ("one", &good, 1), ("many", &good, 100)]);
    let (code, text) = run(dir.path(), &driver, &[]);
    assert_eq!(code, Some(0), "{text}");
    let report = report(dir.path());
    assert!(report.device.starts_with("Fake (compute capability 8.6, 4 SMs"), "{}", report.device);
    for case in &report.cases {
        assert!(case.ok() && case.checks.len() == 2, "{case:?}");
        assert_eq!((case.same_bits_again, case.same_bits_in_graph), (Some(true), Some(true)), "{case:?}");
        assert_eq!(
            case.kernels.iter().map(|k| (k.name.as_str(), k.registers)).collect::<Vec<_>>(),
            [("first", 21), ("second", 21)]
        );
        let time = case.layer.as_ref().expect("timed");
        // The fake driver's events are always 250 microseconds apart; ten launches share a warm sample.
        assert_eq!((time.warm_us, time.cold_us), (25.0, 250.0));
    }
}

#[test]
fn what_the_driver_refuses_is_said_with_its_words() {
    let dir = tempfile::tempdir().expect("dir");
    let driver = fake_driver(dir.path());
    let good = gpu_bundle(0);
    let files = good.files().map(|(p, _)| (p.to_string(), b"not ptx".to_vec())).collect();
    let bad_ptx = Bundle::new(good.manifest().clone(), files).expect("valid");
    let big = changed(|l| {
        if let Launch::Gpu { launch, .. } = l {
            launch.dynamic_smem_bytes = 200 << 10;
        }
    });
    write_pack(dir.path(), &[("bad", &bad_ptx, 1), ("big", &big, 1), ("good", &good, 1)]);
    let (code, text) = run(dir.path(), &driver, &[]);
    assert_eq!(code, Some(1), "{text}");
    let report = report(dir.path());
    let error = |i: usize| report.cases[i].error.clone().unwrap_or_default();
    assert!(error(0).contains("ptx-rejected") && error(0).contains("no entry in this file"), "{}", error(0));
    assert!(error(1).contains("target-not-in-bundle") && error(1).contains("needs 204800 bytes"), "{}", error(1));
    assert!(error(1).contains("Fake (compute capability 8.6) has 102400"), "{}", error(1));
    assert!(report.cases[2].ok());
}

#[test]
fn a_grid_that_is_too_small_is_noticed() {
    let dir = tempfile::tempdir().expect("dir");
    let driver = fake_driver(dir.path());
    let small = changed(|l| {
        if let Launch::Gpu { launch, .. } = l {
            launch.grid[0] = moec_ir::tile::Extent::fixed(1);
        }
    });
    write_pack(dir.path(), &[("small", &small, 33)]);
    let (code, text) = run(dir.path(), &driver, &[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("WRONG") && text.contains("buffer mid"), "{text}");
}

#[test]
fn clusters_of_a_persistent_kernel_are_as_many_as_run_at_once() {
    let dir = tempfile::tempdir().expect("dir");
    let driver = fake_driver(dir.path());
    let in_clusters = changed(|l| {
        if let Launch::Gpu { launch, .. } = l {
            (launch.cluster, launch.persistent) = (2, true);
        }
    });
    write_pack(dir.path(), &[("clusters", &in_clusters, 100)]);
    // The multiprocessors have room for two; the second driver runs one at a time, the third none.
    for n in ["2", "1"] {
        let (code, text) = run(dir.path(), &driver, &[("FAKE_CUDA_CLUSTERS", n)]);
        assert_eq!(code, Some(0), "{text}");
    }
    let (code, text) = run(dir.path(), &driver, &[("FAKE_CUDA_CLUSTERS", "0")]);
    assert_eq!(code, Some(1), "{text}");
    let error = report(dir.path()).cases[0].error.clone().unwrap_or_default();
    assert!(error.contains("ptx-rejected") && error.contains("no cluster of 2 of its blocks fits"), "{error}");
}

#[test]
fn machines_that_cannot_run_it_are_told_why() {
    let dir = tempfile::tempdir().expect("dir");
    let driver = fake_driver(dir.path());
    write_pack(dir.path(), &[("one", &gpu_bundle(0), 1)]);
    let (code, text) = run(dir.path(), &driver, &[("FAKE_CUDA_VERSION", "11040")]);
    assert!(code == Some(2) && text.contains("cuda-driver-too-old") && text.contains("11.4"), "{text}");
    let (code, text) = run(dir.path(), &driver, &[("FAKE_CUDA_INIT", "100")]);
    assert!(code == Some(2) && text.contains("cuda-driver-missing") && text.contains("CUDA_ERROR_NO_DEVICE"), "{text}");
    let (code, text) = run(dir.path(), &driver, &[("FAKE_CUDA_MAJOR", "7")]);
    assert!(code == Some(1) && text.contains("target-not-in-bundle") && text.contains("7.6"), "{text}");
}
