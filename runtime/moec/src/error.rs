//! One error type for everything that this library does.

use moec_ir::diag::Diagnostic;

/// What went wrong: one diagnostic or several, in the order of the input. `?` makes it of either.
#[derive(Clone, PartialEq)]
pub struct Error(pub Vec<Diagnostic>);

/// The result of this library's functions, for programs that need not tell one diagnostic from several.
pub type Result<T> = std::result::Result<T, Error>;

impl From<Diagnostic> for Error {
    fn from(d: Diagnostic) -> Error {
        Error(vec![d])
    }
}

impl From<Vec<Diagnostic>> for Error {
    fn from(all: Vec<Diagnostic>) -> Error {
        Error(all)
    }
}

impl std::fmt::Display for Error {
    /// Each diagnostic with its code, notes and remedy, a line each.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut lines = Vec::new();
        for d in &self.0 {
            lines.push(format!("error[{}]: {}", d.code, d.message));
            lines.extend(d.notes.iter().map(|n| format!("  note: {n}")));
            lines.extend(d.help.iter().map(|h| format!("  help: {h}")));
        }
        f.write_str(&lines.join("\n"))
    }
}

impl std::fmt::Debug for Error {
    /// As [`std::fmt::Display`]: it is what a `main` that gives it ends with.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::error::Error for Error {}
