//! A model of one file or several, mapped, with its tensors under the names that families have for them.

use super::architectures::Architecture;
use super::container::{Gguf, Value, parse};
use super::tensors::tensors;
use crate::read::checkpoint::{Part, map};
use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Opens the files of a model, the first part first.
///
/// # Errors
/// Those of [`parse`] and [`tensors`], `gguf-split-incomplete` for parts that do not belong together, and
/// `gguf-model-unsupported` for an architecture that is not known.
pub(crate) fn open(files: Vec<PathBuf>) -> Result<Vec<Part>, Diagnostic> {
    let (mut parts, mut owner): (Vec<Part>, BTreeMap<String, usize>) = (Vec::new(), BTreeMap::new());
    let (count, mut architecture, mut total, mut n_tensors) = (files.len(), None, None, 0);
    for (i, path) in files.into_iter().enumerate() {
        let map = map(&path)?;
        let parsed = parse(&path, &map)?;
        check_part(&path, &parsed, i, count)?;
        total = total.or(whole(&parsed, "split.tensors.count"));
        n_tensors += parsed.tensors.len();
        let names = match architecture {
            Some(names) => names,
            None => *architecture.insert(&Architecture::of(&path, &parsed)?.names),
        };
        let entries = tensors(&path, parsed, names)?;
        for name in entries.keys() {
            if let Some(first) = owner.insert(name.clone(), i) {
                let first = parts.get(first).map_or(path.as_path(), |p| p.path.as_path());
                return Err(Diagnostic::input(
                    "gguf-invalid",
                    format!("the tensor `{name}` is in `{}` and again in `{}`", first.display(), path.display()),
                )
                .help("download all parts of one version of the model again"));
            }
        }
        parts.push(Part { path, map, entries });
    }
    match (total, parts.first()) {
        (Some(total), Some(first)) if total != n_tensors as i128 => {
            let what = format!("says that the model has {total} tensors, but its parts have {n_tensors}");
            Err(unfit(&first.path, &what))
        }
        _ => Ok(parts),
    }
}

/// Checks that a part is the one that its name says.
fn check_part(path: &Path, parsed: &Gguf, i: usize, count: usize) -> Result<(), Diagnostic> {
    match (whole(parsed, "split.no"), whole(parsed, "split.count")) {
        (_, Some(n)) if n > 1 && n != count as i128 => {
            Err(unfit(path, &format!("says that it is one of {n} parts, but is named as one of {count}")))
        }
        (Some(no), _) if no != i as i128 => {
            Err(unfit(path, &format!("says that it is part {}, but is named as part {}", no + 1, i + 1)))
        }
        _ => Ok(()),
    }
}

fn whole(parsed: &Gguf, key: &str) -> Option<i128> {
    match parsed.metadata.get(key) {
        Some(Value::Whole(n)) => Some(*n),
        _ => None,
    }
}

fn unfit(path: &Path, what: &str) -> Diagnostic {
    Diagnostic::input("gguf-split-incomplete", format!("`{}` {what}", path.display()))
        .help("download all parts into one folder under their own names, or join them with `llama-gguf-split --merge`")
}
