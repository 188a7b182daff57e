//! `cargo xtask sanitize`: the examples in C and C++ under the compiler's sanitizers, and the CPU's kernels under
//! AddressSanitizer and valgrind ([`kernels`]). Of the examples:
//!
//! * address and undefined behaviour: all of the host's code, and what the library does with the host's memory as far as it
//!   goes through the C library; leaks of both;
//! * threads: two threads with a layer each, in the host's code. What the library does among its own threads is left out: it is
//!   built as users get it, and its atomics, which the compiler of the host has not seen, would look like races.

mod kernels;

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
    /// One part of it.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// The Rust toolchain whose sanitizer watches the kernels.
    #[arg(long, default_value = "nightly")]
    toolchain: String,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Examples,
    Kernels,
}

/// A program and its arguments; it reads rows on standard input.
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

/// Programs with a fault that each sanitizer has to find; else it is no use here.
const PROBES: [&str; 2] = [
    "#include <stdlib.h>\nint main(void) { volatile char *p = malloc(8); return p[8]; }\n",
    "#include <pthread.h>\nstatic int shared;\nstatic void *add(void *x) { shared++; return x; }\nint main(void) {\n  pthread_t t;\n  \
     pthread_create(&t, 0, add, 0);\n  shared++;\n  pthread_join(t, 0);\n  return 0;\n}\n",
];

/// Runs what is asked for; `false` when something is found.
///
/// # Errors
/// When something cannot be built or started.
pub fn run(options: &Options) -> Result<bool> {
    let kernels = options.only == Some(Part::Examples) || kernels::run(&options.toolchain)?;
    let examples = options.only == Some(Part::Kernels) || examples(options)?;
    Ok(kernels && examples)
}

/// Builds library, bundle and programs, and runs each program under each sanitizer.
fn examples(options: &Options) -> Result<bool> {
    let home = places::target_dir().join("sanitize");
    std::fs::create_dir_all(&home)?;
    std::fs::write(home.join("thread.txt"), "called_from_lib:libmoec_c.so\n")?;
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
    for ((name, flags), probe) in SANITIZERS.iter().zip(PROBES) {
        let source = home.join("probe.c");
        std::fs::write(&source, probe)?;
        let at = compile(options, &source, &["-x", "c", "-std=c11"], flags, &built, &home)?;
        ensure!(
            !findings(&home, &at, &[], &[])?.is_empty(),
            "the {name} sanitizer of {} finds nothing",
            options.compiler
        );
    }
    for program in &PROGRAMS {
        for (name, flags) in SANITIZERS {
            let at = compile(options, &places::root().join(program.source), program.flags, flags, &built, &home)?;
            let found = findings(&home, &at, &(program.args)(&home), &rows)?;
            println!("{:<28} {name:<20} {}", program.source, if found.is_empty() { "clean" } else { "FOUND" });
            if !found.is_empty() {
                clean = false;
                println!("{found}");
            }
        }
    }
    Ok(clean)
}

fn compile(
    options: &Options,
    source: &Path,
    language: &[&str],
    flags: &[&str],
    library: &Path,
    home: &Path,
) -> Result<PathBuf> {
    let to = home.join("program");
    let out = Command::new(&options.compiler)
        .args(["-g", "-O1"])
        .args(flags)
        .args(language)
        .arg(source)
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
fn findings(home: &Path, program: &Path, args: &[String], rows: &[u8]) -> Result<String> {
    let thread = format!("halt_on_error=0 exitcode=66 suppressions={}", home.join("thread.txt").display());
    let mut child = Command::new(program)
        .args(args)
        .env("TSAN_OPTIONS", thread)
        .env("ASAN_OPTIONS", "detect_leaks=1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // A program that ends early does not read.
    let _ = child.stdin.take().context("piped")?.write_all(rows);
    let out = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&out.stderr);
    let said = text.contains("Sanitizer:") || text.contains("runtime error");
    if out.status.success() && !said && out.stdout.len() >= rows.len() {
        return Ok(String::new());
    }
    Ok(format!("{}\n{text}", out.status))
}
