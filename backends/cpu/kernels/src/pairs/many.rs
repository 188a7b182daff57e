//! Many rows: a block of a tile's columns is made words once, in cache, and multiplied with all rows.

use super::rows::Row;
use super::{Pairs, add_two, exponent, has_no_subnormal};
use crate::machine::Task;
use crate::readers::{BLOCK, GROUP, WordReader, WordSource};
use crate::scratch::{PANEL_COLUMNS, Scratch};
use crate::values::Matrix;
use std::marker::PhantomData;

/// Vectors of columns of a tile.
const TILE: usize = 4;

/// How the elements of a tile become words.
pub(super) trait FillWords<M: Pairs>: Copy {
    /// Writes whole groups of elements `first .. end`, at most a block, of the columns of a vector; a vector is `stride`
    /// bytes behind the one before. Returns [`Pairs::least`] of them and `least`.
    ///
    /// # Safety
    /// The matrix has these columns and elements, `to` is as large as that, and the processor has the machine's features.
    #[allow(clippy::too_many_arguments, reason = "what a place in a matrix is")]
    unsafe fn fill(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        range: (usize, usize),
        to: *mut u8,
        stride: usize,
        scratch: Scratch,
        least: M::B,
    ) -> M::B;
}

/// Through a reader.
#[derive(Clone, Copy)]
pub(super) struct Read<S>(pub S);

impl<M: Pairs, S: WordSource<M>> FillWords<M> for Read<S> {
    #[inline(always)]
    unsafe fn fill(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        (first, end): (usize, usize),
        to: *mut u8,
        stride: usize,
        scratch: Scratch,
        mut least: M::B,
    ) -> M::B {
        // The same columns' next block.
        let ahead = BLOCK * self.0.bits() / 8;
        // SAFETY: the caller's contract.
        unsafe {
            let reader = self.0.reader(m, columns, (first, end), ahead, scratch.room);
            for g in first / GROUP..end / GROUP {
                let words = reader.words(g);
                for q in 0..4 {
                    least = M::least(least, words[q]);
                    M::store_bytes(to.add((g * 4 - first / 16 + q) * stride), words[q]);
                }
            }
        }
        least
    }
}

/// One value at a time: encodings that no reader is for.
#[derive(Clone, Copy)]
pub(super) struct Any;

impl<M: Pairs> FillWords<M> for Any {
    #[inline(always)]
    unsafe fn fill(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        (first, end): (usize, usize),
        to: *mut u8,
        stride: usize,
        _: Scratch,
        mut least: M::B,
    ) -> M::B {
        for i in (first..end).step_by(GROUP) {
            // SAFETY: the caller's contract.
            least = unsafe { scatter::<M>(m, columns, i, GROUP, to.add((i - first) / 16 * stride), stride, least) };
        }
        least
    }
}

/// Writes a group of `n` elements from `first` on, and zeros behind them, as words of four turns; returns
/// [`Pairs::least`] of them and `least`.
///
/// # Safety
/// The matrix has these columns and elements; `to` is for four vectors `stride` bytes apart.
#[inline(always)]
unsafe fn scatter<M: Pairs>(
    m: &Matrix,
    columns: [usize; 2],
    first: usize,
    n: usize,
    to: *mut u8,
    stride: usize,
    mut least: M::B,
) -> M::B {
    for (c, column) in columns.into_iter().enumerate().take(M::COLUMNS) {
        let mut values = [0.0f32; GROUP];
        // SAFETY: the caller's contract.
        unsafe {
            m.decode(column, first, &mut values[..n]);
            for (i, v) in values.into_iter().enumerate() {
                let word = to.add(i % 32 / 8 * stride + c * 32 + i / 32 * 16).cast::<u16>().add(i % 8);
                *word = (v.to_bits() >> 16) as u16;
            }
        }
    }
    for q in 0..4 {
        // SAFETY: this was just written.
        unsafe { least = M::least(least, M::load_bytes(to.add(q * stride))) };
    }
    least
}

/// [`scatter`] of the last, short group of the columns, from element `whole` on.
///
/// # Safety
/// As [`scatter`].
#[inline(always)]
pub(super) unsafe fn tail<M: Pairs>(m: &Matrix, columns: [usize; 2], whole: usize, to: *mut u8, stride: usize) -> M::B {
    // SAFETY: the caller's contract.
    unsafe { scatter::<M>(m, columns, whole, m.job.k as usize - whole, to, stride, M::splat(0xff)) }
}

/// Products of all rows with all columns.
///
/// # Safety
/// The job's pointers are valid as [`moec_ir::abi::Products`] says, and the processor has the machine's features.
#[inline(always)]
pub(super) unsafe fn many_rows<M: Pairs>(m: &Matrix, fill: &impl FillWords<M>, scratch: Scratch) {
    let job = m.job;
    let (n_rows, n_columns, k) = (job.n_rows as usize, job.n_columns as usize, job.k as usize);
    let whole = k / GROUP * GROUP;
    let (vector, tile) = (32 * M::COLUMNS, TILE * M::COLUMNS);
    for first_column in (0..n_columns).step_by(PANEL_COLUMNS) {
        let count = (n_columns - first_column).min(PANEL_COLUMNS);
        let n_tiles = count.div_ceil(tile);
        // Past the last column, it is computed again.
        let column = |i: usize| first_column + i.min(count - 1);
        // SAFETY: the caller's contract; scratch memory holds a tile's block and the totals of a panel's products.
        unsafe {
            for first in (0..k).step_by(BLOCK) {
                let end = (first + BLOCK).min(whole).max(first);
                let has_tail = first + BLOCK > whole && whole < k;
                let turns = (end - first) / 16 + if has_tail { 4 } else { 0 };
                let words = scratch.panel.cast::<u8>();
                for t in 0..n_tiles {
                    let mut least = M::splat(0xff);
                    for n in 0..TILE {
                        let i = t * tile + n * M::COLUMNS;
                        let columns = [column(i), column(i + M::COLUMNS - 1)];
                        let to = words.add(n * vector);
                        least = fill.fill(m, columns, (first, end), to, TILE * vector, scratch, least);
                        if has_tail {
                            let to = to.add((end - first) / 16 * TILE * vector);
                            least = M::lesser(least, tail::<M>(m, columns, whole, to, TILE * vector));
                        }
                    }
                    let totals = scratch.totals.add(t * n_rows * TILE * 8 * M::COLUMNS);
                    let block = Block { first, words, turns, exponent: exponent(M::least_word(least)) };
                    multiply::<M>(m, block, totals);
                }
            }
            for t in 0..n_tiles {
                for r in 0..n_rows {
                    let to = job.out.add(r * job.out_pitch as usize + first_column + t * tile);
                    let mut totals = [M::zero(); TILE];
                    for n in 0..TILE {
                        totals[n] = M::load(scratch.totals.add(((t * n_rows + r) * TILE + n) * 8 * M::COLUMNS));
                    }
                    M::store_sums(totals, count - t * tile, to);
                }
            }
        }
    }
}

/// A block of a tile's columns.
#[derive(Clone, Copy)]
struct Block {
    /// The first element.
    first: usize,
    words: *const u8,
    turns: usize,
    /// The least exponent of the columns' elements.
    exponent: u32,
}

/// Adds the products of a block with all rows to their totals, or begins them with the first block.
#[inline(always)]
unsafe fn multiply<M: Pairs>(m: &Matrix, block: Block, totals: *mut f32) {
    let n_rows = m.job.n_rows as usize;
    let mut r = 0;
    while r < n_rows {
        let left = n_rows - r;
        // SAFETY: the caller's contract.
        unsafe {
            // Six times four sums leave eight of 32 registers.
            r += match left {
                1 => tile::<M, 1>(m, block, r, totals),
                2 => tile::<M, 2>(m, block, r, totals),
                3 => tile::<M, 3>(m, block, r, totals),
                4 | 8 => tile::<M, 4>(m, block, r, totals),
                5 | 9 | 10 => tile::<M, 5>(m, block, r, totals),
                _ => tile::<M, 6>(m, block, r, totals),
            };
        }
    }
}

/// `ROWS` rows from `first_row` on by a block; returns `ROWS`.
#[inline(always)]
unsafe fn tile<M: Pairs, const ROWS: usize>(m: &Matrix, block: Block, first_row: usize, totals: *mut f32) -> usize {
    let k = m.job.k;
    // SAFETY: the caller's contract.
    unsafe {
        let mut rows = [Row::of(m.job.rows, k, first_row); ROWS];
        let mut x_exponent = u32::MAX;
        for r in 0..ROWS {
            rows[r] = Row::of(m.job.rows, k, first_row + r);
            x_exponent = x_exponent.min(rows[r].exponent(k, block.first / BLOCK));
        }
        let totals = totals.add(first_row * TILE * 8 * M::COLUMNS);
        if has_no_subnormal(x_exponent, block.exponent) {
            add::<M, ROWS, false>(rows, block, totals);
        } else {
            for r in 0..ROWS {
                let totals = totals.add(r * TILE * 8 * M::COLUMNS);
                M::apart(&Exactly::<M> { row: rows[r], block, totals, machine: PhantomData });
            }
        }
    }
    ROWS
}

/// [`add`] of one row where a number may be subnormal.
struct Exactly<M> {
    row: Row,
    block: Block,
    totals: *mut f32,
    machine: PhantomData<M>,
}

impl<M: Pairs> Task for Exactly<M> {
    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: the contract of `add`.
        unsafe { add::<M, 1, true>([self.row], self.block, self.totals) }
    }
}

/// Adds the products of rows and a block to totals.
#[inline(always)]
unsafe fn add<M: Pairs, const ROWS: usize, const EXACT: bool>(rows: [Row; ROWS], block: Block, totals: *mut f32) {
    let vector = 32 * M::COLUMNS;
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[M::zero(); TILE]; ROWS];
        for turn in 0..block.turns {
            let mut w = [M::splat(0); TILE];
            for n in 0..TILE {
                w[n] = M::load_bytes(block.words.add((turn * TILE + n) * vector));
            }
            for r in 0..ROWS {
                let x = M::spread_bytes(rows[r].words(block.first).add(turn * 32));
                for n in 0..TILE {
                    sums[r][n] =
                        if EXACT { add_two::<M>(w[n], x, sums[r][n]) } else { M::add_pairs(w[n], x, sums[r][n]) };
                }
            }
        }
        for r in 0..ROWS {
            for n in 0..TILE {
                let at = totals.add((r * TILE + n) * 8 * M::COLUMNS);
                let before = if block.first == 0 { M::zero() } else { M::load(at) };
                M::store(at, M::sum(before, sums[r][n]));
            }
        }
    }
}
