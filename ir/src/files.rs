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

/// Replaces or makes the file at `path`, all or nothing. A link stays, and what it leads to is replaced; pipes and devices, which
/// nothing can replace, are written to.
///
/// # Errors
/// `output-not-written`.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Diagnostic> {
    let write = || {
        if std::fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
            return std::fs::OpenOptions::new().write(true).open(path)?.write_all(bytes);
        }
        let to = if path.is_symlink() { std::fs::canonicalize(path)? } else { path.to_path_buf() };
        let scratch = Scratch(sibling(&to, "tmp"));
        let mut file = std::fs::File::create_new(&scratch.0)?;
        file.write_all(bytes)?;
        drop(file);
        std::fs::rename(&scratch.0, &to)
    };
    write().map_err(|e| not_written(path, &e))
}

#[cfg(all(test, unix))]
mod tests {
    use super::write_atomically;
    use std::os::unix::fs::FileTypeExt;

    #[test]
    fn links_stay_and_pipes_are_written_to() {
        let dir = std::env::temp_dir().join(format!("moec-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let [file, link, lost, pipe] = ["file", "link", "lost", "pipe"].map(|n| dir.join(n));
        std::fs::write(&file, "before").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        write_atomically(&link, b"after").unwrap();
        assert!(link.is_symlink() && std::fs::read(&file).unwrap() == b"after");
        std::os::unix::fs::symlink("nowhere", &lost).unwrap();
        assert_eq!(write_atomically(&lost, b"x").unwrap_err().code, "output-not-written");
        assert!(lost.is_symlink());
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe).unwrap()
        });
        write_atomically(&pipe, b"through").unwrap();
        assert_eq!(reader.join().unwrap(), b"through");
        assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
        let left = std::fs::read_dir(&dir).unwrap().count();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(left, 4);
    }
}
