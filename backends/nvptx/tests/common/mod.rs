//! Shared by the tests: programs, random tensors, and running PTX in the emulator.

pub mod assembler;
pub mod coded;
pub mod contractions;
pub mod emulate;
pub mod given_ids;
pub mod mutant;
pub mod products;
pub mod programs;
pub mod random;

use moec_ir::Diagnostic;
use moec_ir::target::Target;
use moec_ir::tile::Program;
use moec_nvptx::{EmitOptions, GpuKernelImage};

/// The program with the schedules nearest to its own that are built for a target.
#[allow(dead_code)]
pub fn fitted(program: &Program, target: &Target) -> Program {
    let mut fitted = program.clone();
    moec_ir::engine::fit(&mut fitted, target);
    fitted
}

/// The kernels of a program with such schedules.
#[allow(dead_code)]
pub fn emit(program: &Program, target: &Target) -> Result<Vec<GpuKernelImage>, Diagnostic> {
    moec_nvptx::emit_with(&fitted(program, target), target, &EmitOptions::default())
}
