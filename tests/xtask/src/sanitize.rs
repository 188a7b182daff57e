//! `cargo xtask sanitize`: the examples in C and C++ under the compiler's sanitizers.
//!
//! * address and undefined behaviour: all of the host's code, and what the library does with the host's memory as far as it
//!   goes through the C library; leaks of both;
//! * threads: two threads with a layer each, as far as the C library and the host's code tell it.
//!
//! The library itself is built as users get it.

use crate::places;
use anyhow::{Context, Result, bail, ensure};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What `cargo xtask sanitize` takes.
#[derive(clap::Args)]
pub struct Options {
    /// The C++ compiler; it compiles C as well.
    #[arg(long, default_value = "c++")]
    compiler: String,
}

/// A program and how it is run: `two_layers BUNDLE HIDDEN TOP_K`, rows on standard input.
struct Program {
    source: &'static str,
    flags: &'static [&'static str],
    args: fn(&Path) -> Vec<String>,
}

fn bundle(home: &Path) -> String {
    home.join("layer.tar").display().to_string()
}

fn model() -> String {
    places::root().join("tests/conformance/mixtral.f32").display().to_string()
}

const PROGRAMS: [Program; 2] = [
    Program {
        source: "examples/c/run_layer.c",
        flags: &["-x", "c", "-std=c11"],
        args: |home| vec![bundle(home), model(), "64".into(), "2".into()],
    },
    Program {
        source: "examples/cpp/two_layers.cpp",
        flags: &["-std=c++17"],
        args: |home| vec![bundle(home), "64".into(), "2".into()],
    },
];

const SANITIZERS: [(&str, &[&str]); 2] = [
    ("address, undefined", &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]),
    ("thread", &["-fsanitize=thread"]),
];

/// Builds library, bundle and programs, and runs each program under each sanitizer; `false` when one finds something.
///
/// # Errors
/// When something cannot be built or started.
pub fn run(options: &Options) -> Result<bool> {
    let home = places::target_dir().join("sanitize");
    std::fs::create_dir_all(&home)?;
    let built = places::cargo().args(["build", "--package", "moec-cli", "--package", "moec-capi"]).status()?;
    ensure!(built.success(), "cargo build failed");
    let built = places::target_dir().join("debug");
    let compiled = Command::new(built.join("moec"))
        .args(["compile", &model(), "--layer", "0", "--target", "cpu", "-o", &bundle(&home)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(compiled.success(), "moec compile failed");
    let rows: Vec<u8> = (0..32 * 64).flat_map(|i| (i as f32).sin().to_le_bytes()).collect();
    let mut clean = true;
    for program in &PROGRAMS {
        for (name, flags) in SANITIZERS {
            let at = compile(options, program, flags, &built, &home)?;
            let found = findings(&at, &(program.args)(&home), &rows)?;
            println!("{:<28} {name:<20} {}", program.source, if found.is_empty() { "clean" } else { "FOUND" });
            if !found.is_empty() {
                clean = false;
                println!("{found}");
            }
        }
    }
    Ok(clean)
}

fn compile(options: &Options, program: &Program, flags: &[&str], library: &Path, home: &Path) -> Result<PathBuf> {
    let to = home.join("program");
    let out = Command::new(&options.compiler)
        .args(["-g", "-O1"])
        .args(flags)
        .args(program.flags)
        .arg(places::root().join(program.source))
        .arg("-I")
        .arg(places::root().join("runtime/capi/include"))
        .arg("-L")
        .arg(library)
        .args(["-lmoec_c", "-pthread"])
        .arg(format!("-Wl,-rpath,{}", library.display()))
        .arg("-o")
        .arg(&to)
        .output()
        .with_context(|| format!("cannot start {}", options.compiler))?;
    if !out.status.success() {
        bail!("{} {flags:?}: {}", options.compiler, String::from_utf8_lossy(&out.stderr));
    }
    Ok(to)
}

/// What a sanitizer says, or how the program ended; empty is good.
fn findings(program: &Path, args: &[String], rows: &[u8]) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .env("TSAN_OPTIONS", "halt_on_error=0 exitcode=66")
        .env("ASAN_OPTIONS", "detect_leaks=1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("piped")?.write_all(rows)?;
    let out = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&out.stderr);
    let said = text.contains("Sanitizer") || text.contains("runtime error");
    if out.status.success() && !said && out.stdout.len() >= rows.len() {
        return Ok(String::new());
    }
    Ok(format!("{}\n{text}", out.status))
}
