//! The peers, by package, below the target folder. What cannot be had is left out with a reason.

use super::engines::Package;
use crate::{conformance, places, tool_checkpoints};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is measured, as pip calls it; PyTorch is that of `cargo xtask conformance`.
pub const PACKAGES: [&str; 3] = [LLAMA, "torch==2.15.0", ONNXRUNTIME];

/// Its source has ggml in it.
const LLAMA: &str = "llama-cpp-python==0.3.36";
const BUILD_TOOLS: [&str; 2] = ["cmake==4.4.4", "ninja==1.13.2"];
const ONNXRUNTIME: &str = "onnxruntime==1.32.0";

/// Programs of peers, or why there is none.
pub struct Peers {
    ggml: Result<PathBuf>,
    torch: Result<PathBuf>,
    onnx: Result<PathBuf>,
}

/// Installs all peers.
pub fn all(home: &Path) -> Peers {
    let onnx = [ONNXRUNTIME, "onnx==1.23.2", "numpy==2.4.6"].map(str::to_string);
    Peers {
        ggml: ggml(home),
        torch: conformance::install(&places::target_dir().join("conformance/python")),
        onnx: tool_checkpoints::install(&home.join("onnxruntime"), &onnx),
    }
}

impl Peers {
    /// How to start a program of a package that there is.
    pub fn command(&self, package: Package) -> Option<Vec<String>> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let script = |python: &Path, name| vec![text(python), text(&super::scripts().join(name))];
        match package {
            Package::Ggml => self.ggml.as_ref().ok().map(|program| vec![text(program)]),
            Package::Torch => self.torch.as_ref().ok().map(|python| script(python, "torch_layer.py")),
            Package::Onnx => self.onnx.as_ref().ok().map(|python| script(python, "onnx_layer.py")),
        }
    }

    /// Packages that there are not, and why.
    pub fn missing(&self) -> Vec<(String, String)> {
        let all = PACKAGES.into_iter().zip([&self.ggml, &self.torch, &self.onnx]);
        all.filter_map(|(name, got)| Some((name.to_string(), format!("{:#}", got.as_ref().err()?)))).collect()
    }
}

/// Builds ggml out of llama-cpp-python's source by its own CMake, and the program that uses it; gives the program.
fn ggml(home: &Path) -> Result<PathBuf> {
    let tools = home.join("cmake");
    let python = tool_checkpoints::install(&tools, &BUILD_TOOLS.map(str::to_string))?;
    let source = home.join(LLAMA.replace("==", "-").replace("llama-cpp-python", "llama_cpp_python"));
    if !source.exists() {
        unpack(&download(&python, &home.join("sources"))?, &source)?;
    }
    let build = home.join("ggml");
    let bin = tools.join("bin");
    let tool = |name: &str| {
        let mut command = Command::new(bin.join(name));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(bin.clone()).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(paths).unwrap_or_default());
        command
    };
    let mut configure = tool("cmake");
    configure.arg("-S").arg(super::scripts().join("ggml")).arg("-B").arg(&build);
    configure.args(["-G", "Ninja", "-D", "CMAKE_BUILD_TYPE=Release", "-D", "BUILD_SHARED_LIBS=OFF", "-D"]);
    configure.arg(format!("GGML={}", source.join("vendor/llama.cpp/ggml").display()));
    said_well(&mut configure)?;
    said_well(tool("ninja").arg("-C").arg(&build).arg(format!("-j{}", places::jobs())).arg("ggml_layer"))?;
    Ok(build.join("ggml_layer"))
}

/// The package's source, as it is published.
fn download(python: &Path, to: &Path) -> Result<PathBuf> {
    let mut pip = Command::new(python);
    // `:all:` would build cmake from source as well.
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", "--dest"]).arg(to);
    said_well(pip.arg(LLAMA))?;
    let mut files = std::fs::read_dir(to)?.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|p| p.extension().is_some_and(|e| e == "gz")).context("pip wrote no source")
}

/// Unpacks ggml out of the source.
fn unpack(archive: &Path, to: &Path) -> Result<()> {
    // In one step, so that what was interrupted is not taken for complete.
    let partial = to.with_file_name("partial");
    let _ = std::fs::remove_dir_all(&partial);
    std::fs::create_dir(&partial)?;
    let mut files = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(archive)?));
    for entry in files.entries()? {
        let mut entry = entry?;
        if entry.path()?.components().any(|part| part.as_os_str() == "ggml") {
            entry.unpack_in(&partial)?;
        }
    }
    let mut folders = std::fs::read_dir(&partial)?;
    std::fs::rename(folders.next().context("the source has no ggml")??.path(), to)?;
    Ok(std::fs::remove_dir(partial)?)
}

/// Runs a command; its last words are the error when it fails.
fn said_well(command: &mut Command) -> Result<()> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let out = command.output().with_context(|| format!("cannot run {name}"))?;
    if !out.status.success() {
        let said = [out.stdout, out.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
        bail!("{name} failed: {}", lines[lines.len().saturating_sub(3)..].join(" / "));
    }
    Ok(())
}
