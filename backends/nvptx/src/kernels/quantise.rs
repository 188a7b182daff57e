//! Rows of floats to rows of codes and scales.

use super::{Design, Grid, Kernel, Registers, View};
use crate::builder::{F32, I32, Var};
use crate::parts::encode;
use moec_ir::quant::Code;
use moec_ir::tile::{Extent, GpuLaunch, Program, Quantise, Schedule};

/// A kernel of its own: a warp for each row.
pub fn quantise<'p>(program: &'p Program, q: &'p Quantise, schedule: &Schedule) -> Design<'p> {
    let (rows, warps) = (program.buffer(q.out).rows, schedule.warps);
    let tile_m = schedule.tile_m;
    let launch = GpuLaunch {
        grid: [Grid::tiles(rows, tile_m, 1), Extent::fixed(1), Extent::fixed(1)],
        block_threads: 32 * warps,
        cluster: 1,
        dynamic_smem_bytes: 0,
        persistent: false,
        programmatic: false,
        tensor_maps: Vec::new(),
    };
    let body = move |k: &Kernel| {
        let c = k.builder;
        let n_rows = k.rows_until(rows, q.until);
        let first = c.block_x() * tile_m;
        let end = (first + tile_m).min(n_rows);
        c.range(first + c.warp(), end, warps, |row| c.part("rounding of rows", || quantise_row(k, q, row)));
    };
    Design { launch, registers: Registers::Default, body: Box::new(body) }
}

/// Quantises a row, by the lanes of a warp. A lane makes a word of codes at a time.
pub fn quantise_row<'c>(k: &Kernel<'c, '_>, q: &Quantise, row: I32<'c>) {
    let c = k.builder;
    let job = Row::new(k, q, row);
    let format = q.quant.q;
    let global = q.quant.global.map(|global| {
        if !format.has_row() {
            return c.load_f32(k.view(global).base);
        }
        let global_scale = encode::row_global(c, format, job.largest(c.i32(0), job.cols));
        c.when(c.lane().eq(0), || c.store_f32(k.view(global).row(row), global_scale));
        global_scale
    });
    let block = if format.block == 0 { job.cols.max(1) } else { format.block };
    let lanes = block / job.width;
    if block.is_multiple_of(job.width) && lanes.is_power_of_two() && lanes <= 32 {
        job.blocks_of_lanes(lanes, global);
    } else {
        job.blocks_of_warp(block, global);
    }
    job.clear_padding();
}

struct Row<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    q: &'k Quantise,
    row: I32<'c>,
    x: View<'c>,
    cols: u32,
    /// Elements of a word of codes.
    width: u32,
}

impl<'k, 'c, 'p> Row<'k, 'c, 'p> {
    fn new(k: &'k Kernel<'c, 'p>, q: &'k Quantise, row: I32<'c>) -> Row<'k, 'c, 'p> {
        let width = if q.quant.q.code == Code::E2M1 { 8 } else { 4 };
        Row { k, q, row, x: k.view(q.x), cols: q.quant.cols as u32, width }
    }

    /// The elements of a word that begins at `col`; 0 where the row has ended.
    fn load(&self, col: I32<'c>) -> Vec<F32<'c>> {
        let c = self.k.builder;
        let is_whole = |n: u64| n.is_multiple_of(self.width.into());
        if is_whole(self.x.cols) && is_whole(self.x.pitch) {
            return c.load_elements(self.x.at(self.row, col), self.x.dtype, self.width as usize);
        }
        let one = |i: u32| {
            let value = c.var(c.f32(0.0));
            c.when((col + i).lt(self.cols), || {
                value.set(c.load_elements(self.x.at(self.row, col + i), self.x.dtype, 1)[0]);
            });
            value.get()
        };
        (0..self.width).map(one).collect()
    }

    fn largest_of(&self, values: &[F32<'c>]) -> F32<'c> {
        values.iter().fold(self.k.builder.f32(0.0), |m, v| m.maximum(v.abs()))
    }

    /// The largest magnitude in columns `from` to `to`, which are whole words but for the last; all lanes take part.
    fn largest(&self, from: I32<'c>, to: u32) -> F32<'c> {
        let c = self.k.builder;
        let most = c.var(c.f32(0.0));
        self.largest_into(&most, from, c.i32(to));
        c.warp_maximum(most.get())
    }

    fn largest_into(&self, most: &Var<'c, F32<'c>>, from: I32<'c>, to: I32<'c>) {
        let c = self.k.builder;
        c.range(from + c.lane() * self.width, to, 32 * self.width, |col| {
            most.set(most.get().maximum(self.largest_of(&self.load(col))));
        });
    }

    fn store_codes(&self, col: I32<'c>, values: &[F32<'c>], factor: F32<'c>) {
        let c = self.k.builder;
        let format = self.q.quant.q;
        let bits = 2 * format.code.bits() as u32;
        let pairs = values.chunks(2).map(|pair| encode::code_pair(c, format, pair[0], pair[1], factor));
        let word = pairs.enumerate().fold(c.i32(0), |word, (i, pair)| word | (pair << (bits * i as u32)));
        // The rest of the last word is padding of the row.
        let out = self.k.view(self.q.out);
        c.store_i32(out.at(self.row, (col / self.width) * 4), word);
    }

    /// Makes what follows a row of 4-bit codes zero: copies that spread them to bytes read 128 at a time, past the end.
    fn clear_padding(&self) {
        let c = self.k.builder;
        let out = self.k.view(self.q.out);
        let (words, pitch) = (self.cols.div_ceil(self.width), out.pitch as u32 / 4);
        if self.q.quant.q.code == Code::E2M1 && words < pitch {
            c.range(c.lane() + words, pitch, 32, |word| c.store_i32(out.at(self.row, word * 4), c.i32(0)));
        }
    }

    fn store_scale(&self, block: I32<'c>, stored: F32<'c>) {
        let scales = self.k.view(self.q.quant.scales);
        encode::store_scale(self.k.builder, self.q.quant.q, scales.at(self.row, block), stored);
    }

    /// Blocks that are the words of 1, 2, 4, … neighbouring lanes.
    fn blocks_of_lanes(&self, lanes: u32, global: Option<F32<'c>>) {
        let c = self.k.builder;
        c.range(0, self.cols, 32 * self.width, |first| {
            let col = first + c.lane() * self.width;
            let in_row = col.lt(self.cols);
            let values: Vec<Var<F32>> = (0..self.width).map(|_| c.var(c.f32(0.0))).collect();
            c.when(in_row, || values.iter().zip(self.load(col)).for_each(|(v, x)| v.set(x)));
            let values: Vec<F32> = values.into_iter().map(Var::get).collect();
            let mut most = self.largest_of(&values);
            for mask in [1, 2, 4, 8, 16].into_iter().filter(|&m| m < lanes) {
                most = most.maximum(c.read_peer(most.bits(), mask).as_f32());
            }
            c.when(in_row, || {
                let scale = encode::block_scale(c, self.q.quant.q, most, global);
                self.store_codes(col, &values, scale.factor);
                c.when((c.lane() & (lanes - 1)).eq(0), || {
                    self.store_scale(col / (lanes * self.width), scale.stored);
                });
            });
        });
    }

    /// Blocks of any number of words, one after another.
    fn blocks_of_warp(&self, block: u32, global: Option<F32<'c>>) {
        let c = self.k.builder;
        c.range(0, self.cols.div_ceil(block), 1, |n| {
            let first = n * block;
            let end = (first + block).min(self.cols);
            let most = c.var(c.f32(0.0));
            self.largest_into(&most, first, end);
            let scale = encode::block_scale(c, self.q.quant.q, c.warp_maximum(most.get()), global);
            c.range(first + c.lane() * self.width, end, 32 * self.width, |col| {
                self.store_codes(col, &self.load(col), scale.factor);
            });
            c.when(c.lane().eq(0), || self.store_scale(n, scale.stored));
        });
    }
}
