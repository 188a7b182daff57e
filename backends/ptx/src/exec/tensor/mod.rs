//! Tensor-core instructions, tensor memory and tensor maps in the executor.
//!
//! The arithmetic and the layouts are in [`crate::tensor`]; here they meet warps, queues and checks.

mod matrix;
mod mma;
mod state;
mod tcgen05;
mod tma;
mod wgmma;
mod wmma;

#[cfg(test)]
mod tests;

pub use state::{CtaTensor, WarpTensor};
pub(crate) use tma::acquire_map;

use super::context::{AsyncCx, Cx, Machine};
use super::error::{CompileError, ExecError};
use super::findings::Check;
use super::lower::Lower;
use super::program::{Custom, Flow, Wait};
use super::queue::Stream;
use crate::ast::Instruction;
use crate::tensor::TensorError;

/// Lowers a tensor instruction; `None` when the instruction is none.
///
/// # Errors
/// `Unsupported` for forms that are not executed.
pub(crate) fn lower(l: &mut Lower<'_>, i: &Instruction) -> Result<Option<Custom>, CompileError> {
    let first = i.modifiers.first().map_or("", String::as_str);
    match i.opcode.as_str() {
        "mma" => mma::lower(l, i).map(Some),
        "wmma" => wmma::lower(l, i).map(Some),
        "ldmatrix" | "stmatrix" | "movmatrix" => matrix::lower(l, i).map(Some),
        "wgmma" => wgmma::lower(l, i).map(Some),
        "tcgen05" => tcgen05::lower(l, i).map(Some),
        "tensormap" => tma::lower_tensormap(l, i).map(Some),
        "cp" if matches!(first, "async" | "reduce") && i.has("tensor") => tma::lower_copy(l, i).map(Some),
        _ => Ok(None),
    }
}

/// Called when the last warp of a CTA leaves: leaked tensor memory.
pub(crate) fn cta_exit(m: &mut Machine<'_>) {
    let columns = m.own().tensor.allocated_columns();
    if columns > 0 {
        m.report(Check::TensorMemory, None, || {
            format!("the CTA leaves with {columns} columns of tensor memory allocated; a later kernel that allocates would hang")
        });
    }
}

/// A compile-time error from the tensor semantics.
fn compile_error(l: &Lower<'_>, e: TensorError) -> CompileError {
    match e {
        TensorError::Unsupported(what) => l.unsupported(what),
        TensorError::Invalid(what) => l.invalid(what),
    }
}

/// A run-time error from the tensor semantics: a descriptor or tensor map that means nothing.
fn fault(m: &Machine<'_>, e: &TensorError) -> ExecError {
    m.fault(e.to_string())
}

/// For `.sync.aligned` instructions: waits until the whole warp stands here, and reports lanes that the guard turns off.
///
/// `None` when the instruction may execute.
fn whole_warp(cx: &mut Cx<'_>, mask: u32) -> Option<Flow> {
    let live = cx.warp.live();
    if cx.part_mask != live {
        return Some(Flow::Block(Wait::Lanes(live & !cx.part_mask)));
    }
    if mask != live {
        let lane = (live & !mask).trailing_zeros();
        cx.m.report(Check::Divergence, Some(lane), || {
            format!(
                "a warp-wide instruction is executed by lanes {mask:#010x} only; all of {live:#010x} must execute it"
            )
        });
    }
    None
}

/// The machine as an asynchronous operation sees it, for reads that happen when the operation is issued. They count under `actor`,
/// with a tick that nobody knows until the operation is waited for.
fn at_issue<'a>(cx: &'a mut Cx<'_>, actor: u32, lane: u32, what: &'static str) -> AsyncCx<'a> {
    let mut clock = cx.warp.clock.clone();
    if cx.m.cluster.n_actors > 0 {
        let tick = cx.m.cluster.next_tick(actor);
        if let Some(seen) = clock.seen.get_mut(actor as usize) {
            *seen = tick;
        }
    }
    let m = Machine {
        launch: cx.m.launch,
        cluster: &mut *cx.m.cluster,
        worker: &mut *cx.m.worker,
        cta: cx.m.cta,
        warp_index: cx.m.warp_index,
        pc: cx.m.pc,
    };
    AsyncCx { m, lane, actor, clock, stream: Stream::Free, what, reading: None }
}
