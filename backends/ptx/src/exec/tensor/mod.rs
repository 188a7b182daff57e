//! Tensor-core instructions, tensor memory and tensor maps in the executor.

use super::error::CompileError;
use super::lower::Lower;
use super::program::Custom;
use crate::ast::Instruction;

/// Tensor state of a warp.
#[derive(Clone, Debug, Default)]
pub struct WarpTensor {}

/// Tensor state of a CTA: tensor memory, allocations.
#[derive(Clone, Debug, Default)]
pub struct CtaTensor {}

/// Lowers a tensor instruction; `None` when the instruction is none.
///
/// # Errors
/// `Unsupported` for forms that are not executed.
pub(crate) fn lower(l: &mut Lower<'_>, i: &Instruction) -> Result<Option<Custom>, CompileError> {
    let _ = (l, i);
    Ok(None)
}

/// Called when the last warp of a CTA leaves: leaked tensor memory and the like.
pub(crate) fn cta_exit(m: &mut super::context::Machine<'_>) {
    let _ = m;
}
