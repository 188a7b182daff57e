//! `--emit header,c`: layers in C programs that link nothing of moec but its matrix products.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says why it was skipped")]

#[path = "../../emulated-driver/tests/built/mod.rs"]
mod built;
mod common;
#[path = "../../capi/tests/common/compilers.rs"]
mod compilers;

use common::{conformance, moec_in, root};
use compilers::{STRICT, compilers};
use std::path::Path;
use std::process::{Command, Stdio};

fn moec(dir: &Path, args: &[&str]) {
    let run = moec_in(dir, args);
    assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
}

fn cc(dir: &Path, compiler: &str, args: &[&str]) {
    let out = Command::new(compiler).args(STRICT).args(args).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{compiler} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// `libmoec_kernels.a`, built now.
fn kernels() -> std::path::PathBuf {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "moec-kernels-c"]).current_dir(root());
    let built = build.status().unwrap();
    assert!(built.success());
    Path::new(env!("CARGO_BIN_EXE_moec")).with_file_name("libmoec_kernels.a")
}

fn floats(file: &Path, name: &str) -> Vec<f32> {
    let file = moec_weights::Checkpoint::open(file).unwrap();
    file.tensor(name).unwrap().unwrap().to_tensor().unwrap().floats().to_vec()
}

/// What a program writes when it reads `bytes`.
fn piped(program: &mut Command, bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", out.status);
    out.stdout
}

fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

fn error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut got.iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied())
}

#[test]
fn two_layers_are_linked_into_one_program() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("mixtral.f32");
    let model = model.to_str().unwrap();
    for (layer, name) in [("0", "first"), ("1", "second")] {
        let emit = ["--target", "cpu,sm_90a", "--tokens", "0..64", "--emit", "header,c", "--prefix", name, "-o", name];
        moec(dir.path(), &[&["compile", model, "--layer", layer][..], &emit].concat());
        moec(dir.path(), &["pack", name, "--weights", model, "-o", &format!("{name}.safetensors")]);
    }
    let golden = conformance("mixtral.f32").join("golden.layer0.safetensors");
    let input = floats(&golden, "input");
    // The second layer on the input of the first: what the CLI computes.
    moec(
        dir.path(),
        &["run", "second", "--weights", model, "--input", golden.to_str().unwrap(), "-o", "want.safetensors"],
    );
    let want = [floats(&golden, "output"), floats(&dir.path().join("want.safetensors"), "output")].concat();

    let source = root().join("examples/c/two_layers_aot.c");
    let (source, kernels) = (source.to_str().unwrap(), kernels());
    let libraries = [kernels.to_str().unwrap(), "-pthread", "-ldl", "-lm"];
    for (c, _) in compilers() {
        let objects = ["first/layer.c", "first/cpu/layer.o", "second/layer.c", "second/cpu/layer.o"];
        cc(dir.path(), c, &[&["-std=c11", "-I.", source, "-o", "both"], &objects[..], &libraries].concat());
        let bytes: Vec<u8> = input.iter().flat_map(|x| x.to_le_bytes()).collect();
        let got = piped(
            Command::new(dir.path().join("both"))
                .args(["first.safetensors", "second.safetensors"])
                .current_dir(dir.path()),
            &bytes,
        );
        let got: Vec<f32> = got.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let error = error(&got, &want);
        assert!(error < 1e-5, "{error}");
    }
}

/// The driver that runs kernels in the emulator, in a folder of its own.
fn driver(dir: &Path) -> std::path::PathBuf {
    let folder = dir.join("driver");
    std::fs::create_dir(&folder).unwrap();
    built::install(&folder);
    folder
}

/// A GPU's kernels, launched by generated C: bf16 weights and rows, on Hopper and Blackwell.
#[test]
fn a_gpu_layer_is_launched_through_the_driver() {
    let dir = tempfile::tempdir().unwrap();
    let driver = driver(dir.path());
    let model = conformance("mixtral.bf16");
    let golden = model.join("golden.layer0.safetensors");
    let model = model.to_str().unwrap();
    let file = moec_weights::Checkpoint::open(&golden).unwrap();
    let input = file.tensor("input").unwrap().unwrap().data;
    let source = root().join("examples/c/cuda_layer_aot.c");
    for target in ["sm_90a", "sm_100a"] {
        let emit = ["--target", target, "--tokens", "0..64", "--emit", "header,c", "--prefix", "layer", "-o", "layer"];
        moec(dir.path(), &[&["compile", model, "--layer", "0"][..], &emit].concat());
        moec(dir.path(), &["pack", "layer", "--target", target, "--weights", model, "-o", "layer.safetensors"]);
        for (c, cpp) in compilers() {
            let target_name = format!("-DTARGET={target}");
            let files = [source.to_str().unwrap(), "layer/layer.c", "-I.", "-ldl"];
            let c11 = [&["-std=c11", &target_name, "-o", "one"][..], &files].concat();
            let cpp17 = [&["-std=c++17", "-x", "c++", &target_name, "-o", "two"][..], &files].concat();
            for (compiler, args, program) in [(c, c11, "one"), (cpp, cpp17, "two")] {
                cc(dir.path(), compiler, &args);
                let got = piped(
                    Command::new(dir.path().join(program))
                        .arg("layer.safetensors")
                        .env("LD_LIBRARY_PATH", &driver)
                        .env("MOEC_EMULATED_GPU", target)
                        .current_dir(dir.path()),
                    input,
                );
                let got: Vec<f32> = got.chunks_exact(2).map(|b| bf16([b[0], b[1]])).collect();
                let error = error(&got, &floats(&golden, "output"));
                assert!(error < 2e-2, "{target}, {compiler}: {error}");
            }
        }
    }
}

/// `--emit rust`: a program of the generated module and nothing else, on the CPU and on a GPU.
#[test]
fn a_rust_module_runs_on_both() {
    let dir = tempfile::tempdir().unwrap();
    let (driver, kernels) = (driver(dir.path()), kernels());
    let model = conformance("mixtral.bf16");
    let golden = model.join("golden.layer0.safetensors");
    let model = model.to_str().unwrap();
    let emit = ["--target", "cpu,sm_100a", "--tokens", "0..64", "--emit", "rust", "-o", "layer"];
    moec(dir.path(), &[&["compile", model, "--layer", "0"][..], &emit].concat());
    let file = moec_weights::Checkpoint::open(&golden).unwrap();
    let input = file.tensor("input").unwrap().unwrap().data;
    std::fs::copy(root().join("examples/rust-aot/main.rs"), dir.path().join("main.rs")).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let out = Command::new(rustc)
        .args(["--edition", "2024", "-D", "warnings", "-O", "main.rs", "-C", "link-arg=layer/cpu/layer.o"])
        .args(["-L", kernels.parent().unwrap().to_str().unwrap(), "-l", "static=moec_kernels", "-l", "m", "-l", "dl"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for target in ["cpu", "sm_100a"] {
        moec(dir.path(), &["pack", "layer", "--target", target, "--weights", model, "-o", "layer.safetensors"]);
        let got = piped(
            Command::new(dir.path().join("main"))
                .args([target, "layer.safetensors"])
                .env("LD_LIBRARY_PATH", &driver)
                .env("MOEC_EMULATED_GPU", "sm_100a")
                .current_dir(dir.path()),
            input,
        );
        let got: Vec<f32> = got.chunks_exact(2).map(|b| bf16([b[0], b[1]])).collect();
        let error = error(&got, &floats(&golden, "output"));
        assert!(error < 2e-2, "{target}: {error}");
    }
}

/// Quantised weights, shared experts, variants by token count, tensor maps of Blackwell: whatever a layer has is C.
#[test]
fn every_kind_of_layer_is_clean_c_and_cpp() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["deepseek-r1", "gpt-oss-120b"] {
        let config = root().join("examples/models").join(model).join("config.json");
        let args = ["--target", "cpu,sm_90a,sm_100f", "--emit", "header,c", "-o", model];
        moec(dir.path(), &[&["compile", config.to_str().unwrap()][..], &args].concat());
        for (c, cpp) in compilers() {
            let source = format!("{model}/layer.c");
            for dialect in ["c99", "c17"] {
                cc(dir.path(), c, &[&format!("-std={dialect}"), "-c", &source, "-o", "layer.o"]);
            }
            for dialect in ["c++11", "c++20"] {
                cc(dir.path(), cpp, &["-x", "c++", &format!("-std={dialect}"), "-c", &source, "-o", "layer.o"]);
            }
        }
    }
}

#[test]
fn what_cannot_be_a_name_in_c_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = conformance("mixtral.f32").join("config.json");
    let args = ["--target", "cpu", "--emit", "header", "--prefix", "7-b", "-o", "x", "--message-format", "json"];
    let run = moec_in(dir.path(), &[&["compile", config.to_str().unwrap()][..], &args].concat());
    assert_eq!(run.code, 2);
    assert_eq!(common::diagnostics(&run)[0]["code"], "wrong-usage");
    let run = moec_in(
        dir.path(),
        &["pack", config.to_str().unwrap(), "--weights", "x", "-o", "y", "--message-format", "json"],
    );
    assert_eq!(common::diagnostics(&run)[0]["code"], "bundle-not-found");
}

/// `--cpu-arch aarch64`: an object file of the other architecture, which says so and is refused here.
#[test]
fn a_layer_for_other_processors_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let model = conformance("mixtral.f32");
    let model = model.to_str().unwrap();
    let compile = ["compile", model, "--layer", "0", "--message-format", "json"];
    moec(dir.path(), &[&compile[..], &["--target", "cpu", "--cpu-arch", "aarch64", "-o", "arm"]].concat());
    let object = std::fs::read(dir.path().join("arm/cpu/layer.o")).unwrap();
    // `e_machine` of ELF: EM_AARCH64.
    assert_eq!(u16::from_le_bytes([object[18], object[19]]), 183);
    let run = moec_in(
        dir.path(),
        &["run", "arm", "--weights", model, "--input", "random:T=1,seed=1", "--message-format", "json"],
    );
    assert_eq!(common::diagnostics(&run)[0]["code"], "cpu-features-missing");
    let run =
        moec_in(dir.path(), &[&compile[..], &["--target", "sm_90a", "--cpu-arch", "aarch64", "-o", "gpu"]].concat());
    assert_eq!(run.code, 2);
    assert_eq!(common::diagnostics(&run)[0]["code"], "wrong-usage");
}
