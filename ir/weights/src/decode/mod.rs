//! Stored elements as values: floats as they are, codes with a scale for each block, integers with zero points.

pub mod blocks;
pub mod integers;
mod runs;
mod scales;

pub use blocks::Blocks;
pub use integers::Integers;
pub(crate) use scales::{ScaleFault, check as check_scales, either_sign};

use crate::formats::ggml::Stored;
use moec_ir::DType;
use std::sync::Arc;

/// The elements of a stored tensor.
#[derive(Clone, Debug)]
pub(crate) enum Elements<'a> {
    /// Of a type that moec has, and their bytes.
    Plain(DType, &'a [u8]),
    /// Codes and scales of floats.
    Blocks(Arc<Blocks<'a>>),
    /// Integers with zero points.
    Integers(Arc<Integers<'a>>),
    /// Blocks of a GGUF file.
    Ggml(Arc<Stored<'a>>),
}
