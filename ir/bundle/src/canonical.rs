//! One way to write a manifest: keys sorted, two spaces, so that the same manifest is the same bytes.

use crate::manifest::Manifest;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The text of `manifest.json`.
pub(crate) fn manifest_text(manifest: &Manifest) -> String {
    canonical_text(manifest)
}

/// The text of any manifest.
pub(crate) fn canonical_text(manifest: &impl Serialize) -> String {
    let value = serde_json::to_value(manifest).expect("a manifest should be representable as JSON");
    let mut out = String::new();
    write_value(&value, 0, &mut out);
    out.push('\n');
    out
}

/// SHA-256 in lowercase hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Sorts the keys itself: whether the JSON library keeps them sorted depends on features that other crates switch on.
fn write_value(value: &Value, depth: usize, out: &mut String) {
    let indent = |out: &mut String, depth: usize| {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str("  "));
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                indent(out, depth + 1);
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                write_value(&map[key], depth + 1, out);
            }
            indent(out, depth);
            out.push('}');
        }
        // Lists of plain values, such as shapes, stay on one line.
        Value::Array(list) if list.iter().any(|v| v.is_object() || v.is_array()) => {
            out.push('[');
            for (i, item) in list.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                indent(out, depth + 1);
                write_value(item, depth + 1, out);
            }
            indent(out, depth);
            out.push(']');
        }
        Value::Array(list) => {
            let items: Vec<String> = list.iter().map(Value::to_string).collect();
            out.push_str(&format!("[{}]", items.join(", ")));
        }
        Value::Object(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&value.to_string());
        }
    }
}
