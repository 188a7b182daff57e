//! Errors of this backend.

use moec_ir::Diagnostic;

/// A broken invariant of this backend: the program was verified, yet no code came out.
pub(crate) fn internal(message: String) -> Diagnostic {
    Diagnostic::internal("internal-error", format!("CPU backend: {message}"))
}
