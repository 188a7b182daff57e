//! Codes of weights become the first operand of products, in registers.
//!
//! A thread has two rows of a panel, eight apart, and of each 8 elements of k the pair of its place in its four lanes. All
//! four read the same 16 bytes of codes and pick the bytes of their pairs.

use super::contract::Cta;
use super::products::Place;
use crate::builder::{F32, I32, Shared};
use crate::kernels::Kernel;
use crate::parts::Tile;
use crate::parts::decode::Decoder;
use crate::parts::load::scales::ScaleCut;
use moec_ir::engine::ROW_BYTES;
use moec_ir::engine::hopper::GROUP_N;
use moec_ir::tile::{PanelQuant, Segment};

/// Elements along k of a step.
const TILE_K: u32 = ROW_BYTES / 2;

/// The part of a thread in one panel of codes.
pub struct CodedPanel<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    decoder: Decoder,
    global: Option<F32<'c>>,
    scales: ScaleCut,
    block_cols: u64,
    /// Byte offsets in a stage of the codes and of their scales.
    codes_at: u32,
    scales_at: u32,
    /// Bytes of a row of codes in a step: 32 or 64.
    row_bytes: u32,
    k_total: u32,
    /// The first row, by codes and by scales, how much further on these are, and the thread's place among the four that
    /// share rows.
    row: I32<'c>,
    scale_row: I32<'c>,
    further: Option<I32<'c>>,
    quarter: I32<'c>,
}

impl<'c, 'p> Cta<'_, 'c, 'p> {
    /// The panels that are codes, for the thread at `place`: both, or that of its warpgroup.
    pub fn coded_panels(
        &self,
        segment: &Segment,
        tile: &Tile<'c>,
        place: Place<'c>,
    ) -> Vec<Option<CodedPanel<'_, 'c, 'p>>> {
        let (row, quarter) = (place.column, place.row >> 1);
        let mut scales_at = self.g.scales();
        let one = |(i, q): (usize, Option<&PanelQuant>)| {
            let q = q?;
            let (c, at) = (self.k.builder, scales_at);
            let scales = ScaleCut::of_weights(self.program, segment, q, (self.g.tile_n, self.g.tile_k));
            scales_at += scales.bytes();
            Some(CodedPanel {
                k: self.k,
                decoder: Decoder::new(q, self.features),
                global: q.global.map(|id| c.load_f32(self.k.view(id).at(c.i32(0), tile.expert))),
                scales,
                block_cols: q.format.block_cols,
                codes_at: self.panel(segment, i),
                scales_at: at,
                row_bytes: self.weight_row_bytes(Some(q)),
                k_total: segment.k(self.program) as u32,
                row,
                scale_row: row,
                further: None,
                quarter,
            })
        };
        let panels: Vec<_> = segment.panels.iter().map(|p| p.quant.as_ref()).enumerate().map(one).collect();
        if !self.g.is_by_panel() {
            return panels;
        }
        // Codes of the second panel follow those of the first, as its scales do.
        let c = self.k.builder;
        let mut of_group = panels.into_iter().flatten();
        let (Some(first), Some(second)) = (of_group.next(), of_group.next()) else { return vec![None] };
        let global = first.global.zip(second.global).map(|(a, b)| c.select(place.group.eq(0), a, b));
        let further = Some(place.group * first.scales.bytes());
        vec![Some(CodedPanel { global, scale_row: row & (GROUP_N - 1), further, ..first })]
    }
}

impl<'c> CodedPanel<'_, 'c, '_> {
    /// The floats of a step: for each 16 elements of k, those of both rows for one instruction.
    pub fn floats(&self, stage: Shared<'c>, step: I32<'c>) -> Vec<[I32<'c>; 4]> {
        let [upper, lower] =
            [0, 8].map(|further| self.pairs_of(stage, (self.row + further, self.scale_row + further), step));
        // Pairs of a row: of the first 8 elements of k, the second, …
        let by_piece = upper.chunks_exact(2).zip(lower.chunks_exact(2));
        by_piece.map(|(u, l)| [u[0], l[0], u[1], l[1]]).collect()
    }

    /// This thread's pairs of one row: one of every 8 elements.
    fn pairs_of(&self, stage: Shared<'c>, (row, scale_row): (I32<'c>, I32<'c>), step: I32<'c>) -> Vec<I32<'c>> {
        let c = self.k.builder;
        let scales = stage.at(self.scales_at);
        let scales = self.further.map_or(scales, |further| scales.plus(further));
        let factor = |k: u32| self.decoder.scale(c, self.scales.bits(c, scales, scale_row, step, k), self.global);
        let at = stage.at(self.codes_at).plus(row * self.row_bytes);
        // The pattern that exchanges 16-byte pieces repeats every 128 bytes.
        let pieces = self.row_bytes / 16;
        let pattern = (row / (ROW_BYTES / self.row_bytes)) & (pieces - 1);
        let mut all: Vec<I32> = Vec::new();
        let mut last: Option<(u32, F32)> = None;
        for piece in 0..pieces {
            let words = c.load_words(at.plus((pattern ^ piece) << 4));
            let first_k = piece * TILE_K / pieces;
            let word = self.own_codes(words);
            let mut scale = |k: u32| {
                let block = if self.block_cols == 0 { 0 } else { k / self.block_cols as u32 };
                match last {
                    Some((of, x)) if of == block => x,
                    _ => {
                        let x = factor(k);
                        last = Some((block, x));
                        x
                    }
                }
            };
            if pieces == 2 && self.block_cols == 16 {
                // Of the word's eight codes, four have either scale.
                let (low, high) = (scale(first_k), scale(first_k + 16));
                all.extend(self.decoder.mixed_pairs(c, word, &[low, low, low, low, high, high, high, high]));
            } else {
                all.extend(self.decoder.pairs(c, word, scale(first_k)));
            }
        }
        if !self.k_total.is_multiple_of(TILE_K) {
            // What lies past the end of a row is zero: a code is there, and its scale may be infinite.
            for (i, pair) in all.iter_mut().enumerate() {
                let k = step * TILE_K + (self.quarter << 1) + 8 * i as u32;
                let low = c.select((k + 1).lt(self.k_total), *pair, *pair & 0xffff);
                *pair = c.select(k.lt(self.k_total), low, c.i32(0));
            }
        }
        all
    }

    /// Of 16 bytes of codes, those of this thread's pairs, in order.
    fn own_codes(&self, words: [I32<'c>; 4]) -> I32<'c> {
        let c = self.k.builder;
        let [w0, w1, w2, w3] = words;
        let selector = if self.row_bytes == TILE_K {
            // 16 codes: of every two words the two bytes of a pair.
            self.quarter * 0x22 + 0x10
        } else {
            // 32 codes: of every word the byte of a pair.
            self.quarter * 0x11 + 0x40
        };
        let [low, high] = [(w0, w1), (w2, w3)].map(|(a, b)| c.permute_bytes(a, b, selector));
        c.permute_bytes(low, high, c.i32(0x5410))
    }
}
