//! Which files make a model: one, or the parts `NAME-00001-of-0000N.gguf` of a split one.

use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Whether a file begins as GGUF files do.
pub(crate) fn is_gguf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"GGUF")
}

/// The files of the GGUF model at `path`, the first part first; `None` when there is none.
///
/// A folder of a safetensors checkpoint is none: one with an index, a `model.safetensors`, or a config and any such file.
/// Nor is one whose GGUF files are only projectors of images (`mmproj`).
///
/// # Errors
/// `gguf-split-incomplete` when a part is missing, `checkpoint-ambiguous` when a folder has several models.
pub(crate) fn find(path: &Path) -> Result<Option<Vec<PathBuf>>, Diagnostic> {
    if path.is_file() {
        let named = path.extension().is_some_and(|e| e == "gguf");
        return if named || starts_as_gguf(path) { whole(path).map(Some) } else { Ok(None) };
    }
    let Ok(entries) = std::fs::read_dir(path) else { return Ok(None) };
    let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    let config = names.iter().any(|n| n == "config.json" || n == "params.json");
    let of_checkpoint = |n: &String| {
        n == "model.safetensors" || n.ends_with(".safetensors.index.json") || (config && n.ends_with(".safetensors"))
    };
    if names.iter().any(of_checkpoint) {
        return Ok(None);
    }
    names.retain(|n| n.ends_with(".gguf") && !n.starts_with("mmproj"));
    names.sort();
    let mut models: BTreeMap<String, &String> = BTreeMap::new();
    for name in &names {
        models.entry(part(name).map_or(name.clone(), |p| format!("{}/{}", p.stem, p.count))).or_insert(name);
    }
    let mut firsts = models.values();
    match (firsts.next(), firsts.next()) {
        (None, _) => Ok(None),
        (Some(name), None) => whole(&path.join(name)).map(Some),
        (Some(one), Some(other)) => Err(Diagnostic::input(
            "checkpoint-ambiguous",
            format!("`{}` holds several models: `{one}`, `{other}` and perhaps more", path.display()),
        )
        .help("give one of the files instead of the folder")),
    }
}

fn starts_as_gguf(path: &Path) -> bool {
    use std::io::Read;
    let mut start = [0; 4];
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut start)).is_ok() && is_gguf(&start)
}

/// All parts of the model that a file belongs to.
fn whole(path: &Path) -> Result<Vec<PathBuf>, Diagnostic> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(Part { stem, number, count }) = part(&name) else { return Ok(vec![path.to_path_buf()]) };
    let sibling = |n: u64| path.with_file_name(format!("{stem}-{n:05}-of-{count:05}.gguf"));
    let incomplete = |what: String| {
        Diagnostic::input("gguf-split-incomplete", format!("`{}` {what}", path.display()))
            .help("download all parts into one folder, or join them with `llama-gguf-split --merge`")
    };
    if number == 0 || number > count {
        return Err(incomplete(format!("is part {number} of {count}")));
    }
    let parts: Vec<PathBuf> = (1..=count).map(sibling).take_while(|p| p.is_file()).collect();
    match parts.len() as u64 {
        n if n == count => Ok(parts),
        n => Err(incomplete(format!("is one of {count} parts, but `{}` is not there", sibling(n + 1).display()))),
    }
}

struct Part {
    stem: String,
    number: u64,
    count: u64,
}

/// Takes `stem-00001-of-00003.gguf` apart.
fn part(name: &str) -> Option<Part> {
    let (front, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = front.rsplit_once('-')?;
    let digits = |t: &str| (t.len() == 5).then(|| t.parse::<u64>().ok()).flatten();
    Some(Part { stem: stem.to_string(), number: digits(number)?, count: digits(count)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("dir");
        names.iter().for_each(|n| std::fs::write(dir.path().join(n), "GGUF").expect("write"));
        dir
    }

    fn found(dir: &Path) -> Result<Vec<String>, String> {
        let name = |p: PathBuf| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let files = find(dir).map_err(|d| d.code)?;
        Ok(files.unwrap_or_default().into_iter().map(name).collect())
    }

    #[test]
    fn all_parts_are_found_from_any_of_them() {
        let parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        let dir = folder(&[parts[1], parts[0], "mmproj-m.gguf", "README.md"]);
        assert_eq!(found(dir.path()), Ok(parts.map(String::from).to_vec()));
        assert_eq!(found(&dir.path().join(parts[1])), Ok(parts.map(String::from).to_vec()));
    }

    #[test]
    fn a_missing_part_is_named() {
        let dir = folder(&["m-00002-of-00003.gguf", "m-00001-of-00003.gguf"]);
        let d = find(dir.path()).expect_err("incomplete");
        assert_eq!(d.code, "gguf-split-incomplete");
        assert!(d.message.contains("m-00003-of-00003.gguf"), "{}", d.message);
    }

    #[test]
    fn a_folder_with_several_models_is_ambiguous() {
        let dir = folder(&["m-Q4_K_M.gguf", "m-Q8_0.gguf"]);
        assert_eq!(found(dir.path()), Err("checkpoint-ambiguous".to_string()));
        assert_eq!(found(&dir.path().join("m-Q8_0.gguf")), Ok(vec!["m-Q8_0.gguf".to_string()]));
    }

    #[test]
    fn a_checkpoint_of_safetensors_counts_first() {
        assert_eq!(found(folder(&["m.gguf", "model.safetensors"]).path()), Ok(vec![]));
        assert_eq!(found(folder(&["m.gguf", "m.safetensors", "config.json"]).path()), Ok(vec![]));
        assert_eq!(found(folder(&["m.gguf", "results.safetensors"]).path()), Ok(vec!["m.gguf".to_string()]));
        assert_eq!(found(folder(&["README.md"]).path()), Ok(vec![]));
    }
}
