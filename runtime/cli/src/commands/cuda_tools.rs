//! Where `ptxas` and `nvdisasm` may be on this machine, and what `ptxas` says.

use moec_ptx::ptxas::{self, Assembled};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Folders that may hold NVIDIA's tools, the best first: `MOEC_PTXAS`, what the test command installs, the search path, a
/// CUDA toolkit, and the packages of `python3`, where `pip install nvidia-cuda-nvcc` puts them.
///
/// For [`moec_ptx::ptxas::find_tool`], which knows the folders below.
pub fn places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = std::env::var_os("MOEC_PTXAS").into_iter().map(PathBuf::from).collect();
    places.push(PathBuf::from("target/tools"));
    if let Some(path) = std::env::var_os("PATH") {
        places.extend(std::env::split_paths(&path));
    }
    places.push(PathBuf::from("/usr/local/cuda"));
    places.extend(python_packages());
    places
}

/// Where the `python3` of the search path finds its packages; that of a virtual environment when one is active.
fn python_packages() -> Vec<PathBuf> {
    let list = Command::new("python3")
        .args(["-c", "import sys; print('\\n'.join(p for p in sys.path if p))"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let Ok(list) = list else { return Vec::new() };
    String::from_utf8_lossy(&list.stdout).lines().map(PathBuf::from).filter(|p| p.is_dir()).collect()
}

/// A PTX text assembled for its own target; `None` where there is no `ptxas`, or it refuses the text.
pub fn assembled(ptx: &str) -> Option<Assembled> {
    static PTXAS: std::sync::OnceLock<Option<PathBuf>> = std::sync::OnceLock::new();
    let ptxas = PTXAS.get_or_init(|| ptxas::find(None, &places()).ok()).as_ref()?;
    let target = ptx.lines().find_map(|l| l.trim().strip_prefix(".target"))?;
    ptxas::assemble(ptxas, ptx, target.split([',', ' ', '\t']).find(|t| !t.is_empty())?).ok()
}
