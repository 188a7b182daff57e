//! The end of a tile: global scales, bias, epilogue expression, and a store as floats or as codes.
//!
//! A thread has one output column of the tile and the sums of 16 rows at a time. The 32 threads of a warp have adjacent
//! columns, so a block of 16 or 32 columns is compared within the warp, and one of 64 or 128 through shared memory.

use super::layout::MAXIMA;
use crate::builder::{Bool, F32, I32, LOAD_COLUMNS, Shared};
use crate::kernels::{Kernel, View};
use crate::parts::encode;
use crate::parts::{ScaledColumn, Tile};
use moec_ir::quant::Code;
use moec_ir::tile::{Program, RowQuant, Segment};

/// Barrier of the four warps of the epilogue.
pub const EPILOGUE_BARRIER: u32 = 1;

/// What is done with the sums of a tile, for one thread.
pub struct Results<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    segment: &'k Segment,
    out: View<'c>,
    column: ScaledColumn<'k, 'c, 'p>,
    /// Column of the result, and of the tile.
    col: I32<'c>,
    lane_col: I32<'c>,
    has_col: Bool<'c>,
}

impl<'k, 'c, 'p> Results<'k, 'c, 'p> {
    /// For column `lane_col` of a tile; a column past the end is computed and not stored.
    pub fn new(
        k: &'k Kernel<'c, 'p>,
        program: &Program,
        segment: &'k Segment,
        tile: &Tile<'c>,
        lane_col: I32<'c>,
    ) -> Results<'k, 'c, 'p> {
        let col = tile.col + lane_col;
        let column = ScaledColumn::new(k, program, segment, tile.expert, col);
        let has_col = column.has_col;
        Results { k, segment, out: k.result_of(segment, tile), column, col, lane_col, has_col }
    }

    /// Stores rows from `row` on, of which `rows` exist, from the sums `sums[panel][row]`. `source_row` gives the row of the
    /// activations of the `i`-th of them, for scales of rows. All threads of the epilogue take part.
    pub fn store(&self, row: I32<'c>, rows: I32<'c>, sums: &[Vec<F32<'c>>], source_row: impl Fn(u32) -> I32<'c>) {
        let c = self.k.builder;
        let of_each_row = self.segment.a_quant.as_ref().filter(|q| q.q.has_row()).and_then(|q| q.global);
        let value = |i: u32| {
            let of_row = of_each_row.map(|id| c.load_f32(self.k.view(id).row(source_row(i))));
            let sums: Vec<F32> = sums.iter().map(|panel| panel[i as usize]).collect();
            self.column.value(&sums, of_row)
        };
        let values: Vec<F32> = (0..LOAD_COLUMNS).map(value).collect();
        match &self.segment.out_quant {
            None => self.store_floats(row, rows, &values),
            Some(q) => self.store_codes(q, row, rows, &values),
        }
    }

    fn store_floats(&self, row: I32<'c>, rows: I32<'c>, values: &[F32<'c>]) {
        let c = self.k.builder;
        let places = self.out.column(row, self.col, values.len() as u32);
        for ((i, value), to) in (0u32..).zip(values).zip(places) {
            c.when(self.has_col.and(c.i32(i).lt(rows)), || c.store_elements(to, self.out.dtype, &[*value]));
        }
    }

    fn store_codes(&self, q: &RowQuant, row: I32<'c>, rows: I32<'c>, values: &[F32<'c>]) {
        let c = self.k.builder;
        let zero = c.f32(0.0);
        let values: Vec<F32> = values.iter().map(|&x| c.select(self.has_col, x, zero)).collect();
        let most = self.block_maxima(q, &values);
        let global = q.global.map(|global| c.load_f32(self.k.view(global).base));
        let scales = self.k.view(q.scales);
        let is_fp4 = q.q.code == Code::E2M1;
        // FP4: an even column's thread stores a byte for its neighbour as well. Zeros follow the row up to its pitch, which
        // copies read that spread codes to bytes.
        let stores =
            if is_fp4 { self.col.lt(2 * self.out.pitch as u32).and((self.col & 1).eq(0)) } else { self.has_col };
        let first = self.out.row(row).plus(if is_fp4 { self.col >> 1 } else { self.col }.wide());
        let is_first = self.has_col.and((self.col & (q.q.block - 1)).eq(0));
        for (i, (&x, &most)) in values.iter().zip(&most).enumerate() {
            let scale = encode::block_scale(c, q.q, most, global);
            let neighbour = if is_fp4 { c.read_peer(x.bits(), 1).as_f32() } else { zero };
            let codes = encode::code_pair(c, q.q, x, neighbour, scale.factor);
            let exists = c.i32(i as u32).lt(rows);
            c.when(stores.and(exists), || c.store_bits(first.plus(i as u64 * self.out.pitch), codes, 1));
            c.when(is_first.and(exists), || {
                encode::store_scale(c, q.q, scales.at(row + i as u32, self.col / q.q.block), scale.stored);
            });
        }
    }

    /// For each row, the largest magnitude of the block that this thread's column lies in.
    fn block_maxima(&self, q: &RowQuant, values: &[F32<'c>]) -> Vec<F32<'c>> {
        let c = self.k.builder;
        // Bits of magnitudes are ordered as the magnitudes are, NaN above all.
        let of_half = |x: F32<'c>| {
            [1, 2, 4, 8].iter().fold(x.abs(), |m, &mask| {
                let peer = c.read_peer(m.bits(), mask);
                c.select(peer.gt(m.bits()), peer, m.bits()).as_f32()
            })
        };
        if q.q.block == 16 {
            return values.iter().map(|&x| of_half(x)).collect();
        }
        let of_warp: Vec<I32> = values.iter().map(|x| c.warp_max(x.abs().bits())).collect();
        if q.q.block == 32 {
            return of_warp.into_iter().map(I32::as_f32).collect();
        }
        // Four words of 16 rows: one from each warp.
        let at = |warp: I32<'c>| -> Shared<'c> { c.shared().at(MAXIMA).plus(warp * (LOAD_COLUMNS * 4)) };
        let warp = self.lane_col >> 5;
        c.when(c.lane().eq(0), || {
            for (i, four) in of_warp.chunks_exact(4).enumerate() {
                c.store_words(at(warp).at(16 * i as u32), [four[0], four[1], four[2], four[3]]);
            }
        });
        c.barrier_of(EPILOGUE_BARRIER, 128);
        // 64 columns: two warps; 128: all four.
        let peers: Vec<I32> = match q.q.block {
            64 => vec![warp & 2, (warp & 2) + 1],
            _ => (0..4).map(|w| c.i32(w)).collect(),
        };
        let mut most: Vec<I32> = of_warp;
        for peer in peers {
            for i in 0..LOAD_COLUMNS / 4 {
                let words = c.load_words(at(peer).at(16 * i));
                for (m, w) in most[4 * i as usize..].iter_mut().zip(words) {
                    *m = c.select(w.gt(*m), w, *m);
                }
            }
        }
        // All have read before the next rows take the place.
        c.barrier_of(EPILOGUE_BARRIER, 128);
        most.into_iter().map(I32::as_f32).collect()
    }
}
