//! Bias, epilogue expression and store of one column of the result, in registers.
//!
//! A thread has one output column of the tile, and all panels' sums of it for some rows: gate and up of an element meet
//! in one thread. The 32 threads of a warp have adjacent columns, so a store of a row is one piece of memory.

use crate::builder::{Bool, F32, I32};
use crate::kernels::{Kernel, View};
use crate::parts::Tile;
use crate::parts::math::evaluate;
use moec_ir::Expr;
use moec_ir::tile::{Program, Segment};

/// The end of a tile, for one thread.
pub struct Epilogue<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    expr: &'k Expr,
    out: View<'c>,
    col: I32<'c>,
    has_col: Bool<'c>,
    /// For each panel.
    biases: Vec<Option<F32<'c>>>,
}

impl<'k, 'c, 'p> Epilogue<'k, 'c, 'p> {
    /// For column `col` of the result; a column past the end is computed and not stored.
    pub fn new(
        k: &'k Kernel<'c, 'p>,
        program: &Program,
        segment: &'k Segment,
        tile: &Tile<'c>,
        col: I32<'c>,
    ) -> Epilogue<'k, 'c, 'p> {
        let c = k.builder;
        let n_cols = program.buffer(segment.out).cols as u32;
        let bias = |view: View<'c>| c.load_elements(view.at(tile.expert, col.min(n_cols - 1)), view.dtype, 1)[0];
        Epilogue {
            k,
            expr: &segment.epilogue,
            out: k.result_of(segment, tile),
            col,
            has_col: col.lt(n_cols),
            biases: segment.biases.iter().map(|b| b.map(|b| bias(k.view(b)))).collect(),
        }
    }

    /// Stores rows from `row` on, of which `rows` exist, from the sums `sums[panel][row]`.
    pub fn store(&self, row: I32<'c>, rows: I32<'c>, sums: &[Vec<F32<'c>>]) {
        let c = self.k.builder;
        let n = sums.first().map_or(0, Vec::len);
        let value = |i: usize| {
            let with_bias = |(sums, bias): (&Vec<F32<'c>>, &Option<F32<'c>>)| bias.map_or(sums[i], |b| sums[i] + b);
            let args: Vec<F32> = sums.iter().zip(&self.biases).map(with_bias).collect();
            evaluate(c, self.expr, &args)
        };
        let values: Vec<F32> = (0..n).map(value).collect();
        let places = self.out.column(row, self.col, n as u32);
        for ((i, value), to) in (0u32..).zip(values).zip(places) {
            c.when(self.has_col.and(c.i32(i).lt(rows)), || c.store_elements(to, self.out.dtype, &[value]));
        }
    }
}
