//! The thread that starts products. Of a pair, that of CTA 0 starts those of both.

use super::contract::{Cta, NO_CODES};
use crate::builder::{Bool, Builder, CtaGroup, I32, Shared};
use crate::parts::{Reader, Ring, Tile};
use moec_ir::DType;
use moec_ir::engine::ROW_BYTES;
use moec_ir::engine::blackwell::{ATOM_BYTES, BlockScaled, Operands, PANEL_BYTES, SCALE_SETS, SETS};
use moec_ir::quant::Code;
use moec_ir::tile::Segment;

/// Products of a step, each of 32 bytes of k.
const PIECES: u32 = ROW_BYTES / 32;

/// A step whose products are started.
struct Step<'c> {
    /// The columns of tensor memory of its sums.
    sums: I32<'c>,
    slot: I32<'c>,
    /// Its number, and that of the first.
    number: I32<'c>,
    first: I32<'c>,
}

impl<'c> Step<'c> {
    /// Whether a product adds to what is there: the first of the first step does not.
    fn adds(&self, c: &'c Builder<'c>, piece: u32) -> Bool<'c> {
        if piece == 0 { self.number.ne(self.first) } else { c.bool(true) }
    }
}

impl<'c> Cta<'_, 'c, '_> {
    pub fn multiply(&self) {
        let c = self.k.builder;
        if self.ctas != CtaGroup::One {
            // The other CTA's products are started by CTA 0. This one reads the board, so that its places become free.
            c.when(self.elected.and(self.member.leads().not()), || self.each_tile(&Reader::Thread, |_| {}));
        }
        c.when(self.elected.and(self.member.leads()), || match self.g.operands {
            Operands::Halves => self.multiply_halves(),
            Operands::Blocks(kind) => self.multiply_blocks(kind),
            Operands::Fp8 => self.multiply_steps(),
        });
    }

    /// Where the operands of the first panel and the activations of a stage are, for the tensor cores.
    fn operands(&self, first: I32<'c>, slot: I32<'c>) -> (I32<'c>, I32<'c>) {
        let stage = first + slot * (self.g.stage_bytes() / 16);
        (stage, stage + self.g.activations() / 16)
    }

    /// Makes the sums of each part of k, which stay in tensor memory over all its steps. `start` starts the products of a
    /// step, with the instruction that `instruction` gives for a tile and its segment; `waits` waits for its operands. Of
    /// `rings`, which go on by a slot with every step, the first is that of the stages.
    fn multiply_parts<I: Fn(&Segment) -> I32<'c>>(
        &self,
        (rings, sets): (&[Ring<'c>], Ring<'c>),
        instruction: impl Fn(&Tile<'c>) -> I,
        waits: impl Fn(Shared<'c>, I32<'c>),
        start: impl Fn(&Segment, I32<'c>, &Step<'c>),
    ) {
        let c = self.k.builder;
        self.each_tile(&Reader::Thread, |tile| {
            let instruction = instruction(tile);
            self.parts.each(c, |part| {
                let sums = self.tensor + sets.slot() * self.g.set_columns();
                self.member.wait_for(self.sums_empty.at(sets.slot()), sets.parity_before());
                c.after_sync();
                self.each_segment(tile, |_, segment| {
                    let instruction = instruction(segment);
                    let (first, end) = self.parts.steps(self.n_steps(segment), part);
                    c.range(first, end, 1, |number| {
                        let ring = rings[0];
                        waits(self.full.at(ring.slot()), ring.parity());
                        c.after_sync();
                        start(segment, instruction, &Step { sums, slot: ring.slot(), number, first });
                        c.arrive_everywhere_after_mma(self.ctas, self.empty.at(ring.slot()));
                        rings.iter().for_each(|r| r.advance());
                    });
                });
                c.arrive_after_mma(self.ctas, self.sums_full.at(sets.slot()));
                sets.advance();
            });
        });
    }

    fn multiply_halves(&self) {
        let (c, g) = (self.k.builder, self.g);
        let (ring, sets) = (self.ring(), Ring::new(c, SETS));
        let first = c.swizzled_tile(c.shared().at(g.first_stage()));
        // All segments of a launch have one type.
        let is_f16 = self.contract.segments.iter().all(|s| self.program.buffer(s.a).dtype == DType::F16);
        let instruction = |tile: &Tile<'c>| {
            let instruction = c.mma_instruction(self.ctas, if is_f16 { 0 } else { 1 }, tile.whole);
            move |_: &Segment| instruction
        };
        let waits = |full, parity| {
            if g.decodes() {
                self.member.wait_for(full, parity);
            } else {
                // Nobody but copies writes what products read.
                c.wait_for(full, parity);
            }
        };
        self.multiply_parts((&[ring], sets), instruction, waits, |segment, instruction, step| {
            let (weights, rows) = self.operands(first, step.slot);
            for piece in 0..PIECES {
                let adds = step.adds(c, piece);
                for p in 0..segment.panels.len() as u32 {
                    let panel = weights + (p * PANEL_BYTES / 16 + 2 * piece);
                    let to = step.sums + p * g.tile_m;
                    c.start_mma(self.ctas, to, (panel, rows + 2 * piece), instruction, adds);
                }
            }
        });
    }

    /// The types of codes of weights and activations in an instruction.
    fn code_types(&self, segment: &Segment) -> (u32, u32) {
        let packed = matches!(self.g.operands, Operands::Blocks(BlockScaled::Mxf4 | BlockScaled::Mxf4Nvf4));
        let ty = |code: Code| match code {
            Code::E2M1 if packed => 1,
            Code::E2M1 => 5,
            Code::E5M2 => 1,
            Code::E4M3 | Code::Int4 | Code::Int16 => 0,
        };
        let weights = segment.panels.first().and_then(|p| p.quant.as_ref());
        match (weights, &segment.a_quant) {
            (Some(weights), Some(rows)) => (ty(weights.format.code), ty(rows.q.code)),
            _ => {
                self.k.builder.fail(NO_CODES);
                (0, 0)
            }
        }
    }

    fn multiply_blocks(&self, kind: BlockScaled) {
        let (c, g) = (self.k.builder, self.g);
        let (ring, sets) = (self.ring(), Ring::new(c, SETS));
        let scale_sets = Ring::new(c, SCALE_SETS);
        // The step whose scales lie where those of this one go: its products must be done.
        let (behind, done) = (self.ring(), c.var(c.i32(0)));
        let first = c.swizzled_tile(c.shared().at(g.first_stage()));
        let instruction = |tile: &Tile<'c>| {
            let (e8m0, whole) = (kind != BlockScaled::Mxf4Nvf4, tile.whole);
            move |segment: &Segment| c.scaled_instruction(self.ctas, self.code_types(segment), e8m0, whole)
        };
        let waits = |full, parity| self.member.wait_for(full, parity);
        self.multiply_parts((&[ring, scale_sets], sets), instruction, waits, |segment, instruction, step| {
            c.when(done.get().ge(SCALE_SETS), || {
                c.wait_for(self.empty.at(behind.slot()), behind.parity());
                behind.advance();
            });
            done.set((done.get() + 1).min(SCALE_SETS));
            let scales = self.tensor + g.first_scale_column() + scale_sets.slot() * g.scale_columns();
            self.start_scale_copies(segment, scales, self.stage(step.slot));
            let (weights, rows) = self.operands(first, step.slot);
            // Groups of four scales: of panel `p`, and of the rows behind all panels.
            let atoms = g.atoms();
            for piece in 0..PIECES {
                let adds = step.adds(c, piece);
                let (atom, id) = (piece * atoms / 4, piece * atoms % 4);
                let instruction = instruction | (id << 29 | id << 4);
                let of_rows = scales + (g.panels * atoms + atom * g.row_groups()) * 4;
                for p in 0..segment.panels.len() as u32 {
                    let panel = weights + (p * PANEL_BYTES / 16 + 2 * piece);
                    let of_panel = scales + (p * atoms + atom) * 4;
                    let (to, rows) = (step.sums + p * g.tile_m, rows + 2 * piece);
                    c.start_scaled_mma((self.ctas, kind), to, (panel, rows), (of_panel, of_rows), instruction, adds);
                }
            }
        });
    }

    /// Copies the scales of a stage to tensor memory: atoms of the panels, one after another, then those of the activations,
    /// for each atom its groups of rows.
    fn start_scale_copies(&self, segment: &Segment, to: I32<'c>, stage: Shared<'c>) {
        let (c, g) = (self.k.builder, self.g);
        // A segment may have fewer panels than another: nobody writes scales of the others.
        let missing = segment.panels.len() as u32 * g.atoms()..g.panels * g.atoms();
        for i in (0..(g.panels + g.row_groups()) * g.atoms()).filter(|i| !missing.contains(i)) {
            c.copy_scales(self.ctas, to + 4 * i, stage.at(g.scales() + i * ATOM_BYTES));
        }
    }

    /// The products of each step are sums of their own.
    fn multiply_steps(&self) {
        let (c, g) = (self.k.builder, self.g);
        let (ring, sets) = (self.ring(), Ring::new(c, SETS));
        let first = c.swizzled_tile(c.shared().at(g.first_stage()));
        self.each_tile(&Reader::Thread, |tile| {
            self.each_segment(tile, |_, segment| {
                // Sums in f32.
                let instruction = c.scaled_instruction(self.ctas, self.code_types(segment), false, tile.whole) | 1 << 4;
                let (first_step, end) = self.steps(segment);
                c.range(first_step, end, 1, |_| {
                    let sums = self.tensor + sets.slot() * g.set_columns();
                    self.member.wait_for(self.sums_empty.at(sets.slot()), sets.parity_before());
                    c.wait_for(self.full.at(ring.slot()), ring.parity());
                    c.after_sync();
                    let (weights, rows) = self.operands(first, ring.slot());
                    for piece in 0..PIECES {
                        for p in 0..segment.panels.len() as u32 {
                            let panel = weights + (p * PANEL_BYTES / 16 + 2 * piece);
                            let (to, rows) = (sums + p * g.tile_m, rows + 2 * piece);
                            c.start_fp8_mma(self.ctas, to, (panel, rows), instruction, c.bool(piece > 0));
                        }
                    }
                    c.arrive_everywhere_after_mma(self.ctas, self.empty.at(ring.slot()));
                    c.arrive_after_mma(self.ctas, self.sums_full.at(sets.slot()));
                    ring.advance();
                    sets.advance();
                });
            });
        });
    }
}
