//! A tile of codes by codes: a ring of stages filled by `cp.async`, read by `ldmatrix`.
//!
//! The columns of the result are the 16 rows of an instruction and tokens its 8 columns: with few tokens, little of it is
//! wasted. Every sum runs through K in one order, whatever the tile.

use super::copy::{self, Copier};
use super::epilogue;
use super::fragments::{Fragments, Stage};
use crate::builder::{I32, Shared};
use crate::kernels::Kernel;
use crate::parts::Tile;
use crate::parts::decode::block_of;
use crate::parts::load::cp_async;
use crate::parts::load::scales::{self, ScaleCopier, ScaleCut};
use moec_ir::engine::geforce::ScaledGeometry;
use moec_ir::tile::{Program, RowMap, RowQuant, Segment};

/// What copies into a stage.
struct Copiers<'c> {
    /// With the byte offset of each tile.
    codes: Vec<(Copier<'c>, u32)>,
    scales: Vec<(ScaleCopier<'c>, u32)>,
}

/// Computes one tile and stores it.
pub fn tile<'c>(k: &Kernel<'c, '_>, program: &Program, segment: &Segment, g: &ScaledGeometry, tile: &Tile<'c>) {
    let c = k.builder;
    let Some(rows) = &segment.a_quant else { return c.fail("a product of codes has rows that are none") };
    let of_tokens = ScaleCut::of_tokens(rows, (g.tile_m, g.tile_k));
    let quants = segment.panels.iter().filter_map(|p| p.quant.as_ref());
    let of_panels: Vec<ScaleCut> =
        quants.map(|q| ScaleCut::of_weights(program, segment, q, (g.tile_n, g.tile_k))).collect();
    let copiers = copiers(k, program, segment, g, tile, rows);
    let n_steps = (segment.k(program) as u32).div_ceil(g.tile_k);
    let stage_at = |slot: I32<'c>| c.shared().plus(slot * g.stage_bytes());
    let start = |slot: I32<'c>, step: I32<'c>| {
        let stage = stage_at(slot);
        c.part("copies", || {
            copiers.codes.iter().for_each(|(copier, at)| copier.start(c, stage.at(*at), step));
            copiers.scales.iter().for_each(|(copier, at)| copier.start(c, stage.at(*at), step));
        });
    };
    let fragments = Fragments::new(c, g);

    cp_async::each_step(c, (g.stages, n_steps), start, |slot, step| {
        let stage = parts(g, stage_at(slot));
        c.part("products", || fragments.multiply(c, g, &stage, step, (&of_panels, &of_tokens)));
    });
    // The result takes the place of the ring.
    c.wait_copies(0);
    c.barrier();
    c.part("results", || epilogue::store(k, program, segment, g, tile, &fragments, source_rows(k, segment, tile)));
}

/// The tiles of the stage at `base`.
fn parts<'c>(g: &ScaledGeometry, base: Shared<'c>) -> Stage<'c> {
    let panels = (0..g.panels).map(|p| (base.at(p * g.panel_bytes()), base.at(g.scales_at(p))));
    let tokens = (base.at(g.panels * g.panel_bytes()), base.at(g.scales_at(g.panels)));
    Stage { panels: panels.collect(), tokens }
}

/// Gives the row of the activations that belongs to a row of the tile; a row past the end stands for the first.
fn source_rows<'c>(
    k: &Kernel<'c, '_>,
    segment: &Segment,
    tile: &Tile<'c>,
) -> impl Fn(I32<'c>) -> I32<'c> + Copy + use<'c> {
    let c = k.builder;
    let (first, n_rows) = (tile.row, tile.rows);
    let map = if let RowMap::Gather(map) = segment.a_rows { Some(k.view(map)) } else { None };
    move |row| {
        let row = first + c.select(row.lt(n_rows), row, c.i32(0));
        map.map_or(row, |map| c.load_i32(map.nth(row)))
    }
}

fn copiers<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    segment: &Segment,
    g: &ScaledGeometry,
    tile: &Tile<'c>,
    rows: &RowQuant,
) -> Copiers<'c> {
    let c = k.builder;
    let (n, k_total) = (segment.n(program) as u32, segment.k(program));
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    let columns = (!n.is_multiple_of(g.tile_n)).then(|| (c.i32(n) - tile.col).min(g.tile_n));
    for (p, panel) in (0u32..).zip(&segment.panels) {
        let Some(q) = &panel.quant else { continue };
        let f = q.format;
        let view = k.view(panel.weights);
        let pitch = view.pitch;
        let base = view.base.plus((tile.expert.wide() * u64::from(n) + tile.col.wide()) * pitch);
        let source = copy::Source {
            rows: g.tile_n,
            row_bytes: g.weights.bytes(g.tile_k),
            total_bytes: f.code.bytes(k_total) as u32,
            row: Box::new(move |row| base.plus(row.wide() * pitch)),
            pitch_bytes: Some(pitch),
            valid_rows: columns,
        };
        codes.push((Copier::new(c, g.threads, source), p * g.panel_bytes()));
        let view = k.view(q.scales);
        let pitch_bytes = view.pitch * f.scale.bytes();
        let grid_rows = f.scale_grid(n.into(), k_total).0;
        let (base, expert, col, block_rows) = (view.base, tile.expert, tile.col, f.block_rows);
        let row = move |row: I32<'c>| {
            let block = block_of(c, (col + row).min(n - 1), block_rows);
            base.plus((expert.wide() * grid_rows + block.wide()) * pitch_bytes)
        };
        let source = scales::Source { row: Box::new(row), pitch_bytes, valid_rows: columns };
        let cut = ScaleCut::of_weights(program, segment, q, (g.tile_n, g.tile_k));
        scales.push((ScaleCopier::new(c, (0, g.threads), cut, source), g.scales_at(p)));
    }
    let a = k.view(segment.a);
    let source_row = source_rows(k, segment, tile);
    let source = copy::Source {
        rows: g.tile_m,
        row_bytes: g.tokens.bytes(g.tile_k),
        total_bytes: rows.q.code.bytes(k_total) as u32,
        row: Box::new(move |row| a.row(source_row(row))),
        pitch_bytes: None,
        valid_rows: Some(tile.rows),
    };
    codes.push((Copier::new(c, g.threads, source), g.panels * g.panel_bytes()));
    let view = k.view(rows.scales);
    let source = scales::Source {
        row: Box::new(move |row| view.row(source_row(row))),
        pitch_bytes: view.pitch * view.dtype.bytes() as u64,
        valid_rows: Some(tile.rows),
    };
    scales.push((
        ScaleCopier::new(c, (0, g.threads), ScaleCut::of_tokens(rows, (g.tile_m, g.tile_k)), source),
        g.scales_at(g.panels),
    ));
    Copiers { codes, scales }
}
