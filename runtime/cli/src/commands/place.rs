//! `moec place`: a placement of experts from measured counts.

use super::mesh::{n_experts, parse_mesh};
use super::subject;
use crate::output::{self, Ended, Outcome};
use moec::ranks::place_experts;
use moec::{Checkpoint, Diagnostic, LayerOptions, Mesh, Placement};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub struct Options {
    /// Model directory, config.json, GGUF, ONNX or .pt2 file, or layer graph.
    pub model: PathBuf,
    /// The layer, by the model's own number [default: its first MoE layer].
    #[arg(long, value_name = "N")]
    pub layer: Option<u32>,
    /// The ranks.
    #[arg(long, value_name = "ep=N", value_parser = parse_mesh)]
    pub mesh: Mesh,
    /// How many slots each expert had: a JSON list, or what `moec run --output` wrote, whose `topk_ids` are counted.
    #[arg(long, value_name = "FILE")]
    pub counts: PathBuf,
    /// Further copies of the busiest experts, over all ranks.
    #[arg(long, value_name = "R", default_value = "0")]
    pub redundant: u32,
    /// Version of the map; ranks take a map only when it is newer than theirs.
    #[arg(long, value_name = "V", default_value = "1")]
    pub map_version: u64,
    /// Where the map goes, for `moec run --placement` [default: standard output].
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

pub fn run(options: &Options) -> Outcome {
    let one = |d: Diagnostic| vec![d];
    let layer = subject::open_layer(&options.model, options.layer, &LayerOptions::default())?;
    let n_experts = n_experts(&layer).map_err(one)?;
    let counts = counts(&options.counts, n_experts).map_err(one)?;
    let ranks = options.mesh.ep;
    let even = Placement::even(n_experts, ranks).map_err(one)?;
    let map = place_experts(&counts, ranks, options.redundant, options.map_version).map_err(one)?;
    let Some(path) = &options.output else {
        output::print(&map.to_json());
        return Ok(Ended::Well);
    };
    output::write_file(path, map.to_json().as_bytes()).map_err(one)?;
    let copies: usize = (0..ranks).map(|r| map.experts_of(r).len()).sum();
    output::print(&format!(
        "{}: {n_experts} experts on {ranks} ranks, {} redundant, up to {} on a rank\n\
         busiest rank over the mean: {:.3} in equal ranges, {:.3} as placed\n",
        layer.info.name,
        copies - n_experts as usize,
        map.most_local(),
        even.imbalance(&counts),
        map.imbalance(&counts),
    ));
    Ok(Ended::Well)
}

/// Slots of each expert.
///
/// # Errors
/// `expert-counts-invalid`, `file-unreadable`.
fn counts(path: &Path, n_experts: u32) -> Result<Vec<u64>, Diagnostic> {
    let wrong = |why: String| {
        let what = format!("`{}` does not say how busy the {n_experts} experts are: {why}", path.display());
        Diagnostic::input("expert-counts-invalid", what)
            .help("give a JSON list of numbers, one for each expert, or a safetensors file with `topk_ids`")
    };
    if path.extension().is_some_and(|e| e == "safetensors") {
        let file = Checkpoint::open(path)?;
        let ids = file.tensor("topk_ids")?.and_then(|t| t.to_tensor());
        let ids = ids.ok_or_else(|| wrong("it has no integers `topk_ids`".into()))?;
        let mut counts = vec![0u64; n_experts as usize];
        // Slots that no expert has are nobody's load.
        let experts = ids.ints().iter().filter_map(|&id| usize::try_from(id).ok());
        experts.filter(|&e| e < counts.len()).collect::<Vec<_>>().into_iter().for_each(|e| counts[e] += 1);
        return Ok(counts);
    }
    let bytes = std::fs::read(path).map_err(|e| subject::unreadable(path, &e))?;
    // The header of a safetensors file is JSON behind its length.
    if bytes.get(4..9) == Some(b"\0\0\0\0{") {
        return Err(
            wrong("it looks like a safetensors file of another name".into()).help("rename it to end in `.safetensors`")
        );
    }
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| wrong(format!("it is no JSON, {e}")))?;
    let list = value.get("counts").unwrap_or(&value).as_array().ok_or_else(|| wrong("it is no list".into()))?;
    let counts: Option<Vec<u64>> = list.iter().map(serde_json::Value::as_u64).collect();
    let counts = counts.ok_or_else(|| wrong("not all entries are whole numbers from 0 on".into()))?;
    if counts.len() != n_experts as usize {
        return Err(wrong(format!("it has {} numbers", counts.len())));
    }
    // Sums of loads stay exact.
    if counts.iter().try_fold(0u64, |a, &c| a.checked_add(c)).is_none_or(|sum| sum > 1 << 53) {
        return Err(wrong("its numbers are too large".into()));
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_or_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("counts.json");
        let read = |text: &str| {
            std::fs::write(&file, text).expect("written");
            counts(&file, 3).map_err(|d| d.code)
        };
        assert_eq!(read("[1, 2, 0]"), Ok(vec![1, 2, 0]));
        assert_eq!(read(r#"{"counts": [4, 5, 6]}"#), Ok(vec![4, 5, 6]));
        for wrong in ["", "{}", "[1, 2]", "[1, 2, -1]", "[1, 2, 0.5]", "[1, 2, 18446744073709551615]"] {
            assert_eq!(read(wrong), Err("expert-counts-invalid".to_string()), "{wrong}");
        }
        let other = dir.path().join("ids");
        std::fs::write(&other, b"\x08\0\0\0\0\0\0\0{}      ").expect("written");
        assert!(counts(&other, 3).is_err_and(|d| d.help.is_some_and(|h| h.contains("rename it"))));
        assert_eq!(counts(&dir.path().join("none.json"), 3).map_err(|d| d.code), Err("file-unreadable".to_string()));
    }
}
