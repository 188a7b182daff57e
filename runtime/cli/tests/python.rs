//! The Python package, as far as it needs nothing but Python. `cargo xtask python-check` tries it with PyTorch.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "a test says why it was skipped")]

mod common;

use common::{conformance, root};
use std::process::Command;

#[test]
fn layers_are_compiled_and_loaded_from_python() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|o| o.status.success()) {
        println!("skipped: no python");
        return;
    }
    // The package finds program and library in one folder; cargo builds them into two.
    let home = tempfile::tempdir().unwrap();
    let built = std::env::current_exe().unwrap().parent().unwrap().join("libmoec_c.so");
    for (folder, from) in [("bin", env!("CARGO_BIN_EXE_moec").into()), ("lib", built)] {
        std::fs::create_dir(home.path().join(folder)).unwrap();
        let to = home.path().join(folder).join(from.file_name().unwrap());
        std::os::unix::fs::symlink(&from, to).unwrap();
    }
    let out = Command::new("python3")
        .arg(root().join("runtime/python/tests/check_plain.py"))
        .arg(conformance("mixtral.f32"))
        .env("MOEC_HOME", home.path())
        .env("PYTHONPATH", root().join("runtime/python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "all good");
}
