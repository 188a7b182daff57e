//! Layers on a GPU through the C interface, against the loader's stand-in for the driver.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../loader/tests/common/mod.rs"]
mod loader;

use common::{c, last, must, options, refused};
use loader::{COLS, gpu_bundle};
use moec_c::*;
use moec_runtime::cuda::{CudaDevice, DeviceMemory};
use std::path::Path;
use std::process::Command;
use std::ptr::{null, null_mut};

/// Set in the process that has the stand-in on its search path.
const INSIDE: &str = "MOEC_TEST_BUNDLE";

fn tensor(memory: &DeviceMemory, shape: &[i64; 2]) -> moec_tensor {
    moec_tensor {
        data: memory.pointer() as *mut _,
        device: moec_device { device_type: 2, device_id: 0 },
        ndim: 2,
        dtype: moec_dtype { code: 2, bits: 32, lanes: 1 },
        shape: shape.as_ptr(),
        strides: null(),
        byte_offset: 0,
    }
}

fn floats(memory: &DeviceMemory) -> Vec<f32> {
    let mut bytes = vec![0; memory.bytes() as usize];
    memory.download(0, &mut bytes).expect("download");
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn inside(path: &str) {
    const N: i64 = 5;
    let (path, device) = (c(path), c("cuda:0"));
    let (mut bundle, mut layer, mut bytes) = (null_mut(), null_mut(), 0);
    let with_device = moec_layer_options { device: device.as_ptr(), ..options(N as u64) };
    // SAFETY: paths, options and places.
    unsafe {
        must(moec_bundle_open(path.as_ptr(), &mut bundle));
        must(moec_layer_create(bundle, &with_device, &mut layer));
        must(moec_layer_workspace_bytes(layer, N as u64, &mut bytes));
    }
    must(moec_layer_finish(layer));
    let gpu = CudaDevice::open(0).expect("the stand-in");
    let stream = gpu.stream().expect("stream");
    let allocate = |n: u64| gpu.allocate(n, "a test").expect("allocate");
    let size = N as u64 * COLS as u64 * 4;
    let (mut x, y, mut workspace) = (allocate(size), allocate(size), allocate(bytes));
    let values: Vec<f32> = (0..N as usize * COLS).map(|i| i as f32).collect();
    x.upload(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).expect("upload");
    // What is in the workspace does not matter.
    workspace.upload(&vec![0xEE; bytes as usize]).expect("upload");
    let shape = [N, COLS as i64];
    let (input, output) = (tensor(&x, &shape), tensor(&y, &shape));
    let launch = |input: &moec_tensor, bytes: u64| {
        let (inputs, outputs) = ([&raw const *input], [&raw const output]);
        let launch = moec_launch {
            struct_size: size_of::<moec_launch>(),
            inputs: inputs.as_ptr(),
            n_inputs: 1,
            outputs: outputs.as_ptr(),
            n_outputs: 1,
            workspace: workspace.pointer() as *mut _,
            workspace_bytes: bytes,
            // The stand-in knows its own streams only.
            stream: stream.raw().cast(),
        };
        // SAFETY: device memory of these sizes.
        unsafe { moec_layer_launch(layer, &launch) }
    };
    must(launch(&input, bytes));
    assert_eq!(floats(&y), values.iter().map(|v| 4.0 * v).collect::<Vec<_>>());
    assert_eq!(refused(launch(&input, bytes - 1)), "workspace-too-small");
    let host = moec_tensor { device: moec_device { device_type: 1, device_id: 0 }, ..input };
    assert_eq!(refused(launch(&host, bytes)), "tensor-device-mismatch");
    let other = moec_tensor { device: moec_device { device_type: 2, device_id: 1 }, ..input };
    assert_eq!(refused(launch(&other, bytes)), "tensor-device-mismatch");
    assert_eq!(refused(launch(&moec_tensor { byte_offset: 8, ..input }, bytes)), "tensor-misaligned");
    // The stand-in ends the process when a context is released before everything in it: this test's own is kept.
    drop((x, y, workspace, stream));
    std::mem::forget(gpu);
    must(moec_layer_free(layer));
    must(moec_bundle_free(bundle));
    // A second GPU is none.
    let device = c("cuda:9");
    // SAFETY: as above.
    unsafe {
        must(moec_bundle_open(path.as_ptr(), &mut bundle));
        let options = moec_layer_options { device: device.as_ptr(), ..options(1) };
        assert_eq!(moec_layer_create(bundle, &options, &mut layer), moec_status::MOEC_ERROR_MACHINE);
    }
    assert_eq!(last().0, "cuda-device-missing");
}

#[test]
fn a_layer_runs_on_the_callers_device_memory() {
    if let Ok(path) = std::env::var(INSIDE) {
        return inside(&path);
    }
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("layer");
    gpu_bundle(0).write(&bundle).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../loader/tests/fake_driver/libcuda.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let made = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "cuda", "-A", "unsafe_op_in_unsafe_fn"])
        .arg("-o")
        .arg(dir.path().join("libcuda.so"))
        .arg(source)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["a_layer_runs_on_the_callers_device_memory", "--exact", "--nocapture"])
        .env(INSIDE, &bundle)
        .env("LD_LIBRARY_PATH", dir.path())
        .output()
        .unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(out.status.success(), "{}: {}{}", out.status, text(&out.stdout), text(&out.stderr));
}
