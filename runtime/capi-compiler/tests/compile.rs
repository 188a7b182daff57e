//! The header, and layers that are compiled and described through the C interface.

#[path = "../../capi/tests/made_header/mod.rs"]
mod made_header;

use moec_compiler::*;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

/// `MOEC_WRITE_HEADER=1 cargo test -p moec-capi-compiler` writes it anew.
#[test]
fn the_header_is_what_the_crate_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let header = "/* The compiler of moec. Made from the crate moec-capi-compiler by cbindgen: change that one. */";
    let config = cbindgen::Config {
        include_guard: Some("MOEC_COMPILER_H".into()),
        header: Some(header.into()),
        includes: vec!["moec.h".into()],
        ..made_header::config()
    };
    made_header::check(root, &root.join("include/moec_compiler.h"), config);
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/mixtral.f32")
}

fn options() -> moec_compile_options {
    moec_compile_options {
        struct_size: size_of::<moec_compile_options>(),
        model: null(),
        json: null(),
        targets: null(),
        output: null(),
        has_layer: 0,
        layer: 0,
        min_tokens: 0,
        max_tokens: 0,
        topk_ids: null(),
        topk_weights: null(),
    }
}

fn c(text: &str) -> CString {
    CString::new(text).expect("no zeros")
}

fn code() -> String {
    // SAFETY: a string of the library.
    unsafe { CStr::from_ptr(moec_last_error_code()) }.to_str().expect("UTF-8").to_string()
}

/// The description of what is compiled, or the code of the error.
fn compiled(options: &moec_compile_options) -> Result<String, String> {
    let (mut bundle, mut json) = (null_mut(), null());
    // SAFETY: options whose texts live as long as the call, and places.
    unsafe {
        if moec_compile(options, &mut bundle) != moec_status::MOEC_OK {
            return Err(code());
        }
        assert_eq!(moec_bundle_describe(bundle, &mut json), moec_status::MOEC_OK);
        let text = CStr::from_ptr(json).to_str().expect("UTF-8").to_string();
        assert_eq!(moec_bundle_free(bundle), moec_status::MOEC_OK);
        Ok(text)
    }
}

#[test]
fn a_layer_is_compiled_from_a_folder_or_from_text() {
    let dir = tempfile::tempdir().unwrap();
    let (path, cpu) = (c(model().to_str().unwrap()), c("cpu"));
    let output = c(dir.path().join("layer.tar").to_str().unwrap());
    let from_path = moec_compile_options { model: path.as_ptr(), targets: cpu.as_ptr(), ..options() };
    let described = compiled(&moec_compile_options { output: output.as_ptr(), ..from_path }).unwrap();
    assert!(described.contains("\"router.weight\""), "{described}");
    assert!(dir.path().join("layer.tar").is_file());
    let text = c(&std::fs::read_to_string(model().join("config.json")).unwrap());
    let from_text = moec_compile_options { json: text.as_ptr(), targets: cpu.as_ptr(), ..options() };
    assert_eq!(compiled(&from_text).unwrap(), described);
    let graph = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/layers/softmax_top2.json");
    let graph = c(&std::fs::read_to_string(graph).unwrap());
    compiled(&moec_compile_options { json: graph.as_ptr(), ..from_text }).unwrap();
    // SAFETY: as above; nobody wants the bundle.
    let status = unsafe { moec_compile(&moec_compile_options { output: output.as_ptr(), ..from_path }, null_mut()) };
    assert_eq!(status, moec_status::MOEC_OK, "{}", code());
}

#[test]
fn experts_alone_are_compiled() {
    let (path, cpu, ids, weights) = (c(model().to_str().unwrap()), c("cpu"), c("i64"), c("bf16"));
    let experts = moec_compile_options {
        model: path.as_ptr(),
        targets: cpu.as_ptr(),
        topk_ids: ids.as_ptr(),
        topk_weights: weights.as_ptr(),
        has_layer: 1,
        layer: 1,
        max_tokens: 64,
        ..options()
    };
    let described = compiled(&experts).unwrap();
    assert!(described.contains("mixtral layer 1 experts") && described.contains("\"max_tokens\":64"), "{described}");
    assert!(!described.contains("router.weight"), "{described}");
}

#[test]
fn mistakes_are_named() {
    let (path, cpu, other, nowhere) = (c(model().to_str().unwrap()), c("cpu"), c("cpu,gpu"), c("/nonexistent"));
    let good = moec_compile_options { model: path.as_ptr(), targets: cpu.as_ptr(), ..options() };
    let code = |o: moec_compile_options| compiled(&o).unwrap_err();
    assert_eq!(code(moec_compile_options { targets: null(), ..good }), "argument-null");
    assert_eq!(code(moec_compile_options { targets: other.as_ptr(), ..good }), "argument-invalid");
    assert_eq!(code(moec_compile_options { model: null(), ..good }), "argument-invalid");
    assert_eq!(code(moec_compile_options { json: path.as_ptr(), ..good }), "argument-invalid");
    assert_eq!(code(moec_compile_options { model: nowhere.as_ptr(), ..good }), "not-a-model");
    assert_eq!(code(moec_compile_options { json: path.as_ptr(), model: null(), ..good }), "config-not-json");
    assert_eq!(code(moec_compile_options { topk_ids: cpu.as_ptr(), ..good }), "argument-invalid");
    assert_eq!(code(moec_compile_options { topk_weights: cpu.as_ptr(), ..good }), "argument-invalid");
    assert_eq!(code(moec_compile_options { has_layer: 1, layer: 99, ..good }), "layer-out-of-range");
    assert_eq!(code(moec_compile_options { min_tokens: 9, max_tokens: 8, ..good }), "argument-invalid");
    assert_eq!(code(moec_compile_options { struct_size: 3, ..good }), "struct-size-invalid");
    // SAFETY: null is refused before it is followed.
    unsafe {
        assert_eq!(moec_compile(null(), null_mut()), moec_status::MOEC_ERROR_INPUT);
        assert_eq!(moec_compile(&good, null_mut()), moec_status::MOEC_ERROR_INPUT);
    }
}
