//! The header, and the examples in C and C++, with the compiler of this machine.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "a test says why it was skipped")]

#[path = "common/compilers.rs"]
mod compilers;

use compilers::{STRICT, compilers};
use moec::{CompileRequest, Device, Model, Session, Target, Tensor, Weights};
use moec_ir::DType;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn checkpoint() -> PathBuf {
    root().join("tests/conformance/mixtral.f32")
}

/// Where cargo has put the shared library of this crate: beside this test.
fn library_folder() -> PathBuf {
    let me = std::env::current_exe().expect("a test runs");
    let folder = me.parent().expect("a folder").to_path_buf();
    assert!(folder.join("libmoec_c.so").is_file(), "{}", folder.display());
    folder
}

fn compile(compiler: &str, args: &[&str], to: &Path) {
    let folder = library_folder();
    let out = Command::new(compiler)
        .args(STRICT)
        .args(args)
        .arg("-I")
        .arg(root().join("runtime/capi/include"))
        .arg("-L")
        .arg(&folder)
        .args(["-lmoec_c", "-lm", "-pthread"])
        .arg(format!("-Wl,-rpath,{}", folder.display()))
        .arg("-o")
        .arg(to)
        .output()
        .expect("the compiler should start");
    assert!(out.status.success(), "{compiler} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn run(program: &Path, args: &[&str], input: &[f32]) -> Result<Vec<f32>, String> {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example should start");
    let bytes: Vec<u8> = input.iter().flat_map(|x| x.to_le_bytes()).collect();
    // A program that refuses its arguments does not read.
    let _ = child.stdin.take().expect("piped").write_all(&bytes);
    let out = child.wait_with_output().expect("the example should end");
    if !out.status.success() {
        return Err(format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr)));
    }
    Ok(out.stdout.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// The first layer of a small Mixtral, compiled for the CPU: as a folder and as a file.
fn bundle(dir: &Path) -> (PathBuf, PathBuf) {
    let layer = Model::open(checkpoint()).expect("model").layer(Some(0)).expect("layer");
    let cpu = Target::by_name("cpu").into_iter().collect();
    let bundle = moec::compile(&CompileRequest::new(&layer.graph, cpu)).expect("compiles").bundle;
    bundle.write(dir.join("layer")).expect("written");
    bundle.write_archive(dir.join("layer.tar")).expect("written");
    (dir.join("layer"), dir.join("layer.tar"))
}

/// A float tensor that transformers wrote beside the checkpoint.
fn golden(name: &str) -> Vec<f32> {
    let file = moec::Checkpoint::open(checkpoint().join("golden.layer0.safetensors")).expect("golden");
    let tensor = file.tensor(name).expect("readable").expect("there").to_tensor().expect("floats");
    tensor.floats().to_vec()
}

fn error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut got.iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied())
}

#[test]
fn the_header_is_clean_in_every_dialect() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("only.c"), "#include <moec.h>\nint main(void) { return MOEC_OK; }\n").unwrap();
    for (c, cpp) in compilers() {
        let source = dir.path().join("only.c");
        let source = source.to_str().unwrap();
        for (compiler, language, dialects) in
            [(c, "c", &["c99", "c11", "c17"][..]), (cpp, "c++", &["c++11", "c++17", "c++20"][..])]
        {
            for dialect in dialects {
                compile(compiler, &[&format!("-std={dialect}"), "-x", language, source], &dir.path().join("only"));
            }
        }
    }
}

#[test]
fn a_layer_runs_from_c() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, file) = bundle(dir.path());
    for (c, _) in compilers() {
        let (source, program) = (root().join("examples/c/run_layer.c"), dir.path().join("run_layer"));
        compile(c, &["-std=c11", source.to_str().unwrap()], &program);
        for path in [&folder, &file] {
            let args = [path.to_str().unwrap(), checkpoint().to_str().unwrap(), "64", "2"].map(str::to_string);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let output = run(&program, &args, &golden("input")).unwrap();
            assert!(error(&output, &golden("output")) < 1e-5);
        }
        let wrong = run(&program, &[folder.to_str().unwrap(), "/nonexistent", "64", "2"], &[]).unwrap_err();
        assert!(wrong.contains("[checkpoint-not-found]") && wrong.contains("exit status: 1"), "{wrong}");
    }
}

/// What `two_layers.cpp` gives to the layer with this seed.
fn weights(seed: f32) -> Vec<(String, Tensor)> {
    let layer = Model::open(checkpoint()).expect("model").layer(Some(0)).expect("layer");
    let param = |(p, param): (usize, &moec_ir::graph::Param)| {
        let shape: Vec<usize> = param.ty.shape.iter().map(|d| d.at(0) as usize).collect();
        let value = |i: usize| (i as f32 + 10.0 * p as f32 + seed).sin() / 8.0;
        let values = (0..shape.iter().product()).map(value).collect();
        (param.name.clone(), Tensor::float(DType::F32, &shape, values))
    };
    layer.graph.params.iter().enumerate().map(param).collect()
}

#[test]
fn two_layers_run_on_two_threads_from_cpp() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, file) = bundle(dir.path());
    let input = golden("input");
    let n = input.len() / 64;
    let mut expected = Vec::new();
    for seed in [1.0, 2.0] {
        let tensors = weights(seed);
        let bundle = moec::Bundle::open(&folder).unwrap();
        let mut session = Session::load(&bundle, &Weights::Tensors(&tensors), Device::Cpu, 64).unwrap();
        let input = Tensor::float(DType::F32, &[n, 64], input.clone());
        expected.extend_from_slice(session.run(&[("input", &input)]).unwrap().output("output").unwrap().floats());
    }
    for (_, cpp) in compilers() {
        let (source, program) = (root().join("examples/cpp/two_layers.cpp"), dir.path().join("two_layers"));
        let source = source.to_str().unwrap();
        compile(cpp, &["-std=c++17", source], &program);
        let args = [file.to_str().unwrap(), "64", "2"];
        let output = run(&program, &args, &input).unwrap();
        // Sines of C and of Rust may differ in the last bit.
        assert!(error(&output, &expected) < 1e-4, "{}", error(&output, &expected));
        assert!(error(&output[..n * 64], &output[n * 64..]) > 0.1, "the layers have different weights");

        // The same under the address sanitizer, where the compiler has it: it sees the memory of both sides.
        let checked = dir.path().join("checked");
        let source_file = dir.path().join("empty.cpp");
        std::fs::write(&source_file, "int main() { return 0; }\n").unwrap();
        let has_it = Command::new(cpp).args(["-fsanitize=address", "-o"]).arg(&checked).arg(&source_file).output();
        if !has_it.is_ok_and(|o| o.status.success()) {
            println!("skipped: no address sanitizer");
            continue;
        }
        compile(cpp, &["-std=c++17", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover", source], &checked);
        assert_eq!(run(&checked, &args, &input).unwrap(), output);
    }
}
