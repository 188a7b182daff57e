//! How plans, which put slots in expert order, are cut: warps that each have counters in shared memory.

use super::power_of_warps;
use crate::tile::{Plan, Schedule};

/// Most shared memory for the counters of a plan.
const COUNTER_BYTES: u32 = 64 * 1024;

/// Bytes of the counters of a plan in shared memory: one for each warp and expert.
pub fn counter_bytes(plan: &Plan, warps: u32) -> u32 {
    warps * plan.n_experts as u32 * 4
}

/// Warps, of `warps` or less, that make a plan in a CTA of `smem_bytes`: a power of two whose counters fit.
pub fn warps_of(plan: &Plan, warps: u32, smem_bytes: u32) -> u32 {
    let mut warps = power_of_warps(warps);
    while warps > 1 && counter_bytes(plan, warps) > smem_bytes.min(COUNTER_BYTES) {
        warps /= 2;
    }
    warps
}

/// The schedule nearest to `asked` of a plan, for a CTA of `smem_bytes`.
pub fn fit(plan: &Plan, asked: Schedule, smem_bytes: u32) -> Schedule {
    Schedule { warps: warps_of(plan, asked.warps, smem_bytes), ..asked }
}
