//! Launch recipes (`launch.json`): how to launch an entry, what its parameters are, which buffers are its results.
//!
//! The format is described in the README of this crate. [`parse`] reads it and names a guilty field by its path, with
//! what was found and what was expected.

mod json;
mod spec;

pub use json::parse;
pub use spec::{
    Interleave, Launch, LaunchError, Outside, Param, Patch, PatchValue, Swizzle, TensorMap,
    TensorType,
};
