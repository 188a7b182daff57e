//! Mixture-of-Experts layers of moec as operations of candle, on the CPU.
//!
//! [`MoeLayer`] is a whole layer, with its router: `[.., H]` comes in, `[.., H]` comes out. [`Experts`] are the routed experts
//! alone, for models that choose by themselves: out of a checkpoint, or over tensors that candle already has, which are read
//! where they lie.
//!
//! ```no_run
//! use candle_core::{DType, Device, Module, Tensor};
//!
//! fn main() -> candle_core::Result<()> {
//!     let layer = moec_candle::MoeLayer::open("models/qwen3-30b-a3b", Some(0), 512)?;
//!     let x = Tensor::randn(0f32, 1., (1, 7, 2048), &Device::Cpu)?.to_dtype(DType::BF16)?;
//!     println!("{}", layer.forward(&x)?);
//!     Ok(())
//! }
//! ```
//!
//! Layers are shared between threads by cloning, and compute forward only: a backward pass says so. Every error is
//! [`candle_core::Error`], with moec's code and help in its text.

mod experts;
mod launch;
mod layer;

pub use experts::Experts;
pub use layer::MoeLayer;
