//! How plans, which put slots in expert order, are cut: CTAs of a cluster and their warps, each with counters in shared memory.

use super::power_of_warps;
use crate::target::Features;
use crate::tile::{Plan, Schedule};

/// Most CTAs of a cluster.
const MOST_CTAS: u32 = 8;
/// Most shared memory for the counters of warps.
const COUNTER_BYTES: u32 = 64 * 1024;

/// A plan, cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// CTAs of the cluster that makes it.
    pub ctas: u32,
    /// Warps of a CTA, each with a run of slots: a power of two.
    pub warps: u32,
    n_experts: u32,
}

impl Geometry {
    /// Of `ctas` CTAs with `warps` warps or less, as many as have room for their counters in a CTA of `smem_bytes`.
    pub fn of(plan: &Plan, (ctas, warps): (u32, u32), smem_bytes: u32) -> Geometry {
        let mut g = Geometry { ctas, warps: power_of_warps(warps), n_experts: plan.n_experts as u32 };
        while g.warps > 1 && (g.counters() * 4 > COUNTER_BYTES || g.smem_bytes() > smem_bytes) {
            g.warps /= 2;
        }
        g
    }

    /// Words of the warps' counters, one for each warp and expert.
    pub fn counters(&self) -> u32 {
        self.warps * self.n_experts
    }

    /// Words of a list with a number for each expert and one more: the end of its last row.
    pub fn list(&self) -> u32 {
        self.n_experts + 1
    }

    /// Words of shared memory: the counters; slots of each expert in this CTA; first rows; in a cluster slots of each expert in
    /// all CTAs.
    pub fn words(&self) -> u32 {
        let lists = if self.ctas > 1 { 3 } else { 2 };
        self.counters() + lists * self.list()
    }

    /// Bytes of shared memory.
    pub fn smem_bytes(&self) -> u32 {
        self.words() * 4
    }
}

/// CTAs that put slots in order, as near to `asked` as there is: a power of two, one where there are no clusters.
pub(super) fn ctas(asked: u32, features: Features) -> u32 {
    if features.clusters { asked.clamp(1, MOST_CTAS).next_power_of_two() } else { 1 }
}

/// The schedule nearest to `asked` of a plan, for a CTA of `smem_bytes`.
pub fn fit(plan: &Plan, asked: Schedule, smem_bytes: u32, features: Features) -> Schedule {
    let order_ctas = ctas(asked.order_ctas, features);
    let warps = Geometry::of(plan, (order_ctas, asked.warps), smem_bytes).warps;
    Schedule { warps, order_ctas, ..asked }
}
