//! The kinds of kernel.

mod choice;
mod combine;
mod contract;
mod elementwise;
mod map;
mod plan;
mod rows;
mod special;

use crate::emit::Emit;
use moec_ir::tile::{Body, CpuLaunch, Kernel, Program};

/// Emits the body of a kernel.
pub(crate) fn emit(e: &mut Emit, program: &Program, kernel: &Kernel) {
    match &kernel.body {
        Body::Contract(c) => contract::emit(e, program, c, kernel.schedule),
        Body::Rows(p) => rows::emit(e, program, p, kernel.schedule),
        Body::Plan(p) => plan::emit(e, p),
        Body::Map(m) => map::emit(e, m, kernel.schedule),
        // Refused by the check of the program.
        Body::Quantise(_) => {}
        Body::Combine(c) => combine::emit(e, c, kernel.schedule),
    }
}

/// How a kernel is launched.
pub(crate) fn launch(program: &Program, kernel: &Kernel) -> CpuLaunch {
    match &kernel.body {
        Body::Contract(c) => contract::launch(program, c, kernel.schedule),
        Body::Rows(p) => rows::launch(program, p, kernel.schedule),
        Body::Plan(p) => plan::launch(p),
        Body::Map(m) => map::launch(program, m, kernel.schedule),
        Body::Quantise(_) => CpuLaunch { items: moec_ir::tile::Extent::fixed(0), scratch_bytes: 0 },
        Body::Combine(c) => combine::launch(program, c, kernel.schedule),
    }
}
