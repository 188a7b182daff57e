//! Drives NVIDIA's `ptxas`: finds it, assembles PTX, reads its report.
//!
//! `ptxas` is a development tool: it tells whether PTX is acceptable to NVIDIA's own assembler and how many registers,
//! spills and bytes of shared memory a kernel takes. Nothing in the emulator needs it. This module reads no environment
//! variable; the caller says where to look ([`find`]) or has the tools installed from PyPI ([`install`]).

mod install;
mod report;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub use install::{PYPI_PACKAGES, install, installed};
pub use report::{ConstBank, EntryReport, FunctionReport, Message, Report, Severity, parse_messages, parse_report};

/// Where a wheel or a CUDA toolkit keeps its executables, below a folder given to [`find`].
const BIN_FOLDERS: [&str; 5] = ["", "bin", "nvidia/cu13/bin", "nvidia/cuda_nvcc/bin", "nvidia/cu12/bin"];

/// Why `ptxas` or one of the disassemblers gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PtxasError {
    /// No executable of that name at any place that was searched.
    #[error("no {tool} found; searched: {}", list(.searched))]
    NotFound {
        /// Name of the executable.
        tool: String,
        /// Every path that was tried, in order.
        searched: Vec<PathBuf>,
    },
    /// The executable exists but could not be started, or its files could not be written or read.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// `ptxas` refused the PTX.
    #[error("ptxas refuses the PTX for {target}: {}", .rejection)]
    Rejected {
        /// The `-arch` value.
        target: String,
        /// The errors, with lines where `ptxas` gives them.
        rejection: Rejection,
    },
    /// The tool failed without a message that could be understood.
    #[error("{tool} failed with {status}: {text}")]
    Failed {
        /// Name of the executable.
        tool: String,
        /// Exit status or signal.
        status: String,
        /// All it wrote, trimmed.
        text: String,
    },
}

/// The errors of one refused PTX text; each with its line and the text of that line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Errors and warnings, in the order of `ptxas`.
    pub messages: Vec<Message>,
    /// For each message, the guilty line of the PTX, trimmed; empty where the message has no line.
    pub excerpts: Vec<String>,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        for (message, excerpt) in self.messages.iter().zip(&self.excerpts) {
            if message.severity < Severity::Error {
                continue;
            }
            if !first {
                f.write_str("; ")?;
            }
            first = false;
            match message.line {
                Some(line) => write!(f, "line {line}: {} (`{excerpt}`)", message.text)?,
                None => f.write_str(&message.text)?,
            }
        }
        Ok(())
    }
}

/// What `ptxas` made of one PTX text.
#[derive(Debug, Clone)]
pub struct Assembled {
    /// The ELF image that the driver loads.
    pub cubin: Vec<u8>,
    /// Registers, shared memory, spills; warnings.
    pub report: Report,
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Finds `ptxas`: the explicit path if one is given (and only that), else the first of `candidates` that holds one.
///
/// A candidate is the executable itself, or a folder that has it directly, in `bin/`, or where a PyPI wheel puts it
/// (`nvidia/cu13/bin/`).
///
/// # Errors
/// [`PtxasError::NotFound`] with every path tried.
pub fn find(explicit: Option<&Path>, candidates: &[PathBuf]) -> Result<PathBuf, PtxasError> {
    find_tool("ptxas", explicit, candidates)
}

/// As [`find`], for another executable of the toolkit: `nvdisasm`, `cuobjdump`.
///
/// # Errors
/// [`PtxasError::NotFound`] with every path tried.
pub fn find_tool(tool: &str, explicit: Option<&Path>, candidates: &[PathBuf]) -> Result<PathBuf, PtxasError> {
    let mut searched = Vec::new();
    let places: Vec<&Path> = match explicit {
        Some(path) => vec![path],
        None => candidates.iter().map(PathBuf::as_path).collect(),
    };
    for place in places {
        if place.is_file() && (explicit.is_some() || place.file_name().is_some_and(|n| n == tool)) {
            return Ok(place.to_path_buf());
        }
        for below in BIN_FOLDERS {
            let path = if below.is_empty() { place.join(tool) } else { place.join(below).join(tool) };
            if path.is_file() {
                return Ok(path);
            }
            searched.push(path);
        }
    }
    Err(PtxasError::NotFound { tool: tool.to_string(), searched })
}

/// Assembles `ptx` for `target` (`sm_90a`, `sm_100f`, …) and returns the cubin with the report of `-v`.
///
/// # Errors
/// [`PtxasError::Rejected`] with line numbers when the PTX is wrong or does not fit the target,
/// [`PtxasError::Io`] and [`PtxasError::Failed`] when `ptxas` could not be run.
pub fn assemble(ptxas: &Path, ptx: &str, target: &str) -> Result<Assembled, PtxasError> {
    assemble_with(ptxas, ptx, target, &[])
}

/// As [`assemble`], with further options for `ptxas` (`-O0`, `--maxrregcount=…`).
///
/// # Errors
/// As [`assemble`].
pub fn assemble_with(ptxas: &Path, ptx: &str, target: &str, options: &[&str]) -> Result<Assembled, PtxasError> {
    let folder = scratch()?;
    let source = folder.path().join("kernel.ptx");
    let image = folder.path().join("kernel.cubin");
    std::fs::write(&source, ptx)
        .map_err(|source_error| io(format!("cannot write {}", source.display()), source_error))?;
    let mut command = Command::new(ptxas);
    command.arg(format!("-arch={target}")).arg("-v").args(options).arg(&source).arg("-o").arg(&image);
    let output = run(&mut command, ptxas)?;
    let text = text_of(&output);
    if !output.status.success() {
        let messages = parse_messages(&text);
        if !messages.iter().any(|m| m.severity >= Severity::Error) {
            return Err(failed("ptxas", &output));
        }
        let lines: Vec<&str> = ptx.lines().collect();
        let excerpts = messages
            .iter()
            .map(|m| {
                m.line
                    .and_then(|line| lines.get((line as usize).saturating_sub(1)))
                    .map(|line| line.trim().to_string())
                    .unwrap_or_default()
            })
            .collect();
        return Err(PtxasError::Rejected { target: target.to_string(), rejection: Rejection { messages, excerpts } });
    }
    let cubin =
        std::fs::read(&image).map_err(|source_error| io(format!("cannot read {}", image.display()), source_error))?;
    Ok(Assembled { cubin, report: parse_report(&text) })
}

/// Disassembles a cubin with `nvdisasm`: SASS text, one section a function.
///
/// # Errors
/// [`PtxasError::Io`] and [`PtxasError::Failed`] when `nvdisasm` could not be run or refuses the image.
pub fn disassemble(nvdisasm: &Path, cubin: &[u8]) -> Result<String, PtxasError> {
    with_image(nvdisasm, "nvdisasm", cubin, &["-c"])
}

/// Prints the resource usage of a cubin with `cuobjdump -res-usage`, as text.
///
/// # Errors
/// [`PtxasError::Io`] and [`PtxasError::Failed`] when `cuobjdump` could not be run or refuses the image.
pub fn resource_usage(cuobjdump: &Path, cubin: &[u8]) -> Result<String, PtxasError> {
    with_image(cuobjdump, "cuobjdump", cubin, &["-res-usage"])
}

/// The release of a toolkit executable as it prints it, such as `13.5`.
///
/// # Errors
/// [`PtxasError::Io`] and [`PtxasError::Failed`] when it could not be run or prints no release.
pub fn release(tool: &Path) -> Result<String, PtxasError> {
    let output = run(Command::new(tool).arg("--version"), tool)?;
    let text = text_of(&output);
    text.split("release ")
        .nth(1)
        .and_then(|rest| rest.split([',', '\n']).next())
        .map(|release| release.trim().to_string())
        .ok_or_else(|| failed(&tool.display().to_string(), &output))
}

fn with_image(tool: &Path, name: &str, cubin: &[u8], options: &[&str]) -> Result<String, PtxasError> {
    let folder = scratch()?;
    let image = folder.path().join("kernel.cubin");
    std::fs::write(&image, cubin).map_err(|source| io(format!("cannot write {}", image.display()), source))?;
    let output = run(Command::new(tool).args(options).arg(&image), tool)?;
    if !output.status.success() {
        return Err(failed(name, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn scratch() -> Result<tempfile::TempDir, PtxasError> {
    tempfile::Builder::new()
        .prefix("moec-ptxas-")
        .tempdir()
        .map_err(|source| io("cannot make a temporary folder".to_string(), source))
}

fn run(command: &mut Command, tool: &Path) -> Result<Output, PtxasError> {
    command.stdin(Stdio::null()).output().map_err(|source| io(format!("cannot run {}", tool.display()), source))
}

fn io(what: String, source: std::io::Error) -> PtxasError {
    PtxasError::Io { what, source }
}

fn text_of(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stdout));
    text
}

fn failed(tool: &str, output: &Output) -> PtxasError {
    PtxasError::Failed {
        tool: tool.to_string(),
        status: output.status.to_string(),
        text: text_of(output).trim().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_ptxas_is_reported_with_every_place_searched() {
        let error = find(None, &[PathBuf::from("/nonexistent")]).unwrap_err();
        let PtxasError::NotFound { searched, .. } = &error else { panic!("{error}") };
        assert!(searched.contains(&PathBuf::from("/nonexistent/nvidia/cu13/bin/ptxas")));
        assert!(error.to_string().contains("/nonexistent/bin/ptxas"));
    }

    #[test]
    fn a_folder_of_a_wheel_is_searched_below() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("nvidia/cu13/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(bin.join("ptxas"), "").unwrap();
        assert_eq!(find(None, &[folder.path().to_path_buf()]).unwrap(), bin.join("ptxas"));
    }

    #[test]
    fn an_explicit_path_wins_over_the_candidates() {
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().join("my-ptxas");
        std::fs::write(&named, "").unwrap();
        std::fs::write(folder.path().join("ptxas"), "").unwrap();
        assert_eq!(find(Some(&named), &[folder.path().to_path_buf()]).unwrap(), named);
    }
}
