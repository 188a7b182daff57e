//! `cargo xtask peers`: programs that nobody here wrote, over the emulated CUDA driver.
//!
//! Installs pinned public packages below `target/peers`, runs their programs and test suites through `moec emulate`, and prints a
//! line each; then kernels of others, which their compilers make into PTX here without a GPU ([`kernels`]). Nothing of them is kept but
//! what `docs/emulator.md` says: names, versions, figures. Not a part of `cargo xtask test`.

mod kernels;

use crate::places;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `cargo xtask peers` takes.
#[derive(clap::Args)]
pub struct Options {
    /// Only peers whose name has this in it; of kernels, whose row has.
    #[arg(long)]
    only: Option<String>,
    /// Only kernels, no programs.
    #[arg(long)]
    kernels: bool,
}

/// The packages, as pip takes them. `filecheck` and `cffi` are for Numba's tests.
const PACKAGES: [&str; 14] = [
    "numpy",
    "cuda-bindings==13.5.0",
    "cuda-core==1.2.2",
    "numba-cuda==0.30.4",
    "triton==3.9.0",
    "nvidia-cuda-nvcc==13.5.37",
    "nvidia-cuda-crt==13.5.37",
    "nvidia-cuda-runtime==13.5.37",
    "nvidia-cuda-nvrtc==13.5.37",
    "nvidia-nvvm==13.5.37",
    "nvidia-cuda-cccl",
    "filecheck",
    "cffi",
    "psutil",
];

/// A program, and how many of its tests fail for a reason that `docs/emulator.md` gives.
struct Peer {
    name: &'static str,
    gpus: &'static [&'static str],
    command: Vec<String>,
    known_failures: usize,
}

/// Installs, runs, and prints; `false` when something failed that is not known.
///
/// # Errors
/// When a package cannot be installed or something cannot be built.
pub fn run(options: &Options) -> Result<bool> {
    let dir = places::target_dir().join("peers");
    std::fs::create_dir_all(&dir)?;
    let python = environment(&dir)?;
    let built = places::cargo().args(["build", "-p", "moec-cli", "-p", "moec-emulated-driver"]).status()?;
    if !built.success() {
        bail!("moec does not build");
    }
    let moec = places::target_dir().join("debug/moec");
    let green = options.kernels || programs(options, &dir, &python, &moec)?;
    Ok(kernels::run(&dir, &python, &moec, options.only.as_deref())? && green)
}

/// Programs over the emulated driver.
fn programs(options: &Options, dir: &Path, python: &Path, moec: &Path) -> Result<bool> {
    let scripts = places::root().join("tests/xtask/src/peers");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let script = |name: &str| vec![text(python), text(&scripts.join(name))];
    let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let peers = [
        Peer {
            name: "Triton 3.9.0, compiled ahead of time, over cuda-bindings 13.5.0",
            gpus: &["a100", "h100", "b200", "rtx5090"],
            command: script("triton_softmax.py"),
            known_failures: 0,
        },
        Peer {
            name: "NVRTC 13.5.37 and a graph, over cuda-bindings 13.5.0 and cuda-core 1.2.2",
            gpus: &["a100", "h100", "b200", "rtx5090"],
            command: script("nvrtc_graph.py"),
            known_failures: 0,
        },
        Peer {
            name: "nvcc 13.5.37 and a C++ program",
            gpus: &["b200"],
            command: vec![text(&stranger(dir, moec)?), text(&dir.join("missing_fence.ptx"))],
            // Its fence is missing.
            known_failures: 1,
        },
        Peer {
            name: "numba-cuda 0.30.4, numba.cuda.tests.cudadrv",
            gpus: &["h100"],
            command: [vec![text(python)], words(&["-m", "numba.runtests", "numba.cuda.tests.cudadrv"])].concat(),
            known_failures: 10,
        },
        Peer {
            name: "cudarc 0.19.10, its unit tests of the driver",
            gpus: &["h100"],
            command: vec![
                text(&cudarc(dir)?),
                "driver".to_owned(),
                "--test-threads=1".to_owned(),
                "--skip=par_launch".to_owned(),
            ],
            known_failures: 4,
        },
    ];
    let libraries = dir.join("venv/lib/python3/nvidia");
    let mut green = true;
    for peer in peers.iter().filter(|p| options.only.as_ref().is_none_or(|o| p.name.contains(o.as_str()))) {
        for gpu in peer.gpus {
            let out = Command::new(moec)
                .args(["emulate", "--gpu", gpu, "--"])
                .args(&peer.command)
                .env("LD_LIBRARY_PATH", &libraries)
                .current_dir(dir)
                .output()
                .context("cannot run moec")?;
            let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            let failures = failures(&said).unwrap_or(usize::from(!out.status.success()));
            let good = failures <= peer.known_failures;
            green &= good;
            if !good {
                println!("{said}");
            }
            let summary = said.lines().rev().find_map(|l| l.strip_prefix("moec: ").filter(|l| l.contains("launches")));
            println!(
                "{:<4} {gpu:<8} {}: {failures} failures, {} known; {}",
                if good { "ok" } else { "BAD" },
                peer.name,
                peer.known_failures,
                summary.unwrap_or("no launches")
            );
        }
    }
    Ok(green)
}

/// Failures that unittest or Rust's tests counted; `None` when it is neither.
fn failures(said: &str) -> Option<usize> {
    let number =
        |text: &str| text.trim_start().chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    if let Some(line) = said.lines().find(|l| l.starts_with("test result:")) {
        return line.split(';').find_map(|part| part.trim().strip_suffix(" failed").and_then(number));
    }
    said.lines().any(|l| l.starts_with("Ran ")).then(|| {
        let last = said.lines().rev().find(|l| l.starts_with("FAILED (")).unwrap_or_default();
        let of = |key: &str| last.split_once(key).and_then(|(_, rest)| number(rest)).unwrap_or(0);
        of("failures=") + of("errors=")
    })
}

/// A Python with the packages; gives its path.
fn environment(dir: &Path) -> Result<PathBuf> {
    let venv = dir.join("venv");
    let python = venv.join("bin/python");
    if !python.exists() {
        run_well(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let mut pip = Command::new(&python);
    run_well(pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES))?;
    // Libraries of CUDA under the names that dlopen looks for.
    let asked = Command::new(&python).args(["-c", "import nvidia; print(list(nvidia.__path__)[0])"]).output()?;
    let real = PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim()).join("cu13/lib");
    let links = venv.join("lib/python3/nvidia");
    std::fs::create_dir_all(&links)?;
    for entry in std::fs::read_dir(&real).with_context(|| format!("no libraries in {}", real.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some((stem, _)) = name.split_once(".so.") {
            for link in [links.join(format!("{stem}.so")), links.join(&name)] {
                let _ = std::fs::remove_file(&link);
                std::os::unix::fs::symlink(&path, link)?;
            }
        }
    }
    Ok(python)
}

/// The example with a missing fence, compiled by NVIDIA's compiler and with its headers; gives the program.
fn stranger(dir: &Path, moec: &Path) -> Result<PathBuf> {
    let (source, venv) = (places::root().join("examples/cuda/missing_fence.cu"), dir.join("venv/lib"));
    let cuda = std::fs::read_dir(venv)?
        .flatten()
        .map(|e| e.path().join("site-packages/nvidia/cu13"))
        .find(|p| p.join("bin/nvcc").exists())
        .context("the wheels have no nvcc")?;
    let ptx = ["-arch=sm_100a", "-ptx", "-lineinfo", "-o", "missing_fence.ptx"];
    run_well(Command::new(cuda.join("bin/nvcc")).args(ptx).arg(&source).current_dir(dir))?;
    run_well(Command::new(moec).args(["emulate", "--driver", "driver"]).current_dir(dir))?;
    let program = dir.join("missing_fence");
    let mut host = Command::new("c++");
    host.args(["-x", "c++"]).arg(&source).arg("-I").arg(cuda.join("include"));
    run_well(host.args(["-L", "driver", "-lcuda", "-o"]).arg(&program).current_dir(dir))?;
    Ok(program)
}

/// cudarc's own tests, built from the package that this workspace depends on; gives the test program.
fn cudarc(dir: &Path) -> Result<PathBuf> {
    let out = places::cargo().args(["metadata", "--format-version", "1"]).output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has packages")?;
    let package = packages.iter().find(|p| p["name"] == "cudarc").context("cudarc is a dependency")?;
    let from = Path::new(package["manifest_path"].as_str().unwrap_or_default()).parent().context("a folder")?;
    let copy = dir.join("cudarc");
    if !copy.exists() {
        run_well(Command::new("cp").arg("-r").arg(from).arg(&copy))?;
        let manifest = copy.join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest)?;
        std::fs::write(&manifest, format!("{text}\n[workspace]\n"))?;
    }
    let features = "std,driver,nvrtc,dynamic-loading,cuda-13000";
    let out = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--lib", "--no-run", "--no-default-features", "--features", features])
        .args(["--message-format", "json"])
        .current_dir(&copy)
        .output()?;
    let messages = String::from_utf8_lossy(&out.stdout);
    let program = messages.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    let program = program.filter_map(|m| m["executable"].as_str().map(PathBuf::from)).next_back();
    program.with_context(|| format!("cudarc's tests do not build: {}", String::from_utf8_lossy(&out.stderr)))
}

fn run_well(command: &mut Command) -> Result<()> {
    let out = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::failures;

    #[test]
    fn failures_are_counted_as_the_test_programs_say() {
        assert_eq!(failures("test result: FAILED. 43 passed; 7 failed; 5 ignored"), Some(7));
        assert_eq!(failures("Ran 267 tests in 1s\n\nFAILED (failures=3, errors=7, skipped=22)\n"), Some(10));
        assert_eq!(failures("Ran 3 tests in 1s\n\nOK\n"), Some(0));
        assert_eq!(failures("right"), None);
    }
}
