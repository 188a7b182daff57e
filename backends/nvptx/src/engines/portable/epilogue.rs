//! Bias, epilogue expression and store, in registers.

use crate::builder::{Bool, F32, I32};
use crate::kernels::{Kernel, View};
use crate::parts::Tile;
use crate::parts::math::evaluate;
use moec_ir::Expr;
use moec_ir::tile::{Program, Segment};

/// The end of a tile.
pub struct Epilogue<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    expr: &'k Expr,
    out: View<'c>,
    biases: Vec<Option<View<'c>>>,
    expert: I32<'c>,
    n_cols: u32,
}

impl<'k, 'c, 'p> Epilogue<'k, 'c, 'p> {
    pub fn new(k: &'k Kernel<'c, 'p>, program: &Program, segment: &'k Segment, tile: &Tile<'c>) -> Self {
        Epilogue {
            k,
            expr: &segment.epilogue,
            out: k.result_of(segment, tile),
            biases: segment.biases.iter().map(|b| b.map(|b| k.view(b))).collect(),
            expert: tile.expert,
            n_cols: program.buffer(segment.out).cols as u32,
        }
    }

    /// The biases of `n` adjacent columns, for each panel that has one. Columns past the end read the last.
    pub fn biases(&self, col: I32<'c>, n: u32) -> Vec<Option<Vec<F32<'c>>>> {
        let c = self.k.builder;
        let one = |view: View<'c>| {
            (0..n)
                .map(|i| {
                    let col = (col + i).min(self.n_cols - 1);
                    c.load_elements(view.at(self.expert, col), view.dtype, 1)[0]
                })
                .collect()
        };
        self.biases.iter().map(|b| b.map(one)).collect()
    }

    /// Stores adjacent columns of a row from the accumulators `sums[panel][column]`.
    pub fn store(
        &self,
        row: I32<'c>,
        exists: Bool<'c>,
        col: I32<'c>,
        sums: &[Vec<F32<'c>>],
        biases: &[Option<Vec<F32<'c>>>],
    ) {
        let c = self.k.builder;
        let n = sums.first().map_or(0, Vec::len) as u32;
        let value = |i: usize| {
            let args: Vec<F32> = sums
                .iter()
                .zip(biases)
                .map(|(sums, bias)| bias.as_ref().map_or(sums[i], |bias| sums[i] + bias[i]))
                .collect();
            evaluate(c, self.expr, &args)
        };
        // Adjacent columns go out in one store where the row's alignment allows.
        let in_one = n > 1 && self.out.unit().is_multiple_of(n.into()) && self.n_cols.is_multiple_of(n);
        if in_one {
            c.when(exists.and(col.lt(self.n_cols)), || {
                let values: Vec<F32> = (0..n as usize).map(value).collect();
                c.store_elements(self.out.at(row, col), self.out.dtype, &values);
            });
            return;
        }
        for i in 0..n {
            let col = col + i;
            c.when(exists.and(col.lt(self.n_cols)), || {
                c.store_elements(self.out.at(row, col), self.out.dtype, &[value(i as usize)]);
            });
        }
    }
}
