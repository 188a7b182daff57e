//! A bundle as one piece of bytes, for programs that embed it: a tar, which other tools read and write as well.

use crate::bundle::Bundle;
use crate::canonical::manifest_text;
use crate::folder::corrupt;
use crate::manifest::{MANIFEST_FILE, SUMS_FILE};
use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

pub(crate) fn write(bundle: &Bundle) -> Vec<u8> {
    let manifest = manifest_text(bundle.manifest());
    let sums = bundle.sums_text();
    // The manifest first: whoever looks for one need not read on.
    let head = [(MANIFEST_FILE, manifest.as_bytes()), (SUMS_FILE, sums.as_bytes())];
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in head.into_iter().chain(bundle.files()) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        tar.append_data(&mut header, path, content).expect("a safe path should fit a tar in memory");
    }
    tar.into_inner().expect("memory should take the end of a tar")
}

pub(crate) fn read(from: &Path, bytes: &[u8]) -> Result<Bundle, Diagnostic> {
    let mut archive = tar::Archive::new(bytes);
    let mut entries = BTreeMap::new();
    let broken = |e: std::io::Error| corrupt(from, format!("it is no archive of a bundle: {e}"));
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_string();
        let mut content = Vec::new();
        // An entry can claim to be longer than the archive; it never has more than that.
        entry.by_ref().take(bytes.len() as u64).read_to_end(&mut content).map_err(broken)?;
        entries.insert(name, content);
    }
    Bundle::gather(from, |name, limit| {
        let content =
            entries.remove(name).ok_or_else(|| corrupt(&from.join(name), "it is not in the archive".into()))?;
        if content.len() as u64 > limit {
            return Err(corrupt(&from.join(name), format!("it is longer than {limit} bytes")));
        }
        Ok(content)
    })
}
