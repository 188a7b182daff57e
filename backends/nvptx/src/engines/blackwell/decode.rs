//! The warps that make floats of codes, for the tensor cores to multiply.

use super::contract::{Cta, MORE};
use crate::builder::{I32, Shared};
use crate::parts::{CodedPanel, Reader, Ring};
use moec_ir::engine::blackwell::{PANEL_BYTES, TILE_N};
use moec_ir::engine::code_row_bytes;
use moec_ir::tile::Segment;

impl<'c> Cta<'_, 'c, '_> {
    /// The tile of codes of panel `panel` in a stage of codes.
    pub fn codes(&self, slot: I32<'c>, segment: &Segment, panel: usize) -> Shared<'c> {
        let before = segment.panels[..panel].iter().filter_map(|p| p.quant.as_ref());
        let offset: u32 = before.map(|q| TILE_N * code_row_bytes(q)).sum();
        self.k.builder.shared().at(self.g.first_codes()).plus(slot * self.g.code_bytes).at(offset)
    }

    pub fn decode(&self) {
        let c = self.k.builder;
        let (ring, codes) = (self.ring(), Ring::new(c, self.g.code_stages));
        let part = self.warp - MORE;
        let place = (((part & 3) << 5) + c.lane(), part >> 2);
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            self.each_segment(tile, |_, segment| {
                let (first, end) = self.steps(segment);
                if !segment.codes_become_floats() {
                    // In step with the others, for whom it arrives.
                    return c.range(first, end, 1, |_| {
                        c.wait_for(self.empty.at(ring.slot()), ring.parity_before());
                        c.when(self.elected, || self.member.arrive(self.full.at(ring.slot())));
                        ring.advance();
                    });
                }
                let quants = segment.panels.iter().filter_map(|p| p.quant.as_ref());
                let panels: Vec<CodedPanel> = quants
                    .map(|q| CodedPanel::new(self.k, self.program, segment, q, tile, place, self.features))
                    .collect();
                panels.iter().for_each(|p| p.fetch(first));
                c.range(first, end, 1, |step| {
                    let factors: Vec<_> = panels.iter().map(|p| p.factors(step)).collect();
                    c.wait_for(self.codes_full.at(codes.slot()), codes.parity());
                    let load = |(i, p): (usize, &CodedPanel<'_, 'c, '_>)| p.load(self.codes(codes.slot(), segment, i));
                    let words: Vec<_> = panels.iter().enumerate().map(load).collect();
                    c.warp_barrier();
                    c.when(self.elected, || c.arrive(self.codes_empty.at(codes.slot())));
                    c.wait_for(self.empty.at(ring.slot()), ring.parity_before());
                    let stage = self.stage(ring.slot());
                    for (i, panel) in panels.iter().enumerate() {
                        panel.store(&words[i], &factors[i], stage.at(i as u32 * PANEL_BYTES), step);
                    }
                    c.publish_shared();
                    c.warp_barrier();
                    c.when(self.elected, || self.member.arrive(self.full.at(ring.slot())));
                    ring.advance();
                    codes.advance();
                });
            });
        });
    }
}
