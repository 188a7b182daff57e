//! Opens libraries of others when they are needed.

use libloading::Library;
use moec_ir::diag::Diagnostic;
use std::path::Path;

/// The library at `path`, or else the first of `names` that the loader finds; with `path` no other is tried. `missing` makes the
/// diagnostic of the names that were tried.
pub(crate) fn open(
    path: Option<&Path>,
    names: &[&str],
    missing: impl FnOnce(&str) -> Diagnostic,
) -> Result<Library, Diagnostic> {
    let names: Vec<&Path> = path.map_or_else(|| names.iter().map(Path::new).collect(), |p| vec![p]);
    let mut why = String::new();
    for name in &names {
        // SAFETY: the initialisers of the libraries that are opened here, MPI and NCCL, have no conditions on who opens them.
        match unsafe { Library::new(*name) } {
            Ok(library) => return Ok(library),
            Err(e) => why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string),
        }
    }
    let tried = names.iter().map(|n| format!("`{}`", n.display())).collect::<Vec<_>>().join(", ");
    Err(missing(&tried).note(why))
}
