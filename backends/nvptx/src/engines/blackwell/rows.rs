//! How activations come to a stage, as floats or as codes: gathered four rows at a time, or boxes of adjacent ones.

use crate::builder::{Bool, I32, MapId, Shared};
use crate::kernels::Kernel;
use crate::parts::{Barriers, Member, Ring, Tile};
use moec_ir::engine::ROW_BYTES;
use moec_ir::tile::RowMap;

/// The warp that brings activations.
pub struct Rows<'k, 'c, 'p> {
    pub k: &'k Kernel<'c, 'p>,
    pub member: Member<'c>,
    pub elected: Bool<'c>,
    pub ring: Ring<'c>,
    pub full: Barriers<'c>,
    pub empty: Barriers<'c>,
    /// Where the numbers of gathered rows are.
    pub ids: Shared<'c>,
    /// Rows that one copy brings where they are adjacent.
    pub box_rows: u32,
}

/// What of the rows of a segment a step takes.
pub struct Step {
    pub map: MapId,
    /// In the units of the map.
    pub wide: u32,
    /// Bytes of a row that a barrier counts.
    pub row_bytes: u32,
    /// Bytes of other operands that it is told of as well.
    pub more: u32,
    /// Whether rows are brought one by one, gathered or not: those beside a tile's are not to be read.
    pub one_by_one: bool,
}

impl<'c> Rows<'_, 'c, '_> {
    /// Brings the part (first row, rows) of a tile for the steps `steps()`, to the activations of each stage.
    pub fn bring(
        &self,
        (tile, (first, rows)): (&Tile<'c>, (I32<'c>, I32<'c>)),
        rows_of: RowMap,
        step: &Step,
        steps: impl FnOnce() -> (I32<'c>, I32<'c>),
        activations: impl Fn(I32<'c>) -> Shared<'c>,
    ) {
        let (c, ring, ids) = (self.k.builder, self.ring, self.ids);
        let row_map = match rows_of {
            RowMap::Gather(row_map) => Some(self.k.view(row_map)),
            RowMap::Same => None,
        };
        let gathered = row_map.is_some() || step.one_by_one;
        if gathered {
            c.range(c.lane(), rows, 32, |j| {
                // Rows that the tile does not have: -1, which no tensor has and becomes zeros.
                let id = c.var(c.i32(u32::MAX));
                let row = first + j;
                c.when(row.lt(tile.rows), || {
                    let row = tile.row + row;
                    id.set(row_map.map_or(row, |map| c.load_i32(map.nth(row))));
                });
                c.store_i32(ids.plus(j << 2), id.get());
            });
            c.warp_barrier();
        }
        c.when(self.elected, || {
            let (first_step, end) = steps();
            c.range(first_step, end, 1, |n| {
                let (full, col) = (self.full.at(ring.slot()), n * step.wide);
                let stage = activations(ring.slot());
                c.wait_for(self.empty.at(ring.slot()), ring.parity_before());
                if gathered {
                    self.member.arrive_expecting(full, rows * step.row_bytes + step.more);
                    c.range(0, rows, 16, |row| {
                        let (ids, to) = (ids.plus(row << 2), stage.plus(row * ROW_BYTES));
                        for four in 0..4 {
                            let ids = c.load_words(ids.at(four * 16));
                            let to = to.at(four * 4 * ROW_BYTES);
                            c.copy_rows(self.member.ctas, to, full, step.map, col, ids);
                        }
                    });
                } else {
                    let n = self.box_rows;
                    let boxed = rows.div_ceil(n) * n;
                    self.member.arrive_expecting(full, boxed * step.row_bytes + step.more);
                    c.range(0, boxed, n, |row| {
                        let at = [col, tile.row + first + row];
                        c.copy_box(self.member.ctas, stage.plus(row * ROW_BYTES), full, step.map, &at);
                    });
                }
                ring.advance();
            });
        });
        if gathered {
            // The numbers are read before those of the next tile take their place.
            c.warp_barrier();
        }
    }
}
