//! Results that are sums of parts along k, added in the order of the parts: the bits are the same whether one block makes
//! the parts one after another or the blocks of a cluster make one each.
//!
//! Sums of other parts lie in shared memory as f32, `[panel, row, column]`. A thread has one column, and the 32 of a warp
//! have adjacent ones, so that no two meet in a bank.

use super::geometry::Geometry;
use crate::code::{Code, F32, I32, Shared, Var};
use crate::pipeline::Ring;

/// A thread's column of the sums in shared memory.
pub struct Parts<'k, 'c> {
    c: &'c Code<'c>,
    g: &'k Geometry,
    column: Shared<'c>,
    /// A place for one tile's sums.
    round: Ring<'c>,
}

impl<'k, 'c> Parts<'k, 'c> {
    /// For column `col` of the tile.
    pub fn new(c: &'c Code<'c>, g: &'k Geometry, col: I32<'c>) -> Parts<'k, 'c> {
        let column = c.shared().at(g.first_sums()).plus(col << 2);
        Parts { c, g, column, round: Ring::new(c, 1) }
    }

    /// Where in the turns of the sums of other blocks this role stands.
    pub fn round(&self) -> Ring<'c> {
        self.round
    }

    /// Byte offset of 16 rows of a panel from `row` on in the column.
    fn rows(&self, panel: usize, row: I32<'c>) -> Shared<'c> {
        const ROW_BYTES: u32 = Geometry::TILE_N * 4;
        self.column.plus(row * ROW_BYTES).at(panel as u32 * self.g.tile_m * ROW_BYTES)
    }

    fn row(first: Shared<'c>, i: usize) -> Shared<'c> {
        first.at(i as u32 * Geometry::TILE_N * 4)
    }

    /// Adds the sums of part `part - 1` to those of the parts before, which this thread has kept.
    pub fn keep(&self, part: I32<'c>, row: I32<'c>, sums: &[Vec<F32<'c>>]) {
        let c = self.c;
        let is_first = part.eq(1);
        for (p, sums) in sums.iter().enumerate() {
            let rows = self.rows(p, row);
            c.when(is_first, || sums.iter().enumerate().for_each(|(i, &x)| c.store_f32(Self::row(rows, i), x)));
            c.when(is_first.not(), || {
                for (i, &x) in sums.iter().enumerate() {
                    let place = Self::row(rows, i);
                    c.store_f32(place, c.load_f32(place) + x);
                }
            });
        }
    }

    /// Gives the first block of the cluster this block's sums of the `rows` rows that there are from `row` on.
    pub fn send(&self, row: I32<'c>, rows: I32<'c>, sums: &[Vec<F32<'c>>]) {
        let c = self.c;
        let to = (c.cluster_rank() - 1) * self.g.sum_bytes();
        for (p, sums) in sums.iter().enumerate() {
            let first = self.rows(p, row).plus(to);
            for (i, &x) in sums.iter().enumerate() {
                c.when(c.i32(i as u32).lt(rows), || c.store_f32_to_peer(Self::row(first, i), c.i32(0), x));
            }
        }
    }

    /// Adds the other parts to the sums of the part that this block has made last, or the first block alone.
    pub fn add_to(&self, row: I32<'c>, sums: &mut [Vec<F32<'c>>]) {
        let c = self.c;
        if self.g.parts == 1 {
            return;
        }
        if !self.g.split {
            for (p, sums) in sums.iter_mut().enumerate() {
                let rows = self.rows(p, row);
                sums.iter_mut().enumerate().for_each(|(i, x)| *x = c.load_f32(Self::row(rows, i)) + *x);
            }
            return;
        }
        let totals: Vec<Vec<Var<F32>>> = sums.iter().map(|s| s.iter().map(|&x| c.var(x)).collect()).collect();
        c.range(0, self.g.parts - 1, 1, |part| {
            for (p, totals) in totals.iter().enumerate() {
                let rows = self.rows(p, row).plus(part * self.g.sum_bytes());
                totals.iter().enumerate().for_each(|(i, x)| x.set(x.get() + c.load_f32(Self::row(rows, i))));
            }
        });
        for (sums, totals) in sums.iter_mut().zip(&totals) {
            sums.iter_mut().zip(totals).for_each(|(x, total)| *x = total.get());
        }
    }
}
