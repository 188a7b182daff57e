//! The C interface as a host in Rust would call it.
#![allow(dead_code, reason = "each test file uses a part")]

#[allow(clippy::unwrap_used, reason = "a test may panic")]
pub mod host;

use moec::{CompileRequest, Model, Target};
use moec_c::*;
use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

pub const HIDDEN: i64 = 64;
pub const TOP_K: i64 = 2;

pub fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/mixtral.f32")
}

/// A small Mixtral layer, compiled for the CPU, as one file.
pub fn archive() -> Vec<u8> {
    let layer = Model::open(checkpoint()).expect("model").layer(Some(0)).expect("layer");
    let cpu = Target::by_name("cpu").into_iter().collect();
    let request = CompileRequest { tokens: (0, 64), ..CompileRequest::new(&layer.graph, cpu) };
    moec::compile(&request).expect("compiles").bundle.to_archive()
}

pub fn c(text: &str) -> CString {
    CString::new(text).expect("no zeros")
}

/// Code and message of this thread's last error.
pub fn last() -> (String, String) {
    // SAFETY: strings of the library.
    let text = |p| unsafe { CStr::from_ptr(p) }.to_str().expect("UTF-8").to_string();
    (text(moec_last_error_code()), text(moec_last_error_message()))
}

/// The code of a call that should fail.
pub fn refused(status: moec_status) -> String {
    assert_ne!(status, moec_status::MOEC_OK);
    let (code, message) = last();
    assert!(!message.is_empty(), "{code}");
    assert!(moec_ir::diag::code_page(&code).is_some(), "{code} has no page");
    code
}

pub fn must(status: moec_status) {
    assert_eq!(status, moec_status::MOEC_OK, "{:?}", last());
}

pub fn open(archive: &[u8]) -> *mut moec_bundle {
    let mut bundle = null_mut();
    // SAFETY: a slice and a place.
    must(unsafe { moec_bundle_open_memory(archive.as_ptr().cast(), archive.len(), &mut bundle) });
    bundle
}

pub fn options(max_tokens: u64) -> moec_layer_options {
    moec_layer_options {
        struct_size: size_of::<moec_layer_options>(),
        device: null(),
        max_tokens,
        n_threads: 2,
        reserved: 0,
        memory_limit: 0,
    }
}

pub fn create(archive: &[u8], max_tokens: u64) -> *mut moec_layer {
    let (bundle, mut layer) = (open(archive), null_mut());
    // SAFETY: a handle, options and a place.
    must(unsafe { moec_layer_create(bundle, &options(max_tokens), &mut layer) });
    must(moec_bundle_free(bundle));
    layer
}

pub fn load(layer: *mut moec_layer) {
    let path = c(checkpoint().to_str().expect("UTF-8"));
    let options = moec_checkpoint_options {
        struct_size: size_of::<moec_checkpoint_options>(),
        path: path.as_ptr(),
        cache: null(),
        progress: None,
        user: null_mut(),
    };
    // SAFETY: a path that lives as long as the call.
    must(unsafe { moec_layer_load_checkpoint(layer, &options) });
}

/// A tensor of the host: memory, lengths, DLPack's code and bits.
pub fn tensor<T>(data: &mut [T], shape: &[i64], code: u8) -> moec_tensor {
    moec_tensor {
        data: data.as_mut_ptr().cast(),
        device: moec_device { device_type: 1, device_id: 0 },
        ndim: shape.len() as i32,
        dtype: moec_dtype { code, bits: 8 * size_of::<T>() as u8, lanes: 1 },
        shape: shape.as_ptr(),
        strides: null(),
        byte_offset: 0,
    }
}

/// Memory for a launch of `n` tokens.
pub struct Io {
    pub input: Vec<f32>,
    pub output: Vec<f32>,
    pub ids: Vec<i32>,
    pub weights: Vec<f32>,
    pub workspace: Vec<u8>,
    pub rows: [i64; 2],
    pub slots: [i64; 2],
}

impl Io {
    pub fn new(layer: *const moec_layer, n: i64) -> Io {
        let mut bytes = 0;
        // SAFETY: a place.
        must(unsafe { moec_layer_workspace_bytes(layer, n as u64, &mut bytes) });
        let of = |width: i64| (n * width) as usize;
        Io {
            input: (0..of(HIDDEN)).map(|i| (i as f32).sin()).collect(),
            output: vec![0.0; of(HIDDEN)],
            ids: vec![-7; of(TOP_K)],
            weights: vec![0.0; of(TOP_K)],
            workspace: vec![0xCD; bytes as usize],
            rows: [n, HIDDEN],
            slots: [n, TOP_K],
        }
    }

    /// Input, output, ids, weights.
    pub fn tensors(&mut self) -> [moec_tensor; 4] {
        [
            tensor(&mut self.input, &self.rows, 2),
            tensor(&mut self.output, &self.rows, 2),
            tensor(&mut self.ids, &self.slots, 0),
            tensor(&mut self.weights, &self.slots, 2),
        ]
    }

    /// Launches after `change` had its way with tensors and launch.
    pub fn launch(
        &mut self,
        layer: *const moec_layer,
        change: impl FnOnce(&mut [moec_tensor; 4], &mut moec_launch),
    ) -> moec_status {
        let mut tensors = self.tensors();
        let mut launch = moec_launch {
            struct_size: size_of::<moec_launch>(),
            inputs: null(),
            n_inputs: 1,
            outputs: null(),
            n_outputs: 3,
            workspace: self.workspace.as_mut_ptr().cast::<c_void>(),
            workspace_bytes: self.workspace.len() as u64,
            stream: null_mut(),
        };
        change(&mut tensors, &mut launch);
        let list: Vec<*const moec_tensor> = tensors.iter().map(|t| &raw const *t).collect();
        if launch.n_inputs == 1 && launch.inputs.is_null() {
            launch.inputs = list.as_ptr();
        }
        if launch.n_outputs == 3 && launch.outputs.is_null() {
            launch.outputs = list[1..].as_ptr();
        }
        // SAFETY: the tensors and lists live as long as the call; `change` has only made them refusable.
        unsafe { moec_layer_launch(layer, &launch) }
    }
}
