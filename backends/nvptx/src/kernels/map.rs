//! Elementwise expressions.

use super::elementwise::Cut;
use super::{Design, Kernel, Registers};
use crate::builder::F32;
use crate::parts::math::evaluate;
use moec_ir::tile::{Map, Program, Schedule};

/// `out[r, c] = expr(args…)`, a vector of adjacent columns for each thread.
pub fn map<'p>(program: &'p Program, map: &'p Map, schedule: &Schedule) -> Design<'p> {
    let cut = Cut::new(program, schedule, (map.out, map.out_places), &[], &map.args);
    let rows = program.buffer(map.out).rows;
    let body = move |k: &Kernel| {
        let n_rows = k.rows_until(rows, map.until);
        let out = k.result(map.out, map.out_places, n_rows - 1);
        cut.for_each(k, n_rows, |row, col| {
            k.builder.part("map", || {
                let args: Vec<Vec<F32>> = map.args.iter().map(|a| cut.arg(k, a, row, col)).collect();
                let value = |i: usize| evaluate(k.builder, &map.expr, &args.iter().map(|a| a[i]).collect::<Vec<_>>());
                let values: Vec<F32> = (0..cut.vector as usize).map(value).collect();
                k.builder.store_elements(out.at(row, col), out.dtype, &values);
            })
        });
    };
    Design { launch: cut.launch(rows), registers: Registers::Plenty, body: Box::new(body) }
}
