//! Scales of a tile: how they come to shared memory, and where a lane finds those of its fragments.
//!
//! Beside its codes, a stage holds for each row the bytes of the scales of its step: the aligned window of 4, 8 or 16 bytes
//! that they lie in. Scales past the end of a row are zero bytes: 0, or a power of two that zero codes are multiplied with.

use crate::builder::{Bool, Builder, F32, Global, I32, Shared};
use crate::parts::decode::{block_of, scale_value};
use moec_ir::engine::ScaleWindow;
use moec_ir::quant::ScaleCode;
use moec_ir::tile::{PanelQuant, Program, RowQuant, Segment};

/// Elements along k that [`ScaleCut::words`] gives the scales of.
const GROUP: u32 = 128;

/// How the scales of one operand are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleCut {
    pub code: ScaleCode,
    /// Elements along K that have one scale; 0 for all.
    pub block: u32,
    /// Scales of a row.
    cols: u32,
    /// What a stage holds of them.
    window: ScaleWindow,
    tile_k: u32,
}

impl ScaleCut {
    /// Of `tile_n` rows of weights, in steps of `tile_k` elements.
    pub fn of_weights(program: &Program, segment: &Segment, q: &PanelQuant, (tile_n, tile_k): (u32, u32)) -> ScaleCut {
        let n = segment.n(program);
        let cols = q.format.scale_grid(n, segment.k(program)).1 as u32;
        let window = ScaleWindow::of_weights(n, q, (tile_n, tile_k));
        ScaleCut { code: q.format.scale, block: q.format.block_cols as u32, cols, window, tile_k }
    }

    /// Of `tile_m` rows of activations, in steps of `tile_k` elements.
    pub fn of_tokens(q: &RowQuant, (tile_m, tile_k): (u32, u32)) -> ScaleCut {
        let window = ScaleWindow::of_rows(q, (tile_m, tile_k));
        ScaleCut { code: q.format().scale, block: q.q.block, cols: q.n_blocks() as u32, window, tile_k }
    }

    /// Bytes in a stage.
    pub fn bytes(&self) -> u32 {
        self.window.bytes()
    }

    fn scale_bytes(&self) -> u32 {
        self.code.bytes() as u32
    }

    /// The bytes of a row at which the scales of a step begin.
    fn first_byte<'c>(&self, c: &'c Builder<'c>, step: I32<'c>) -> I32<'c> {
        if self.block != 0 && self.block <= self.tile_k {
            return step * (self.tile_k / self.block * self.scale_bytes());
        }
        block_of(c, step * self.tile_k, self.block.into()) * self.scale_bytes()
    }

    /// The offset of a step's scales within their window.
    fn within<'c>(&self, c: &'c Builder<'c>, step: I32<'c>) -> I32<'c> {
        let fills =
            self.block != 0 && self.tile_k / self.block.min(self.tile_k) * self.scale_bytes() == self.window.width;
        if fills || self.block == 0 { c.i32(0) } else { self.first_byte(c, step) & (self.window.width - 1) }
    }

    /// The offset of a row in a stage's scales.
    fn row<'c>(&self, c: &'c Builder<'c>, row: I32<'c>) -> I32<'c> {
        if self.window.rows == 1 { c.i32(0) } else { row * self.window.width }
    }

    /// The value of the scale of `row` for a step that has one.
    pub fn value<'c>(&self, c: &'c Builder<'c>, scales: Shared<'c>, row: I32<'c>, step: I32<'c>) -> F32<'c> {
        let at = scales.plus(self.row(c, row) + self.within(c, step));
        scale_value(c, self.code, c.load_bits(at, self.code.bytes()), true)
    }

    /// The values of the scales of `row`, an even number, and of the row behind it for a step that has one.
    pub fn two_values<'c>(&self, c: &'c Builder<'c>, scales: Shared<'c>, row: I32<'c>, step: I32<'c>) -> [F32<'c>; 2] {
        if self.code == ScaleCode::F32 && self.window.width == 4 && self.window.rows > 1 {
            return c.load_two_words(scales.plus(row << 2)).map(I32::as_f32);
        }
        [0, 1].map(|further| self.value(c, scales, row + further, step))
    }

    /// The bits of the scale of `row` for element `k` of a step, where blocks divide steps or are whole steps.
    pub fn bits<'c>(&self, c: &'c Builder<'c>, scales: Shared<'c>, row: I32<'c>, step: I32<'c>, k: u32) -> I32<'c> {
        let block = if self.block == 0 || self.block >= self.tile_k { 0 } else { k / self.block };
        let at = scales.plus(self.row(c, row) + self.within(c, step)).at(block * self.scale_bytes());
        c.load_bits(at, self.code.bytes())
    }

    /// The bytes of the scales of `row` that a group of 128 elements has: one for each 32, or for each 16.
    pub fn words<'c>(
        &self,
        c: &'c Builder<'c>,
        scales: Shared<'c>,
        row: I32<'c>,
        step: I32<'c>,
        group: u32,
    ) -> Vec<I32<'c>> {
        let at = scales.plus(self.row(c, row));
        match self.block {
            16 => c.load_two_words(at.at(group * 8)).to_vec(),
            32 => vec![c.load_i32(at.at(group * 4))],
            // Blocks that cover whole groups.
            block if block.is_multiple_of(GROUP) => {
                let byte = if block == 0 || block > self.tile_k { 0 } else { group * GROUP / block };
                let bits = c.load_bits(at.plus(self.within(c, step)).at(byte), 1);
                vec![bits * 0x0101_0101]
            }
            block => {
                let at = at.plus(self.within(c, step));
                let of = |quarter: u32| c.load_bits(at.at((group * GROUP + quarter * 32) / block), 1) << (8 * quarter);
                vec![(1..4).fold(of(0), |word, i| word | of(i))]
            }
        }
    }
}

/// Where scales lie in global memory.
pub struct Source<'c> {
    /// The address of scale 0 of a row of the tile, also of one that does not exist.
    pub row: Box<dyn Fn(I32<'c>) -> Global<'c> + 'c>,
    /// Bytes from one row of scales to the next.
    pub pitch_bytes: u64,
    /// Rows from here on have none; `None` when all have.
    pub valid_rows: Option<I32<'c>>,
}

/// The part of a thread in copying the scales of one operand.
pub struct ScaleCopier<'c> {
    cut: ScaleCut,
    /// The number of this thread among those that copy, and how many they are.
    thread: I32<'c>,
    threads: u32,
    source: Source<'c>,
    copies: Vec<OneCopy<'c>>,
}

struct OneCopy<'c> {
    from: Global<'c>,
    to: I32<'c>,
    exists: Option<Bool<'c>>,
    takes_part: Option<Bool<'c>>,
}

impl<'c> ScaleCopier<'c> {
    /// For `threads` threads from thread `first` of the CTA on.
    pub fn new(c: &'c Builder<'c>, (first, threads): (u32, u32), cut: ScaleCut, source: Source<'c>) -> ScaleCopier<'c> {
        let thread = if first == 0 { c.thread() } else { c.thread() - first };
        // Rows that are not aligned are copied byte by byte.
        let n = if source.pitch_bytes.is_multiple_of(cut.window.width.into()) {
            cut.window.rows.div_ceil(threads)
        } else {
            0
        };
        let copies = (0..n).map(|i| {
            let row = thread + i * threads;
            OneCopy {
                from: (source.row)(row),
                to: row * cut.window.width,
                exists: source.valid_rows.map(|n| row.lt(n)),
                takes_part: ((i + 1) * threads > cut.window.rows).then(|| row.lt(cut.window.rows)),
            }
        });
        let copies = copies.collect();
        ScaleCopier { cut, thread, threads, source, copies }
    }

    /// Starts the copy of a step's scales to `to`.
    pub fn start(&self, c: &'c Builder<'c>, to: Shared<'c>, step: I32<'c>) {
        let cut = &self.cut;
        let at = cut.first_byte(c, step) - cut.within(c, step);
        let total = cut.cols * cut.scale_bytes();
        if self.copies.is_empty() {
            return self.by_bytes(c, to, at, total);
        }
        let bytes = if total.is_multiple_of(cut.window.width) {
            c.i32(cut.window.width)
        } else {
            (c.i32(total) - at).signed_max(0).signed_min(cut.window.width)
        };
        for copy in &self.copies {
            let start = || {
                let bytes = copy.exists.map_or(bytes, |exists| c.select(exists, bytes, c.i32(0)));
                c.copy_async(to.plus(copy.to), copy.from.plus(at.wide()), cut.window.width, bytes);
            };
            match copy.takes_part {
                Some(condition) => c.when(condition, start),
                None => start(),
            }
        }
    }

    fn by_bytes(&self, c: &'c Builder<'c>, to: Shared<'c>, first: I32<'c>, total: u32) {
        let width = self.cut.window.width;
        c.range(self.thread, self.cut.window.rows * width, self.threads, |i| {
            let (row, at) = (i / width, first + i % width);
            let in_row = at.lt(total);
            let exists = self.source.valid_rows.map_or(in_row, |n| in_row.and(row.lt(n)));
            let byte = c.var(c.i32(0));
            c.when(exists, || byte.set(c.load_bits((self.source.row)(row).plus(at.wide()), 1)));
            c.store_bits(to.plus(i), byte.get(), 1);
        });
    }
}
