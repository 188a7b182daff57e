//! The kernel: twelve warps, each with one role.
//!
//! | warp | role | waits for | arrives at |
//! |---|---|---|---|
//! | 0 | starts copies of weights, and of rows that are adjacent | empty stages | full stages |
//! | 1 | finds tiles | free places on the board | the board |
//! | 2-3 | bring rows that are gathered, and scales | empty stages | full stages |
//! | 4-7, 8-11 | multiply, then store: 64 columns each | full stages | empty stages |
//!
//! The two warpgroups run at their own pace within the ring: while one stores a tile, the other multiplies, and copies of the
//! next tile arrive.
//!
//! Where an expert has many rows, two CTAs of a cluster make neighbouring halves of a tile: each brings half of the weights of
//! a stage for both, into stages that both have emptied.
//!
//! Where a result is the sum of several parts along k, one CTA makes them one after another, or the CTAs of a cluster make
//! one each and the first adds what the others send it (`parts::k_parts`).

use crate::builder::{BARRIER_BYTES, Bool, I32, Shared, WgmmaType};
use crate::kernels::{Design, Kernel, Registers};
use crate::parts::k_parts::{KParts, Parts};
use crate::parts::{
    Barriers, Board, Chains, CodeRows, Order, Reader, Ring, SegmentMaps, Tile, coded_maps, extent, maps, publish_tiles,
};
use moec_ir::DType;
use moec_ir::engine::hopper::{self, CONTROL_BYTES, Geometry, MOST_STAGES, Operands, PRODUCT_WARPS, WARPS};
use moec_ir::quant::Code;
use moec_ir::target::Features;
use moec_ir::tile::{BufferId, Contract, Program, Schedule, Segment};

const WEIGHTS: u32 = 0;
const TILES: u32 = 1;
/// The first of those that bring rows.
pub const ROWS: u32 = 2;
/// Warps that bring rows.
pub const ROW_WARPS: u32 = 2;
/// The first of those that multiply; each four are a warpgroup.
pub const PRODUCTS: u32 = 4;
const _: () = assert!(PRODUCT_WARPS == WARPS - PRODUCTS);
/// Roles that read the board: the thread that starts copies, and each warp that brings rows or multiplies.
const READERS: u32 = 1 + ROW_WARPS + PRODUCT_WARPS;
/// Registers of a thread that brings operands, and of one that multiplies: of 65,536, of which a CTA starts with 168 for each
/// of its 384 threads.
const FEW_REGISTERS: u32 = 56;
const MANY_REGISTERS: u32 = 224;
const _: () = assert!((PRODUCTS * FEW_REGISTERS + PRODUCT_WARPS * MANY_REGISTERS) * 32 <= 65_536);

/// Byte offset of the barriers of stages: full ones, then empty ones.
const STAGE_BARRIERS: u32 = Board::BYTES;
/// Byte offset of the barriers of sums of other CTAs.
const PART_BARRIERS: u32 = STAGE_BARRIERS + 2 * MOST_STAGES * BARRIER_BYTES;
/// Byte offset of the numbers of gathered rows: 256 of them at most.
pub const ROW_IDS: u32 = (PART_BARRIERS + Parts::BARRIERS).next_multiple_of(16);
const _: () = assert!(ROW_IDS + 256 * 4 <= CONTROL_BYTES);

/// A contraction for the tensor cores of sm_90.
///
/// # Errors
/// What is wrong with the program.
pub fn contract<'p>(
    program: &'p Program,
    contract: &'p Contract,
    operands: &[(BufferId, bool)],
    schedule: &Schedule,
    features: Features,
) -> Result<Design<'p>, String> {
    let g = Geometry::of(program, contract, schedule);
    let ty = match (g.operands, hopper::element(program, contract)) {
        (Operands::Fp8, _) => WgmmaType::E4M3,
        (Operands::Halves, Some(DType::BF16)) => WgmmaType::Bf16,
        (Operands::Halves, Some(DType::F16)) => WgmmaType::F16,
        (Operands::Halves, other) => return Err(format!("its rows are {other:?}")),
    };
    let sizes = (g.tile_n / g.neighbours, g.box_rows());
    let (tensor_maps, segment_maps) = match g.operands {
        Operands::Halves => maps(program, contract, operands, sizes.0, sizes.1)?,
        Operands::Fp8 => {
            let code_rows = |code: Code| if code.bits() == 4 { CodeRows::Half } else { CodeRows::Whole };
            coded_maps(program, contract, operands, sizes, code_rows)?
        }
    };
    let tiles = extent(program, contract, (g.tile_m * g.neighbours, g.tile_n));
    let order = Order { team: schedule.blocks(), dynamic: false, drawn: contract.is_chained() };
    let launch = order.launch(tiles, WARPS * 32, g.smem_bytes(), tensor_maps);
    let schedule = *schedule;
    let body = move |k: &Kernel| build(k, program, (contract, &schedule), (&g, ty, order, features), &segment_maps);
    Ok(Design { launch, registers: Registers::Plenty, body: Box::new(body) })
}

fn build(
    k: &Kernel,
    program: &Program,
    (contract, schedule): (&Contract, &Schedule),
    (g, ty, order, features): (&Geometry, WgmmaType, Order, Features),
    maps: &[SegmentMaps],
) {
    let c = k.builder;
    let barriers = |first: u32| Barriers::new(c.shared().at(first), g.stages);
    let (full, empty) = (barriers(STAGE_BARRIERS), barriers(STAGE_BARRIERS + g.stages * BARRIER_BYTES));
    let board = Board::new(c, c.shared(), order);
    let parts = KParts { n: g.k_parts, split: g.split };
    let in_cluster = g.split || g.neighbours > 1;
    let sync = || if in_cluster { c.cluster_barrier() } else { c.barrier() };
    let (warp, elected) = (c.warp(), c.elect());
    c.when(warp.eq(WEIGHTS).and(elected), || {
        full.init(c, 1 + ROW_WARPS);
        empty.init(c, PRODUCT_WARPS * g.neighbours);
        Parts::init(c, parts, PART_BARRIERS, PRODUCT_WARPS);
        board.init(READERS);
        c.publish_barriers();
    });
    c.when(warp.eq(ROWS).and(elected), || {
        maps.iter().flat_map(|m| m.weights.iter().chain([&m.activations])).for_each(|&map| c.prefetch_map(map));
    });
    c.warp_barrier();
    sync();
    // Up to here nothing depends on the kernels before.
    c.wait_for_predecessor();
    let tile = (g.tile_m * g.neighbours, g.tile_n);
    let chains = Chains::new(k, program, contract, tile, PRODUCT_WARPS * g.neighbours);
    let cta =
        Cta { k, program, contract, schedule, g, ty, features, maps, parts, elected, warp, full, empty, board, chains };
    let bring = || {
        c.give_registers(FEW_REGISTERS);
        c.when(warp.eq(WEIGHTS), || c.part("copies of weights", || cta.copy_boxes()));
        c.when(warp.eq(TILES), || {
            c.part("tiles", || publish_tiles(k, program, contract, &cta.board, elected, tile));
        });
        c.when(warp.ge(ROWS), || c.part("copies of rows", || cta.copy_rows()));
    };
    let multiply = || {
        c.take_registers(MANY_REGISTERS);
        c.part("products", || cta.multiply(PART_BARRIERS));
    };
    c.either(warp.lt(PRODUCTS), bring, multiply);
    if in_cluster {
        // What is sent to a CTA arrives before it goes.
        c.warp_barrier();
        sync();
    }
}

/// A CTA and what its roles share.
pub struct Cta<'k, 'c, 'p> {
    pub k: &'k Kernel<'c, 'p>,
    pub program: &'k Program,
    pub contract: &'k Contract,
    pub schedule: &'k Schedule,
    pub g: &'k Geometry,
    pub ty: WgmmaType,
    pub features: Features,
    pub maps: &'k [SegmentMaps],
    pub parts: KParts,
    pub elected: Bool<'c>,
    pub warp: I32<'c>,
    pub full: Barriers<'c>,
    pub empty: Barriers<'c>,
    pub board: Board<'c>,
    pub chains: Chains<'k, 'c, 'p>,
}

impl<'c> Cta<'_, 'c, '_> {
    /// Does `body` for this CTA's part of every tile: all of it, or of two neighbours half of the rows, which may be none.
    pub fn each_tile(&self, reader: &Reader<'c>, body: impl FnOnce(&Tile<'c>)) {
        let c = self.k.builder;
        self.board.each_tile(reader, |tile| {
            if self.g.neighbours == 1 {
                return body(tile);
            }
            // Even rows to both; of the second as many as are left.
            let half = (tile.rows + 1) >> 1;
            let (row, rows) = (c.cluster_rank() * half, c.select(c.cluster_rank().eq(0), half, tile.rows - half));
            // A row that exists, even where none is this CTA's.
            let row = tile.row + c.select(rows.eq(0), c.i32(0), row);
            body(&Tile { row, rows, ..*tile });
        });
    }

    /// Waits until a stage is empty, here and where its weights are brought for a neighbour.
    pub fn wait_for_empty(&self, ring: Ring<'c>) {
        let c = self.k.builder;
        let empty = self.empty.at(ring.slot());
        if self.g.neighbours == 1 {
            c.wait_for(empty, ring.parity_before());
        } else {
            c.wait_for_peers(empty, ring.parity_before());
        }
    }

    /// Tells everyone who fills this stage that this warp has read it.
    pub fn release(&self, slot: I32<'c>) {
        let c = self.k.builder;
        let empty = self.empty.at(slot);
        c.when(self.elected, || match self.g.neighbours {
            1 => c.arrive(empty),
            n => (0..n).for_each(|rank| c.arrive_at_peer(empty, rank)),
        });
    }

    /// Builds `body` for each segment and runs it for the tile's.
    pub fn each_segment<'s>(&'s self, tile: &Tile<'c>, body: impl FnMut(usize, &'s Segment)) {
        tile.each_segment(self.k.builder, &self.contract.segments, body);
    }

    pub fn n_steps(&self, segment: &Segment) -> u32 {
        (segment.k(self.program) as u32).div_ceil(self.g.tile_k)
    }

    /// The steps of this CTA: first, and behind the last.
    pub fn steps(&self, segment: &Segment) -> (I32<'c>, I32<'c>) {
        self.parts.all_steps(self.k.builder, self.n_steps(segment))
    }

    pub fn stage(&self, slot: I32<'c>) -> Shared<'c> {
        self.k.builder.shared().at(CONTROL_BYTES).plus(slot * self.g.stage_bytes())
    }

    /// Rows of activations that the products of a tile read: those of the smallest loop that holds the tile's.
    pub fn rows_read(&self, tile: &Tile<'c>) -> I32<'c> {
        let c = self.k.builder;
        let mut steps = self.g.row_steps().into_iter().rev();
        let most = c.i32(steps.next().unwrap_or(self.g.tile_m));
        steps.fold(most, |n, step| c.select(tile.rows.gt(step), n, c.i32(step)))
    }
}
