//! Finds LLVM 22 and links it, so that every program that uses this crate finds the library when it runs.
//!
//! LLVM is the Rust toolchain's own `libLLVM`: where Rust is installed, nothing else is needed. When the toolchain's LLVM
//! is another major version or not a shared library, `LLVM_SYS_221_PREFIX` or `llvm-config-22` name one.
//!
//! A library crate cannot hand an rpath to the programs that use it. So the programs are not linked with `libLLVM` itself
//! but with an empty stand-in that exports the same names and whose SONAME is the absolute path of `libLLVM`: the
//! dynamic loader then opens that path, from `cargo run`, from `cargo test` and from a shell alike.

use object::{Object, ObjectSymbol};
use std::path::{Path, PathBuf};
use std::process::Command;

const REMEDY: &str = "moec-nvptx needs LLVM 22 as a shared library: use a Rust toolchain from rustup whose `rustc -vV` says \
     `LLVM version: 22`, or install llvm-22-dev (Debian) so that `llvm-config-22` works, or set LLVM_SYS_221_PREFIX to an LLVM 22";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LLVM_SYS_221_PREFIX");
    let llvm = toolchain_llvm().or_else(installed_llvm).unwrap_or_else(|| panic!("{REMEDY}"));
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        link_by_path(&llvm);
    } else {
        link_plainly(&llvm);
    }
}

fn rustc() -> String {
    std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_string())
}

fn output(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_string())
}

/// The shared LLVM of the compiler that builds this crate, when it is LLVM 22.
fn toolchain_llvm() -> Option<PathBuf> {
    let version = output(&rustc(), &["-vV"])?;
    version.lines().find_map(|l| l.strip_prefix("LLVM version: "))?.strip_prefix("22.")?;
    shared_llvm(&Path::new(&output(&rustc(), &["--print", "sysroot"])?).join("lib"))
}

fn installed_llvm() -> Option<PathBuf> {
    if let Ok(prefix) = std::env::var("LLVM_SYS_221_PREFIX") {
        return shared_llvm(&Path::new(&prefix).join("lib"));
    }
    shared_llvm(Path::new(&output("llvm-config-22", &["--libdir"])?))
}

/// The real library in `dir` (not a linker script that points to it): the largest of the files that are called so.
fn shared_llvm(dir: &Path) -> Option<PathBuf> {
    let is_llvm = |name: &str| name.starts_with("libLLVM") && (name.contains(".so") || name.ends_with(".dylib"));
    let mut found: Vec<(u64, PathBuf)> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|e| {
            let path = e.ok()?.path();
            is_llvm(path.file_name()?.to_str()?).then_some(())?;
            Some((std::fs::metadata(&path).ok()?.len(), path))
        })
        .filter(|(bytes, _)| *bytes > 1 << 20)
        .collect();
    found.sort();
    std::fs::canonicalize(found.pop()?.1).ok()
}

fn link_by_path(llvm: &Path) {
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let image = std::fs::read(llvm).expect("libLLVM should be readable");
    let file = object::File::parse(&*image).expect("libLLVM should be an object file");
    let mut names: Vec<String> = file
        .dynamic_symbols()
        .filter(|s| s.is_definition())
        .filter_map(|s| s.name().ok().map(str::to_string))
        .filter(|n| n.starts_with("LLVM") && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .collect();
    names.sort();
    names.dedup();
    let mut source = String::from("#![no_std]\n#![allow(non_snake_case)]\n");
    source += "#[panic_handler] fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }\n";
    for name in &names {
        source += &format!("#[unsafe(no_mangle)] pub extern \"C\" fn {name}() {{}}\n");
    }
    let path = out.join("stand_in.rs");
    std::fs::write(&path, source).expect("OUT_DIR should be writable");
    let library = out.join("libmoec_llvm.so");
    let soname = format!("link-arg=-Wl,-soname,{}", llvm.display());
    let target = std::env::var("TARGET").expect("cargo sets TARGET");
    let status = Command::new(rustc())
        .args(["--edition=2024", "--crate-name=moec_llvm", "--crate-type=cdylib", "-Cpanic=abort", "-Copt-level=0"])
        .args(["-C", &soname, "--target", &target, "-o"])
        .args([&library, &path])
        .status()
        .expect("rustc should start");
    assert!(status.success(), "rustc could not build the stand-in for {}", llvm.display());
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=dylib=moec_llvm");
}

/// Elsewhere than on Linux the programs need the library's folder in their search path.
fn link_plainly(llvm: &Path) {
    let dir = llvm.parent().expect("a file has a folder");
    let stem = llvm.file_stem().and_then(|s| s.to_str()).and_then(|s| s.strip_prefix("lib")).expect("checked above");
    println!("cargo:rustc-link-search=native={}", dir.display());
    println!("cargo:rustc-link-lib=dylib={stem}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", dir.display());
}
