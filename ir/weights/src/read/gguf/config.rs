//! What the metadata of a GGUF model say, as the keys of a Hugging Face `config.json`.

use super::architectures::Architecture;
use super::container::{Gguf, Value, parse};
use super::files;
use crate::read::checkpoint::map;
use crate::read::safetensors::StoredType;
use moec_ir::diag::Diagnostic;
use serde_json::{Map, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The config of a GGUF model.
#[derive(Clone, Debug)]
pub struct GgufConfig {
    /// The file that says it.
    pub file: PathBuf,
    /// What a `config.json` of the model has.
    pub json: serde_json::Value,
}

/// The config of the GGUF model at `path`, a file or a folder; `None` when there is none.
///
/// Nothing is filled in that neither the file says nor llama.cpp does the same way for all models of the architecture. The
/// element type is that of the experts where they are floats, bfloat16 where they are codes.
///
/// # Errors
/// `gguf-metadata-missing`, `gguf-metadata-mismatch`, `gguf-model-unsupported`, and those of [`crate::Checkpoint::open`].
pub fn config(path: &Path) -> Result<Option<GgufConfig>, Diagnostic> {
    let Some(files) = files::find(path)? else { return Ok(None) };
    let mut parts = Vec::new();
    for file in &files {
        parts.push(parse(file, &map(file)?)?);
    }
    let (Some(file), Some(first)) = (files.first(), parts.first()) else { return Ok(None) };
    let architecture = Architecture::of(file, first)?;
    let keys = Keys { file, architecture: architecture.name, gguf: first, read: RefCell::default() };
    let mut config = (architecture.config)(&keys)?;
    keys.all_read()?;
    config.insert("torch_dtype".into(), json!(dtype(&parts)));
    layers_agree(&keys, &config, &parts)?;
    Ok(Some(GgufConfig { file: file.clone(), json: config.into() }))
}

/// The metadata of a model below the name of its architecture. Remembers which were asked for.
pub(crate) struct Keys<'a> {
    file: &'a Path,
    architecture: &'static str,
    gguf: &'a Gguf,
    read: RefCell<BTreeSet<String>>,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> (String, Option<&Value>) {
        let full = format!("{}.{key}", self.architecture);
        self.read.borrow_mut().insert(full.clone());
        let value = self.gguf.metadata.get(&full);
        (full, value)
    }

    /// A whole number, or a list that has the same one for all layers.
    pub(super) fn whole_or_none(&self, key: &str) -> Result<Option<u64>, Diagnostic> {
        let (full, value) = self.get(key);
        let found = match value {
            None => return Ok(None),
            Some(Value::Whole(n)) => u64::try_from(*n).ok(),
            Some(Value::Numbers(list)) => {
                let first = list.first().copied().filter(|x| *x >= 0.0 && x.fract() == 0.0);
                first.filter(|x| list.iter().all(|y| y == x)).map(|x| x as u64)
            }
            Some(Value::Real(_) | Value::Flag(_) | Value::Text(_) | Value::Texts(_)) => None,
        };
        let value = value.map(show).unwrap_or_default();
        found.map(Some).ok_or_else(|| self.mismatch(format!("says `{full}` = {value}; one whole number is needed")))
    }

    /// A whole number.
    pub(super) fn whole(&self, key: &str) -> Result<u64, Diagnostic> {
        self.whole_or_none(key)?.ok_or_else(|| self.missing(key, "a whole number"))
    }

    /// A number.
    pub(super) fn real_or_none(&self, key: &str) -> Result<Option<f64>, Diagnostic> {
        match self.get(key) {
            (_, None) => Ok(None),
            (_, Some(Value::Real(x))) if x.is_finite() => Ok(Some(*x)),
            (_, Some(Value::Whole(n))) => Ok(Some(*n as f64)),
            (full, Some(v)) => Err(self.mismatch(format!("says `{full}` = {}; a number is needed", show(v)))),
        }
    }

    /// True or false.
    pub(super) fn flag_or_none(&self, key: &str) -> Result<Option<bool>, Diagnostic> {
        match self.get(key) {
            (_, None) => Ok(None),
            (_, Some(Value::Flag(b))) => Ok(Some(*b)),
            (full, Some(v)) => Err(self.mismatch(format!("says `{full}` = {}; true or false is needed", show(v)))),
        }
    }

    /// Checks that a whole number, where there is one, is one of `values`; `why` says what others would mean.
    pub(super) fn expect(&self, key: &str, values: &[u64], why: &str) -> Result<(), Diagnostic> {
        match self.whole_or_none(key)? {
            Some(n) if !values.contains(&n) => Err(self.unsupported(key, &n.to_string(), why)),
            _ => Ok(()),
        }
    }

    /// Whether a file of the model has a tensor whose name ends like this.
    pub(super) fn has_tensor(&self, suffix: &str) -> bool {
        self.gguf.tensors.keys().any(|name| name.starts_with("blk.") && name.ends_with(suffix))
    }

    /// The error of a value that is not there.
    pub(super) fn missing(&self, key: &str, what: &str) -> Diagnostic {
        let (file, name) = (self.file.display(), self.architecture);
        Diagnostic::input("gguf-metadata-missing", format!("`{file}` does not say `{name}.{key}`, {what}"))
            .help("convert the model again with a newer llama.cpp, or give the folder of the model's own config.json and this file with `--weights`")
    }

    /// The error of a value that stands for something that moec would not compute.
    pub(super) fn unsupported(&self, key: &str, value: &str, why: &str) -> Diagnostic {
        let (file, name) = (self.file.display(), self.architecture);
        let message = format!("`{file}` says `{name}.{key}` = {value}, which moec does not read for this architecture");
        Diagnostic::input("gguf-model-unsupported", message)
            .note(why)
            .help("give the folder of the model's own config.json, and this file with `--weights`")
    }

    /// The error of metadata that contradict each other, or the tensors.
    pub(super) fn mismatch(&self, what: String) -> Diagnostic {
        Diagnostic::input("gguf-metadata-mismatch", format!("`{}` {what}", self.file.display()))
            .help("the file was written by a faulty tool, or for another architecture than it says; convert it again")
    }

    /// Refuses metadata about experts that nothing asked for: they would change what the layer computes.
    fn all_read(&self) -> Result<(), Diagnostic> {
        let about_experts = ["expert", "moe", "swiglu", "nextn", "interleave", "router"];
        let read = self.read.borrow();
        let unread = self.gguf.metadata.iter().find(|(key, _)| {
            let own = key.strip_prefix(self.architecture).and_then(|k| k.strip_prefix('.'));
            own.is_some_and(|k| about_experts.iter().any(|w| k.contains(w))) && !read.contains(*key)
        });
        match unread {
            None => Ok(()),
            Some((key, value)) => {
                let key = &key[self.architecture.len() + 1..];
                Err(self.unsupported(key, &show(value), "it may change what a layer computes"))
            }
        }
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Whole(n) => n.to_string(),
        Value::Real(x) => x.to_string(),
        Value::Flag(b) => b.to_string(),
        Value::Text(t) => format!("{:?}", t.chars().take(60).collect::<String>()),
        Value::Numbers(list) if list.len() <= 8 => format!("{list:?}"),
        Value::Numbers(_) => "a list of numbers".into(),
        Value::Texts(n) => format!("a list of {n} strings"),
    }
}

/// The element type that a `config.json` would name.
fn dtype(parts: &[Gguf]) -> &'static str {
    let stacks = parts.iter().flat_map(|p| &p.tensors).filter(|(name, _)| name.ends_with("_exps.weight"));
    let mut types: Vec<StoredType> = stacks.map(|(_, e)| e.dtype).collect();
    types.dedup();
    match types[..] {
        [StoredType::F32] => "float32",
        [StoredType::F16] => "float16",
        _ => "bfloat16",
    }
}

/// Checks that the layers that should have experts are those whose routers are there.
fn layers_agree(keys: &Keys<'_>, config: &Map<String, serde_json::Value>, parts: &[Gguf]) -> Result<(), Diagnostic> {
    let number = |key: &str| config.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let first = number("first_k_dense_replace");
    let last = number("num_hidden_layers").saturating_add(number("num_nextn_predict_layers"));
    let there: BTreeSet<u64> = parts
        .iter()
        .flat_map(|p| p.tensors.keys())
        .filter_map(|name| name.strip_prefix("blk.")?.strip_suffix(".ffn_gate_inp.weight")?.parse().ok())
        .collect();
    // Converters may leave out the layers that predict further tokens.
    let needed = first..number("num_hidden_layers");
    let missing = needed.clone().find(|l| !there.contains(l));
    let beyond = there.iter().find(|l| **l < first || **l >= last);
    match (missing, beyond) {
        (None, None) => Ok(()),
        (Some(layer), _) => Err(keys.mismatch(format!(
            "says that layers {} to {} have experts, but there is no `blk.{layer}.ffn_gate_inp.weight`",
            needed.start,
            needed.end.saturating_sub(1)
        ))),
        (None, Some(layer)) => Err(keys.mismatch(format!(
            "has `blk.{layer}.ffn_gate_inp.weight`, but says that layers {first} to {} have experts",
            last.saturating_sub(1)
        ))),
    }
}
