//! A checkpoint on disk: one safetensors file, several, or an index of shards, mapped into memory.

use crate::safetensors::{Entry, TensorView, duplicate, parse_header};
use memmap2::Mmap;
use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The tensors of a model, read where they are.
///
/// Shards that an index names are opened when the first of their tensors is asked for, so a download that holds only
/// the shards of one layer is enough to run that layer.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name to index of its shard.
    index: BTreeMap<String, usize>,
    hints: OnceLock<Hints>,
}

/// What only the config beside the weights says about a weight format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Rows and columns of a block of FP8 weights.
    pub block: Option<(u64, u64)>,
    /// Columns of a group of integers.
    pub group_size: Option<u64>,
    /// Bits of an integer code.
    pub bits: Option<u32>,
    /// Variant of the packing: `gptq`, `gptq_v2`, `gemm`, …
    pub packing: Option<String>,
}

/// The largest config that is read for hints, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

impl Hints {
    /// Reads the config; whatever it does not say, or says in another way, stays unknown.
    fn read(config: &Path) -> Hints {
        let small = std::fs::metadata(config).is_ok_and(|m| m.is_file() && m.len() <= MAX_CONFIG_BYTES);
        let text = small.then(|| std::fs::read(config).ok()).flatten().unwrap_or_default();
        let Ok(root) = serde_json::from_slice::<serde_json::Value>(&text) else { return Hints::default() };
        let keys = ["quantization_config", "compression_config"];
        let nested = ["", "text_config", "language_config", "llm_config", "thinker_config"];
        let places = nested.iter().filter_map(|n| if n.is_empty() { Some(&root) } else { root.get(n) });
        let Some(q) = places.flat_map(|p| keys.iter().filter_map(|k| p.get(k))).next() else { return Hints::default() };
        let size = |v: &serde_json::Value| v.as_u64().filter(|&n| n > 0);
        let block = q.get("weight_block_size").and_then(|b| Some((size(b.get(0)?)?, size(b.get(1)?)?)));
        let word = |key: &str| q.get(key).and_then(|v| v.as_str()).map(str::to_lowercase);
        Hints {
            block,
            group_size: q.get("group_size").and_then(size),
            bits: q.get("bits").and_then(size).and_then(|b| u32::try_from(b).ok()),
            packing: word("checkpoint_format").or_else(|| word("version")),
        }
    }
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    opened: OnceLock<Result<Mapped, Diagnostic>>,
}

#[derive(Debug)]
struct Mapped {
    map: Mmap,
    entries: BTreeMap<String, Entry>,
}

#[derive(serde::Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a model directory or a `.safetensors` file.
    ///
    /// In a directory an index (`*.safetensors.index.json`) counts first, then `model.safetensors`, then every
    /// `*.safetensors` file there is.
    ///
    /// # Errors
    /// `checkpoint-not-found`, `checkpoint-unreadable`, `checkpoint-index-invalid`, `safetensors-truncated`,
    /// `safetensors-header-invalid`, `safetensors-tensor-invalid`, `safetensors-duplicate-tensor`.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint, Diagnostic> {
        let path = path.as_ref();
        let kind = std::fs::metadata(path).map_err(|e| not_found(path, e.to_string()))?;
        if kind.is_file() {
            if path.to_string_lossy().ends_with(".safetensors.index.json") {
                return Checkpoint::from_index(path, path);
            }
            return Checkpoint::from_files(path, vec![path.to_path_buf()]);
        }
        let mut names: Vec<String> = std::fs::read_dir(path)
            .map_err(|e| unreadable(path, &e))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        if let Some(index) = names.iter().find(|n| n.ends_with(".safetensors.index.json")) {
            return Checkpoint::from_index(path, &path.join(index));
        }
        if names.iter().any(|n| n == "model.safetensors") {
            return Checkpoint::from_files(path, vec![path.join("model.safetensors")]);
        }
        let files: Vec<PathBuf> = names.iter().filter(|n| n.ends_with(".safetensors")).map(|n| path.join(n)).collect();
        if files.is_empty() {
            return Err(not_found(path, "the directory holds no `*.safetensors` file".into()));
        }
        Checkpoint::from_files(path, files)
    }

    fn from_files(path: &Path, files: Vec<PathBuf>) -> Result<Checkpoint, Diagnostic> {
        let mut index = BTreeMap::new();
        let mut shards: Vec<Shard> = Vec::new();
        for (i, file) in files.into_iter().enumerate() {
            let shard = Shard { path: file, opened: OnceLock::new() };
            for name in shard.get()?.entries.keys() {
                if let Some(first) = index.insert(name.clone(), i) {
                    let first: &Shard = &shards[first];
                    return Err(duplicate(&first.path, &shard.path, name));
                }
            }
            shards.push(shard);
        }
        Ok(Checkpoint { path: path.to_path_buf(), shards, index, hints: OnceLock::new() })
    }

    fn from_index(path: &Path, file: &Path) -> Result<Checkpoint, Diagnostic> {
        let invalid = |what: String| {
            Diagnostic::input("checkpoint-index-invalid", format!("the index `{}` {what}", file.display()))
                .help("download the index again; it is the `*.safetensors.index.json` beside the shards")
        };
        let text = std::fs::read(file).map_err(|e| unreadable(file, &e))?;
        let parsed: IndexFile = serde_json::from_slice(&text).map_err(|e| invalid(format!("cannot be read: {e}")))?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let mut files: Vec<&String> = parsed.weight_map.values().collect();
        files.sort();
        files.dedup();
        for name in &files {
            // An index is data from elsewhere: it may name files beside itself and nothing else.
            let plain = Path::new(name).file_name().is_some_and(|f| f == name.as_str());
            if !plain || name.contains(['/', '\\']) {
                return Err(invalid(format!("names the shard `{name}`, which is not a plain file name")));
            }
        }
        let index = parsed
            .weight_map
            .iter()
            .map(|(tensor, shard)| (tensor.clone(), files.partition_point(|f| *f < shard)))
            .collect();
        let shards = files.iter().map(|f| Shard { path: folder.join(f), opened: OnceLock::new() }).collect();
        Ok(Checkpoint { path: path.to_path_buf(), shards, index, hints: OnceLock::new() })
    }

    /// What the `config.json` beside the weights says about their format.
    pub fn hints(&self) -> &Hints {
        self.hints.get_or_init(|| {
            let folder = if self.path.is_dir() { Some(self.path.as_path()) } else { self.path.parent() };
            folder.map_or_else(Hints::default, |f| Hints::read(&f.join("config.json")))
        })
    }

    /// Words that tell this checkpoint from others and from later states of itself: path, size and time of change of every
    /// shard, and the [`Hints`]. No shard is read.
    ///
    /// # Errors
    /// When a shard cannot be looked at. Shards that are not there count as such.
    pub fn identity(&self) -> std::io::Result<String> {
        let mut words = format!("{:?}", self.hints());
        for shard in &self.shards {
            let path = std::path::absolute(&shard.path)?;
            let state = match std::fs::metadata(&path) {
                Ok(m) => format!("{} {:?}", m.len(), m.modified()?),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => "absent".to_string(),
                Err(e) => return Err(e),
            };
            words += &format!("\n{} {state}", path.display());
        }
        Ok(words)
    }

    /// What was opened, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor name, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Whether the checkpoint has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The tensor called `name`, or `None` when there is no such tensor.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`], when the tensor's shard is missing or damaged.
    pub fn tensor(&self, name: &str) -> Result<Option<TensorView<'_>>, Diagnostic> {
        let Some(&i) = self.index.get(name) else {
            return Ok(None);
        };
        let shard = &self.shards[i];
        let mapped = shard.get()?;
        let Some(entry) = mapped.entries.get(name) else {
            return Err(Diagnostic::input(
                "checkpoint-index-invalid",
                format!(
                    "the index of `{}` says that `{name}` is in `{}`, but it is not",
                    self.path.display(),
                    shard.path.display()
                ),
            )
            .help("index and shards belong to different versions of the model; download both again"));
        };
        Ok(Some(TensorView {
            dtype: entry.dtype,
            shape: &entry.shape,
            data: &mapped.map[entry.start..entry.end],
            file: &shard.path,
        }))
    }

    /// The name of the checkpoint that looks most like `wanted`: for messages.
    pub(crate) fn nearest(&self, wanted: &str) -> Option<&str> {
        let likeness = |name: &str| {
            let front = name.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
            let back = name.bytes().rev().zip(wanted.bytes().rev()).take_while(|(a, b)| a == b).count();
            (front + back).min(wanted.len())
        };
        // The first of equals, in alphabetical order: `max_by_key` would give the last.
        let mut best: Option<(usize, &str)> = None;
        for name in self.names() {
            let score = likeness(name);
            if best.is_none_or(|(s, _)| score > s) {
                best = Some((score, name));
            }
        }
        best.filter(|(score, _)| score * 2 >= wanted.len()).map(|(_, name)| name)
    }
}

impl Shard {
    fn get(&self) -> Result<&Mapped, Diagnostic> {
        self.opened.get_or_init(|| map_file(&self.path)).as_ref().map_err(Clone::clone)
    }
}

fn map_file(path: &Path) -> Result<Mapped, Diagnostic> {
    let file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => not_found(path, "the file does not exist".into()),
        _ => unreadable(path, &e),
    })?;
    // SAFETY: the map is read-only and private to this process. Another process that shortens the file while it is
    // mapped would make reads fault; that risk is inherent to mapping weights and the same in every engine that does.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| unreadable(path, &e))?;
    let entries = parse_header(path, &map)?;
    Ok(Mapped { map, entries })
}

fn not_found(path: &Path, why: String) -> Diagnostic {
    Diagnostic::input("checkpoint-not-found", format!("there is no checkpoint at `{}`", path.display()))
        .note(why)
        .help("give a model directory with `*.safetensors` files, or one such file; a sharded model needs the shards that its index names for this layer")
}

fn unreadable(path: &Path, e: &std::io::Error) -> Diagnostic {
    Diagnostic::input("checkpoint-unreadable", format!("`{}` cannot be read: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::write_safetensors;
    use moec_ir::{DType, Tensor};

    fn tensor(x: f32) -> Tensor {
        Tensor::float(DType::F32, &[2], vec![x, x])
    }

    fn index(dir: &Path, entries: &[(&str, &str)]) {
        let map: BTreeMap<_, _> = entries.iter().copied().collect();
        let json = serde_json::json!({ "metadata": {}, "weight_map": map });
        std::fs::write(dir.join("model.safetensors.index.json"), json.to_string()).expect("index");
    }

    #[test]
    fn shards_are_found_through_the_index_and_opened_when_needed() {
        let dir = tempfile::tempdir().expect("dir");
        write_safetensors(&dir.path().join("model-1.safetensors"), &[("a", &tensor(1.0))]).expect("write");
        index(dir.path(), &[("a", "model-1.safetensors"), ("b", "model-2.safetensors")]);
        let c = Checkpoint::open(dir.path()).expect("open");
        assert_eq!(c.names().collect::<Vec<_>>(), ["a", "b"]);
        let a = c.tensor("a").expect("readable").expect("there");
        assert_eq!(a.to_tensor().expect("float"), tensor(1.0));
        assert_eq!(c.tensor("b").expect_err("missing shard").code, "checkpoint-not-found");
        assert!(c.tensor("c").expect("no error").is_none());
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        for name in ["../secret.safetensors", "/etc/passwd", "..", "a\\b", ""] {
            let dir = tempfile::tempdir().expect("dir");
            index(dir.path(), &[("a", name)]);
            assert_eq!(Checkpoint::open(dir.path()).expect_err("refused").code, "checkpoint-index-invalid", "{name}");
        }
    }

    #[test]
    fn an_index_that_disagrees_with_its_shard_is_reported() {
        let dir = tempfile::tempdir().expect("dir");
        write_safetensors(&dir.path().join("model-1.safetensors"), &[("a", &tensor(1.0))]).expect("write");
        index(dir.path(), &[("b", "model-1.safetensors")]);
        let c = Checkpoint::open(dir.path()).expect("open");
        assert_eq!(c.tensor("b").expect_err("wrong").code, "checkpoint-index-invalid");
    }

    #[test]
    fn model_safetensors_counts_before_other_files() {
        let dir = tempfile::tempdir().expect("dir");
        write_safetensors(&dir.path().join("golden.safetensors"), &[("a", &tensor(1.0))]).expect("write");
        write_safetensors(&dir.path().join("model.safetensors"), &[("a", &tensor(2.0))]).expect("write");
        let c = Checkpoint::open(dir.path()).expect("open");
        assert_eq!(c.tensor("a").expect("readable").expect("there").to_tensor().expect("float"), tensor(2.0));
    }

    #[test]
    fn several_files_are_one_checkpoint_unless_names_collide() {
        let dir = tempfile::tempdir().expect("dir");
        write_safetensors(&dir.path().join("x.safetensors"), &[("a", &tensor(1.0))]).expect("write");
        write_safetensors(&dir.path().join("y.safetensors"), &[("b", &tensor(2.0))]).expect("write");
        assert_eq!(Checkpoint::open(dir.path()).expect("open").names().count(), 2);
        write_safetensors(&dir.path().join("z.safetensors"), &[("b", &tensor(2.0))]).expect("write");
        assert_eq!(Checkpoint::open(dir.path()).expect_err("collision").code, "safetensors-duplicate-tensor");
    }

    #[test]
    fn missing_and_empty_places_are_named() {
        let dir = tempfile::tempdir().expect("dir");
        assert_eq!(Checkpoint::open(dir.path()).expect_err("empty").code, "checkpoint-not-found");
        assert_eq!(Checkpoint::open(dir.path().join("none")).expect_err("none").code, "checkpoint-not-found");
        let file = dir.path().join("model.safetensors");
        std::fs::write(&file, []).expect("write");
        assert_eq!(Checkpoint::open(&file).expect_err("empty file").code, "safetensors-truncated");
    }
}
