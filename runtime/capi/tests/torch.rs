//! A PyTorch that takes no kernels of moec: a stand-in with the functions that are looked up, each of which fails.
#![cfg(target_os = "linux")]

mod common;

use moec_c::border::moec_torch_register;
use std::ffi::CString;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// The names that the library looks up, out of its source.
fn names() -> Vec<String> {
    let source =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/torch/shim.rs")).expect("source");
    let mut names: Vec<String> = source
        .split("c\"")
        .skip(1)
        .filter_map(|rest| rest.split_once('"'))
        .map(|(name, _)| name.to_string())
        .filter(|name| name.starts_with("aoti_torch_") || name.starts_with("torch_"))
        .collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn a_pytorch_that_takes_no_kernels_gives_an_error() {
    let names = names();
    assert!(names.len() > 25, "{names:?}");
    let mut source = String::new();
    for name in names {
        writeln!(source, "#[unsafe(no_mangle)] pub extern \"C\" fn {name}() -> i32 {{ 1 }}").expect("a string");
    }
    let dir = tempfile::tempdir().expect("folder");
    let (file, library) = (dir.path().join("torch.rs"), dir.path().join("libtorch_cpu.so"));
    std::fs::write(&file, source).expect("written");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let out = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "-C", "link-arg=-Wl,-soname,libtorch_cpu.so"])
        .args([&file, Path::new("-o"), &library])
        .output()
        .expect("rustc should start");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let path = CString::new(library.to_str().expect("UTF-8")).expect("no zeros");
    // SAFETY: a library whose loading runs nothing.
    let loaded = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!loaded.is_null());

    assert_eq!(moec_torch_register(), -1);
    assert_eq!(common::last(), ("tensor-invalid".into(), "PyTorch cannot take operators of moec".into()));
}
