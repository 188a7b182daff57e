//! The kernel: eight warps, each with one role, and more where weights are codes.
//!
//! | warp | role | waits for | arrives at |
//! |---|---|---|---|
//! | 0 | starts copies of weights | empty stages | full stages |
//! | 1 | starts copies of activations | empty stages | full stages |
//! | 2 | starts products, and before them copies of block scales | full stages, empty sums | empty stages, full sums |
//! | 3 | finds tiles | free places on the board | the board |
//! | 4-7 | epilogue | full sums | empty sums |
//! | 8-15 | make floats of codes | full codes, empty stages | empty codes, full stages |
//! | 8-11 | bring block scales | empty stages | full stages |
//!
//! Where codes become floats, warp 0 fills the ring of codes in place of the stages. Block scales go through shared memory to
//! tensor memory and are applied by the products. f32 scales of FP8 are applied by the epilogue, which loads them itself: the
//! sums of each 128 elements of k are a set of their own, which it scales and adds in registers.
//!
//! A tile is made by one CTA, or by a pair of a cluster ([`Member`]): each has these warps, but the products of both are
//! started by CTA 0, at whose full stages and empty sums the warps of both arrive.
//!
//! Where a result is the sum of several parts along k, one CTA makes a set of sums for each, or the CTAs of a cluster make
//! one each, and the epilogue of the first adds what the others send it (`parts::k_parts`).

use super::layout::{CODE_BARRIERS, STAGE_BARRIERS, SUMS_BARRIERS, TENSOR_ADDRESS, part_barriers};
use crate::builder::{BARRIER_BYTES, Bool, CtaGroup, I32, Shared};
use crate::kernels::{Design, Kernel, Registers};
use crate::parts::k_parts::{KParts, Parts};
use crate::parts::{
    Barriers, Board, Chains, CodeRows, Member, Order, Reader, Ring, SegmentMaps, Tile, coded_maps, extent, maps,
    publish_tiles,
};
use moec_ir::engine::blackwell::{DECODERS, Geometry, Operands, SCALE_WARPS, SETS, TILE_N};
use moec_ir::target::Features;
use moec_ir::tile::{BufferId, Contract, Program, Schedule, Segment, Team};

const WEIGHTS: u32 = 0;
const ACTIVATIONS: u32 = 1;
const PRODUCTS: u32 = 2;
const TILES: u32 = 3;
/// The first of four; its number is a multiple of four, because a warp reaches the tensor-memory lanes of its rank.
const EPILOGUE: u32 = 4;
/// The first of those that decode, or bring block scales.
pub const MORE: u32 = 8;
/// Warps of the epilogue.
pub const EPILOGUE_WARPS: u32 = 4;
/// Roles that read the board beside the epilogue, and the warps that decode or bring scales.
const READERS: u32 = 3;
/// Why a kernel cannot be built.
pub const NO_CODES: &str = "a product of codes has rows or weights that are none";

/// A contraction for the tensor cores of sm_100. Every operand is one that TMA addresses.
///
/// # Errors
/// What is wrong with the program.
pub fn contract<'p>(
    program: &'p Program,
    contract: &'p Contract,
    operands: &[(BufferId, bool)],
    schedule: &Schedule,
    smem_bytes: u32,
    features: Features,
) -> Result<Design<'p>, String> {
    let g = Geometry::of(contract, schedule, smem_bytes);
    let sizes = (TILE_N / g.pairs(), g.box_rows());
    let (tensor_maps, segment_maps) = match g.operands {
        Operands::Halves => maps(program, contract, operands, sizes.0, sizes.1)?,
        Operands::Blocks(_) | Operands::Fp8 => {
            let code_rows = |code| if g.spreads(code) { CodeRows::Spread } else { CodeRows::Whole };
            coded_maps(program, contract, operands, sizes, code_rows)?
        }
    };
    let order = Order { team: schedule.blocks(), dynamic: schedule.dynamic, drawn: contract.is_chained() };
    let tiles = extent(program, contract, (g.cluster_rows(), g.tile_n()));
    let launch = order.launch(tiles, schedule.warps * 32, g.smem_bytes(), tensor_maps);
    let schedule = *schedule;
    let body = move |k: &Kernel| build(k, program, (contract, &schedule), (&g, order, features), &segment_maps);
    // A CTA has a multiprocessor for itself: it takes nearly all of its shared memory.
    Ok(Design { launch, registers: Registers::Plenty, body: Box::new(body) })
}

fn build(
    k: &Kernel,
    program: &Program,
    (contract, schedule): (&Contract, &Schedule),
    (g, order, features): (&Geometry, Order, Features),
    maps: &[SegmentMaps],
) {
    let c = k.builder;
    let ctas = match g.team {
        Team::One | Team::Neighbours | Team::SplitK => CtaGroup::One,
        Team::Pair => CtaGroup::Pair,
        Team::TwoPairs => CtaGroup::TwoPairs,
    };
    let parts = KParts { n: g.k_parts, split: g.split() };
    let at = |offset: u32| c.shared().at(offset);
    let pair = |offset: u32, n: u32| [offset, offset + n * BARRIER_BYTES].map(|o| Barriers::new(at(o), n));
    let [full, empty] = pair(STAGE_BARRIERS, g.stages);
    let [sums_full, sums_empty] = pair(SUMS_BARRIERS, SETS);
    let [codes_full, codes_empty] = pair(CODE_BARRIERS, g.code_stages);
    let (member, board) = (Member::new(c, ctas), Board::new(c, c.shared(), order));
    let sync = || if parts.split { c.cluster_barrier() } else { member.barrier() };
    let (warp, elected) = (c.warp(), c.elect());
    // Warps that decode, and those that bring scales.
    let (decoders, scales) = match g.operands {
        Operands::Halves if g.decodes() => (DECODERS, 0),
        Operands::Halves | Operands::Fp8 => (0, 0),
        Operands::Blocks(_) => (0, SCALE_WARPS),
    };

    c.when(warp.eq(WEIGHTS).and(elected), || {
        // Activations arrive at a full stage, and weights, or the warps that decode them; the products at an empty one.
        full.init(c, 1 + (decoders * ctas.count()).max(1) + scales * ctas.count());
        empty.init(c, ctas.groups());
        codes_full.init(c, 1);
        codes_empty.init(c, decoders);
        sums_full.init(c, 1);
        sums_empty.init(c, EPILOGUE_WARPS * ctas.count());
        Parts::init(c, parts, part_barriers(g), EPILOGUE_WARPS);
        board.init(READERS + EPILOGUE_WARPS + decoders + scales);
        c.publish_barriers();
    });
    c.when(warp.eq(ACTIVATIONS).and(elected), || {
        maps.iter().flat_map(|m| m.weights.iter().chain([&m.activations])).for_each(|&map| c.prefetch_map(map));
    });
    let tensor_address = at(TENSOR_ADDRESS);
    c.when(warp.eq(PRODUCTS), || c.allocate_tensor(ctas, tensor_address, g.tensor_columns()));
    c.warp_barrier();
    c.before_sync();
    sync();
    c.after_sync();
    let tensor = c.load_i32(tensor_address);
    // Up to here nothing depends on the kernels before.
    c.wait_for_predecessor();

    let cta = Cta {
        k,
        program,
        contract,
        schedule,
        g,
        ctas,
        parts,
        features,
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
        chains: Chains::new(k, program, contract, (g.cluster_rows(), g.tile_n()), EPILOGUE_WARPS * order.team),
        tensor,
    };
    c.when(warp.eq(WEIGHTS), || c.part("copies of weights", || cta.copy_weights()));
    c.when(warp.eq(ACTIVATIONS), || c.part("copies of rows", || cta.copy_activations()));
    c.when(warp.eq(PRODUCTS), || c.part("products", || cta.multiply()));
    c.when(warp.eq(TILES), || {
        let tile = (g.cluster_rows(), g.tile_n());
        c.part("tiles", || publish_tiles(k, program, contract, &cta.board, elected, tile));
    });
    if decoders + scales > 0 {
        c.when(warp.ge(EPILOGUE).and(warp.lt(MORE)), || c.part("results", || cta.store()));
        let more = || match scales {
            0 => c.part("decoding", || cta.decode()),
            _ => c.part("copies of scales", || cta.bring_block_scales()),
        };
        c.when(warp.ge(MORE), more);
    } else {
        c.when(warp.ge(EPILOGUE), || c.part("results", || cta.store()));
    }

    c.warp_barrier();
    c.before_sync();
    sync();
    c.after_sync();
    c.when(warp.eq(PRODUCTS), || c.free_tensor(ctas, tensor, g.tensor_columns()));
}

/// A CTA and what its roles share.
pub struct Cta<'k, 'c, 'p> {
    pub k: &'k Kernel<'c, 'p>,
    pub program: &'k Program,
    pub contract: &'k Contract,
    pub schedule: &'k Schedule,
    pub g: &'k Geometry,
    pub ctas: CtaGroup,
    pub parts: KParts,
    pub features: Features,
    pub maps: &'k [SegmentMaps],
    pub member: Member<'c>,
    pub elected: Bool<'c>,
    pub warp: I32<'c>,
    pub full: Barriers<'c>,
    pub empty: Barriers<'c>,
    pub sums_full: Barriers<'c>,
    pub sums_empty: Barriers<'c>,
    pub codes_full: Barriers<'c>,
    pub codes_empty: Barriers<'c>,
    pub board: Board<'c>,
    pub chains: Chains<'k, 'c, 'p>,
    /// Address of the CTA's tensor memory.
    pub tensor: I32<'c>,
}

impl<'c> Cta<'_, 'c, '_> {
    /// Does `body` for every tile, with this CTA's columns of it.
    pub fn each_tile(&self, reader: &Reader<'c>, body: impl FnOnce(&Tile<'c>)) {
        self.board.each_tile(reader, |tile| body(&self.member.tile(tile, TILE_N)));
    }

    /// Builds `body` for each segment and runs it for the tile's.
    pub fn each_segment<'s>(&'s self, tile: &Tile<'c>, body: impl FnMut(usize, &'s Segment)) {
        tile.each_segment(self.k.builder, &self.contract.segments, body);
    }

    /// Steps along k of a segment.
    pub fn n_steps(&self, segment: &Segment) -> u32 {
        (segment.k(self.program) as u32).div_ceil(self.g.tile_k())
    }

    /// The steps of this CTA: first, and behind the last.
    pub fn steps(&self, segment: &Segment) -> (I32<'c>, I32<'c>) {
        self.parts.all_steps(self.k.builder, self.n_steps(segment))
    }

    /// Where a stage lies.
    pub fn stage(&self, slot: I32<'c>) -> Shared<'c> {
        self.k.builder.shared().at(self.g.first_stage()).plus(slot * self.g.stage_bytes())
    }

    /// A ring of stages.
    pub fn ring(&self) -> Ring<'c> {
        Ring::new(self.k.builder, self.g.stages)
    }
}
