//! The blocks that make a tile together: one, or a pair whose tensor cores work as one.
//!
//! Of a pair each block has 128 columns of the tile, and brings their weights and half of the rows. Stages and sums lie at
//! the same place in both. Block 0 starts the products of both: its barriers of full stages and empty sums are those that
//! both arrive at, and what its products free or finish is told to both.

use crate::code::{Bool, Code, Ctas, I32, Shared};

/// A block among those that make a tile.
#[derive(Clone, Copy)]
pub struct Crew<'c> {
    c: &'c Code<'c>,
    pub ctas: Ctas,
    rank: I32<'c>,
}

impl<'c> Crew<'c> {
    pub fn new(c: &'c Code<'c>, ctas: Ctas) -> Crew<'c> {
        let rank = if ctas == Ctas::Pair { c.cluster_rank() } else { c.i32(0) };
        Crew { c, ctas, rank }
    }

    fn is_pair(self) -> bool {
        self.ctas == Ctas::Pair
    }

    /// Whether this block starts products.
    pub fn leads(self) -> Bool<'c> {
        self.rank.eq(0)
    }

    /// Waits for all threads of all its blocks.
    pub fn barrier(self) {
        if self.is_pair() { self.c.cluster_barrier() } else { self.c.barrier() }
    }

    /// The first of this block's columns of a tile that begins at `col`.
    pub fn col(self, col: I32<'c>, block_cols: u32) -> I32<'c> {
        if self.is_pair() { col + self.rank * block_cols } else { col }
    }

    /// The rows of products for a tile of `rows`: whole sixteens in each block.
    pub fn whole_rows(self, rows: I32<'c>) -> I32<'c> {
        let step = 16 * self.ctas.count();
        rows.div_ceil(step) * step
    }

    /// The rows of a tile of `rows` that this block brings: the first, and how many, which may be past the end.
    pub fn part(self, rows: I32<'c>) -> (I32<'c>, I32<'c>) {
        let whole = self.whole_rows(rows);
        if !self.is_pair() {
            return (self.c.i32(0), whole);
        }
        let half = whole >> 1;
        (self.rank * half, half)
    }

    /// Arrives at a barrier of copies, which wait for `bytes` of each block: block 0 does, whose barrier counts for all.
    pub fn arrive_expecting(self, barrier: Shared<'c>, bytes: I32<'c>) {
        let c = self.c;
        if self.is_pair() {
            c.when(self.leads(), || c.arrive_expecting(barrier, bytes << 1));
        } else {
            c.arrive_expecting(barrier, bytes);
        }
    }

    /// Arrives at this barrier of block 0.
    pub fn arrive(self, barrier: Shared<'c>) {
        if self.is_pair() { self.c.arrive_at_peer(barrier, 0) } else { self.c.arrive(barrier) }
    }

    /// Waits for a phase for which threads of all blocks arrive.
    pub fn wait_for(self, barrier: Shared<'c>, parity: I32<'c>) {
        if self.is_pair() { self.c.wait_for_peers(barrier, parity) } else { self.c.wait_for(barrier, parity) }
    }
}
