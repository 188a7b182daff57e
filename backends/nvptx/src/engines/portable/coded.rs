//! A tile on the tensor cores with quantised weights: codes are made into floats on their way to `ldmatrix`.
//!
//! ```text
//!  global ──cp.async──► ring of stages: activations, codes ──registers──► two sets of float tiles ──ldmatrix──► mma
//!                       step + stages − 1                     step + 1                               step
//! ```
//!
//! A thread decodes the 16-byte chunks of codes that it copied itself, so its own wait is enough; the one barrier of a
//! step makes the floats of this step visible and says that the set of the step before is free. The codes of the next
//! step are decoded while this step's products run. Scales are loaded a step before they are needed.

use super::copy::phase;
use super::mma::{Fragments, copiers, store};
use crate::builder::{Bool, Builder, F32, Global, I32, Shared, Var};
use crate::kernels::Kernel;
use crate::parts::Tile;
use crate::parts::decode::{Decoder, block_of};
use crate::parts::load::cp_async;
use moec_ir::engine::portable::MmaGeometry;
use moec_ir::target::Features;
use moec_ir::tile::{PanelQuant, Program, Segment};

/// Bytes of codes that a thread decodes at a time: one copy.
const CHUNK_BYTES: u32 = 16;

/// Computes one tile and stores it.
pub fn tile<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    segment: &Segment,
    g: &MmaGeometry,
    tile: &Tile<'c>,
    features: Features,
) {
    let c = k.builder;
    let k_total = program.buffer(segment.a).cols as u32;
    let floats = copiers(k, program, segment, g, tile);
    let panels = coded_panels(k, program, segment, g, tile, features);
    let n_steps = k_total.div_ceil(g.tile_k);
    let stage = |slot: I32<'c>| c.shared().plus(slot * g.stage_bytes());
    let start = |slot: I32<'c>, step: I32<'c>| {
        let stage = stage(slot);
        c.part("copies", || {
            for (copier, offset) in &floats {
                copier.start(c, g, stage.at(*offset), step * g.tile_k, k_total);
            }
            panels.iter().for_each(|p| p.start(c, g, stage, step));
        });
    };
    let decoded = |step: I32<'c>| c.shared().at(g.stages * g.stage_bytes()).plus((step & 1) * g.decoded_bytes());
    let decode = |slot: I32<'c>, step: I32<'c>| {
        c.part("decoding", || panels.iter().for_each(|p| p.decode(c, g, stage(slot), decoded(step), step)));
    };
    let fragments = Fragments::new(c, g);

    cp_async::fill(c, (g.stages, n_steps), start);
    panels.iter().for_each(|p| p.fetch_scales(c, g, c.i32(0)));
    c.wait_copies(g.stages - 2);
    decode(c.i32(0), c.i32(0));
    panels.iter().for_each(|p| p.fetch_scales(c, g, c.i32(1)));
    // Stages of this step, of the next, and of the one that is filled.
    let slots = [0, 1, g.stages - 1].map(|slot| c.var(c.i32(slot)));
    let [read, next, write] = slots;
    c.range(0, n_steps, 1, |step| {
        // The stages up to the next have come.
        c.wait_copies(g.stages - 3);
        c.barrier();
        let ahead = step + (g.stages - 1);
        c.when(ahead.lt(n_steps), || start(write.get(), ahead));
        c.commit_copies();
        c.when((step + 1).lt(n_steps), || {
            decode(next.get(), step + 1);
            panels.iter().for_each(|p| p.fetch_scales(c, g, step + 2));
        });
        let a = stage(read.get());
        let (mut dense, mut coded) = (g.tile_m * g.row_bytes(), 0);
        let tiles: Vec<Shared> = segment
            .panels
            .iter()
            .map(|p| {
                let (base, offset) = if p.quant.is_some() { (decoded(step), &mut coded) } else { (a, &mut dense) };
                let tile = base.at(*offset);
                *offset += g.panel_bytes();
                tile
            })
            .collect();
        c.part("products", || fragments.multiply(c, g, a, &tiles));
        cp_async::advance(c, &slots, g.stages);
    });
    c.part("results", || store(k, program, segment, g, tile, &fragments));
}

/// The part of a thread in one panel of codes.
struct CodedPanel<'c> {
    decoder: Decoder,
    global: Option<F32<'c>>,
    /// Elements of a chunk.
    elements: u32,
    /// Byte offset of the codes within a stage, and of the floats within a set of tiles.
    codes_at: u32,
    tile_at: u32,
    /// Bytes of a row of codes in global memory.
    row_bytes: u32,
    k_total: u32,
    /// First element of this thread's chunks within a row of the tile: all have the same.
    column: I32<'c>,
    chunks: Vec<Chunk<'c>>,
    /// Elements that have one scale: a divisor of `elements`.
    span: u32,
    /// Columns of a block; 0 for all.
    block_cols: u64,
    grid_cols: u32,
    scale_bytes: u64,
    /// The bits of the scales of a chunk, for each row that has its own.
    scales: Vec<(Global<'c>, Vec<Var<'c, I32<'c>>>)>,
}

struct Chunk<'c> {
    /// The codes in global memory at k = 0.
    from: Global<'c>,
    /// Byte offset of its floats within a tile.
    to: I32<'c>,
    exists: Bool<'c>,
    /// Whether this thread has this chunk at all.
    takes_part: Option<Bool<'c>>,
    /// Which entry of `scales` is its own.
    scales: usize,
}

fn coded_panels<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    segment: &Segment,
    g: &MmaGeometry,
    tile: &Tile<'c>,
    features: Features,
) -> Vec<CodedPanel<'c>> {
    let mut all = Vec::new();
    let mut codes_at = (g.tile_m + g.dense_panels * g.tile_n) * g.row_bytes();
    for panel in &segment.panels {
        let Some(q) = &panel.quant else { continue };
        let place = (codes_at, all.len() as u32 * g.panel_bytes());
        all.push(CodedPanel::new(k, program, segment, (panel.weights, q), g, tile, place, features));
        codes_at += g.tile_n * g.tile_k * q.format.code.bits() as u32 / 8;
    }
    all
}

impl<'c> CodedPanel<'c> {
    #[allow(clippy::too_many_arguments, reason = "what a tile is made of")]
    fn new(
        k: &Kernel<'c, '_>,
        program: &Program,
        segment: &Segment,
        (weights, q): (moec_ir::tile::BufferId, &PanelQuant),
        g: &MmaGeometry,
        tile: &Tile<'c>,
        (codes_at, tile_at): (u32, u32),
        features: Features,
    ) -> CodedPanel<'c> {
        let c = k.builder;
        let f = q.format;
        let (n, k_total) = (program.buffer(segment.out).cols as u32, program.buffer(segment.a).cols as u32);
        let elements = CHUNK_BYTES * 8 / f.code.bits() as u32;
        let per_row = g.tile_k / elements;
        let step = g.threads / per_row;
        let (first_row, column) = (c.thread() / per_row, c.thread() % per_row);
        let view = k.view(weights);
        let base = view
            .base
            .plus((tile.expert.wide() * u64::from(n) + tile.col.wide()) * view.pitch)
            .plus((column * CHUNK_BYTES).wide());
        let valid_rows = if n.is_multiple_of(g.tile_n) { c.i32(g.tile_n) } else { (c.i32(n) - tile.col).min(g.tile_n) };
        let first_chunk = column * (elements / 8);
        let to = |row: I32<'c>| row * g.row_bytes() + ((first_chunk ^ phase(g, row)) << 4);
        let period = (128 / g.row_bytes()).max(1) * (g.row_bytes() / 16).min(8);
        let first_to = to(first_row);

        let (grid_rows, grid_cols) = f.scale_grid(n.into(), k_total.into());
        let scales_view = k.view(q.scales);
        let scale_bytes = f.scale.bytes();
        let scale_row = |row: I32<'c>| {
            let row = (tile.col + row).min(n - 1);
            let block = block_of(c, row, f.block_rows);
            scales_view.base.plus((tile.expert.wide() * grid_rows + block.wide()) * (scales_view.pitch * scale_bytes))
        };
        // Blocks of rows that no tile straddles have one scale row for the whole tile.
        let one_scale_row = f.block_rows == 0 || f.block_rows.is_multiple_of(g.tile_n.into());
        let span = match f.block_cols {
            0 => elements,
            cols => gcd(cols, elements.into()) as u32,
        };
        let vars = || (0..elements / span).map(|_| c.var(c.i32(0))).collect::<Vec<_>>();
        let mut scales = Vec::new();
        let mut chunks = Vec::new();
        for i in 0..g.tile_n.div_ceil(step) {
            let row = first_row + i * step;
            if scales.is_empty() || !one_scale_row {
                scales.push((scale_row(if one_scale_row { c.i32(0) } else { row }), vars()));
            }
            chunks.push(Chunk {
                from: base.plus(row.wide() * view.pitch),
                to: if step.is_multiple_of(period) { first_to + i * step * g.row_bytes() } else { to(row) },
                exists: row.lt(valid_rows),
                takes_part: ((i + 1) * step > g.tile_n).then(|| row.lt(g.tile_n)),
                scales: scales.len() - 1,
            });
        }
        let global = q.global.map(|id| c.load_f32(k.view(id).at(c.i32(0), tile.expert)));
        CodedPanel {
            decoder: Decoder::new(q, features),
            global,
            elements,
            codes_at,
            tile_at,
            row_bytes: f.code.bytes(k_total.into()) as u32,
            k_total,
            column: column * elements,
            chunks,
            span,
            block_cols: f.block_cols,
            grid_cols: grid_cols as u32,
            scale_bytes,
            scales,
        }
    }

    /// Where this thread keeps the codes of chunk `i`: beside those of its neighbours, so that reads have no conflicts.
    fn own(&self, c: &'c Builder<'c>, g: &MmaGeometry, stage: Shared<'c>, i: usize) -> Shared<'c> {
        stage.at(self.codes_at + i as u32 * g.threads * CHUNK_BYTES).plus(c.thread() * CHUNK_BYTES)
    }

    /// Starts the copy of the codes of a step. Codes past the end of a row are zero.
    fn start(&self, c: &'c Builder<'c>, g: &MmaGeometry, stage: Shared<'c>, step: I32<'c>) {
        let step_bytes = g.tile_k * CHUNK_BYTES / self.elements;
        let at = step * step_bytes;
        let bytes = if self.row_bytes.is_multiple_of(step_bytes) {
            c.i32(CHUNK_BYTES)
        } else {
            let first = self.column / (self.elements / CHUNK_BYTES);
            (c.i32(self.row_bytes) - (at + first)).signed_max(0).signed_min(CHUNK_BYTES)
        };
        for (i, chunk) in self.chunks.iter().enumerate() {
            let copy = || {
                let bytes = c.select(chunk.exists, bytes, c.i32(0));
                c.copy_async(self.own(c, g, stage, i), chunk.from.plus(at.wide()), CHUNK_BYTES, bytes);
            };
            match chunk.takes_part {
                Some(condition) => c.when(condition, copy),
                None => copy(),
            }
        }
    }

    /// Loads the scales of a step; those of blocks past the end are the last ones.
    fn fetch_scales(&self, c: &'c Builder<'c>, g: &MmaGeometry, step: I32<'c>) {
        let first = step * g.tile_k + self.column;
        for (row, vars) in &self.scales {
            for (i, var) in vars.iter().enumerate() {
                let at = first + i as u32 * self.span;
                let block = block_of(c, at, self.block_cols).min(self.grid_cols - 1);
                var.set(c.load_bits(row.plus(block.wide() * self.scale_bytes), self.scale_bytes));
            }
        }
    }

    /// Makes this thread's codes of a step into floats and puts them where `ldmatrix` reads.
    fn decode(&self, c: &'c Builder<'c>, g: &MmaGeometry, stage: Shared<'c>, set: Shared<'c>, step: I32<'c>) {
        let factors: Vec<Vec<F32>> = self
            .scales
            .iter()
            .map(|(_, vars)| vars.iter().map(|v| self.decoder.scale(c, v.get(), self.global)).collect())
            .collect();
        let ragged = !self.k_total.is_multiple_of(g.tile_k);
        // Elements from the first of the chunk to the end of the row; negative past it.
        let left = c.i32(self.k_total) - (step * g.tile_k + self.column);
        for (i, chunk) in self.chunks.iter().enumerate() {
            let body = || {
                let words = c.load_words(self.own(c, g, stage, i));
                let tile = set.at(self.tile_at);
                let mut pairs = Vec::new();
                for (w, &word) in words.iter().enumerate() {
                    pairs.extend(self.word(c, word, w as u32 * self.elements / 4, &factors[chunk.scales]));
                }
                if ragged {
                    for (p, pair) in pairs.iter_mut().enumerate() {
                        *pair = self.cut(c, *pair, left, 2 * p as u32);
                    }
                }
                for (j, four) in pairs.chunks_exact(4).enumerate() {
                    c.store_words(tile.plus(chunk.to ^ ((j as u32) << 4)), [four[0], four[1], four[2], four[3]]);
                }
            };
            match chunk.takes_part {
                Some(condition) => c.when(condition, body),
                None => body(),
            }
        }
    }

    /// The pairs of one word of a chunk; `first` is the number of its first element.
    fn word(&self, c: &'c Builder<'c>, word: I32<'c>, first: u32, factors: &[F32<'c>]) -> Vec<I32<'c>> {
        let n = self.elements / 4;
        if self.span.is_multiple_of(n) {
            return self.decoder.pairs(c, word, factors[(first / self.span) as usize]);
        }
        // Blocks that end within a word: each pair has the scales of its own elements.
        let of = |element: u32| factors[(element / self.span) as usize];
        self.decoder.mixed_pairs(c, word, &(first..first + n).map(of).collect::<Vec<_>>())
    }

    /// `pair` with the elements that lie past the end of the row made zero.
    fn cut(&self, c: &'c Builder<'c>, pair: I32<'c>, left: I32<'c>, first: u32) -> I32<'c> {
        let none = c.i32(0);
        let one = if self.k_total.is_multiple_of(2) {
            none
        } else {
            c.select(left.signed_lt(first + 1), none, pair & 0xffff)
        };
        c.select(left.signed_lt(first + 2), one, pair)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
