//! The functions for TVM's FFI, called as `tvm_ffi` calls them. `cargo xtask hosts` calls them through Python.

mod common;

use common::*;
use moec_c::tvm::*;
use moec_c::*;
use std::ffi::{CString, c_int, c_void};
use std::ptr::null_mut;

type Function = unsafe extern "C" fn(*mut c_void, *const TVMFFIAny, i32, *mut TVMFFIAny) -> c_int;

fn int(n: i64) -> TVMFFIAny {
    TVMFFIAny { type_index: 1, small_len: 0, value: n as u64 }
}

fn text(t: &CString) -> TVMFFIAny {
    TVMFFIAny { type_index: 8, small_len: 0, value: t.as_ptr() as u64 }
}

/// A string of up to seven bytes lies in the value.
fn small(t: &str) -> TVMFFIAny {
    let mut bytes = [0; 8];
    bytes[..t.len()].copy_from_slice(t.as_bytes());
    TVMFFIAny { type_index: 11, small_len: t.len() as u32, value: u64::from_ne_bytes(bytes) }
}

fn pointer(t: &moec_tensor) -> TVMFFIAny {
    TVMFFIAny { type_index: 7, small_len: 0, value: (&raw const *t) as u64 }
}

/// The integer that a call gives; `None` for one that gives nothing.
fn call(function: Function, args: &[TVMFFIAny]) -> Result<Option<i64>, String> {
    let mut result = TVMFFIAny { type_index: 99, small_len: 0, value: 0 };
    // SAFETY: the arguments live as long as the call.
    let status = unsafe { function(null_mut(), args.as_ptr(), args.len() as i32, &mut result) };
    match (status, result.type_index) {
        (0, 0) => Ok(None),
        (0, 1) => Ok(Some(result.value as i64)),
        (-1, 99) => Err(last().0),
        other => panic!("{other:?}"),
    }
}

/// A tensor object: the structure lies behind a header of 24 bytes.
#[repr(C)]
struct Object {
    header: [u64; 3],
    tensor: moec_tensor,
}

#[test]
fn a_layer_runs_through_tvms_calling_convention() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer.tar");
    std::fs::write(&path, archive()).unwrap();
    let (path, weights) = (c(path.to_str().unwrap()), c(checkpoint().to_str().unwrap()));
    let layer = call(__tvm_ffi_moec_open, &[text(&path), small("cpu"), int(4), int(1)]).unwrap().unwrap();
    assert_eq!(call(__tvm_ffi_moec_finish, &[int(layer)]), Err("parameter-not-set".into()));
    assert_eq!(call(__tvm_ffi_moec_load_checkpoint, &[int(layer), text(&weights), small("")]), Ok(None));
    assert_eq!(call(__tvm_ffi_moec_finish, &[int(layer)]), Ok(None));
    let handle = layer as usize as *mut moec_layer;
    let (mut want, mut io) = (Io::new(handle, 4), Io::new(handle, 4));
    must(want.launch(handle, |_, _| {}));
    let bytes = call(__tvm_ffi_moec_workspace_bytes, &[int(layer), int(4)]).unwrap().unwrap();
    assert_eq!(bytes as usize, io.workspace.len());
    let shape = [bytes];
    let mut memory = vec![0u8; bytes as usize];
    let workspace = tensor(&mut memory, &shape, 1);
    let [input, output, ids, shares] = io.tensors();
    let object = Object { header: [1, 70, 0], tensor: output };
    let as_object = TVMFFIAny { type_index: 70, small_len: 0, value: (&raw const object) as u64 };
    let args = [int(layer), pointer(&input), as_object, pointer(&ids), pointer(&shares), pointer(&workspace)];
    assert_eq!(call(__tvm_ffi_moec_launch, &args), Ok(None));
    assert_eq!((&io.output, &io.ids), (&want.output, &want.ids));
    assert_eq!(call(__tvm_ffi_moec_launch, &args[..4]), Err("input-missing".into()));
    assert_eq!(
        call(__tvm_ffi_moec_launch, &[args[0], int(3), int(4), int(5), int(6), int(7)]),
        Err("argument-invalid".into())
    );
    assert_eq!(call(__tvm_ffi_moec_free, &[int(layer)]), Ok(None));
    assert_eq!(call(__tvm_ffi_moec_launch, &args), Err("handle-invalid".into()));
}

#[test]
fn arguments_of_another_kind_are_named() {
    let code = |args: &[TVMFFIAny]| call(__tvm_ffi_moec_open, args).unwrap_err();
    assert_eq!(code(&[]), "argument-invalid");
    assert_eq!(code(&[int(1), small("cpu"), int(1), int(1)]), "argument-invalid");
    assert!(last().1.contains("`path` should be a string; it is an integer"), "{:?}", last());
    assert_eq!(code(&[small("x"), small("cpu"), int(-1), int(1)]), "argument-invalid");
    assert_eq!(code(&[small("/no"), small("cpu"), int(1), int(1)]), "bundle-not-found");
    assert_eq!(call(__tvm_ffi_moec_free, &[int(1), int(2)]).unwrap_err(), "argument-invalid");
}

#[test]
fn parameters_are_set_through_tvms_calling_convention() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layer.tar");
    std::fs::write(&path, archive()).unwrap();
    let path = c(path.to_str().unwrap());
    let layer = call(__tvm_ffi_moec_open, &[text(&path), small("cpu"), int(1), int(1)]).unwrap().unwrap();
    let shape = [8, HIDDEN];
    let mut data = vec![0.25f32; 8 * HIDDEN as usize];
    let given = tensor(&mut data, &shape, 2);
    let set = |name: &str, hold: i64| {
        let name = c(name);
        call(__tvm_ffi_moec_set_param, &[int(layer), text(&name), pointer(&given), int(hold)])
    };
    assert_eq!(set("router.weight", 0), Ok(None));
    assert_eq!(set("router", 0), Err("unknown-parameter".into()));
    assert_eq!(set("router.weight", 1 << 40), Err("argument-invalid".into()));
    assert_eq!(call(__tvm_ffi_moec_free, &[int(layer)]), Ok(None));
}
