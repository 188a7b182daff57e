//! A contraction's grid, and how a block finds its tile.
//!
//! Segments lie along z, tiles along x. Within an expert the row tiles change fastest, so that blocks that run together
//! share a panel of weights.

use super::{coded, fma, mma};
use crate::builder::{Bool, I32};
use crate::engines::geforce;
use crate::kernels::{Design, Grid, Kernel, Registers};
use moec_ir::DType;
use moec_ir::engine::portable::Geometry;
use moec_ir::shape::Dim;
use moec_ir::target::Features;
use moec_ir::tile::{Contract, Extent, GpuLaunch, Groups, Program, Schedule, Segment};

/// The tile of a block. Valid only where `exists`.
pub struct Tile<'c> {
    pub exists: Bool<'c>,
    /// The matrix of the panels; 0 for a dense segment.
    pub expert: I32<'c>,
    /// First row of the result.
    pub row: I32<'c>,
    /// Rows that the tile has, at most `tile_m`.
    pub rows: I32<'c>,
    /// First column of the result.
    pub col: I32<'c>,
}

/// A contraction for the instructions of sm_80, and of codes with codes for those of sm_120.
///
/// # Errors
/// A segment that no instruction multiplies.
pub fn contract<'p>(
    program: &'p Program,
    contract: &'p Contract,
    schedule: &Schedule,
    features: Features,
) -> Result<Design<'p>, String> {
    let cut = |s| Geometry::of(program, s, schedule).ok_or_else(|| format!("no tile of {schedule:?} is built"));
    let cuts: Vec<Geometry> = contract.segments.iter().map(cut).collect::<Result<_, _>>()?;
    let grid = contract.segments.iter().zip(&cuts).map(|(s, g)| extent(program, s, g)).reduce(Grid::cover);
    let launch = GpuLaunch {
        grid: [grid.unwrap_or(Extent::fixed(1)), Extent::fixed(1), Extent::fixed(cuts.len().max(1) as u64)],
        block_threads: schedule.warps * 32,
        cluster: 1,
        dynamic_smem_bytes: cuts.iter().map(Geometry::smem_bytes).max().unwrap_or(0),
        persistent: false,
        programmatic: false,
        tensor_maps: Vec::new(),
    };
    let body = move |k: &Kernel| {
        for (i, (segment, geometry)) in contract.segments.iter().zip(&cuts).enumerate() {
            let mine = k.builder.block_z().eq(i as u32);
            if cuts.len() == 1 {
                k.builder.exit_if(mine.not());
                segment_body(k, program, segment, geometry, features);
            } else {
                k.builder.when(mine, || segment_body(k, program, segment, geometry, features));
            }
        }
    };
    // Shared memory, not registers, decides how many blocks a multiprocessor holds; a spill would cost more than a block.
    Ok(Design { launch, registers: Registers::Plenty, body: Box::new(body) })
}

fn extent(program: &Program, segment: &Segment, geometry: &Geometry) -> Extent {
    let out = program.buffer(segment.out);
    let col_tiles = segment.n(program).div_ceil(geometry.tile_n().into());
    match (segment.groups, out.rows) {
        (Groups::Dense, rows) => Grid::tiles(rows, geometry.tile_m(), col_tiles),
        (Groups::ByExpert { .. }, Dim::PerToken(k)) => {
            Extent::grouped_tiles(k, geometry.tile_m().into(), n_experts(program, segment), col_tiles)
        }
        (Groups::ByExpert { .. }, Dim::Fixed(n)) => {
            let partly_filled = n_experts(program, segment).min(n);
            Extent::fixed((n.div_ceil(geometry.tile_m().into()) + partly_filled) * col_tiles)
        }
    }
}

fn n_experts(program: &Program, segment: &Segment) -> u64 {
    segment.panels.first().map_or(1, |p| program.buffer(p.weights).batch)
}

fn segment_body(k: &Kernel, program: &Program, segment: &Segment, geometry: &Geometry, features: Features) {
    let tile = find_tile(k, program, segment, geometry);
    k.builder.when(tile.exists, || match geometry {
        Geometry::Mma(g) if g.is_coded() => coded::tile(k, program, segment, g, &tile, features),
        Geometry::Mma(g) => mma::tile(k, program, segment, g, &tile),
        Geometry::Fma(g) => fma::tile(k, program, segment, g, &tile, features),
        Geometry::Scaled(g) => geforce::tile(k, program, segment, g, &tile),
    });
}

fn find_tile<'c>(k: &Kernel<'c, '_>, program: &Program, segment: &Segment, geometry: &Geometry) -> Tile<'c> {
    let out = program.buffer(segment.out);
    let col_tiles = segment.n(program).div_ceil(geometry.tile_n().into()) as u32;
    match segment.groups {
        Groups::Dense => {
            let c = k.builder;
            let rows = k.length(out.rows, k.n_tokens());
            let row_tiles = rows.div_ceil(geometry.tile_m());
            let id = c.block_x();
            // A block divides by the number of row tiles, which is 0 when there are no rows.
            let exists = id.lt(row_tiles * col_tiles);
            let divisor = c.select(exists, row_tiles, c.i32(1));
            let row = (id % divisor) * geometry.tile_m();
            let rows = (rows - row).min(geometry.tile_m());
            Tile { exists, expert: c.i32(0), row, rows, col: (id / divisor) * geometry.tile_n() }
        }
        Groups::ByExpert { offsets } => {
            find_expert_tile(k, offsets, n_experts(program, segment) as u32, geometry, col_tiles)
        }
    }
}

/// Finds the expert of a tile by a prefix sum over the experts' row tiles. Every warp does it for itself: a lane reads the
/// offsets of its share of the experts, so that a search costs one trip to memory for up to 1024 experts.
fn find_expert_tile<'c>(
    k: &Kernel<'c, '_>,
    offsets: moec_ir::tile::BufferId,
    n_experts: u32,
    geometry: &Geometry,
    col_tiles: u32,
) -> Tile<'c> {
    let c = k.builder;
    let view = k.view(offsets);
    debug_assert_eq!(view.dtype, DType::I32, "offsets are i32");
    let per_lane = n_experts.div_ceil(32);
    let lane = c.lane();
    let first = lane * per_lane;
    // Offsets of experts past the last read the end again: they have no rows.
    let read = |i: u32| {
        let e = first + i;
        c.load_i32(view.base.plus(view.bytes(if n_experts.is_multiple_of(32) { e } else { e.min(n_experts) })))
    };
    let starts: Vec<I32> = (0..=per_lane).map(read).collect();
    let tiles: Vec<I32> = starts.windows(2).map(|w| (w[1] - w[0]).div_ceil(geometry.tile_m())).collect();
    let mine = tiles.iter().copied().reduce(|a, b| a + b).unwrap_or(c.i32(0));
    let inclusive = c.warp_prefix_sum(mine, lane);
    let id = c.block_x();
    let (found, expert) = (c.var(c.bool(false)), c.var(c.i32(0)));
    let (before, count, start, end) = (c.var(c.i32(0)), c.var(c.i32(1)), c.var(c.i32(0)), c.var(c.i32(0)));
    let mut sum = inclusive - mine;
    for (i, &tiles) in tiles.iter().enumerate() {
        let next = sum + tiles;
        let hit = id.ge(sum * col_tiles).and(id.lt(next * col_tiles));
        found.set(found.get().or(hit));
        expert.set(c.select(hit, first + i as u32, expert.get()));
        before.set(c.select(hit, sum, before.get()));
        count.set(c.select(hit, tiles, count.get()));
        start.set(c.select(hit, starts[i], start.get()));
        end.set(c.select(hit, starts[i + 1], end.get()));
        sum = next;
    }
    let winners = c.ballot(found.get());
    let exists = winners.ne(0);
    // One lane at most has found it; its number is the count of bits below the winner's.
    let winner = ((winners - 1) & (winners ^ u32::MAX)).popcount();
    let [expert, before, count, start, end] =
        [expert, before, count, start, end].map(|v| c.read_lane(v.get(), winner & 31));
    let local = id - before * col_tiles;
    let row = start + (local % count) * geometry.tile_m();
    let rows = (end - row).min(geometry.tile_m());
    Tile { exists, expert, row, rows, col: (local / count) * geometry.tile_n() }
}
