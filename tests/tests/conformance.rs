//! Every checkpoint of `tests/conformance`, through the public library, against what transformers computed.

use libtest_mimic::{Arguments, Failed, Trial};
use moec::{Checkpoint, CompileRequest, Device, Model, ModelLayer, Session, Target, Tensor, WeightStorage, Weights};
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
            trials.push(Trial::test(name, move || check(&folder().join(&entry.dir), &entry, engine)));
        }
    }
    assert!(trials.len() >= 16 * ENGINES.len(), "the conformance set has lost cases");
    let families = families();
    assert!(families.len() >= 70, "the families have lost cases");
    for (dir, layer) in families {
        let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
        let entry =
            Entry { dir: name, layer, dtype: "float32".into(), tolerance: 1e-5, tight_tolerance: None, tokens: 7 };
        for (name, engine) in [("jit", Engine::Jit), ("emulator-sm_90a", Engine::Emulator("sm_90a"))] {
            let (dir, entry) = (dir.clone(), entry.clone());
            let name = format!("{name}/family/{}/layer{layer}", entry.dir);
            trials.push(Trial::test(name, move || check(&dir, &entry, engine)));
        }
    }
    // More cases, made by `cargo xtask conformance`.
    if let Some(more) = std::env::var_os("MOEC_CONFORMANCE_CASES") {
        trials.retain(|_| false);
        trials.extend(made_cases(Path::new(&more)));
    }
    for entry in stored_as_codes() {
        for target in ["cpu", "sm_80", "sm_100f", "sm_120f"] {
            let dir = folder().join(&entry);
            let name = format!("as-published-equals-dequantised/{target}/{entry}");
            trials.push(Trial::test(name, move || same_bits(&dir, target)));
        }
    }
    for dir in ["qwen3_moe.nvfp4-modelopt", "qwen3_moe.nvfp4-ct"] {
        for (name, engine) in [("jit", Engine::Jit), ("sm_100a", Engine::Emulator("sm_100a"))] {
            trials.push(Trial::test(format!("static-scales/{name}/{dir}"), move || {
                static_scales(&folder().join(dir), engine)
            }));
        }
    }
    trials.push(Trial::test("mxfp4-rows/sm_100f/qwen3_moe.mxfp8", || {
        mxfp4_rows(&folder().join("qwen3_moe.mxfp8"), Engine::Emulator("sm_100f"))
    }));
    libtest_mimic::run(&args, trials).exit();
}

/// FP4 rows by FP8 weights: rows that end between the 128 codes that a copy spreads.
fn mxfp4_rows(dir: &Path, engine: Engine) -> Result<(), Failed> {
    let text = |d: moec::Diagnostic| format!("{d} {:?}", d.notes);
    let model = Model::open(dir).map_err(|d| format!("{d:?}"))?;
    let layer = model.layer_as(recorded_layer(dir), Some(moec_ir::DType::F32)).map_err(|d| format!("{d:?}"))?;
    let layer = layer.with_activations(moec::Activations::Rounded(moec_ir::ActQuant::MXFP4)).map_err(text)?;
    let checkpoint = Checkpoint::open(dir).map_err(text)?;
    let params: Vec<Tensor> =
        layer.graph.params.iter().map(|p| moec_tests::recorded::read(&checkpoint, p)).collect::<Result<_, _>>()?;
    gives_the_reference(&layer, &params, dir, engine)
}

/// Rows are rounded with the scales that the checkpoint holds, each publisher's in its own direction.
fn static_scales(dir: &Path, engine: Engine) -> Result<(), Failed> {
    let text = |d: moec::Diagnostic| format!("{d} {:?}", d.notes);
    let model = Model::open(dir).map_err(|d| format!("{d:?}"))?;
    let layer = model.layer_as(recorded_layer(dir), Some(moec_ir::DType::F32)).map_err(|d| format!("{d:?}"))?;
    let layer = layer.with_activations(moec::Activations::Rounded(moec_ir::ActQuant::NVFP4)).map_err(text)?;
    let checkpoint = Checkpoint::open(dir).map_err(text)?;
    let n_experts = layer.facts.as_ref().map_or(0, |f| f.n_experts);
    // The largest of the experts' scales, from the names and the formula of the publisher.
    let largest = |matrices: &[&str]| -> Result<f32, Failed> {
        let mut most = 0f32;
        for e in 0..n_experts {
            for m in matrices {
                let stem = format!("model.layers.0.mlp.experts.{e}.{m}");
                let find = |name: &str| checkpoint.tensor(&format!("{stem}.{name}")).ok().flatten()?.to_tensor();
                let scale = find("input_scale").map(|t| t.floats()[0]);
                let scale = scale.or_else(|| find("input_global_scale").map(|t| 1.0 / t.floats()[0]));
                most = most.max(scale.ok_or_else(|| format!("no scale beside {stem}"))?);
            }
        }
        Ok(most)
    };
    let mut params = Vec::new();
    for p in &layer.graph.params {
        let scale = |v: f32| Tensor::float(moec_ir::DType::F32, &[1], vec![v]);
        params.push(match p.name.as_str() {
            "experts.gate.input_scale" => scale(largest(&["gate_proj", "up_proj"])?),
            "experts.down.input_scale" => scale(largest(&["down_proj"])?),
            _ => moec_tests::recorded::read(&checkpoint, p)?,
        });
    }
    if layer.graph.params.iter().filter(|p| p.name.ends_with("input_scale")).count() != 2 {
        return Err("rows before gate and up, and rows before down, should have a scale each".into());
    }
    gives_the_reference(&layer, &params, dir, engine)
}

/// The output of a layer whose rows are rounded is that of the reference evaluator.
fn gives_the_reference(layer: &ModelLayer, params: &[Tensor], dir: &Path, engine: Engine) -> Result<(), Failed> {
    let text = |d: moec::Diagnostic| format!("{d} {:?}", d.notes);
    let input = moec::random_tensor(&layer.graph.inputs[0].ty, 5, 3, "input");
    let want = moec_ir::graph::evaluate(&layer.graph, std::slice::from_ref(&input), params).map_err(text)?;
    let mut session = load(layer, dir, engine, 5).map_err(text)?;
    let result = session.run(&[("input", &input)]).map_err(text)?;
    if let Some(finding) = result.findings.first() {
        return Err(format!("the emulator found: {finding}").into());
    }
    let error = result.output("output").ok_or("the layer has no `output`")?.worst_error(&want[0]);
    if error > 1e-3 { Err(format!("relative error {error:.2e}").into()) } else { Ok(()) }
}

/// Checkpoints of which some weights lie in memory as they are published.
fn stored_as_codes() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).expect("the conformance set should be there");
    let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names.retain(|name| {
        let dir = folder().join(name);
        let layer = Model::open(&dir).ok().and_then(|m| m.layer(recorded_layer(&dir)).ok());
        layer.is_some_and(|l| l.graph.params.iter().any(|p| p.stored.is_some()))
    });
    assert!(names.len() >= 2, "checkpoints whose weights stay as codes: {names:?}");
    names
}

/// The first layer of which there is a record, and so weights.
fn recorded_layer(dir: &Path) -> Option<u32> {
    (0..8).find(|l| dir.join(format!("golden.layer{l}.safetensors")).exists())
}

/// A layer in bfloat16 gives the same bits whether its weights are read as codes or as floats.
fn same_bits(dir: &Path, target: &'static str) -> Result<(), Failed> {
    let text = |d: moec::Diagnostic| format!("{d} {:?}", d.notes);
    let model = Model::open(dir).map_err(|d| format!("{d:?}"))?;
    let layer = model.layer_as(recorded_layer(dir), Some(moec_ir::DType::BF16)).map_err(|d| format!("{d:?}"))?;
    let target = Target::by_name(target).ok_or("a test should name a known target")?;
    let inputs: Vec<(&str, Tensor)> =
        layer.graph.inputs.iter().map(|i| (i.name.as_str(), moec::random_tensor(&i.ty, 5, 3, &i.name))).collect();
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
    let mut runs = Vec::new();
    for weights in [WeightStorage::AsPublished, WeightStorage::Dequantised] {
        let request = CompileRequest { weights, ..CompileRequest::new(&layer.graph, vec![target]) };
        let bundle = moec::compile(&request).map_err(text)?.bundle;
        let checkpoint = Weights::from_checkpoint(Checkpoint::open(dir).map_err(text)?);
        let device = if target.is_cpu() { Device::Cpu } else { Device::Emulator { target: target.name } };
        let mut session = Session::load(&bundle, &checkpoint, device, 5).map_err(text)?;
        let result = session.run(&inputs).map_err(text)?;
        if let Some(finding) = result.findings.first() {
            return Err(format!("the emulator found: {finding}").into());
        }
        let output = result.output("output").ok_or("the layer has no `output`")?.to_bytes();
        runs.push((output, session.layer().weight_bytes()));
    }
    if runs[0].0 != runs[1].0 {
        return Err("reading codes gives other bits than reading floats".into());
    }
    if runs[0].1 >= runs[1].1 {
        return Err(format!("codes take {} bytes, floats {}", runs[0].1, runs[1].1).into());
    }
    Ok(())
}

/// Every recorded layer of the checkpoints in `root`; each takes its element type from its own golden input.
fn made_cases(root: &Path) -> Vec<Trial> {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root)
        .expect("the folder of cases should be readable")
        .map(|e| e.expect("a folder should be readable").path())
        .collect();
    dirs.sort();
    let mut trials = Vec::new();
    for dir in dirs {
        for layer in (0..4).filter(|l| dir.join(format!("golden.layer{l}.safetensors")).exists()) {
            let dir = dir.clone();
            let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
            trials.push(Trial::test(format!("jit/{name}/layer{layer}"), move || {
                let golden = Checkpoint::open(dir.join(format!("golden.layer{layer}.safetensors")));
                let view = golden.as_ref().ok().and_then(|g| g.tensor("input").ok().flatten());
                let view = view.ok_or("no golden input")?;
                let dtype = view.dtype.dtype().ok_or("the golden input has a type that moec does not compute in")?;
                let f32 = dtype == moec_ir::DType::F32;
                let entry = Entry {
                    dir: name,
                    layer,
                    dtype: dtype.name().into(),
                    tolerance: if f32 { 1e-5 } else { 1e-2 },
                    tight_tolerance: None,
                    tokens: view.shape.first().map_or(0, |&n| n as usize),
                };
                check(&dir, &entry, Engine::Jit)
            }));
        }
    }
    trials
}

/// The recorded layers of one small checkpoint of each family.
fn families() -> Vec<(PathBuf, u32)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ir/frontend/tests/golden");
    let mut out = Vec::new();
    for entry in std::fs::read_dir(&root).expect("the families should be there") {
        let dir = entry.expect("a folder should be readable").path();
        out.extend(
            (0..2).filter(|l| dir.join(format!("golden.layer{l}.safetensors")).exists()).map(|l| (dir.clone(), l)),
        );
    }
    out.sort();
    out
}

fn check(dir: &Path, entry: &Entry, engine: Engine) -> Result<(), Failed> {
    let text = |d: moec::Diagnostic| format!("{d} {:?}", d.notes);
    // The layer computes in the type of its golden input; quantised ones have a config that says bfloat16.
    let dtype = match entry.dtype.as_str() {
        "float32" => moec_ir::DType::F32,
        "bfloat16" => moec_ir::DType::BF16,
        name => moec_ir::DType::from_name(name).ok_or_else(|| format!("there is no type {name}"))?,
    };
    let model = Model::open(dir).map_err(|d| format!("{d:?}"))?;
    let layer = model.layer_as(Some(entry.layer), Some(dtype)).map_err(|d| format!("{d:?}"))?;
    let golden = Checkpoint::open(dir.join(format!("golden.layer{}.safetensors", entry.layer))).map_err(text)?;
    let tensor = |name: &str| -> Result<Tensor, Failed> {
        let view = golden.tensor(name).map_err(text)?.ok_or_else(|| format!("no `{name}` in the golden file"))?;
        Ok(view.to_tensor().ok_or_else(|| format!("`{name}` has a strange type"))?)
    };
    let mut session = load(&layer, dir, engine, entry.tokens).map_err(text)?;
    let inputs: Vec<(&str, Tensor)> =
        layer.graph.inputs.iter().map(|i| Ok((i.name.as_str(), tensor(&i.name)?))).collect::<Result<_, Failed>>()?;
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (*name, t)).collect();
    let result = session.run(&inputs).map_err(text)?;
    if let Some(finding) = result.findings.first() {
        return Err(format!("the emulator found: {finding}").into());
    }
    let got = |name: &str| result.output(name).ok_or_else(|| format!("the layer has no `{name}`"));
    let error = got("output")?.worst_error(&tensor("output")?);
    let tolerance = entry.tight_tolerance.unwrap_or(entry.tolerance);
    if error > tolerance {
        return Err(format!("relative error {error:.2e}, more than {tolerance:.0e}").into());
    }
    if golden.tensor("topk_ids").map_err(text)?.is_none() {
        return Ok(());
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
