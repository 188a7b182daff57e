//! A row has the same bits whatever runs beside it: with one thread and with eight, alone and among a thousand, routed anyhow.

mod routings;

use moec::{
    Activations, Bundle, Checkpoint, CompileRequest, DType, Layer, LayerOptions, LoadOptions, Model, ModelLayer, Part,
    Target, Tensor, Weights,
};
use moec_ir::ActQuant;
use moec_ir::target::TargetKind;
use moec_runtime::cpu::Pool;
use routings::routings;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Token counts: none, one, fewer than threads, and more than fit any block of rows.
const TOKENS: [usize; 4] = [0, 1, 3, 1025];
const THREADS: std::ops::RangeInclusive<usize> = 1..=8;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance")
}

/// Every recorded layer: its checkpoint and number.
fn recorded() -> Vec<(PathBuf, u32)> {
    let entries = std::fs::read_dir(folder()).expect("the conformance set is there");
    let mut dirs: Vec<PathBuf> = entries.map(|e| e.expect("readable").path()).collect();
    dirs.sort();
    let has = |dir: &Path, layer: &u32| dir.join(format!("golden.layer{layer}.safetensors")).exists();
    dirs.iter().flat_map(|dir| (0..8).filter(|l| has(dir, l)).map(|l| (dir.clone(), l)).collect::<Vec<_>>()).collect()
}

fn pools() -> Vec<Arc<Pool>> {
    THREADS.map(|n| Arc::new(Pool::new(n).expect("threads start"))).collect()
}

fn compiled(layer: &ModelLayer) -> Bundle {
    let cpu: Vec<_> = Target::by_name("cpu").into_iter().collect();
    assert_eq!(cpu[0].kind, TargetKind::Cpu);
    moec::compile(&CompileRequest::new(&layer.graph, cpu)).expect("compiles").bundle
}

/// The layer of a bundle on some threads, for any of [`TOKENS`].
fn load(bundle: &Bundle, dir: &Path, pool: &Arc<Pool>) -> Layer {
    let weights = Weights::from_checkpoint(Checkpoint::open(dir).expect("checkpoint"));
    let options = LoadOptions { max_tokens: 1025, pool: Some(pool.clone()), ..LoadOptions::default() };
    Layer::load(bundle, &weights, options).expect("loads")
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

/// Runs the first rows of `inputs` on every number of threads; all have the bits of `want`, which is what all rows on one thread
/// give.
fn check(name: &str, bundle: &Bundle, dir: &Path, pools: &[Arc<Pool>], inputs: &[(&str, Tensor)]) {
    let mut want: Option<Tensor> = None;
    for pool in pools {
        let mut layer = load(bundle, dir, pool);
        for n in TOKENS.into_iter().rev() {
            let rows: Vec<(&str, Tensor)> = inputs.iter().map(|(name, t)| (*name, first(t, n))).collect();
            let rows: Vec<(&str, &Tensor)> = rows.iter().map(|(name, t)| (*name, t)).collect();
            let result = layer.run_host(&rows).expect("runs");
            let got = result.output("output").expect("an output");
            let want = first(want.get_or_insert_with(|| got.clone()), n);
            assert!(got.to_bytes() == want.to_bytes(), "{name}: {n} tokens on {} threads differ", pool.n_threads());
        }
    }
}

#[test]
fn recorded_layers_on_any_number_of_threads() {
    let (pools, layers) = (pools(), recorded());
    let mut n_int16 = 0;
    for (dir, number) in &layers {
        let name = format!("layer {number} of {}", dir.display());
        let layer = Model::open(dir).expect("model").layer(Some(*number)).expect("layer");
        let inputs: Vec<(&str, Tensor)> = layer
            .graph
            .inputs
            .iter()
            .map(|i| (i.name.as_str(), moec::random_tensor(&i.ty, 1025, 7, &i.name)))
            .collect();
        check(&name, &compiled(&layer), dir, &pools, &inputs);
        let has_int16 = layer.graph.params.iter().any(|p| p.stored.as_ref().is_some_and(|f| f.takes_int16_rows()));
        if has_int16 {
            let rounded =
                layer.clone().with_activations(Activations::Rounded(ActQuant::INT16)).expect("rows of integers");
            check(&format!("{name}, int16"), &compiled(&rounded), dir, &pools, &inputs);
            n_int16 += 1;
        }
    }
    assert!(layers.len() >= 60 && n_int16 >= 4, "{} layers, {n_int16} with rows of integers", layers.len());
}

#[test]
fn any_routing_on_any_number_of_threads() {
    let pools = pools();
    for name in ["mixtral.bf16", "mixtral.f32", "gpt_oss.mxfp4-gptoss.h256", "qwen3_moe.nvfp4-ct", "qwen3_moe.mxfp8"] {
        let dir = folder().join(name);
        let part = Part::Experts { ids: DType::I64, weights: DType::F32 };
        let options = LayerOptions { part, ..LayerOptions::default() };
        let layer = Model::open(&dir).expect("model").layer_with(Some(0), &options).expect("layer");
        let facts = layer.facts.as_ref().expect("a model's layer");
        let (n, top_k) = (facts.n_experts as i64, facts.top_k as usize);
        let bundle = compiled(&layer);
        let x = moec::random_tensor(&layer.graph.inputs[0].ty, 1025, 5, "input");
        let shares =
            Tensor::float(DType::F32, &[1025, top_k], (0..1025 * top_k).map(|i| 1.0 / (1 + i % 7) as f32).collect());
        for (routing, ids) in routings(n, top_k) {
            let ids = Tensor::int(DType::I64, &[1025, top_k], ids);
            let inputs = [("input", x.clone()), ("topk_ids", ids), ("topk_weights", shares.clone())];
            check(&format!("{name}, {routing}"), &bundle, &dir, &pools, &inputs);
        }
    }
}
