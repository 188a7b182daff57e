//! Packs: a folder of bundles, inputs and expected results that checks and times them on another machine.
//!
//! ```text
//! pack.json                 what there is: Pack
//! bundles/NAME/             compiled layers
//! weights/NAME.safetensors  weights, where they are not random
//! data/NAME.safetensors     inputs and expected results of a case
//! moec-gpu-pack, run.sh     the program that reads it; needs the NVIDIA driver and nothing else
//! ```
//!
//! A case's data file holds the layer's inputs under their own names and, where there is something to compare with:
//! * `expected.NAME`: the output NAME. `topk_ids` and `topk_weights` are compared as sets for each token.
//! * `sampled` (i32, one for each token): only tokens marked 1 have rows in `expected.NAME`: of layers with so many weights that
//!   the reference evaluates a few tokens only.
//! * `buffer.NAME`: the intermediate buffer NAME after the run, `[batch * rows, cols]`; with `rows.NAME` (i32, one for
//!   each row) only rows marked 1 are compared: rows that no token goes to hold anything.

mod check;
mod report;
#[cfg(feature = "cuda")]
mod time;

pub use check::{Check, compare};
pub use report::{CaseReport, KernelTime, LayerTime, PackReport, table};

use crate::device::Device;
use crate::layer::{Layer, LoadOptions};
use crate::weights::Weights;
use moec_bundle::Bundle;
use moec_ir::Tensor;
use moec_ir::diag::Diagnostic;
use moec_weights::Checkpoint;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The format of `pack.json` that this version reads and writes.
pub const PACK_FORMAT: u32 = 1;

/// The content of `pack.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// [`PACK_FORMAT`].
    pub moec_pack: u32,
    /// What is checked and timed, in order.
    pub cases: Vec<PackCase>,
}

/// A layer at a token count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackCase {
    /// Name for people.
    pub name: String,
    /// Folder of the bundle, relative to the pack.
    pub bundle: String,
    /// Where the weights come from.
    pub weights: PackWeights,
    /// File of inputs and expected results, relative to the pack.
    pub data: String,
    /// How often all rows of that file are run, one copy after another: for many tokens in a small file.
    #[serde(default = "once")]
    pub repeat: u32,
    /// Largest error of a float result, as in [`moec_ir::Tensor::worst_error`].
    pub tolerance: f64,
    /// Whether the case is timed.
    #[serde(default)]
    pub time: bool,
}

fn once() -> u32 {
    1
}

/// Where a case's weights come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackWeights {
    /// A safetensors file, relative to the pack.
    File(String),
    /// [`Weights::Random`] of this seed: large layers need no large files.
    Random(u64),
}

/// Reads and checks `pack.json` of a folder.
///
/// # Errors
/// `pack-invalid`.
pub fn read_pack(dir: &Path) -> Result<Pack, Diagnostic> {
    let path = dir.join("pack.json");
    let invalid = |why: String| {
        Diagnostic::input("pack-invalid", format!("`{}` does not describe a pack: {why}", path.display()))
            .help("give the folder that `cargo xtask gpu-pack` wrote")
    };
    let text = std::fs::read(&path).map_err(|e| invalid(e.to_string()))?;
    let pack: Pack = serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))?;
    if pack.moec_pack != PACK_FORMAT {
        return Err(invalid(format!("it has format {}, this program reads {PACK_FORMAT}", pack.moec_pack)));
    }
    Ok(pack)
}

/// Runs every case of a pack on a device, or the one that is called `only`. What goes wrong in a case is said in its report; the
/// others still run. `progress` is told the name of each case before it starts.
///
/// # Errors
/// `pack-invalid`; on CUDA `cuda-driver-missing`, `cuda-driver-too-old`, `cuda-device-missing`: then nothing was run.
pub fn run_pack(
    dir: &Path,
    device: &Device,
    with_times: bool,
    only: Option<&str>,
    progress: &mut dyn FnMut(&str),
) -> Result<PackReport, Diagnostic> {
    let mut pack = read_pack(dir)?;
    if let Some(only) = only {
        pack.cases.retain(|c| c.name == only);
        if pack.cases.is_empty() {
            return Err(Diagnostic::input("pack-invalid", format!("the pack has no case `{only}`"))
                .help("pack.json has the names of its cases"));
        }
    }
    let mut report = PackReport::new(device)?;
    for case in &pack.cases {
        progress(&case.name);
        report.cases.push(run_case(dir, case, device, with_times).unwrap_or_else(|(target, d)| {
            let mut notes = d.notes.iter().take(20).map(|n| format!("; {n}")).collect::<String>();
            notes.insert_str(0, &d.to_string());
            CaseReport { name: case.name.clone(), target, error: Some(notes), ..CaseReport::default() }
        }));
    }
    Ok(report)
}

fn run_case(
    dir: &Path,
    case: &PackCase,
    device: &Device,
    with_times: bool,
) -> Result<CaseReport, (String, Diagnostic)> {
    let none = |d: Diagnostic| (String::new(), d);
    let bundle = Bundle::open(dir.join(&case.bundle)).map_err(none)?;
    let data = read_data(&dir.join(&case.data)).map_err(none)?;
    let data: Vec<(String, Tensor)> = data.into_iter().map(|(n, t)| (n, repeated(&t, case.repeat))).collect();
    let weights = match &case.weights {
        PackWeights::File(path) => Weights::from_checkpoint(Checkpoint::open(dir.join(path)).map_err(none)?),
        PackWeights::Random(seed) => Weights::Random { seed: *seed },
    };
    let inputs: Vec<(&str, &Tensor)> = data.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let (_, n_tokens) = crate::host::bind_inputs(&bundle.manifest().inputs, &inputs).map_err(none)?;
    let options = LoadOptions {
        device: device.clone(),
        max_tokens: n_tokens,
        keep_intermediates: true,
        ..LoadOptions::default()
    };
    let mut layer = Layer::load(&bundle, &weights, options).map_err(none)?;
    let target = layer.target().to_string();
    let with_target = |d: Diagnostic| (target.clone(), d);

    let run = layer.run_host(&inputs).map_err(with_target)?;
    let mut report = CaseReport {
        name: case.name.clone(),
        target: target.clone(),
        n_tokens,
        variant: run.variant,
        checks: check::check_run(&layer, &run, &data, n_tokens, case.tolerance).map_err(with_target)?,
        findings: run.findings.clone(),
        ..CaseReport::default()
    };
    let again = layer.run_host(&inputs).map_err(with_target)?;
    report.same_bits_again = Some(check::same_bits(&run, &again));
    #[cfg(feature = "cuda")]
    if let Some(cuda) = layer.as_cuda() {
        let manifest = bundle.manifest();
        let same = time::graph_gives_the_same(cuda, manifest, &inputs, &run).map_err(with_target)?;
        report.same_bits_in_graph = Some(same);
        if with_times && case.time {
            let (layer, kernels) = time::time_layer(cuda, manifest, &run, n_tokens).map_err(with_target)?;
            (report.layer, report.kernels) = (Some(layer), kernels);
        }
    }
    #[cfg(not(feature = "cuda"))]
    let _ = with_times;
    Ok(report)
}

/// A tensor's rows, so many times one after another.
fn repeated(tensor: &Tensor, times: u32) -> Tensor {
    let mut shape = tensor.shape.clone();
    if let Some(first) = shape.first_mut() {
        *first *= times as usize;
    }
    if tensor.dtype.is_float() {
        Tensor::float(tensor.dtype, &shape, tensor.floats().repeat(times as usize))
    } else {
        Tensor::int(tensor.dtype, &shape, tensor.ints().repeat(times as usize))
    }
}

/// All tensors of a safetensors file.
fn read_data(path: &Path) -> Result<Vec<(String, Tensor)>, Diagnostic> {
    let file = Checkpoint::open(path)?;
    let mut out = Vec::new();
    for name in file.names() {
        if let Some(tensor) = file.tensor(name)?.and_then(|view| view.to_tensor()) {
            out.push((name.to_string(), tensor));
        }
    }
    Ok(out)
}
