//! Writing without ever leaving half a result: everything goes to a place of its own first and is moved when complete.

use crate::diag::Diagnostic;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A path beside `path` that nothing else uses; `what` is a word of its name.
pub fn sibling(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{what}-{}-{n}", std::process::id()))
}

/// `output-not-written`: why `path` cannot be written.
pub fn not_written(path: &Path, e: &std::io::Error) -> Diagnostic {
    Diagnostic::input("output-not-written", format!("`{}` cannot be written: {e}", path.display()))
        .help("check that its folder exists, is writable, and has room")
}

/// Removes what it names when dropped, unless it was moved away: a failure leaves nothing behind.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Watches over `path`, which need not exist yet.
    pub fn new(path: PathBuf) -> Scratch {
        Scratch(path)
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

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
///
/// # Errors
/// `output-not-written`.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Diagnostic> {
    let scratch = Scratch(sibling(path, "tmp"));
    let write = || {
        let mut file = std::fs::File::create_new(&scratch.0)?;
        file.write_all(bytes)?;
        drop(file);
        std::fs::rename(&scratch.0, path)
    };
    write().map_err(|e| not_written(path, &e))
}
