//! Tile IR to LLVM to PTX.
//!
//! [`emit`] turns a verified tile program into one PTX module for each kernel. Matrix products run on an engine (`engines`),
//! which is chosen by what the target's tensor cores and the product's operands are (`moec_ir::Engine`); what engines are made
//! of lies in `parts`: the order of tiles, rings of stages, copies, decoding, epilogues. All other kernels are the same
//! everywhere (`kernels`). Everything is written in the words of `builder`, a thin layer over LLVM's.

mod builder;
mod emit;
mod engines;
mod kernels;
mod llvm;
mod machine;
mod parts;

pub use emit::{EmitOptions, GpuKernelImage, emit, emit_all, emit_with};
pub use kernels::exchange::emit_exchange;
pub use llvm::{Llvm, llvm};
pub use moec_ir::tile::GpuLaunch;
