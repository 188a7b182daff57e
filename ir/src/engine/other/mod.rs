//! How kernels that are no contractions are cut.

mod row_layout;
pub mod rows;

pub use row_layout::RowLayout;

use crate::tile::{BufferId, ColAccess, MapArg, Plan, Program, Schedule};

/// Most warps of a CTA.
const MOST_WARPS: u32 = 32;
/// Shared memory for the counters of a plan.
const PLAN_BYTES: u32 = 64 * 1024;

/// Warps of a CTA as kernels take them: a power of two.
fn power_of_warps(warps: u32) -> u32 {
    warps.clamp(1, MOST_WARPS).next_power_of_two()
}

/// The schedule nearest to `asked` of a kernel whose warps take rows.
pub fn fit_quantise(asked: Schedule) -> Schedule {
    Schedule { tile_m: asked.tile_m.max(1), warps: power_of_warps(asked.warps), ..asked }
}

/// Bytes of the counters of a plan in shared memory: one for each warp and expert.
pub fn plan_bytes(plan: &Plan, warps: u32) -> u32 {
    warps * plan.n_experts as u32 * 4
}

/// Warps, of `warps` or less, that make a plan in a CTA of `smem_bytes`: a power of two whose counters fit.
pub fn plan_warps(plan: &Plan, warps: u32, smem_bytes: u32) -> u32 {
    let mut warps = power_of_warps(warps);
    while warps > 1 && plan_bytes(plan, warps) > smem_bytes.min(PLAN_BYTES) {
        warps /= 2;
    }
    warps
}

/// The schedule nearest to `asked` of a plan, for a CTA of `smem_bytes`.
pub fn fit_plan(plan: &Plan, asked: Schedule, smem_bytes: u32) -> Schedule {
    Schedule { warps: plan_warps(plan, asked.warps, smem_bytes), ..asked }
}

/// Adjacent columns that a thread of an elementwise kernel computes: 8, 4, 2 or 1, which divides the columns and every row
/// pitch and offset, so that no vector is cut or misaligned.
pub fn vector(program: &Program, out: BufferId, others: &[BufferId], args: &[MapArg]) -> u32 {
    let out = program.buffer(out);
    let mut lengths = vec![out.cols, out.pitch];
    lengths.extend(others.iter().map(|&b| program.buffer(b).pitch));
    for a in args {
        if let ColAccess::From(offset) = a.col {
            lengths.extend([program.buffer(a.buffer).pitch, offset]);
        }
    }
    let divides_all = |v: &u32| lengths.iter().all(|n| n.is_multiple_of(u64::from(*v)));
    [8, 4, 2].into_iter().find(divides_all).unwrap_or(1)
}

/// The schedule nearest to `asked` of an elementwise kernel with results of `cols` columns: `tile_n` is whole vectors, and no
/// more than the columns.
pub fn fit_elementwise(cols: u64, vector: u32, asked: Schedule) -> Schedule {
    Schedule {
        tile_m: asked.tile_m.max(1),
        tile_n: asked.tile_n.clamp(1, (cols as u32).max(1)).next_multiple_of(vector),
        warps: power_of_warps(asked.warps),
        ..asked
    }
}
