//! Memory that a caller hands in for one launch.

use crate::memory::size;
use moec_ir::diag::Diagnostic;

/// That the caller's memory is there and large enough.
pub(crate) fn check(needed: u64, given: u64, is_null: bool, n_tokens: u64) -> Result<(), Diagnostic> {
    if given >= needed && !is_null {
        return Ok(());
    }
    let found = if is_null { "none".to_string() } else { format!("{given} bytes") };
    Err(Diagnostic::input(
        "workspace-too-small",
        format!("a launch of {n_tokens} tokens works in {needed} bytes ({}), {found} were given", size(needed)),
    )
    .help("ask the layer how much a token count needs, and hand that in"))
}
