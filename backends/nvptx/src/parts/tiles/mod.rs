//! The order of tiles, and how the roles of a block learn of them.
//!
//! All tiles of all segments have a number. In the static order block `b` of `n` takes `b`, `b + n`, …; in the dynamic one
//! there are as many blocks as tiles, and a block that is done takes the number of one that has not started. Within an
//! expert the row tiles change fastest, so that blocks that run together share a panel of weights. One warp turns numbers
//! into tiles and writes them to a board in shared memory, a few ahead of the warps that read it.

use crate::parts::ring::{Barriers, Ring};
use claims::{Claims, Source};
mod claims;

use crate::builder::{BARRIER_BYTES, Bool, Builder, I32, Shared};
use crate::kernels::{Grid, Kernel};
use moec_ir::shape::Dim;
use moec_ir::tile::{Contract, Extent, GpuLaunch, Groups, Program, Segment, TensorMap};

/// A tile of the result. All numbers are the same in every thread.
pub struct Tile<'c> {
    /// Index of the segment.
    pub segment: I32<'c>,
    /// The matrix of the panels; 0 for a dense segment.
    pub expert: I32<'c>,
    /// First row of the result.
    pub row: I32<'c>,
    /// Rows that the tile has; 0 behind the last tile.
    pub rows: I32<'c>,
    /// First column of the result.
    pub col: I32<'c>,
    /// Rows of products for it: whole sixteens, of each block.
    pub whole: I32<'c>,
}

impl<'c> Tile<'c> {
    /// Builds `body` for each segment and runs it for the tile's.
    pub fn each_segment<'s>(
        &self,
        c: &'c Builder<'c>,
        segments: &'s [Segment],
        mut body: impl FnMut(usize, &'s Segment),
    ) {
        for (i, segment) in segments.iter().enumerate() {
            if segments.len() == 1 {
                body(i, segment);
            } else {
                c.when(self.segment.eq(i as u32), || body(i, segment));
            }
        }
    }
}

/// Tiles at most of a segment cut into tiles of (rows, columns).
pub fn segment_tiles(program: &Program, s: &Segment, (tile_rows, tile_cols): (u32, u32)) -> Extent {
    let col_tiles = s.n(program).div_ceil(tile_cols.into());
    let experts = u64::from(n_experts(program, s));
    match (s.groups, program.buffer(s.out).rows) {
        (Groups::Dense, rows) => Grid::tiles(rows, tile_rows, col_tiles),
        (Groups::ByExpert { .. }, Dim::PerToken(k)) => Extent::grouped_tiles(k, tile_rows.into(), experts, col_tiles),
        (Groups::ByExpert { .. }, Dim::Fixed(n)) => {
            Extent::fixed((n.div_ceil(tile_rows.into()) + experts.min(n)) * col_tiles)
        }
    }
}

/// Tiles at most of all segments of a contraction.
pub fn extent(program: &Program, contract: &Contract, tile: (u32, u32)) -> Extent {
    let sum = |a: Extent, b: Extent| {
        let cover = Grid::cover(a, b);
        Extent { mul: a.mul + b.mul, min: a.min + b.min, ..cover }
    };
    contract.segments.iter().map(|s| segment_tiles(program, s, tile)).reduce(sum).unwrap_or(Extent::fixed(1))
}

fn is_grouped(segment: &Segment) -> bool {
    matches!(segment.groups, Groups::ByExpert { .. })
}

fn n_experts(program: &Program, segment: &Segment) -> u32 {
    segment.panels.first().map_or(1, |p| program.buffer(p.weights).batch as u32)
}

/// How tiles are given to blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Blocks of a cluster that make a tile together.
    pub team: u32,
    /// Whether a block that is done takes the place of one that has not started, rather than every n-th tile.
    pub dynamic: bool,
    /// Whether blocks draw their numbers from a counter ([`Contract::numbers`]).
    pub drawn: bool,
}

impl Order {
    /// The launch of a contraction in `threads` threads of a block.
    pub fn launch(self, tiles: Extent, threads: u32, smem_bytes: u32, tensor_maps: Vec<TensorMap>) -> GpuLaunch {
        let blocks = Extent { mul: tiles.mul * u64::from(self.team), min: tiles.min * u64::from(self.team), ..tiles };
        GpuLaunch {
            grid: [blocks, Extent::fixed(1), Extent::fixed(1)],
            block_threads: threads,
            cluster: self.team,
            dynamic_smem_bytes: smem_bytes,
            persistent: !self.dynamic,
            programmatic: false,
            tensor_maps,
        }
    }
}

/// The board: a ring of tiles in shared memory.
pub struct Board<'c> {
    c: &'c Builder<'c>,
    tiles: Shared<'c>,
    full: Barriers<'c>,
    empty: Barriers<'c>,
    /// Where responses to claims come, in the dynamic order.
    claims: Option<Shared<'c>>,
    /// Tiles that are known ahead. What is claimed is nobody else's, so in the dynamic order it is as few as keep the
    /// copies busy.
    slots: u32,
    /// Blocks that make a tile together.
    team: u32,
}

/// Who reads the board.
pub enum Reader<'c> {
    /// One thread.
    Thread,
    /// A warp, with the lane that stands for it.
    Warp(Bool<'c>),
}

impl<'c> Board<'c> {
    const MOST_SLOTS: u32 = 4;
    const TILE_BYTES: u32 = 16;
    const CLAIMS: u32 = Self::MOST_SLOTS * (Self::TILE_BYTES + 2 * BARRIER_BYTES);
    /// Shared memory that it takes, at a multiple of 16 bytes.
    pub const BYTES: u32 = Self::CLAIMS + Claims::BYTES;

    pub fn new(c: &'c Builder<'c>, at: Shared<'c>, order: Order) -> Board<'c> {
        let slots = if order.dynamic || order.drawn { 2 } else { Self::MOST_SLOTS };
        let full = at.at(Self::MOST_SLOTS * Self::TILE_BYTES);
        let empty = full.at(Self::MOST_SLOTS * BARRIER_BYTES);
        let claims = order.dynamic.then(|| at.at(Self::CLAIMS));
        let (full, empty) = (Barriers::new(full, slots), Barriers::new(empty, slots));
        Board { c, tiles: at, full, empty, claims, slots, team: order.team }
    }

    /// Tiles that are known at most of which a reader has not read the first.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Makes its barriers for so many readers. One thread calls.
    pub fn init(&self, readers: u32) {
        self.full.init(self.c, 1);
        self.empty.init(self.c, readers);
        if let Some(room) = self.claims {
            Claims::init(self.c, self.team, room);
        }
    }

    /// Does `body` for every tile of the block, in order.
    pub fn each_tile(&self, reader: &Reader<'c>, body: impl FnOnce(&Tile<'c>)) {
        let c = self.c;
        let ring = Ring::new(c, self.slots);
        c.repeat(|| {
            c.wait_for(self.full.at(ring.slot()), ring.parity());
            let [expert, row, col, rest] = c.load_words(self.tiles.plus(ring.slot() * Self::TILE_BYTES));
            let done = self.empty.at(ring.slot());
            match reader {
                Reader::Thread => c.arrive(done),
                Reader::Warp(elected) => {
                    c.warp_barrier();
                    c.when(*elected, || c.arrive(done));
                }
            }
            ring.advance();
            let rows = rest & 0xffff;
            let tile = Tile { segment: rest >> 16, expert, row, rows, col, whole: rows.div_ceil(16) << 4 };
            let exists = tile.rows.ne(0);
            c.when(exists, || body(&tile));
            exists
        });
    }
}

/// Writes the block's tiles to the board, and after them one without rows. A whole warp calls; `elected` is one lane. The
/// blocks of a cluster, which make a tile together, find the same tiles.
pub fn publish_tiles<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    contract: &Contract,
    board: &Board<'c>,
    elected: Bool<'c>,
    tile: (u32, u32),
) {
    let c = k.builder;
    let mut segments: Vec<Tiles> = Vec::new();
    for s in &contract.segments {
        // Segments that are chained have the same rows.
        let same = contract.segments.iter().zip(&segments).find(|(other, _)| other.groups == s.groups && is_grouped(s));
        let tiles = same.map_or_else(|| Tiles::new(k, program, s, tile), |(_, tiles)| tiles.of(program, s));
        segments.push(tiles);
    }
    let total = segments.iter().map(Tiles::count).reduce(|a, b| a + b).unwrap_or(c.i32(0));
    let from = match contract.numbers {
        Some(numbers) => Source::Drawn { counter: k.view(numbers).base, total },
        None => board.claims.map_or(Source::EveryNth, Source::Claimed),
    };
    let claims = Claims::new(c, board.team, from, elected);
    let ring = Ring::new(c, board.slots);
    c.repeat(|| {
        let found: [_; 4] = std::array::from_fn(|_| c.var(c.i32(0)));
        let (id, mut first) = (claims.number(), c.i32(0));
        for (i, tiles) in segments.iter().enumerate() {
            let n = tiles.count();
            let local = id - first;
            c.when(claims.is_any().and(id.ge(first)).and(local.lt(n)), || {
                let tile = tiles.find(c, local);
                let rest = tile.rows | (i as u32) << 16;
                found.iter().zip([tile.expert, tile.row, tile.col, rest]).for_each(|(to, x)| to.set(x));
            });
            first = first + n;
        }
        c.wait_for(board.empty.at(ring.slot()), ring.parity_before());
        c.when(elected, || {
            c.store_words(board.tiles.plus(ring.slot() * Board::TILE_BYTES), found.map(|x| x.get()));
            c.arrive(board.full.at(ring.slot()));
        });
        c.warp_barrier();
        ring.advance();
        let exists = (found[3].get() & 0xffff).ne(0);
        c.when(exists, || claims.advance(elected));
        exists
    });
}

/// The tiles of one segment.
#[derive(Clone)]
pub struct Tiles<'c> {
    rows: Rows<'c>,
    tile_rows: u32,
    tile_cols: u32,
    col_tiles: u32,
    /// Row tiles of all experts.
    row_tiles: I32<'c>,
}

#[derive(Clone)]
enum Rows<'c> {
    /// So many rows with one matrix.
    Dense(I32<'c>),
    /// A lane's share of the experts: the number of its first, the row where each begins and the last ends, the row
    /// tiles of each, and the row tiles of all experts before.
    ByExpert { first: I32<'c>, starts: Vec<I32<'c>>, tiles: Vec<I32<'c>>, before: I32<'c> },
}

impl<'c> Tiles<'c> {
    /// In tiles of (rows, columns). All lanes of a warp call.
    pub fn new(
        k: &Kernel<'c, '_>,
        program: &Program,
        segment: &Segment,
        (tile_rows, tile_cols): (u32, u32),
    ) -> Tiles<'c> {
        let c = k.builder;
        let out = program.buffer(segment.out);
        let (rows, row_tiles) = match segment.groups {
            Groups::Dense => {
                let rows = k.length(out.rows, k.n_tokens());
                (Rows::Dense(rows), rows.div_ceil(tile_rows))
            }
            Groups::ByExpert { offsets } => {
                let (view, n_experts) = (k.view(offsets), n_experts(program, segment));
                let (lane, per_lane) = (c.lane(), n_experts.div_ceil(32));
                let first = lane * per_lane;
                // Offsets of experts past the last read the end again: they have no rows.
                let is_whole = n_experts.is_multiple_of(32);
                let place = |e: I32<'c>| if is_whole { e } else { e.min(n_experts) };
                let read = |i: u32| c.load_i32(view.base.plus(view.bytes(place(first + i))));
                let starts: Vec<I32> = (0..=per_lane).map(read).collect();
                let tiles: Vec<I32> = starts.windows(2).map(|w| (w[1] - w[0]).div_ceil(tile_rows)).collect();
                let mine = tiles.iter().copied().reduce(|a, b| a + b).unwrap_or(c.i32(0));
                let inclusive = c.warp_prefix_sum(mine, lane);
                let total = c.read_lane(inclusive, 31);
                (Rows::ByExpert { first, starts, tiles, before: inclusive - mine }, total)
            }
        };
        Tiles { rows, tile_rows, tile_cols, col_tiles: segment.n(program).div_ceil(tile_cols.into()) as u32, row_tiles }
    }

    /// Those of a segment that has the same rows.
    fn of(&self, program: &Program, segment: &Segment) -> Tiles<'c> {
        Tiles { col_tiles: segment.n(program).div_ceil(self.tile_cols.into()) as u32, ..self.clone() }
    }

    /// How many.
    pub fn count(&self) -> I32<'c> {
        self.row_tiles * self.col_tiles
    }

    /// The `n`-th tile, which exists. All lanes of a warp call.
    pub fn find(&self, c: &'c Builder<'c>, n: I32<'c>) -> Tile<'c> {
        let segment = c.i32(0);
        match &self.rows {
            Rows::Dense(rows) => {
                let row = (n % self.row_tiles) * self.tile_rows;
                let rows = (*rows - row).min(self.tile_rows);
                Tile { segment, expert: c.i32(0), row, rows, col: (n / self.row_tiles) * self.tile_cols, whole: rows }
            }
            Rows::ByExpert { first, starts, tiles, before } => {
                let found = c.var(c.bool(false));
                // Of the expert: number, tiles of those before, own tiles, first row, row behind the last.
                let of: [_; 5] = [0, 0, 1, 0, 0].map(|x| c.var(c.i32(x)));
                let mut sum = *before;
                for (i, &tiles) in tiles.iter().enumerate() {
                    let next = sum + tiles;
                    let hit = n.ge(sum * self.col_tiles).and(n.lt(next * self.col_tiles));
                    found.set(found.get().or(hit));
                    let values = [*first + i as u32, sum, tiles, starts[i], starts[i + 1]];
                    of.iter().zip(values).for_each(|(to, x)| to.set(c.select(hit, x, to.get())));
                    sum = next;
                }
                // One lane has found it; its number is the count of bits below the lowest that is set.
                let winners = c.ballot(found.get());
                let winner = ((winners - 1) & (winners ^ u32::MAX)).popcount();
                let [expert, before, count, start, end] = of.map(|v| c.read_lane(v.get(), winner & 31));
                let local = n - before * self.col_tiles;
                let row = start + (local % count) * self.tile_rows;
                let rows = (end - row).min(self.tile_rows);
                Tile { segment, expert, row, rows, col: (local / count) * self.tile_cols, whole: rows }
            }
        }
    }
}
