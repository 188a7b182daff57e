//! vLLM and SGLang, as far as their Python runs on a machine without a GPU: their wheels are unpacked and not installed, because
//! what they require would be gigabytes, and most of it does not work without one.

use crate::places;
use crate::python_check::Package;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An engine, and the script that checks its classes.
pub struct Engine {
    package: &'static str,
    script: &'static str,
}

/// The versions whose interfaces are known.
pub const ALL: [Engine; 2] = [
    Engine { package: "vllm==0.33.0", script: "check_vllm.py" },
    Engine { package: "sglang==0.5.23", script: "check_sglang.py" },
];

/// Packages that they build upon; the others are stubbed (`runtime/python/tests/stubs.py`).
const BASE: [&str; 10] =
    ["pillow", "msgspec", "cachetools", "pyzmq", "cloudpickle", "einops", "psutil", "protobuf", "orjson", "dill"];

impl Engine {
    /// The command that checks it.
    ///
    /// # Errors
    /// When pip cannot get a package, or a wheel cannot be unpacked.
    pub fn check(&self, python: &Path, package: &Package) -> Result<Command> {
        let home = places::target_dir().join("python-check/engines");
        let base = home.join("base");
        if !base.exists() {
            let mut pip = Command::new(python);
            pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(&base).args(BASE);
            ensure!(pip.status().context("cannot start pip")?.success(), "pip cannot install {}", BASE.join(" "));
        }
        let folder = home.join(self.package);
        if !folder.exists() {
            unpack(&self.download(python, &home.join("wheels"))?, &folder)?;
        }
        let mut command = Command::new(python);
        command.arg(places::root().join("runtime/python/tests").join(self.script)).arg(&folder);
        package.apply(&mut command, &[base]);
        Ok(command)
    }

    fn download(&self, python: &Path, to: &Path) -> Result<PathBuf> {
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"]).arg(to).arg(self.package);
        ensure!(pip.status().context("cannot start pip")?.success(), "pip cannot download {}", self.package);
        let prefix = self.package.replace("==", "-");
        let mut wheels = std::fs::read_dir(to)?.filter_map(|e| Some(e.ok()?.path()));
        let found = wheels.find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)));
        found.with_context(|| format!("pip wrote no wheel of {}", self.package))
    }
}

/// Unpacks a wheel without its libraries, which want a GPU.
fn unpack(wheel: &Path, to: &Path) -> Result<()> {
    let mut zip = zip::ZipArchive::new(std::fs::File::open(wheel)?)?;
    // In one step, so that what was interrupted is not taken for complete.
    let partial = to.with_extension("partial");
    for i in 0..zip.len() {
        let mut file = zip.by_index(i)?;
        let Some(name) = file.enclosed_name().filter(|n| n.extension().is_none_or(|e| e != "so")) else {
            continue;
        };
        let path = partial.join(name);
        if file.is_dir() {
            std::fs::create_dir_all(&path)?;
            continue;
        }
        std::fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        std::io::copy(&mut file, &mut std::fs::File::create(&path)?)?;
    }
    std::fs::rename(partial, to)?;
    Ok(())
}
