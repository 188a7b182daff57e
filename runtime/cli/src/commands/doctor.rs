//! `moec doctor`: what this machine has, and the remedy for what it lacks.

use crate::commands::cuda_tools;
use crate::output::{self, Ended, Outcome};
use std::process::Command;

#[derive(clap::Args, Debug)]
pub struct Options {
    /// Print one JSON object instead of lines.
    #[arg(long)]
    pub json: bool,
}

/// One line of the report.
struct Finding {
    what: &'static str,
    /// What was found; an error sentence when it is missing.
    found: Result<String, String>,
    /// What it is for, and how to get it when it is missing.
    remedy: &'static str,
}

pub fn run(options: &Options) -> Outcome {
    let findings = [cpu(), memory(), llvm(), cuda(), tool("ptxas"), tool("nvdisasm"), python()];
    if options.json {
        let list: Vec<_> = findings
            .iter()
            .map(|f| {
                let (has, text) = match &f.found {
                    Ok(text) => (true, text),
                    Err(text) => (false, text),
                };
                serde_json::json!({ "what": f.what, "has": has, "found": text, "remedy": f.remedy })
            })
            .collect();
        let value = serde_json::json!({ "moec": env!("CARGO_PKG_VERSION"), "findings": list });
        output::print(&format!("{value:#}\n"));
        return Ok(Ended::Well);
    }
    let mut out = format!("moec {}\n", env!("CARGO_PKG_VERSION"));
    for f in &findings {
        match &f.found {
            Ok(text) => out += &format!("  has    {:<12} {text}\n", f.what),
            Err(text) => out += &format!("  lacks  {:<12} {text}\n{:22}{}\n", f.what, "", f.remedy),
        }
    }
    output::print(&out);
    Ok(Ended::Well)
}

fn cpu() -> Finding {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let flags = field("flags").or_else(|| field("Features")).unwrap_or_default();
    let known = ["avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"];
    let has: Vec<&str> = known.into_iter().filter(|k| flags.split(' ').any(|f| f == *k)).collect();
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_string());
    Finding {
        what: "cpu",
        found: Ok(format!("{name}, {cores} cores, {}", has.join(" "))),
        remedy: "runs layers with `--device cpu`",
    }
}

fn memory() -> Finding {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let gib = |key: &str| {
        let line = info.lines().find(|l| l.starts_with(key))?;
        Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / f64::from(1 << 20))
    };
    Finding {
        what: "memory",
        found: match (gib("MemTotal:"), gib("MemAvailable:")) {
            (Some(total), Some(free)) => Ok(format!("{total:.1} GiB, {free:.1} GiB of it free")),
            _ => Err("this system does not say how much there is".to_string()),
        },
        remedy: "holds the packed weights of a layer",
    }
}

fn llvm() -> Finding {
    let found = moec_nvptx::llvm().map_err(|d| {
        let tried: String = d.notes.iter().map(|n| format!("; {n}")).collect();
        format!("{}{tried}", d.message)
    });
    let found = found.map(|llvm| {
        let (major, minor, patch) = llvm.version;
        let place = llvm.path.as_ref().map_or("linked".to_string(), |p| format!("at {}", p.display()));
        format!("{major}.{minor}.{patch} {place}")
    });
    Finding {
        what: "llvm",
        found,
        remedy: "only GPU targets need it: keep the `lib` folder of the release beside `bin`, or install LLVM 22 (Debian: libllvm22)",
    }
}

/// The driver and every GPU that it shows, with the target that moec compiles for it.
fn cuda() -> Finding {
    use moec_runtime::cuda::{CudaDevice, device_count, driver_version};
    let gpus = || -> Result<String, moec::Diagnostic> {
        let version = driver_version()?;
        let mut text = format!("driver for CUDA {}.{}", version / 1000, version % 1000 / 10);
        for ordinal in 0..device_count()? {
            let device = CudaDevice::open(ordinal)?;
            let info = device.info();
            let (major, minor) = info.capability;
            let names = moec_ir::target::TARGETS.iter().filter(|t| !t.is_cpu()).map(|t| t.name);
            let target = moec_runtime::best_target(names, major, minor);
            let name = target.unwrap_or("no target");
            text += &format!("; cuda:{ordinal} {}, compute capability {major}.{minor}: {name}", info.name);
            text += &too_old(target, version).map(|needs| format!(", which needs {needs}")).unwrap_or_default();
        }
        Ok(text)
    };
    Finding {
        what: "cuda",
        found: gpus().map_err(|d| d.message),
        remedy: "only `--device cuda` needs it: an NVIDIA GPU and its driver; the emulator runs the same kernels without",
    }
}

/// What a driver of this `cuDriverGetVersion` has to become for kernels of a target.
fn too_old(target: Option<&str>, version: u32) -> Option<String> {
    use moec_ir::target::{Target, TargetKind};
    let TargetKind::Gpu { ptx_version, .. } = Target::by_name(target?)?.kind else { return None };
    let release = moec_ir::ptx_release::PtxRelease::of(ptx_version)?;
    (version < release.driver_version()).then(|| release.sentence())
}

/// One of NVIDIA's tools.
fn tool(name: &'static str) -> Finding {
    let found = moec_ptx::ptxas::find_tool(name, None, &cuda_tools::places())
        .map_err(|_| {
            format!(
                "no {name} in MOEC_PTXAS, target/tools, the search path, /usr/local/cuda or the packages of python3"
            )
        })
        .and_then(|path| {
            let release = moec_ptx::ptxas::release(&path).map_err(|e| e.to_string())?;
            Ok(format!("{release} at {}", path.display()))
        });
    let remedy = match name {
        "ptxas" => "only `--emit cubin,sass` and the tests need it: `pip install nvidia-cuda-nvcc`, or a CUDA toolkit",
        _ => "only `--emit sass` and the tests need it: `pip install nvidia-cuda-nvdisasm`, or a CUDA toolkit",
    };
    Finding { what: name, found, remedy }
}

fn python() -> Finding {
    let found = Command::new("python3")
        .arg("--version")
        .output()
        .map_err(|e| format!("python3 does not run: {e}"))
        .map(|out| String::from_utf8_lossy(&out.stdout).trim().to_string());
    Finding { what: "python", found, remedy: "only the test command needs it, to install ptxas: python3 with pip" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_does_not_know_the_ptx_of_a_target_is_told() {
        let needs = "a driver for CUDA 12.9 or newer (575 or newer on Linux)";
        assert_eq!(too_old(Some("sm_100f"), 12_080).as_deref(), Some(needs));
        assert_eq!(too_old(Some("sm_100f"), 12_090), None);
        assert_eq!(too_old(Some("sm_90a"), 12_000), None);
        assert_eq!(too_old(None, 12_000), None);
    }
}
