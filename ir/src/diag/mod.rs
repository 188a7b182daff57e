//! Diagnostics as data. Libraries return them; only the command line renders them.

mod codes;

pub use codes::{CODES, CodePage, code_page};

use serde::{Deserialize, Serialize};

/// A place in the user's input.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The file, as the user named it.
    pub file: String,
    /// First byte, from the start of the file.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// Whose fault it is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The user's layer, config, checkpoint or bundle (exit code 1).
    Input,
    /// This machine, or wrong usage (exit code 2).
    Machine,
    /// A bug of moec (exit code 70).
    Internal,
}

/// One thing that is wrong, in the user's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Diagnostic {
    /// Stable kebab-case code, listed in [`CODES`].
    pub code: String,
    /// Whose fault it is.
    pub fault: Fault,
    /// One sentence with the user's names: found versus expected.
    pub message: String,
    /// Where in the input, when known.
    pub origin: Option<Origin>,
    /// Why it is wrong: one fact a line.
    pub notes: Vec<String>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error in the user's input.
    pub fn input(code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(code, Fault::Input, message.into())
    }

    /// Something that this machine lacks, or wrong usage.
    pub fn machine(code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(code, Fault::Machine, message.into())
    }

    /// A broken invariant of moec itself.
    pub fn internal(code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(code, Fault::Internal, message.into())
    }

    fn new(code: &'static str, fault: Fault, message: String) -> Diagnostic {
        debug_assert!(code_page(code).is_some(), "diagnostic code `{code}` should have a page");
        Diagnostic { code: code.to_string(), fault, message, origin: None, notes: Vec::new(), help: None }
    }

    /// With the place in the input.
    #[must_use]
    pub fn at(mut self, origin: Option<Origin>) -> Diagnostic {
        self.origin = origin.or(self.origin);
        self
    }

    /// With one more fact.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Diagnostic {
        self.notes.push(note.into());
        self
    }

    /// With the remedy.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}] {}", self.code, self.message)
    }
}

impl std::error::Error for Diagnostic {}
