//! `tcgen05.mma` as arithmetic: where A, D and scale factors lie in tensor memory, and the product itself.
//!
//! Data-path layouts (r = row of D within its CTA, n = column, C = column of the address):
//!
//! | M, form | CTA of row | lane | column |
//! |---|---|---|---|
//! | 128, one CTA; 256, pair | row / 128 | r | C + n |
//! | 64, one CTA | 0 | 32·(r / 16) + r % 16 (+ 16 if the address says so) | C + n |
//! | 128, pair | row / 64 | r + 64·(n ≥ N/2) | C + n % (N/2) |
//! | 64, `.ws` | 0 | r + 64·(n ≥ N/2) | C + n % (N/2) |
//! | 32, `.ws` | 0 | r + 32·(n / (N/4)) | C + n % (N/4) |
//!
//! Source: PTX ISA 9.1, 9.7.16.10.5; CUTLASS `cute/atom/mma_traits_sm100.hpp`.

use super::idesc::{DType, Idesc, Kind};
use super::matmul;
use super::mma::apply_scale;
use super::{TensorError, invalid, unsupported};
use crate::numeric::half;

/// A `tcgen05.mma` form with its decoded descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Kind.
    pub kind: Kind,
    /// Descriptor.
    pub idesc: Idesc,
    /// CTAs that work together: 1 or 2.
    pub cta_group: usize,
    /// `.ws`
    pub ws: bool,
    /// Scale factors a row; 0 for kinds without.
    pub scale_vec: usize,
}

/// A run of D cells of one row: columns `first` to `first + count` of D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// 0 or 1: the CTA of the pair.
    pub cta: usize,
    /// Lane relative to the address.
    pub lane: usize,
    /// Column relative to the address.
    pub column: usize,
    /// First column of D.
    pub first: usize,
    /// Columns.
    pub count: usize,
}

/// Scale factors as f32: `a[row · vec + j]`, and for each CTA its own copy of `b[column · vec + j]`.
#[derive(Debug, Clone, Default)]
pub struct Scales {
    /// Of A.
    pub a: Vec<f32>,
    /// Of B, one set for each CTA.
    pub b: [Vec<f32>; 2],
}

impl Form {
    /// Checks everything that depends on several parts of the form.
    ///
    /// # Errors
    /// `Invalid` or `Unsupported`, naming what.
    pub fn check(&self) -> Result<(), TensorError> {
        let name = self.kind.name();
        if self.idesc.sparse {
            return unsupported(format!("tcgen05.mma.sp / sparse instruction descriptor (kind::{name})"));
        }
        self.idesc.check_shape(self.kind, self.cta_group, self.ws)?;
        if self.kind.block_scaled() {
            let ids = [self.idesc.sfa_id, self.idesc.sfb_id];
            let allowed = match (self.kind, self.scale_vec) {
                (Kind::Mxf8f6f4, 1) => true,
                (Kind::Mxf4 | Kind::Mxf4nvf4, 2) => ids.iter().all(|id| *id == 0 || *id == 2),
                (Kind::Mxf4nvf4, 4) => ids == [0, 0],
                _ => return invalid(format!("kind::{name} has no scale_vec::{}X", self.scale_vec)),
            };
            if !allowed {
                return invalid(format!(
                    "scale factor ids {ids:?} are not allowed with scale_vec::{}X",
                    self.scale_vec
                ));
            }
            if self.scale_vec == 2 && self.idesc.scale == super::mma::ScaleType::Ue4m3 {
                return invalid("ue4m3 scale factors come for 16 elements each (scale_vec::4X), not for 32");
            }
            if self.cta_group == 2 && self.idesc.m == 128 {
                return unsupported(format!("kind::{name} with cta_group::2 and M = 128"));
            }
        }
        Ok(())
    }

    /// K of one instruction.
    #[must_use]
    pub fn k(&self) -> usize {
        self.kind.k()
    }

    /// Rows of A and D in each CTA.
    #[must_use]
    pub fn rows_per_cta(&self) -> usize {
        self.idesc.m / self.cta_group
    }

    /// Columns of B in each CTA's shared memory.
    #[must_use]
    pub fn columns_per_cta(&self) -> usize {
        self.idesc.n / self.cta_group
    }

    /// Multiply-add operations times two.
    #[must_use]
    pub fn flops(&self) -> u64 {
        2 * (self.idesc.m * self.idesc.n * self.k()) as u64
    }

    /// Columns of tensor memory that D takes.
    #[must_use]
    pub fn d_columns(&self) -> usize {
        self.idesc.n / self.parts()
    }

    /// Into how many lane groups the columns of D are folded.
    fn parts(&self) -> usize {
        match (self.ws, self.cta_group, self.idesc.m) {
            (true, _, 32) => 4,
            (true, _, 64) | (false, 2, 128) => 2,
            _ => 1,
        }
    }

    /// The lane of row `row` of its CTA for layouts that do not fold.
    #[must_use]
    pub fn lane_of_row(&self, row: usize) -> usize {
        if self.idesc.m == 64 && self.cta_group == 1 && !self.ws { 32 * (row / 16) + row % 16 } else { row }
    }

    /// Whether the lane field of D's (and A's) address may be 16.
    #[must_use]
    pub fn half_lanes(&self) -> bool {
        self.idesc.m == 64 && self.cta_group == 1 && !self.ws
    }

    /// The runs of cells of one row of D.
    pub fn d_runs(&self, row: usize) -> impl Iterator<Item = Run> + use<> {
        let rows = self.rows_per_cta();
        let (cta, r) = (row / rows, row % rows);
        let parts = self.parts();
        let count = self.idesc.n / parts;
        let lane = self.lane_of_row(r);
        (0..parts).map(move |p| Run { cta, lane: lane + p * rows, column: 0, first: p * count, count })
    }

    /// Whether A may come from tensor memory in this form.
    ///
    /// # Errors
    /// `Unsupported` for folded layouts; `Invalid` for a transposed A.
    pub fn check_tmem_a(&self) -> Result<(), TensorError> {
        if self.idesc.a_major == super::smem_desc::Major::Mn {
            return invalid("A in tensor memory cannot be transposed");
        }
        if self.parts() != 1 {
            return unsupported(format!("A in tensor memory with M = {} and folded columns", self.idesc.m));
        }
        Ok(())
    }

    /// `partial[m × n] = A · B` with negation and scale factors applied.
    ///
    /// # Errors
    /// `Invalid` when a block-scaled form has no scale factors.
    pub fn multiply(
        &self,
        a: &mut [f32],
        b: &[f32],
        scales: Option<&Scales>,
        partial: &mut [f32],
    ) -> Result<(), TensorError> {
        let (m, n, k) = (self.idesc.m, self.idesc.n, self.k());
        if self.idesc.negate_a != self.idesc.negate_b {
            for x in a.iter_mut() {
                *x = -*x;
            }
        }
        if !self.kind.block_scaled() {
            matmul::multiply(m, n, k, a, b, partial);
            return Ok(());
        }
        let Some(scales) = scales else { return invalid("a block-scaled tcgen05.mma needs scale factors") };
        let vec = self.scale_vec;
        let block = k / vec;
        partial[..m * n].fill(0.0);
        let mut part = vec![0f32; m * n];
        for j in 0..vec {
            matmul::multiply_slice(m, n, k, j * block..(j + 1) * block, a, b, &mut part);
            for row in 0..m {
                let fa = scales.a[row * vec + j];
                let fb = &scales.b[row / self.rows_per_cta()];
                for column in 0..n {
                    let at = row * n + column;
                    partial[at] += apply_scale(part[at], fa, fb[column * vec + j]);
                }
            }
        }
        Ok(())
    }

    /// Combines one run of partial sums with the cells of D.
    ///
    /// `accumulate` is the enable-input-d predicate; `scale_d` the right shift of `scale-input-d` (D is multiplied by 2^−s).
    #[inline]
    pub fn accumulate(&self, cells: &mut [u32], partial: &[f32], accumulate: bool, scale_d: u32) {
        let factor = if scale_d == 0 { 1.0 } else { 0.5f32.powi(scale_d as i32) };
        let pairs = cells.iter_mut().zip(partial);
        match (self.idesc.d, accumulate) {
            (DType::F32, true) => pairs.for_each(|(c, p)| *c = (f32::from_bits(*c) * factor + p).to_bits()),
            (DType::F32, false) => pairs.for_each(|(c, p)| *c = (0.0 + p).to_bits()),
            (DType::F16, _) => pairs.for_each(|(cell, p)| {
                let old = if accumulate { half::f16_to_f32(*cell as u16) * factor } else { 0.0 };
                *cell = u32::from(half::f32_to_f16(old + p));
            }),
            (DType::S32, _) => pairs.for_each(|(cell, p)| {
                let old = if accumulate { *cell as i32 } else { 0 };
                *cell = matmul::add_s32(old, *p, self.idesc.saturate) as u32;
            }),
        }
    }
}

/// The cell of the scale factor word of row (of A) or column (of B) `index`: (lane, column) relative to the address, the lane in the
/// first group of 32; the word is repeated in all four groups.
#[must_use]
pub fn scale_cell(index: usize) -> (usize, usize) {
    (index % 32, index / 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::idesc::Idesc;

    fn form(m: usize, n: usize, cta_group: usize, ws: bool) -> Form {
        let bits = 1 << 4 | 1 << 7 | 1 << 10 | (n as u32 >> 3) << 17 | (m as u32 >> 4) << 24;
        let idesc = Idesc::decode(bits, Kind::F16).unwrap();
        let form = Form { kind: Kind::F16, idesc, cta_group, ws, scale_vec: 0 };
        form.check().unwrap();
        form
    }

    #[test]
    fn every_layout_gives_each_element_its_own_cell() {
        for (m, n, cta_group, ws) in [
            (128, 64, 1, false),
            (64, 64, 1, false),
            (256, 64, 2, false),
            (128, 64, 2, false),
            (128, 64, 1, true),
            (64, 64, 1, true),
            (32, 64, 1, true),
        ] {
            let f = form(m, n, cta_group, ws);
            let mut seen = std::collections::HashSet::new();
            for row in 0..m {
                let mut columns = 0;
                for run in f.d_runs(row) {
                    assert!(run.lane < 128 && run.cta < cta_group && run.column + run.count <= f.d_columns());
                    assert_eq!(run.first, columns);
                    columns += run.count;
                    for c in 0..run.count {
                        assert!(seen.insert((run.cta, run.lane, run.column + c)), "{m}x{n}");
                    }
                }
                assert_eq!(columns, n);
            }
        }
    }

    #[test]
    fn folded_and_interleaved_rows_are_where_the_manual_says() {
        let half = form(64, 64, 1, false);
        assert_eq!(half.d_runs(17).next().unwrap().lane, 33);
        let pair = form(128, 64, 2, false);
        let runs: Vec<Run> = pair.d_runs(70).collect();
        assert_eq!(runs[0], Run { cta: 1, lane: 6, column: 0, first: 0, count: 32 });
        assert_eq!(runs[1], Run { cta: 1, lane: 70, column: 0, first: 32, count: 32 });
        let quarter = form(32, 64, 1, true);
        assert_eq!(quarter.d_runs(3).nth(2).unwrap(), Run { cta: 0, lane: 67, column: 0, first: 32, count: 16 });
    }

    #[test]
    fn scales_apply_by_block_and_by_cta() {
        let bits = 1 << 23 | 1 << 7 | 1 << 10 | (16u32 >> 3) << 17 | (256u32 >> 4) << 24;
        let idesc = Idesc::decode(bits, Kind::Mxf4).unwrap();
        let f = Form { kind: Kind::Mxf4, idesc, cta_group: 2, ws: false, scale_vec: 2 };
        f.check().unwrap();
        let (m, n, k) = (256, 16, 64);
        let mut a: Vec<f32> = (0..m * k).map(|i| ((i * 3) % 7) as f32 - 3.0).collect();
        let b: Vec<f32> = (0..n * k).map(|i| ((i * 5) % 9) as f32 - 4.0).collect();
        let scales = Scales {
            a: (0..m * 2).map(|i| 2f32.powi(i as i32 % 5 - 2)).collect(),
            b: [
                (0..n * 2).map(|i| 2f32.powi(i as i32 % 3)).collect(),
                (0..n * 2).map(|i| 2f32.powi(i as i32 % 4)).collect(),
            ],
        };
        let mut partial = vec![0f32; m * n];
        f.multiply(&mut a, &b, Some(&scales), &mut partial).unwrap();
        for row in [0, 5, 127, 128, 255] {
            for col in 0..n {
                let want: f32 = (0..k)
                    .map(|p| {
                        a[row * k + p]
                            * b[p * n + col]
                            * scales.a[row * 2 + p / 32]
                            * scales.b[row / 128][col * 2 + p / 32]
                    })
                    .sum();
                assert_eq!(partial[row * n + col], want);
            }
        }
    }

    #[test]
    fn accumulation_scales_and_rounds_d() {
        let f = form(128, 8, 1, false);
        let mut cells = [3.0f32.to_bits(); 2];
        f.accumulate(&mut cells, &[1.0, 2.0], true, 1);
        assert_eq!(cells.map(f32::from_bits), [2.5, 3.5]);
        f.accumulate(&mut cells, &[1.0, 2.0], false, 0);
        assert_eq!(cells.map(f32::from_bits), [1.0, 2.0]);
    }
}
