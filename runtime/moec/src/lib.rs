//! Compile Mixture-of-Experts layers, and run them.
//!
//! The way from a model to results:
//!
//! 1. [`Model::open`] reads a model directory, a `config.json`, a GGUF, ONNX or `.pt2` file, or a layer graph;
//!    [`Model::layer`] takes one layer of it.
//! 2. [`compile`] makes a [`Compiled`] layer for any number of targets, with a [`Bundle`] that can be written to disk.
//! 3. A [`Session`] loads the bundle with its weights onto a device, and runs it; [`Session::run_into`] on tensors where they
//!    lie. [`Session::open`] does 2 and 3 for the machine at hand.
//!
//! ```no_run
//! fn main() -> moec::Result<()> {
//!     let layer = moec::Model::open("models/mixtral")?.layer(Some(0))?;
//!     let mut session = moec::Session::open(&layer, moec::Device::Cpu, 64)?;
//!     let input = moec::random_tensor(&layer.graph.inputs[0].ty, 8, 1, "input");
//!     let result = session.run(&[("input", &input)])?;
//!     println!("{:?}", result.output("output").map(|t| &t.shape));
//!     Ok(())
//! }
//! ```
#![warn(missing_docs)]

mod codegen;
mod compile;
mod error;
mod model;
mod placed;
mod random;
mod session;
mod view;

pub use compile::{
    CompileRequest, Compiled, CompiledTarget, CompiledVariant, Keep, Phase, Timing, compile, compile_reporting,
};
pub use error::{Error, Result};
pub use model::{Activations, Model, ModelLayer};
pub use placed::{Spread, compile_exchanging, compile_placed};
pub use random::{Random, random_params, random_tensor};
pub use session::Session;
pub use view::{View, ViewMut};

pub use moec_bundle::Bundle;
pub use moec_cpu::CpuArch;
pub use moec_frontend::{LayerOptions, Part, PublishedRows};
pub use moec_ir::DType;
pub use moec_ir::diag::Diagnostic;
pub use moec_ir::graph::{Graph, Shard, ShardKind};
pub use moec_ir::target::Target;
pub use moec_ir::{Mesh, Numerics, Placement, Tensor, TensorType};
pub use moec_passes::WeightStorage;
pub use moec_ranks as ranks;
pub use moec_runtime::{CachedWeights, Device, Hold, Layer, LayerBuilder, LoadOptions, RunResult, Weights};
pub use moec_weights::{Checkpoint, MemoryView, PlannedWeight, Published, StoredForm};
