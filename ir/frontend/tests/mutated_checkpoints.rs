//! One thing in a valid quantised checkpoint is changed: a tensor is dropped, renamed, retyped or reshaped, a scale is made one
//! that no quantiser writes, a key of the config goes or gets another value. What loads all the same has the values of the
//! untouched checkpoint, or the change is on the list of those that make another valid checkpoint; nothing panics.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and tells how much it tried")]

use moec_frontend::{LayerOptions, ModelConfig};
use moec_ir::graph::Param;
use moec_ir::shape::Dim;
use moec_ir::tile::{Buffer, Role};
use moec_weights::{Checkpoint, Plan};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A stored tensor: type, shape, bytes.
type Stored = (String, Vec<u64>, Vec<u8>);
type Tensors = BTreeMap<String, Stored>;

/// Changes of a config that make another valid checkpoint of the same tensors, with the reason why nothing can tell.
const OTHER_CHECKPOINTS: &[(&str, &str)] = &[
    ("checkpoint_format", "asymmetric zero points are in range whether they are stored less one or not"),
    ("packing_format", "the same"),
];

/// Types of the same width, as a wrong header may name them.
const TYPES: &[(&str, usize)] = &[
    ("U8", 1),
    ("I8", 1),
    ("F8_E4M3", 1),
    ("F8_E5M2", 1),
    ("F8_E8M0", 1),
    ("BF16", 2),
    ("F16", 2),
    ("F32", 4),
    ("I32", 4),
    ("I64", 8),
    ("F64", 8),
];

fn cases() -> Vec<PathBuf> {
    let conformance = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance");
    let mut all: Vec<PathBuf> = std::fs::read_dir(conformance).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| {
        let config = std::fs::read_to_string(p.join("config.json")).unwrap_or_default();
        let small = std::fs::metadata(p.join("model.safetensors")).is_ok_and(|m| m.len() < 200_000);
        small && (config.contains("quantization_config") || p.join("hf_quant_config.json").exists())
    });
    // What tools wrote that is not among them: scaled inputs, stacks, bits that straddle words.
    let written = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/checkpoints");
    for case in
        ["modelopt/qwen3_moe.int4-awq", "modelopt/llama4_text.nvfp4", "llmcompressor/w3a16.asym", "quark/fp8-channel"]
    {
        all.push(written.join(case));
    }
    all.sort();
    all
}

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = &bytes[8 + length..];
    let tensor = |v: &Value| {
        let at = |i: usize| v["data_offsets"][i].as_u64().unwrap() as usize;
        let shape = v["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        (v["dtype"].as_str().unwrap().to_string(), shape, data[at(0)..at(1)].to_vec())
    };
    header.iter().filter(|(n, _)| *n != "__metadata__").map(|(n, v)| (n.clone(), tensor(v))).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, (dtype, shape, bytes)) in tensors {
        let end = data.len() + bytes.len();
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [data.len(), end] }));
        data.extend_from_slice(bytes);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(&header);
    file.extend_from_slice(&data);
    std::fs::write(path, file).unwrap();
}

/// Every parameter's values, or the code of the first error.
fn load(folder: &Path, params: &[Param]) -> Result<Vec<Vec<u8>>, String> {
    let checkpoint = Checkpoint::open(folder.join("model.safetensors")).map_err(|d| d.code)?;
    let plan = Plan::new(&checkpoint, None, params).map_err(|d| d[0].code.clone())?;
    plan.check_scales().map_err(|d| d.code)?;
    let one = |p: &Param| {
        let shape: Vec<u64> = p.ty.shape.iter().map(|d| d.fixed().unwrap()).collect();
        let cols = *shape.last().unwrap();
        let rows = Dim::Fixed(shape.iter().product::<u64>() / cols);
        let (name, dtype, role) = (p.name.clone(), p.ty.dtype, Role::Weight(0));
        let buffer = Buffer { name, dtype, batch: 1, rows, cols, pitch: cols, role };
        let mut out = vec![0; buffer.bytes(0) as usize];
        plan.pack(&p.name, &buffer, &mut out).map(|()| out).map_err(|d| d.code)
    };
    params.iter().map(one).collect()
}

/// Every changed set of tensors, with what was done.
fn changed_tensors(tensors: &Tensors, wanted: &dyn Fn(&str) -> bool) -> Vec<(String, Tensors)> {
    let mut out = Vec::new();
    for (name, (dtype, shape, bytes)) in tensors.iter().filter(|(n, _)| wanted(n)) {
        let mut with = |what: String, new: Option<(String, Stored)>| {
            let mut all = tensors.clone();
            all.remove(name);
            all.extend(new);
            out.push((format!("{what} {name}"), all));
        };
        with("drop".into(), None);
        with("rename".into(), Some((format!("{name}_x"), (dtype.clone(), shape.clone(), bytes.clone()))));
        let width = bytes.len() as u64 / shape.iter().product::<u64>().max(1);
        for (other, w) in TYPES.iter().filter(|(t, w)| *t != dtype && *w as u64 == width) {
            // A float of two bytes that is no scale is told apart by nothing.
            let plain = matches!(dtype.as_str(), "BF16" | "F16") && !name.contains("scale");
            if !(plain && *w == 2) {
                with(
                    format!("retype to {other}"),
                    Some((name.clone(), (other.to_string(), shape.clone(), bytes.clone()))),
                );
            }
        }
        let mut shapes = vec![vec![shape.iter().product::<u64>()], [&[1], &shape[..]].concat()];
        if shape.len() >= 2 {
            let mut turned = shape.clone();
            let last = turned.len() - 1;
            turned.swap(last - 1, last);
            shapes.push(turned);
        }
        for new in shapes.into_iter().filter(|s| s != shape) {
            with(format!("reshape to {new:?}"), Some((name.clone(), (dtype.clone(), new, bytes.clone()))));
        }
        let bad: &[&[u8]] = match dtype.as_str() {
            "F32" => &[&[0, 0, 0, 0], &[0, 0, 0x80, 0x7f], &[0, 0, 0xc0, 0x7f], &[0, 0, 0x80, 0xbf]],
            "BF16" => &[&[0, 0], &[0x80, 0x7f], &[0xc0, 0x7f], &[0x80, 0xbf]],
            "F16" => &[&[0, 0], &[0, 0x7c], &[0, 0x7e], &[0, 0xbc]],
            "F8_E4M3" => &[&[0], &[0x7f], &[0xb8]],
            "U8" | "F8_E8M0" => &[&[0xff]],
            _ => &[],
        };
        let is_scale = name.contains("scale") && !name.contains("input") && !bytes.is_empty();
        for value in bad.iter().filter(|_| is_scale) {
            for at in [0, bytes.len() / value.len() - 1] {
                let mut new = bytes.clone();
                new[at * value.len()..][..value.len()].copy_from_slice(value);
                with(format!("scale {at} to {value:x?} of"), Some((name.clone(), (dtype.clone(), shape.clone(), new))));
            }
        }
    }
    out
}

/// Every changed config: each key of the quantisation, at any depth, dropped or with another value.
fn changed_configs(config: &Value) -> Vec<(String, Value)> {
    let mut paths = Vec::new();
    collect(&config["quantization_config"], String::from("/quantization_config"), &mut paths);
    let mut out = Vec::new();
    for path in paths {
        let (parent, key) = path.rsplit_once('/').unwrap();
        let key = key.replace("~1", "/").replace("~0", "~");
        let mut with = |what: String, new: Option<Value>| {
            let mut all = config.clone();
            let object = all.pointer_mut(parent).and_then(Value::as_object_mut).unwrap();
            match new {
                Some(v) => object.insert(key.clone(), v),
                None => object.remove(&key),
            };
            out.push((format!("{what} {path}"), all));
        };
        with("drop".into(), None);
        let others = match config.pointer(&path).unwrap() {
            Value::Number(n) => vec![json!(n.as_u64().unwrap_or(1) * 2), json!(3), json!(-5), json!("four")],
            Value::Bool(b) => vec![json!(!b), json!("yes")],
            Value::String(_) => {
                ["gptq", "awq", "gptq_v2", "fp8", "e5m2", "int", "float", "channel", "tensor", "group", "NVFP4"]
                    .map(|s| json!(s))
                    .into_iter()
                    .chain([json!("nonsense"), json!(7)])
                    .collect()
            }
            Value::Array(_) => vec![json!([64, 128]), json!([]), json!("x")],
            Value::Object(_) => vec![json!({}), json!("x")],
            Value::Null => vec![json!("group"), json!(7)],
        };
        for other in others.into_iter().filter(|o| Some(o) != config.pointer(&path)) {
            with(format!("set to {other}"), Some(other));
        }
    }
    let mut stranger = config.clone();
    stranger["quantization_config"]["rotated_by"] = json!("hadamard");
    out.push(("a key that nobody knows".into(), stranger));
    out
}

fn collect(v: &Value, path: String, out: &mut Vec<String>) {
    for (key, value) in v.as_object().into_iter().flatten() {
        let below = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
        out.push(below.clone());
        collect(value, below, out);
    }
}

#[test]
fn what_loads_has_the_values_of_the_untouched_checkpoint() {
    let (mut tried, mut refused, mut same) = (0, 0, 0);
    let mut silent = Vec::new();
    for case in cases() {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let config = ModelConfig::open(&case).unwrap();
        let params = config.layer(recorded_layer(&case), &LayerOptions::default()).unwrap().graph.params;
        let params: Vec<Param> = params.into_iter().map(|p| Param { stored: None, ..p }).collect();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mutated-{name}"));
        std::fs::create_dir_all(&folder).unwrap();
        for file in ["config.json", "hf_quant_config.json"] {
            if case.join(file).exists() {
                std::fs::copy(case.join(file), folder.join(file)).unwrap();
            }
        }
        let tensors = read(&case.join("model.safetensors"));
        write(&folder.join("model.safetensors"), &tensors);
        let control = load(&folder, &params).unwrap_or_else(|code| panic!("{name}: {code}"));
        let mut judge = |what: &str| match load(&folder, &params) {
            Err(_) => refused += 1,
            Ok(values) if values == control => same += 1,
            Ok(_) if OTHER_CHECKPOINTS.iter().any(|(key, _)| what.ends_with(key)) => same += 1,
            Ok(_) => silent.push(format!("{name}: {what}")),
        };
        // The first layer with experts, whose first and last one stand for all.
        let layer = params.iter().find_map(|p| first_name(&p.source)).unwrap();
        let layer =
            [".mlp.", ".ffn.", ".feed_forward."].iter().find_map(|m| Some(layer.split_once(m)?.0.to_string())).unwrap();
        let wanted = |n: &str| {
            let middle = (1..3).any(|e| n.contains(&format!("experts.{e}.")));
            n.starts_with(&format!("{layer}.")) && !middle
        };
        for (what, changed) in changed_tensors(&tensors, &wanted) {
            write(&folder.join("model.safetensors"), &changed);
            tried += 1;
            judge(&what);
        }
        write(&folder.join("model.safetensors"), &tensors);
        let text: Value = serde_json::from_str(&std::fs::read_to_string(case.join("config.json")).unwrap()).unwrap();
        if text.get("quantization_config").is_some() {
            for (what, changed) in changed_configs(&text) {
                std::fs::write(folder.join("config.json"), changed.to_string()).unwrap();
                tried += 1;
                judge(&what);
            }
        }
    }
    println!("{tried} changes: {refused} refused, {same} with the values of before");
    assert!(tried > 1000 && refused > 500, "{tried} changes, {refused} refused");
    assert!(silent.is_empty(), "{} changes give other values without a word:\n{}", silent.len(), silent.join("\n"));
}

/// The number of a layer whose weights the case holds; the first where it does not say.
fn recorded_layer(case: &Path) -> Option<u32> {
    let names = std::fs::read_dir(case).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    let number = |n: String| n.strip_prefix("golden.layer")?.strip_suffix(".safetensors")?.parse().ok();
    names.filter_map(number).min()
}

fn first_name(source: &moec_ir::weights::WeightSource) -> Option<String> {
    use moec_ir::weights::WeightSource as W;
    match source {
        W::Tensor { names, .. } | W::PerExpert { names, .. } => names.first().cloned(),
        W::FirstOf(list) | W::LargestInputScale(list) => list.iter().find_map(first_name),
    }
}
