//! Layers on ranks that are threads, and the same layers on one.

use moec::ranks::{Comm, PlacedLayer, RankLayer, RankOptions, StepResult, join_tokens, split_tokens, threads};
use moec::{
    Checkpoint, CompileRequest, Device, Diagnostic, Model, ModelLayer, Placement, Session, Target, Tensor, Weights,
};
use moec_ir::DType;
use moec_ir::graph::Op;
use moec_runtime::cpu::Pool;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Longer than any step.
pub const LONG: Duration = Duration::from_secs(60);

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance").join(name)
}

/// A recorded layer, its input and the output that another implementation gave.
pub struct Recorded {
    pub layer: ModelLayer,
    pub inputs: Vec<(String, Tensor)>,
    pub golden: Option<Tensor>,
    pub weights: Arc<Checkpoint>,
}

pub fn recorded(dir: &Path, number: u32) -> Recorded {
    let file = Checkpoint::open(dir.join(format!("golden.layer{number}.safetensors"))).expect("golden");
    let tensor = |name: &str| file.tensor(name).expect("readable").and_then(|t| t.to_tensor());
    let dtype = tensor("input").map(|t| t.dtype);
    let layer = Model::open(dir).expect("model").layer_as(Some(number), dtype).expect("layer");
    let inputs = layer.graph.inputs.iter().map(|i| (i.name.clone(), tensor(&i.name).expect("input"))).collect();
    let weights = Arc::new(Checkpoint::open(dir).expect("checkpoint"));
    Recorded { layer, inputs, golden: tensor("output"), weights }
}

pub fn request(layer: &ModelLayer) -> CompileRequest<'_> {
    let cpu = Target::by_name("cpu").into_iter().collect();
    CompileRequest { info: layer.info.clone(), ..CompileRequest::new(&layer.graph, cpu) }
}

pub fn named(inputs: &[(String, Tensor)]) -> Vec<(&str, &Tensor)> {
    inputs.iter().map(|(n, t)| (n.as_str(), t)).collect()
}

/// The outputs of the layer on one rank.
pub fn alone(r: &Recorded, inputs: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let compiled = moec::compile(&request(&r.layer)).expect("compiles");
    let weights = Weights::Checkpoint(r.weights.clone());
    let n = inputs[0].1.shape[0] as u64;
    let mut session = Session::load(&compiled.bundle, &weights, Device::Cpu, n.max(1)).expect("loads");
    session.run(&named(inputs)).expect("runs").outputs
}

pub fn options(max_tokens: u64) -> RankOptions {
    // Few slots at once: what comes is often computed in parts.
    let pool = Some(Arc::new(Pool::new(1).expect("a pool")));
    RankOptions { pool, max_slots: 5, ..RankOptions::new(Device::Cpu, max_tokens) }
}

/// Tensors by name, in the layer's order.
pub type Outputs = Vec<(String, Tensor)>;

/// One step on ranks with `counts` tokens each; the outputs in token order, and what each rank did.
pub fn together(
    placed: &Arc<PlacedLayer>,
    weights: &Weights<'_>,
    map: &Placement,
    inputs: &[(String, Tensor)],
    counts: &[usize],
) -> Result<(Outputs, Vec<StepResult>), Diagnostic> {
    let parts = parts(inputs, counts);
    let most = counts.iter().copied().max().unwrap_or(0) as u64;
    let steps = threads::run(threads::connect(counts.len() as u32, LONG), |comm| {
        let rank = comm.rank() as usize;
        let mut layer = RankLayer::join(placed.clone(), comm, map.clone(), weights, options(most.max(1)))?;
        layer.step(&named(&parts[rank]))
    })?;
    Ok((gather(&steps), steps))
}

pub fn parts(inputs: &[(String, Tensor)], counts: &[usize]) -> Vec<Vec<(String, Tensor)>> {
    let mut ranks = vec![Vec::new(); counts.len()];
    for (name, tensor) in inputs {
        for (rank, part) in ranks.iter_mut().zip(split_tokens(tensor, counts).expect("as many tokens")) {
            rank.push((name.clone(), part));
        }
    }
    ranks
}

pub fn gather(steps: &[StepResult]) -> Vec<(String, Tensor)> {
    let outputs = steps[0].outputs.iter().enumerate().map(|(i, (name, _))| {
        let parts: Vec<&Tensor> = steps.iter().map(|s| &s.outputs[i].1).collect();
        (name.clone(), join_tokens(&parts).expect("parts of one tensor"))
    });
    outputs.collect()
}

/// Zeros of both signs and every NaN count as what they are.
pub fn bits(t: &Tensor) -> Vec<u8> {
    t.to_bytes()
}

pub fn assert_same(got: &[(String, Tensor)], want: &[(String, Tensor)], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for ((name, got), (other, want)) in got.iter().zip(want) {
        assert_eq!((name, &got.shape), (other, &want.shape), "{what}");
        assert!(bits(got) == bits(want), "{what}: `{name}` has other bits, error {:.2e}", got.worst_error(want));
    }
}

/// A recorded layer in bf16, whose record is of another type.
pub fn in_bf16(dir: &Path, number: u32) -> Recorded {
    let file = Checkpoint::open(dir.join(format!("golden.layer{number}.safetensors"))).expect("golden");
    let layer = Model::open(dir).expect("model").layer_as(Some(number), Some(DType::BF16)).expect("layer");
    let input = |i: &moec_ir::graph::Input| {
        let t = file.tensor(&i.name).expect("readable").and_then(|t| t.to_tensor()).expect("input");
        (i.name.clone(), if i.ty.dtype.is_float() { t.cast(i.ty.dtype) } else { t })
    };
    let inputs = layer.graph.inputs.iter().map(input).collect();
    Recorded { layer, inputs, golden: None, weights: Arc::new(Checkpoint::open(dir).expect("checkpoint")) }
}

pub fn n_experts(layer: &ModelLayer) -> u32 {
    let of = |op: &Op| if let Op::Permute { n_experts } = op { Some(*n_experts) } else { None };
    layer.graph.nodes.iter().find_map(|n| of(&n.op)).expect("a layer with experts")
}
