//! The router's matrix product inside a row program.
//!
//! The result of a row does not depend on the number of rows: sums are always split and added in the same order.

use super::super::View;
use crate::builder::{Builder, F32, Global, I32, MmaType, Shared, Var};
use moec_ir::DType;
use moec_ir::engine::rows::{FMA_ROWS, Geometry};
use moec_ir::tile::RowOp;

/// Columns that a warp computes together with multiply-adds.
const AT_ONCE: u32 = FMA_ROWS;

/// Who computes.
pub struct Share<'c> {
    /// Warps of a block.
    pub warps: u32,
    /// This block of the cluster, which takes every `blocks`-th group of columns.
    pub rank: I32<'c>,
    pub blocks: u32,
    /// Fragments of eight columns that it takes at once on the tensor cores.
    pub fragments: u32,
}

/// The rows of a cluster.
pub struct Rows<'c> {
    pub first: I32<'c>,
    /// At least 1.
    pub n: I32<'c>,
    /// Rows that are multiplied by weights that are read once.
    pub at_once: u32,
}

/// One product.
pub struct Linear<'a, 'c> {
    pub x: View<'c>,
    pub w: View<'c>,
    pub bias: Option<View<'c>>,
    pub op: &'a RowOp,
    /// K.
    pub depth: u32,
    pub share: Share<'c>,
    pub rows: Rows<'c>,
}

/// Takes a logit: row of the cluster, column, value.
pub type Keep<'a, 'c> = &'a dyn Fn(I32<'c>, I32<'c>, F32<'c>);

impl<'c> Linear<'_, 'c> {
    fn width(&self) -> u32 {
        self.op.width as u32
    }

    /// A logit as it is kept: with its bias, rounded.
    fn finish(&self, c: &'c Builder<'c>, col: I32<'c>, sum: F32<'c>) -> F32<'c> {
        let sum = match &self.bias {
            Some(b) => sum + c.load_elements(b.at(c.i32(0), col), b.dtype, 1)[0],
            None => sum,
        };
        c.round(self.op.dtype, sum)
    }

    /// Exact products, f32 sums. A warp takes up to four rows and four columns at a time; its lanes lie along K and add their
    /// partial sums at the end.
    pub fn with_multiply_adds(&self, c: &'c Builder<'c>, keep: Keep<'_, 'c>) {
        let width = self.width();
        let rows_at_once = self.rows.at_once;
        let groups = width.div_ceil(AT_ONCE);
        let my_groups = (c.i32(groups + self.share.blocks - 1) - self.share.rank) / self.share.blocks;
        let row_groups = self.rows.n.div_ceil(rows_at_once);
        let vector = self.vector();
        let lane = c.lane();
        c.range(c.warp(), row_groups * my_groups, self.share.warps, |job| {
            let row = (job / my_groups) * rows_at_once;
            let col = ((job % my_groups) * self.share.blocks + self.share.rank) * AT_ONCE;
            // Rows and columns past the end repeat the last; their results are not kept.
            let x_row = |i: u32| self.x.row(self.rows.first + (row + i).min(self.rows.n - 1));
            let x: Vec<_> = (0..rows_at_once).map(x_row).collect();
            let w: Vec<_> = (0..AT_ONCE).map(|j| self.w.row((col + j).min(width - 1))).collect();
            let zero = || (0..AT_ONCE).map(|_| c.var(c.f32(0.0))).collect::<Vec<Var<F32>>>();
            let sums: Vec<Vec<Var<F32>>> = (0..rows_at_once).map(|_| zero()).collect();
            c.range(lane * vector, self.depth, 32 * vector, |k| {
                let load = |view: &View<'c>, row: &crate::builder::Global<'c>| {
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
                    let exists = row.lt(self.rows.n).and(col.lt(width));
                    c.when(lane.eq(0).and(exists), || keep(row, col, self.finish(c, col, total)));
                }
            }
        });
    }

    /// Elements of a row that a lane reads at once: at most 16 bytes of the wider type, and dividing K and both pitches.
    fn vector(&self) -> u32 {
        let most = if self.x.dtype == DType::F32 || self.w.dtype == DType::F32 { 4 } else { 8 };
        let lengths = [u64::from(self.depth), self.x.pitch, self.w.pitch];
        [8u32, 4, 2]
            .into_iter()
            .find(|v| *v <= most && lengths.iter().all(|n| n.is_multiple_of(u64::from(*v))))
            .unwrap_or(1)
    }

    /// Some columns of up to 64 rows at a time, in fragments of 16. The warps split K, and their partial sums are added in order.
    ///
    /// Fragments come straight from global memory: the products of a sum may be taken in any order, as long as both
    /// operands agree, so each lane reads 8 adjacent elements of its rows where `mma` would have it read 4 pairs.
    pub fn with_tensor_cores(&self, c: &'c Builder<'c>, ty: MmaType, keep: Keep<'_, 'c>) {
        let width = self.width();
        let fragments = self.share.fragments;
        let cols = fragments * 8;
        let threads = self.share.warps * 32;
        c.range(0, self.rows.n, self.rows.at_once, |row| {
            c.range(self.share.rank * cols, width, self.share.blocks * cols, |col| {
                let mine = c.shared().plus(c.warp() * (16 * cols * 4));
                let sums = self.partial_sums(c, ty, (row, col, fragments));
                for (i, sums) in sums.iter().enumerate() {
                    let row = row + i as u32 * 16;
                    store_fragments(c, sums, mine);
                    c.barrier();
                    c.range(c.thread(), 16 * cols, threads, |i| {
                        let place = |warp: u32| c.shared().plus(i << 2).at(warp * 16 * cols * 4);
                        let sum = (0..self.share.warps).map(|w| c.load_f32(place(w))).reduce(|a, b| a + b);
                        let (row, col) = (row + i / cols, col + i % cols);
                        let exists = row.lt(self.rows.n).and(col.lt(width));
                        c.when(exists, || keep(row, col, self.finish(c, col, sum.unwrap_or(c.f32(0.0)))));
                    });
                    // The partial sums have been read before the next are written.
                    c.barrier();
                }
            });
        });
    }

    /// This warp's share of K for one block of rows: `[fragment along the rows][along the columns]`.
    fn partial_sums(
        &self,
        c: &'c Builder<'c>,
        ty: MmaType,
        (row, col, fragments): (I32<'c>, I32<'c>, u32),
    ) -> Vec<Vec<Sums<'c>>> {
        let lane = c.lane();
        let (group, quarter) = (lane >> 2, lane & 3);
        let x_row = |i: u32| self.x.row(self.rows.first + (row + group + i * 8).min(self.rows.n - 1));
        let x: Vec<_> = (0..self.rows.at_once / 8).map(x_row).collect();
        let w: Vec<_> = (0..fragments).map(|j| self.w.row((col + group + j * 8).min(self.width() - 1))).collect();
        let zero = || (0..fragments).map(|_| std::array::from_fn(|_| c.var(c.f32(0.0)))).collect();
        let sums: Vec<Vec<Sums<'c>>> = x.chunks(2).map(|_| zero()).collect();
        let load = |k: I32<'c>, rows: &[Global<'c>]| -> Vec<[I32<'c>; 4]> {
            let k = k + quarter * 8;
            let whole = self.depth.is_multiple_of(32);
            let exists = if whole { c.bool(true) } else { k.lt(self.depth) };
            let offset = (c.select(exists, k, c.i32(0)) << 1).wide();
            let load = |row: &Global<'c>| {
                let words = c.load_words(row.plus(offset));
                if whole { words } else { words.map(|word| c.select(exists, word, c.i32(0))) }
            };
            rows.iter().map(load).collect()
        };
        let multiply = |x: &[[I32<'c>; 4]], w: &[[I32<'c>; 4]]| {
            for step in [0, 2] {
                for (x, sums) in x.chunks(2).zip(&sums) {
                    let [low, high] = [x[0], x[x.len() - 1]];
                    let a = [low[step], high[step], low[step + 1], high[step + 1]];
                    for (w, sums) in w.iter().zip(sums) {
                        let result = c.mma(ty, a, [w[step], w[step + 1]], sums.map(Var::get));
                        sums.iter().zip(result).for_each(|(sum, x)| sum.set(x));
                    }
                }
            }
        };
        // Memory takes its time: operands of several steps are asked for together.
        let (stride, at_once) = (self.share.warps * 32, Geometry::steps_at_once(self.rows.at_once, fragments));
        let together = self.depth / (stride * at_once) * (stride * at_once);
        c.range(c.warp() * 32, together, stride * at_once, |k| {
            let of = |i: u32| (load(k + i * stride, &x), load(k + i * stride, &w));
            let operands: Vec<_> = (0..at_once).map(of).collect();
            operands.iter().for_each(|(x, w)| multiply(x, w));
        });
        c.range(c.warp() * 32 + together, self.depth, stride, |k| multiply(&load(k, &x), &load(k, &w)));
        sums
    }
}

/// A lane's sums of 16 rows and 8 columns.
type Sums<'c> = [Var<'c, F32<'c>>; 4];

/// Stores a warp's sums of 16 rows, one fragment of columns beside the other.
fn store_fragments<'c>(c: &'c Builder<'c>, fragments: &[Sums<'c>], to: Shared<'c>) {
    let (group, quarter) = (c.lane() >> 2, c.lane() & 3);
    let cols = fragments.len() as u32 * 8;
    for (j, sums) in fragments.iter().enumerate() {
        for (i, sum) in sums.iter().enumerate() {
            let row = group + (i as u32 / 2) * 8;
            let col = (quarter << 1) + (j as u32 * 8 + i as u32 % 2);
            c.store_f32(to.plus((row * cols + col) << 2), sum.get());
        }
    }
}
