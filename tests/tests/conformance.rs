//! Every checkpoint of `tests/conformance`, through the public library, against what transformers computed.

use libtest_mimic::{Arguments, Failed, Trial};
use moec::{Checkpoint, CompileRequest, Device, Model, ModelLayer, Session, Target, Tensor, Weights};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// One entry of `INDEX.json`.
#[derive(Clone, Deserialize)]
struct Entry {
    dir: String,
    layer: u32,
    dtype: String,
    tolerance: f64,
    /// For quantised weights with float32 arithmetic.
    tight_tolerance: Option<f64>,
    tokens: usize,
}

/// Where a checkpoint runs.
#[derive(Clone, Copy)]
enum Engine {
    Jit,
    Object,
    Emulator(&'static str),
}

const ENGINES: [(&str, Engine); 6] = [
    ("jit", Engine::Jit),
    ("object", Engine::Object),
    ("emulator-sm_80", Engine::Emulator("sm_80")),
    ("emulator-sm_90a", Engine::Emulator("sm_90a")),
    ("emulator-sm_100f", Engine::Emulator("sm_100f")),
    ("emulator-sm_120f", Engine::Emulator("sm_120f")),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance")
}

fn main() {
    let args = Arguments::from_args();
    let text = std::fs::read_to_string(folder().join("INDEX.json")).expect("the index should be readable");
    let entries: Vec<Entry> = serde_json::from_str(&text).expect("the index should be a list of cases");
    let mut trials = Vec::new();
    for entry in entries {
        for (name, engine) in ENGINES {
            let entry = entry.clone();
            let name = format!("{name}/{}/layer{}", entry.dir, entry.layer);
            trials.push(Trial::test(name, move || check(&entry, engine)));
        }
    }
    assert!(trials.len() >= 16 * ENGINES.len(), "the conformance set has lost cases");
    libtest_mimic::run(&args, trials).exit();
}

fn check(entry: &Entry, engine: Engine) -> Result<(), Failed> {
    let dir = folder().join(&entry.dir);
    let text = |d: moec::Diagnostic| format!("{d} {:?}", d.notes);
    // The layer computes in the type of its golden input; quantised ones have a config that says bfloat16.
    let dtype = if entry.dtype == "float32" { moec_ir::DType::F32 } else { moec_ir::DType::BF16 };
    let model = Model::open(&dir).map_err(|d| format!("{d:?}"))?;
    let layer = model.layer_as(Some(entry.layer), Some(dtype)).map_err(|d| format!("{d:?}"))?;
    let golden = Checkpoint::open(dir.join(format!("golden.layer{}.safetensors", entry.layer))).map_err(text)?;
    let tensor = |name: &str| -> Result<Tensor, Failed> {
        let view = golden.tensor(name).map_err(text)?.ok_or_else(|| format!("no `{name}` in the golden file"))?;
        Ok(view.to_tensor().ok_or_else(|| format!("`{name}` has a strange type"))?)
    };
    let mut session = load(&layer, &dir, engine, entry.tokens).map_err(text)?;
    let result = session.run(&[("input", &tensor("input")?)]).map_err(text)?;
    if let Some(finding) = result.findings.first() {
        return Err(format!("the emulator found: {finding}").into());
    }
    let got = |name: &str| result.output(name).ok_or_else(|| format!("the layer has no `{name}`"));
    let error = got("output")?.relative_error(&tensor("output")?);
    let tolerance = entry.tight_tolerance.unwrap_or(entry.tolerance);
    if error > tolerance {
        return Err(format!("relative error {error:.2e}, more than {tolerance:.0e}").into());
    }
    same_experts(got("topk_ids")?, got("topk_weights")?, &tensor("topk_ids")?, &tensor("topk_weights")?)
}

fn load(layer: &ModelLayer, dir: &Path, engine: Engine, n_tokens: usize) -> Result<Session, moec::Diagnostic> {
    let weights = Weights::from_checkpoint(Checkpoint::open(dir)?);
    let (target, device) = match engine {
        Engine::Jit | Engine::Object => ("cpu", Device::Cpu),
        Engine::Emulator(target) => (target, Device::Emulator { target }),
    };
    let target = Target::by_name(target).expect("a test should name a known target");
    let compiled = moec::compile(&CompileRequest::new(&layer.graph, vec![target]))?;
    match engine {
        Engine::Jit => Session::jit(&compiled, &weights, n_tokens as u64),
        Engine::Object | Engine::Emulator(_) => Session::load(&compiled.bundle, &weights, device, n_tokens as u64),
    }
}

/// The same experts for every token, but for exact ties: then the weights are equal.
fn same_experts(ids: &Tensor, weights: &Tensor, want_ids: &Tensor, want_weights: &Tensor) -> Result<(), Failed> {
    let k = want_ids.cols();
    let sorted = |t: &Tensor, row: usize| {
        let mut v = t.ints()[row * k..(row + 1) * k].to_vec();
        v.sort_unstable();
        v
    };
    let sorted_weights = |t: &Tensor, row: usize| {
        let mut v = t.floats()[row * k..(row + 1) * k].to_vec();
        v.sort_by(f32::total_cmp);
        v
    };
    for row in 0..want_ids.shape[0] {
        if sorted(ids, row) != sorted(want_ids, row)
            && sorted_weights(weights, row) != sorted_weights(want_weights, row)
        {
            return Err(
                format!("token {row} chose {:?} instead of {:?}", sorted(ids, row), sorted(want_ids, row)).into()
            );
        }
    }
    Ok(())
}
