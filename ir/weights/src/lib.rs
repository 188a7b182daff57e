//! Published weights: the user's checkpoint on one side, the buffers that kernels read on the other.
//!
//! * [`Checkpoint`] opens safetensors files (one, several, or an index of shards), GGUF files, and the
//!   weights of ONNX and `.pt2` files without trusting them.
//! * [`Published`] is what a config says about the format of its weights, module by module.
//! * `formats` has one file for each scheme in which weights are published: how a config names it, how its tensors look.
//! * [`Plan`] finds the tensors of a layer's parameters and checks them whole; then it copies. [`unpack_weight`] is its inverse.
//!
//! Nothing here allocates or computes more than a file's true size justifies, and nothing panics on what a file says.
#![warn(missing_docs)]

mod coded_view;
pub mod config;
pub mod decode;
mod formats;
pub mod input_scale;
mod pack;
mod plan;
mod read;
mod resolve;
mod strided;
mod view;
mod whole;

pub use coded_view::{CodedView, GivenCodes, Part};
pub use config::{Published, Source};
pub use pack::parts::{is_part, unpack_part};
pub use pack::{pack_tensor, unpack_weight};
pub use plan::{Plan, PlannedWeight, StoredForm, first, holds_codes, pack_weight};
pub use read::checkpoint::{Checkpoint, file_state};
pub use read::gguf;
pub use read::safetensors::{self, StoredType, TensorView};
pub use read::{onnx, pt2};
pub use view::MemoryView;
