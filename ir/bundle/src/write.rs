//! Writing without ever leaving half a result: everything goes to a place of its own first and is moved when complete.

use crate::bundle::Bundle;
use crate::canonical::manifest_text;
use crate::manifest::{MANIFEST_FILE, SUMS_FILE};
use moec_ir::diag::Diagnostic;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A path beside `path` that nothing else uses.
fn sibling(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{what}-{}-{n}", std::process::id()))
}

fn failed(path: &Path, e: &std::io::Error) -> Diagnostic {
    Diagnostic::input("output-not-written", format!("`{}` cannot be written: {e}", path.display()))
        .help("check that its folder exists, is writable, and has room")
}

/// Removes what it names when dropped, unless it was moved away: a failure leaves nothing behind.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and there is nothing to remove after success.
        if self.0.is_dir() {
            let _ = std::fs::remove_dir_all(&self.0);
        } else {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

/// Replaces or makes the file at `path`, all or nothing.
pub(crate) fn write_file_atomically(path: &Path, bytes: &[u8]) -> Result<(), Diagnostic> {
    let scratch = Scratch(sibling(path, "tmp"));
    let write = || {
        let mut file = std::fs::File::create_new(&scratch.0)?;
        file.write_all(bytes)?;
        drop(file);
        std::fs::rename(&scratch.0, path)
    };
    write().map_err(|e| failed(path, &e))
}

impl Bundle {
    /// Writes the bundle to the directory `dir`, all or nothing; an older bundle there is replaced.
    ///
    /// The same bundle gives the same bytes, on every machine.
    ///
    /// # Errors
    /// `output-not-a-bundle` when `dir` exists and holds anything that is not part of a bundle; `output-not-written`.
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<(), Diagnostic> {
        let given = dir.as_ref();
        // `DIR/.` and `DIR/` name a directory without a last component of their own; moving needs one.
        let absolute = std::path::absolute(given).map_err(|e| failed(given, &e))?;
        let dir: PathBuf = absolute.components().collect();
        check_replaceable(&dir)?;
        let fail = |e: std::io::Error| failed(&dir, &e);
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).map_err(fail)?;
        }
        let fresh = Scratch(sibling(&dir, "new"));
        std::fs::create_dir(&fresh.0).map_err(fail)?;
        for (path, content) in self.files() {
            let to = fresh.0.join(path);
            if let Some(folder) = to.parent() {
                std::fs::create_dir_all(folder).map_err(fail)?;
            }
            std::fs::write(to, content).map_err(fail)?;
        }
        std::fs::write(fresh.0.join(MANIFEST_FILE), manifest_text(self.manifest())).map_err(fail)?;
        std::fs::write(fresh.0.join(SUMS_FILE), self.sums_text()).map_err(fail)?;
        if dir.exists() {
            let old = Scratch(sibling(&dir, "old"));
            std::fs::rename(&dir, &old.0).map_err(fail)?;
            if let Err(e) = std::fs::rename(&fresh.0, &dir) {
                std::fs::rename(&old.0, &dir).map_err(fail)?;
                return Err(fail(e));
            }
        } else {
            std::fs::rename(&fresh.0, &dir).map_err(fail)?;
        }
        Ok(())
    }
}

/// Checks that `dir` is absent, empty, or holds a bundle's files and nothing else.
fn check_replaceable(dir: &Path) -> Result<(), Diagnostic> {
    let refuse = |what: String| {
        Diagnostic::input("output-not-a-bundle", format!("`{}` {what}", dir.display()))
            .note("only a bundle is replaced; other files are never deleted")
            .help("choose another directory, or empty this one")
    };
    if std::fs::symlink_metadata(dir).is_err() {
        return Ok(());
    }
    if !dir.is_dir() {
        return Err(refuse("is a file, not a directory".into()));
    }
    let mut found = BTreeSet::new();
    list_files(dir, "", &mut found).map_err(|e| failed(dir, &e))?;
    if found.is_empty() {
        return Ok(());
    }
    if !found.contains(MANIFEST_FILE) || !found.contains(SUMS_FILE) {
        return Err(refuse("is not empty and holds no bundle".into()));
    }
    let sums = std::fs::read_to_string(dir.join(SUMS_FILE)).map_err(|e| failed(dir, &e))?;
    let known: BTreeSet<&str> = sums.lines().filter_map(|l| l.split_once("  ").map(|(_, name)| name)).collect();
    match found.iter().find(|f| f.as_str() != SUMS_FILE && !known.contains(f.as_str())) {
        Some(stranger) => Err(refuse(format!("holds a bundle, but also `{stranger}`, which is no part of it"))),
        None => Ok(()),
    }
}

fn list_files(dir: &Path, prefix: &str, out: &mut BTreeSet<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), &format!("{name}/"), out)?;
        } else {
            out.insert(name);
        }
    }
    Ok(())
}
