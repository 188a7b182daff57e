//! Layers whose tokens and experts are spread over ranks, against the same layers on one.

use moec::ranks::{PlacedLayer, RankLayer, RankOptions, StepResult, join_tokens, split_evenly, split_tokens, threads};
use moec::{
    Checkpoint, CompileRequest, Device, Diagnostic, Model, ModelLayer, Placement, Session, Target, Tensor, Weights,
    compile_placed,
};
use moec_ir::DType;
use moec_ir::graph::{Op, Wire, round_on_wire};
use moec_runtime::cpu::Pool;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance").join(name)
}

/// A recorded layer, its input and the output that another implementation gave.
struct Recorded {
    layer: ModelLayer,
    inputs: Vec<(String, Tensor)>,
    golden: Tensor,
    weights: Arc<Checkpoint>,
}

fn recorded(dir: &Path, number: u32) -> Recorded {
    let file = Checkpoint::open(dir.join(format!("golden.layer{number}.safetensors"))).expect("golden");
    let tensor = |name: &str| file.tensor(name).expect("readable").and_then(|t| t.to_tensor());
    let dtype = tensor("input").map(|t| t.dtype);
    let layer = Model::open(dir).expect("model").layer_as(Some(number), dtype).expect("layer");
    let inputs = layer.graph.inputs.iter().map(|i| (i.name.clone(), tensor(&i.name).expect("input"))).collect();
    let weights = Arc::new(Checkpoint::open(dir).expect("checkpoint"));
    Recorded { layer, inputs, golden: tensor("output").expect("output"), weights }
}

fn request(layer: &ModelLayer) -> CompileRequest<'_> {
    let cpu = Target::by_name("cpu").into_iter().collect();
    CompileRequest { info: layer.info.clone(), ..CompileRequest::new(&layer.graph, cpu) }
}

fn named(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(n, t)| (n.as_str(), t)).collect()
}

/// The outputs of the layer on one rank.
fn alone(r: &Recorded, inputs: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let compiled = moec::compile(&request(&r.layer)).expect("compiles");
    let weights = Weights::Checkpoint(r.weights.clone());
    let n = inputs[0].1.shape[0] as u64;
    let mut session = Session::load(&compiled.bundle, &weights, Device::Cpu, n.max(1)).expect("loads");
    session.run(&named(inputs)).expect("runs").outputs
}

fn options(max_tokens: u64) -> RankOptions {
    RankOptions { device: Device::Cpu, max_tokens, pool: Some(Arc::new(Pool::new(1).expect("a pool"))) }
}

/// One step on ranks with `counts` tokens each; the outputs in token order, and what each rank did.
fn together(
    placed: &Arc<PlacedLayer>,
    weights: &Weights<'_>,
    map: &Placement,
    inputs: &[(String, Tensor)],
    counts: &[usize],
) -> Result<(Vec<(String, Tensor)>, Vec<StepResult>), Diagnostic> {
    let parts = parts(inputs, counts);
    let most = counts.iter().copied().max().unwrap_or(0) as u64;
    let steps = threads::run(threads::connect(counts.len() as u32, LONG), |comm| {
        let rank = moec::ranks::Comm::rank(&comm) as usize;
        let mut layer = RankLayer::join(placed.clone(), comm, map.clone(), weights, options(most.max(1)))?;
        layer.step(&named(&parts[rank]))
    })?;
    Ok((gather(&steps), steps))
}

fn parts(inputs: &[(String, Tensor)], counts: &[usize]) -> Vec<Vec<(String, Tensor)>> {
    let mut ranks = vec![Vec::new(); counts.len()];
    for (name, tensor) in inputs {
        for (rank, part) in ranks.iter_mut().zip(split_tokens(tensor, counts).expect("as many tokens")) {
            rank.push((name.clone(), part));
        }
    }
    ranks
}

fn gather(steps: &[StepResult]) -> Vec<(String, Tensor)> {
    let outputs = steps[0].outputs.iter().enumerate().map(|(i, (name, _))| {
        let parts: Vec<&Tensor> = steps.iter().map(|s| &s.outputs[i].1).collect();
        (name.clone(), join_tokens(&parts).expect("parts of one tensor"))
    });
    outputs.collect()
}

/// Zeros of both signs and every NaN count as what they are.
fn bits(t: &Tensor) -> Vec<u8> {
    t.to_bytes()
}

fn assert_same(got: &[(String, Tensor)], want: &[(String, Tensor)], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for ((name, got), (other, want)) in got.iter().zip(want) {
        assert_eq!((name, &got.shape), (other, &want.shape), "{what}");
        assert!(bits(got) == bits(want), "{what}: `{name}` has other bits, error {:.2e}", got.worst_error(want));
    }
}

fn recorded_layers() -> Vec<(PathBuf, u32)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder("")).expect("folder") {
        let dir = entry.expect("entry").path();
        let has = |l: &u32| dir.join(format!("golden.layer{l}.safetensors")).exists();
        out.extend((0..8).filter(has).map(|l| (dir.clone(), l)));
    }
    out.sort();
    out
}

#[test]
fn every_recorded_layer_has_the_same_bits_on_two_three_and_four_ranks() {
    let layers = recorded_layers();
    assert!(layers.len() >= 30, "{}", layers.len());
    for (dir, number) in layers {
        let r = recorded(&dir, number);
        let what = format!("{} layer {number}", dir.file_name().unwrap_or_default().display());
        let want = alone(&r, &r.inputs);
        let tolerance = if r.golden.dtype == DType::F32 { 1e-5 } else { 1e-2 };
        let n_tokens = r.inputs[0].1.shape[0];
        for n_ranks in [2, 3, 4] {
            let map = Placement::even(n_experts(&r.layer), n_ranks).expect("a map");
            let placed = compile_placed(&request(&r.layer), map.most_local(), None, &mut |_| {}).expect(&what);
            let weights = Weights::Checkpoint(r.weights.clone());
            let counts = split_evenly(n_tokens, n_ranks);
            let (got, _) = together(&Arc::new(placed), &weights, &map, &r.inputs, &counts).expect(&what);
            assert_same(&got, &want, &format!("{what}, {n_ranks} ranks"));
            let output = &got[0].1;
            assert!(output.worst_error(&r.golden) < tolerance * 4.0, "{what}: {}", output.worst_error(&r.golden));
        }
    }
}

fn n_experts(layer: &ModelLayer) -> u32 {
    let of = |op: &Op| if let Op::Permute { n_experts } = op { Some(*n_experts) } else { None };
    layer.graph.nodes.iter().find_map(|n| of(&n.op)).expect("a layer with experts")
}

#[test]
fn a_wire_of_codes_computes_the_layer_that_rounds_so() {
    let r = recorded(&folder("qwen3_moe.bf16"), 0);
    let map = Placement::even(n_experts(&r.layer), 3).expect("a map");
    for name in ["fp8-token", "fp8-block", "mxfp8", "mxfp4", "nvfp4"] {
        let wire = Wire::Codes(moec_ir::ActQuant::from_name(name).expect("a format"));
        let rounded = ModelLayer { graph: round_on_wire(&r.layer.graph, wire).expect("rounds"), ..r.layer.clone() };
        let r = Recorded { layer: rounded, ..recorded(&folder("qwen3_moe.bf16"), 0) };
        let want = alone(&r, &r.inputs);
        let placed = compile_placed(&request(&r.layer), map.most_local(), None, &mut |_| {}).expect(name);
        let weights = Weights::Checkpoint(r.weights.clone());
        let n = r.inputs[0].1.shape[0];
        let (got, _) = together(&Arc::new(placed), &weights, &map, &r.inputs, &[n - 1, 0, 1]).expect(name);
        assert_same(&got, &want, name);
    }
}
