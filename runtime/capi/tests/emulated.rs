//! Weights in a GPU's own memory, through the C interface: kernels run in the emulator.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../emulated-driver/tests/built/mod.rs"]
mod built;
mod common;

use common::host::{BF16, BORROW, COPY, EITHER, U8, View, dtype_of, params, set, set_codes};
use common::{c, must, refused};
use moec::{Bundle, CompileRequest, Model, Target};
use moec_c::*;
use moec_runtime::cuda::{CudaDevice, DeviceMemory};
use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs the test called `name` again, in a process that finds the emulated driver.
fn with_driver(name: &str, gpu: &str) {
    let dir = tempfile::tempdir().unwrap();
    built::install(dir.path());
    let out = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env("MOEC_EMULATED_GPU", gpu)
        .env("LD_LIBRARY_PATH", dir.path())
        .output()
        .unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(out.status.success(), "{}: {}{}", out.status, text(&out.stdout), text(&out.stderr));
}

fn compiled(model: &str, layer: Option<u32>, gpu: &str) -> Bundle {
    let layer = Model::open(root().join("tests/conformance").join(model)).expect("model").layer(layer).expect("layer");
    let targets = Target::by_name(gpu).into_iter().collect();
    let request = CompileRequest { tokens: (0, 16), ..CompileRequest::new(&layer.graph, targets) };
    moec::compile(&request).expect("compiles").bundle
}

struct Gpu(CudaDevice);

impl Gpu {
    fn memory(&self, bytes: &[u8]) -> DeviceMemory {
        let mut memory = self.0.allocate(bytes.len().max(1) as u64, "a test").expect("allocate");
        memory.upload(bytes).expect("upload");
        memory
    }

    fn layer(&self, bundle: &Bundle) -> *mut moec_layer {
        let (opened, device, mut layer) = (common::open(&bundle.to_archive()), c("cuda:0"), null_mut());
        let options = moec_layer_options { device: device.as_ptr(), ..common::options(8) };
        // SAFETY: a handle, options and a place.
        must(unsafe { moec_layer_create(opened, &options, &mut layer) });
        must(moec_bundle_free(opened));
        layer
    }

    /// All outputs for `n` tokens. The same launch as a graph gives the same.
    fn outputs(&self, layer: *const moec_layer, bundle: &Bundle, n: usize) -> Vec<Vec<u8>> {
        let m = bundle.manifest();
        let all = || m.inputs.iter().chain(&m.outputs);
        let shapes: Vec<Vec<i64>> = all().map(|t| t.ty.shape.iter().map(|d| d.at(n as u64) as i64).collect()).collect();
        let memory: Vec<DeviceMemory> = all()
            .zip(&shapes)
            .map(|(t, s)| {
                let count = s.iter().product::<i64>() as usize;
                let values = (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
                match t.ty.dtype.is_float() {
                    true => self.memory(&moec_ir::Tensor::float(t.ty.dtype, &[count], values).to_bytes()),
                    false => self.memory(&vec![0; count * t.ty.dtype.bytes()]),
                }
            })
            .collect();
        let tensors: Vec<moec_tensor> = all()
            .zip(&shapes)
            .zip(&memory)
            .map(|((t, shape), memory)| on_gpu(&View::dense::<u8>(&[], dtype_of(t), shape), memory, shape))
            .collect();
        let list: Vec<*const moec_tensor> = tensors.iter().map(|t| &raw const *t).collect();
        let mut bytes = 0;
        // SAFETY: a place.
        must(unsafe { moec_layer_workspace_bytes(layer, n as u64, &mut bytes) });
        let workspace = self.memory(&vec![0xCD; bytes as usize]);
        let stream = self.0.stream().expect("stream");
        let launch = moec_launch {
            struct_size: size_of::<moec_launch>(),
            inputs: list.as_ptr(),
            n_inputs: m.inputs.len(),
            outputs: list[m.inputs.len()..].as_ptr(),
            n_outputs: m.outputs.len(),
            workspace: workspace.pointer() as *mut _,
            workspace_bytes: bytes,
            stream: stream.raw().cast(),
        };
        // SAFETY: device memory of the sizes that the shapes say.
        must(unsafe { moec_layer_launch(layer, &launch) });
        stream.synchronize().expect("done");
        let read = |memory: &DeviceMemory| {
            let mut out = vec![0; memory.bytes() as usize];
            memory.download(0, &mut out).expect("download");
            out
        };
        let outputs = |memory: &[DeviceMemory]| memory.iter().map(read).collect::<Vec<_>>();
        let want = outputs(&memory[m.inputs.len()..]);
        let mut memory = memory;
        let graph = stream.capture(|raw| {
            let launch = moec_launch { stream: raw.cast(), ..launch };
            // SAFETY: as above.
            must(unsafe { moec_layer_launch(layer, &launch) });
            Ok(())
        });
        let mut graph = graph.expect("captured");
        for _ in 0..2 {
            for out in &mut memory[m.inputs.len()..] {
                out.fill(0xEE, &stream).expect("filled");
            }
            // SAFETY: everything that the launch uses is alive.
            unsafe { graph.launch(stream.raw()) }.expect("replayed");
            stream.synchronize().expect("done");
            assert!(outputs(&memory[m.inputs.len()..]) == want, "{n} tokens as a graph");
        }
        want
    }
}

/// The same tensor, in a GPU's memory.
fn on_gpu(view: &View, memory: &DeviceMemory, shape: &[i64]) -> moec_tensor {
    let device = moec_device { device_type: 2, device_id: 0 };
    moec_tensor { data: memory.pointer() as *mut _, device, shape: shape.as_ptr(), ..view.tensor() }
}

fn give(layer: *mut moec_layer, name: &str, view: &View, memory: &DeviceMemory, hold: i32) -> moec_status {
    let (name, tensor) = (c(name), on_gpu(view, memory, &view.shape));
    // SAFETY: the tests keep what they lend.
    unsafe { moec_layer_set_param(layer, name.as_ptr(), &tensor, hold) }
}

fn bf16(n: i64, seed: f32) -> Vec<u8> {
    let values = (0..n).map(|i| (i as f32 * 0.37 + seed).sin() / 8.0).collect();
    moec_ir::Tensor::float(moec_ir::DType::BF16, &[n as usize], values).to_bytes()
}

/// Gate and up of one stack, where tensor maps read them; where kernels compute addresses, they are copied when that is
/// allowed.
#[test]
fn halves_of_one_stack_stay_on_the_gpu() {
    let Ok(gpu) = std::env::var("MOEC_EMULATED_GPU") else {
        for gpu in ["sm_100a", "sm_90a", "sm_80"] {
            with_driver("halves_of_one_stack_stay_on_the_gpu", gpu);
        }
        return;
    };
    let bundle = compiled("mixtral.bf16", Some(0), &gpu);
    let in_place = gpu != "sm_80";
    let device = Gpu(CudaDevice::open(0).expect("the emulated driver"));
    let (e, h, i) = (8i64, 64i64, 32i64);
    let (gate_up, down, router) = (bf16(e * 2 * i * h, 1.0), bf16(e * h * i, 2.0), bf16(e * h, 3.0));
    let memory = [&gate_up, &down, &router].map(|b| device.memory(b));
    for [gate, up] in [[(0, 1), (i, 1)], [(0, 2), (1, 2)]] {
        let half = |(first, step): (i64, i64)| {
            let all = View::dense(&gate_up, BF16, &[e, 2 * i, h]);
            all.cut((first * h) as u64, &[e, i, h], &[2 * i * h, step * h, 1])
        };
        let (down, router) = (View::dense(&down, BF16, &[e, h, i]), View::dense(&router, BF16, &[e, h]));
        let want = device.layer(&bundle);
        for (name, view) in [
            ("experts.gate", &half(gate)),
            ("experts.up", &half(up)),
            ("experts.down", &down),
            ("router.weight", &router),
        ] {
            must(set(want, name, view, COPY));
        }
        must(moec_layer_finish(want));
        for hold in [COPY, EITHER, BORROW] {
            let layer = device.layer(&bundle);
            let status = give(layer, "experts.gate", &half(gate), &memory[0], hold);
            if hold == BORROW && !in_place {
                assert_eq!(refused(status), "parameter-not-borrowable");
                must(moec_layer_free(layer));
                continue;
            }
            must(status);
            must(give(layer, "experts.up", &half(up), &memory[0], hold));
            must(give(layer, "experts.down", &down, &memory[1], hold));
            must(give(layer, "router.weight", &router, &memory[2], hold));
            must(moec_layer_finish(layer));
            for n in [1, 6] {
                let (a, b) = (device.outputs(want, &bundle, n), device.outputs(layer, &bundle, n));
                assert!(a == b, "{gpu}, hold {hold}, {n} tokens");
            }
            must(moec_layer_free(layer));
        }
        must(moec_layer_free(want));
    }
    if in_place {
        // An address that tensor maps do not take.
        let layer = device.layer(&bundle);
        let shifted = View::dense(&gate_up, BF16, &[]).cut(1, &[e, i, h], &[i * h, h, 1]);
        assert_eq!(refused(give(layer, "experts.gate", &shifted, &memory[0], BORROW)), "parameter-not-borrowable");
        must(give(layer, "experts.gate", &shifted, &memory[0], EITHER));
        must(moec_layer_free(layer));
    }
}

/// MXFP4 codes and scales in a GPU's memory: borrowed or brought to the host and packed, with the same bits.
#[test]
fn codes_stay_on_the_gpu() {
    let Ok(gpu) = std::env::var("MOEC_EMULATED_GPU") else { return with_driver("codes_stay_on_the_gpu", "sm_100a") };
    let bundle = compiled("gpt_oss.mxfp4-gptoss.h256", Some(0), &gpu);
    let device = Gpu(CudaDevice::open(0).expect("the emulated driver"));
    let layers = [None, Some(COPY), Some(EITHER)].map(|hold| (hold, device.layer(&bundle)));
    let mut kept = Vec::new();
    for (hold, layer) in layers {
        for (p, (name, param)) in params(layer).into_iter().enumerate() {
            // SAFETY: what the library gives lives as long as the layer.
            let shape = unsafe { std::slice::from_raw_parts(param.shape, param.ndim as usize) }.to_vec();
            let n = shape.iter().product::<i64>();
            if param.is_coded == 0 {
                let bytes = bf16(n, p as f32);
                must(set(layer, &name, &View::dense(&bytes, BF16, &shape), COPY));
                continue;
            }
            let [e, rows, k] = shape[..] else { panic!("{shape:?}") };
            let codes: Vec<u8> = (0..n / 2).map(|i| (i * 37 + p as i64) as u8).collect();
            let scales: Vec<u8> = (0..n / 32).map(|i| 118 + (i % 5) as u8).collect();
            let (codes_shape, scales_shape) = ([e, rows, k / 2], [e, rows, k / 32]);
            let views = (View::dense(&codes, U8, &codes_shape), View::dense(&scales, U8, &scales_shape));
            let Some(hold) = hold else {
                must(set_codes(layer, &name, [Some(&views.0), Some(&views.1), None], COPY));
                continue;
            };
            let memory = (device.memory(&codes), device.memory(&scales));
            let tensors = (on_gpu(&views.0, &memory.0, &codes_shape), on_gpu(&views.1, &memory.1, &scales_shape));
            let given = moec_codes {
                struct_size: size_of::<moec_codes>(),
                codes: &tensors.0,
                scales: &tensors.1,
                globals: std::ptr::null(),
            };
            // SAFETY: the memory is kept to the end.
            must(unsafe { moec_layer_set_codes(layer, c(&name).as_ptr(), &given, hold) });
            kept.push(memory);
        }
        must(moec_layer_finish(layer));
    }
    let [want, copied, lent] = layers.map(|(_, layer)| device.outputs(layer, &bundle, 3));
    assert!(want == copied && want == lent);
    layers.into_iter().for_each(|(_, layer)| must(moec_layer_free(layer)));
}
