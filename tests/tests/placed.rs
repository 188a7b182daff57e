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
    golden: Option<Tensor>,
    weights: Arc<Checkpoint>,
}

fn recorded(dir: &Path, number: u32) -> Recorded {
    let file = Checkpoint::open(dir.join(format!("golden.layer{number}.safetensors"))).expect("golden");
    let tensor = |name: &str| file.tensor(name).expect("readable").and_then(|t| t.to_tensor());
    let dtype = tensor("input").map(|t| t.dtype);
    let layer = Model::open(dir).expect("model").layer_as(Some(number), dtype).expect("layer");
    let inputs = layer.graph.inputs.iter().map(|i| (i.name.clone(), tensor(&i.name).expect("input"))).collect();
    let weights = Arc::new(Checkpoint::open(dir).expect("checkpoint"));
    Recorded { layer, inputs, golden: tensor("output"), weights }
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

/// On `ranks` ranks the layer has the bits that it has on one, whoever has how many tokens. The programs are compiled once.
fn has_the_same_bits(r: &Recorded, ranks: &[u32], what: &str) {
    let want = alone(r, &r.inputs);
    let n_tokens = r.inputs[0].1.shape[0];
    let map = |n: u32| Placement::even(n_experts(&r.layer), n).expect("a map");
    let n_local = ranks.iter().map(|&n| map(n).most_local()).max().expect("some ranks");
    let placed = Arc::new(compile_placed(&request(&r.layer), n_local, None, &mut |_| {}).expect(what));
    let weights = Weights::Checkpoint(r.weights.clone());
    for &n in ranks {
        let counts = split_evenly(n_tokens, n);
        let (got, _) = together(&placed, &weights, &map(n), &r.inputs, &counts).expect(what);
        assert_same(&got, &want, &format!("{what}, {n} ranks"));
        if let Some(golden) = &r.golden {
            let tolerance = if golden.dtype == DType::F32 { 1e-5 } else { 1e-2 };
            let error = got[0].1.relative_error(golden);
            assert!(error < tolerance, "{what}: {error:.2e} from what transformers computed");
        }
    }
}

/// The published checkpoints: bf16, and the formats of quantised weights.
#[test]
fn every_checkpoint_has_the_same_bits_on_two_three_and_four_ranks() {
    let mut n = 0;
    for entry in std::fs::read_dir(folder("")).expect("folder") {
        let dir = entry.expect("entry").path();
        for number in (0..8).filter(|l| dir.join(format!("golden.layer{l}.safetensors")).exists()) {
            let what = format!("{} layer {number}", dir.file_name().unwrap_or_default().display());
            has_the_same_bits(&recorded(&dir, number), &[2, 3, 4], &what);
            n += 1;
        }
    }
    assert!(n >= 30, "{n}");
}

#[test]
fn every_family_in_bf16_has_the_same_bits_on_two_three_and_four_ranks() {
    let families = moec_tests::recorded::families();
    assert!(families.len() >= 70);
    for family in families {
        has_the_same_bits(&in_bf16(&family.dir, family.layer), &[2, 3, 4], &format!("{} in bf16", family.family));
    }
}

/// Codes and scales of a rank's experts are those of the whole layer: one format for each family, by turns.
#[test]
fn every_family_with_quantised_weights_has_the_same_bits_on_three_ranks() {
    use moec_tests::quantised::{self, Published};
    let formats = [Published::Fp8Block, Published::Mxfp4, Published::Nvfp4, Published::Int4, Published::Mxfp8];
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("placed");
    let (mut n, mut none) = (0, Vec::new());
    for (i, family) in moec_tests::recorded::families().into_iter().enumerate() {
        let dir = |what: &str| scratch.join(format!("{}-{}.{what}", family.family, family.layer));
        let (wide, coded, floats) = (dir("wide"), dir("coded"), dir("floats"));
        let inputs = moec_tests::wide::write(&family, &wide).expect("a wide form");
        let open = |dir: &Path| Model::open(dir).expect("model").layer_as(Some(family.layer), Some(DType::F32));
        let format = formats[i % formats.len()];
        let n_quantised = quantised::write(&wide, &open(&wide).expect("layer").graph, format, &coded, &floats);
        if n_quantised == 0 {
            none.push(family.family);
            continue;
        }
        let layer = open(&coded).expect("a quantised layer");
        let named = layer.graph.inputs.iter().map(|i| i.name.clone()).zip(inputs).collect();
        let weights = Arc::new(Checkpoint::open(&coded).expect("checkpoint"));
        let r = Recorded { layer, inputs: named, golden: None, weights };
        has_the_same_bits(&r, &[3], &format!("{} as {}", family.family, format.name()));
        n += 1;
    }
    let _ = std::fs::remove_dir_all(scratch);
    assert!(n >= 60, "{n}; nothing to quantise in {none:?}");
}

/// A recorded layer in bf16, whose record is of another type.
fn in_bf16(dir: &Path, number: u32) -> Recorded {
    let file = Checkpoint::open(dir.join(format!("golden.layer{number}.safetensors"))).expect("golden");
    let layer = Model::open(dir).expect("model").layer_as(Some(number), Some(DType::BF16)).expect("layer");
    let input = |i: &moec_ir::graph::Input| {
        let t = file.tensor(&i.name).expect("readable").and_then(|t| t.to_tensor()).expect("input");
        (i.name.clone(), if i.ty.dtype.is_float() { t.cast(i.ty.dtype) } else { t })
    };
    let inputs = layer.graph.inputs.iter().map(input).collect();
    Recorded { layer, inputs, golden: None, weights: Arc::new(Checkpoint::open(dir).expect("checkpoint")) }
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
