//! Layers whose weights come one by one, and launches in memory of the caller.

mod common;

use common::*;
use moec_ir::DType;
use moec_runtime::cpu::Pool;
use moec_runtime::{Device, Hold, Layer, LayerBuilder, LoadOptions};
use moec_weights::MemoryView;
use std::sync::Arc;

fn builder(threads: usize) -> LayerBuilder {
    let options = LoadOptions {
        max_tokens: MAX_TOKENS,
        pool: Some(Arc::new(Pool::new(threads).expect("threads"))),
        jit: Some(kernels()),
        ..LoadOptions::default()
    };
    LayerBuilder::new(&bundle(None), options).expect("the sample should load")
}

fn bytes(values: &[f32]) -> &[u8] {
    // SAFETY: floats have no padding, and any byte is a byte.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn view(values: &[f32], stride: u64) -> MemoryView<'_> {
    MemoryView { dtype: DType::F32, axes: vec![(COLS as u64, stride)], bytes: bytes(values) }
}

/// `2 * (x + bias)` for `x[i] = i`, in memory of the caller that begins at an odd address.
fn run(layer: &Layer, n: usize, memory: &mut [u8]) -> Vec<f32> {
    let x: Vec<f32> = (0..n * COLS).map(|i| i as f32).collect();
    let (mut y, mut ids) = (vec![0f32; n * COLS], vec![0i32; n]);
    let outputs = [y.as_mut_ptr().cast::<u8>(), ids.as_mut_ptr().cast()];
    let cpu = layer.cpu().expect("on the CPU");
    // SAFETY: the vectors have the sizes of the buffers at `n` tokens; `memory` is this call's alone.
    unsafe { cpu.launch_in(memory.as_mut_ptr(), memory.len() as u64, n as u64, &[x.as_ptr().cast()], &outputs) }
        .expect("launch");
    y
}

fn expected(n: usize, bias: f32) -> Vec<f32> {
    (0..n * COLS).map(|i| 2.0 * (i as f32 + bias)).collect()
}

#[test]
fn a_copied_weight_is_the_layers_own_and_a_borrowed_one_stays_the_givers() {
    for (hold, after) in [(Hold::Copy, 5.0), (Hold::Borrow, 7.0), (Hold::Either, 7.0)] {
        let mut bias = vec![5f32; COLS];
        let mut b = builder(1);
        assert!(!b.is_set(0));
        let given = view(&bias, 1);
        // SAFETY: the vector outlives the layer; it is changed between launches only, to see whose memory is read.
        unsafe { b.set(0, &given, hold) }.expect("set");
        assert!(b.is_set(0));
        let layer = b.finish().expect("finish");
        let mut memory = vec![0xEE; layer.cpu().expect("cpu").launch_bytes(4).expect("bytes") as usize];
        assert_eq!(run(&layer, 4, &mut memory), expected(4, 5.0));
        bias.fill(7.0);
        assert_eq!(run(&layer, 4, &mut memory), expected(4, after), "{hold:?}");
    }
}

#[test]
fn what_cannot_be_borrowed_is_copied_or_refused() {
    let spread = vec![3f32; 2 * COLS];
    let given = MemoryView { bytes: &bytes(&spread)[..(2 * COLS - 1) * 4], ..view(&spread, 2) };
    // SAFETY: the vector outlives the layer.
    let refused = unsafe { builder(1).set(0, &given, Hold::Borrow) }.expect_err("strided");
    assert_eq!(refused.code, "parameter-not-borrowable");
    let mut b = builder(1);
    // SAFETY: as above.
    unsafe { b.set(0, &given, Hold::Either) }.expect("copied");
    let layer = b.finish().expect("finish");
    let mut memory = vec![0; layer.cpu().expect("cpu").launch_bytes(2).expect("bytes") as usize];
    assert_eq!(run(&layer, 2, &mut memory), expected(2, 3.0));
}

#[test]
fn mistakes_with_parameters_are_named() {
    let mut b = builder(1);
    assert_eq!(b.param("bias"), Ok(0));
    let d = b.param("gain").expect_err("none");
    assert_eq!((d.code.as_str(), d.notes[0].contains("`bias`")), ("unknown-parameter", true));
    let long = vec![0f32; COLS + 1];
    let wrong = MemoryView { axes: vec![(COLS as u64 + 1, 1)], ..view(&long, 1) };
    // SAFETY: copied.
    assert_eq!(unsafe { b.set(0, &wrong, Hold::Copy) }.expect_err("shape").code, "tensor-shape-mismatch");
    // SAFETY: copied.
    assert_eq!(unsafe { b.set(9, &view(&long, 1), Hold::Copy) }.expect_err("number").code, "unknown-parameter");
    let d = b.finish().expect_err("no weights");
    assert_eq!(d.code, "parameter-not-set");
    assert!(d.message.contains("`bias`"), "{d}");
}

#[test]
fn a_workspace_is_asked_for_by_token_count() {
    let b = builder(2);
    let (small, large) = (b.launch_bytes(1).expect("bytes"), b.launch_bytes(MAX_TOKENS).expect("bytes"));
    assert!(small < large, "{small} {large}");
    assert_eq!(b.launch_bytes(8), Ok(small), "one variant, one size");
    assert_eq!(b.launch_bytes(MAX_TOKENS + 1).expect_err("too many").code, "too-many-tokens");
    let mut b = b;
    // SAFETY: copied.
    unsafe { b.set(0, &view(&[0.0; COLS], 1), Hold::Copy) }.expect("set");
    let layer = b.finish().expect("finish");
    let cpu = layer.cpu().expect("cpu");
    let mut memory = vec![0u8; small as usize];
    for (start, given) in [(memory.as_mut_ptr(), small), (std::ptr::null_mut(), large)] {
        // SAFETY: refused before anything is touched.
        let refused = unsafe { cpu.launch_in(start, given, MAX_TOKENS, &[], &[]) }.expect_err("too small");
        assert_eq!(refused.code, "workspace-too-small");
    }
}

#[test]
fn threads_run_one_layer_at_the_same_time() {
    let mut b = builder(2);
    // SAFETY: copied.
    unsafe { b.set(0, &view(&[1.0; COLS], 1), Hold::Copy) }.expect("set");
    let layer = b.finish().expect("finish");
    let bytes = layer.cpu().expect("cpu").launch_bytes(MAX_TOKENS).expect("bytes") as usize;
    std::thread::scope(|scope| {
        for t in 0..4 {
            let layer = &layer;
            scope.spawn(move || {
                // Any start: the layer finds an aligned place in it.
                let mut memory = vec![0xAB; bytes + t];
                for n in [1, 200, 7, 300, 0] {
                    assert_eq!(run(layer, n, &mut memory[t..]), expected(n, 1.0));
                }
            });
        }
    });
}

#[test]
fn the_emulator_takes_its_weights_at_once() {
    let options = LoadOptions { device: Device::Emulator { target: "sm_80" }, ..LoadOptions::default() };
    assert_eq!(LayerBuilder::new(&gpu_bundle(0), options).expect_err("refused").code, "device-not-built-in");
}
