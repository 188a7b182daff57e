//! Runs compiled layers: opens a bundle, packs the weights, binds tensors and launches.
//!
//! ```no_run
//! use moec_bundle::Bundle;
//! use moec_runtime::{Device, Layer, LoadOptions, Weights};
//!
//! # fn main() -> Result<(), moec_ir::Diagnostic> {
//! let bundle = Bundle::open("target/r1")?;
//! let weights = Weights::from_checkpoint(moec_weights::Checkpoint::open("models/deepseek-r1")?);
//! let options = LoadOptions { device: Device::parse("cpu")?, max_tokens: 64, ..LoadOptions::default() };
//! let mut layer = Layer::load(&bundle, &weights, options)?;
//! let input = moec_ir::Tensor::float(moec_ir::DType::BF16, &[1, 7168], vec![0.0; 7168]);
//! let run = layer.run_host(&[("input", &input)])?;
//! println!("{:?}", run.output("output").map(|t| &t.shape));
//! # Ok(())
//! # }
//! ```
//!
//! # For engines
//!
//! Everything is allocated by [`Layer::load`]: packed weights, workspace for `max_tokens` tokens, the token count in
//! device memory; or by [`LayerBuilder`], weight by weight. Launching neither allocates nor synchronises nor reads back. On CUDA the stream is the caller's, and a
//! launch can be captured into a graph: see [`cuda::CudaLayer`]. On the CPU see [`cpu::CpuLayer::launch`]. Both have a
//! `launch_in` that works in the caller's memory.
//!
//! # Features
//!
//! `cuda` (default) brings NVIDIA GPUs through the driver, which is looked for at run time; `emulator` (default) runs
//! PTX on the CPU with checks. Without both the crate has no dependencies beyond reading files.
#![warn(missing_docs)]

mod builder;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
#[cfg(feature = "emulator")]
pub mod emulated_rank;
#[cfg(feature = "emulator")]
pub mod emulator;
mod given;
pub mod gpu_pack;
mod host;
mod layer;
mod memory;
mod packed_file;
mod plan;
mod random_codes;
mod same_layer;
mod selected;
mod times;
mod weight_cache;
mod weights;
mod workspace;

pub use builder::{Hold, LayerBuilder};
pub use device::{Device, best_target};
pub use layer::{Layer, LoadOptions, RunResult};
pub use memory::parse_bytes;
pub use packed_file::{weight_buffers, write_packed};
pub use selected::{SelectedExperts, of_one_expert};
pub use times::Times;
pub use weight_cache::CachedWeights;
pub use weights::{Fill, Watch, Weights, random_slices, random_tensor};
