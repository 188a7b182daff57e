//! Where the initialisers of an ONNX file lie.

use super::{invalid, node, parse, proto, qmoe};
use crate::read::checkpoint::{Part, map};
use crate::read::safetensors::{Entry, StoredType};
use moec_ir::diag::Diagnostic;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// The ONNX file at `path` and the files beside it that hold its initialisers. Initialisers of types that moec does not
/// read are left out.
///
/// # Errors
/// `onnx-invalid`, `checkpoint-not-found` for a file of data that is not there, `checkpoint-unreadable`.
pub(crate) fn open(path: &Path) -> Result<Vec<Part>, Diagnostic> {
    let (graph, bytes) = parse(path)?;
    let mut parts = vec![Part { path: path.to_path_buf(), map: map(path)?, entries: BTreeMap::new() }];
    let mut seen = BTreeSet::new();
    for t in graph.initializer {
        if !seen.insert(t.name.clone()) {
            return Err(invalid(path, format!("it has two initialisers `{}`", t.name)));
        }
        let Some(dtype) = stored_type(t.data_type) else { continue };
        let shape = shape(path, &t)?;
        let wrong = |found: String, wanted: usize| {
            invalid(path, format!("the data of `{}` are {found}, but its shape asks for {wanted} bytes", t.name))
        };
        let wanted =
            shape.iter().try_fold(dtype.bits() / 8, |a, &n| a.checked_mul(n)).and_then(|n| usize::try_from(n).ok());
        let wanted = wanted.ok_or_else(|| invalid(path, format!("`{}` has too many elements", t.name)))?;
        let (part, start, length) = match t.data_location {
            1 => {
                let (file, offset, length) = external(path, &t, wanted)?;
                let at = match parts.iter().position(|p| p.path == file) {
                    Some(at) => at,
                    None => {
                        parts.push(Part { map: map(&file)?, path: file, entries: BTreeMap::new() });
                        parts.len() - 1
                    }
                };
                (at, offset, length)
            }
            _ => {
                let raw = if t.raw_data.is_empty() { &t.float_data } else { &t.raw_data };
                if raw.is_empty() && wanted > 0 {
                    // Small integers of shapes and axes may be written as numbers; no weight is.
                    continue;
                }
                (0, (raw.as_ptr() as usize).saturating_sub(bytes.as_ptr() as usize), raw.len())
            }
        };
        if length != wanted {
            return Err(wrong(format!("{length} bytes"), wanted));
        }
        let end = start.checked_add(length).filter(|&end| end <= parts[part].map.len());
        let end = end.ok_or_else(|| {
            wrong(
                format!("outside of `{}`, which has {} bytes", parts[part].path.display(), parts[part].map.len()),
                wanted,
            )
        })?;
        let entry =
            Entry { dtype, shape, start: if length == 0 { 0 } else { start }, end: if length == 0 { 0 } else { end } };
        parts[part].entries.insert(t.name, entry);
    }
    let nodes: Vec<_> = graph.node.into_iter().map(node).collect();
    qmoe::name_codes(path, &nodes, &mut parts)?;
    Ok(parts)
}

/// `TensorProto.DataType`.
pub(super) fn stored_type(number: i32) -> Option<StoredType> {
    Some(match number {
        1 => StoredType::F32,
        2 => StoredType::U8,
        3 => StoredType::I8,
        6 => StoredType::I32,
        7 => StoredType::I64,
        10 => StoredType::F16,
        11 => StoredType::F64,
        16 => StoredType::BF16,
        _ => return None,
    })
}

pub(super) fn shape(path: &Path, t: &proto::Tensor) -> Result<Vec<u64>, Diagnostic> {
    let length =
        |&n: &i64| u64::try_from(n).map_err(|_| invalid(path, format!("`{}` has an axis of length {n}", t.name)));
    t.dims.iter().map(length).collect()
}

/// The file that holds a tensor, and where.
fn external(path: &Path, t: &proto::Tensor, wanted: usize) -> Result<(PathBuf, usize, usize), Diagnostic> {
    let value = |key: &str| t.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
    let location = value("location").unwrap_or_default();
    let inside = !location.is_empty() && Path::new(location).components().all(|c| matches!(c, Component::Normal(_)));
    if !inside {
        return Err(invalid(path, format!("`{}` lies in {location:?}, which is no file below the folder", t.name)));
    }
    let number = |key: &str, default: usize| match value(key) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| invalid(path, format!("the {key} of `{}` is {text:?}", t.name))),
    };
    let file = path.parent().unwrap_or(Path::new("")).join(location);
    Ok((file, number("offset", 0)?, number("length", wanted)?))
}
