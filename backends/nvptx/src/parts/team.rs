//! The blocks that make a tile together: one, a pair whose tensor cores work as one, or two pairs.
//!
//! Of a pair each block has 128 columns of the tile, and brings their weights and half of the rows. Stages and sums lie at
//! the same place in both. Block 0 starts the products of both: its barriers of full stages and empty sums are those that
//! both arrive at, and what its products free or finish is told to both.
//!
//! Of two pairs each has half of the rows of a tile. Two blocks, one of each pair, have the same columns: either brings half
//! of their weights, for both, into a stage that both pairs have emptied.

use super::tiles::Tile;
use crate::builder::{Bool, Builder, CtaGroup, I32, MapId, Shared};

/// A block among those that make a tile.
#[derive(Clone, Copy)]
pub struct Member<'c> {
    c: &'c Builder<'c>,
    pub ctas: CtaGroup,
    rank: I32<'c>,
}

impl<'c> Member<'c> {
    pub fn new(c: &'c Builder<'c>, ctas: CtaGroup) -> Member<'c> {
        let rank = if ctas == CtaGroup::One { c.i32(0) } else { c.cluster_rank() };
        Member { c, ctas, rank }
    }

    fn is_one(self) -> bool {
        self.ctas == CtaGroup::One
    }

    /// Whether this block starts products.
    pub fn leads(self) -> Bool<'c> {
        (self.rank & 1).eq(0)
    }

    /// The block that starts this one's products.
    fn leader(self) -> I32<'c> {
        if self.ctas == CtaGroup::TwoPairs { self.rank & 2 } else { self.c.i32(0) }
    }

    /// Waits for all threads of all its blocks.
    pub fn barrier(self) {
        if self.is_one() { self.c.barrier() } else { self.c.cluster_barrier() }
    }

    /// The part of a tile that this block makes: its columns, and of two pairs its pair's rows, which may be none.
    pub fn tile(self, tile: &Tile<'c>, block_cols: u32) -> Tile<'c> {
        let c = self.c;
        let step = 16 * self.ctas.count() * self.ctas.groups();
        let whole = tile.rows.div_ceil(step) * (step / self.ctas.groups());
        let col = if self.is_one() { tile.col } else { tile.col + (self.rank & 1) * block_cols };
        if self.ctas != CtaGroup::TwoPairs {
            return Tile { col, whole, ..*tile };
        }
        let first = (self.rank >> 1) * whole;
        let exists = tile.rows.gt(first);
        let rows = c.select(exists, (tile.rows - first).min(whole), c.i32(0));
        // A row that exists, even where none is the pair's.
        let row = tile.row + c.select(exists, first, c.i32(0));
        Tile { row, rows, col, whole, ..*tile }
    }

    /// The rows of its part of a tile that this block brings: the first, and how many, which may be past the end.
    pub fn part(self, tile: &Tile<'c>) -> (I32<'c>, I32<'c>) {
        if self.is_one() {
            return (self.c.i32(0), tile.whole);
        }
        let half = tile.whole >> 1;
        ((self.rank & 1) * half, half)
    }

    /// Starts copying a panel's `rows` weights of this block, of which copies of its map have `rows / groups`, from the box
    /// at `at` on. Of two pairs half, for the block of the other pair too.
    pub fn copy_weights(
        self,
        to: Shared<'c>,
        full: Shared<'c>,
        map: MapId,
        at: [I32<'c>; 3],
        (rows, row_bytes): (u32, u32),
    ) {
        let [k, col, expert] = at;
        if self.ctas == CtaGroup::TwoPairs {
            let first = (self.rank >> 1) * (rows / 2);
            self.c.copy_shared_box(to.plus(first * row_bytes), full, map, &[k, col + first, expert]);
        } else {
            self.c.copy_box(self.ctas, to, full, map, &at);
        }
    }

    /// Arrives at a barrier of copies, which wait for `bytes` of each block of the pair: the one that starts products does,
    /// whose barrier counts for both.
    pub fn arrive_expecting(self, barrier: Shared<'c>, bytes: I32<'c>) {
        let c = self.c;
        if self.is_one() {
            c.arrive_expecting(barrier, bytes);
        } else {
            c.when(self.leads(), || c.arrive_expecting(barrier, bytes << 1));
        }
    }

    /// Arrives at this barrier of the block that starts products.
    pub fn arrive(self, barrier: Shared<'c>) {
        if self.is_one() { self.c.arrive(barrier) } else { self.c.arrive_at_peer(barrier, self.leader()) }
    }

    /// Waits for a phase for which threads of all blocks arrive.
    pub fn wait_for(self, barrier: Shared<'c>, parity: I32<'c>) {
        if self.is_one() { self.c.wait_for(barrier, parity) } else { self.c.wait_for_peers(barrier, parity) }
    }
}
