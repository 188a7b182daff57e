//! The kernel: eight warps, each with one role, and eight more where weights are codes.
//!
//! | warp | role | waits for | arrives at |
//! |---|---|---|---|
//! | 0 | starts copies of weights | empty stages | full stages |
//! | 1 | starts copies of activations | empty stages | full stages |
//! | 2 | starts products | full stages, empty sums | empty stages, full sums |
//! | 3 | finds tiles | free places on the board | the board |
//! | 4-7 | epilogue | full sums | empty sums |
//! | 8-15 | make floats of codes | full codes, empty stages | empty codes, full stages |
//!
//! Where a segment's weights are codes, warp 0 fills the ring of codes in place of the stages.
//!
//! A tile is made by one block, or by a pair of a cluster ([`Member`]): each has these warps, but the products of both are
//! started by block 0, at whose full stages and empty sums the warps of both arrive.
//!
//! Where a result is the sum of several parts along k, one block makes a set of sums for each, or the blocks of a cluster
//! make one each, and the epilogue of the first adds what the others send it (`parts`).

use super::geometry::Geometry;
use super::rows::{Rows, Step};
use crate::builder::{BARRIER_BYTES, Bool, CtaGroup, F32, I32, LOAD_COLUMNS, MmaType, Shared};
use crate::kernels::{Design, Kernel, Registers};
use crate::parts::k_parts::Parts;
use crate::parts::{
    Barriers, Board, CodedPanel, Epilogue, Member, Reader, Ring, SWIZZLE_BYTES, SegmentMaps, Tile, code_bytes, extent,
    maps, publish_tiles,
};
use moec_ir::target::Features;
use moec_ir::tile::{BufferId, Contract, Program, Schedule, Segment};

const WEIGHTS: u32 = 0;
const ACTIVATIONS: u32 = 1;
const PRODUCTS: u32 = 2;
const TILES: u32 = 3;
/// The first of four; its number is a multiple of four, because a warp reaches the tensor-memory lanes of its rank.
const EPILOGUE: u32 = 4;
const DECODE: u32 = 8;
/// Roles that read the board beside the decoding warps: three, and each warp of the epilogue.
const READERS: u32 = 7;

/// A contraction for the tensor cores of sm_100. Every operand is one that TMA addresses.
///
/// # Errors
/// What is wrong with the program.
pub fn contract<'p>(
    program: &'p Program,
    contract: &'p Contract,
    operands: &[(BufferId, bool)],
    schedule: &Schedule,
    smem_limit: u32,
    features: Features,
) -> Result<Design<'p>, String> {
    let g = Geometry::cut(program, contract, schedule, smem_limit)?;
    let (tensor_maps, segment_maps) =
        maps(program, contract, operands, Geometry::TILE_N / g.ctas.groups(), g.box_rows)?;
    let tiles = extent(program, contract, g.cluster_rows(), g.tile_n());
    let launch = g.order.launch(tiles, g.warps() * 32, g.smem_bytes(), tensor_maps);
    let body = move |k: &Kernel| build(k, program, contract, &g, &segment_maps, features);
    // A block has a multiprocessor for itself: it takes nearly all of its shared memory.
    Ok(Design { launch, registers: Registers::Plenty, body: Box::new(body) })
}

fn build(k: &Kernel, program: &Program, contract: &Contract, g: &Geometry, maps: &[SegmentMaps], features: Features) {
    let c = k.builder;
    let at = |offset: u32| c.shared().at(offset);
    let pair = |offset: u32, n: u32| [offset, offset + n * BARRIER_BYTES].map(|o| Barriers::new(at(o), n));
    let [full, empty] = pair(Geometry::STAGE_BARRIERS, g.stages);
    let [sums_full, sums_empty] = pair(Geometry::SUMS_BARRIERS, Geometry::SETS);
    let [codes_full, codes_empty] = pair(Geometry::CODE_BARRIERS, g.code_stages);
    let (member, board) = (Member::new(c, g.ctas), Board::new(c, c.shared(), g.order));
    let sync = || if g.k.split { c.cluster_barrier() } else { member.barrier() };
    let decoders = if g.has_codes() { Geometry::DECODERS } else { 0 };
    let (warp, elected) = (c.warp(), c.elect());

    c.when(warp.eq(WEIGHTS).and(elected), || {
        // Activations and weights (or the warps that decode them) arrive at a full stage, the products at an empty one.
        full.init(c, 1 + (decoders * g.ctas.count()).max(1));
        empty.init(c, g.ctas.groups());
        codes_full.init(c, 1);
        codes_empty.init(c, decoders);
        sums_full.init(c, 1);
        sums_empty.init(c, 4 * g.ctas.count());
        Parts::init(c, g.k, Geometry::PART_BARRIERS, 4);
        board.init(READERS + decoders);
        c.publish_barriers();
    });
    c.when(warp.eq(ACTIVATIONS).and(elected), || {
        maps.iter().flat_map(|m| m.weights.iter().chain([&m.activations])).for_each(|&map| c.prefetch_map(map));
    });
    let tensor_address = at(Geometry::TENSOR_ADDRESS);
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
        codes_full,
        codes_empty,
        board,
        tensor,
        features,
    };
    c.when(warp.eq(WEIGHTS), || block.copy_weights());
    c.when(warp.eq(ACTIVATIONS), || block.copy_activations());
    c.when(warp.eq(PRODUCTS), || block.multiply());
    c.when(warp.eq(TILES), || {
        publish_tiles(k, program, contract, &block.board, elected, (g.cluster_rows(), g.tile_n()));
    });
    if g.has_codes() {
        c.when(warp.ge(EPILOGUE).and(warp.lt(DECODE)), || block.store());
        c.when(warp.ge(DECODE), || block.decode());
    } else {
        c.when(warp.ge(EPILOGUE), || block.store());
    }

    c.warp_barrier();
    c.before_sync();
    sync();
    c.after_sync();
    c.when(warp.eq(PRODUCTS), || c.free_tensor(g.ctas, tensor, g.tensor_columns()));
}

/// Whether the weights of a segment are codes.
fn has_codes(segment: &Segment) -> bool {
    segment.panels.iter().any(|p| p.quant.is_some())
}

/// A block and what its roles share.
struct Block<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    program: &'k Program,
    contract: &'k Contract,
    g: &'k Geometry,
    maps: &'k [SegmentMaps],
    member: Member<'c>,
    elected: Bool<'c>,
    warp: I32<'c>,
    full: Barriers<'c>,
    empty: Barriers<'c>,
    sums_full: Barriers<'c>,
    sums_empty: Barriers<'c>,
    codes_full: Barriers<'c>,
    codes_empty: Barriers<'c>,
    board: Board<'c>,
    features: Features,
    /// Address of the block's tensor memory.
    tensor: I32<'c>,
}

impl<'c> Block<'_, 'c, '_> {
    /// Does `body` for every tile, with this block's columns of it.
    fn each_tile(&self, reader: &Reader<'c>, body: impl FnOnce(&Tile<'c>)) {
        self.board.each_tile(reader, |tile| body(&self.member.tile(tile, Geometry::TILE_N)));
    }

    /// Builds `body` for each segment and runs it for the tile's.
    fn each_segment<'s>(&'s self, tile: &Tile<'c>, body: impl FnMut(usize, &'s Segment)) {
        tile.each_segment(self.k.builder, &self.contract.segments, body);
    }

    fn n_steps(&self, segment: &Segment) -> u32 {
        (self.program.buffer(segment.a).cols as u32).div_ceil(Geometry::TILE_K)
    }

    /// The steps of this block: first, and behind the last.
    fn steps(&self, segment: &Segment) -> (I32<'c>, I32<'c>) {
        self.g.k.all_steps(self.k.builder, self.n_steps(segment))
    }

    fn stage(&self, slot: I32<'c>) -> Shared<'c> {
        self.k.builder.shared().at(self.g.first_stage()).plus(slot * self.g.stage_bytes())
    }

    /// The tile of codes of panel `panel` in a stage of codes.
    fn codes(&self, slot: I32<'c>, segment: &Segment, panel: usize) -> Shared<'c> {
        let before = segment.panels[..panel].iter().filter_map(|p| p.quant.as_ref());
        let offset: u32 = before.map(|q| Geometry::TILE_N * code_bytes(q)).sum();
        self.k.builder.shared().at(self.g.first_codes()).plus(slot * self.g.code_bytes).at(offset)
    }

    fn copy_weights(&self) {
        let (c, g) = (self.k.builder, self.g);
        c.when(self.elected, || {
            let (ring, codes) = (Ring::new(c, g.stages), Ring::new(c, g.code_stages.max(1)));
            self.each_tile(&Reader::Thread, |tile| {
                self.each_segment(tile, |i, segment| {
                    let (first, end) = self.steps(segment);
                    if has_codes(segment) {
                        let bytes: u32 = segment.panels.iter().filter_map(|p| p.quant.as_ref()).map(code_bytes).sum();
                        c.range(first, end, 1, |step| {
                            let full = self.codes_full.at(codes.slot());
                            c.wait_for(self.codes_empty.at(codes.slot()), codes.parity_before());
                            c.arrive_expecting(full, bytes * Geometry::TILE_N);
                            for (p, (&map, panel)) in self.maps[i].weights.iter().zip(&segment.panels).enumerate() {
                                let wide = panel.quant.as_ref().map_or(0, code_bytes);
                                let to = self.codes(codes.slot(), segment, p);
                                // Each block has a ring of its own.
                                c.copy_box(CtaGroup::One, to, full, map, &[step * wide, tile.col, tile.expert]);
                            }
                            codes.advance();
                        });
                        ring.skip(end - first);
                        return;
                    }
                    if g.has_codes() {
                        // Codes of tiles before lie ahead of the decoding warps. When they are read, so are the stages that this
                        // warp has passed over, all but the last.
                        codes.drain(self.codes_empty);
                    }
                    c.range(first, end, 1, |step| {
                        let (full, stage) = (self.full.at(ring.slot()), self.stage(ring.slot()));
                        c.wait_for(self.empty.at(ring.slot()), ring.parity_before());
                        if !g.has_codes() {
                            let bytes = segment.panels.len() as u32 * Geometry::PANEL_BYTES;
                            self.member.arrive_expecting(full, c.i32(bytes));
                        }
                        for (p, &map) in self.maps[i].weights.iter().enumerate() {
                            let panel = stage.at(p as u32 * Geometry::PANEL_BYTES);
                            let at = [step * Geometry::TILE_K, tile.col, tile.expert];
                            self.member.copy_weights(panel, full, map, at, (Geometry::TILE_N, SWIZZLE_BYTES));
                        }
                        ring.advance();
                    });
                });
            });
        });
    }

    fn decode(&self) {
        let c = self.k.builder;
        let (ring, codes) = (Ring::new(c, self.g.stages), Ring::new(c, self.g.code_stages));
        let part = self.warp - DECODE;
        let place = (((part & 3) << 5) + c.lane(), part >> 2);
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            self.each_segment(tile, |_, segment| {
                let (first, end) = self.steps(segment);
                if !has_codes(segment) {
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
                        panel.store(&words[i], &factors[i], stage.at(i as u32 * Geometry::PANEL_BYTES), step);
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
            ids: c.shared().at(Geometry::ROW_IDS),
            box_rows: g.box_rows,
        };
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            let part = self.member.part(tile);
            self.each_segment(tile, |i, segment| {
                // Where other segments have codes, decoding warps arrive in the place of the warp that brings weights.
                let has_weights = g.has_codes() && !has_codes(segment);
                let more = if has_weights { segment.panels.len() as u32 * Geometry::PANEL_BYTES } else { 0 };
                let step =
                    Step { map: self.maps[i].activations, wide: Geometry::TILE_K, row_bytes: SWIZZLE_BYTES, more };
                let activations = |slot| self.stage(slot).at(g.activations());
                rows.bring((tile, part), segment.a_rows, &step, || self.steps(segment), activations);
            });
        });
        if g.ctas != CtaGroup::One {
            // Block 0 tells of empty stages until its last product is done: by then this block must not have gone.
            c.when(self.elected, || ring.drain(self.empty));
        }
    }

    fn multiply(&self) {
        let (c, g) = (self.k.builder, self.g);
        if g.ctas != CtaGroup::One {
            // The other block's products are started by block 0. This one reads the board, so that its places become free.
            c.when(self.elected.and(self.member.leads().not()), || self.each_tile(&Reader::Thread, |_| {}));
        }
        c.when(self.elected.and(self.member.leads()), || {
            let (ring, sets) = (Ring::new(c, g.stages), Ring::new(c, Geometry::SETS));
            let first = c.swizzled_tile(c.shared().at(g.first_stage()));
            let elem = match g.ty {
                MmaType::F16 => 0,
                MmaType::Bf16 => 1,
            };
            self.each_tile(&Reader::Thread, |tile| {
                let instruction = c.mma_instruction(g.ctas, elem, tile.whole);
                // Sums of their own for each part that this block makes.
                g.k.each(c, |part| {
                    let sums = self.tensor + sets.slot() * g.set_columns();
                    self.member.wait_for(self.sums_empty.at(sets.slot()), sets.parity_before());
                    c.after_sync();
                    self.each_segment(tile, |_, segment| {
                        let (first_step, end) = g.k.steps(self.n_steps(segment), part);
                        c.range(first_step, end, 1, |step| {
                            if g.has_codes() {
                                self.member.wait_for(self.full.at(ring.slot()), ring.parity());
                            } else {
                                // Nobody but copies writes what products read.
                                c.wait_for(self.full.at(ring.slot()), ring.parity());
                            }
                            c.after_sync();
                            let stage = first + ring.slot() * (g.stage_bytes() / 16);
                            let activations = stage + g.activations() / 16;
                            // 16 elements, 32 bytes, at a time.
                            for piece in 0..Geometry::TILE_K / 16 {
                                let adds = if piece == 0 { step.ne(first_step) } else { c.bool(true) };
                                for p in 0..segment.panels.len() as u32 {
                                    let panel = stage + (p * Geometry::PANEL_BYTES / 16 + 2 * piece);
                                    let rows = activations + 2 * piece;
                                    c.start_mma(g.ctas, sums + p * g.tile_m, (panel, rows), instruction, adds);
                                }
                            }
                            c.arrive_everywhere_after_mma(g.ctas, self.empty.at(ring.slot()));
                            ring.advance();
                        });
                    });
                    c.arrive_after_mma(g.ctas, self.sums_full.at(sets.slot()));
                    sets.advance();
                });
            });
        });
    }

    fn store(&self) {
        let c = self.k.builder;
        let g = self.g;
        // The lanes of tensor memory that this warp reaches, and with them its output columns.
        let lanes = (self.warp & 3) << 5;
        let sets = Ring::new(c, Geometry::SETS);
        let column = lanes + c.lane();
        let offsets = (Geometry::PART_BARRIERS, g.first_sums());
        let parts = Parts::new(c, g.k, column, (g.panels, g.tile_m), offsets);
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            let epilogue = |s| Epilogue::new(self.k, self.program, s, tile.expert, tile.col + column);
            parts.tile(self.elected, |_, end| {
                self.take_sums(sets, tile, lanes, epilogue, |epilogue, row, mut sums| {
                    if parts.add(end, row, tile.rows - row, &mut sums) {
                        epilogue.store(tile.row + row, tile.rows - row, &sums);
                    }
                });
            });
        });
    }

    /// Waits for a set of sums and gives them to `body`, 16 rows at a time: first row, `sums[panel][row]`. `prepare` comes
    /// before, for the tile's segment.
    fn take_sums<'s, T>(
        &'s self,
        sets: Ring<'c>,
        tile: &Tile<'c>,
        lanes: I32<'c>,
        prepare: impl Fn(&'s Segment) -> T,
        body: impl Fn(&T, I32<'c>, Vec<Vec<F32<'c>>>),
    ) {
        let c = self.k.builder;
        let g = self.g;
        let from = self.tensor + (lanes << 16) + sets.slot() * g.set_columns();
        self.each_segment(tile, |_, segment| {
            let prepared = prepare(segment);
            c.wait_for(self.sums_full.at(sets.slot()), sets.parity());
            c.after_sync();
            c.range(0, tile.rows, LOAD_COLUMNS, |row| {
                c.warp_barrier();
                let panels = 0..segment.panels.len() as u32;
                let sums: Vec<_> = panels.map(|p| c.load_tensor(from + row + p * g.tile_m)).collect();
                c.wait_tensor();
                body(&prepared, row, sums);
            });
        });
        c.before_sync();
        c.warp_barrier();
        c.when(self.elected, || self.member.arrive(self.sums_empty.at(sets.slot())));
        sets.advance();
    }
}
