//! Which files of a folder are the checkpoint: whole files, shards and indexes may lie side by side.
//!
//! The rule is that of Hugging Face's loaders, where they have one: a whole `model.safetensors` counts before an index, the index
//! of `model` before others. What they leave open, and two answers would differ in, is refused.

use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::path::Path;

/// What ends the name of an index.
pub(super) const INDEX: &str = ".safetensors.index.json";
/// The whole model in one file.
const WHOLE: &str = "model.safetensors";

/// The files that make up a checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Files {
    /// Shards by an index.
    Index(String),
    /// Whole files.
    Whole(Vec<String>),
}

/// Chooses among the names of a folder's files, which are sorted.
///
/// # Errors
/// `checkpoint-not-found` when nothing there is a checkpoint, `checkpoint-ambiguous` when several are, `adapter-not-merged` for an
/// adapter, alone or beside a model: transformers would add it.
pub(super) fn choose(folder: &Path, names: &[String]) -> Result<Files, Diagnostic> {
    let has = |name: &str| names.iter().any(|n| n == name);
    if let Some(adapter) = names.iter().find(|n| is_adapter(n)) {
        return Err(adapter_found(folder, adapter));
    }
    if has(WHOLE) {
        return Ok(Files::Whole(vec![WHOLE.to_string()]));
    }
    let indexes: Vec<&String> = names.iter().filter(|n| n.ends_with(INDEX)).collect();
    // Mistral ships its own shards beside those for transformers: each belongs to its own config.
    let native = !has("config.json") && has("params.json");
    let usual = if native { ["consolidated", "model"] } else { ["model", "consolidated"] };
    if let Some(index) = usual.iter().map(|stem| format!("{stem}{INDEX}")).find(|n| has(n)) {
        return Ok(Files::Index(index));
    }
    match &indexes[..] {
        [] => {}
        [one] => return Ok(Files::Index((*one).clone())),
        several => return Err(ambiguous(folder, several)),
    }
    let all: Vec<String> = names.iter().filter(|n| n.ends_with(".safetensors")).cloned().collect();
    let of = |stem: &str| -> Vec<String> { all.iter().filter(|n| n.starts_with(stem)).cloned().collect() };
    let (first, second) = (of(usual[0]), of(usual[1]));
    if all.is_empty() {
        return Err(Diagnostic::input(
            "checkpoint-not-found",
            format!("there is no checkpoint at `{}`", folder.display()),
        )
        .note("the directory holds no `*.safetensors` file")
        .help("give a model directory with `*.safetensors` files, or one such file"));
    }
    let both = !first.is_empty() && !second.is_empty();
    Ok(Files::Whole(if both { first } else { all }))
}

/// Whether a file of this name is an adapter's: PEFT's, or MLX's.
fn is_adapter(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    name == "adapter_config.json" || matches!(stem, "adapter_model" | "adapters" | "adapter") && name != "adapters.json"
}

fn adapter_found(folder: &Path, adapter: &str) -> Diagnostic {
    Diagnostic::input("adapter-not-merged", format!("`{}` holds an adapter, `{adapter}`", folder.display()))
        .note("its low-rank matrices change the weights of the model; without them the results would be those of another model")
        .help("merge it into the model (`merge_and_unload()` of peft) and save that, or give a folder without it")
}

fn ambiguous(folder: &Path, several: &[&String]) -> Diagnostic {
    let list: Vec<String> = several.iter().map(|n| format!("`{n}`")).collect();
    Diagnostic::input(
        "checkpoint-ambiguous",
        format!("`{}` has {} indexes, and nothing says which one counts", folder.display(), several.len()),
    )
    .note(format!("they are {}", list.join(", ")))
    .help("give the path of one of them instead of the directory, or remove the others")
}

#[derive(serde::Deserialize)]
struct IndexFile {
    weight_map: BTreeMap<String, String>,
}

/// An index: the shards, sorted, and the number of the shard of each tensor.
///
/// # Errors
/// `checkpoint-index-invalid`, `checkpoint-unreadable`.
pub(super) fn read(file: &Path) -> Result<(Vec<String>, BTreeMap<String, usize>), Diagnostic> {
    let invalid = |what: String| {
        Diagnostic::input("checkpoint-index-invalid", format!("the index `{}` {what}", file.display()))
            .help("download the index again; it is the `*.safetensors.index.json` beside the shards")
    };
    let text = std::fs::read(file).map_err(|e| super::checkpoint::unreadable(file, &e))?;
    let parsed: IndexFile = serde_json::from_slice(&text).map_err(|e| invalid(format!("cannot be read: {e}")))?;
    let mut files: Vec<String> = parsed.weight_map.values().cloned().collect();
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
        .map(|(tensor, shard)| (tensor.clone(), files.partition_point(|f| f < shard)))
        .collect();
    Ok((files, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Result<Files, String> {
        let mut names: Vec<String> = names.iter().map(|n| (*n).to_string()).collect();
        names.sort();
        choose(Path::new("m"), &names).map_err(|d| d.code)
    }

    fn whole(names: &[&str]) -> Result<Files, String> {
        Ok(Files::Whole(names.iter().map(|n| (*n).to_string()).collect()))
    }

    #[test]
    fn a_whole_file_counts_before_an_index_that_was_left_over() {
        assert_eq!(chosen(&["model.safetensors", "model.safetensors.index.json"]), whole(&["model.safetensors"]));
    }

    #[test]
    fn the_index_that_goes_with_the_config_counts() {
        let both = ["consolidated.safetensors.index.json", "model.safetensors.index.json"];
        let index = |n: &str| Ok(Files::Index(n.to_string()));
        assert_eq!(chosen(&[both[0], both[1], "config.json", "params.json"]), index(both[1]));
        assert_eq!(chosen(&[both[0], both[1], "params.json"]), index(both[0]));
        assert_eq!(chosen(&[both[0], "config.json"]), index(both[0]));
        assert_eq!(chosen(&["a.safetensors.index.json"]), index("a.safetensors.index.json"));
    }

    #[test]
    fn several_indexes_of_other_names_are_refused() {
        let names = ["model.fp16.safetensors.index.json", "model.fp32.safetensors.index.json"];
        assert_eq!(chosen(&names), Err("checkpoint-ambiguous".to_string()));
    }

    #[test]
    fn shards_without_an_index_are_those_of_one_publisher() {
        let shards = ["model-1.safetensors", "model-2.safetensors"];
        assert_eq!(chosen(&[shards[0], shards[1], "consolidated.safetensors"]), whole(&shards));
        assert_eq!(chosen(&["README.md"]), Err("checkpoint-not-found".to_string()));
    }

    #[test]
    fn an_adapter_is_never_passed_over() {
        for adapter in ["adapter_model.safetensors", "adapter_model.bin", "adapter_config.json", "adapters.safetensors"]
        {
            assert_eq!(chosen(&["model.safetensors", adapter]), Err("adapter-not-merged".to_string()));
        }
    }
}
