//! `moec emulate --init`: a recipe to fill in, from what the PTX says of its kernels.

use moec_ptx::ast::{Function, Module, Number, Variable};
use serde_json::{Value, json};

/// A recipe for a kernel: entry, target, parameters by their types; what only the user knows has an example.
pub fn initial(module: &Module, entry: &Function) -> String {
    let params: Vec<Value> = entry
        .params
        .as_deref()
        .unwrap_or_default()
        .iter()
        .flat_map(|v| v.names.iter().map(|d| param(v, &d.name)))
        .collect();
    let three = |directive: &str| {
        let given = entry.directive(directive)?;
        Some([0, 1, 2].map(|i| given.get(i).copied().unwrap_or(1).max(1)))
    };
    let buffers: Vec<&Value> = params.iter().filter_map(|p| p.get("buffer")).collect();
    let outputs: Vec<&Value> = buffers.last().copied().into_iter().collect();
    let tolerance = outputs.iter().filter_map(|o| Some((o.as_str()?.to_owned(), json!({"rel_fro": 0})))).collect();
    let recipe = json!({
        "entry": entry.name,
        "target": module.target.first(),
        "grid": [1, 1, 1],
        "block": three("reqntid").or_else(|| three("maxntid")).unwrap_or([128, 1, 1]),
        "cluster": three("reqnctapercluster").unwrap_or([1; 3]),
        "dynamic_smem_bytes": 0,
        "params": params,
        "outputs": outputs,
        "tolerance": Value::Object(tolerance),
        "note": "grid, numbers, outputs and shared memory are examples: the PTX does not say them",
    });
    let mut text = serde_json::to_string_pretty(&recipe).unwrap_or_default();
    text.push('\n');
    text
}

/// A parameter of the type that the PTX declares: addresses are buffers, structs of 128 bytes tensor maps.
fn param(v: &Variable, name: &str) -> Value {
    let extent = v.names.iter().find(|d| d.name == name).and_then(|d| match d.dims.first()?.as_ref()?.value {
        Number::Int(n) => usize::try_from(n).ok(),
        Number::F32(_) | Number::F64(_) => None,
    });
    match (v.ty.as_str(), extent) {
        ("b8", Some(128)) if v.align.is_some_and(|a| a >= 64) => json!({"tensor_map": {
            "buffer": name, "dtype": "bf16", "dims": [64, 64], "strides_bytes": [128], "box": [64, 64],
            "element_strides": [1, 1], "swizzle": "128B", "interleave": "none", "oob": "zero",
        }}),
        ("b8", Some(n)) => json!({"bytes": "00".repeat(n)}),
        ("u64" | "b64", None) => json!({"buffer": name}),
        (ty, None) => {
            let key = match ty.strip_prefix(['b', 's']) {
                Some(bits) if ty.starts_with('s') => format!("i{bits}"),
                Some(bits) => format!("u{bits}"),
                None => ty.to_owned(),
            };
            Value::Object([(key, json!(1))].into_iter().collect())
        }
        (_, Some(_)) => json!({"null": true}),
    }
}
