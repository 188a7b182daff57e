//! What a bundle is, as JSON for hosts. Unlike the manifest it says nothing of kernels.

use ::moec_bundle::Manifest;
use moec_ir::shape::{Dim, TensorType};
use serde_json::{Value, json};

/// One JSON object; `moec_description` is its version.
pub(crate) fn describe(m: &Manifest) -> Value {
    let tensor =
        |name: &str, ty: &TensorType| json!({ "name": name, "dtype": ty.dtype.to_string(), "shape": shape(ty) });
    let params: Vec<Value> = m
        .params
        .iter()
        .map(|p| {
            let mut param = tensor(&p.name, &p.ty);
            param["stored"] = p.stored.map_or(Value::Null, |f| json!(f.to_string()));
            param
        })
        .collect();
    let targets: Vec<Value> = m
        .targets
        .iter()
        .map(|t| json!({ "name": t.name, "max_tokens": t.max_tokens(), "requires": t.requires }))
        .collect();
    json!({
        "moec_description": 1,
        "name": m.layer.name,
        "model_type": m.layer.model_type,
        "layer": m.layer.layer,
        "facts": m.layer.facts,
        "inputs": m.inputs.iter().map(|t| tensor(&t.name, &t.ty)).collect::<Vec<_>>(),
        "outputs": m.outputs.iter().map(|t| tensor(&t.name, &t.ty)).collect::<Vec<_>>(),
        "params": params,
        "targets": targets,
    })
}

/// Axes as numbers; `"T"` or `"T*k"` where they depend on the token count.
fn shape(ty: &TensorType) -> Vec<Value> {
    let axis = |d: &Dim| match d {
        Dim::Fixed(n) => json!(n),
        Dim::PerToken(1) => json!("T"),
        Dim::PerToken(k) => json!(format!("T*{k}")),
    };
    ty.shape.iter().map(axis).collect()
}
