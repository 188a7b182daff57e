//! A tile on the tensor cores: a ring of tiles in shared memory, filled by `cp.async`, read by `ldmatrix`.

use super::copy::{Copier, Source, phase};
use super::epilogue::Epilogue;
use crate::builder::{Builder, F32, I32, Shared, Var};
use crate::kernels::Kernel;
use crate::parts::Tile;
use crate::parts::load::cp_async;
use moec_ir::engine::portable::MmaGeometry;
use moec_ir::tile::{Program, RowMap, Segment};

/// Computes one tile and stores it.
pub fn tile<'c>(k: &Kernel<'c, '_>, program: &Program, segment: &Segment, g: &MmaGeometry, tile: &Tile<'c>) {
    let c = k.builder;
    let k_total = program.buffer(segment.a).cols as u32;
    let copiers = copiers(k, program, segment, g, tile);
    let n_steps = k_total.div_ceil(g.tile_k);
    let start = |slot: I32<'c>, step: I32<'c>| {
        let stage = c.shared().plus(slot * g.stage_bytes());
        c.part("copies", || {
            for (copier, offset) in &copiers {
                copier.start(c, g, stage.at(*offset), step * g.tile_k, k_total);
            }
        });
    };
    let fragments = Fragments::new(c, g);

    cp_async::each_step(c, (g.stages, n_steps), start, |slot, _| {
        let stage = c.shared().plus(slot * g.stage_bytes());
        let panels: Vec<Shared> =
            (0..g.panels).map(|p| stage.at(g.tile_m * g.row_bytes() + p * g.panel_bytes())).collect();
        c.part("products", || fragments.multiply(c, g, stage, &panels));
    });
    c.part("results", || store(k, program, segment, g, tile, &fragments));
}

/// What copies floats into a stage, with the byte offset of each operand's tile.
pub fn copiers<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    segment: &Segment,
    g: &MmaGeometry,
    tile: &Tile<'c>,
) -> Vec<(Copier<'c>, u32)> {
    let c = k.builder;
    let a = k.view(segment.a);
    let (first, rows) = (tile.row, tile.rows);
    let map = if let RowMap::Gather(map) = segment.a_rows { Some(k.view(map)) } else { None };
    let a_row = move |row: I32<'c>| {
        // A row past the end stands for the first: it is not read, but its number in the map is.
        let row = first + c.select(row.lt(rows), row, c.i32(0));
        a.row(map.map_or(row, |map| c.load_i32(map.nth(row))))
    };
    let mut all = vec![(
        Copier::new(c, g, Source { rows: g.tile_m, width: g.copy_a, row: Box::new(a_row), valid_rows: rows }),
        0,
    )];
    for (i, panel) in segment.panels.iter().filter(|p| p.quant.is_none()).enumerate() {
        let (w, n) = (k.view(panel.weights), program.buffer(segment.out).cols as u32);
        let base = w.base.plus((tile.expert.wide() * u64::from(n) + tile.col.wide()) * (w.pitch * 2));
        let row = move |row: I32<'c>| base.plus(row.wide() * (w.pitch * 2));
        let valid_rows = if n.is_multiple_of(g.tile_n) { c.i32(g.tile_n) } else { (c.i32(n) - tile.col).min(g.tile_n) };
        let source = Source { rows: g.tile_n, width: g.copy_b, row: Box::new(row), valid_rows };
        let offset = g.tile_m * g.row_bytes() + i as u32 * g.panel_bytes();
        all.push((Copier::new(c, g, source), offset));
    }
    all
}

/// The accumulators of a warp and where its operands lie in their tiles.
pub struct Fragments<'c> {
    /// First row and column of the warp within the tile.
    row: I32<'c>,
    col: I32<'c>,
    /// Byte offsets in a tile of this lane's row of the first fragment, at k = 0.
    a: I32<'c>,
    b: I32<'c>,
    /// `[panel][fragment along m][fragment along n]`
    sums: Vec<Vec<Vec<[Var<'c, F32<'c>>; 4]>>>,
}

impl<'c> Fragments<'c> {
    pub fn new(c: &'c Builder<'c>, g: &MmaGeometry) -> Fragments<'c> {
        let (warp, lane) = (c.warp(), c.lane());
        let row = (warp / g.warps_n) * (g.tile_m / g.warps_m);
        let col = (warp % g.warps_n) * (g.tile_n / g.warps_n);
        // A: lanes 0-15 give the rows of the left half of a 16x16 fragment, lanes 16-31 those of the right.
        let a_row = lane & 15;
        let a = (row + a_row) * g.row_bytes() + (((lane >> 4) ^ phase(g, a_row)) << 4);
        // B: two fragments of 8 columns at a time, each in two halves along k.
        let b_row = (lane & 7) + ((lane >> 4) << 3);
        let b = (col + b_row) * g.row_bytes() + ((((lane >> 3) & 1) ^ phase(g, b_row)) << 4);
        let zero = || std::array::from_fn(|_| c.var(c.f32(0.0)));
        let panel = || (0..g.frags_m()).map(|_| (0..g.frags_n()).map(|_| zero()).collect()).collect();
        Fragments { row, col, a, b, sums: (0..g.panels).map(|_| panel()).collect() }
    }

    /// Adds the products of one tile of activations with one of each panel.
    pub fn multiply(&self, c: &'c Builder<'c>, g: &MmaGeometry, a: Shared<'c>, panels: &[Shared<'c>]) {
        for step in 0..g.tile_k / 16 {
            // Two chunks of 8 elements for each step; the swizzle is an xor, so is the step.
            let a_at = a.plus(self.a ^ (step << 5));
            let a: Vec<[I32; 4]> = (0..g.frags_m()).map(|i| c.load_matrices(a_at.at(i * 16 * g.row_bytes()))).collect();
            for (panel, sums) in panels.iter().zip(&self.sums) {
                let b_at = panel.plus(self.b ^ (step << 5));
                let mut b: Vec<[I32; 2]> = Vec::new();
                for j in (0..g.frags_n()).step_by(2) {
                    let at = b_at.at(j * 8 * g.row_bytes());
                    if j + 1 < g.frags_n() {
                        let [b0, b1, b2, b3] = c.load_matrices::<4>(at);
                        b.extend([[b0, b1], [b2, b3]]);
                    } else {
                        b.push(c.load_matrices::<2>(at));
                    }
                }
                for (a, sums) in a.iter().zip(sums) {
                    for (b, sum) in b.iter().zip(sums) {
                        let result = c.mma(g.ty, *a, *b, sum.map(Var::get));
                        sum.iter().zip(result).for_each(|(sum, x)| sum.set(x));
                    }
                }
            }
        }
    }
}

/// Applies the epilogue to the accumulators and stores them. A lane holds two adjacent columns of rows `lane/4` and
/// `lane/4 + 8` of every fragment.
pub fn store<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    segment: &Segment,
    g: &MmaGeometry,
    tile: &Tile<'c>,
    fragments: &Fragments<'c>,
) {
    let c = k.builder;
    let lane = c.lane();
    let epilogue = Epilogue::new(k, program, segment, tile);
    let first_col = tile.col + fragments.col + ((lane & 3) << 1);
    let first_row = fragments.row + (lane >> 2);
    for j in 0..g.frags_n() {
        let col = first_col + j * 8;
        let biases = epilogue.biases(col, 2);
        for i in 0..g.frags_m() {
            for half in 0..2 {
                let row = first_row + (i * 16 + half * 8);
                let sums: Vec<Vec<F32>> = fragments
                    .sums
                    .iter()
                    .map(|panel| {
                        let sum = &panel[i as usize][j as usize];
                        (0..2).map(|x| sum[half as usize * 2 + x].get()).collect()
                    })
                    .collect();
                epilogue.store(tile.row + row, row.lt(tile.rows), col, &sums, &biases);
            }
        }
    }
}
