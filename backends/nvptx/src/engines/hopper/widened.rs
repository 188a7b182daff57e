//! Products of rows of FP8 codes with 4-bit codes, which become FP8 in registers on the way: each is a number of e4m3, and a
//! power of two that its scale takes ([`widened_unit`]).
//!
//! Each group of K that has one scale is a sum of its own, of as many instructions as it has 32 elements. Those of 16 take an
//! instruction each, too, whose other half of the codes is zero. A thread scales the sums of groups by their columns, adds
//! them in f32 over a step, scales that by its row and adds it to the total. An instruction has at most 64 rows, so that the sums
//! of a group, of a step and the totals fit in registers. Where a step is one group, there are two sets of the first by turns:
//! while a thread scales one, the next is multiplied. Else the other warpgroup multiplies meanwhile.

use super::contract::Cta;
use super::fp8::StageScales;
use super::products::{PIECES, Place, Sums};
use crate::builder::{F32, I32, Shared, Var, WgmmaRows};
use crate::parts::Ring;
use crate::parts::decode::{e8m0_byte, scale_value, widen_codes, widened_unit};
use crate::parts::load::scales::ScaleCut;
use moec_ir::engine::ROW_BYTES;
use moec_ir::quant::{Code, ScaleCode};
use moec_ir::tile::{Panel, Segment};

/// Most rows of an instruction.
const MOST_ROWS: u32 = 64;
/// Bytes of the codes of a row in a step.
const CODE_BYTES: u32 = ROW_BYTES / 2;
/// Elements along k of a step.
const TILE_K: usize = ROW_BYTES as usize;

/// Instructions that make a sum: the quarter of a step, and which half of its elements take part where not all do.
type Group = Vec<(u32, Option<usize>)>;

/// Rows of a tile whose products with one panel are made together.
#[derive(Clone, Copy)]
struct Unit {
    panel: usize,
    first: u32,
    rows: u32,
}

/// The sum over a group that is under way.
struct UnderWay<'s, 'c> {
    unit: Unit,
    sums: &'s [Var<'c, F32<'c>>],
    of_columns: [F32<'c>; 2],
    is_first: bool,
    is_last: bool,
}

/// The groups of a step, of `block` elements each; 0 for all.
fn groups(block: u64) -> Vec<Group> {
    match block {
        16 => (0..PIECES).flat_map(|piece| [0, 1].map(|half| vec![(piece, Some(half))])).collect(),
        32 | 64 => {
            let n = block as u32 / 32;
            (0..PIECES / n).map(|i| (0..n).map(|j| (i * n + j, None)).collect()).collect()
        }
        _ => vec![(0..PIECES).map(|piece| (piece, None)).collect()],
    }
}

impl<'c> Cta<'_, 'c, '_> {
    /// The sums over a part of k, for at most `n` rows.
    pub fn widened_products_of(
        &self,
        segment: &Segment,
        (part, n): (I32<'c>, u32),
        place: Place<'c>,
        ring: Ring<'c>,
        totals: &Sums<'c>,
    ) {
        let (c, g) = (self.k.builder, self.g);
        let Some(quant) = &segment.a_quant else { return c.fail("a product of codes has rows that are none") };
        let scales = self.stage_scales(segment, quant);
        let first_stage = c.swizzled_tile(self.stage(c.i32(0)));
        // All of one size: sums of instructions of two do not lie well in the same registers.
        let rows = n / n.div_ceil(MOST_ROWS);
        let registers = || -> Vec<Var<F32>> { (0..rows / 2).map(|_| c.var(c.f32(0.0))).collect() };
        let is_one_group = |panel: &Panel| panel.quant.as_ref().is_some_and(|q| groups(q.format.block_cols).len() == 1);
        let n_sets = if segment.panels.iter().all(is_one_group) { 2 } else { 1 };
        let (sums, of_step) = ((0..n_sets).map(|_| registers()).collect::<Vec<_>>(), registers());
        totals.iter().flat_map(|panel| &panel[..n as usize / 2]).for_each(|total| total.set(c.f32(0.0)));
        let (first, end) = self.parts.steps(self.n_steps(segment), part);
        c.range(first, end, 1, |step| {
            let slot = ring.slot();
            c.wait_for(self.full.at(slot), ring.parity());
            let (stage, tile) = (self.stage(slot), first_stage + slot * (g.stage_bytes() / 16));
            let finish = |pending: u32, done: UnderWay<'_, 'c>| {
                c.finish_products_but(pending, done.sums);
                self.add_group(&done, &of_step, totals, (&scales, stage, step), place);
            };
            let mut under_way: Option<UnderWay> = None;
            let mut sets = sums.iter().cycle();
            for (panel, q) in segment.panels.iter().enumerate() {
                let Some(q) = &q.quant else { return c.fail("a panel is not of codes") };
                let groups = groups(q.format.block_cols);
                let mut codes = self.widened(segment, panel, stage, place);
                let column_scales = self.column_scales(&scales.panels[panel], stage, step, place);
                let times = widened_unit(q.format.code);
                c.fence_products(&mut codes);
                for first in (0..n).step_by(rows as usize) {
                    let unit = Unit { panel, first, rows };
                    for (i, group) in groups.iter().enumerate() {
                        let Some(sums) = sets.next() else { return };
                        if (first, i) != (0, 0) {
                            c.fence_products(&mut []);
                        }
                        for (j, &(piece, half)) in group.iter().enumerate() {
                            let a = WgmmaRows::Registers(self.half_of(codes[piece as usize], half));
                            let b = tile + (g.activations() + first * ROW_BYTES) / 16 + 2 * piece;
                            c.start_wgmma((self.ty, rows), sums, a, b, u32::from(j > 0));
                        }
                        c.commit_products();
                        let of_columns = column_scales.each_ref().map(|of| of(i * TILE_K / groups.len()) * times);
                        let (is_first, is_last) = (i == 0, i + 1 == groups.len());
                        let next = UnderWay { unit, sums, of_columns, is_first, is_last };
                        if n_sets == 1 {
                            finish(0, next);
                        } else if let Some(done) = under_way.replace(next) {
                            finish(1, done);
                        }
                    }
                }
            }
            if let Some(last) = under_way {
                finish(0, last);
            }
            // All lanes have read the codes and their scales.
            c.warp_barrier();
            self.release(slot);
            ring.advance();
        });
    }

    /// This thread's codes of a panel as FP8: for each 32 elements of k, those of both rows for one instruction.
    fn widened(&self, segment: &Segment, panel: usize, stage: Shared<'c>, place: Place<'c>) -> Vec<[I32<'c>; 4]> {
        let c = self.k.builder;
        let code = segment.panels[panel].quant.as_ref().map_or(Code::E2M1, |q| q.format.code);
        // Of 16 bytes of codes, this thread has two of the first eight and the same two of the last.
        let quarter = place.row >> 1;
        let selector = c.select((quarter & 1).eq(0), c.i32(0x5410), c.i32(0x7632));
        let row = stage.at(self.panel(segment, panel)).plus(place.column * CODE_BYTES + ((quarter >> 1) << 2));
        // The pattern that exchanges 16-byte pieces repeats every eight rows.
        let pattern = (place.column >> 1) & 3;
        let of_piece = |piece: u32| {
            let at = row.plus((pattern ^ piece) << 4);
            let [upper, lower] = [0, 8].map(|further| {
                let at = at.at(further * CODE_BYTES);
                let word = c.permute_bytes(c.load_i32(at), c.load_i32(at.at(8)), selector);
                widen_codes(c, code, word)
            });
            [upper[0], lower[0], upper[1], lower[1]]
        };
        (0..PIECES).map(of_piece).collect()
    }

    /// The operands of an instruction, or those of the first or the second half of its elements with zeros for the other.
    fn half_of(&self, [a, b, c, d]: [I32<'c>; 4], half: Option<usize>) -> [I32<'c>; 4] {
        let zero = self.k.builder.i32(0);
        match half {
            None => [a, b, c, d],
            Some(0) => [a, b, zero, zero],
            Some(_) => [zero, zero, c, d],
        }
    }

    /// The scales of this thread's two columns of a panel, by the first element of a step that they cover.
    fn column_scales<'s>(
        &'s self,
        &(cut, at): &'s (ScaleCut, u32),
        stage: Shared<'c>,
        step: I32<'c>,
        place: Place<'c>,
    ) -> [Box<dyn Fn(usize) -> F32<'c> + 's>; 2] {
        let c = self.k.builder;
        [0, 8].map(|further| -> Box<dyn Fn(usize) -> F32<'c> + 's> {
            let (column, stage) = (place.column + further, stage.at(at));
            match (cut.code, cut.block) {
                // Those of a step are a word.
                (ScaleCode::E8M0, 32) => {
                    let word = cut.words(c, stage, column, step, 0)[0];
                    Box::new(move |k| e8m0_byte(c, word, k as u32 / 32))
                }
                _ => Box::new(move |k| {
                    scale_value(c, cut.code, cut.bits(c, stage, column, step, k as u32), self.features.e4m3)
                }),
            }
        })
    }

    /// Adds the sums of a group, times the scales of their columns; after the last of a step all of them, times those of rows.
    fn add_group(
        &self,
        done: &UnderWay<'_, 'c>,
        of_step: &[Var<'c, F32<'c>>],
        totals: &Sums<'c>,
        (scales, stage, step): (&StageScales, Shared<'c>, I32<'c>),
        place: Place<'c>,
    ) {
        let c = self.k.builder;
        let (cut, at) = &scales.rows;
        let unit = done.unit;
        for eight in 0..unit.rows / 8 {
            let row = unit.first + 8 * eight;
            let of_rows = done.is_last.then(|| cut.two_values(c, stage.at(*at), place.row + row, step));
            for i in 0..4usize {
                let here = 4 * eight as usize + i;
                let (sum, factor) = (done.sums[here].get(), done.of_columns[i / 2]);
                let sum = if done.is_first { sum * factor } else { sum.fma(factor, of_step[here].get()) };
                match of_rows {
                    None => of_step[here].set(sum),
                    Some(of_rows) => {
                        let total = &totals[unit.panel][unit.first as usize / 2 + here];
                        total.set(sum.fma(of_rows[i % 2], total.get()));
                    }
                }
            }
        }
    }
}
