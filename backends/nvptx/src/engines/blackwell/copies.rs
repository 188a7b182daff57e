//! The warps that start copies of weights and of activations.

use super::contract::{Cta, NO_CODES};
use super::layout::ROW_IDS;
use super::rows::{Rows, Step};
use crate::builder::{CtaGroup, I32, MapId};
use crate::parts::{Reader, Ring, Tile};
use moec_ir::engine::blackwell::{Operands, PANEL_BYTES, TILE_N};
use moec_ir::engine::{ROW_BYTES, code_row_bytes};
use moec_ir::quant::Code;
use moec_ir::tile::{Panel, Segment};

impl<'c> Cta<'_, 'c, '_> {
    /// What a step takes of a row of codes in a tensor map, and the bytes of it that a barrier counts.
    fn step_of(&self, code: Code) -> (u32, u32) {
        // Maps of spread codes count codes, the others bytes; what spread codes leave free does not count.
        let tile_k = self.g.tile_k();
        if self.g.spreads(code) { (tile_k, ROW_BYTES / 2) } else { (code.bytes(tile_k.into()) as u32, ROW_BYTES) }
    }

    /// As [`Cta::step_of`], of a panel.
    fn step_of_panel(&self, panel: &Panel) -> (u32, u32) {
        match (self.g.operands, &panel.quant) {
            (Operands::Halves, _) | (_, None) => (self.g.tile_k(), ROW_BYTES),
            (Operands::Blocks(_) | Operands::Fp8, Some(q)) => self.step_of(q.format.code),
        }
    }

    pub fn copy_weights(&self) {
        let (c, g) = (self.k.builder, self.g);
        c.when(self.elected, || {
            let ring = self.ring();
            let codes = g.decodes().then(|| Ring::new(c, g.code_stages));
            self.each_tile(&Reader::Thread, |tile| {
                self.each_segment(tile, |i, segment| {
                    let maps = &self.maps[i].weights;
                    let steps = self.steps(segment);
                    match codes {
                        Some(codes) if segment.codes_become_floats() => {
                            self.copy_codes(segment, tile, maps, steps, codes);
                            return ring.skip(steps.1 - steps.0);
                        }
                        // Codes of tiles before lie ahead of the decoding warps. When they are read, so are the stages that
                        // this warp has passed over, all but the last.
                        Some(codes) => codes.drain(self.codes_empty),
                        None => {}
                    }
                    self.copy_panels(segment, tile, maps, steps, ring);
                });
            });
        });
    }

    /// Brings what is multiplied.
    fn copy_panels(
        &self,
        segment: &Segment,
        tile: &Tile<'c>,
        maps: &[MapId],
        (first, end): (I32<'c>, I32<'c>),
        ring: Ring<'c>,
    ) {
        let c = self.k.builder;
        let of_panels: Vec<(u32, u32)> = segment.panels.iter().map(|p| self.step_of_panel(p)).collect();
        let bytes = of_panels.iter().map(|(_, bytes)| bytes).sum::<u32>() * TILE_N;
        c.range(first, end, 1, |step| {
            let (full, stage) = (self.full.at(ring.slot()), self.stage(ring.slot()));
            c.wait_for(self.empty.at(ring.slot()), ring.parity_before());
            if !self.g.decodes() {
                self.member.arrive_expecting(full, c.i32(bytes));
            }
            for ((p, &map), &(wide, _)) in (0u32..).zip(maps).zip(&of_panels) {
                let at = [step * wide, tile.col, tile.expert];
                self.member.copy_weights(stage.at(p * PANEL_BYTES), full, map, at, (TILE_N, ROW_BYTES));
            }
            ring.advance();
        });
    }

    /// Brings codes that become floats.
    fn copy_codes(
        &self,
        segment: &Segment,
        tile: &Tile<'c>,
        maps: &[MapId],
        (first, end): (I32<'c>, I32<'c>),
        codes: Ring<'c>,
    ) {
        let c = self.k.builder;
        let bytes: u32 = segment.panels.iter().filter_map(|p| p.quant.as_ref()).map(code_row_bytes).sum();
        c.range(first, end, 1, |step| {
            let full = self.codes_full.at(codes.slot());
            c.wait_for(self.codes_empty.at(codes.slot()), codes.parity_before());
            c.arrive_expecting(full, bytes * TILE_N);
            for (p, (&map, panel)) in maps.iter().zip(&segment.panels).enumerate() {
                let wide = panel.quant.as_ref().map_or(0, code_row_bytes);
                let to = self.codes(codes.slot(), segment, p);
                // Each CTA has a ring of its own.
                c.copy_box(CtaGroup::One, to, full, map, &[step * wide, tile.col, tile.expert]);
            }
            codes.advance();
        });
    }

    pub fn copy_activations(&self) {
        let (c, g) = (self.k.builder, self.g);
        let ring = self.ring();
        let rows = Rows {
            k: self.k,
            member: self.member,
            elected: self.elected,
            ring,
            full: self.full,
            empty: self.empty,
            ids: c.shared().at(ROW_IDS),
            box_rows: g.box_rows(),
        };
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            let part = self.member.part(tile);
            self.each_segment(tile, |i, segment| {
                let (wide, row_bytes) = match (g.operands, &segment.a_quant) {
                    (Operands::Halves, _) => (g.tile_k(), ROW_BYTES),
                    (Operands::Blocks(_) | Operands::Fp8, Some(q)) => self.step_of(q.q.code),
                    (Operands::Blocks(_) | Operands::Fp8, None) => return c.fail(NO_CODES),
                };
                // Where other segments have codes, decoding warps arrive in the place of the warp that brings weights.
                let has_weights = g.decodes() && !segment.codes_become_floats();
                let more = if has_weights { segment.panels.len() as u32 * PANEL_BYTES } else { 0 };
                let one_by_one = self.contract.chain_to(i).is_some();
                let step = Step { map: self.maps[i].activations, wide, row_bytes, more, one_by_one };
                self.chains.wait(i, tile, self.elected);
                let activations = |slot| self.stage(slot).at(g.activations());
                rows.bring((tile, part), segment.a_rows, &step, || self.steps(segment), activations);
            });
        });
        if self.ctas != CtaGroup::One {
            // CTA 0 tells of empty stages until its last product is done: by then this CTA must not have gone.
            c.when(self.elected, || ring.drain(self.empty));
        }
    }
}
