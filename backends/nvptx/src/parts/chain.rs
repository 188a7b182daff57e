//! Tiles that wait for tiles of the same launch: gate and up, and then down, without a launch between.
//!
//! Each group of warps that has stored its part of a tile counts itself for the tile's expert, and who reads the expert's rows waits
//! until the count is whole. Weights do not wait: their copies run ahead as far as there are stages. When all parts of the expert's
//! last results are stored, its rows have been read by all who wait, and the last one leaves both counters as they were: zero.
//!
//! Nobody waits for what nobody has begun: tiles that wait have higher numbers than those that they wait for, and numbers are drawn from
//! a counter, the lowest first. A CTA that has drawn one runs, and makes its tiles in their order, so that there is always one that
//! does not wait, however many CTAs of the launch run at the same time.

use crate::builder::{Bool, Global, I32};
use crate::kernels::Kernel;
use crate::parts::Tile;
use moec_ir::tile::{Chain, Contract, Groups, Program, Segment};

/// Which count of a chain.
#[derive(Clone, Copy)]
enum Count {
    Stored = 0,
    Read = 1,
}

/// The chains of a contraction.
#[derive(Clone, Copy)]
pub struct Chains<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    program: &'k Program,
    contract: &'k Contract,
    /// Rows and columns of a tile.
    tile: (u32, u32),
    /// Warps that count themselves for a tile.
    warps: u32,
}

impl<'k, 'c, 'p> Chains<'k, 'c, 'p> {
    /// Of tiles of (rows, columns) that so many warps store.
    pub fn new(
        k: &'k Kernel<'c, 'p>,
        program: &'k Program,
        contract: &'k Contract,
        tile: (u32, u32),
        warps: u32,
    ) -> Chains<'k, 'c, 'p> {
        Chains { k, program, contract, tile, warps }
    }

    /// Waits until all rows that segment `segment` reads for the expert of `tile` are stored. A whole warp calls; `elected` is one
    /// lane, which may then have them copied.
    pub fn wait(&self, segment: usize, tile: &Tile<'c>, elected: Bool<'c>) {
        let Some(chain) = self.contract.chain_to(segment) else { return };
        let c = self.k.builder;
        c.part("rows of the same launch", || {
            c.when(elected, || {
                c.wait_for_count(self.counter(chain, Count::Stored, tile), self.parts(chain.made_by, tile))
            });
            c.warp_barrier();
        });
    }

    /// After this warp has stored its part of `tile`.
    pub fn stored(&self, tile: &Tile<'c>, elected: Bool<'c>) {
        let c = self.k.builder;
        for chain in &self.contract.chains {
            let of = |count| self.counter(chain, count, tile);
            c.when(tile.segment.eq(chain.made_by), || {
                c.part("rows for the same launch", || {
                    // The barrier gathers the warp's writes, the fence hands them on with the number.
                    c.warp_barrier();
                    c.when(elected, || {
                        c.count_after(of(Count::Stored), c.i32(1));
                    });
                });
            });
            c.when(tile.segment.eq(chain.read_by).and(elected), || {
                let before = c.count_after(of(Count::Read), c.i32(1));
                c.when((before + 1).eq(self.parts(chain.read_by, tile)), || {
                    c.fence_gpu();
                    [Count::Stored, Count::Read].into_iter().for_each(|count| c.store_i32(of(count), c.i32(0)));
                });
            });
        }
    }

    fn counter(&self, chain: &Chain, count: Count, tile: &Tile<'c>) -> Global<'c> {
        self.k.view(chain.counter).at(self.k.builder.i32(count as u32), tile.expert)
    }

    /// How often warps count themselves for the results of a segment that the expert of `tile` has.
    fn parts(&self, segment: u32, tile: &Tile<'c>) -> I32<'c> {
        let c = self.k.builder;
        let Some(segment) = self.contract.segments.get(segment as usize) else { return c.i32(0) };
        let (tile_rows, tile_cols) = self.tile;
        let of_row = (segment.n(self.program) as u32).div_ceil(tile_cols) * self.warps;
        self.rows(segment, tile).div_ceil(tile_rows) * of_row
    }

    fn rows(&self, segment: &Segment, tile: &Tile<'c>) -> I32<'c> {
        let (k, c) = (self.k, self.k.builder);
        match segment.groups {
            Groups::Dense => k.length(self.program.buffer(segment.out).rows, k.n_tokens()),
            Groups::ByExpert { offsets } => {
                let offsets = k.view(offsets);
                let [first, end] = [tile.expert, tile.expert + 1].map(|e| c.load_i32(offsets.nth(e)));
                end - first
            }
        }
    }
}
