//! Tile IR to machine code with Cranelift: as functions in memory ([`Jit`]) or as an object file ([`compile_object`]).
//!
//! # What a kernel is
//!
//! One function of type [`moec_ir::abi::CpuKernel`] for each kernel of the program. It does the work items `begin .. end`
//! out of `launch.items.at(T)`; items of one kernel may run on any thread in any order, each call with its own
//! `launch.scratch_bytes` of scratch memory, aligned to 256 bytes. It reads the buffer pointers, `T` and the function
//! table from the context, keeps no state, does not allocate, and never unwinds.
//!
//! Neighbouring items of a contraction are neighbouring columns, and one call does them in longer runs through memory than
//! many calls: deal items out in pieces of about a quarter of a thread's share.
//!
//! # What an object file guarantees
//!
//! A relocatable ELF file whose only section with content is `.text`. The code is position independent, has no
//! relocations, no undefined symbols and no data outside `.text` (constants lie behind the function that uses them).
//! Matrix products are called through [`moec_ir::abi::CpuKernels`] in the context, functions of `libm` through
//! [`moec_ir::abi::CpuMath`]. So a loader links nothing:
//!
//! 1. find the section `.text` and check that the file has no relocations and no undefined symbols;
//! 2. copy its bytes to the start of a page of memory (any alignment of [`TEXT_ALIGN`] will do) and make it executable
//!    (and not writable); on aarch64, invalidate the instruction cache over it;
//! 3. a kernel is at the start of that memory plus the value of its symbol;
//! 4. before the first call, check that the processor has what [`CpuObject::requires`] lists.
//!
//! The same program gives the same bytes on every host, unless native features are asked for.
//!
//! # Schedules
//!
//! Contractions: `tile_n` is the columns of a work item, rounded up to a multiple of 8 within 8 … 64. Row programs: `tile_m`
//! rows to an item.
//! Maps and combines: `tile_m` rows by `tile_n` columns, rounded up to a multiple of 8 and at least 64.
//! `stages` and `warps` have no meaning here.
#![warn(missing_docs)]

mod check;
mod compile;
mod emit;
mod error;
mod jit;
mod kernels;
mod object;
mod options;

pub use jit::{Jit, JitKernel, JitProgram};
pub use object::{CpuKernelImage, CpuObject, TEXT_ALIGN, compile_object, compile_objects};
pub use options::{CpuArch, CpuFeatures, ObjectOptions};

use moec_ir::Diagnostic;
use moec_ir::tile::Program;

/// The Cranelift code of one kernel before optimisation, as text for people.
///
/// # Errors
/// As [`compile_object`].
pub fn print_clif(program: &Program, kernel: usize, options: &ObjectOptions) -> Result<String, Diagnostic> {
    compile::clif(&options::machine(options.arch, options.features)?, program, kernel)
}

/// The assembly of one kernel, as text for people.
///
/// # Errors
/// As [`compile_object`].
pub fn print_assembly(program: &Program, kernel: usize, options: &ObjectOptions) -> Result<String, Diagnostic> {
    compile::disassemble(&options::machine(options.arch, options.features)?, program, kernel)
}
