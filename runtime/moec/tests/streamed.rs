//! Experts that come from their file as they are needed give the bits of experts that are all in memory: under any limit, on any
//! number of threads, however tokens are routed.
#![cfg(target_os = "linux")]

mod routings;

use moec::{
    Bundle, CachedWeights, Checkpoint, CompileRequest, DType, Layer, LayerOptions, LoadOptions, Model, ModelLayer,
    Part, Target, Tensor, Weights,
};
use moec_ir::diag::Diagnostic;
use moec_runtime::cpu::Pool;
use routings::routings;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance")
}

fn compiled(layer: &ModelLayer) -> Bundle {
    moec::compile(&CompileRequest::new(&layer.graph, Target::by_name("cpu").into_iter().collect()))
        .expect("compiles")
        .bundle
}

fn pools() -> Vec<Arc<Pool>> {
    (1..=8).map(|n| Arc::new(Pool::new(n).expect("threads start"))).collect()
}

/// A layer whose packed weights are kept in a folder.
struct Kept<'a> {
    bundle: &'a Bundle,
    checkpoint: &'a Path,
    cache: tempfile::TempDir,
}

impl Kept<'_> {
    fn new<'a>(bundle: &'a Bundle, checkpoint: &'a Path) -> Kept<'a> {
        Kept { bundle, checkpoint, cache: tempfile::tempdir().expect("a folder") }
    }

    fn load(&self, pool: &Arc<Pool>, memory_limit: Option<u64>) -> Result<Layer, Diagnostic> {
        let checkpoint = Arc::new(Checkpoint::open(self.checkpoint)?);
        let weights = Weights::Cached(CachedWeights::new(checkpoint, self.cache.path())?);
        let options =
            LoadOptions { max_tokens: 1025, pool: Some(pool.clone()), memory_limit, ..LoadOptions::default() };
        Layer::load(self.bundle, &weights, options)
    }

    /// The least limit, as the refusal of a smaller one says.
    fn least(&self, pool: &Arc<Pool>) -> u64 {
        let d = self.load(pool, Some(1)).expect_err("nothing fits one byte");
        assert_eq!(d.code, "memory-limit-too-small");
        let help = d.help.expect("the least limit");
        help.split(' ').find_map(|word| word.parse().ok()).expect("a number of bytes")
    }
}

/// The first `n` rows.
fn first(t: &Tensor, n: usize) -> Tensor {
    let (width, shape) = (t.elements() / t.shape[0], [&[n], &t.shape[1..]].concat());
    if t.dtype.is_float() {
        Tensor::float(t.dtype, &shape, t.floats()[..n * width].to_vec())
    } else {
        Tensor::int(t.dtype, &shape, t.ints()[..n * width].to_vec())
    }
}

fn run(layer: &mut Layer, inputs: &[(&str, Tensor)], n: usize) -> Vec<u8> {
    let rows: Vec<(&str, Tensor)> = inputs.iter().map(|(name, t)| (*name, first(t, n))).collect();
    let rows: Vec<(&str, &Tensor)> = rows.iter().map(|(name, t)| (*name, t)).collect();
    layer.run_host(&rows).expect("runs").output("output").expect("an output").to_bytes()
}

/// Under a limit of one expert, of two, of half of all and of all: the bits of a layer without a limit.
fn check(name: &str, kept: &Kept<'_>, pools: &[Arc<Pool>], inputs: &[(&str, Tensor)], tokens: &[usize]) {
    let mut free = kept.load(&pools[1], None).expect("loads");
    assert_eq!(free.expert_memory(), None);
    let want: Vec<Vec<u8>> = tokens.iter().map(|&n| run(&mut free, inputs, n)).collect();
    let least = kept.least(&pools[0]);
    let d = kept.load(&pools[0], Some(least - 1)).expect_err("a byte too few");
    assert_eq!(d.code, "memory-limit-too-small");
    let n_experts = free.manifest().layer.facts.get("experts").copied().unwrap_or(4);
    for (pool, limit) in pools.iter().zip([least, 2 * least, least * n_experts, 1 << 40].into_iter().cycle()) {
        let mut layer = kept.load(pool, Some(limit)).expect("loads");
        // Twice: the second time some experts are there.
        for _ in 0..2 {
            for (&n, want) in tokens.iter().zip(&want) {
                let got = run(&mut layer, inputs, n);
                assert!(got == *want, "{name}: {n} tokens on {} threads within {limit} bytes", pool.n_threads());
            }
        }
        let memory = layer.expert_memory().expect("limited");
        assert!(memory.limit == limit && memory.peak <= limit && memory.resident <= memory.peak, "{memory:?}");
    }
}

#[test]
fn recorded_layers_within_any_limit() {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(folder())
        .expect("the conformance set is there")
        .map(|e| e.expect("readable").path())
        .collect();
    dirs.sort();
    let (pools, mut n_layers) = (pools(), 0);
    for dir in dirs {
        for number in (0..8).filter(|l| dir.join(format!("golden.layer{l}.safetensors")).exists()) {
            let layer = Model::open(&dir).expect("model").layer(Some(number)).expect("layer");
            let random = |i: &moec_ir::graph::Input| (i.name.clone(), moec::random_tensor(&i.ty, 1025, 7, &i.name));
            let inputs: Vec<(String, Tensor)> = layer.graph.inputs.iter().map(random).collect();
            let inputs: Vec<(&str, Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
            let bundle = compiled(&layer);
            let name = format!("layer {number} of {}", dir.display());
            check(&name, &Kept::new(&bundle, &dir), &pools, &inputs, &[0, 1, 3, 130]);
            n_layers += 1;
        }
    }
    assert!(n_layers >= 60, "{n_layers} layers");
}

#[test]
fn any_routing_within_any_limit() {
    let pools = pools();
    for name in ["mixtral.bf16", "mixtral.f32", "gpt_oss.mxfp4-gptoss.h256", "qwen3_moe.nvfp4-ct", "qwen3_moe.mxfp8"] {
        let dir = folder().join(name);
        let part = Part::Experts { ids: DType::I64, weights: DType::F32 };
        let options = LayerOptions { part, ..LayerOptions::default() };
        let layer = Model::open(&dir).expect("model").layer_with(Some(0), &options).expect("layer");
        let facts = layer.facts.as_ref().expect("a model's layer");
        let (n, top_k) = (facts.n_experts as i64, facts.top_k as usize);
        let bundle = compiled(&layer);
        let kept = Kept::new(&bundle, &dir);
        let x = moec::random_tensor(&layer.graph.inputs[0].ty, 1025, 5, "input");
        let shares =
            Tensor::float(DType::F32, &[1025, top_k], (0..1025 * top_k).map(|i| 1.0 / (1 + i % 7) as f32).collect());
        for (routing, ids) in routings(n, top_k) {
            let ids = Tensor::int(DType::I64, &[1025, top_k], ids);
            let inputs = [("input", x.clone()), ("topk_ids", ids), ("topk_weights", shares.clone())];
            check(&format!("{name}, {routing}"), &kept, &pools, &inputs, &[1, 3, 1025]);
        }
    }
}

#[test]
fn launches_of_several_threads_take_turns() {
    let dir = folder().join("mixtral.f32");
    let layer = Model::open(&dir).expect("model").layer(Some(0)).expect("layer");
    let bundle = compiled(&layer);
    let (kept, pool) = (Kept::new(&bundle, &dir), Arc::new(Pool::new(2).expect("threads")));
    let x = moec::random_tensor(&layer.graph.inputs[0].ty, 5, 3, "input");
    let want = run(&mut kept.load(&pool, None).expect("loads"), &[("input", x.clone())], 5);
    let limited = kept.load(&pool, Some(kept.least(&pool))).expect("loads");
    let cpu = limited.cpu().expect("on the CPU");
    let outputs = &limited.manifest().outputs;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut memory = vec![0u8; cpu.launch_bytes(5).expect("bytes") as usize];
                let input = x.to_bytes();
                for _ in 0..20 {
                    let mut out: Vec<Vec<u64>> =
                        outputs.iter().map(|o| vec![0; (o.ty.bytes(5) as usize).div_ceil(8)]).collect();
                    let pointers: Vec<*mut u8> = out.iter_mut().map(|o| o.as_mut_ptr().cast()).collect();
                    // SAFETY: memory of the size that is asked for, and tensors of the layer's types at five tokens.
                    unsafe {
                        cpu.launch_in(memory.as_mut_ptr(), memory.len() as u64, 5, &[input.as_ptr()], &pointers)
                            .expect("launches");
                    }
                    let bytes: Vec<u8> = out[0].iter().flat_map(|w| w.to_ne_bytes()).collect();
                    assert!(bytes[..want.len()] == want[..]);
                }
            });
        }
    });
}

#[test]
fn experts_without_a_file_are_refused_or_written_to_one() {
    let dir = folder().join("mixtral.bf16");
    let layer = Model::open(&dir).expect("model").layer(Some(0)).expect("layer");
    let bundle = compiled(&layer);
    let folder = tempfile::tempdir().expect("a folder");
    let load = |memory_limit, spill_folder| {
        let options = LoadOptions { max_tokens: 9, memory_limit, spill_folder, ..LoadOptions::default() };
        Layer::load(&bundle, &Weights::Random { seed: 3 }, options)
    };
    assert_eq!(load(Some(1 << 30), None).expect_err("no file").code, "memory-limit-needs-file");
    let emulated = LoadOptions {
        device: moec::Device::Emulator { target: "sm_90a" },
        memory_limit: Some(1 << 30),
        ..LoadOptions::default()
    };
    let d = Layer::load(&bundle, &Weights::Random { seed: 3 }, emulated).expect_err("no limit there");
    assert_eq!(d.code, "memory-limit-unsupported");
    let x = moec::random_tensor(&layer.graph.inputs[0].ty, 9, 3, "input");
    let run = |mut layer: Layer| run(&mut layer, &[("input", x.clone())], 9);
    let limited = load(Some(1 << 30), Some(folder.path().to_path_buf())).expect("loads");
    assert_eq!(std::fs::read_dir(folder.path()).expect("folder").count(), 0, "the files have no names");
    assert!(run(limited) == run(load(None, None).expect("loads")));
}

#[test]
fn a_file_that_has_become_shorter_is_an_error_and_no_crash() {
    let dir = folder().join("mixtral.f32");
    let layer = Model::open(&dir).expect("model").layer(Some(0)).expect("layer");
    let bundle = compiled(&layer);
    let (kept, pool) = (Kept::new(&bundle, &dir), Arc::new(Pool::new(2).expect("threads")));
    let x = moec::random_tensor(&layer.graph.inputs[0].ty, 64, 3, "input");
    let mut limited = kept.load(&pool, Some(1 << 30)).expect("loads");
    for entry in std::fs::read_dir(kept.cache.path()).expect("the cache") {
        let file = std::fs::OpenOptions::new().write(true).open(entry.expect("entry").path()).expect("opens");
        // Those of experts, not of the router.
        if file.metadata().expect("metadata").len() > 32 << 10 {
            file.set_len(4096).expect("shortens");
        }
    }
    let d = limited.run_host(&[("input", &x)]).expect_err("there is nothing to read");
    assert_eq!(d.code, "experts-unreadable");
}
