//! Compile Mixture-of-Experts layers, and run them.
//!
//! The way from a model to results:
//!
//! 1. [`Model::open`] reads a `config.json`, a model directory or a layer graph; [`Model::layer`] takes one layer of it.
//! 2. [`compile`] makes a [`Compiled`] layer for any number of targets, with a [`Bundle`] that can be written to disk.
//! 3. A [`Session`] loads the bundle with its weights onto a device, and runs it.
//!
//! ```no_run
//! use moec::{CompileRequest, Checkpoint, Device, Model, Session, Target, Weights};
//!
//! # fn main() -> Result<(), Vec<moec::Diagnostic>> {
//! let layer = Model::open("models/mixtral")?.layer(None)?;
//! let cpu = Target::by_name("cpu").into_iter().collect();
//! let compiled = moec::compile(&CompileRequest::new(&layer.graph, cpu)).map_err(|d| vec![d])?;
//! let weights = Weights::from_checkpoint(Checkpoint::open("models/mixtral").map_err(|d| vec![d])?);
//! let mut session = Session::load(&compiled.bundle, &weights, Device::Cpu, 64).map_err(|d| vec![d])?;
//! let input = moec::random_tensor(&layer.graph.inputs[0].ty, 8, 1, "input");
//! let result = session.run(&[("input", &input)]).map_err(|d| vec![d])?;
//! println!("{:?}", result.output("output").map(|t| &t.shape));
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

mod codegen;
mod compile;
mod model;
mod random;
mod session;

pub use compile::{
    CompileRequest, Compiled, CompiledTarget, CompiledVariant, Keep, Phase, Timing, compile, compile_reporting,
};
pub use model::{Activations, Model, ModelLayer};
pub use random::{Random, random_params, random_tensor};
pub use session::Session;

pub use moec_bundle::Bundle;
pub use moec_frontend::{LayerOptions, Part, PublishedRows};
pub use moec_ir::DType;
pub use moec_ir::diag::Diagnostic;
pub use moec_ir::graph::{Shard, ShardKind};
pub use moec_ir::target::Target;
pub use moec_ir::{Numerics, Tensor};
pub use moec_passes::WeightStorage;
pub use moec_runtime::{CachedWeights, Device, RunResult, Weights};
pub use moec_weights::{Checkpoint, PlannedWeight, Published, StoredForm};
