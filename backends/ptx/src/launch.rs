//! Launch recipes (`launch.json`): how to launch an entry, what its parameters are, which buffers are its results.
//!
//! The format is described in the README of this crate. [`parse`] reads it and names a guilty field by its path, with
//! what was found and what was expected.

mod emulate;
mod json;
mod ranks;
mod spec;

pub use emulate::{EmulateError, Emulation, Options, emulate, emulate_launch};
pub use json::parse;
pub use ranks::{RanksEmulation, emulate_ranks, parse_ranks};
pub use spec::{Launch, LaunchError, Param, Patch, PatchValue, RanksLaunch, SWIZZLES, TENSOR_TYPES, TensorMap};
