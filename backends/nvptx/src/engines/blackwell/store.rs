//! The warps of the epilogue: sums from tensor memory to results.

use super::contract::{Cta, EPILOGUE_WARPS};
use super::layout::part_barriers;
use super::results::{EPILOGUE_BARRIER, Results};
use crate::builder::{F32, I32, LOAD_COLUMNS, Shared, Var};
use crate::parts::k_parts::{End, Parts};
use crate::parts::{Finish, Group, Reader, Ring, Tile};
use moec_ir::engine::blackwell::{Operands, SETS};
use moec_ir::tile::Segment;

impl<'c> Cta<'_, 'c, '_> {
    pub fn store(&self) {
        let finish = Finish::new(self.k, self.program, self.contract, self.schedule);
        match self.g.operands {
            Operands::Halves | Operands::Blocks(_) => self.store_parts(finish.as_ref()),
            Operands::Fp8 => self.store_steps(finish.as_ref()),
        }
        if let Some(finish) = &finish {
            finish.without_rows(Group::Warp(self.elected), (self.warp & 3, EPILOGUE_WARPS));
        }
    }

    /// After the sums of a part: where they were stored, somebody may have them all.
    fn finish(&self, finish: Option<&Finish<'_, 'c, '_>>, tile: &Tile<'c>, end: End<'c>) {
        let End::Stored = end else { return };
        self.chains.stored(tile, self.elected);
        if let Some(finish) = finish {
            finish.stored(Group::Warp(self.elected), tile, (tile.col + self.lanes(), 32));
        }
    }

    /// The lanes of tensor memory that this warp reaches, and with them its output columns.
    fn lanes(&self) -> I32<'c> {
        (self.warp & 3) << 5
    }

    /// The thread's column of sums of other parts of k.
    fn parts_of(&self, column: I32<'c>) -> Parts<'c> {
        let g = self.g;
        let offsets = (part_barriers(g), g.first_sums());
        Parts::new(self.k.builder, self.parts, column, (g.panels, g.tile_m), offsets)
    }

    /// Tells that a set of sums is read.
    fn give_back(&self, sets: Ring<'c>) {
        let c = self.k.builder;
        c.before_sync();
        c.warp_barrier();
        c.when(self.elected, || self.member.arrive(self.sums_empty.at(sets.slot())));
        sets.advance();
    }

    /// A set of sums for each part of k.
    fn store_parts(&self, finish: Option<&Finish<'_, 'c, '_>>) {
        let (c, g) = (self.k.builder, self.g);
        let lanes = self.lanes();
        let sets = Ring::new(c, SETS);
        let column = lanes + c.lane();
        let parts = self.parts_of(column);
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
                self.give_back(sets);
                self.finish(finish, tile, end);
            });
        });
    }

    /// A set of sums for each step, scaled and added in registers.
    fn store_steps(&self, finish: Option<&Finish<'_, 'c, '_>>) {
        let c = self.k.builder;
        let lanes = self.lanes();
        let sets = Ring::new(c, SETS);
        let parts = self.parts_of(lanes + c.lane());
        self.each_tile(&Reader::Warp(self.elected), |tile| {
            parts.tile(self.elected, |part, end| {
                self.each_segment(tile, |i, segment| {
                    // Scales of rows are read here.
                    self.chains.wait(i, tile, self.elected);
                    self.add_steps(segment, tile, sets, lanes, &parts, (part, end));
                });
                self.finish(finish, tile, end);
            });
        });
    }

    /// The place of the factors of the rows of a set.
    fn factors(&self, slot: I32<'c>) -> Shared<'c> {
        self.k.builder.shared().at(self.g.control_bytes()).plus(slot * self.g.factor_bytes())
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
        let (c, g) = (self.k.builder, self.g);
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
        let (first_step, behind) = self.parts.steps(self.n_steps(segment), part);
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
            c.barrier_of(EPILOGUE_BARRIER, EPILOGUE_WARPS * 32);
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
            self.give_back(sets);
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
