//! Products of codes with codes: twelve warps or eight, each with one role.
//!
//! | warp | role | waits for | arrives at |
//! |---|---|---|---|
//! | 0 | starts copies of weight codes | empty stages | full stages |
//! | 1 | starts copies of activation codes | empty stages | full stages |
//! | 2 | starts copies of scales and products | full stages, empty sums | empty stages, full sums |
//! | 3 | finds tiles | free places on the board | the board |
//! | 4-7 | epilogue | full sums | empty sums |
//! | 8-11 | bring block scales | empty stages | full stages |
//!
//! A tile is made by one block, or by a pair of a cluster ([`Member`]): each has these warps and brings the scales of its own
//! columns and of all rows, but block 0 starts the copies of scales and the products of both.
//!
//! Block scales go through shared memory to tensor memory and are applied by the products. f32 scales are applied by the
//! epilogue: the sums of each 128 elements of k are a set of their own, which it scales and adds in registers. It loads
//! them itself: with eight warps a thread has the registers that its sums take.

mod geometry;
mod results;
mod scales;

use super::rows::{Rows, Step};
use crate::builder::{BARRIER_BYTES, Bool, CtaGroup, F32, I32, LOAD_COLUMNS, ScaledKind, Shared, Var};
use crate::kernels::{Design, Kernel, Registers};
use crate::parts::decode::block_of;
use crate::parts::k_parts::{End, Parts};
use crate::parts::{
    Barriers, Board, Member, Reader, Ring, SWIZZLE_BYTES, SegmentMaps, Tile, coded_maps, extent, publish_tiles,
};
use geometry::{ScaledGeometry, Way};
use moec_ir::quant::Code;
use moec_ir::tile::{BufferId, Contract, Program, RowMap, Schedule, Segment};
use results::Results;
use scales::ScaleRow;

const WEIGHTS: u32 = 0;
const ACTIVATIONS: u32 = 1;
const PRODUCTS: u32 = 2;
const TILES: u32 = 3;
/// The first of four; its number is a multiple of four, because a warp reaches the tensor-memory lanes of its rank.
const EPILOGUE: u32 = 4;
const SCALES: u32 = 8;
/// Why a kernel cannot be built.
const NO_CODES: &str = "a product of codes has rows or weights that are none";

/// Warps that bring scales, and that make the epilogue.
const TEAM: u32 = 4;
/// Roles that read the board beside the epilogue and the scales.
const READERS: u32 = 3;

/// A contraction of codes with codes for the tensor cores of sm_100.
///
/// # Errors
/// What is wrong with the program.
pub fn scaled<'p>(
    program: &'p Program,
    contract: &'p Contract,
    operands: &[(BufferId, bool)],
    schedule: &Schedule,
    smem_limit: u32,
) -> Result<Design<'p>, String> {
    let g = ScaledGeometry::cut(program, contract, schedule, smem_limit);
    let sizes = (ScaledGeometry::TILE_N / g.ctas.groups(), g.box_rows);
    let (tensor_maps, segment_maps) = coded_maps(program, contract, operands, sizes, |code| g.spreads(code))?;
    let tiles = extent(program, contract, g.cluster_rows(), g.tile_n());
    let launch = g.order.launch(tiles, g.warps() * 32, g.smem_bytes(), tensor_maps);
    let body = move |k: &Kernel| build(k, program, contract, &g, &segment_maps);
    Ok(Design { launch, registers: Registers::Plenty, body: Box::new(body) })
}

fn build(k: &Kernel, program: &Program, contract: &Contract, g: &ScaledGeometry, maps: &[SegmentMaps]) {
    let c = k.builder;
    let at = |offset: u32| c.shared().at(offset);
    let pair = |offset: u32, n: u32| [offset, offset + n * BARRIER_BYTES].map(|o| Barriers::new(at(o), n));
    let [full, empty] = pair(ScaledGeometry::STAGE_BARRIERS, g.stages);
    let [sums_full, sums_empty] = pair(ScaledGeometry::SUMS_BARRIERS, ScaledGeometry::SETS);
    let (member, board) = (Member::new(c, g.ctas), Board::new(c, c.shared(), g.order));
    let sync = || if g.k.split { c.cluster_barrier() } else { member.barrier() };
    let (warp, elected) = (c.warp(), c.elect());
    c.when(warp.eq(WEIGHTS).and(elected), || {
        let scales = if g.way == Way::Steps { 0 } else { TEAM };
        full.init(c, 2 + scales * g.ctas.count());
        empty.init(c, g.ctas.groups());
        sums_full.init(c, 1);
        sums_empty.init(c, TEAM * g.ctas.count());
        Parts::init(c, g.k, ScaledGeometry::PART_BARRIERS, TEAM);
        board.init(READERS + TEAM + scales);
        c.publish_barriers();
    });
    c.when(warp.eq(ACTIVATIONS).and(elected), || {
        maps.iter().flat_map(|m| m.weights.iter().chain([&m.activations])).for_each(|&map| c.prefetch_map(map));
    });
    let tensor_address = at(ScaledGeometry::TENSOR_ADDRESS);
    c.when(warp.eq(PRODUCTS), || c.allocate_tensor(g.ctas, tensor_address, g.tensor_columns()));
    c.warp_barrier();
    c.before_sync();
    sync();
    c.after_sync();
    let tensor = c.load_i32(tensor_address);
    // Up to here nothing depends on the kernels before.
    c.wait_for_predecessor();
    let block = Block {
        k,
        program,
        contract,
        g,
        maps,
        member,
        elected,
        warp,
        full,
        empty,
        sums_full,
        sums_empty,
        board,
        tensor,
    };
    c.when(warp.eq(WEIGHTS), || block.copy_weights());
    c.when(warp.eq(ACTIVATIONS), || block.copy_activations());
    c.when(warp.eq(PRODUCTS), || match g.way {
        Way::Blocks(kind) => block.multiply_blocks(kind),
        Way::Steps => block.multiply_steps(),
    });
    c.when(warp.eq(TILES), || {
        publish_tiles(k, program, contract, &block.board, elected, (g.cluster_rows(), g.tile_n()));
    });
    match g.way {
        Way::Blocks(_) => {
            c.when(warp.ge(EPILOGUE).and(warp.lt(SCALES)), || block.store_blocks());
            c.when(warp.ge(SCALES), || block.bring_block_scales());
        }
        Way::Steps => c.when(warp.ge(EPILOGUE), || block.store_steps()),
    }
    c.warp_barrier();
    c.before_sync();
    sync();
    c.after_sync();
    c.when(warp.eq(PRODUCTS), || c.free_tensor(g.ctas, tensor, g.tensor_columns()));
}

/// A block and what its roles share.
struct Block<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    program: &'k Program,
    contract: &'k Contract,
    g: &'k ScaledGeometry,
    maps: &'k [SegmentMaps],
    member: Member<'c>,
    elected: Bool<'c>,
    warp: I32<'c>,
    full: Barriers<'c>,
    empty: Barriers<'c>,
    sums_full: Barriers<'c>,
    sums_empty: Barriers<'c>,
    board: Board<'c>,
    /// Address of the block's tensor memory.
    tensor: I32<'c>,
}

impl<'c> Block<'_, 'c, '_> {
    /// Does `body` for every tile, with this block's columns of it.
    fn each_tile(&self, reader: &Reader<'c>, body: impl FnOnce(&Tile<'c>)) {
        self.board.each_tile(reader, |tile| body(&self.member.tile(tile, ScaledGeometry::TILE_N)));
    }

    /// Builds `body` for each segment and runs it for the tile's.
    fn each_segment<'s>(&'s self, tile: &Tile<'c>, body: impl FnMut(usize, &'s Segment)) {
        tile.each_segment(self.k.builder, &self.contract.segments, body);
    }

    fn n_steps(&self, segment: &Segment) -> u32 {
        (segment.k(self.program) as u32).div_ceil(self.g.tile_k())
    }

    /// The steps of this block: first, and behind the last.
    fn steps(&self, segment: &Segment) -> (I32<'c>, I32<'c>) {
        self.g.k.all_steps(self.k.builder, self.n_steps(segment))
    }

    fn stage(&self, slot: I32<'c>) -> Shared<'c> {
        self.k.builder.shared().at(self.g.first_stage()).plus(slot * self.g.stage_bytes())
    }

    /// Columns that a step takes of a tensor map.
    fn map_columns(&self, code: Code) -> u32 {
        // Maps of spread codes count codes, the others bytes.
        if self.g.spreads(code) { self.g.tile_k() } else { code.bytes(self.g.tile_k().into()) as u32 }
    }

    /// Bytes of a row in a step that a barrier counts: what spread codes leave free does not count.
    fn counted_bytes(&self, code: Code) -> u32 {
        if self.g.spreads(code) { SWIZZLE_BYTES / 2 } else { SWIZZLE_BYTES }
    }

    fn copy_weights(&self) {
        let c = self.k.builder;
        c.when(self.elected, || {
            let ring = Ring::new(c, self.g.stages);
            self.each_tile(&Reader::Thread, |tile| {
                self.each_segment(tile, |i, segment| {
                    let (first_step, end) = self.steps(segment);
                    c.range(first_step, end, 1, |step| {
                        let (full, stage) = (self.full.at(ring.slot()), self.stage(ring.slot()));
                        c.wait_for(self.empty.at(ring.slot()), ring.parity_before());
                        let rows = segment.panels.iter().filter_map(|p| p.quant.as_ref());
                        let row_bytes: u32 = rows.map(|q| self.counted_bytes(q.format.code)).sum();
                        self.member.arrive_expecting(full, c.i32(row_bytes * ScaledGeometry::TILE_N));
                        for (p, (&map, panel)) in self.maps[i].weights.iter().zip(&segment.panels).enumerate() {
                            let wide = panel.quant.as_ref().map_or(0, |q| self.map_columns(q.format.code));
                            let to = stage.at(p as u32 * ScaledGeometry::PANEL_BYTES);
                            let at = [step * wide, tile.col, tile.expert];
                            self.member.copy_weights(to, full, map, at, (ScaledGeometry::TILE_N, SWIZZLE_BYTES));
                        }
                        ring.advance();
                    });
                });
            });
        });
    }

    fn copy_activations(&self) {
        let (c, g) = (self.k.builder, self.g);
        let ring = Ring::new(c, g.stages);
        let rows = Rows {
            k: self.k,
            member: self.member,
            elected: self.elected,
            ring,
            full: self.full,
            empty: self.empty,
            ids: c.shared().at(ScaledGeometry::ROW_IDS),
            box_rows: g.box_rows,
        };
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            let part = self.member.part(tile);
            self.each_segment(tile, |i, segment| {
                let Some(code) = segment.a_quant.as_ref().map(|q| q.q.code) else { return c.fail(NO_CODES) };
                let (wide, row_bytes) = (self.map_columns(code), self.counted_bytes(code));
                let step = Step { map: self.maps[i].activations, wide, row_bytes, more: 0 };
                let activations = |slot| self.stage(slot).at(g.activations());
                rows.bring((tile, part), segment.a_rows, &step, || self.steps(segment), activations);
            });
        });
        if g.ctas != CtaGroup::One {
            // Block 0 tells of empty stages until its last product is done: by then this block must not have gone.
            c.when(self.elected, || ring.drain(self.empty));
        }
    }

    /// The types of codes of weights and activations in an instruction.
    fn code_types(&self, segment: &Segment, kind: Option<ScaledKind>) -> (u32, u32) {
        let packed = matches!(kind, Some(ScaledKind::Mxf4 | ScaledKind::Mxf4Nvf4));
        let ty = |code: Code| match code {
            Code::E2M1 if packed => 1,
            Code::E2M1 => 5,
            Code::E5M2 => 1,
            Code::E4M3 | Code::Int4 => 0,
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

    /// Products of a pair's other block are started by block 0. This one reads the board, so that its places become free.
    fn pass_over_tiles(&self) {
        if self.g.ctas != CtaGroup::One {
            let passes = self.elected.and(self.member.leads().not());
            self.k.builder.when(passes, || self.each_tile(&Reader::Thread, |_| {}));
        }
    }

    fn multiply_blocks(&self, kind: ScaledKind) {
        let c = self.k.builder;
        let g = self.g;
        self.pass_over_tiles();
        c.when(self.elected.and(self.member.leads()), || {
            let (ring, sets) = (Ring::new(c, g.stages), Ring::new(c, ScaledGeometry::SETS));
            let scale_sets = Ring::new(c, ScaledGeometry::SCALE_SETS);
            // The step whose scales lie where those of this one go: its products must be done.
            let (behind, done) = (Ring::new(c, g.stages), c.var(c.i32(0)));
            let first = c.swizzled_tile(c.shared().at(g.first_stage()));
            self.each_tile(&Reader::Thread, |tile| {
                g.k.each(c, |part| {
                    let sums = self.tensor + sets.slot() * g.set_columns();
                    self.member.wait_for(self.sums_empty.at(sets.slot()), sets.parity_before());
                    c.after_sync();
                    self.each_segment(tile, |_, segment| {
                        let (a, b) = self.code_types(segment, Some(kind));
                        let e8m0 = kind != ScaledKind::Mxf4Nvf4;
                        let instruction = c.scaled_instruction(g.ctas, (a, b), e8m0, tile.whole);
                        let (first_step, end) = g.k.steps(self.n_steps(segment), part);
                        c.range(first_step, end, 1, |step| {
                            self.member.wait_for(self.full.at(ring.slot()), ring.parity());
                            c.after_sync();
                            c.when(done.get().ge(ScaledGeometry::SCALE_SETS), || {
                                c.wait_for(self.empty.at(behind.slot()), behind.parity());
                                behind.advance();
                            });
                            done.set((done.get() + 1).min(ScaledGeometry::SCALE_SETS));
                            let scales = self.tensor + g.first_scale_column() + scale_sets.slot() * g.scale_columns();
                            self.start_scale_copies(scales, self.stage(ring.slot()));
                            let stage = first + ring.slot() * (g.stage_bytes() / 16);
                            let activations = stage + g.activations() / 16;
                            // 32 bytes at a time.
                            let blocks = g.atoms();
                            for piece in 0..4 {
                                let adds = if piece == 0 { step.ne(first_step) } else { c.bool(true) };
                                let (atom, id) = (piece * blocks / 4, piece * blocks % 4);
                                let instruction = instruction | (id << 29 | id << 4);
                                let groups = g.row_groups();
                                let of_rows = scales + (g.panels * g.atoms() + atom * groups) * 4;
                                for p in 0..segment.panels.len() as u32 {
                                    let panel = stage + (p * ScaledGeometry::PANEL_BYTES / 16 + 2 * piece);
                                    let rows = activations + 2 * piece;
                                    let of_panel = scales + (p * g.atoms() + atom) * 4;
                                    let to = sums + p * g.tile_m;
                                    c.start_scaled_mma(
                                        (g.ctas, kind),
                                        to,
                                        (panel, rows),
                                        (of_panel, of_rows),
                                        instruction,
                                        adds,
                                    );
                                }
                            }
                            c.arrive_everywhere_after_mma(g.ctas, self.empty.at(ring.slot()));
                            ring.advance();
                            scale_sets.advance();
                        });
                    });
                    c.arrive_after_mma(g.ctas, self.sums_full.at(sets.slot()));
                    sets.advance();
                })
            });
        });
    }

    /// Copies the scales of a stage to tensor memory: atoms of the panels, one after another, then those of the activations,
    /// for each atom its groups of rows.
    fn start_scale_copies(&self, to: I32<'c>, stage: Shared<'c>) {
        let c = self.k.builder;
        let g = self.g;
        for i in 0..(g.panels + g.row_groups()) * g.atoms() {
            c.copy_scales(g.ctas, to + 4 * i, stage.at(g.scales() + i * ScaledGeometry::ATOM_BYTES));
        }
    }

    /// The products of each step are sums of their own.
    fn multiply_steps(&self) {
        let c = self.k.builder;
        let g = self.g;
        self.pass_over_tiles();
        c.when(self.elected.and(self.member.leads()), || {
            let (ring, sets) = (Ring::new(c, g.stages), Ring::new(c, ScaledGeometry::SETS));
            let first = c.swizzled_tile(c.shared().at(g.first_stage()));
            self.each_tile(&Reader::Thread, |tile| {
                self.each_segment(tile, |_, segment| {
                    let (a, b) = self.code_types(segment, None);
                    // Sums in f32.
                    let instruction = c.scaled_instruction(g.ctas, (a, b), false, tile.whole) | 1 << 4;
                    let (first_step, end) = self.steps(segment);
                    c.range(first_step, end, 1, |_| {
                        let sums = self.tensor + sets.slot() * g.set_columns();
                        self.member.wait_for(self.sums_empty.at(sets.slot()), sets.parity_before());
                        c.wait_for(self.full.at(ring.slot()), ring.parity());
                        c.after_sync();
                        let stage = first + ring.slot() * (g.stage_bytes() / 16);
                        let activations = stage + g.activations() / 16;
                        for piece in 0..4 {
                            for p in 0..segment.panels.len() as u32 {
                                let panel = stage + (p * ScaledGeometry::PANEL_BYTES / 16 + 2 * piece);
                                let (to, rows) = (sums + p * g.tile_m, activations + 2 * piece);
                                c.start_fp8_mma(g.ctas, to, (panel, rows), instruction, c.bool(piece > 0));
                            }
                        }
                        c.arrive_everywhere_after_mma(g.ctas, self.empty.at(ring.slot()));
                        c.arrive_after_mma(g.ctas, self.sums_full.at(sets.slot()));
                        ring.advance();
                        sets.advance();
                    });
                });
            });
        });
    }

    /// The rows of the grids of scales for row `row` of a tile: of each panel, and of the activations `row`, `row + 128`, ….
    /// `unit` elements of k are a block of the product.
    fn scale_rows(&self, segment: &Segment, tile: &Tile<'c>, row: I32<'c>) -> (Vec<ScaleRow<'c>>, Vec<ScaleRow<'c>>) {
        let c = self.k.builder;
        let (n, k, unit) = (segment.n(self.program), segment.k(self.program), self.g.block());
        let panel = |p: &moec_ir::tile::Panel| {
            let q = p.quant.as_ref()?;
            let (grid_rows, grid_cols) = q.format.scale_grid(n, k);
            // Columns past the end, which are not stored, take the scales of the last.
            let block = block_of(c, (tile.col + row).min(n as u32 - 1), q.format.block_rows);
            let at = (tile.expert * grid_rows as u32 + block, c.bool(true));
            Some(ScaleRow::new(self.k, q.scales, at, q.format.scale, grid_cols, (q.format.block_cols, unit)))
        };
        let panels = segment.panels.iter().filter_map(panel).collect();
        let Some(q) = &segment.a_quant else { return (panels, Vec::new()) };
        let format = q.format();
        let of_group = |group: u32| {
            let row = row + group * 128;
            let exists = row.lt(tile.rows);
            let source = self.source_row(segment, tile, c.select(exists, row, c.i32(0)));
            ScaleRow::new(self.k, q.scales, (source, exists), format.scale, q.n_blocks(), (format.block_cols, unit))
        };
        (panels, (0..self.g.row_groups()).map(of_group).collect())
    }

    /// The row of the activations of row `row` of a tile.
    fn source_row(&self, segment: &Segment, tile: &Tile<'c>, row: I32<'c>) -> I32<'c> {
        match segment.a_rows {
            RowMap::Same => tile.row + row,
            RowMap::Gather(map) => self.k.builder.load_i32(self.k.view(map).nth(tile.row + row)),
        }
    }

    fn bring_block_scales(&self) {
        let c = self.k.builder;
        let g = self.g;
        let ring = Ring::new(c, g.stages);
        let thread = ((self.warp & 3) << 5) + c.lane();
        // Word `t` of an atom belongs to this row.
        let row = ((thread & 3) << 5) + (thread >> 2);
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            self.each_segment(tile, |_, segment| {
                let (panels, rows) = self.scale_rows(segment, tile, row);
                let words = |step: I32<'c>| -> Vec<I32<'c>> {
                    let word = |r: &ScaleRow<'c>, atom: u32| r.word((step * g.atoms() + atom) << 2);
                    let of_panels = panels.iter().flat_map(|r| (0..g.atoms()).map(|atom| word(r, atom)));
                    let of_rows = (0..g.atoms()).flat_map(|atom| rows.iter().map(move |r| word(r, atom)));
                    of_panels.chain(of_rows).collect()
                };
                // Those of the next step are loaded while this one waits.
                let (first_step, end) = self.steps(segment);
                let next: Vec<Var<I32>> = words(first_step).into_iter().map(|w| c.var(w)).collect();
                c.range(first_step, end, 1, |step| {
                    let now: Vec<I32> = next.iter().map(|w| w.get()).collect();
                    next.iter().zip(words(step + 1)).for_each(|(to, w)| to.set(w));
                    c.wait_for(self.empty.at(ring.slot()), ring.parity_before());
                    let scales = self.stage(ring.slot()).at(g.scales()).plus(thread << 2);
                    for (i, word) in (0u32..).zip(&now) {
                        // A segment may have fewer panels than another.
                        let missing = (g.panels - panels.len() as u32) * g.atoms();
                        let i = if i < panels.len() as u32 * g.atoms() { i } else { i + missing };
                        c.store_i32(scales.at(i * ScaledGeometry::ATOM_BYTES), *word);
                    }
                    c.publish_shared();
                    c.warp_barrier();
                    c.when(self.elected, || self.member.arrive(self.full.at(ring.slot())));
                    ring.advance();
                });
            });
        });
    }

    /// The place of the factors of the rows of a set.
    fn factors(&self, slot: I32<'c>) -> Shared<'c> {
        self.k.builder.shared().at(ScaledGeometry::first_factors()).plus(slot * self.g.factor_bytes())
    }

    /// The thread's column of sums of other parts of k.
    fn parts(&self, column: I32<'c>) -> Parts<'c> {
        let g = self.g;
        let offsets = (ScaledGeometry::PART_BARRIERS, g.first_sums());
        Parts::new(self.k.builder, g.k, column, (g.panels, g.tile_m), offsets)
    }

    fn store_blocks(&self) {
        let c = self.k.builder;
        let g = self.g;
        let sets = Ring::new(c, ScaledGeometry::SETS);
        // The lanes of tensor memory that this warp reaches, and with them its output columns.
        let lanes = (self.warp & 3) << 5;
        let column = lanes + c.lane();
        let parts = self.parts(column);
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            parts.tile(self.elected, |_, end| {
                let from = self.tensor + (lanes << 16) + sets.slot() * g.set_columns();
                self.each_segment(tile, |_, segment| {
                    let results = Results::new(self.k, self.program, segment, tile, column);
                    c.wait_for(self.sums_full.at(sets.slot()), sets.parity());
                    c.after_sync();
                    c.range(0, tile.rows, LOAD_COLUMNS, |row| {
                        c.warp_barrier();
                        let panels = 0..segment.panels.len() as u32;
                        let mut sums: Vec<_> = panels.map(|p| c.load_tensor(from + row + p * g.tile_m)).collect();
                        c.wait_tensor();
                        if parts.add(end, row, tile.rows - row, &mut sums) {
                            let source = |i: u32| self.source_row(segment, tile, (row + i).min(tile.rows - 1));
                            results.store(tile.row + row, tile.rows - row, &sums, source);
                        }
                    });
                });
                c.before_sync();
                c.warp_barrier();
                c.when(self.elected, || self.member.arrive(self.sums_empty.at(sets.slot())));
                sets.advance();
            });
        });
    }

    fn store_steps(&self) {
        let c = self.k.builder;
        // The lanes of tensor memory that this warp reaches, and with them its output columns.
        let lanes = (self.warp & 3) << 5;
        let sets = Ring::new(c, ScaledGeometry::SETS);
        let parts = self.parts(lanes + c.lane());
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            parts.tile(self.elected, |part, end| {
                self.each_segment(tile, |_, segment| self.add_steps(segment, tile, sets, lanes, &parts, (part, end)));
            });
        });
    }

    /// Scales and adds the sums of the steps of a part, in registers.
    fn add_steps(
        &self,
        segment: &Segment,
        tile: &Tile<'c>,
        sets: Ring<'c>,
        lanes: I32<'c>,
        parts: &Parts<'c>,
        (part, end): (I32<'c>, End<'c>),
    ) {
        let c = self.k.builder;
        let g = self.g;
        let (from, column) = (self.tensor + (lanes << 16), lanes + c.lane());
        let panels = segment.panels.len();
        let results = Results::new(self.k, self.program, segment, tile, column);
        let groups = g.tile_m / LOAD_COLUMNS;
        let zero = || (0..LOAD_COLUMNS).map(|_| c.var(c.f32(0.0))).collect::<Vec<Var<F32>>>();
        // For each sixteen rows and each panel.
        let totals: Vec<Vec<Vec<Var<F32>>>> = (0..groups).map(|_| (0..panels).map(|_| zero()).collect()).collect();
        // Scales of this thread's column of each panel, and of the row of its number; loaded a step ahead.
        let (of_panels, of_tokens) = self.scale_rows(segment, tile, column);
        let values =
            |step: I32<'c>| -> Vec<F32<'c>> { of_panels.iter().chain(&of_tokens).map(|r| r.value(step)).collect() };
        let (first_step, behind) = g.k.steps(self.n_steps(segment), part);
        let next: Vec<Var<F32>> = values(first_step).into_iter().map(|x| c.var(x)).collect();
        c.range(first_step, behind, 1, |step| {
            let now: Vec<F32> = next.iter().map(|x| x.get()).collect();
            next.iter().zip(values(step + 1)).for_each(|(to, x)| to.set(x));
            let (sums, factors) = (from + sets.slot() * g.set_columns(), self.factors(sets.slot()));
            let (of_columns, of_row) = now.split_at(panels);
            for &x in of_row {
                c.when(column.lt(g.tile_m), || c.store_f32(factors.plus(column << 2), x));
            }
            // The place is written again two steps on: by then all have met once more.
            c.barrier_of(results::EPILOGUE_BARRIER, TEAM * 32);
            c.wait_for(self.sums_full.at(sets.slot()), sets.parity());
            c.after_sync();
            for (group, totals) in (0u32..).zip(&totals) {
                let first = group * LOAD_COLUMNS;
                c.when(tile.rows.gt(first), || {
                    c.warp_barrier();
                    let new: Vec<Vec<F32>> =
                        (0..panels as u32).map(|p| c.load_tensor(sums + (first + p * g.tile_m))).collect();
                    c.wait_tensor();
                    let place = factors.at(first * 4);
                    let of_rows = (0..LOAD_COLUMNS / 4).flat_map(|i| c.load_words(place.at(16 * i)));
                    for (i, of_row) in of_rows.map(I32::as_f32).enumerate() {
                        for ((total, new), of_column) in totals.iter().zip(&new).zip(of_columns) {
                            total[i].set(new[i].fma(of_row * *of_column, total[i].get()));
                        }
                    }
                });
            }
            c.before_sync();
            c.warp_barrier();
            c.when(self.elected, || self.member.arrive(self.sums_empty.at(sets.slot())));
            sets.advance();
        });
        for (group, totals) in (0u32..).zip(&totals) {
            let first = group * LOAD_COLUMNS;
            c.when(tile.rows.gt(first), || {
                let mut sums: Vec<Vec<F32>> = totals.iter().map(|t| t.iter().map(|x| x.get()).collect()).collect();
                if parts.add(end, c.i32(first), tile.rows - first, &mut sums) {
                    let source = |i: u32| self.source_row(segment, tile, (c.i32(first) + i).min(tile.rows - 1));
                    results.store(tile.row + first, tile.rows - first, &sums, source);
                }
            });
        }
    }
}
