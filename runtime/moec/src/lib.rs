//! Compile Mixture-of-Experts layers, and run them.
//!
//! The way from a model to results:
//!
//! 1. [`Model::open`] reads a `config.json`, a model directory or a layer graph; [`Model::layer`] takes one layer of it.
//! 2. [`compile`] makes a [`Compiled`] layer for any number of targets, with a [`Bundle`] that can be written to disk.
#![warn(missing_docs)]

mod compile;
mod model;

pub use compile::{
    CompileRequest, Compiled, CompiledTarget, CompiledVariant, Phase, Timing, compile, compile_reporting,
};
pub use model::{Model, ModelLayer};

pub use moec_bundle::Bundle;
pub use moec_ir::diag::Diagnostic;
pub use moec_ir::target::Target;
pub use moec_ir::{Numerics, Tensor};
