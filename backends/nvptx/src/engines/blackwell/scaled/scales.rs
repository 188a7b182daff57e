//! Scales of a step, from their row-major grids in global memory to where tensor cores or the epilogue find them.
//!
//! 128 threads take a row each. For tensor cores a group of four scales is a word, and the words of 128 rows lie in
//! shared memory as rows 0, 32, 64, 96, 1, 33, …: threads are numbered in that order, so that they store side by side.

use crate::builder::{Bool, Builder, F32, Global, I32, Var};
use crate::kernels::Kernel;
use crate::parts::decode::{block_of, scale_value};
use moec_ir::quant::ScaleCode;

/// The scales of one row.
pub struct ScaleRow<'c> {
    c: &'c Builder<'c>,
    /// The first of them; a row that does not exist reads nothing.
    first: Global<'c>,
    exists: Bool<'c>,
    code: ScaleCode,
    /// How many there are.
    count: u32,
    /// Blocks of the product that share one; 0 when all do.
    repeat: u32,
    /// Whether four of them may be read as a word.
    aligned: bool,
}

impl<'c> ScaleRow<'c> {
    /// Row `row` of the grid `scales`, which has `count` columns in the code `code`; `block` elements of k share a scale (0:
    /// all), and `unit` elements are a block of the product.
    pub fn new(
        k: &Kernel<'c, '_>,
        scales: moec_ir::tile::BufferId,
        row: (I32<'c>, Bool<'c>),
        code: ScaleCode,
        count: u64,
        (block, unit): (u64, u32),
    ) -> ScaleRow<'c> {
        let view = k.view(scales);
        let (row, exists) = row;
        ScaleRow {
            c: k.builder,
            first: view.row(row),
            exists,
            code,
            count: count as u32,
            repeat: block as u32 / unit,
            aligned: (view.pitch * code.bytes()).is_multiple_of(4),
        }
    }

    /// The bytes of four blocks of the product, beginning with block `first` (a multiple of four), as a word. Blocks behind
    /// the last have scale 0: a byte of zeros, which is finite in every code.
    pub fn word(&self, first: I32<'c>) -> I32<'c> {
        let c = self.c;
        let word = c.var(c.i32(0));
        if self.repeat == 1 && self.aligned {
            c.when(self.exists.and((first + 3).lt(self.count)), || word.set(c.load_i32(self.first.plus(first.wide()))));
            let rest = self.count % 4;
            if rest > 0 {
                c.when(self.exists.and(first.eq(self.count - rest)), || {
                    word.set(self.bytes(rest, |i| first + i));
                });
            }
        } else if self.repeat == 0 || self.repeat.is_multiple_of(4) {
            let block = if self.repeat == 0 { c.i32(0) } else { first / self.repeat };
            c.when(self.exists.and(block.lt(self.count)), || word.set(self.bytes(1, |_| block) * 0x0101_0101));
        } else {
            for i in 0..4 {
                let block = (first + i) / self.repeat;
                c.when(self.exists.and(block.lt(self.count)), || {
                    word.set(word.get() | (self.bytes(1, |_| block) << (8 * i)));
                });
            }
        }
        word.get()
    }

    /// The scale of block `block` of the product as f32; 0 where there is none.
    pub fn value(&self, block: I32<'c>) -> F32<'c> {
        let c = self.c;
        let value: Var<'c, F32<'c>> = c.var(c.f32(0.0));
        let at = block_of(c, block, self.repeat.into());
        c.when(self.exists.and(at.lt(self.count)), || {
            let bytes = self.code.bytes();
            let bits = c.load_bits(self.first.plus(at.wide() * bytes), bytes);
            value.set(scale_value(c, self.code, bits, true));
        });
        value.get()
    }

    fn bytes(&self, n: u32, at: impl Fn(u32) -> I32<'c>) -> I32<'c> {
        let c = self.c;
        let byte = |i: u32| c.load_bits(self.first.plus(at(i).wide()), 1) << (8 * i);
        (0..n).map(byte).reduce(|a, b| a | b).unwrap_or(c.i32(0))
    }
}
