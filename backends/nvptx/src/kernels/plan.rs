//! Expert order: a stable counting sort of the slots, by one block.
//!
//! Each warp takes a contiguous run of slots and counts its experts; the counts become, for each warp and expert, the
//! first row; each warp then goes over its slots again and hands out rows. Nothing depends on timing.

use super::{Design, Kernel, Registers, View};
use crate::builder::{Builder, I32, Shared};
use moec_ir::engine::plan;
use moec_ir::tile::{Extent, GpuLaunch, Plan, Program, Schedule};

/// Builds the plan in one launch of one block.
pub fn plan<'p>(program: &'p Program, plan: &'p Plan, schedule: &Schedule, smem_limit: u32) -> Design<'p> {
    let planner = Planner::new(program, plan, schedule.warps, smem_limit);
    let launch = GpuLaunch {
        grid: [Extent::fixed(1), Extent::fixed(1), Extent::fixed(1)],
        block_threads: planner.warps * 32,
        cluster: 1,
        dynamic_smem_bytes: planner.smem_bytes(),
        persistent: false,
        programmatic: false,
        tensor_maps: Vec::new(),
    };
    let body = move |k: &Kernel| {
        k.builder.exit_if(k.builder.block_x().ne(0));
        planner.build(k, planner.warps * 32);
    };
    Design { launch, registers: Registers::Default, body: Box::new(body) }
}

/// One block's work of making a plan.
pub struct Planner<'p> {
    program: &'p Program,
    plan: &'p Plan,
    n_experts: u32,
    /// Warps that sort; a block may have more, which wait.
    warps: u32,
}

impl<'p> Planner<'p> {
    /// In as many of `warps` warps as there is shared memory for.
    pub fn new(program: &'p Program, plan: &'p Plan, warps: u32, smem_limit: u32) -> Planner<'p> {
        let warps = plan::warps_of(plan, warps, smem_limit);
        Planner { program, plan, n_experts: plan.n_experts as u32, warps }
    }

    /// Shared memory of the block.
    pub fn smem_bytes(&self) -> u32 {
        plan::counter_bytes(self.plan, self.warps)
    }

    /// Makes the plan. All threads of one block take part; shared memory may hold anything before and after.
    pub fn build<'c>(&self, k: &Kernel<'c, '_>, block_threads: u32) {
        let c = k.builder;
        let (plan, warps, n_experts) = (self.plan, self.warps, self.n_experts);
        let threads = warps * 32;
        let ids = k.view(plan.ids);
        let (per_token, n_slots) = (self.program.buffer(plan.ids).cols as u32, k.n_tokens());
        let n_slots = k.length(self.program.buffer(plan.ids).rows, n_slots) * per_token;
        let (offsets, row_to_token) = (k.view(plan.offsets), k.view(plan.row_to_token));
        let counter = |warp: I32<'c>, expert: I32<'c>| (warp * n_experts + expert) << 2;

        c.part("plan: counts", || {
            c.range(c.thread(), warps * n_experts, block_threads, |i| c.store_i32(c.shared().plus(i << 2), c.i32(0)));
            c.barrier();
        });

        // Whole batches of 32 slots for each warp, in order.
        let warp = c.warp();
        let run = n_slots.div_ceil(threads) * 32;
        let first = warp * run;
        let end = (first + run).min(n_slots);
        let batch = Batch { c, ids, n_experts, counters: c.shared().plus(counter(warp, c.i32(0))), end };
        c.part("plan: counts", || {
            c.range(first, end, 32, |at| {
                let slot = batch.slot(at);
                batch.count(&slot);
            });
        });
        c.barrier();

        // One warp turns counts into first rows, 32 experts at a time; `before` is the number of rows of earlier experts.
        c.part("plan: first rows", || {
            c.when(warp.eq(0), || {
                let before = c.var(c.i32(0));
                c.range(0, n_experts, 32, |from| {
                    let expert = from + c.lane();
                    let exists = expert.lt(n_experts);
                    let total = c.var(c.i32(0));
                    c.when(exists, || {
                        c.range(0, warps, 1, |w| {
                            total.set(total.get() + c.load_i32(c.shared().plus(counter(w, expert))));
                        });
                    });
                    let inclusive = c.warp_prefix_sum(total.get(), c.lane());
                    let row = c.var(before.get() + inclusive - total.get());
                    c.when(exists, || {
                        c.store_i32(offsets.nth(expert), row.get());
                        c.range(0, warps, 1, |w| {
                            let place = c.shared().plus(counter(w, expert));
                            let count = c.load_i32(place);
                            c.store_i32(place, row.get());
                            row.set(row.get() + count);
                        });
                    });
                    before.set(before.get() + c.read_lane(inclusive, 31));
                });
                c.when(c.lane().eq(0), || c.store_i32(offsets.nth(c.i32(n_experts)), before.get()));
                c.range(before.get() + c.lane(), n_slots, 32, |row| {
                    c.store_i32(row_to_token.nth(row), c.i32(u32::MAX))
                });
            });
        });
        c.barrier();

        let slot_to_row = k.view(plan.slot_to_row);
        c.part("plan: rows of slots", || {
            c.range(first, end, 32, |at| {
                let slot = batch.slot(at);
                let row = batch.take_row(&slot);
                c.when(slot.exists, || {
                    c.store_i32(slot_to_row.nth(slot.number), row);
                    c.when(row.is_negative().not(), || c.store_i32(row_to_token.nth(row), slot.number / per_token));
                });
            });
        });
    }
}

/// A warp's pass over batches of 32 slots.
struct Batch<'c> {
    c: &'c Builder<'c>,
    ids: View<'c>,
    n_experts: u32,
    /// This warp's counters, by expert.
    counters: Shared<'c>,
    end: I32<'c>,
}

/// The slot of a lane.
struct Slot<'c> {
    number: I32<'c>,
    exists: crate::builder::Bool<'c>,
    expert: I32<'c>,
    /// Whether it exists and its expert does.
    is_dispatched: crate::builder::Bool<'c>,
    /// The lanes of this batch with the same expert.
    peers: I32<'c>,
}

impl<'c> Batch<'c> {
    fn slot(&self, at: I32<'c>) -> Slot<'c> {
        let c = self.c;
        let number = at + c.lane();
        let exists = number.lt(self.end);
        let id = c.var(c.i32(u32::MAX));
        c.when(exists, || id.set(c.load_i32(self.ids.nth(number))));
        let expert = id.get();
        // Read as unsigned, so a negative id is too large as well.
        let is_dispatched = expert.lt(self.n_experts);
        Slot { number, exists, expert, is_dispatched, peers: c.equal_lanes(expert) }
    }

    fn counter(&self, slot: &Slot<'c>) -> Shared<'c> {
        let expert = self.c.select(slot.is_dispatched, slot.expert, self.c.i32(0));
        self.counters.plus(expert << 2)
    }

    /// Adds the batch to the counters: the first of equal lanes adds for all of them, so no two lanes touch one counter.
    fn count(&self, slot: &Slot<'c>) {
        let c = self.c;
        let is_first = (slot.peers & c.lanes_before()).eq(0);
        c.when(slot.is_dispatched.and(is_first), || {
            let counter = self.counter(slot);
            c.store_i32(counter, c.load_i32(counter) + slot.peers.popcount());
        });
        c.warp_barrier();
    }

    /// The next row of the slot's expert, and -1 for a slot that is not dispatched.
    fn take_row(&self, slot: &Slot<'c>) -> I32<'c> {
        let c = self.c;
        let row = c.var(c.i32(u32::MAX));
        let rank = (slot.peers & c.lanes_before()).popcount();
        c.when(slot.is_dispatched, || row.set(c.load_i32(self.counter(slot)) + rank));
        // All lanes have read before the first of each expert moves its counter on.
        c.warp_barrier();
        self.count(slot);
        row.get()
    }
}
