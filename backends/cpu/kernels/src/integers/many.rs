//! Many rows: a range of a panel of columns becomes integers in cache, with which all rows are multiplied, in tiles whose sums
//! stay in registers.

use super::factors::factors;
use super::few::{Ahead, Blocks, Vector};
use super::rows::Row;
use super::{Integers, STEP};
use crate::scratch::{MOST_ROWS, Scratch};
use crate::values::Matrix;

/// Steps of a range.
const RANGE: usize = 8;
/// Most vectors of columns of a panel.
pub(super) const VECTORS: usize = 2;
/// Most factors of a range, in vectors.
const FACTORS: usize = 2 * RANGE;
/// Most rows of a tile.
pub(super) const TILE_ROWS: usize = 6;

/// Products of all rows of the job with all columns. Blocks of codes are 16 elements when `FINE`.
///
/// # Safety
/// The job's pointers are valid as [`moec_ir::abi::Products`] says, and the processor has the machine's features.
#[inline(always)]
pub(super) unsafe fn many_rows<M: Integers, const FINE: bool>(
    m: &Matrix,
    table: M::Table,
    blocks: Blocks,
    scratch: Scratch,
) {
    let (n_columns, n_rows, k) = (m.job.n_columns as usize, m.job.n_rows as usize, m.job.k as usize);
    let steps = k.div_ceil(STEP);
    let width = VECTORS * M::LANES;
    let panel = scratch.panel.cast::<i32>();
    let totals = scratch.totals;
    let scales = totals.wrapping_add(MOST_ROWS * width);
    let per_step = if FINE { 2 } else { 1 };
    let mut first_column = 0;
    while first_column < n_columns {
        // SAFETY: the caller's contract; steps lie within `k`, and so do their blocks; scratch memory has room for all of it.
        unsafe {
            let mut vectors = [Vector::new::<M>(m, first_column); VECTORS];
            for c in 1..VECTORS {
                vectors[c] = Vector::new::<M>(m, first_column + c * M::LANES);
            }
            let ahead = Ahead::new(m, first_column, width, steps);
            for r in 0..n_rows {
                for c in 0..VECTORS {
                    M::store(totals.add(r * width + c * M::LANES), M::zero());
                }
            }
            let mut first = 0;
            while first < steps {
                let end = (first + RANGE).min(steps);
                let (from, n) = blocks.of((first, end), k);
                for c in 0..VECTORS {
                    let to = scales.add(c * FACTORS * M::LANES);
                    factors::<M>(m, blocks.scale, &vectors[c].scales, (from, n), to);
                    for step in first..end {
                        if c == 0 {
                            ahead.ask::<M>(step);
                        }
                        let codes = vectors[c].step::<M>(step, k);
                        for d in 0..4 {
                            let w = M::pairs(table, codes[d]);
                            for j in 0..4 {
                                let at = ((step - first) * STEP / 2 + d * 4 + j) * width + c * M::LANES;
                                M::store_pairs(panel.add(at), w[j]);
                            }
                        }
                    }
                }
                let mut block_of = [0; FACTORS];
                for step in first..end {
                    for part in 0..per_step {
                        let element = step * STEP + part * (STEP / 2);
                        block_of[(step - first) * per_step + part] = element / blocks.elements - from;
                    }
                }
                let elements = (end * STEP).min(k) - first * STEP;
                let range = Range { panel, scales, first, sums: elements.div_ceil(STEP / per_step), block_of };
                // Tiles of about equal size: sums of one row alone would wait for each other.
                let tiles = n_rows.div_ceil(M::TILE_ROWS);
                let mut row = 0;
                for tile in 0..tiles {
                    let rows = n_rows / tiles + usize::from(tile < n_rows % tiles);
                    let to = totals.add(row * width);
                    match rows {
                        1 => range.tile::<M, 1, FINE>(m, row, to),
                        2 => range.tile::<M, 2, FINE>(m, row, to),
                        3 => range.tile::<M, 3, FINE>(m, row, to),
                        4 => range.tile::<M, 4, FINE>(m, row, to),
                        5 => range.tile::<M, 5, FINE>(m, row, to),
                        _ => range.tile::<M, TILE_ROWS, FINE>(m, row, to),
                    }
                    row += rows;
                }
                first = end;
            }
            for r in 0..n_rows {
                for c in 0..VECTORS {
                    let column = first_column + c * M::LANES;
                    if column < n_columns {
                        let sum = M::load(totals.add(r * width + c * M::LANES));
                        let sum = M::product(sum, M::splat_float(blocks.unit));
                        let to = m.job.out.add(r * m.job.out_pitch as usize + column);
                        M::store_first(sum, (n_columns - column).min(M::LANES), to);
                    }
                }
            }
        }
        first_column += width;
    }
}

/// A range of a panel.
struct Range {
    panel: *const i32,
    scales: *const f32,
    first: usize,
    /// Steps, or halves of them.
    sums: usize,
    /// The block of each step, or half of one.
    block_of: [usize; FACTORS],
}

impl Range {
    /// Adds the products of rows `row .. row + ROWS` to their totals.
    ///
    /// # Safety
    /// As [`many_rows`].
    #[inline(always)]
    unsafe fn tile<M: Integers, const ROWS: usize, const FINE: bool>(&self, m: &Matrix, row: usize, totals: *mut f32) {
        let width = VECTORS * M::LANES;
        let mut rows = [Row::of(m.job.rows, m.job.k, row); ROWS];
        for r in 0..ROWS {
            rows[r] = Row::of(m.job.rows, m.job.k, row + r);
        }
        let per_step = if FINE { 2 } else { 1 };
        let pairs = STEP / 2 / per_step;
        // SAFETY: the caller's contract.
        unsafe {
            let mut sums = [[M::zero(); VECTORS]; ROWS];
            for r in 0..ROWS {
                for c in 0..VECTORS {
                    sums[r][c] = M::load(totals.add(r * width + c * M::LANES));
                }
            }
            for at in 0..self.sums {
                let mut products = [[M::none(); VECTORS]; ROWS];
                let w = self.panel.add(at * pairs * width);
                let x = self.first * STEP / 2 + at * pairs;
                for j in 0..pairs {
                    let mut columns = [M::none(); VECTORS];
                    for c in 0..VECTORS {
                        columns[c] = M::load_pairs(w.add(j * width + c * M::LANES));
                    }
                    for r in 0..ROWS {
                        let x = *rows[r].pairs.add(x + j);
                        for c in 0..VECTORS {
                            products[r][c] = M::add_products(products[r][c], columns[c], x);
                        }
                    }
                }
                let block = self.block_of[at];
                for c in 0..VECTORS {
                    let factor = M::load(self.scales.add((c * FACTORS + block) * M::LANES));
                    for r in 0..ROWS {
                        let scale = M::splat_float(*rows[r].scales.add(self.first + at / per_step));
                        let scaled = M::product(M::to_floats(products[r][c]), scale);
                        sums[r][c] = M::fma(scaled, factor, sums[r][c]);
                    }
                }
            }
            for r in 0..ROWS {
                for c in 0..VECTORS {
                    M::store(totals.add(r * width + c * M::LANES), sums[r][c]);
                }
            }
        }
    }
}
