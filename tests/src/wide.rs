//! Recorded layers made wider: rows that are long enough for every block of every weight format.
//!
//! Config and tensors keep their names and layouts; only the widths of hidden states and experts change, and the values are
//! drawn from those of the record. What such a layer computes is not recorded anywhere: it is judged against the
//! reference evaluator of the graph, which the recorded layers hold to what transformers computes.

use crate::quantised::{Raw, save};
use crate::recorded::{Recorded, layer};
use moec::{Checkpoint, Random};
use moec_ir::graph::{Graph, Param};
use moec_ir::weights::{WeightSource, WeightStep};
use moec_ir::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Width of hidden states, of experts and of shared experts in records (`ir/frontend/tests/golden/README.md`), and here:
/// more than one block of 128, and whole blocks of 32.
const WIDTHS: [(u64, u64); 3] = [(24, 160), (10, 32), (14, 64)];

/// Keys of configs whose values are such widths.
const KEYS: [&str; 8] = [
    "hidden_size",
    "d_model",
    "intermediate_size",
    "share_expert_dim",
    "moe_latent_size",
    "d_ff",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
];

/// Writes a wide form of a recorded layer to `dir`, and returns its inputs in the order of the graph.
///
/// # Errors
/// In words, when the layer cannot be read, or a tensor of it is not understood.
pub fn write(recorded: &Recorded, dir: &Path) -> Result<Vec<Tensor>, String> {
    let narrow = layer(&recorded.dir, recorded.layer, DType::F32)?.graph;
    let old = Checkpoint::open(&recorded.dir).map_err(|d| d.to_string())?;
    let text = std::fs::read_to_string(recorded.dir.join("config.json")).map_err(|e| e.to_string())?;
    let mut config: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    widen(&mut config);
    let config = config.to_string();
    std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    std::fs::write(dir.join("config.json"), &config).map_err(|e| e.to_string())?;
    let wide = layer(dir, recorded.layer, DType::F32)?.graph;

    let mut made: BTreeMap<String, Raw> = BTreeMap::new();
    for (small, large) in narrow.params.iter().zip(&wide.params) {
        let (from, to) = (shape(small), shape(large));
        let found =
            chosen(&old, &small.source, &from).ok_or_else(|| format!("`{}` is not in the record", small.name))?;
        // Sums over more columns of smaller values: activations keep their size.
        let columns = |s: &[u64]| s.last().copied().unwrap_or(1).max(1) as f32;
        let factor = if from.len() > 1 { (columns(&from) / columns(&to)).sqrt() } else { 1.0 };
        for (name, before, after) in stored(&old, &found, &from, &to)? {
            let view = old.tensor(&name).map_err(|d| d.to_string())?.ok_or("a tensor should exist")?;
            let raw = if before == after {
                Raw { name: name.clone(), dtype: view.dtype.name(), shape: before, data: view.data.to_vec() }
            } else {
                let tensor = view.to_tensor().filter(|t| t.dtype.is_float()).ok_or("a widened tensor is no float")?;
                let n: u64 = after.iter().product();
                let mut random = Random::new(5, &name);
                let values = tensor.floats();
                let data = (0..n).map(|_| values[random.bits() as usize % values.len()] * factor).collect();
                let shape: Vec<usize> = after.iter().map(|&d| d as usize).collect();
                let data = Tensor::float(DType::F32, &shape, data).to_bytes();
                Raw { name: name.clone(), dtype: "F32", shape: after, data }
            };
            if made.insert(name.clone(), raw).is_some_and(|other| other.shape != made[&name].shape) {
                return Err(format!("`{name}` would need two shapes"));
            }
        }
    }
    save(dir, &made.into_values().collect::<Vec<_>>(), &config);
    inputs(recorded, &narrow, &wide)
}

fn widen(node: &mut serde_json::Value) {
    let wider = |v: &mut serde_json::Value| {
        if let Some((_, to)) = v.as_u64().and_then(|n| WIDTHS.iter().find(|(from, _)| *from == n)) {
            *v = (*to).into();
        }
    };
    match node {
        serde_json::Value::Object(members) => {
            for (key, value) in members {
                if KEYS.iter().any(|k| key.ends_with(k)) {
                    value
                        .as_array_mut()
                        .map_or_else(Vec::new, |list| list.iter_mut().collect())
                        .into_iter()
                        .for_each(wider);
                    wider(value);
                }
                // Towers for pictures and sound have widths of their own.
                if !["vision_config", "audio_config"].contains(&key.as_str()) {
                    widen(value);
                }
            }
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(widen),
        _ => {}
    }
}

fn inputs(recorded: &Recorded, narrow: &Graph, wide: &Graph) -> Result<Vec<Tensor>, String> {
    let golden = recorded.dir.join(format!("golden.layer{}.safetensors", recorded.layer));
    let golden = Checkpoint::open(golden).map_err(|d| d.to_string())?;
    let mut out = Vec::new();
    for (small, large) in narrow.inputs.iter().zip(&wide.inputs) {
        let view = golden.tensor(&small.name).map_err(|d| d.to_string())?;
        let tensor = view.and_then(|v| v.to_tensor()).ok_or_else(|| format!("no `{}` is recorded", small.name))?;
        let n_tokens = tensor.shape[0] as u64;
        let wide = if small.ty == large.ty { tensor } else { moec::random_tensor(&large.ty, n_tokens, 5, &large.name) };
        out.push(wide);
    }
    Ok(out)
}

fn shape(param: &Param) -> Vec<u64> {
    param.ty.shape.iter().map(|d| d.fixed().unwrap_or(0)).collect()
}

/// A source of one layout: the names of its tensors, and the steps from each in the narrow layer.
struct Found {
    names: Vec<String>,
    per_expert: bool,
    steps: Vec<WeightStep>,
}

/// The layout that the record has: the first whose tensors are there and give the parameter's shape.
fn chosen(old: &Checkpoint, source: &WeightSource, want: &[u64]) -> Option<Found> {
    let found = match source {
        WeightSource::LargestInputScale(_) => return None,
        WeightSource::FirstOf(list) => return list.iter().find_map(|s| chosen(old, s, want)),
        WeightSource::Tensor { names, steps } => {
            let name = names.iter().find(|n| old.contains(n))?;
            Found { names: vec![name.clone()], per_expert: false, steps: steps.clone() }
        }
        WeightSource::PerExpert { names, first, count, steps } => {
            let all =
                |n: &String| (*first..first + count).map(|e| n.replace("{e}", &e.to_string())).collect::<Vec<_>>();
            let names = names.iter().map(all).find(|all| all.iter().all(|n| old.contains(n)))?;
            Found { names, per_expert: true, steps: steps.clone() }
        }
    };
    let want = if found.per_expert { &want[1..] } else { want };
    let stored = old.tensor(&found.names[0]).ok().flatten()?.shape.to_vec();
    let shapes = forwards(&stored, &found.steps)?;
    (shapes.last()? == want).then_some(found)
}

/// The name of a stored tensor, and its shapes before and after.
type Widened = (String, Vec<u64>, Vec<u64>);

/// The stored tensors of a parameter.
fn stored(old: &Checkpoint, found: &Found, from: &[u64], to: &[u64]) -> Result<Vec<Widened>, String> {
    let inner = usize::from(found.per_expert);
    let mut out = Vec::new();
    for name in &found.names {
        let view = old.tensor(name).map_err(|d| d.to_string())?.ok_or("a tensor should exist")?;
        let before = view.shape.to_vec();
        let shapes = forwards(&before, &found.steps).ok_or("steps should fit the record")?;
        let mut wide = to[inner..].to_vec();
        for (i, step) in found.steps.iter().enumerate().rev() {
            wide = backwards(&shapes[i], step, &shapes[i + 1], &wide)
                .ok_or_else(|| format!("`{name}`: {step:?} of {:?} cannot be widened", shapes[i]))?;
        }
        if from == to && wide != before {
            return Err(format!("`{name}` should have kept its shape"));
        }
        out.push((name.clone(), before, wide));
    }
    Ok(out)
}

/// The shape before each step, and the last one.
fn forwards(stored: &[u64], steps: &[WeightStep]) -> Option<Vec<Vec<u64>>> {
    let mut shapes = vec![stored.to_vec()];
    for step in steps {
        let mut shape = shapes.last()?.clone();
        match step {
            WeightStep::Transpose => {
                let n = shape.len().checked_sub(2)?;
                shape.swap(n, n + 1);
            }
            WeightStep::Slice { axis, start, step, len, .. } => {
                let cut = shape.get_mut(*axis as usize)?;
                if start + step * len.saturating_sub(1) >= *cut {
                    return None;
                }
                *cut = *len;
            }
            WeightStep::Reshape { shape: new } => {
                if new.iter().product::<u64>() != shape.iter().product::<u64>() {
                    return None;
                }
                shape.clone_from(new);
            }
        }
        shapes.push(shape);
    }
    Some(shapes)
}

/// The shape before a step in the wide layer, given the shapes before and after it in the narrow one, and after it in the wide.
fn backwards(before: &[u64], step: &WeightStep, after: &[u64], wide: &[u64]) -> Option<Vec<u64>> {
    let mut shape = wide.to_vec();
    match step {
        WeightStep::Transpose => {
            let n = shape.len().checked_sub(2)?;
            shape.swap(n, n + 1);
        }
        WeightStep::Slice { axis, .. } => {
            let axis = *axis as usize;
            // As many parts of the axis as before.
            let (whole, part) = (before[axis], after[axis]);
            shape[axis] = if part == wide[axis] { whole } else { whole / part * wide[axis] };
        }
        WeightStep::Reshape { .. } => {
            // Axes that were joined or split stay so: runs with equal products in the narrow layer.
            let (mut i, mut j) = (0, 0);
            shape = Vec::new();
            while i < before.len() {
                if before[i] == 1 {
                    shape.push(1);
                    i += 1;
                    continue;
                }
                while after.get(j) == Some(&1) {
                    j += 1;
                }
                let (first, from) = (i, j);
                let (mut have, mut want) = (before[i], *after.get(j)?);
                (i, j) = (i + 1, j + 1);
                while have != want {
                    if have < want {
                        have *= before.get(i)?;
                        i += 1;
                    } else {
                        want *= after.get(j)?;
                        j += 1;
                    }
                }
                match (i - first, j - from) {
                    (1, _) => shape.push(wide[from..j].iter().product()),
                    _ if before[first..i] == after[from..j] => shape.extend(&wide[from..j]),
                    _ => return None,
                }
            }
        }
    }
    Some(shape)
}
