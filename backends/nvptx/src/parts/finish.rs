//! The weighted sum over slots at the end of a product.
//!
//! Whoever stores rows of a tile says how many to the counter of its columns; who makes the count whole adds up the slots of all
//! tokens there. Nothing waits: the others are done with these columns.

use crate::builder::{Bool, I32, Shared};
use crate::kernels::{Kernel, SlotSum, View};
use crate::parts::Tile;
use moec_ir::tile::{Contract, Groups, Program, STRIP, Schedule};

/// Who stores and counts together.
#[derive(Clone, Copy)]
pub enum Group<'c> {
    /// A warp, with the lane that stands for it.
    Warp(Bool<'c>),
    /// The threads of a CTA, so many, and 4 bytes of shared memory that hold nothing any more.
    Cta(u32, Shared<'c>),
}

/// What follows the products of a contraction, where something does.
pub struct Finish<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    sum: SlotSum<'k, 'c, 'p>,
    counter: View<'c>,
    n_tokens: I32<'c>,
    contract: &'k Contract,
    /// Rows of all segments whose results are added up.
    total: I32<'c>,
    cols: u32,
}

impl<'k, 'c, 'p> Finish<'k, 'c, 'p> {
    /// `None` where products are all.
    pub fn new(k: &'k Kernel<'c, 'p>, program: &Program, contract: &'k Contract, schedule: &Schedule) -> Option<Self> {
        let then = contract.combine.as_ref()?;
        let (c, n_tokens) = (k.builder, k.n_tokens());
        let rows = contract.last_segments().map(|(_, s)| match s.groups {
            Groups::Dense => k.length(program.buffer(s.out).rows, n_tokens),
            Groups::ByExpert { offsets } => {
                let offsets = k.view(offsets);
                c.load_i32(offsets.nth(c.i32(offsets.cols as u32 - 1)))
            }
        });
        Some(Finish {
            k,
            sum: SlotSum::new(k, program, &then.combine, schedule),
            counter: k.view(then.counter),
            n_tokens,
            contract,
            total: rows.reduce(|a, b| a + b).unwrap_or(c.i32(0)),
            cols: program.buffer(then.combine.out).cols as u32,
        })
    }

    /// After `group` has stored the rows of `tile` in `width` columns from `first` on: a multiple of [`STRIP`] of them.
    pub fn stored(&self, group: Group<'c>, tile: &Tile<'c>, (first, width): (I32<'c>, u32)) {
        let c = self.k.builder;
        let add_up = || self.columns(group, (first, width));
        c.part("rows that are stored", || {
            // A CTA of a team may have no rows of its tile: all may be counted before it comes here.
            c.when(self.is_last(tile).and(first.lt(self.cols)).and(tile.rows.gt(0)), || {
                let (counter, rows) = (self.counter.nth(first / STRIP as u32), (tile.rows, self.total));
                match group {
                    Group::Warp(elected) => c.when_warp_completes(elected, counter, rows, add_up),
                    Group::Cta(_, scratch) => c.when_complete(counter, rows, scratch, add_up),
                }
            });
        });
    }

    /// Whether the tile is of a segment whose results are added up: of those that are chained, the last.
    fn is_last(&self, tile: &Tile<'c>) -> Bool<'c> {
        let c = self.k.builder;
        let others = self.contract.chains.iter().map(|chain| tile.segment.ne(chain.made_by));
        others.reduce(Bool::and).unwrap_or(c.bool(true))
    }

    /// Where no slot has an expert nobody stores: the first CTA, of which this is group `rank` of `n`, makes the sums of nothing.
    pub fn without_rows(&self, group: Group<'c>, (rank, n): (I32<'c>, u32)) {
        let c = self.k.builder;
        c.when(self.total.eq(0).and(c.block_x().eq(0)), || {
            let width = STRIP as u32;
            c.range(rank * width, self.cols, n * width, |first| self.columns(group, (first, width)));
        });
    }

    fn columns(&self, group: Group<'c>, (first, width): (I32<'c>, u32)) {
        let c = self.k.builder;
        let (thread, threads) = match group {
            Group::Warp(_) => (c.lane(), 32),
            Group::Cta(threads, _) => (c.thread(), threads),
        };
        let per_token = width / self.sum.vector();
        c.range(thread, self.n_tokens * per_token, threads, |i| {
            let (token, col) = (i / per_token, first + (i % per_token) * self.sum.vector());
            c.when(col.lt(self.cols), || self.sum.store(token, col));
        });
    }
}
