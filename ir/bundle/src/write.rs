//! Writing a bundle without ever leaving half of one.

use crate::bundle::Bundle;
use crate::canonical::manifest_text;
use crate::manifest::{MANIFEST_FILE, SUMS_FILE};
use crate::placed::PLACED_FILE;
use moec_ir::diag::Diagnostic;
use moec_ir::files::{Scratch, not_written as failed, sibling};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

impl Bundle {
    /// Writes the bundle to the directory `dir`, all or nothing; an older bundle there is replaced.
    ///
    /// The same bundle gives the same bytes, on every machine.
    ///
    /// # Errors
    /// `output-not-a-bundle` when `dir` exists and holds anything that is not part of a bundle; `output-not-written`.
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<(), Diagnostic> {
        let own = [(MANIFEST_FILE, manifest_text(self.manifest())), (SUMS_FILE, self.sums_text())];
        write_folder(dir.as_ref(), self.files().chain(own.iter().map(|(path, text)| (*path, text.as_bytes()))))
    }
}

impl Bundle {
    /// Writes the bundle as one file ([`Bundle::to_archive`]), all or nothing; a file there is replaced when it is a bundle.
    ///
    /// # Errors
    /// `output-not-a-bundle`, `output-not-written`.
    pub fn write_archive(&self, path: impl AsRef<Path>) -> Result<(), Diagnostic> {
        let given = path.as_ref();
        let fail = |e: std::io::Error| failed(given, &e);
        let path = std::path::absolute(given).map_err(fail)?;
        if std::fs::symlink_metadata(&path).is_ok()
            && Bundle::open(&path).is_err_and(|d| d.code != "bundle-version-unsupported")
        {
            return Err(Diagnostic::input(
                "output-not-a-bundle",
                format!("`{}` is no archive of a bundle", given.display()),
            )
            .note("only a bundle is replaced; other files are never deleted")
            .help("choose another name"));
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fail)?;
        }
        let fresh = Scratch::new(sibling(&path, "new"));
        std::fs::write(fresh.path(), self.to_archive()).map_err(fail)?;
        std::fs::rename(fresh.path(), &path).map_err(fail)
    }
}

/// Writes the files of a bundle to the folder at `given`, all or nothing.
pub(crate) fn write_folder<'f>(
    given: &Path,
    files: impl Iterator<Item = (&'f str, &'f [u8])>,
) -> Result<(), Diagnostic> {
    // `DIR/.` and `DIR/` name a directory without a last component of their own; moving needs one.
    let absolute = std::path::absolute(given).map_err(|e| failed(given, &e))?;
    let mut dir: PathBuf = absolute.components().collect();
    // A link stays, and what it leads to is replaced.
    if dir.is_symlink() && dir.is_dir() {
        dir = dir.canonicalize().map_err(|e| failed(given, &e))?;
    }
    check_replaceable(&dir)?;
    let fail = |e: std::io::Error| failed(&dir, &e);
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    let fresh = Scratch::new(sibling(&dir, "new"));
    std::fs::create_dir(fresh.path()).map_err(fail)?;
    for (path, content) in files {
        let to = fresh.path().join(path);
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder).map_err(fail)?;
        }
        std::fs::write(to, content).map_err(fail)?;
    }
    if dir.exists() {
        let old = Scratch::new(sibling(&dir, "old"));
        std::fs::rename(&dir, old.path()).map_err(fail)?;
        if let Err(e) = std::fs::rename(fresh.path(), &dir) {
            std::fs::rename(old.path(), &dir).map_err(fail)?;
            return Err(fail(e));
        }
    } else {
        std::fs::rename(fresh.path(), &dir).map_err(fail)?;
    }
    Ok(())
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
    if dir.is_symlink() && !dir.exists() {
        return Err(refuse("is a link that leads nowhere".into()));
    }
    if !dir.is_dir() {
        return Err(refuse("is a file, not a directory".into()));
    }
    let mut found = BTreeSet::new();
    list_files(dir, "", &mut found).map_err(|e| failed(dir, &e))?;
    if found.is_empty() {
        return Ok(());
    }
    if !(found.contains(MANIFEST_FILE) || found.contains(PLACED_FILE)) || !found.contains(SUMS_FILE) {
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
