//! A compiled layer: the manifest and its files, in memory.

use crate::canonical::{manifest_text, sha256};
use crate::folder::{self, MAX_MANIFEST_BYTES, check_version, corrupt, read_limited};
use crate::manifest::{FORMAT, MANIFEST_FILE, Manifest, SUMS_FILE};
use crate::verify::verify_manifest;
use moec_ir::diag::Diagnostic;
use std::collections::BTreeMap;
use std::path::Path;

/// A compiled layer. What it holds has been checked: every file has the hash that the manifest gives, and the manifest
/// passes [`verify_manifest`].
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    manifest: Manifest,
    /// Exactly the files of the manifest.
    files: BTreeMap<String, Vec<u8>>,
}

impl Bundle {
    /// A bundle from its parts; sizes and hashes of the manifest's file table are filled in.
    ///
    /// # Errors
    /// `bundle-invalid`.
    pub fn new(mut manifest: Manifest, files: BTreeMap<String, Vec<u8>>) -> Result<Bundle, Diagnostic> {
        manifest.files = files
            .iter()
            .map(|(path, content)| {
                let info = crate::manifest::FileInfo { bytes: content.len() as u64, sha256: sha256(content) };
                (path.clone(), info)
            })
            .collect();
        verify_manifest(&manifest)?;
        Ok(Bundle { manifest, files })
    }

    /// Reads the bundle in the directory, or archive ([`Bundle::to_archive`]), at `path`, and checks all of it.
    ///
    /// # Errors
    /// `bundle-not-found`, `bundle-corrupt`, `bundle-version-unsupported`, `bundle-invalid`.
    pub fn open(path: impl AsRef<Path>) -> Result<Bundle, Diagnostic> {
        let path = path.as_ref();
        if path.is_file() {
            let bytes = std::fs::read(path).map_err(|e| corrupt(path, format!("it cannot be read: {e}")))?;
            return crate::archive::read(path, &bytes);
        }
        if !path.join(MANIFEST_FILE).is_file() {
            return Err(Diagnostic::input("bundle-not-found", format!("there is no bundle at `{}`", path.display()))
                .note(format!("a bundle is a directory with a `{MANIFEST_FILE}`, or an archive of one"))
                .help("give the directory that `moec compile MODEL -o DIR` wrote"));
        }
        Bundle::gather(path, |name, limit| read_limited(&path.join(name), limit))
    }

    /// Reads a bundle out of memory that holds an archive of it: [`Bundle::to_archive`], or any tar of its directory.
    ///
    /// # Errors
    /// `bundle-corrupt`, `bundle-version-unsupported`, `bundle-invalid`.
    pub fn from_archive(bytes: &[u8]) -> Result<Bundle, Diagnostic> {
        crate::archive::read(Path::new("the archive"), bytes)
    }

    /// The bundle as one file: an uncompressed tar. The same bundle gives the same bytes.
    pub fn to_archive(&self) -> Vec<u8> {
        crate::archive::write(self)
    }

    /// Takes the manifest and its files from `read`, which gets the name of a file and the most bytes it may have.
    pub(crate) fn gather(
        from: &Path,
        mut read: impl FnMut(&str, u64) -> Result<Vec<u8>, Diagnostic>,
    ) -> Result<Bundle, Diagnostic> {
        let path = from.join(MANIFEST_FILE);
        let text = read(MANIFEST_FILE, MAX_MANIFEST_BYTES)?;
        check_version(&path, &text, "moec_bundle", FORMAT)?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|e| corrupt(&path, format!("it is no manifest: {e}")))?;
        // What was not written by this code byte for byte has been changed since; reading on would trust the change.
        if manifest_text(&manifest).as_bytes() != text {
            return Err(corrupt(&path, "it is not as moec wrote it".into()));
        }
        verify_manifest(&manifest)?;
        let files = folder::gather(from, &manifest.files, &mut read)?;
        let bundle = Bundle { manifest, files };
        let want = bundle.sums_text();
        if read(SUMS_FILE, want.len() as u64)? != want.as_bytes() {
            let why = format!("it does not have the hashes of `{MANIFEST_FILE}` and its files");
            return Err(corrupt(&from.join(SUMS_FILE), why));
        }
        Ok(bundle)
    }

    /// What the bundle is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Every file but the manifest and the list of hashes, by path.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(path, content)| (path.as_str(), content.as_slice()))
    }

    /// The content of a file that the manifest names.
    ///
    /// # Errors
    /// `bundle-invalid` when the bundle has no such file.
    pub fn file(&self, path: &str) -> Result<&[u8], Diagnostic> {
        self.files
            .get(path)
            .map(Vec::as_slice)
            .ok_or_else(|| Diagnostic::input("bundle-invalid", format!("the bundle has no file `{path}`")))
    }

    /// The content of a file as text.
    ///
    /// # Errors
    /// `bundle-invalid` when the bundle has no such file, or it is not UTF-8.
    pub fn text(&self, path: &str) -> Result<&str, Diagnostic> {
        std::str::from_utf8(self.file(path)?)
            .map_err(|_| Diagnostic::input("bundle-invalid", format!("`{path}` in the bundle is not text")))
    }

    /// The list of hashes, in the form that `sha256sum -c` reads.
    pub(crate) fn sums_text(&self) -> String {
        folder::sums_text((MANIFEST_FILE, &manifest_text(&self.manifest)), &self.manifest.files)
    }
}
