//! Finds LLVM 22 and makes this crate call it.
//!
//! LLVM is the Rust toolchain's own `libLLVM`: where Rust is installed, nothing else is needed. When the toolchain's LLVM
//! is another major version or not a shared library, `LLVM_SYS_221_PREFIX` or `llvm-config-22` name one.
//!
//! On Linux no program is linked with `libLLVM`: a library crate cannot hand an rpath to the programs that use it, and an
//! absolute path would tie them to this machine. Each function of LLVM's C interface becomes a jump through a table that
//! `src/llvm.rs` fills when the first GPU kernel is compiled. So a program starts without LLVM, finds it in its own
//! folder after it was copied to another machine, and does not meet another LLVM that its process may hold.
//!
//! `MOEC_RELOCATABLE=1` leaves the path of this machine's `libLLVM` out of the program: for builds that are shipped.

use object::{Object, ObjectSymbol};
use std::path::{Path, PathBuf};
use std::process::Command;

const REMEDY: &str = "moec-nvptx needs LLVM 22 as a shared library: use a Rust toolchain from rustup whose `rustc -vV` says \
     `LLVM version: 22`, or install llvm-22-dev (Debian) so that `llvm-config-22` works, or set LLVM_SYS_221_PREFIX to an LLVM 22";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LLVM_SYS_221_PREFIX");
    println!("cargo:rerun-if-env-changed=MOEC_RELOCATABLE");
    let llvm = toolchain_llvm().or_else(installed_llvm).unwrap_or_else(|| panic!("{REMEDY}"));
    // For those who ship LLVM beside their program: cargo passes it on in its messages.
    println!("cargo:rustc-env=MOEC_LLVM={}", llvm.display());
    println!("cargo:rustc-check-cfg=cfg(llvm_at_run_time)");
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    let jump = match (var("CARGO_CFG_TARGET_OS").as_str(), var("CARGO_CFG_TARGET_ARCH").as_str()) {
        ("linux", "x86_64") => Some(jump_x86_64 as fn(&str, usize) -> String),
        ("linux", "aarch64") => Some(jump_aarch64 as fn(&str, usize) -> String),
        _ => None,
    };
    match jump {
        Some(jump) => load_at_run_time(&llvm, jump),
        None => link_plainly(&llvm),
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

/// Writes `llvm_table.rs`: the names of LLVM's functions, the jumps, and where the library is.
fn load_at_run_time(llvm: &Path, jump: fn(&str, usize) -> String) {
    println!("cargo:rustc-cfg=llvm_at_run_time");
    println!("cargo:rerun-if-changed={}", llvm.display());
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let image = std::fs::read(llvm).expect("libLLVM should be readable");
    let file = object::File::parse(&*image).expect("libLLVM should be an object file");
    let mut names: Vec<String> = file
        .dynamic_symbols()
        .filter(|s| s.is_definition() && s.kind() == object::SymbolKind::Text)
        .filter_map(|s| s.name().ok().map(str::to_string))
        .filter(|n| n.starts_with("LLVM") && n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        .collect();
    names.sort();
    names.dedup();
    let mut source = format!("pub(super) const N_FUNCTIONS: usize = {};\n", names.len());
    source += &format!("pub(super) static FUNCTIONS: [&std::ffi::CStr; {}] = [\n", names.len());
    names.iter().for_each(|name| source += &format!("    c\"{name}\",\n"));
    source += "];\n";
    let name = llvm.file_name().and_then(|n| n.to_str()).expect("chosen by its name");
    source += &format!("pub(super) const FILE_NAME: &str = {name:?};\n");
    // A shipped program should find what is shipped with it, and not tell whose machine it was built on.
    let relocatable = std::env::var_os("MOEC_RELOCATABLE").is_some_and(|v| v == "1");
    let built_with = if relocatable { String::new() } else { llvm.display().to_string() };
    source += &format!("pub(super) const BUILT_WITH: &str = {built_with:?};\n");
    source += "std::arch::global_asm!(r#\"\n.pushsection .data.moec_llvm,\"aw\"\n.balign 8\n";
    source += ".globl moec_llvm_table\n.hidden moec_llvm_table\nmoec_llvm_table:\n";
    source += &format!(".rept {}\n.quad {{not_loaded}}\n.endr\n.popsection\n", names.len());
    source += ".pushsection .text.moec_llvm,\"ax\"\n";
    for (i, name) in names.iter().enumerate() {
        // Hidden: a library that holds these must not offer them to the rest of its process.
        source += &format!(".balign 8\n.globl {name}\n.hidden {name}\n.type {name},%function\n{name}:\n");
        source += &jump("moec_llvm_table", 8 * i);
    }
    source += ".popsection\n\"#, not_loaded = sym not_loaded);\n";
    std::fs::write(out.join("llvm_table.rs"), source).expect("OUT_DIR should be writable");
}

fn jump_x86_64(table: &str, offset: usize) -> String {
    format!("jmp qword ptr [rip + {table} + {offset}]\n")
}

/// Through the register that the procedure call standard leaves to such veneers.
fn jump_aarch64(table: &str, offset: usize) -> String {
    format!("adrp x16, {table}+{offset}\nldr x16, [x16, :lo12:{table}+{offset}]\nbr x16\n")
}

/// Elsewhere than on Linux the programs need the library's folder in their search path.
fn link_plainly(llvm: &Path) {
    let dir = llvm.parent().expect("a file has a folder");
    let stem = llvm.file_stem().and_then(|s| s.to_str()).and_then(|s| s.strip_prefix("lib")).expect("checked above");
    println!("cargo:rustc-link-search=native={}", dir.display());
    println!("cargo:rustc-link-lib=dylib={stem}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", dir.display());
}
