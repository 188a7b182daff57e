//! What is on disk on either side of the loader: the user's checkpoint, and the bundle that the compiler wrote.
//!
//! * [`Checkpoint`] opens safetensors files (one, several, or an index of shards) without trusting them.
//! * [`pack_weight`] brings a parameter from its published layout into the buffer that kernels read; [`unpack_weight`]
//!   is its inverse.
//! * [`Bundle`] is a compiled layer: a manifest and the files that it names, each with its hash.
//!
//! Nothing here allocates or computes more than a file's true size justifies, and nothing panics on what a file says.
#![warn(missing_docs)]

mod build;
mod bundle;
mod canonical;
pub mod checkpoint;
mod coded;
mod convert;
pub mod input_scale;
mod integers;
pub mod manifest;
mod pack;
pub mod quantised;
pub mod safetensors;
mod strided;
mod verify;
mod write;

pub use build::{BundleBuilder, CpuKernelPart, CpuVariantPart, GpuKernelPart, GpuVariantPart};
pub use bundle::Bundle;
pub use canonical::sha256;
pub use checkpoint::Checkpoint;
pub use coded::{holds_codes, is_part, unpack_part};
pub use manifest::Manifest;
pub use pack::{borrow_weight, pack_tensor, pack_weight, unpack_weight};
pub use safetensors::{StoredType, TensorView};
pub use verify::{MAX_KERNEL_PARAMS, MAX_TENSOR_MAPS, MAX_TOKENS, verify_manifest};
