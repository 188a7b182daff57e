//! The weighted sum over a token's slots.

use super::elementwise::Cut;
use super::{Design, Kernel, Registers};
use crate::builder::{F32, I32, Var};
use crate::parts::math::evaluate;
use moec_ir::tile::{Combine, Program, Schedule};

/// Slots up to which the loop over slots is written out, so that all their loads are under way at once.
const MOST_UNROLLED: u32 = 16;

/// Adds in slot order in f32, one fused multiply-add for each slot.
pub fn combine<'p>(program: &'p Program, combine: &'p Combine, schedule: &Schedule) -> Design<'p> {
    let cut = Cut::new(program, schedule, (combine.out, None), &[combine.y], &combine.args);
    let (rows, schedule) = (program.buffer(combine.out).rows, *schedule);
    let body = move |k: &Kernel| {
        let sum = SlotSum::new(k, program, combine, &schedule);
        cut.for_each(k, k.length(rows, k.n_tokens()), |token, col| sum.store(token, col));
    };
    Design { launch: cut.launch(rows), registers: Registers::Plenty, body: Box::new(body) }
}

/// The sum of a token's slots, for a vector of columns.
pub struct SlotSum<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    combine: &'k Combine,
    slots: u32,
    cut: Cut,
}

impl<'k, 'c, 'p> SlotSum<'k, 'c, 'p> {
    /// For vectors as wide as rows allow.
    pub fn new(k: &'k Kernel<'c, 'p>, program: &Program, combine: &'k Combine, schedule: &Schedule) -> Self {
        let cut = Cut::new(program, schedule, (combine.out, None), &[combine.y], &combine.args);
        SlotSum { k, combine, slots: program.buffer(combine.weights).cols as u32, cut }
    }

    /// Columns of a vector.
    pub fn vector(&self) -> u32 {
        self.cut.vector
    }

    /// Makes and stores the vector of `token` at `col`.
    pub fn store(&self, token: I32<'c>, col: I32<'c>) {
        let (k, combine) = (self.k, self.combine);
        let c = k.builder;
        let (y, weights) = (k.view(combine.y), k.view(combine.weights));
        let map = combine.slot_to_row.map(|m| k.view(m));
        let first = token * self.slots;
        let sums: Vec<Var<F32>> = (0..self.cut.vector).map(|_| c.var(c.f32(0.0))).collect();
        let row_of = |slot: I32<'c>| map.map_or(slot, |m| c.load_i32(m.nth(slot)));
        let add = |slot: I32<'c>, row: I32<'c>| {
            let weight = c.load_elements(weights.nth(slot), weights.dtype, 1)[0];
            let values = c.load_elements(y.at(row, col), y.dtype, self.cut.vector as usize);
            sums.iter().zip(values).for_each(|(sum, x)| sum.set(weight.fma(x, sum.get())));
        };
        let add_if_dispatched = |slot: I32<'c>, row: I32<'c>| c.when(row.is_negative().not(), || add(slot, row));
        let sum_all = || {
            if self.slots > MOST_UNROLLED {
                c.range(first, first + self.slots, 1, |slot| add_if_dispatched(slot, row_of(slot)));
            } else {
                let rows: Vec<(I32, I32)> = (0..self.slots).map(|j| (first + j, row_of(first + j))).collect();
                // Almost always every slot has a row; then nothing stands between the loads.
                let any_missing = rows.iter().fold(c.bool(false), |any, (_, row)| any.or(row.is_negative()));
                c.either(
                    any_missing,
                    || rows.iter().for_each(|&(slot, row)| add_if_dispatched(slot, row)),
                    || rows.iter().for_each(|&(slot, row)| add(slot, row)),
                );
            }
        };
        c.part("sum of slots", sum_all);
        c.part("results", || self.finish((token, col), &sums));
    }

    fn finish(&self, (token, col): (I32<'c>, I32<'c>), sums: &[Var<'c, F32<'c>>]) {
        let (c, out) = (self.k.builder, self.k.view(self.combine.out));
        let args: Vec<Vec<F32>> = self.combine.args.iter().map(|a| self.cut.arg(self.k, a, token, col)).collect();
        let value = |(i, sum): (usize, &Var<'c, F32<'c>>)| {
            let all: Vec<F32> = std::iter::once(sum.get()).chain(args.iter().map(|a| a[i])).collect();
            evaluate(c, &self.combine.expr, &all)
        };
        let values: Vec<F32> = sums.iter().enumerate().map(value).collect();
        c.store_elements(out.at(token, col), out.dtype, &values);
    }
}
