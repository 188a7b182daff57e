//! A checkpoint on disk: one safetensors file, several, or an index of shards, mapped into memory.

use super::gguf;
use super::index::{self, Files, INDEX};
use super::safetensors::{Entry, TensorView, duplicate, parse_header};
use super::{onnx, pt2};
use indexmap::IndexMap;
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
    /// Tensor name to index of its shard, in alphabetical order. Names of experts begin alike, so that a tree would compare them long.
    index: IndexMap<String, usize>,
    /// The index file, when shards were found by one.
    by_index: Option<PathBuf>,
    is_gguf: bool,
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

/// One file of a checkpoint in memory, and the tensors in it.
#[derive(Debug)]
pub(crate) struct Part {
    pub path: PathBuf,
    pub map: Mmap,
    pub entries: BTreeMap<String, Entry>,
}

/// What the file system says of a file that changes with everything that is done to it, in a line; `None` where systems have no such
/// thing, and for a file that has just changed: clocks of file systems are coarse, and it may change again without a difference.
pub fn file_state(file: &std::fs::Metadata) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        use std::time::{Duration, SystemTime, UNIX_EPOCH};
        let m = file;
        let changed = UNIX_EPOCH + Duration::new(m.ctime().try_into().ok()?, m.ctime_nsec().try_into().ok()?);
        let is_settled = SystemTime::now().duration_since(changed).is_ok_and(|age| age >= Duration::from_secs(1));
        is_settled.then(|| format!("{} {} {} {} {}\n", m.dev(), m.ino(), m.size(), m.ctime(), m.ctime_nsec()))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        None
    }
}

impl Checkpoint {
    /// Opens a model directory, a `.safetensors` file, a `.gguf` file, or the weights in an `.onnx` or `.pt2` file.
    ///
    /// The tensors of GGUF files have the names that Hugging Face checkpoints of the model have.
    ///
    /// In a directory a whole `model.safetensors` counts first, then the index of `model`, then another index, then every
    /// `*.safetensors` file there is. Mistral's `consolidated` files count first beside a `params.json` without `config.json`.
    ///
    /// # Errors
    /// `checkpoint-not-found`, `checkpoint-ambiguous`, `checkpoint-unreadable`, `checkpoint-index-invalid`, `safetensors-truncated`,
    /// `safetensors-header-invalid`, `safetensors-tensor-invalid`, `safetensors-duplicate-tensor`, `onnx-invalid`, `pt2-invalid`.
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint, Diagnostic> {
        let path = path.as_ref();
        let kind = std::fs::metadata(path).map_err(|e| not_found(path, e.to_string()))?;
        if let Some(files) = gguf::find(path)? {
            return Ok(Checkpoint::from_parts(path, gguf::open(files)?, true));
        }
        if onnx::is_onnx(path) {
            return Ok(Checkpoint::from_parts(path, onnx::open(path)?, false));
        }
        if pt2::is_pt2(path) {
            return Ok(Checkpoint::from_parts(path, vec![pt2::open(path)?], false));
        }
        if kind.is_file() {
            if path.to_string_lossy().ends_with(INDEX) {
                return Checkpoint::from_index(path, path);
            }
            return Checkpoint::from_files(path, vec![path.to_path_buf()]);
        }
        let mut names: Vec<String> = std::fs::read_dir(path)
            .map_err(|e| unreadable(path, &e))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        match index::choose(path, &names)? {
            Files::Index(name) => Checkpoint::from_index(path, &path.join(name)),
            Files::Whole(files) => Checkpoint::from_files(path, files.iter().map(|n| path.join(n)).collect()),
        }
    }

    fn from_files(path: &Path, files: Vec<PathBuf>) -> Result<Checkpoint, Diagnostic> {
        let mut index = IndexMap::new();
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
        index.sort_unstable_keys();
        Ok(Checkpoint { path: path.to_path_buf(), shards, index, by_index: None, is_gguf: false })
    }

    /// A checkpoint of files that are open and of which no two have a tensor of the same name.
    fn from_parts(path: &Path, parts: Vec<Part>, is_gguf: bool) -> Checkpoint {
        let (mut index, mut shards) = (IndexMap::new(), Vec::new());
        for Part { path, map, entries } in parts {
            index.extend(entries.keys().map(|name| (name.clone(), shards.len())));
            shards.push(Shard { path, opened: OnceLock::from(Ok(Mapped { map, entries })) });
        }
        index.sort_unstable_keys();
        Checkpoint { path: path.to_path_buf(), shards, index, by_index: None, is_gguf }
    }

    /// Whether the tensors lie in GGUF files.
    pub fn is_gguf(&self) -> bool {
        self.is_gguf
    }

    fn from_index(path: &Path, file: &Path) -> Result<Checkpoint, Diagnostic> {
        let (files, index) = index::read(file)?;
        let index = index.into_iter().collect();
        let folder = file.parent().unwrap_or(Path::new(""));
        let shards = files.iter().map(|f| Shard { path: folder.join(f), opened: OnceLock::new() }).collect();
        Ok(Checkpoint { path: path.to_path_buf(), shards, index, by_index: Some(file.to_path_buf()), is_gguf: false })
    }

    /// The folder that the checkpoint lies in, where a config may be.
    pub fn folder(&self) -> &Path {
        if self.path.is_dir() { &self.path } else { self.path.parent().unwrap_or(Path::new("")) }
    }

    /// Words that tell this checkpoint from others and from later states of itself: path, size and time of change of every
    /// shard. No shard is read.
    ///
    /// # Errors
    /// When a shard cannot be looked at. Shards that are not there count as such.
    pub fn identity(&self) -> std::io::Result<String> {
        let mut words = String::new();
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

    /// What the file system says of every shard, which changes with everything that is done to them; `None` where one of them has no
    /// [`file_state`].
    pub fn state(&self) -> Option<String> {
        self.shards.iter().map(|s| file_state(&std::fs::metadata(&s.path).ok()?)).collect()
    }

    /// Takes all pages of this checkpoint's maps out of the memory of this process: they are read again when somebody asks for them.
    /// Packing a large layer would otherwise hold it twice.
    pub(crate) fn release(&self) {
        for shard in &self.shards {
            let Some(Ok(mapped)) = shard.opened.get() else { continue };
            #[cfg(unix)]
            // SAFETY: the map is of a file, private and never written, so that dropped pages come back with the same bytes. Failing is
            // no error: the pages stay.
            let _ = unsafe { mapped.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            #[cfg(not(unix))]
            let _ = mapped;
        }
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

    /// Whether `name` is the only tensor whose name begins with `stem`, as it does itself.
    pub(crate) fn is_alone(&self, name: &str, stem: &str) -> bool {
        let Some(at) = self.index.get_index_of(name) else { return false };
        let neighbours = [at.checked_sub(1), Some(at + 1)].into_iter().flatten();
        name.starts_with(stem)
            && neighbours.filter_map(|i| self.index.get_index(i)).all(|(other, _)| !other.starts_with(stem))
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
        let mapped = shard.get().map_err(|d| self.missing_shard(name, shard, d))?;
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

    /// The error of a shard that cannot be opened: that an index names a file that is not there is told as such.
    fn missing_shard(&self, tensor: &str, shard: &Shard, d: Diagnostic) -> Diagnostic {
        let Some(index) = self.by_index.as_ref().filter(|_| d.code == "checkpoint-not-found") else { return d };
        let d = Diagnostic::input(
            "checkpoint-not-found",
            format!(
                "the index `{}` says that `{tensor}` is in `{}`, which does not exist",
                index.display(),
                shard.path.display()
            ),
        );
        let there = self.shards.iter().filter(|s| s.path.is_file()).count();
        d.note(format!("of {} shards that the index names, {there} are there", self.shards.len())).help(
            "download the missing shards, or the index again if it was left over from another version of the model",
        )
    }

    /// Tensors of the module `stem` (`….gate_proj.`) that lie in the same shard as `name`, but that the index does not list:
    /// an index that is older than its shards would hide scales and zero points.
    ///
    /// # Errors
    /// `checkpoint-index-invalid` when there is one.
    pub(crate) fn check_listed(&self, name: &str, stem: &str) -> Result<(), Diagnostic> {
        let (Some(index), Some(&i)) = (&self.by_index, self.index.get(name)) else { return Ok(()) };
        let shard = &self.shards[i];
        let mapped = shard.get().map_err(|d| self.missing_shard(name, shard, d))?;
        let mut of_module =
            mapped.entries.range(stem.to_string()..).map(|(n, _)| n).take_while(|n| n.starts_with(stem));
        if let Some(hidden) = of_module.find(|n| !self.index.contains_key(*n)) {
            return Err(Diagnostic::input(
                "checkpoint-index-invalid",
                format!(
                    "`{}` holds `{hidden}`, which the index `{}` does not list",
                    shard.path.display(),
                    index.display()
                ),
            )
            .help("index and shards belong to different versions of the model; download both again"));
        }
        Ok(())
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
    let map = map(path)?;
    let entries = parse_header(path, &map)?;
    Ok(Mapped { map, entries })
}

/// Maps a file into memory.
pub(crate) fn map(path: &Path) -> Result<Mmap, Diagnostic> {
    let file = File::open(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => not_found(path, "the file does not exist".into()),
        _ => unreadable(path, &e),
    })?;
    // SAFETY: the map is read-only and private to this process. Another process that shortens the file while it is
    // mapped would make reads fault; that risk is inherent to mapping weights and the same in every engine that does.
    unsafe { Mmap::map(&file) }.map_err(|e| unreadable(path, &e))
}

fn not_found(path: &Path, why: String) -> Diagnostic {
    Diagnostic::input("checkpoint-not-found", format!("there is no checkpoint at `{}`", path.display()))
        .note(why)
        .help("give a model directory with `*.safetensors` files or a `*.gguf` file, or one such file; a sharded model needs the shards that its index names for this layer")
}

pub(super) fn unreadable(path: &Path, e: &std::io::Error) -> Diagnostic {
    Diagnostic::input("checkpoint-unreadable", format!("`{}` cannot be read: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::safetensors::write_safetensors;
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
