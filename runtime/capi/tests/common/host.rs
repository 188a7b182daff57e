//! A host for any bundle: makes tensors of the shapes that the layer says, and launches.

use super::{must, options};
use ::moec_bundle::manifest::TensorInfo;
use moec_c::*;
use std::ffi::{CStr, CString};
use std::ptr::{null, null_mut};

/// A tensor of a host: bytes, and how elements lie in them.
pub struct View {
    pub data: *const u8,
    pub dtype: moec_dtype,
    pub shape: Vec<i64>,
    pub strides: Option<Vec<i64>>,
    pub byte_offset: u64,
}

pub const COPY: i32 = moec_hold::MOEC_COPY as i32;
pub const BORROW: i32 = moec_hold::MOEC_BORROW as i32;
pub const EITHER: i32 = moec_hold::MOEC_BORROW_IF_POSSIBLE as i32;

pub const F32: moec_dtype = moec_dtype { code: 2, bits: 32, lanes: 1 };
pub const BF16: moec_dtype = moec_dtype { code: 4, bits: 16, lanes: 1 };
pub const U8: moec_dtype = moec_dtype { code: 1, bits: 8, lanes: 1 };

impl View {
    pub fn dense<T>(data: &[T], dtype: moec_dtype, shape: &[i64]) -> View {
        View { data: data.as_ptr().cast(), dtype, shape: shape.to_vec(), strides: None, byte_offset: 0 }
    }

    /// The same memory from element `first` on, with other lengths and strides.
    pub fn cut(&self, first: u64, shape: &[i64], strides: &[i64]) -> View {
        let byte_offset = first * u64::from(self.dtype.bits) / 8;
        View { data: self.data, dtype: self.dtype, shape: shape.to_vec(), strides: Some(strides.to_vec()), byte_offset }
    }

    pub fn tensor(&self) -> moec_tensor {
        moec_tensor {
            data: self.data.cast_mut().cast(),
            device: moec_device { device_type: 1, device_id: 0 },
            ndim: self.shape.len() as i32,
            dtype: self.dtype,
            shape: self.shape.as_ptr(),
            strides: self.strides.as_ref().map_or(null(), |s| s.as_ptr()),
            byte_offset: self.byte_offset,
        }
    }
}

pub fn set(layer: *mut moec_layer, name: &str, view: &View, hold: i32) -> moec_status {
    let name = CString::new(name).unwrap();
    // SAFETY: the tests keep what they lend.
    unsafe { moec_layer_set_param(layer, name.as_ptr(), &view.tensor(), hold) }
}

pub fn set_codes(layer: *mut moec_layer, name: &str, of: [Option<&View>; 3], hold: i32) -> moec_status {
    let name = CString::new(name).unwrap();
    let tensors = of.map(|v| v.map(View::tensor));
    let [codes, scales, globals] = tensors.each_ref().map(|t| t.as_ref().map_or(null(), |t| &raw const *t));
    let codes = moec_codes { struct_size: size_of::<moec_codes>(), codes, scales, globals };
    // SAFETY: as above.
    unsafe { moec_layer_set_codes(layer, name.as_ptr(), &codes, hold) }
}

pub fn layer(bundle: &moec::Bundle, max_tokens: u64) -> *mut moec_layer {
    let bundle = super::open(&bundle.to_archive());
    let mut layer = null_mut();
    // SAFETY: a handle, options and a place.
    must(unsafe { moec_layer_create(bundle, &options(max_tokens), &mut layer) });
    must(moec_bundle_free(bundle));
    layer
}

/// Name and number of each parameter.
pub fn params(layer: *const moec_layer) -> Vec<(String, moec_param)> {
    let mut n = 0;
    // SAFETY: a place.
    must(unsafe { moec_layer_param_count(layer, &mut n) });
    let one = |i| {
        // SAFETY: zeros are a valid value of each field.
        let mut param: moec_param = unsafe { std::mem::zeroed() };
        param.struct_size = size_of::<moec_param>();
        // SAFETY: a place; the name is text of the library.
        unsafe {
            must(moec_layer_param(layer, i, &mut param));
            (CStr::from_ptr(param.name).to_str().unwrap().to_string(), param)
        }
    };
    (0..n).map(one).collect()
}

/// A host's name of a type of inputs or outputs.
pub fn dtype_of(t: &TensorInfo) -> moec_dtype {
    let (code, bits) = match t.ty.dtype {
        moec_ir::DType::BF16 => return BF16,
        moec_ir::DType::I32 => (0, 32),
        moec_ir::DType::F16 => (2, 16),
        _ => return F32,
    };
    moec_dtype { code, bits, lanes: 1 }
}

/// All outputs of a launch on `n` tokens of rows that look random, as bytes.
pub fn outputs(layer: *const moec_layer, bundle: &moec::Bundle, n: usize) -> Vec<Vec<u8>> {
    let m = bundle.manifest();
    let shape = |t: &TensorInfo| -> Vec<i64> { t.ty.shape.iter().map(|d| d.at(n as u64) as i64).collect() };
    let memory = |t: &TensorInfo| vec![0u8; shape(t).iter().product::<i64>() as usize * t.ty.dtype.bytes()];
    let mut inputs: Vec<Vec<u8>> = m.inputs.iter().map(memory).collect();
    let outputs: Vec<Vec<u8>> = m.outputs.iter().map(memory).collect();
    for (bytes, info) in inputs.iter_mut().zip(&m.inputs) {
        let tensor = |values: Vec<f32>| moec_ir::Tensor::float(info.ty.dtype, &[values.len()], values).to_bytes();
        let count = bytes.len() / info.ty.dtype.bytes();
        *bytes = tensor((0..count).map(|i| (i as f32 * 0.7).sin()).collect());
    }
    let view = |bytes: &Vec<u8>, t: &TensorInfo| View::dense(bytes, dtype_of(t), &shape(t));
    let views: Vec<View> =
        inputs.iter().zip(&m.inputs).chain(outputs.iter().zip(&m.outputs)).map(|(b, t)| view(b, t)).collect();
    let tensors: Vec<moec_tensor> = views.iter().map(View::tensor).collect();
    let list: Vec<*const moec_tensor> = tensors.iter().map(|t| &raw const *t).collect();
    let mut bytes = 0;
    // SAFETY: a place.
    must(unsafe { moec_layer_workspace_bytes(layer, n as u64, &mut bytes) });
    let mut workspace = vec![0xCDu8; bytes as usize];
    let launch = moec_launch {
        struct_size: size_of::<moec_launch>(),
        inputs: list.as_ptr(),
        n_inputs: m.inputs.len(),
        outputs: list[m.inputs.len()..].as_ptr(),
        n_outputs: m.outputs.len(),
        workspace: workspace.as_mut_ptr().cast(),
        workspace_bytes: bytes,
        stream: null_mut(),
    };
    // SAFETY: memory of the sizes that the shapes say.
    must(unsafe { moec_layer_launch(layer, &launch) });
    outputs
}
