//! Rows of floats to rows of codes and scales.

use super::{Design, Grid, Kernel, Registers};
use crate::builder::I32;
use crate::parts::coded_row::CodedRow;
use crate::parts::encode::Conversions;
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

/// Quantises a row, by the lanes of a warp.
pub fn quantise_row<'c>(k: &Kernel<'c, '_>, q: &Quantise, row: I32<'c>) {
    let c = k.builder;
    let (x, codes, scales) = (k.view(q.x), k.view(q.out), k.view(q.quant.scales));
    let format = q.quant.q;
    let width = 32 / format.code.bits();
    let coded = CodedRow {
        builder: c,
        format,
        conversions: Conversions::ALL,
        x: x.row(row),
        dtype: x.dtype,
        cols: q.quant.cols as u32,
        whole_words: x.cols.is_multiple_of(width) && x.pitch.is_multiple_of(width),
        codes: codes.row(row),
        scales: scales.row(row),
        warps: 1,
    };
    let global = q.quant.global.map(|global| {
        if !format.has_row() {
            return c.load_f32(k.view(global).base);
        }
        let global_scale = coded.own_global();
        c.when(c.lane().eq(0), || c.store_f32(k.view(global).row(row), global_scale));
        global_scale
    });
    coded.write(global);
    coded.clear_padding(codes.pitch as u32);
}
