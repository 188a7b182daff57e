//! Scales of a step, from their row-major grids in global memory to where tensor cores or the epilogue find them.
//!
//! 128 threads take a row each. For tensor cores a group of four scales is a word, and the words of 128 rows lie in
//! shared memory as rows 0, 32, 64, 96, 1, 33, …: threads are numbered in that order, so that they store side by side.

use super::contract::Cta;
use crate::builder::{Bool, Builder, F32, Global, I32, Var};
use crate::kernels::Kernel;
use crate::parts::decode::{block_of, scale_value};
use crate::parts::{Reader, Tile};
use moec_ir::engine::blackwell::ATOM_BYTES;
use moec_ir::quant::ScaleCode;
use moec_ir::tile::{Panel, RowMap, Segment};

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

impl<'c> Cta<'_, 'c, '_> {
    /// The rows of the grids of scales for row `row` of a tile: of each panel, and of the activations `row`, `row + 128`, ….
    /// `unit` elements of k are a block of the product.
    pub fn scale_rows(
        &self,
        segment: &Segment,
        tile: &Tile<'c>,
        row: I32<'c>,
    ) -> (Vec<ScaleRow<'c>>, Vec<ScaleRow<'c>>) {
        let c = self.k.builder;
        let (n, k, unit) = (segment.n(self.program), segment.k(self.program), self.g.block());
        let panel = |p: &Panel| {
            let q = p.quant.as_ref()?;
            let (grid_rows, grid_cols) = q.format.scale_grid(n, k);
            // Columns past the end, which are not stored, take the scales of the last.
            let block = block_of(c, (tile.col + row).min(n as u32 - 1), q.format.block_rows);
            let at = (tile.expert * grid_rows as u32 + block, c.bool(true));
            Some(ScaleRow::new(self.k, q.scales, at, q.format.scale, grid_cols, (q.format.block_cols, unit)))
        };
        let panels = segment.panels.iter().filter_map(panel).collect();
        let Some(q) = &segment.a_quant else { return (panels, Vec::new()) };
        let format = q.format();
        let of_group = |group: u32| {
            let row = row + group * 128;
            let exists = row.lt(tile.rows);
            let source = self.source_row(segment, tile, c.select(exists, row, c.i32(0)));
            ScaleRow::new(self.k, q.scales, (source, exists), format.scale, q.n_blocks(), (format.block_cols, unit))
        };
        (panels, (0..self.g.row_groups()).map(of_group).collect())
    }

    /// The row of the activations of row `row` of a tile.
    pub fn source_row(&self, segment: &Segment, tile: &Tile<'c>, row: I32<'c>) -> I32<'c> {
        match segment.a_rows {
            RowMap::Same => tile.row + row,
            RowMap::Gather(map) => self.k.builder.load_i32(self.k.view(map).nth(tile.row + row)),
        }
    }

    pub fn bring_block_scales(&self) {
        let c = self.k.builder;
        let g = self.g;
        let ring = self.ring();
        let thread = ((self.warp & 3) << 5) + c.lane();
        // Word `t` of an atom belongs to this row.
        let row = ((thread & 3) << 5) + (thread >> 2);
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            self.each_segment(tile, |i, segment| {
                self.chains.wait(i, tile, self.elected);
                let (panels, rows) = self.scale_rows(segment, tile, row);
                let words = |step: I32<'c>| -> Vec<I32<'c>> {
                    let word = |r: &ScaleRow<'c>, atom: u32| r.word((step * g.atoms() + atom) << 2);
                    let of_panels = panels.iter().flat_map(|r| (0..g.atoms()).map(|atom| word(r, atom)));
                    let of_rows = (0..g.atoms()).flat_map(|atom| rows.iter().map(move |r| word(r, atom)));
                    of_panels.chain(of_rows).collect()
                };
                // Those of the next step are loaded while this one waits.
                let (first_step, end) = self.steps(segment);
                let next: Vec<Var<I32>> = words(first_step).into_iter().map(|w| c.var(w)).collect();
                c.range(first_step, end, 1, |step| {
                    let now: Vec<I32> = next.iter().map(|w| w.get()).collect();
                    next.iter().zip(words(step + 1)).for_each(|(to, w)| to.set(w));
                    c.wait_for(self.empty.at(ring.slot()), ring.parity_before());
                    let scales = self.stage(ring.slot()).at(g.scales()).plus(thread << 2);
                    for (i, word) in (0u32..).zip(&now) {
                        // A segment may have fewer panels than another.
                        let missing = (g.panels - panels.len() as u32) * g.atoms();
                        let i = if i < panels.len() as u32 * g.atoms() { i } else { i + missing };
                        c.store_i32(scales.at(i * ATOM_BYTES), *word);
                    }
                    c.publish_shared();
                    c.warp_barrier();
                    c.when(self.elected, || self.member.arrive(self.full.at(ring.slot())));
                    ring.advance();
                });
            });
        });
    }
}
