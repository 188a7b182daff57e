//! Recorded layers of every family, through the library as users have it: open, compile, load, run.

use crate::quantised::{self, Published};
use crate::wide;
use moec::{
    Activations, Checkpoint, CompileRequest, Device, LayerOptions, Model, ModelLayer, Session, Target, Tensor, Weights,
};
use moec_ir::graph::{self, Graph, Param};
use moec_ir::tile::{Buffer, Role};
use moec_ir::{ActQuant, DType, Dim};
use std::path::{Path, PathBuf};

/// A layer whose numbers another implementation has computed.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The family: its `model_type`.
    pub family: String,
    /// The checkpoint.
    pub dir: PathBuf,
    /// The layer.
    pub layer: u32,
}

/// Where a layer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Code for this processor.
    Cpu,
    /// The PTX of a target, in the emulator with all checks on.
    Emulator(&'static str),
}

impl Place {
    /// In the order of tables.
    pub const ALL: [Place; 3] = [Place::Cpu, Place::Emulator("sm_90a"), Place::Emulator("sm_100a")];
}

/// How the weights are stored and the layer computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Float weights; the layer computes in this type.
    Float(DType),
    /// Weights in a published format; the layer computes in f32, its expert products with rows rounded to a format of
    /// activations where there is one. These layers are wider than the recorded ones ([`crate::wide`]).
    Quantised(Published, Option<ActQuant>),
}

/// Formats of activations, and the weights that they are multiplied with.
pub const ACTIVATIONS: [(&str, Format); 4] = [
    ("FP8 × FP8 128×128", Format::Quantised(Published::Fp8Block, Some(ActQuant::FP8_BLOCK))),
    ("MXFP8 × MXFP8", Format::Quantised(Published::Mxfp8, Some(ActQuant::MXFP8))),
    ("MXFP8 × MXFP4", Format::Quantised(Published::Mxfp4, Some(ActQuant::MXFP8))),
    ("NVFP4 × NVFP4", Format::Quantised(Published::Nvfp4, Some(ActQuant::NVFP4_ROW))),
];

/// The largest error that is allowed.
pub fn tolerance(format: Format) -> f64 {
    match format {
        Format::Float(DType::BF16) => 1e-2,
        Format::Float(_) | Format::Quantised(_, None) => 1e-5,
        // One value on an edge between two codes may fall either way.
        Format::Quantised(_, Some(_)) => 1e-3,
    }
}

/// A recorded layer of each family, two of families with two kinds, in alphabetical order.
///
/// # Panics
/// When the folder of recorded layers is not there.
pub fn families() -> Vec<Recorded> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ir/frontend/tests/golden");
    let mut out = Vec::new();
    for entry in std::fs::read_dir(root).expect("the families should be there") {
        let dir = entry.expect("a folder should be readable").path();
        let family = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let exists = |l: &u32| dir.join(format!("golden.layer{l}.safetensors")).exists();
        out.extend((0..8).filter(exists).map(|layer| Recorded { family: family.clone(), dir: dir.clone(), layer }));
    }
    out.sort_by(|a, b| (&a.family, a.layer).cmp(&(&b.family, b.layer)));
    out
}

/// Families that are known but refused, and why.
///
/// # Panics
/// When the folder of recorded layers is not there.
pub fn refused() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ir/frontend/tests/golden");
    let mut out = Vec::new();
    for entry in std::fs::read_dir(root).expect("the families should be there") {
        let dir = entry.expect("a folder should be readable").path();
        let Ok(config) = moec_frontend::ModelConfig::open(&dir) else { continue };
        if let Err(d) = config.layer(None, &LayerOptions::default()) {
            let reason = |d: &moec::Diagnostic| {
                let notes: String = d.notes.iter().map(|n| format!(": {n}")).collect();
                without_path(&d.message) + &notes
            };
            let reasons: Vec<String> = d.iter().map(reason).collect();
            out.push((config.model_type().to_string(), reasons.join("; ")));
        }
    }
    out.sort();
    out
}

/// A message about a config without the config's path.
fn without_path(message: &str) -> String {
    message.split_once("config.json: ").map_or(message, |(_, what)| what).to_string()
}

/// The recorded layers of a family in bfloat16, where there are any.
pub fn in_bf16(family: &str) -> Vec<Recorded> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance").join(format!("{family}.bf16"));
    let exists = |l: &u32| dir.join(format!("golden.layer{l}.safetensors")).exists();
    (0..8).filter(exists).map(|layer| Recorded { family: family.to_string(), dir: dir.clone(), layer }).collect()
}

/// What a run of a recorded layer gave.
#[derive(Clone, Debug)]
pub struct Measured {
    /// How far the output is off, by the whole, by rows and by elements: [`moec_ir::Tensor::worst_error`].
    pub error: f64,
    /// Tokens, and how many of them chose other experts without an exact tie; `None` where the record has no choice.
    pub routing: Option<(usize, usize)>,
}

/// Runs a recorded layer. `None` when nothing in it can be stored in the format.
///
/// Floats of the record's type are compared with the record. In another type the reference evaluator of the graph gives the
/// expected values, from the same weights; with quantised weights, from the dequantised ones.
///
/// # Errors
/// Diagnostics in words, and findings of the emulator.
pub fn measure(recorded: &Recorded, format: Format, place: Place, scratch: &Path) -> Result<Option<Measured>, String> {
    if let Format::Quantised(published, act) = format {
        return quantised(recorded, published, act, place, scratch);
    }
    let golden = Checkpoint::open(recorded.dir.join(format!("golden.layer{}.safetensors", recorded.layer)));
    let golden = golden.map_err(text)?;
    let stored = |name: &str| golden.tensor(name).ok().flatten().and_then(|t| t.to_tensor());
    let dtype = if let Format::Float(d) = format { d } else { DType::F32 };
    let layer = layer(&recorded.dir, recorded.layer, dtype)?;
    let mut inputs = Vec::new();
    for i in &layer.graph.inputs {
        let t = stored(&i.name).ok_or_else(|| format!("no `{}` is recorded", i.name))?;
        inputs.push(if i.ty.dtype.is_float() { t.cast(i.ty.dtype) } else { t });
    }
    let is_recorded = stored("input").is_some_and(|t| t.dtype == dtype);
    let [output, ids, w] = if is_recorded {
        ["output", "topk_ids", "topk_weights"].map(stored)
    } else {
        reference(&layer.graph, &recorded.dir, &inputs)?
    };
    let got = run(&layer, &recorded.dir, &inputs, place)?;
    let output = output.ok_or("no `output` is recorded")?;
    let error = got[0].worst_error(&output);
    let routing = match (ids, w) {
        (Some(ids), Some(w)) => Some((ids.shape[0], other_choices((&got[1], &got[2]), (&ids, &w)))),
        _ => None,
    };
    Ok(Some(Measured { error, routing }))
}

/// The same for a wide form of the layer with quantised weights.
fn quantised(
    recorded: &Recorded,
    published: Published,
    act: Option<ActQuant>,
    place: Place,
    scratch: &Path,
) -> Result<Option<Measured>, String> {
    let folder =
        |what: &str| scratch.join(format!("{}-{}-{published:?}-{place:?}.{what}", recorded.family, recorded.layer));
    let (wide, coded, floats) = (folder("wide"), folder("coded"), folder("floats"));
    let inputs = wide::write(recorded, &wide)?;
    let float_layer = layer(&wide, recorded.layer, DType::F32)?;
    let n_quantised = quantised::write(&wide, &float_layer.graph, published, &coded, &floats);
    let layer = layer(&coded, recorded.layer, DType::F32)?
        .with_activations(act.map_or(Activations::Floats, Activations::Rounded))
        .map_err(text)?;
    // Shared experts alone do not count where the routed ones stay floats.
    let n_experts = layer.facts.as_ref().map_or(1, |f| f.n_experts as usize);
    let result = if n_quantised < if published.is_of_matrices() { n_experts } else { 1 } {
        None
    } else {
        let want = reference(&layer.graph, &floats, &inputs)?;
        let got = run(&layer, &coded, &inputs, place)?;
        let [Some(output), Some(ids), Some(w)] = want else { return Err("a layer should have three outputs".into()) };
        let routing = Some((ids.shape[0], other_choices((&got[1], &got[2]), (&ids, &w))));
        Some(Measured { error: got[0].worst_error(&output), routing })
    };
    for dir in [wide, coded, floats] {
        let _ = std::fs::remove_dir_all(dir);
    }
    Ok(result)
}

fn text(d: moec::Diagnostic) -> String {
    format!("{d} {:?}", d.notes)
}

pub(crate) fn layer(dir: &Path, number: u32, dtype: DType) -> Result<ModelLayer, String> {
    let list = |ds: Vec<moec::Diagnostic>| ds.into_iter().map(text).collect::<Vec<_>>().join("; ");
    let options = LayerOptions { dtype: Some(dtype), ..LayerOptions::default() };
    let layer = Model::open(dir).map_err(list)?.layer_with(Some(number), &options).map_err(list)?;
    match layer.not_loadable {
        Some(d) => Err(text(d)),
        None => Ok(layer),
    }
}

/// Output, ids and weights by the reference evaluator.
fn reference(graph: &Graph, dir: &Path, inputs: &[Tensor]) -> Result<[Option<Tensor>; 3], String> {
    let checkpoint = Checkpoint::open(dir).map_err(text)?;
    let params: Result<Vec<Tensor>, String> = graph.params.iter().map(|p| read(&checkpoint, p)).collect();
    let mut out = graph::evaluate(graph, inputs, &params?).map_err(text)?.into_iter();
    Ok([out.next(), out.next(), out.next()])
}

/// A parameter as its source says, in its own type.
///
/// # Errors
/// Diagnostics in words.
pub fn read(checkpoint: &Checkpoint, param: &Param) -> Result<Tensor, String> {
    let param = Param { stored: None, ..param.clone() };
    let shape: Vec<u64> = param.ty.shape.iter().map(|d| d.fixed().unwrap_or(0)).collect();
    let cols = shape.last().copied().unwrap_or(1);
    let buffer = Buffer {
        name: param.name.clone(),
        dtype: param.ty.dtype,
        batch: 1,
        rows: Dim::Fixed(shape.iter().product::<u64>() / cols.max(1)),
        cols,
        pitch: cols,
        role: Role::Weight(0),
    };
    let mut bytes = vec![0; buffer.bytes(0) as usize];
    moec_weights::pack_weight(checkpoint, &param, &buffer, &mut bytes).map_err(text)?;
    moec_weights::unpack_weight(&param, &buffer, &bytes).map_err(text)
}

fn run(layer: &ModelLayer, weights: &Path, inputs: &[Tensor], place: Place) -> Result<Vec<Tensor>, String> {
    let (target, device) = match place {
        Place::Cpu => ("cpu", Device::Cpu),
        Place::Emulator(target) => (target, Device::Emulator { target }),
    };
    let target = Target::by_name(target).ok_or("an unknown target")?;
    let n_tokens = inputs[0].shape[0] as u64;
    // One token count, one variant: the others would be compiled for nothing.
    let request = CompileRequest { tokens: (n_tokens, n_tokens), ..CompileRequest::new(&layer.graph, vec![target]) };
    let compiled = moec::compile(&request).map_err(text)?;
    let weights = Weights::from_checkpoint(Checkpoint::open(weights).map_err(text)?);
    let mut session = Session::load(&compiled.bundle, &weights, device, n_tokens).map_err(text)?;
    let named: Vec<(&str, &Tensor)> = layer.graph.inputs.iter().map(|i| i.name.as_str()).zip(inputs).collect();
    let result = session.run(&named).map_err(text)?;
    match result.findings.first() {
        Some(finding) => Err(format!("the emulator found: {finding}")),
        None => Ok(result.outputs.into_iter().map(|(_, t)| t).collect()),
    }
}

/// Tokens that chose other experts, but for exact ties: then the weights are equal.
fn other_choices(got: (&Tensor, &Tensor), want: (&Tensor, &Tensor)) -> usize {
    let k = want.0.cols();
    let ids = |t: &Tensor, row: usize| {
        let mut v = t.ints()[row * k..(row + 1) * k].to_vec();
        v.sort_unstable();
        v
    };
    let weights = |t: &Tensor, row: usize| {
        let mut v = t.floats()[row * k..(row + 1) * k].to_vec();
        v.sort_by(f32::total_cmp);
        v
    };
    let differs = |row: &usize| ids(got.0, *row) != ids(want.0, *row) && weights(got.1, *row) != weights(want.1, *row);
    (0..want.0.shape[0]).filter(differs).count()
}
