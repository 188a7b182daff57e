//! `cargo xtask dist`: what is given to users who do not build moec themselves, as a folder, as an archive, and as a
//! Python wheel.
//!
//! The programs are built without the path of this machine's LLVM in them (`MOEC_RELOCATABLE`), so what runs here afterwards
//! runs elsewhere: it has nothing but its own folder and the system.

use crate::{elf, places};
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The profile of what is shipped, and cargo's folder for it.
const PROFILE: &str = "shipped";

/// What cargo builds, and where it goes.
const BUILT: [(&str, &str); 6] = [
    ("libmoec_c.so", "lib"),
    ("libmoec_c.a", "lib"),
    ("libmoec_kernels.a", "lib"),
    ("libmoec_compiler.so", "lib"),
    ("libmoec_emulated_driver.so", "lib"),
    ("moec", "bin"),
];

const HEADERS: [&str; 2] = ["runtime/capi/include/moec.h", "runtime/capi-compiler/include/moec_compiler.h"];

/// What `cargo xtask dist` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Where folder and archive go [default: target/dist]; what is there under their names is replaced.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Build without optimisation, for a look at what is in it.
    #[arg(long)]
    debug: bool,
    /// Leave out the archive and the wheel.
    #[arg(long)]
    no_archive: bool,
}

/// Builds, gathers, packs, and tries the result.
///
/// # Errors
/// When a build fails, or the result would not run on another machine.
pub fn run(options: &Options) -> Result<bool> {
    if !cfg!(target_os = "linux") {
        bail!("dist knows how programs find their libraries on Linux only");
    }
    let name = format!("moec-{}-{}-linux", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let parent = places::root().join(options.output.clone().unwrap_or_else(|| places::target_dir().join("dist")));
    let dir = parent.join(&name);
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot replace {}", dir.display()))?;
    }
    for folder in ["bin", "lib", "include"] {
        std::fs::create_dir_all(dir.join(folder))?;
    }
    // The runtime by itself, so that nothing of the compiler is in it.
    let runtime = ["rustc", "--package", "moec-capi", "--lib", "--crate-type", "cdylib,staticlib"];
    build(options, &runtime)?;
    // All others at once, so that what they share is built once.
    let others = [
        "build",
        "--package",
        "moec-kernels-c",
        "--package",
        "moec-capi-compiler",
        "--package",
        "moec-cli",
        "--package",
        "moec-emulated-driver",
    ];
    let llvm = build(options, &others)?.context("moec should be built with LLVM")?;
    let built = places::target_dir().join(if options.debug { "debug" } else { PROFILE });
    for (file, folder) in BUILT {
        copy(&built.join(file), &dir.join(folder).join(file))?;
    }
    for header in HEADERS {
        let path = places::root().join(header);
        copy(&path, &dir.join("include").join(path.file_name().context("a header has a name")?))?;
    }
    let shipped = dir.join("lib").join(llvm.file_name().context("LLVM is a file")?);
    copy(&llvm, &shipped)?;
    for file in ["LICENSE-MIT", "LICENSE-APACHE", "CHANGELOG.md"] {
        copy(&places::root().join(file), &dir.join(file))?;
    }
    std::fs::write(dir.join("README"), readme(&shipped))?;
    check(&dir, &shipped, &llvm)?;
    let mut total = 0;
    for (path, bytes) in files(&dir)? {
        println!("{:>8.1} MB  {}", bytes as f64 / 1e6, path.display());
        total += bytes;
    }
    println!("{:>8.1} MB  {}", total as f64 / 1e6, dir.display());
    if !options.no_archive {
        let path = crate::wheel::write(&dir, &parent)?;
        println!("{:>8.1} MB  {}", std::fs::metadata(&path)?.len() as f64 / 1e6, path.display());
        let path = parent.join(format!("{name}.tar.gz"));
        let file = std::fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        archive(&dir, &name, file)?;
        println!("{:>8.1} MB  {}", std::fs::metadata(&path)?.len() as f64 / 1e6, path.display());
    }
    Ok(true)
}

/// Runs a command of cargo's; returns the LLVM that the packages were built with, if they were.
fn build(options: &Options, what: &[&str]) -> Result<Option<PathBuf>> {
    let mut cargo = places::cargo();
    cargo.args(what).args(["--jobs", &places::jobs().to_string(), "--message-format", "json-render-diagnostics"]);
    cargo.env("MOEC_RELOCATABLE", "1");
    // Messages of panics name source files: those of another machine's folders help nobody.
    let remap = |from: PathBuf, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [remap(places::root(), "moec"), remap(places::cargo_home(), "cargo")];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    if !options.debug {
        cargo.args(["--profile", PROFILE]);
    }
    let out = cargo.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !out.status.success() {
        bail!("cargo {} failed", what.join(" "));
    }
    let messages = String::from_utf8_lossy(&out.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    // What the build script of moec-nvptx tells cargo.
    let told = messages.filter(|m| m["reason"] == "build-script-executed").find_map(|m| {
        let pair = m["env"].as_array()?.iter().find(|pair| pair[0] == "MOEC_LLVM")?;
        Some(PathBuf::from(pair[1].as_str()?))
    });
    Ok(told)
}

/// The file of LLVM in the answer of `moec doctor --json`.
fn llvm_of(doctor: &serde_json::Value) -> Option<PathBuf> {
    let finding = doctor["findings"].as_array()?.iter().find(|f| f["what"] == "llvm" && f["has"] == true)?;
    Some(PathBuf::from(finding["found"].as_str()?.split_once(" at ")?.1))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn readme(llvm: &Path) -> String {
    let llvm = llvm.file_name().unwrap_or_default().to_string_lossy();
    let (major, minor) = elf::GLIBC;
    format!(
        "moec {}: compiles Mixture-of-Experts layers to GPU and CPU code, and runs them.\n\n\
         bin/moec        the compiler; `bin/moec doctor` tells what this machine has\n\
         lib/{llvm}\n                LLVM, for GPU targets: keep it in `lib` beside `bin`\n\
         lib/libmoec_c.so, lib/libmoec_c.a, include/moec.h\n                run compiled layers from C and C++; they need \
         neither the compiler nor LLVM\n\
         lib/libmoec_compiler.so, include/moec_compiler.h\n                the same and the compiler: link one of the two\n\
         lib/libmoec_emulated_driver.so\n                a CUDA driver without a GPU, for `moec emulate -- PROGRAM`\n\
         lib/libmoec_kernels.a\n                the matrix products of CPU layers that `moec compile --emit header,c` writes\n\n\
         Needs a Linux with glibc {major}.{minor} or newer, and zlib. Nothing is installed: copy the folder where you like.\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// That nothing names this machine, and that the program compiles for GPU and CPU out of its own folder.
fn check(dir: &Path, llvm: &Path, built_with: &Path) -> Result<()> {
    let here = built_with.as_os_str().as_encoded_bytes();
    for (path, _) in files(dir)? {
        if memchr::memmem::find(&std::fs::read(dir.join(&path))?, here).is_some() {
            bail!("{} names {}, which other machines do not have", path.display(), built_with.display());
        }
        if let Some(found) = elf::dynamic(&dir.join(&path))? {
            let ties = found.ties();
            if !ties.is_empty() {
                bail!("{} would not run elsewhere: it asks for {}", path.display(), ties.join(", "));
            }
            let ((major, minor), (most, of)) = (found.glibc, elf::GLIBC);
            if found.glibc > elf::GLIBC {
                bail!("{} asks for glibc {major}.{minor}; what is shipped runs with {most}.{of}", path.display());
            }
        }
    }
    let moec = |args: &[&str]| -> Result<Vec<u8>> {
        let out = Command::new(dir.join("bin/moec")).args(args).env_clear().output().context("cannot run bin/moec")?;
        if !out.status.success() {
            bail!("`moec {}` failed: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
        }
        Ok(out.stdout)
    };
    let found = llvm_of(&serde_json::from_slice(&moec(&["doctor", "--json"])?)?);
    if found.as_deref() != Some(std::fs::canonicalize(llvm)?.as_path()) {
        bail!("bin/moec should use {}; it uses {found:?}", llvm.display());
    }
    let scratch = places::target_dir().join("dist-trial");
    let config = places::root().join("tests/conformance/mixtral.f32/config.json");
    let trial = ["compile", &config.to_string_lossy(), "--target", "sm_90a,cpu", "-o", &scratch.to_string_lossy()];
    moec(&trial)?;
    std::fs::remove_dir_all(&scratch)?;
    if hides(built_with) {
        let out = hidden(built_with, &dir.join("bin/moec"), &trial).output().context("cannot run unshare")?;
        if !out.status.success() {
            bail!("bin/moec needs what it was built with: {}", String::from_utf8_lossy(&out.stderr));
        }
        std::fs::remove_dir_all(&scratch)?;
        println!("tried with {} hidden", toolchain(built_with).display());
    } else {
        println!("not tried with the toolchain hidden: this system lets no one mount an empty folder over it");
    }
    Ok(())
}

/// The toolchain that an LLVM belongs to.
fn toolchain(llvm: &Path) -> &Path {
    llvm.ancestors().nth(2).unwrap_or(llvm)
}

/// A program that runs where the toolchain is an empty folder.
fn hidden(llvm: &Path, program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        "mount -t tmpfs none \"$0\" && test -z \"$(ls \"$0\")\" && exec \"$@\"",
    ]);
    command.arg(toolchain(llvm)).arg(program).args(args).env_remove("LD_LIBRARY_PATH");
    command
}

/// Whether this system can hide it.
fn hides(llvm: &Path) -> bool {
    let tried = hidden(llvm, Path::new("true"), &[]).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// Every file below `dir`, by its path from there, in order, with its size.
fn files(dir: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => todo.push(entry.path()),
                false => out.push((entry.path().strip_prefix(dir)?.to_path_buf(), entry.metadata()?.len())),
            }
        }
    }
    out.sort();
    Ok(out)
}

/// Packs a folder under the name `root`. The same files give the same bytes: no times, no owners, a fixed order.
fn archive(dir: &Path, root: &str, to: impl Write) -> Result<()> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(to, flate2::Compression::default()));
    for (path, bytes) in files(dir)? {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(if path.starts_with("bin") { 0o755 } else { 0o644 });
        header.set_mtime(0);
        tar.append_data(&mut header, Path::new(root).join(&path), std::fs::File::open(dir.join(&path))?)?;
    }
    tar.into_inner()?.finish()?.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_make_the_same_archive() {
        let packed = || {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("bin")).unwrap();
            std::fs::write(dir.path().join("bin/moec"), "program").unwrap();
            std::fs::write(dir.path().join("README"), "text").unwrap();
            let mut out = Vec::new();
            archive(dir.path(), "moec-1", &mut out).unwrap();
            out
        };
        let first = packed();
        assert_eq!(first, packed());
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&*first));
        let entries = tar.entries().unwrap().map(|e| {
            let e = e.unwrap();
            (e.path().unwrap().display().to_string(), e.header().mode().unwrap())
        });
        assert_eq!(
            entries.collect::<Vec<_>>(),
            [("moec-1/README".to_string(), 0o644), ("moec-1/bin/moec".to_string(), 0o755)]
        );
    }
}
