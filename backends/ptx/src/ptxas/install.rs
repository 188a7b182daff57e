//! Installs `ptxas` and the disassemblers from PyPI into a folder.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{PtxasError, failed, find, find_tool, io};

/// The wheels that hold `ptxas`, `nvdisasm` and `cuobjdump`, with the release that this crate was tried with.
pub const PYPI_PACKAGES: [&str; 3] =
    ["nvidia-cuda-nvcc==13.5.37", "nvidia-cuda-nvdisasm==13.5.37", "nvidia-cuda-cuobjdump==13.5.37"];

/// The `ptxas` below `dir` when all three tools are there.
#[must_use]
pub fn installed(dir: &Path) -> Option<PathBuf> {
    let candidates = [dir.to_path_buf()];
    find_tool("nvdisasm", None, &candidates).ok()?;
    find_tool("cuobjdump", None, &candidates).ok()?;
    find(None, &candidates).ok()
}

/// Makes sure that `dir` holds `ptxas`, `nvdisasm` and `cuobjdump`, and returns the path of `ptxas`.
///
/// When they are not there, the wheels are installed with `python3 -m pip install --target dir --no-deps`; other files
/// in `dir` stay. About 50 MB are downloaded; on disk they take 150 MB.
///
/// # Errors
/// [`PtxasError::Io`] when `python3` is missing or `dir` cannot be made, [`PtxasError::Failed`] with the output of pip
/// when it fails, [`PtxasError::NotFound`] when the wheels do not hold the tools.
pub fn install(dir: &Path) -> Result<PathBuf, PtxasError> {
    if let Some(ptxas) = installed(dir) {
        return Ok(ptxas);
    }
    std::fs::create_dir_all(dir).map_err(|source| io(format!("cannot make {}", dir.display()), source))?;
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"])
        .args(["--upgrade", "--target"])
        .arg(dir)
        .args(PYPI_PACKAGES)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| io("cannot run python3 -m pip".to_string(), source))?;
    if !output.status.success() {
        return Err(failed("python3 -m pip install", &output));
    }
    let candidates = [dir.to_path_buf()];
    find_tool("nvdisasm", None, &candidates)?;
    find_tool("cuobjdump", None, &candidates)?;
    find(None, &candidates)
}
