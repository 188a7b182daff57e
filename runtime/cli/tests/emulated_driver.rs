//! `moec emulate -- PROGRAM`: layers through the CUDA loader, and programs of others, without a GPU.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says why it was skipped")]

#[path = "../../emulated-driver/tests/built/mod.rs"]
mod built;
mod common;

use common::{Run, conformance, moec_in, root};
use std::path::Path;
use std::process::Command;

fn emulate(dir: &Path, args: &[&str]) -> Run {
    // Beside `moec`, which looks there.
    built::driver();
    moec_in(dir, &[&["emulate"], args].concat())
}

/// The loader, cudarc, tensor maps and launches: bit for bit what the same PTX gives without a driver between, and near what
/// transformers computed.
#[test]
fn layers_run_on_every_generation_without_a_gpu() {
    let model = conformance("mixtral.bf16");
    let golden = model.join("golden.layer0.safetensors");
    let (model, golden) = (model.to_str().unwrap(), golden.to_str().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let compile =
        ["compile", model, "--layer", "0", "--tokens", "0..64", "--target", "sm_80,sm_90a,sm_100a", "-o", "b"];
    assert_eq!(moec_in(dir.path(), &compile).code, 0);
    for (gpu, target, launches) in [("a100", "sm_80", 3), ("h100", "sm_90a", 2), ("b200", "sm_100a", 2)] {
        let run = ["run", "b", "--weights", model, "--input", golden, "--expect", golden];
        let through = ["--gpu", gpu, "--", env!("CARGO_BIN_EXE_moec")];
        let device = ["--device", "cuda", "-o", "cuda.safetensors"];
        let cuda = emulate(dir.path(), &[&through[..], &run, &device].concat());
        assert_eq!(cuda.code, 0, "{gpu}: {}{}", cuda.stdout, cuda.stderr);
        assert!(cuda.stdout.contains(&format!("ran {target}")), "{}", cuda.stdout);
        let launches = format!("moec: {launches} launches");
        assert!(cuda.stderr.contains(&launches) && cuda.stderr.contains("0 findings"), "{}", cuda.stderr);
        let direct = format!("emulator:{target}");
        let direct = moec_in(dir.path(), &[&run[..], &["--device", &direct, "-o", "direct.safetensors"]].concat());
        assert_eq!(direct.code, 0, "{}", direct.stderr);
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert!(read("cuda.safetensors") == read("direct.safetensors"), "{gpu}");
    }
}

/// Times by events, of graphs and of single kernels, with the cache overwritten before each.
#[test]
fn layers_are_timed_on_a_gpu() {
    let model = conformance("mixtral.bf16");
    let dir = tempfile::tempdir().unwrap();
    let compile = ["compile", model.to_str().unwrap(), "--tokens", "0..64", "--target", "sm_80", "-o", "b"];
    assert_eq!(moec_in(dir.path(), &compile).code, 0);
    let bench = ["bench", "b", "--device", "cuda", "--vs", "b", "-T", "3", "--rounds", "1", "--json"];
    let run = emulate(dir.path(), &[&["--gpu", "a100", "--", env!("CARGO_BIN_EXE_moec")], &bench[..]].concat());
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    assert!(run.stderr.contains("0 findings"), "{}", run.stderr);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(json["device"] == "cuda:0" && json["target"] == "sm_80" && json["threads"].is_null(), "{json:#}");
    let median = |v: &serde_json::Value| v["median"].as_f64().unwrap();
    assert!(median(&json["read_gb_per_second"]) > 0.0);
    let run = &json["runs"][0];
    let kernels = run["kernels"].as_array().unwrap();
    assert!(kernels.len() == 3 && kernels.iter().all(|k| median(&k["milliseconds"]) > 0.0), "{json:#}");
    assert!(median(&run["vs"]["ratio"]) > 0.0);
}

/// The part of `cuda.h` that the program below needs; the header of the CUDA wheels has the same.
const HEADER: &str = r#"
#include <cstddef>
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct C *CUcontext;
typedef struct M *CUmodule;
typedef struct F *CUfunction;
typedef struct S *CUstream;
typedef enum { CUDA_SUCCESS = 0 } CUresult;
#define cuMemAlloc cuMemAlloc_v2
#define cuMemcpyHtoD cuMemcpyHtoD_v2
#define cuMemcpyDtoH cuMemcpyDtoH_v2
extern "C" {
CUresult cuInit(unsigned), cuGetErrorName(CUresult, const char **), cuDeviceGet(CUdevice *, int);
CUresult cuDevicePrimaryCtxRetain(CUcontext *, CUdevice), cuCtxSetCurrent(CUcontext), cuCtxSynchronize();
CUresult cuModuleLoadData(CUmodule *, const void *), cuModuleGetFunction(CUfunction *, CUmodule, const char *);
CUresult cuMemAlloc(CUdeviceptr *, size_t), cuMemcpyHtoD(CUdeviceptr, const void *, size_t);
CUresult cuMemcpyDtoH(void *, CUdeviceptr, size_t);
CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void **,
                        void **);
}
"#;

/// A program of a stranger, built by her compiler and linked with `-lcuda`: the finding names both lines of her source.
#[test]
fn a_missing_fence_is_found_in_the_source() {
    let works = Command::new("c++").arg("--version").output().is_ok_and(|o| o.status.success());
    if !works {
        println!("skipped: no C compiler");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for file in ["missing_fence.cu", "missing_fence.ptx"] {
        std::fs::copy(root().join("examples/cuda").join(file), dir.path().join(file)).unwrap();
    }
    std::fs::write(dir.path().join("cuda.h"), HEADER).unwrap();
    let run = emulate(dir.path(), &["--driver", "driver"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let mut build = Command::new("c++");
    build.args(["-std=c++17", "-x", "c++", "missing_fence.cu", "-I", ".", "-L", "driver", "-lcuda", "-o", "program"]);
    let out = build.current_dir(dir.path()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));

    let program = ["--", "./program", "missing_fence.ptx"];
    let run = emulate(dir.path(), &[&["--gpu", "b200"], &program[..]].concat());
    assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
    for part in [
        "error[proxy]: ",
        "--> missing_fence.cu:21, in `scale`",
        "21 |         asm volatile(\"cp.async.bulk",
        "(missing_fence.cu:16)",
        "16 |     row[threadIdx.x] = in[at + threadIdx.x] * factor;",
        "64 times",
        "CUDA_ERROR_LAUNCH_FAILED",
    ] {
        assert!(run.stderr.contains(part), "no `{part}` in {}", run.stderr);
    }
    assert_eq!(run.stderr.matches("error[").count(), 1, "{}", run.stderr);

    let json = emulate(dir.path(), &[&["--gpu", "b200", "--message-format", "json"], &program[..]].concat());
    let line = json.stderr.lines().find(|l| l.starts_with('{')).unwrap();
    let finding: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((finding["severity"].as_str(), finding["place"]["line"].as_u64()), (Some("error"), Some(21)));

    // Without the check, the program is right, as on a machine most of the time.
    let quiet = emulate(dir.path(), &[&["--gpu", "b200", "--checks", "bounds"], &program[..]].concat());
    assert_eq!((quiet.code, quiet.stdout.as_str()), (0, "right\n"), "{}", quiet.stderr);
    // Code for another chip does not load.
    let other = emulate(dir.path(), &[&["--gpu", "h100"], &program[..]].concat());
    assert!(other.code == 1 && other.stderr.contains("CUDA_ERROR_NO_BINARY_FOR_GPU"), "{}", other.stderr);
    // A chip that nobody knows is named.
    let unknown = emulate(dir.path(), &[&["--gpu", "b2000"], &program[..]].concat());
    assert!(unknown.code == 1 && unknown.stderr.contains("no GPU is called `b2000`"), "{}", unknown.stderr);
}

#[test]
fn what_cannot_be_started_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let run = emulate(dir.path(), &["--message-format", "json", "--", "./nothing"]);
    let codes: Vec<_> = common::diagnostics(&run).iter().map(|d| d["code"].as_str().unwrap().to_owned()).collect();
    assert_eq!((run.code, codes), (1, vec!["program-not-started".to_owned()]), "{}", run.stderr);
    let out = Command::new(env!("CARGO_BIN_EXE_moec"))
        .args(["emulate", "--message-format", "json", "--", "true"])
        .env("MOEC_EMULATED_DRIVER", dir.path().join("nothing.so"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(2) && text.contains("emulated-driver-missing"), "{text}");
    let exit = emulate(dir.path(), &["--", "sh", "-c", "exit 7"]);
    assert_eq!(exit.code, 7);
}
