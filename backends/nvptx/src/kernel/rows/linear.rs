//! The router's matrix product inside a row program, in exact f32.
//!
//! A warp takes up to four rows and four columns at a time. Its lanes lie along K and add their partial sums at the end,
//! always in the same order, whatever the number of rows.

use super::super::View;
use crate::code::{Code, F32, I32, Shared, Var};
use moec_ir::DType;
use moec_ir::tile::RowOp;

/// Rows and columns that a warp computes together.
const AT_ONCE: u32 = 4;

pub struct Linear<'a, 'c> {
    pub x: View<'c>,
    pub w: View<'c>,
    pub bias: Option<View<'c>>,
    pub op: &'a RowOp,
}

impl<'c> Linear<'_, 'c> {
    /// Computes all columns of `n_rows` rows from `first` on; `place(row, col)` says where a logit is kept.
    pub fn run(
        &self,
        c: &'c Code<'c>,
        warps: u32,
        (first, n_rows, most_rows): (I32<'c>, I32<'c>, u32),
        depth: u32,
        place: impl Fn(I32<'c>, I32<'c>) -> Shared<'c>,
    ) {
        let width = self.op.width as u32;
        let rows_at_once = AT_ONCE.min(most_rows);
        let col_groups = width.div_ceil(AT_ONCE);
        let row_groups = n_rows.div_ceil(rows_at_once);
        let vector = self.vector(depth);
        let lane = c.lane();
        c.range(c.warp(), row_groups * col_groups, warps, |job| {
            let row = (job / col_groups) * rows_at_once;
            let col = (job % col_groups) * AT_ONCE;
            // Rows and columns past the end repeat the last; their results are not kept.
            let x: Vec<_> = (0..rows_at_once).map(|i| self.x.row(first + (row + i).min(n_rows - 1))).collect();
            let w: Vec<_> = (0..AT_ONCE).map(|j| self.w.row((col + j).min(width - 1))).collect();
            let zero = || (0..AT_ONCE).map(|_| c.var(c.f32(0.0))).collect::<Vec<Var<F32>>>();
            let sums: Vec<Vec<Var<F32>>> = (0..rows_at_once).map(|_| zero()).collect();
            c.range(lane * vector, depth, 32 * vector, |k| {
                let load = |view: &View<'c>, row: &crate::code::Global<'c>| {
                    c.load_elements(row.plus(view.bytes(k)), view.dtype, vector as usize)
                };
                let w: Vec<Vec<F32>> = w.iter().map(|row| load(&self.w, row)).collect();
                for (x, sums) in x.iter().zip(&sums) {
                    let x = load(&self.x, x);
                    for (w, sum) in w.iter().zip(sums) {
                        sum.set(x.iter().zip(w).fold(sum.get(), |s, (x, w)| x.fma(*w, s)));
                    }
                }
            });
            for (i, sums) in sums.iter().enumerate() {
                for (j, sum) in sums.iter().enumerate() {
                    let total = c.warp_sum(sum.get());
                    let (row, col) = (row + i as u32, col + j as u32);
                    c.when(lane.eq(0).and(row.lt(n_rows)).and(col.lt(width)), || {
                        let total = match &self.bias {
                            Some(b) => total + c.load_elements(b.at(c.i32(0), col), b.dtype, 1)[0],
                            None => total,
                        };
                        c.store_f32(place(row, col), c.round(self.op.dtype, total));
                    });
                }
            }
        });
    }

    /// Elements of a row that a lane reads at once: at most 16 bytes of the wider type, and dividing K and both pitches.
    fn vector(&self, depth: u32) -> u32 {
        let most = if self.x.dtype == DType::F32 || self.w.dtype == DType::F32 { 4 } else { 8 };
        let lengths = [u64::from(depth), self.x.pitch, self.w.pitch];
        [8u32, 4, 2]
            .into_iter()
            .find(|v| *v <= most && lengths.iter().all(|n| n.is_multiple_of(u64::from(*v))))
            .unwrap_or(1)
    }
}
