//! Hands what a config says about its weights to the room that knows the formats.

use crate::json::{Json, Object};
use moec_ir::DType;
use moec_ir::diag::Diagnostic;
use moec_weights::config::PLACES;
use moec_weights::config::ordered::members;
use moec_weights::{Published, Source};
use serde_json::Value;

/// Reads the config of a model. `None` when the weights are floats.
///
/// # Errors
/// `config-key-type` for a value of another type than every config has there.
pub(crate) fn of(root: &Object, dtype: DType) -> Result<Option<Published>, Diagnostic> {
    read(root, PLACES, dtype)
}

/// Reads ModelOpt's `hf_quant_config.json`: its member `quantization`.
///
/// # Errors
/// As [`of`].
pub(crate) fn of_modelopt(top: &Object, dtype: DType) -> Result<Option<Published>, Diagnostic> {
    let published = read(top, &["quantization"], dtype)?;
    Ok(published.map(|p| {
        let words = if p.words.contains("modelopt") { p.words.clone() } else { format!("modelopt {}", p.words) };
        Published { words, ..p }
    }))
}

fn read(root: &Object, places: &[&str], dtype: DType) -> Result<Option<Published>, Diagnostic> {
    // Only the keys that may speak of weights: the rest of a config may be large.
    let first = |place: &str| place.split('.').next().unwrap_or_default().to_string();
    let mut keys: Vec<String> = places.iter().map(|p| first(p)).collect();
    keys.extend(["dtype", "expert_dtype"].map(String::from));
    let mut top = serde_json::Map::new();
    for key in keys {
        if let Some(node) = root.get(&key) {
            let value = value(&key, node)?;
            top.insert(key, value);
        }
    }
    let Some(source) = Source::within(&Value::Object(top), places) else { return Ok(None) };
    let origin =
        source.place.split('.').try_fold(root.node().clone(), |node, key| node.object().ok()?.get(key).cloned());
    Published::read(source, dtype).map(Some).map_err(|d| d.at(origin.map(|node| node.origin())))
}

/// A value with everything in it; objects of rules keep their order. `key` is where it stands.
fn value(key: &str, node: &Json) -> Result<Value, Diagnostic> {
    if node.is_object() {
        let object = node.object()?;
        let member = |(key, node): &(String, Json)| Ok((key.clone(), value(key, node)?));
        let all = object.members().iter().map(member).collect::<Result<Vec<_>, _>>()?;
        return Ok(members(key, all));
    }
    if node.is_list() {
        return node.list()?.iter().map(|v| value("", v)).collect::<Result<Vec<_>, _>>().map(Value::Array);
    }
    Ok(serde_json::from_str(node.raw()).unwrap_or(Value::Null))
}
