//! The weighted sum over a token's slots.

use super::elementwise::Cut;
use super::{Design, Kernel, Registers, View};
use crate::builder::{Builder, F32, I32, Var};
use crate::parts::math::evaluate;
use moec_ir::shape::Dim;
use moec_ir::tile::{Combine, Program, Schedule};

/// Slots up to which the loop over slots is written out, so that all their loads are under way at once.
const MOST_UNROLLED: u32 = 16;

/// Adds in slot order in f32, one fused multiply-add for each slot.
pub fn combine<'p>(program: &'p Program, combine: &'p Combine, schedule: &Schedule) -> Design<'p> {
    let cut = Cut::new(program, schedule, combine.out, &[combine.y], &combine.args);
    let rows = program.buffer(combine.out).rows;
    let slots = program.buffer(combine.weights).cols as u32;
    let body = move |k: &Kernel| build(k, combine, &cut, rows, slots);
    Design { launch: cut.launch(rows), registers: Registers::Plenty, body: Box::new(body) }
}

fn build<'c>(k: &Kernel<'c, '_>, combine: &Combine, cut: &Cut, rows: Dim, slots: u32) {
    let c = k.builder;
    let (y, weights, out) = (k.view(combine.y), k.view(combine.weights), k.view(combine.out));
    let map = combine.slot_to_row.map(|m| k.view(m));
    cut.for_each(k, k.length(rows, k.n_tokens()), |token, col| {
        let first = token * slots;
        let sums: Vec<Var<F32>> = (0..cut.vector).map(|_| c.var(c.f32(0.0))).collect();
        let row_of = |slot: I32<'c>| map.map_or(slot, |m| c.load_i32(m.nth(slot)));
        let add = |slot: I32<'c>, row: I32<'c>| {
            let weight = c.load_elements(weights.nth(slot), weights.dtype, 1)[0];
            let values = c.load_elements(y.at(row, col), y.dtype, cut.vector as usize);
            sums.iter().zip(values).for_each(|(sum, x)| sum.set(weight.fma(x, sum.get())));
        };
        let add_if_dispatched = |slot: I32<'c>, row: I32<'c>| c.when(row.is_negative().not(), || add(slot, row));
        let sum_all = || {
            if slots > MOST_UNROLLED {
                c.range(first, first + slots, 1, |slot| add_if_dispatched(slot, row_of(slot)));
            } else {
                let rows: Vec<(I32, I32)> = (0..slots).map(|j| (first + j, row_of(first + j))).collect();
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
        c.part("results", || finish(k, c, combine, cut, (token, col), &sums, &out));
    });
}

fn finish<'c>(
    k: &Kernel<'c, '_>,
    c: &'c Builder<'c>,
    combine: &Combine,
    cut: &Cut,
    (token, col): (I32<'c>, I32<'c>),
    sums: &[Var<'c, F32<'c>>],
    out: &View<'c>,
) {
    let args: Vec<Vec<F32>> = combine.args.iter().map(|a| cut.arg(k, a, token, col)).collect();
    let value = |(i, sum): (usize, &Var<'c, F32<'c>>)| {
        let all: Vec<F32> = std::iter::once(sum.get()).chain(args.iter().map(|a| a[i])).collect();
        evaluate(c, &combine.expr, &all)
    };
    let values: Vec<F32> = sums.iter().enumerate().map(value).collect();
    c.store_elements(out.at(token, col), out.dtype, &values);
}
