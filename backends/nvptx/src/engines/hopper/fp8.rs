//! Products of FP8 codes with FP8 codes.
//!
//! The instruction's own sums keep fewer bits than f32, so each step of 128 elements is a sum of its own, which a thread
//! scales and adds in f32. While one warpgroup scales, the other multiplies.

use super::contract::Cta;
use super::products::{PIECES, Place, Sums};
use crate::builder::{F32, I32, Shared, Var, WgmmaRows};
use crate::parts::Ring;
use crate::parts::load::scales::ScaleCut;
use moec_ir::engine::ROW_BYTES;
use moec_ir::engine::hopper::GROUP_N;
use moec_ir::tile::{RowQuant, Segment};

/// Where a stage has scales, and how they are cut.
pub struct StageScales {
    pub panels: Vec<(ScaleCut, u32)>,
    pub rows: (ScaleCut, u32),
}

impl<'c> Cta<'_, 'c, '_> {
    /// The scales of a segment's codes.
    pub fn stage_scales(&self, segment: &Segment, rows: &RowQuant) -> StageScales {
        let g = self.g;
        let mut at = g.scales();
        let panel = |q| {
            let (cut, here) = (ScaleCut::of_weights(self.program, segment, q, (g.tile_n, g.tile_k)), at);
            at += cut.bytes();
            (cut, here)
        };
        let panels = segment.panels.iter().filter_map(|p| p.quant.as_ref()).map(panel).collect();
        StageScales { panels, rows: (ScaleCut::of_tokens(rows, (g.tile_m, g.tile_k)), at) }
    }

    /// The sums over a part of k, for at most `n` rows.
    pub fn fp8_products_of(
        &self,
        segment: &Segment,
        (part, n): (I32<'c>, u32),
        place: Place<'c>,
        ring: Ring<'c>,
        totals: &Sums<'c>,
    ) {
        let (c, g) = (self.k.builder, self.g);
        let Some(rows) = &segment.a_quant else { return c.fail("a product of codes has rows that are none") };
        let scales = self.stage_scales(segment, rows);
        let first_stage = c.swizzled_tile(self.stage(c.i32(0)));
        // Registers of their own: products of the next panel are not started in those that are being read.
        let zero = |_| (0..n / 2).map(|_| c.var(c.f32(0.0))).collect();
        let sums: Sums = scales.panels.iter().map(zero).collect();
        totals.iter().flat_map(|panel| &panel[..n as usize / 2]).for_each(|total| total.set(c.f32(0.0)));
        let (first, end) = self.parts.steps(self.n_steps(segment), part);
        c.range(first, end, 1, |step| {
            let slot = ring.slot();
            c.wait_for(self.full.at(slot), ring.parity());
            let (stage, tile) = (self.stage(slot), first_stage + slot * (g.stage_bytes() / 16));
            c.fence_products(&mut []);
            for (p, sums) in sums.iter().enumerate() {
                let panel = tile + self.panel(segment, p) / 16 + place.group * (GROUP_N * ROW_BYTES / 16);
                for piece in 0..PIECES {
                    let b = tile + (g.activations() / 16 + 2 * piece);
                    let adds = u32::from(piece > 0);
                    c.start_wgmma((self.ty, n), sums, WgmmaRows::Shared(panel + 2 * piece), b, adds);
                }
            }
            c.commit_products();
            let of_panel = |(cut, at): &(ScaleCut, u32)| {
                [0, 8].map(|further| cut.value(c, stage.at(*at), place.column + further, step))
            };
            let of_columns: Vec<[F32; 2]> = scales.panels.iter().map(of_panel).collect();
            c.finish_products(&sums.concat());
            for ((totals, sums), of_columns) in totals.iter().zip(&sums).zip(of_columns) {
                self.add_step(totals, sums, of_columns, (&scales, stage, step), place);
            }
            // All lanes have read the scales.
            c.warp_barrier();
            self.release(slot);
            ring.advance();
        });
    }

    /// Adds the sums of a step, times the scales of their columns and rows.
    fn add_step(
        &self,
        totals: &[Var<'c, F32<'c>>],
        sums: &[Var<'c, F32<'c>>],
        of_columns: [F32<'c>; 2],
        (scales, stage, step): (&StageScales, Shared<'c>, I32<'c>),
        place: Place<'c>,
    ) {
        let c = self.k.builder;
        let (cut, at) = &scales.rows;
        for (eight, (totals, sums)) in (0u32..).zip(totals.chunks_exact(4).zip(sums.chunks_exact(4))) {
            let of_rows = cut.two_values(c, stage.at(*at), place.row + 8 * eight, step);
            for (i, (total, sum)) in totals.iter().zip(sums).enumerate() {
                let factor = of_rows[i % 2] * of_columns[i / 2];
                total.set(sum.get().fma(factor, total.get()));
            }
        }
    }
}
