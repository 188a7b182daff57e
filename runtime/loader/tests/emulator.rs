//! Layers on the PTX emulator, from hand-written PTX.
#![cfg(feature = "emulator")]

mod common;

use common::*;
use moec_bundle::Bundle;
use moec_ir::{DType, Tensor};
use moec_runtime::{Device, Layer, LoadOptions, Weights};

fn load(bundle: &Bundle, max_tokens: u64) -> Layer {
    let device = Device::parse("emulator:sm_80").expect("device");
    let options = LoadOptions { device, max_tokens, ..LoadOptions::default() };
    Layer::load(bundle, &Weights::Tensors(&[]), options).expect("load")
}

fn input(n_tokens: usize) -> Tensor {
    Tensor::float(DType::F32, &[n_tokens, COLS], (0..n_tokens * COLS).map(|i| i as f32).collect())
}

#[test]
fn ptx_runs_for_any_token_count_without_findings() {
    let mut layer = load(&gpu_bundle(0), 100);
    for n in [0, 1, 31, 32, 33, 100, 2] {
        let run = layer.run_host(&[("input", &input(n))]).expect("run");
        assert_eq!(run.findings, Vec::<String>::new(), "{n} tokens");
        let want: Vec<f32> = input(n).floats().iter().map(|x| 4.0 * x).collect();
        assert_eq!(run.output("output").expect("output").floats(), want, "{n} tokens");
        let mid = layer.read_buffer("mid", n as u64).expect("mid");
        assert_eq!(mid.floats(), input(n).floats().iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        assert_eq!(layer.as_emulator().expect("emulator").reports().len(), if n == 0 { 0 } else { 2 });
    }
    assert_eq!(layer.read_buffer("middle", 2).expect_err("no such buffer").code, "no-such-buffer");
}

#[test]
fn a_read_behind_a_buffer_is_found_and_named() {
    let mut layer = load(&gpu_bundle(1), 4);
    let run = layer.run_host(&[("input", &input(4))]).expect("run");
    assert!(run.findings.iter().any(|f| f.starts_with("first: bounds")), "{:?}", run.findings);
}

#[test]
fn what_is_no_ptx_is_refused() {
    let good = gpu_bundle(0);
    let files = good.files().map(|(p, _)| (p.to_string(), b"not ptx".to_vec())).collect();
    let bad = Bundle::new(good.manifest().clone(), files).expect("valid as a bundle");
    let options = LoadOptions { device: Device::parse("emulator:sm_80").expect("device"), ..LoadOptions::default() };
    let d = Layer::load(&bad, &Weights::Tensors(&[]), options).expect_err("refused");
    assert_eq!(d.code, "emulator-refused");
}
