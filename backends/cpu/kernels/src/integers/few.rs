//! Few rows: codes become integers in registers and are multiplied at once.

use super::factors::factors;
use super::rows::Row;
use super::{Integers, MOST_LANES, STEP, STEP_BYTES};
use crate::scratch::Scratch;
use crate::values::Matrix;
use moec_ir::quant::ScaleCode;

/// Steps whose factors are made at once.
pub(super) const RANGE: usize = 16;

/// A vector of columns of a job.
#[derive(Clone, Copy)]
pub(super) struct Vector {
    pub codes: [*const u8; MOST_LANES],
    pub scales: [*const u8; MOST_LANES],
}

impl Vector {
    /// Columns from `first` on; past the last one, it is computed again.
    #[inline(always)]
    pub fn new<M: Integers>(m: &Matrix, first: usize) -> Vector {
        let mut v = Vector { codes: [std::ptr::null(); MOST_LANES], scales: [std::ptr::null(); MOST_LANES] };
        for l in 0..M::LANES {
            let column = (first + l).min(m.job.n_columns as usize - 1);
            (v.codes[l], v.scales[l]) = (m.column(column), m.scales(column));
        }
        v
    }

    /// The codes of step `step`, of which those behind element `k` are no elements.
    ///
    /// # Safety
    /// The columns have such a step.
    #[inline(always)]
    pub unsafe fn step<M: Integers>(&self, step: usize, k: usize) -> [M::D; 4] {
        let at = step * STEP_BYTES;
        // SAFETY: the caller's contract; a step that is not whole is copied to where it can be read.
        unsafe {
            if (step + 1) * STEP <= k {
                return M::columns(&self.codes, at);
            }
            let mut copy = [[0u8; STEP_BYTES]; MOST_LANES];
            let mut starts = [std::ptr::null(); MOST_LANES];
            for l in 0..M::LANES {
                for i in 0..k.div_ceil(2) - at {
                    copy[l][i] = *self.codes[l].add(at + i);
                }
                starts[l] = copy[l].as_ptr();
            }
            M::columns(&starts, 0)
        }
    }
}

/// Asks for the codes of the columns that come next, a piece with every step: line by line, as they lie in memory.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    next: *const u8,
    bytes_per_step: usize,
}

impl Ahead {
    /// For `columns` columns at once, from `first` on.
    #[inline(always)]
    pub fn new(m: &Matrix, first: usize, columns: usize, steps: usize) -> Ahead {
        let bytes = columns * m.job.pitch as usize;
        let next = m.column(first + columns).wrapping_add(m.jump(first + columns));
        Ahead { next, bytes_per_step: bytes.div_ceil(steps.max(1)) }
    }

    /// What belongs to step `step`.
    #[inline(always)]
    pub fn ask<M: Integers>(&self, step: usize) {
        const LINE: usize = 64;
        let from = (step * self.bytes_per_step).next_multiple_of(LINE);
        for at in (from..(step + 1) * self.bytes_per_step).step_by(LINE) {
            // SAFETY: nothing is read.
            unsafe { M::prefetch(self.next.wrapping_add(at)) };
        }
    }
}

/// How blocks of codes fall on steps.
#[derive(Clone, Copy)]
pub(super) struct Blocks {
    pub scale: ScaleCode,
    /// Elements of a block: 16, or a multiple of [`STEP`].
    pub elements: usize,
    /// What sums are multiplied with at last.
    pub unit: f32,
}

impl Blocks {
    /// The blocks of steps `first .. end` of `k` elements: the first one, and how many.
    #[inline(always)]
    pub fn of(&self, (first, end): (usize, usize), k: usize) -> (usize, usize) {
        let (from, to) = (first * STEP / self.elements, ((end * STEP).min(k) - 1) / self.elements);
        (from, to + 1 - from)
    }
}

/// Products of `ROWS` rows, all of the job, with all columns. Blocks of codes are 16 elements when `FINE`.
///
/// # Safety
/// The job's pointers are valid as [`moec_ir::abi::Products`] says, and the processor has the machine's features.
#[inline(always)]
pub(super) unsafe fn few_rows<M: Integers, const ROWS: usize, const FINE: bool>(
    m: &Matrix,
    table: M::Table,
    blocks: Blocks,
    scratch: Scratch,
) {
    let (n_columns, k) = (m.job.n_columns as usize, m.job.k as usize);
    let steps = k.div_ceil(STEP);
    let mut rows = [Row::of(m.job.rows, m.job.k, 0); ROWS];
    for r in 0..ROWS {
        rows[r] = Row::of(m.job.rows, m.job.k, r);
    }
    let per_step = if FINE { 2 } else { 1 };
    let mut first_column = 0;
    while first_column < n_columns {
        // SAFETY: the caller's contract; steps lie within `k`, and so do their blocks.
        unsafe {
            let v = Vector::new::<M>(m, first_column);
            let ahead = Ahead::new(m, first_column, M::LANES, steps);
            let mut sums = [M::zero(); ROWS];
            let mut first = 0;
            while first < steps {
                let end = (first + RANGE).min(steps);
                let (from, n) = blocks.of((first, end), k);
                factors::<M>(m, blocks.scale, &v.scales, (from, n), scratch.panel);
                for step in first..end {
                    ahead.ask::<M>(step);
                    let codes = v.step::<M>(step, k);
                    let block = if FINE { (step - first) * 2 } else { step * STEP / blocks.elements - from };
                    for part in 0..per_step {
                        if FINE && step * STEP + part * STEP / 2 >= k {
                            break;
                        }
                        let factor = M::load(scratch.panel.add((block + part) * M::LANES));
                        let mut products = [[M::none(); 2]; ROWS];
                        for d in 4 / per_step * part..4 / per_step * (part + 1) {
                            let w = M::pairs(table, codes[d]);
                            for r in 0..ROWS {
                                let x = rows[r].pairs.add(step * STEP / 2 + d * 4);
                                for j in 0..4 {
                                    products[r][j % 2] = M::add_products(products[r][j % 2], w[j], *x.add(j));
                                }
                            }
                        }
                        for r in 0..ROWS {
                            let p = M::to_floats(M::add_integers(products[r][0], products[r][1]));
                            let scaled = M::product(p, M::splat_float(*rows[r].scales.add(step)));
                            sums[r] = M::fma(scaled, factor, sums[r]);
                        }
                    }
                }
                first = end;
            }
            for r in 0..ROWS {
                let to = m.job.out.add(r * m.job.out_pitch as usize + first_column);
                let sum = M::product(sums[r], M::splat_float(blocks.unit));
                M::store_first(sum, (n_columns - first_column).min(M::LANES), to);
            }
        }
        first_column += M::LANES;
    }
}
