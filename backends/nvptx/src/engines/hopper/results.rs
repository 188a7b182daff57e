//! The end of a tile of codes: global scales, bias, epilogue expression, and a store as floats or as FP8 codes.
//!
//! A block of results that share a scale is the 128 columns of a tile, which eight warps have sixteen of each: the largest
//! magnitude of a row goes through shared memory.

use super::contract::{Cta, PRODUCTS};
use super::products::{Place, RESULTS_BARRIER, Sums};
use crate::builder::{F32, I32, Var};
use crate::parts::k_parts::{End, Parts};
use crate::parts::{ScaledColumn, Tile, encode};
use moec_ir::engine::hopper::{PRODUCT_WARPS, TILE_N};
use moec_ir::tile::{RowQuant, Segment};

/// A thread's results of eight rows, of which it has two in either column: `[column][row]`.
type Values<'c> = [[Var<'c, F32<'c>>; 2]; 2];

const _: () = assert!(PRODUCT_WARPS == 8);

impl<'c> Cta<'_, 'c, '_> {
    /// Stores results, or does with the sums of a part what has to be done.
    pub fn store_scaled(
        &self,
        segment: &Segment,
        tile: &Tile<'c>,
        place: Place<'c>,
        sums: &Sums<'c>,
        parts: &Parts<'c>,
        end: End<'c>,
    ) {
        let c = self.k.builder;
        let columns: Vec<ScaledColumn> = [0, 8]
            .map(|further| {
                let col = tile.col + (place.column + further);
                ScaledColumn::new(self.k, self.program, segment, tile.expert, col)
            })
            .into();
        let out = self.k.result_of(segment, tile);
        // `[eight rows][half][row]`, for codes.
        let kept = || [(); 2].map(|()| [(); 2].map(|()| c.var(c.f32(0.0))));
        let coded = segment.out_quant.as_ref().filter(|_| matches!(end, End::Stored));
        let values: Vec<Values> =
            if coded.is_some() { (0..self.g.tile_m / 8).map(|_| kept()).collect() } else { Vec::new() };
        for (half, column) in columns.iter().enumerate() {
            let parts = parts.further(8 * half as u32);
            for eight in 0..self.g.tile_m / 8 {
                let row = place.row + 8 * eight;
                c.when(tile.rows.gt(8 * eight), || {
                    let rows = (tile.rows - row).signed_max(0);
                    let at = 4 * eight as usize + 2 * half;
                    let mut two: Vec<Vec<F32>> =
                        sums.iter().map(|panel| panel[at..at + 2].iter().map(|x| x.get()).collect()).collect();
                    if !parts.add(end, row, rows, &mut two) {
                        return;
                    }
                    for i in 0..2 {
                        let of_panels: Vec<F32> = two.iter().map(|panel| panel[i]).collect();
                        let value = column.value(&of_panels, None);
                        match values.get(eight as usize) {
                            Some(kept) => kept[half][i].set(c.select(column.has_col, value, c.f32(0.0))),
                            None => c.when(column.has_col.and(c.i32(i as u32).lt(rows)), || {
                                let to = out.at(tile.row + row + i as u32, column.col);
                                c.store_elements(to, out.dtype, &[value]);
                            }),
                        }
                    }
                });
            }
        }
        if let Some(q) = coded {
            self.store_codes(segment, q, tile, place, &columns, &values);
        }
    }

    fn store_codes(
        &self,
        segment: &Segment,
        q: &RowQuant,
        tile: &Tile<'c>,
        place: Place<'c>,
        columns: &[ScaledColumn<'_, 'c, '_>],
        values: &[Values<'c>],
    ) {
        let c = self.k.builder;
        let (warp, first_of_row) = (self.warp - PRODUCTS, (c.lane() >> 2).eq(0));
        let maxima = |row: I32<'c>| c.shared().at(self.g.maxima()).plus(row * (PRODUCT_WARPS * 4));
        let each = |body: &dyn Fn(&Values<'c>, I32<'c>, usize)| {
            for (eight, values) in (0u32..).zip(values) {
                c.when(tile.rows.gt(8 * eight), || {
                    (0..2).for_each(|i| body(values, place.row + (8 * eight + i), i as usize))
                });
            }
        };
        each(&|values, row, i| {
            // Bits of magnitudes are ordered as the magnitudes are, NaN above all.
            let larger = |a: I32<'c>, b: I32<'c>| c.select(a.gt(b), a, b);
            let mine = larger(values[0][i].get().abs().bits(), values[1][i].get().abs().bits());
            let most = [4, 8, 16].iter().fold(mine, |m, &mask| larger(m, c.read_peer(m, mask)));
            c.when(first_of_row, || c.store_i32(maxima(row).plus(warp << 2), most));
        });
        c.barrier_of(RESULTS_BARRIER, PRODUCT_WARPS * 32);
        let global = q.global.map(|global| c.load_f32(self.k.view(global).base));
        let (out, scales) = (self.k.view(segment.out), self.k.view(q.scales));
        each(&|values, row, i| {
            let words = [0, 16].map(|at| c.load_words(maxima(row).at(at))).concat();
            let most = words.into_iter().reduce(|a, b| c.select(a.gt(b), a, b)).unwrap_or(c.i32(0));
            let scale = encode::block_scale(c, q.q, most.as_f32(), global);
            let [low, high] = [0, 1].map(|half: usize| values[half][i].get());
            let codes = encode::code_pair(c, q.q, low, high, scale.factor);
            let (exists, to) = (row.lt(tile.rows), tile.row + row);
            for (half, column) in columns.iter().enumerate() {
                c.when(exists.and(column.has_col), || {
                    c.store_bits(out.row(to).plus(column.col.wide()), codes >> (8 * half as u32), 1);
                });
            }
            c.when(exists.and(first_of_row).and(warp.eq(0)), || {
                encode::store_scale(c, q.q, scales.at(to, tile.col / TILE_N), scale.stored);
            });
        });
        // All have read before the next tile's take the place.
        c.barrier_of(RESULTS_BARRIER, PRODUCT_WARPS * 32);
    }
}
