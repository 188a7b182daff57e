//! Tile IR to LLVM to PTX.
//!
//! [`emit`] turns a verified tile program into one PTX module for each kernel. Contractions run on the pipeline of the
//! target's machine generation: `sm100` on `tcgen05` where TMA can address the operands, `sm120` for codes by codes on
//! block-scaled `mma.sync`, the portable one of `sm80` everywhere else. What machines with TMA share is in `pipeline`. All
//! other kernels are the same everywhere (`kernel`).

mod code;
mod decode;
mod emit;
mod encode;
mod kernel;
mod llvm;
mod machine;
mod math;
mod pipeline;
mod sm100;
mod sm120;
mod sm80;

pub use emit::{EmitOptions, GpuKernelImage, emit, emit_with};
pub use llvm::{Llvm, llvm};
pub use moec_ir::tile::GpuLaunch;
