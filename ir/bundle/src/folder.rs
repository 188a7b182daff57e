//! What bundles of one layer and bundles for ranks have alike: files with hashes, and a manifest that says its format.

use crate::canonical::sha256;
use crate::manifest::FileInfo;
use crate::verify::version;
use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Manifests are some hundred kilobytes; what is larger than this is something else.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 64 << 20;

/// Tells a newer format from a damaged file, before fields that only the newer format has count as damage. `key` is the manifest's name
/// of its format, `format` what this version reads.
pub(crate) fn check_version(path: &Path, text: &[u8], key: &str, format: u32) -> Result<(), Diagnostic> {
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|e| corrupt(path, format!("it is not JSON: {e}")))?;
    let Some(found) = value.get(key).and_then(serde_json::Value::as_u64) else {
        return Err(corrupt(path, format!("it does not say which format it has (`{key}`)")));
    };
    if found != u64::from(format) {
        let by = value.get("moec_version").and_then(serde_json::Value::as_str).unwrap_or("?");
        return Err(version((found, format), by));
    }
    Ok(())
}

/// Takes the files of a table from `read`, which gets the name of a file and the most bytes it may have; checks sizes and hashes.
pub(crate) fn gather(
    from: &Path,
    table: &BTreeMap<String, FileInfo>,
    mut read: impl FnMut(&str, u64) -> Result<Vec<u8>, Diagnostic>,
) -> Result<BTreeMap<String, Vec<u8>>, Diagnostic> {
    let mut files = BTreeMap::new();
    for (name, info) in table {
        let content = read(name, info.bytes)?;
        if content.len() as u64 != info.bytes || sha256(&content) != info.sha256 {
            let why = "it is not the file that the compiler wrote: its SHA-256 differs";
            return Err(corrupt(&from.join(name), why.into()));
        }
        files.insert(name.clone(), content);
    }
    Ok(files)
}

/// The list of hashes of a manifest and its files, in the form that `sha256sum -c` reads.
pub(crate) fn sums_text((manifest, text): (&str, &str), table: &BTreeMap<String, FileInfo>) -> String {
    let mut lines: BTreeMap<&str, String> =
        table.iter().map(|(path, info)| (path.as_str(), info.sha256.clone())).collect();
    lines.insert(manifest, sha256(text.as_bytes()));
    lines.iter().map(|(path, hash)| format!("{hash}  {path}\n")).collect()
}

/// Reads a file that should have at most `limit` bytes; one byte more is read to notice a longer one.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, Diagnostic> {
    let mut out = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(limit.saturating_add(1)).read_to_end(&mut out));
    read.map_err(|e| corrupt(path, format!("it cannot be read: {e}")))?;
    if out.len() as u64 > limit {
        return Err(corrupt(path, format!("it is longer than {limit} bytes")));
    }
    Ok(out)
}

pub(crate) fn corrupt(path: &Path, why: String) -> Diagnostic {
    Diagnostic::input("bundle-corrupt", format!("`{}` is damaged", path.display()))
        .note(why)
        .help("copy the bundle again, or compile it again")
}
