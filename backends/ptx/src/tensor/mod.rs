//! Tensor-core semantics as pure functions: element decoding, fragment and descriptor layouts, matrix products.
//!
//! Nothing here knows of warps, queues or checks; `exec::tensor` wires these functions to the machine.

pub mod elem;
pub mod idesc;
pub mod ldmatrix;
pub mod matmul;
pub mod mma;
pub mod operand;
pub mod smem_desc;
pub mod swizzle;
pub mod tensormap;
pub mod tma;
pub mod tmem;
pub mod tmem_access;
pub mod umma;

/// Why a tensor instruction cannot be executed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// A valid form that this emulator does not execute.
    #[error("{0} is not supported by the emulator")]
    Unsupported(String),
    /// A form, descriptor or operand that PTX does not allow.
    #[error("{0}")]
    Invalid(String),
}

pub(crate) fn unsupported<T>(what: impl Into<String>) -> Result<T, TensorError> {
    Err(TensorError::Unsupported(what.into()))
}

pub(crate) fn invalid<T>(what: impl Into<String>) -> Result<T, TensorError> {
    Err(TensorError::Invalid(what.into()))
}
