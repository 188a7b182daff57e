//! The runtime of moec for C and C++, and for every language that calls C. `include/moec.h` is made from this crate.
//!
//! A host opens a bundle, creates a layer of it, gives the layer its weights, finishes it, and launches it as often as it
//! likes: on its own tensors, in its own workspace, on its own stream.
//!
//! * Every function that can fail returns a [`moec_status`]; what went wrong is told by [`moec_last_error_message`] and its
//!   neighbours, for each thread apart.
//! * Handles are checked: one that is null, was freed, or is none gives an error. All functions may be called from any
//!   thread at any time.
//! * Structures begin with their size as the host knows them, so that they can grow.
//! * Nothing unwinds out of these functions, and nothing is printed.
//!
//! The same library has `__tvm_ffi_*` functions ([`tvm`]) for hosts with Apache TVM's FFI, such as vLLM, and kernels of PyTorch's
//! operators for the Python package.
#![warn(missing_docs)]
#![allow(non_camel_case_types, reason = "the names are C's")]

mod bundle;
mod describe;
mod handles;
mod layer;
mod memory;
mod status;
mod structs;
mod tensor;
mod torch;
pub mod tvm;
mod weights;

/// What `libmoec_compiler` is built from as well.
#[doc(hidden)]
pub mod border {
    pub use crate::bundle::adopt_bundle;
    pub use crate::memory::{give, null, optional_text, text};
    pub use crate::status::guard;
    pub use crate::structs::{HostStruct, read};
    pub use crate::torch::moec_torch_register;
}

pub use bundle::*;
pub use layer::*;
pub use status::*;
pub use structs::*;
pub use tensor::{moec_device, moec_dtype, moec_tensor};
pub use weights::*;
