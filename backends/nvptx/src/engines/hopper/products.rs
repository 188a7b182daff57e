//! Products and what becomes of their sums: the warpgroups that multiply.

use super::contract::{Cta, PRODUCTS};
use super::decode::CodedPanel;
use crate::builder::{F32, I32, Var, WgmmaRows};
use crate::parts::k_parts::{End, Parts};
use crate::parts::{Epilogue, Finish, Group, Reader, Ring, Tile};
use moec_ir::engine::ROW_BYTES;
use moec_ir::engine::hopper::{GIVEN_PITCH, GROUP_N, Operands, PRODUCT_WARPS, is_widened};
use moec_ir::tile::Segment;

/// Barrier of the warps that multiply.
pub const RESULTS_BARRIER: u32 = 1;
/// Instructions along k in a step: 32 bytes each.
pub const PIECES: u32 = ROW_BYTES / 32;

/// The sums of a thread: `[panel][sum]`; of one panel where each warpgroup has one.
pub type Sums<'c> = Vec<Vec<Var<'c, F32<'c>>>>;

/// Where a thread's sums lie in a tile.
#[derive(Clone, Copy)]
pub struct Place<'c> {
    /// The warpgroup, 0 or 1.
    pub group: I32<'c>,
    /// Column of the tile of the first of its two, those of a second panel behind those of the first where each warpgroup has
    /// a panel; the other is eight columns on.
    pub column: I32<'c>,
    /// Row of the first of its two of every eight rows.
    pub row: I32<'c>,
}

impl<'c> Cta<'_, 'c, '_> {
    /// Multiplies and stores every tile. Sums of other parts of k have barriers at `barriers`.
    pub fn multiply(&self, barriers: u32) {
        let (c, g) = (self.k.builder, self.g);
        let (warp, lane) = (self.warp - PRODUCTS, c.lane());
        let place = Place { group: warp >> 2, column: (warp << 4) + (lane >> 2), row: (lane & 3) << 1 };
        let ring = Ring::new(c, g.stages);
        let parts = Parts::new(c, self.parts, place.column, (g.panels, g.tile_m), (barriers, g.first_sums()));
        let finish = Finish::new(self.k, self.program, self.contract, self.schedule);
        let group = Group::Warp(self.elected);
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            self.each_segment(tile, |_, segment| {
                let zero = || (0..g.tile_m / 2).map(|_| c.var(c.f32(0.0))).collect();
                let n_panels = if g.is_by_panel() { 1 } else { segment.panels.len() };
                let sums: Sums = (0..n_panels).map(|_| zero()).collect();
                self.parts.each(c, |part| {
                    self.products(segment, tile, part, place, ring, &sums);
                    parts.end(self.elected, part, |end| {
                        c.part("results", || match self.g.operands {
                            Operands::Halves if g.is_by_panel() => self.store_by_panel(segment, tile, place, &sums),
                            Operands::Halves => self.store(segment, tile, place, &sums, &parts, end),
                            Operands::Fp8 => self.store_scaled(segment, tile, place, &sums, &parts, end),
                        });
                        let End::Stored = end else { return };
                        self.chains.stored(tile, self.elected);
                        if let Some(finish) = &finish {
                            finish.stored(group, tile, (tile.col + (warp << 4), 16));
                        }
                    });
                });
            });
        });
        if let Some(finish) = &finish {
            finish.without_rows(group, (warp, PRODUCT_WARPS));
        }
    }

    /// The sums over a part of k, by the loop that is built for as many rows as the tile has, or a few more.
    fn products(
        &self,
        segment: &Segment,
        tile: &Tile<'c>,
        part: I32<'c>,
        place: Place<'c>,
        ring: Ring<'c>,
        sums: &Sums<'c>,
    ) {
        let c = self.k.builder;
        let mut less = None;
        for n in self.g.row_steps() {
            // A neighbour without rows multiplies zeros in step.
            let fits = tile.rows.gt(n).not();
            let holds = less.map_or(fits, |less: u32| tile.rows.gt(less).and(fits));
            c.when(holds, || match self.g.operands {
                Operands::Halves => self.products_of(segment, tile, (part, n), place, ring, sums),
                Operands::Fp8 if is_widened(segment) => {
                    self.widened_products_of(segment, (part, n), place, ring, sums);
                }
                Operands::Fp8 => self.fp8_products_of(segment, (part, n), place, ring, sums),
            });
            less = Some(n);
        }
    }

    fn products_of(
        &self,
        segment: &Segment,
        tile: &Tile<'c>,
        (part, n): (I32<'c>, u32),
        place: Place<'c>,
        ring: Ring<'c>,
        sums: &Sums<'c>,
    ) {
        let (c, g) = (self.k.builder, self.g);
        let first_stage = c.swizzled_tile(self.stage(c.i32(0)));
        let coded: Vec<Option<CodedPanel>> = self.coded_panels(segment, tile, place);
        let (first, end) = self.parts.steps(self.n_steps(segment), part);
        let before = c.var(c.i32(0));
        c.range(first, end, 1, |step| {
            let slot = ring.slot();
            c.wait_for(self.full.at(slot), ring.parity());
            let stage = self.stage(slot);
            let mut rows: Vec<[I32; 4]> = coded.iter().flatten().flat_map(|panel| panel.floats(stage, step)).collect();
            c.fence_products(&mut rows);
            let tile = first_stage + slot * (g.stage_bytes() / 16);
            let activations = tile + g.activations() / 16;
            for piece in 0..PIECES {
                let adds = if piece == 0 { step.ne(first).as_i32() } else { c.i32(1) };
                let mut in_registers = 0;
                for (p, sums) in sums.iter().enumerate() {
                    let a = if coded[p].is_some() {
                        in_registers += 1;
                        WgmmaRows::Registers(rows[((in_registers - 1) * PIECES + piece) as usize])
                    } else {
                        let panel = tile + (self.panel(segment, p) / 16 + 2 * piece);
                        WgmmaRows::Shared(panel + place.group * (GROUP_N * ROW_BYTES / 16))
                    };
                    c.start_wgmma((self.ty, n), sums, a, activations + 2 * piece, adds);
                }
            }
            c.commit_products();
            // The products of the step before are done: its stage is free.
            c.wait_products(1);
            c.when(step.ne(first), || self.release(before.get()));
            before.set(slot);
            ring.advance();
        });
        let all: Vec<Var<F32>> = sums.iter().flat_map(|panel| &panel[..n as usize / 2]).copied().collect();
        c.finish_products(&all);
        self.release(before.get());
    }

    /// Stores results of tiles of which each warpgroup has a panel: the second gives its sums to the first.
    fn store_by_panel(&self, segment: &Segment, tile: &Tile<'c>, place: Place<'c>, sums: &Sums<'c>) {
        let c = self.k.builder;
        let column = place.column & (GROUP_N - 1);
        let given = |half: u32, row: I32<'c>| {
            c.shared().at(self.g.given()).plus((row * GIVEN_PITCH + (column + 8 * half)) << 2)
        };
        let each = |half: u32, body: &dyn Fn(I32<'c>, Vec<F32<'c>>)| {
            for eight in 0..self.g.tile_m / 8 {
                c.when(tile.rows.gt(8 * eight), || {
                    let at = (4 * eight + 2 * half) as usize;
                    body(place.row + 8 * eight, sums[0][at..at + 2].iter().map(|x| x.get()).collect());
                });
            }
        };
        let give = || {
            for half in 0..2 {
                each(half, &|row, two| {
                    (0u32..).zip(two).for_each(|(i, sum)| c.store_i32(given(half, row + i), sum.bits()));
                });
            }
        };
        c.when(place.group.ne(0), give);
        c.barrier_of(RESULTS_BARRIER, PRODUCT_WARPS * 32);
        c.when(place.group.eq(0), || {
            for half in 0..2 {
                let epilogue = Epilogue::new(self.k, self.program, segment, tile, tile.col + column + 8 * half);
                each(half, &|row, two| {
                    let other = (0..2).map(|i| c.load_i32(given(half, row + i)).as_f32()).collect();
                    epilogue.store(tile.row + row, (tile.rows - row).signed_max(0), &[two, other]);
                });
            }
        });
        // All have read before the next tile's take the place.
        c.barrier_of(RESULTS_BARRIER, PRODUCT_WARPS * 32);
    }

    /// Stores the sums, or does with those of a part what has to be done.
    fn store(
        &self,
        segment: &Segment,
        tile: &Tile<'c>,
        place: Place<'c>,
        sums: &Sums<'c>,
        parts: &Parts<'c>,
        end: End<'c>,
    ) {
        let c = self.k.builder;
        for half in 0..2 {
            let column = place.column + 8 * half;
            let (parts, col) = (parts.further(8 * half), tile.col + column);
            let epilogue = Epilogue::new(self.k, self.program, segment, tile, col);
            for eight in 0..self.g.tile_m / 8 {
                let row = place.row + 8 * eight;
                c.when(tile.rows.gt(8 * eight), || {
                    let rows = (tile.rows - row).signed_max(0);
                    let at = (4 * eight + 2 * half) as usize;
                    let mut two: Vec<Vec<F32>> =
                        sums.iter().map(|panel| panel[at..at + 2].iter().map(|x| x.get()).collect()).collect();
                    if parts.add(end, row, rows, &mut two) {
                        epilogue.store(tile.row + row, rows, &two);
                    }
                });
            }
        }
    }
}
