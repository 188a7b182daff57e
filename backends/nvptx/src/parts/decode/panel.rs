//! Codes of quantised weights become floats between two rings in shared memory.
//!
//! A row of a panel has two threads, each with 32 elements of a step. Codes lie in rows of 64 bytes (FP8) or 32 bytes
//! (4-bit), in the swizzle of that width, and floats in rows of 128 bytes in the 128-byte swizzle: eight threads that
//! read or write together touch every bank once. Scales are loaded from global memory a step before they are needed.

use super::{Decoder, block_of};
use crate::builder::{F32, Global, I32, Shared, Var};
use crate::kernels::Kernel;
use crate::parts::Tile;
use moec_ir::engine::{ROW_BYTES, code_row_bytes};
use moec_ir::target::Features;
use moec_ir::tile::{BufferId, PanelQuant, Program, Segment};

/// Elements of a step that a thread decodes, of one row.
const ELEMENTS: u32 = 32;

/// The part of a thread in one panel of codes.
pub struct CodedPanel<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    decoder: Decoder,
    global: Option<F32<'c>>,
    /// Bytes of a row of codes in a step.
    code_bytes: u32,
    /// Row in the tile, and which half of the step.
    row: I32<'c>,
    half: I32<'c>,
    /// The scales of this row at k = 0.
    scales: Global<'c>,
    scale_bytes: u64,
    block_cols: u64,
    grid_cols: u32,
    k_total: u32,
    /// Bits of the scales of the next step, one for each run of elements that share one.
    next: Vec<Var<'c, I32<'c>>>,
}

impl<'k, 'c, 'p> CodedPanel<'k, 'c, 'p> {
    /// For row `row` of a tile and half `half` (0 or 1) of each step.
    pub fn new(
        k: &'k Kernel<'c, 'p>,
        program: &Program,
        segment: &Segment,
        q: &PanelQuant,
        tile: &Tile<'c>,
        (row, half): (I32<'c>, I32<'c>),
        features: Features,
    ) -> CodedPanel<'k, 'c, 'p> {
        let c = k.builder;
        let f = q.format;
        let (n, k_total) = (program.buffer(segment.out).cols, program.buffer(segment.a).cols);
        let (grid_rows, grid_cols) = f.scale_grid(n, k_total);
        let (view, scale_bytes) = (k.view(q.scales), f.scale.bytes());
        // Rows past the end, which are not stored, take the scale of the last.
        let block = block_of(c, (tile.col + row).min(n as u32 - 1), f.block_rows);
        let scales = view.base.plus((tile.expert.wide() * grid_rows + block.wide()) * (view.pitch * scale_bytes));
        let global = |id: BufferId| c.load_f32(k.view(id).at(c.i32(0), tile.expert));
        let runs = if f.block_cols == 16 { 2 } else { 1 };
        CodedPanel {
            k,
            decoder: Decoder::new(q, features),
            global: q.global.map(global),
            code_bytes: code_row_bytes(q),
            row,
            half,
            scales,
            scale_bytes,
            block_cols: f.block_cols,
            grid_cols: grid_cols as u32,
            k_total: k_total as u32,
            next: (0..runs).map(|_| c.var(c.i32(0))).collect(),
        }
    }

    /// The factors of step `step`, which were asked for a step before; asks for those of the next.
    pub fn factors(&self, step: I32<'c>) -> Vec<F32<'c>> {
        let bits: Vec<I32> = self.next.iter().map(|x| x.get()).collect();
        self.fetch(step + 1);
        bits.into_iter().map(|bits| self.decoder.scale(self.k.builder, bits, self.global)).collect()
    }

    /// Asks for the factors of a step; those of the first have to be asked for.
    pub fn fetch(&self, step: I32<'c>) {
        let c = self.k.builder;
        let first = step * (2 * ELEMENTS) + self.half * ELEMENTS;
        for (i, next) in self.next.iter().enumerate() {
            // Past the end of a row any scale of the row will do.
            let block = block_of(c, first + 16 * i as u32, self.block_cols).min(self.grid_cols - 1);
            next.set(c.load_bits(self.scales.plus(block.wide() * self.scale_bytes), self.scale_bytes));
        }
    }

    /// This thread's codes of a step, from the panel's tile of codes.
    pub fn load(&self, codes: Shared<'c>) -> Vec<[I32<'c>; 4]> {
        let c = self.k.builder;
        let row = codes.plus(self.row * self.code_bytes);
        let pieces = self.code_bytes / 2 / 16;
        // The pattern that exchanges 16-byte pieces repeats every 128 bytes: every second row, or every fourth.
        let pattern = (self.row / (ROW_BYTES / self.code_bytes)) & (self.code_bytes / 16 - 1);
        (0..pieces).map(|i| c.load_words(row.plus(((self.half * pieces + i) ^ pattern) << 4))).collect()
    }

    /// Makes floats of this thread's codes of step `step` and writes them to the panel's tile of floats. What lies past
    /// the end of a row is zero: a code is there, and its scale may be infinite.
    pub fn store(&self, codes: &[[I32<'c>; 4]], factors: &[F32<'c>], floats: Shared<'c>, step: I32<'c>) {
        let c = self.k.builder;
        let words: Vec<I32> = codes.concat();
        let per_factor = words.len() / factors.len();
        let pairs = words.iter().enumerate().map(|(i, &w)| self.decoder.pairs(c, w, factors[i / per_factor]));
        let mut pairs: Vec<I32> = pairs.collect::<Vec<_>>().concat();
        if !self.k_total.is_multiple_of(2 * ELEMENTS) {
            let first = step * (2 * ELEMENTS) + self.half * ELEMENTS;
            for (i, pair) in pairs.iter_mut().enumerate() {
                let at = first + 2 * i as u32;
                let low = c.select((at + 1).lt(self.k_total), *pair, *pair & 0xffff);
                *pair = c.select(at.lt(self.k_total), low, c.i32(0));
            }
        }
        let row = floats.plus(self.row * ROW_BYTES);
        for (i, four) in pairs.chunks_exact(4).enumerate() {
            let piece = ((self.half << 2) + i as u32) ^ (self.row & 7);
            c.store_words(row.plus(piece << 4), [four[0], four[1], four[2], four[3]]);
        }
    }
}
