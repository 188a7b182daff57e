//! Expert order: a stable counting sort of the slots, by one CTA or by those of a cluster.
//!
//! Each warp takes a contiguous run of slots and counts its experts. The counts of a CTA become, for each warp and expert, the
//! rows of warps before; the CTAs of a cluster read each other's sums; so each knows the first row of its own slots of each expert.
//! Each warp then goes over its slots again and hands out rows. Nothing depends on timing.

use super::{Design, Kernel, Registers, View};
use crate::builder::{Bool, Builder, I32, Shared, Var};
use moec_ir::engine::plan::Geometry;
use moec_ir::tile::{Extent, GpuLaunch, Plan, Program, Schedule};

/// Batches of 32 slots whose ids a warp reads together, while it works on as many before: a read takes longer than what is done
/// with it.
const BATCHES: u32 = 4;

/// Counters of a thread that are read before the first is written again.
const COUNTERS: u32 = 8;

/// Builds the plan in one launch of one cluster.
pub fn plan<'p>(program: &'p Program, plan: &'p Plan, schedule: &Schedule, smem_limit: u32) -> Design<'p> {
    let planner = Planner::new(program, plan, (schedule.order_ctas, schedule.warps), smem_limit);
    let Geometry { ctas, warps, .. } = planner.cut;
    let launch = GpuLaunch {
        grid: [Extent::fixed(ctas.into()), Extent::fixed(1), Extent::fixed(1)],
        block_threads: warps * 32,
        cluster: ctas,
        dynamic_smem_bytes: planner.smem_bytes(),
        persistent: false,
        programmatic: false,
        tensor_maps: Vec::new(),
    };
    let body = move |k: &Kernel| {
        k.builder.exit_if(k.builder.block_x().ge(ctas));
        planner.build(k, warps * 32);
    };
    Design { launch, registers: Registers::Default, body: Box::new(body) }
}

/// The work of the CTAs that make a plan.
pub struct Planner<'p> {
    program: &'p Program,
    plan: &'p Plan,
    cut: Geometry,
}

/// Lists in shared memory with a number for each expert, and one behind the last.
#[derive(Clone, Copy)]
struct Lists<'c> {
    /// Slots of each expert in this CTA.
    here: Shared<'c>,
    /// First rows of this CTA's slots; until they are known, the slots of each expert in CTAs before this one.
    first: Shared<'c>,
    /// Slots of each expert in all CTAs.
    all: Shared<'c>,
}

impl<'p> Planner<'p> {
    /// By so many CTAs, in as many of so many warps as there is shared memory for.
    pub fn new(program: &'p Program, plan: &'p Plan, ctas_and_warps: (u32, u32), smem_limit: u32) -> Planner<'p> {
        Planner { program, plan, cut: Geometry::of(plan, ctas_and_warps, smem_limit) }
    }

    /// CTAs that make it: one, or all of a cluster.
    pub fn ctas(&self) -> u32 {
        self.cut.ctas
    }

    /// Shared memory of a CTA.
    pub fn smem_bytes(&self) -> u32 {
        self.cut.smem_bytes()
    }

    /// Makes the plan. All threads of its CTAs take part; shared memory may hold anything before and after.
    pub fn build<'c>(&self, k: &Kernel<'c, '_>, block_threads: u32) {
        let c = k.builder;
        let (plan, Geometry { ctas, warps, .. }) = (self.plan, self.cut);
        let n_experts = plan.n_experts as u32;
        let ids = k.view(plan.ids);
        let (per_token, n_slots) = (self.program.buffer(plan.ids).cols as u32, k.n_tokens());
        let n_slots = k.length(self.program.buffer(plan.ids).rows, n_slots) * per_token;
        let row_to_token = k.view(plan.row_to_token);
        let rank = if ctas > 1 { c.cluster_rank() } else { c.i32(0) };
        let list = |n: u32| c.shared().at((self.cut.counters() + n * self.cut.list()) * 4);
        let (here, first) = (list(0), list(1));
        let lists = Lists { here, first, all: if ctas > 1 { list(2) } else { here } };

        c.part("plan: counts", || {
            c.range(c.thread(), self.cut.words(), block_threads, |i| c.store_i32(word(c.shared(), i), c.i32(0)));
            c.barrier();
        });

        // Whole batches of 32 slots for each warp, in order.
        let run = n_slots.div_ceil(ctas * warps * 32) * 32;
        let from = (rank * warps + c.warp()) * run;
        let from = if warps * 32 < block_threads { c.select(c.warp().lt(warps), from, n_slots) } else { from };
        let end = (from + run).min(n_slots);
        let batch = Batch { c, ids, n_experts, counters: word(c.shared(), c.warp() * n_experts), end };
        c.part("plan: counts", || batch.each(from, |slot| batch.count(slot)));
        c.barrier();

        c.part("plan: first rows", || {
            self.sum_warps(c, block_threads, lists);
            if ctas > 1 {
                self.sum_ctas(c, block_threads, rank, lists);
            }
            c.barrier();
            self.first_rows(k, block_threads, rank, lists);
        });
        c.barrier();

        let slot_to_row = k.view(plan.slot_to_row);
        let places = plan.places.map(|p| (k.view(p.of_slots), k.view(p.of_rows)));
        c.part("plan: rows of slots", || {
            let n_rows = c.load_i32(word(first, c.i32(n_experts)));
            let thread = rank * block_threads + c.thread();
            c.range(n_rows + thread, n_slots, ctas * block_threads, |row| {
                c.store_i32(row_to_token.nth(row), c.i32(u32::MAX))
            });
            batch.each(from, |slot| {
                let row = batch.take_row(slot, first);
                c.when(slot.exists, || {
                    c.store_i32(slot_to_row.nth(slot.number), row);
                    c.when(row.is_negative().not(), || {
                        c.store_i32(row_to_token.nth(row), slot.number / per_token);
                        if let Some((of_slots, of_rows)) = &places {
                            c.store_address(of_rows.nth(row), c.load_address(of_slots.nth(slot.number)));
                        }
                    });
                });
            });
        });
        if ctas > 1 {
            // Nobody leaves while others may read its sums.
            c.cluster_wait();
        }
    }

    /// Counts become the slots of the same expert in warps before, and their sums those of the CTA.
    fn sum_warps<'c>(&self, c: &'c Builder<'c>, block_threads: u32, lists: Lists<'c>) {
        let (warps, n_experts) = (self.cut.warps, self.plan.n_experts as u32);
        let at_once = warps.min(COUNTERS);
        c.range(c.thread(), n_experts, block_threads, |expert| {
            let sum = c.var(c.i32(0));
            c.range(0, warps, at_once, |warp| {
                let place = |i: u32| word(c.shared(), (warp + i) * n_experts + expert);
                let counts: Vec<I32> = (0..at_once).map(|i| c.load_i32(place(i))).collect();
                for (i, &count) in (0..at_once).zip(&counts) {
                    c.store_i32(place(i), sum.get());
                    sum.set(sum.get() + count);
                }
            });
            c.store_i32(word(lists.here, expert), sum.get());
        });
    }

    /// Sums of CTAs become those of all, and those of CTAs before this one.
    fn sum_ctas<'c>(&self, c: &'c Builder<'c>, block_threads: u32, rank: I32<'c>, lists: Lists<'c>) {
        c.cluster_barrier();
        c.range(c.thread(), self.plan.n_experts as u32, block_threads, |expert| {
            let place = word(lists.here, expert);
            let sums: Vec<I32> = (0..self.cut.ctas).map(|peer| c.load_i32_of_peer(place, peer)).collect();
            let sum_of = |sums: Vec<I32<'c>>| sums.into_iter().fold(c.i32(0), |a, b| a + b);
            let before = (0..).zip(&sums).map(|(peer, &sum)| c.select(rank.gt(peer), sum, c.i32(0))).collect();
            c.store_i32(word(lists.first, expert), sum_of(before));
            c.store_i32(word(lists.all, expert), sum_of(sums));
        });
        c.cluster_arrive();
    }

    /// Adds the rows of earlier experts. A warp does 32 experts at a time and sums those before by itself.
    fn first_rows<'c>(&self, k: &Kernel<'c, '_>, block_threads: u32, rank: I32<'c>, lists: Lists<'c>) {
        let c = k.builder;
        let (offsets, n) = (k.view(self.plan.offsets), self.cut.list());
        c.range(c.warp(), n.div_ceil(32), block_threads / 32, |group| {
            let sum = c.var(c.i32(0));
            c.range(c.lane(), group * 32, 32, |expert| {
                sum.set(sum.get() + c.load_i32(word(lists.all, expert)));
            });
            let before = c.read_lane(c.warp_prefix_sum(sum.get(), c.lane()), 31);
            let expert = group * 32 + c.lane();
            let exists = expert.lt(n);
            let slots = c.load_i32(word(lists.all, c.select(exists, expert, c.i32(0))));
            let row = before + c.warp_prefix_sum(c.select(exists, slots, c.i32(0)), c.lane()) - slots;
            c.when(exists, || {
                c.when(rank.eq(0), || c.store_i32(offsets.nth(expert), row));
                let place = word(lists.first, expert);
                c.store_i32(place, c.load_i32(place) + row);
            });
        });
    }
}

/// The i-th word from `first` on.
fn word<'c>(first: Shared<'c>, i: I32<'c>) -> Shared<'c> {
    first.plus(i << 2)
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
    exists: Bool<'c>,
    /// Whether it exists and its expert does.
    is_dispatched: Bool<'c>,
    /// Its expert; that of slots that are not dispatched is the first.
    expert: I32<'c>,
    /// The lanes of this batch with the same expert.
    peers: I32<'c>,
}

impl<'c> Batch<'c> {
    /// Does `body` with the slots from `from` on.
    fn each(&self, from: I32<'c>, body: impl Fn(&Slot<'c>)) {
        let c = self.c;
        let ids_of = |at: I32<'c>| (0..BATCHES).map(|i| self.id(at + i * 32 + c.lane())).collect::<Vec<_>>();
        let ids: Vec<Var<I32>> = ids_of(from).into_iter().map(|id| c.var(id)).collect();
        c.range(from, self.end, BATCHES * 32, |at| {
            // The next ids are on their way while these are worked on.
            let next = ids_of(at + BATCHES * 32);
            for (i, id) in (0..BATCHES).zip(&ids) {
                let first = at + i * 32;
                let slot = || body(&self.slot(first + c.lane(), id.get()));
                if i == 0 { slot() } else { c.when(first.lt(self.end), slot) }
            }
            ids.iter().zip(next).for_each(|(id, next)| id.set(next));
        });
    }

    /// The id of a slot; -1 if there is no such slot.
    fn id(&self, number: I32<'c>) -> I32<'c> {
        let c = self.c;
        let id = c.var(c.i32(u32::MAX));
        c.when(number.lt(self.end), || id.set(c.load_i32(self.ids.nth(number))));
        id.get()
    }

    fn slot(&self, number: I32<'c>, id: I32<'c>) -> Slot<'c> {
        let c = self.c;
        // Read as unsigned, so a negative id is too large as well.
        let is_dispatched = id.lt(self.n_experts);
        let expert = c.select(is_dispatched, id, c.i32(0));
        Slot { number, exists: number.lt(self.end), is_dispatched, expert, peers: c.equal_lanes(id) }
    }

    /// Adds the batch to the counters: the first of equal lanes adds for all of them, so no two lanes touch one counter.
    fn count(&self, slot: &Slot<'c>) {
        let c = self.c;
        let is_first = (slot.peers & c.lanes_before()).eq(0);
        c.when(slot.is_dispatched.and(is_first), || {
            let counter = word(self.counters, slot.expert);
            c.store_i32(counter, c.load_i32(counter) + slot.peers.popcount());
        });
        c.warp_barrier();
    }

    /// The next row of the slot's expert, of which this CTA has those from `first` on; -1 for a slot that is not dispatched.
    fn take_row(&self, slot: &Slot<'c>, first: Shared<'c>) -> I32<'c> {
        let c = self.c;
        let row = c.var(c.i32(u32::MAX));
        let rank = (slot.peers & c.lanes_before()).popcount();
        c.when(slot.is_dispatched, || {
            let of_expert = [first, self.counters].map(|list| c.load_i32(word(list, slot.expert)));
            row.set(of_expert[0] + of_expert[1] + rank);
        });
        // All lanes have read before the first of each expert moves its counter on.
        c.warp_barrier();
        self.count(slot);
        row.get()
    }
}
