//! Layers on the CPU, from programs whose kernels are written by hand: no compiler is involved.

mod common;

use common::*;
use moec_bundle::Bundle;
use moec_ir::{DType, Tensor};
use moec_runtime::cpu::Pool;
use moec_runtime::{CachedWeights, Device, Layer, LoadOptions, Watch, Weights};
use moec_weights::Checkpoint;
use moec_weights::safetensors::write_safetensors;
use std::sync::Arc;

fn load(weights: &Weights<'_>, max_tokens: u64, threads: usize) -> Layer {
    let options = LoadOptions {
        max_tokens,
        pool: Some(Arc::new(Pool::new(threads).expect("threads"))),
        jit: Some(kernels()),
        ..LoadOptions::default()
    };
    Layer::load(&bundle(None), weights, options).expect("the sample should load")
}

fn bias() -> Vec<(String, Tensor)> {
    vec![("bias".into(), Tensor::float(DType::F32, &[COLS], (0..COLS).map(|c| c as f32 * 100.0).collect()))]
}

fn input(n_tokens: usize) -> Tensor {
    Tensor::float(DType::F32, &[n_tokens, COLS], (0..n_tokens * COLS).map(|i| i as f32).collect())
}

/// What the sample computes: `output = 2 * (input + bias)`, and the number of each token.
fn expected(n_tokens: usize) -> (Vec<f32>, Vec<i64>) {
    let value = |i: usize| 2.0 * (i as f32 + (i % COLS) as f32 * 100.0);
    ((0..n_tokens * COLS).map(value).collect(), (0..n_tokens as i64).collect())
}

#[test]
fn a_layer_runs_for_any_token_count_on_any_number_of_threads() {
    for threads in [1, 2, 4] {
        let tensors = bias();
        let mut layer = load(&Weights::Tensors(&tensors), 300, threads);
        for n in [0, 1, 2, 7, 8, 9, 130, 300, 3, 0] {
            let run = layer.run_host(&[("input", &input(n))]).expect("run");
            let (output, ids) = expected(n);
            assert_eq!(run.output("output").expect("output").floats(), output, "{n} tokens, {threads} threads");
            assert_eq!(run.output("ids").expect("ids").ints(), ids);
            assert_eq!(run.output("ids").expect("ids").shape, [n, 1]);
            assert_eq!(run.variant, usize::from(n > 8));
        }
    }
}

#[test]
fn runs_on_the_callers_memory_do_not_copy() {
    let tensors = bias();
    let mut layer = load(&Weights::Tensors(&tensors), 16, 2);
    let x = input(5);
    let (mut y, mut ids) = (vec![0f32; 5 * COLS], vec![0i32; 5]);
    let cpu = layer.as_cpu().expect("on the CPU");
    for _ in 0..100 {
        y.fill(0.0);
        // SAFETY: the vectors have the sizes of the buffers at five tokens.
        unsafe {
            cpu.launch(5, &[x.floats().as_ptr().cast()], &[y.as_mut_ptr().cast(), ids.as_mut_ptr().cast()])
                .expect("launch");
        }
        assert_eq!(y, expected(5).0);
    }
    // SAFETY: as above; nothing runs.
    let d = unsafe { cpu.launch(5, &[], &[y.as_mut_ptr().cast(), ids.as_mut_ptr().cast()]) }.expect_err("no input");
    assert_eq!(d.code, "input-missing");
}

#[test]
fn weights_come_from_a_checkpoint_in_place_or_packed() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("model.safetensors");
    for dtype in [DType::F32, DType::BF16] {
        // f32 fits as it is, at an aligned address; bf16 has to be widened.
        write_safetensors(&path, &[("stored.bias", &bias()[0].1.cast(dtype))]).expect("write");
        let mut layer = load(&Weights::from_checkpoint(Checkpoint::open(&path).expect("open")), 4, 2);
        let run = layer.run_host(&[("input", &input(4))]).expect("run");
        assert_eq!(run.output("output").expect("output").floats(), expected(4).0, "{dtype}");
    }
}

#[test]
fn packed_weights_are_kept_and_taken_again_until_the_checkpoint_changes() {
    let dir = tempfile::tempdir().expect("dir");
    let (path, cache) = (dir.path().join("model.safetensors"), dir.path().join("cache"));
    // bf16 has to be widened, so that there is something to keep.
    let write = |scale: f32| {
        let halved: Vec<f32> = bias()[0].1.floats().iter().map(|x| x * scale).collect();
        let tensor = Tensor::float(DType::BF16, &bias()[0].1.shape, halved);
        write_safetensors(&path, &[("stored.bias", &tensor)]).expect("write");
    };
    let run = |watched: &Watch<'_>| {
        let checkpoint = Arc::new(Checkpoint::open(&path).expect("open"));
        let cached = Weights::Cached(CachedWeights::new(checkpoint, &cache).expect("cache"));
        let mut layer = load(&Weights::Watched(&cached, watched), 4, 2);
        layer.run_host(&[("input", &input(4))]).expect("run").output("output").expect("output").clone()
    };
    let files = || {
        let all = std::fs::read_dir(&cache).expect("dir").map(|e| e.expect("entry").path());
        let mut list: Vec<_> = all.filter(|p| p.extension().is_some_and(|e| e == "packed")).collect();
        list.sort();
        list
    };
    write(1.0);
    let told = std::sync::Mutex::new(Vec::new());
    let first = run(&|param, _| told.lock().expect("told").push(param.name.clone()));
    assert_eq!(first.floats(), expected(4).0);
    assert_eq!(*told.lock().expect("told"), ["bias"]);
    let kept = files();
    assert_eq!(kept.len(), 1, "{kept:?}");
    // What is kept is taken, and not written again.
    let old = std::time::UNIX_EPOCH;
    let age = || std::fs::File::open(&kept[0]).and_then(|f| f.set_modified(old)).expect("time of change");
    let is_old = || std::fs::metadata(&kept[0]).and_then(|m| m.modified()).expect("time of change") == old;
    age();
    let seen = kept[0].with_extension("seen");
    assert_eq!(run(&|_, _| ()), first);
    assert!(is_old() && !seen.exists(), "a file that has just changed is looked at again");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    for _ in 0..2 {
        assert_eq!(run(&|_, _| ()), first);
        assert!(is_old() && seen.exists() == cfg!(unix));
    }
    // A file of which any bit has changed, or that is not complete, is made anew.
    let bytes = std::fs::read(&kept[0]).expect("file");
    let of_weights = 4096 + COLS * 4;
    assert_eq!(bytes.len(), of_weights + 4);
    let flipped = |at: usize| {
        let mut damaged = bytes.clone();
        damaged[at] ^= 4;
        damaged
    };
    for damaged in [flipped(4096), flipped(of_weights - 1), flipped(of_weights), bytes[..bytes.len() - 1].to_vec()] {
        std::fs::write(&kept[0], &damaged).expect("write");
        age();
        assert_eq!(run(&|_, _| ()), first);
        assert!(!is_old());
        assert_eq!(std::fs::read(&kept[0]).expect("file"), bytes);
    }
    // Another state of the checkpoint has another file.
    write(2.0);
    std::fs::File::open(&path).and_then(|f| f.set_modified(std::time::UNIX_EPOCH)).expect("time of change");
    assert_ne!(run(&|_, _| ()), first);
    assert_eq!(files().len(), 2);
    // A cache that cannot be one.
    let checkpoint = Arc::new(Checkpoint::open(&path).expect("open"));
    assert_eq!(CachedWeights::new(checkpoint, &path).expect_err("a file").code, "weight-cache-unusable");
}

#[test]
fn many_fill_a_cache_at_once() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("model.safetensors");
    let tensor = Tensor::float(DType::BF16, &bias()[0].1.shape, bias()[0].1.floats().to_vec());
    write_safetensors(&path, &[("stored.bias", &tensor)]).expect("write");
    for round in 0..20 {
        let cache = dir.path().join(format!("cache{round}"));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let checkpoint = Arc::new(Checkpoint::open(&path).expect("open"));
                    let cached = Weights::Cached(CachedWeights::new(checkpoint, &cache).expect("cache"));
                    let mut layer = load(&cached, 4, 1);
                    let run = layer.run_host(&[("input", &input(4))]).expect("run");
                    assert_eq!(run.output("output").expect("output").floats(), expected(4).0);
                });
            }
        });
        let files = std::fs::read_dir(&cache).expect("dir").map(|e| e.expect("entry").path());
        let left: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "new")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn layers_share_a_pool() {
    let pool = Arc::new(Pool::new(3).expect("threads"));
    let tensors = bias();
    let make = || {
        let options =
            LoadOptions { max_tokens: 64, pool: Some(pool.clone()), jit: Some(kernels()), ..LoadOptions::default() };
        Layer::load(&bundle(None), &Weights::Tensors(&tensors), options).expect("load")
    };
    let layers = [make(), make()];
    std::thread::scope(|s| {
        for mut layer in layers {
            s.spawn(move || {
                for n in 0..60 {
                    let run = layer.run_host(&[("input", &input(n))]).expect("run");
                    assert_eq!(run.output("output").expect("output").floats(), expected(n).0);
                }
            });
        }
    });
}

#[test]
fn wrong_inputs_are_refused() {
    let tensors = bias();
    let mut layer = load(&Weights::Tensors(&tensors), 8, 1);
    let mut code = |name: &str, t: Tensor| layer.run_host(&[(name, &t)]).expect_err("should be refused").code;
    assert_eq!(code("x", input(2)), "input-missing");
    assert_eq!(
        code("input", Tensor::float(DType::F32, &[2, COLS + 1], vec![0.0; 2 * (COLS + 1)])),
        "input-shape-mismatch"
    );
    assert_eq!(code("input", Tensor::float(DType::F32, &[2 * COLS], vec![0.0; 2 * COLS])), "input-shape-mismatch");
    assert_eq!(code("input", Tensor::int(DType::I32, &[2, COLS], vec![0; 2 * COLS])), "input-type-mismatch");
    assert_eq!(code("input", input(9)), "too-many-tokens");
    let narrow = layer.run_host(&[("input", &input(2).cast(DType::BF16))]).expect("bf16 widens without loss");
    assert_eq!(narrow.output("output").expect("output").floats()[1], 2.0 * (1.0 + 100.0));
}

#[test]
fn wrong_weights_are_refused() {
    let code = |weights: &Weights<'_>| {
        let options = LoadOptions { max_tokens: 8, jit: Some(kernels()), ..LoadOptions::default() };
        Layer::load(&bundle(None), weights, options).expect_err("should be refused").code
    };
    assert_eq!(code(&Weights::Tensors(&[])), "tensor-missing");
    let short = vec![("bias".to_string(), Tensor::float(DType::F32, &[3], vec![0.0; 3]))];
    assert_eq!(code(&Weights::Tensors(&short)), "tensor-shape-mismatch");
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("model.safetensors");
    write_safetensors(&path, &[("other", &short[0].1)]).expect("write");
    assert_eq!(code(&Weights::from_checkpoint(Checkpoint::open(&path).expect("open"))), "tensor-missing");
    write_safetensors(&path, &[("stored.bias", &short[0].1)]).expect("write");
    assert_eq!(code(&Weights::from_checkpoint(Checkpoint::open(&path).expect("open"))), "tensor-shape-mismatch");
}

#[test]
fn what_the_bundle_lacks_is_named() {
    let tensors = bias();
    let code = |bundle: &Bundle, options: LoadOptions| {
        Layer::load(bundle, &Weights::Tensors(&tensors), options).expect_err("should be refused").code
    };
    let with = |device, max_tokens| LoadOptions { device, max_tokens, ..LoadOptions::default() };
    assert_eq!(code(&bundle(None), with(Device::Cpu, 8)), "cpu-object-invalid");
    assert_eq!(code(&bundle(Some(b"no object file".to_vec())), with(Device::Cpu, 8)), "cpu-object-invalid");
    assert_eq!(code(&bundle(None), with(Device::Cpu, MAX_TOKENS + 1)), "too-many-tokens");
    #[cfg(feature = "emulator")]
    assert_eq!(code(&bundle(None), with(Device::parse("emulator:sm_80").expect("device"), 8)), "target-not-in-bundle");
}

/// Machine code in an ELF file, as a bundle on disk has it: copies items of one float from the first buffer to the second.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn object_files_are_mapped_and_called() {
    #[rustfmt::skip]
    let copy = [
        0x48, 0x8B, 0x07,             // mov rax, [rdi]          the buffer pointers
        0x48, 0x8B, 0x08,             // mov rcx, [rax]
        0x4C, 0x8B, 0x40, 0x08,       // mov r8, [rax + 8]
        0x48, 0x39, 0xD6,             // cmp rsi, rdx            begin, end
        0x73, 0x0D,                   // jae to ret
        0x44, 0x8B, 0x0C, 0xB1,       // mov r9d, [rcx + rsi*4]
        0x45, 0x89, 0x0C, 0xB0,       // mov [r8 + rsi*4], r9d
        0x48, 0xFF, 0xC6,             // inc rsi
        0xEB, 0xEE,                   // jmp to cmp
        0xC3,                         // ret
    ];
    let bundle = copy_bundle(elf(&copy, &["copy"], false));
    let dir = tempfile::tempdir().expect("dir");
    bundle.write(dir.path().join("b")).expect("write");
    let bundle = Bundle::open(dir.path().join("b")).expect("open");
    let options = LoadOptions { max_tokens: 1000, ..LoadOptions::default() };
    let mut layer = Layer::load(&bundle, &Weights::Tensors(&[]), options).expect("load");
    for n in [0, 1, 1000] {
        let run = layer.run_host(&[("input", &input(n))]).expect("run");
        assert_eq!(run.output("output").expect("output").floats(), input(n).floats());
    }

    let code = |object: Vec<u8>| {
        Layer::load(&copy_bundle(object), &Weights::Tensors(&[]), LoadOptions::default()).expect_err("refused").code
    };
    assert_eq!(code(elf(&copy, &["other"], false)), "cpu-object-invalid");
    assert_eq!(code(elf(&copy, &["copy"], true)), "cpu-object-invalid", "an undefined symbol");
}

#[test]
fn a_processor_without_the_features_is_told_before_anything_runs() {
    let mut bundle = bundle(Some(vec![1, 2, 3]));
    let mut manifest = bundle.manifest().clone();
    manifest.targets[0].requires = vec!["avx1024".into()];
    let files = bundle.files().map(|(p, c)| (p.to_string(), c.to_vec())).collect();
    bundle = Bundle::new(manifest, files).expect("valid");
    let tensors = bias();
    let d = Layer::load(&bundle, &Weights::Tensors(&tensors), LoadOptions::default()).expect_err("refused");
    assert_eq!(d.code, "cpu-features-missing");
    assert!(d.message.contains("avx1024"), "{d}");
}

/// On machines without a GPU: an error with a remedy, not a panic.
#[cfg(feature = "cuda")]
#[test]
fn cuda_says_what_is_missing() {
    use moec_runtime::cuda::{CudaDevice, device_count};
    match device_count() {
        Err(d) => {
            assert!(
                ["cuda-driver-missing", "cuda-driver-too-old", "cuda-call-failed"].contains(&d.code.as_str()),
                "{d}"
            );
            let tensors = bias();
            let options = LoadOptions { device: Device::Cuda { ordinal: 0 }, ..LoadOptions::default() };
            assert_eq!(
                Layer::load(&bundle(None), &Weights::Tensors(&tensors), options).expect_err("none").code,
                d.code
            );
        }
        Ok(n) => assert_eq!(CudaDevice::open(n + 1).expect_err("there are fewer").code, "cuda-device-missing"),
    }
}
