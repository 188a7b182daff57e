//! Every change of a fixed list: each tensor dropped, renamed, retyped, reshaped, or with a scale that no quantiser writes; each
//! key of the quantisation dropped or with another value.

use super::{Stored, Tensors};
use serde_json::{Value, json};

/// Types of the same width, as a wrong header may name them.
pub(super) const TYPES: &[(&str, usize)] = &[
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

/// Every changed set of tensors, with what was done.
pub fn changed_tensors(tensors: &Tensors, wanted: &dyn Fn(&str) -> bool) -> Vec<(String, Tensors)> {
    let mut out = Vec::new();
    for (name, stored) in tensors.iter().filter(|(n, _)| wanted(n)) {
        let Stored { dtype, shape, bytes } = stored;
        let mut with = |what: String, new: Option<(String, Stored)>| {
            let mut all = tensors.clone();
            all.remove(name);
            all.extend(new);
            out.push((format!("{what} {name}"), all));
        };
        with("drop".into(), None);
        with("rename".into(), Some((format!("{name}_x"), stored.clone())));
        let width = bytes.len() as u64 / shape.iter().product::<u64>().max(1);
        for (other, w) in TYPES.iter().filter(|(t, w)| *t != dtype && *w as u64 == width) {
            // A float of two bytes that is no scale is told apart by nothing.
            let plain = matches!(dtype.as_str(), "BF16" | "F16") && !name.contains("scale");
            if !(plain && *w == 2) {
                let new = Stored { dtype: other.to_string(), ..stored.clone() };
                with(format!("retype to {other}"), Some((name.clone(), new)));
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
            with(format!("reshape to {new:?}"), Some((name.clone(), Stored { shape: new, ..stored.clone() })));
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
                let new = Stored { bytes: new, ..stored.clone() };
                with(format!("scale {at} to {value:x?} of"), Some((name.clone(), new)));
            }
        }
    }
    out
}

/// Every changed config: each key of the quantisation, at any depth, dropped or with another value.
pub fn changed_configs(config: &Value) -> Vec<(String, Value)> {
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
