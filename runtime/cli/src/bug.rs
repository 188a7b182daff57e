//! Bugs of moec: a panic or a broken invariant becomes a diagnostic with a file that reproduces it.

use moec_ir::diag::Diagnostic;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::Mutex;

/// What the command was working on, for the repro file.
static SUBJECT: Mutex<String> = Mutex::new(String::new());
/// Message and place of the panic that happened.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Replaces the standard panic message, which is of no use to a user, by silence; [`panic_diagnostic`] tells it.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.payload_as_str().unwrap_or("a panic without a message");
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        if let Ok(mut slot) = PANIC.lock()
            && slot.is_empty()
        {
            *slot = format!("{text} ({place})");
        }
    }));
}

/// Remembers the layer that is being worked on, as text.
pub fn working_on(subject: String) {
    if let Ok(mut slot) = SUBJECT.lock() {
        *slot = subject;
    }
}

/// The diagnostic of the panic that was caught.
pub fn panic_diagnostic() -> Diagnostic {
    let what = PANIC.lock().map(|p| p.clone()).unwrap_or_default();
    Diagnostic::internal("internal-error", format!("moec broke one of its own invariants: {what}"))
}

/// Writes `moec-repro-<hash>.txt` in the current folder, or in the temporary one, and names it in the diagnostic.
pub fn with_repro_file(diagnostic: Diagnostic) -> Diagnostic {
    let arguments: Vec<String> = std::env::args().collect();
    let subject = SUBJECT.lock().map(|s| s.clone()).unwrap_or_default();
    let text = format!(
        "moec {}\narguments: {arguments:?}\nerror: {diagnostic}\nnotes: {:?}\n\n{subject}\n",
        env!("CARGO_PKG_VERSION"),
        diagnostic.notes,
    );
    let hash: String = Sha256::digest(text.as_bytes()).iter().take(6).map(|b| format!("{b:02x}")).collect();
    let name = format!("moec-repro-{hash}.txt");
    let places = [PathBuf::from(&name), std::env::temp_dir().join(&name)];
    match places.iter().find(|p| std::fs::write(p, &text).is_ok()) {
        Some(path) => diagnostic.help(format!("attach `{}` to a bug report", path.display())),
        None => diagnostic.help("report this with the command line and its input"),
    }
}
