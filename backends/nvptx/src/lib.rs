//! Tile IR to LLVM to PTX.
//!
//! [`emit`] turns a verified tile program into one PTX module for each kernel. Contractions run on the pipeline of the
//! target's machine generation; today that is the portable one of `sm80` for every target. Everything else is the same
//! everywhere (`kernel`).

mod code;
mod emit;
mod kernel;
mod machine;
mod math;
mod sm80;

pub use emit::{EmitOptions, GpuKernelImage, emit, emit_with};
pub use machine::llvm_version;
pub use moec_ir::tile::GpuLaunch;
