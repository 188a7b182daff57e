//! A row of floats becomes a row of codes and scales, by whole warps. A lane makes a word of codes at a time.

use super::encode::{self, Conversions};
use crate::builder::{Builder, F32, Global, I32, Var};
use moec_ir::DType;
use moec_ir::act_quant::ActQuant;
use moec_ir::quant::Code;

/// Where a row is, and where its codes and scales go to.
#[derive(Clone, Copy)]
pub struct CodedRow<'c> {
    pub builder: &'c Builder<'c>,
    pub format: ActQuant,
    pub conversions: Conversions,
    /// Column 0 of the row.
    pub x: Global<'c>,
    pub dtype: DType,
    pub cols: u32,
    /// Whether rows begin and end with whole words of codes, so that their elements are read in vectors.
    pub whole_words: bool,
    pub codes: Global<'c>,
    pub scales: Global<'c>,
    /// Warps that share the row; each is told by its number from 0 ([`Builder::warp`]). One warp need not be the first.
    pub warps: u32,
}

impl<'c> CodedRow<'c> {
    /// The global scale of the row, where it is the row's own, in all lanes of each warp.
    pub fn own_global(&self) -> F32<'c> {
        let c = self.builder;
        let most = c.var(c.f32(0.0));
        self.largest_into(&most, c.i32(0), c.i32(self.cols));
        encode::row_global(c, self.format, c.warp_maximum(most.get()))
    }

    /// Writes codes and scales; `global` is the scale of the tensor or row, where the format has one.
    pub fn write(&self, global: Option<F32<'c>>) {
        let block = if self.format.block == 0 { self.cols.max(1) } else { self.format.block };
        let lanes = block / self.width();
        if block.is_multiple_of(self.width()) && lanes.is_power_of_two() && lanes <= 32 {
            self.blocks_of_lanes(lanes, global);
        } else {
            self.blocks_of_warp(block, global);
        }
    }

    /// Makes what follows a row of 4-bit codes zero, up to `pitch` bytes: copies that spread them to bytes read 128 at a time, past
    /// the end.
    pub fn clear_padding(&self, pitch: u32) {
        let c = self.builder;
        let (words, pitch) = (self.cols.div_ceil(self.width()), pitch / 4);
        if self.format.code == Code::E2M1 && words < pitch {
            c.range(c.lane() + words, pitch, 32, |word| c.store_i32(self.codes.plus((word * 4).wide()), c.i32(0)));
        }
    }

    /// Elements of a word of codes.
    fn width(&self) -> u32 {
        32 / self.format.code.bits() as u32
    }

    /// The number of this warp among those that share the row.
    fn warp(&self) -> I32<'c> {
        if self.warps == 1 { self.builder.i32(0) } else { self.builder.warp() }
    }

    /// The elements of a word that begins at `col`; 0 where the row has ended.
    fn load(&self, col: I32<'c>) -> Vec<F32<'c>> {
        let c = self.builder;
        let at = |col: I32<'c>| self.x.plus(col.wide() * self.dtype.bytes() as u64);
        if self.whole_words {
            return c.load_elements(at(col), self.dtype, self.width() as usize);
        }
        let one = |i: u32| {
            let value = c.var(c.f32(0.0));
            c.when((col + i).lt(self.cols), || value.set(c.load_elements(at(col + i), self.dtype, 1)[0]));
            value.get()
        };
        (0..self.width()).map(one).collect()
    }

    fn largest_of(&self, values: &[F32<'c>]) -> F32<'c> {
        values.iter().fold(self.builder.f32(0.0), |m, v| m.maximum(v.abs()))
    }

    /// The largest magnitude that this lane finds in columns `from` to `to`, which are whole words but for the last.
    fn largest_into(&self, most: &Var<'c, F32<'c>>, from: I32<'c>, to: I32<'c>) {
        let c = self.builder;
        c.range(from + c.lane() * self.width(), to, 32 * self.width(), |col| {
            most.set(most.get().maximum(self.largest_of(&self.load(col))));
        });
    }

    fn store_codes(&self, col: I32<'c>, values: &[F32<'c>], factor: F32<'c>) {
        let c = self.builder;
        let bits = 2 * self.format.code.bits() as u32;
        let pairs = values.chunks(2).map(|pair| self.conversions.code_pair(c, self.format, [pair[0], pair[1]], factor));
        let word = pairs.enumerate().fold(c.i32(0), |word, (i, pair)| word | (pair << (bits * i as u32)));
        // The rest of the last word is padding of the row.
        c.store_i32(self.codes.plus(((col / self.width()) * 4).wide()), word);
    }

    fn store_scale(&self, block: I32<'c>, stored: F32<'c>) {
        let to = self.scales.plus(block.wide() * self.format.stored().scale.bytes());
        self.conversions.store_scale(self.builder, self.format, to, stored);
    }

    /// Blocks that are the words of 1, 2, 4, … neighbouring lanes.
    fn blocks_of_lanes(&self, lanes: u32, global: Option<F32<'c>>) {
        let (c, width) = (self.builder, self.width());
        c.range(self.warp() * (32 * width), self.cols, 32 * width * self.warps, |first| {
            let col = first + c.lane() * width;
            let in_row = col.lt(self.cols);
            let values: Vec<Var<F32>> = (0..width).map(|_| c.var(c.f32(0.0))).collect();
            c.when(in_row, || values.iter().zip(self.load(col)).for_each(|(v, x)| v.set(x)));
            let values: Vec<F32> = values.into_iter().map(Var::get).collect();
            let mut most = self.largest_of(&values);
            for mask in [1, 2, 4, 8, 16].into_iter().filter(|&m| m < lanes) {
                most = most.maximum(c.read_peer(most.bits(), mask).as_f32());
            }
            c.when(in_row, || {
                let scale = encode::block_scale(c, self.format, most, global);
                self.store_codes(col, &values, scale.factor);
                c.when((c.lane() & (lanes - 1)).eq(0), || self.store_scale(col / (lanes * width), scale.stored));
            });
        });
    }

    /// Blocks of any number of words, one after another.
    fn blocks_of_warp(&self, block: u32, global: Option<F32<'c>>) {
        let (c, width) = (self.builder, self.width());
        c.range(self.warp(), self.cols.div_ceil(block), self.warps, |n| {
            let first = n * block;
            let end = (first + block).min(self.cols);
            let most = c.var(c.f32(0.0));
            self.largest_into(&most, first, end);
            let scale = encode::block_scale(c, self.format, c.warp_maximum(most.get()), global);
            c.range(first + c.lane() * width, end, 32 * width, |col| {
                self.store_codes(col, &self.load(col), scale.factor);
            });
            c.when(c.lane().eq(0), || self.store_scale(n, scale.stored));
        });
    }
}
