//! Many rows: a block of a tile's columns is made words once, in cache, and multiplied with all rows.

use super::rows::Row;
use super::{Pairs, add_two, exponent, has_no_subnormal, word_of};
use crate::machine::Task;
use crate::readers::{BLOCK, GROUP, WordReader, WordSource};
use crate::scratch::Scratch;
use crate::values::{Columns, Matrix};
use std::marker::PhantomData;

/// Vectors of columns of a tile.
const TILE: usize = 4;

/// How the elements of a tile become words.
pub(super) trait FillWords<M: Pairs>: Copy {
    /// Bits of an element in memory; 0 when they differ.
    const BITS: usize;
    /// Whether [`FillWords::fill`] can do with less when no number is subnormal.
    const MAY_FLUSH: bool = false;

    /// Writes whole groups of elements `first .. end`, at most a block, of the columns of a vector; a vector is `stride`
    /// bytes behind the one before. Returns [`Pairs::least`] of them and `least`. A number that is subnormal may become zero
    /// unless `EXACT`.
    ///
    /// # Safety
    /// The matrix has these columns and elements, `to` is as large as that, and the processor has the machine's features.
    #[allow(clippy::too_many_arguments, reason = "what a place in a matrix is")]
    unsafe fn fill<const EXACT: bool>(
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
    const BITS: usize = S::BITS;
    const MAY_FLUSH: bool = <S::Reader as WordReader<M>>::MAY_FLUSH;

    #[inline(always)]
    unsafe fn fill<const EXACT: bool>(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        (first, end): (usize, usize),
        to: *mut u8,
        stride: usize,
        scratch: Scratch,
        mut least: M::B,
    ) -> M::B {
        // SAFETY: the caller's contract. Memory has been asked for before.
        unsafe {
            let reader = self.0.reader(m, &Columns::of(m, columns), (first, end), scratch.room);
            let known = reader.least_exponent();
            if let Some(exponent) = known {
                least = M::lesser(least, M::splat_word(word_of(exponent)));
            }
            for g in first / GROUP..end / GROUP {
                let words = if EXACT { reader.words(g) } else { reader.words_or_zero(g) };
                for q in 0..4 {
                    if known.is_none() {
                        least = M::least(least, words[q]);
                    }
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
    const BITS: usize = 0;

    #[inline(always)]
    unsafe fn fill<const EXACT: bool>(
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
pub(super) unsafe fn many_rows<M: Pairs, F: FillWords<M>>(m: &Matrix, fill: &F, scratch: Scratch) {
    let job = m.job;
    let (n_columns, k) = (job.n_columns as usize, job.k as usize);
    let whole = k / GROUP * GROUP;
    let (vector, tile) = (32 * M::COLUMNS, TILE * M::COLUMNS);
    let words = scratch.panel.cast::<u8>();
    for first_column in (0..n_columns).step_by(tile) {
        let count = (n_columns - first_column).min(tile);
        // Past the last column, it is computed again.
        let column = |i: usize| first_column + i.min(count - 1);
        for first in (0..k).step_by(BLOCK) {
            let end = (first + BLOCK).min(whole).max(first);
            let has_tail = first + BLOCK > whole && whole < k;
            // SAFETY: the caller's contract; scratch memory holds a tile's block and the totals of all its products.
            unsafe {
                let mut least = M::splat(0xff);
                for n in 0..TILE {
                    let columns = [column(n * M::COLUMNS), column((n + 1) * M::COLUMNS - 1)];
                    let to = words.add(n * vector);
                    least = fill.fill::<false>(m, columns, (first, end), to, TILE * vector, scratch, least);
                    if has_tail {
                        let to = to.add((end - first) / 16 * TILE * vector);
                        least = M::lesser(least, tail::<M>(m, columns, whole, to, TILE * vector));
                    }
                }
                let exponent = exponent(M::least_word(least));
                if F::MAY_FLUSH && exponent == 0 {
                    for n in 0..TILE {
                        let columns = [column(n * M::COLUMNS), column((n + 1) * M::COLUMNS - 1)];
                        fill.fill::<true>(
                            m,
                            columns,
                            (first, end),
                            words.add(n * vector),
                            TILE * vector,
                            scratch,
                            least,
                        );
                    }
                }
                let is_last = first + BLOCK >= k;
                let (column, element) = if is_last { (first_column + tile, 0) } else { (first_column, first + BLOCK) };
                let block = Block {
                    first,
                    words,
                    turns: (end - first) / 16 + if has_tail { 4 } else { 0 },
                    exponent,
                    out: if is_last { job.out.wrapping_add(first_column) } else { std::ptr::null_mut() },
                    count,
                    next: m.column(column).wrapping_add(m.jump(column)).wrapping_add(element * F::BITS / 8),
                    next_lines: BLOCK.min(k - element) * F::BITS / 8 / 64 * tile,
                };
                M::apart(&Multiply::<M> { m, block, totals: scratch.totals, machine: PhantomData });
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
    /// Where products of the first row go, after the last block.
    out: *mut f32,
    /// Columns of the tile that there are.
    count: usize,
    /// Where the next block's first column is, and lines of memory of all its columns, which are asked for meanwhile.
    next: *const u8,
    next_lines: usize,
}

/// Adds the products of a block with all rows to their totals: the first block begins them, the last one ends them.
struct Multiply<'j, M> {
    m: &'j Matrix<'j>,
    block: Block,
    totals: *mut f32,
    machine: PhantomData<M>,
}

impl<M: Pairs> Task for Multiply<'_, M> {
    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: the contract of `add`.
        unsafe {
            let done = self.rows::<true>(0);
            let mut r = done;
            while r < self.m.job.n_rows as usize {
                r += self.rows::<false>(r);
            }
        }
    }
}

impl<M: Pairs> Multiply<'_, M> {
    /// Some rows from `r` on; returns how many.
    #[inline(always)]
    unsafe fn rows<const ASK: bool>(&self, r: usize) -> usize {
        let &Multiply { m, block, totals, .. } = self;
        // SAFETY: the caller's contract.
        unsafe {
            // Six times four sums leave eight of 32 registers.
            match m.job.n_rows as usize - r {
                1 => tile::<M, 1, ASK>(m, block, r, totals),
                2 => tile::<M, 2, ASK>(m, block, r, totals),
                3 => tile::<M, 3, ASK>(m, block, r, totals),
                4 | 7 | 8 => tile::<M, 4, ASK>(m, block, r, totals),
                5 | 9 | 10 => tile::<M, 5, ASK>(m, block, r, totals),
                _ => tile::<M, 6, ASK>(m, block, r, totals),
            }
        }
    }
}

/// `ROWS` rows from `first_row` on by a block; returns `ROWS`.
#[inline(always)]
unsafe fn tile<M: Pairs, const ROWS: usize, const ASK: bool>(
    m: &Matrix,
    block: Block,
    first_row: usize,
    totals: *mut f32,
) -> usize {
    let k = m.job.k;
    // SAFETY: the caller's contract.
    unsafe {
        let mut x_exponent = u32::MAX;
        for r in 0..ROWS {
            x_exponent = x_exponent.min(Row::of(m.job.rows, k, first_row + r).exponent(k, block.first / BLOCK));
        }
        if has_no_subnormal(x_exponent, block.exponent) {
            add::<M, ROWS, false, ASK>(m, block, first_row, totals);
        } else {
            for r in first_row..first_row + ROWS {
                M::apart(&Exactly::<M> { m, block, row: r, totals, machine: PhantomData });
            }
        }
    }
    ROWS
}

/// [`add`] of one row where a number may be subnormal.
struct Exactly<'j, M> {
    m: &'j Matrix<'j>,
    block: Block,
    row: usize,
    totals: *mut f32,
    machine: PhantomData<M>,
}

impl<M: Pairs> Task for Exactly<'_, M> {
    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: the contract of `add`.
        unsafe { add::<M, 1, true, false>(self.m, self.block, self.row, self.totals) }
    }
}

/// Adds the products of rows and a block to totals; asks for the next block's memory when `ASK`.
#[inline(always)]
unsafe fn add<M: Pairs, const ROWS: usize, const EXACT: bool, const ASK: bool>(
    m: &Matrix,
    block: Block,
    first_row: usize,
    totals: *mut f32,
) {
    let (vector, pitch) = (32 * M::COLUMNS, m.job.pitch as usize);
    // SAFETY: the caller's contract.
    unsafe {
        let mut rows = [std::ptr::null(); ROWS];
        for r in 0..ROWS {
            rows[r] = Row::of(m.job.rows, m.job.k, first_row + r).words(block.first);
        }
        let (mut next, mut column) = (block.next, 0);
        let asked = if ASK { block.next_lines.div_ceil(block.turns) } else { 0 };
        let mut sums = [[M::zero(); TILE]; ROWS];
        for turn in 0..block.turns {
            for _ in 0..asked {
                M::prefetch(next.wrapping_add(column));
                // The same line of the next column, then the first one's next.
                column += pitch;
                if column == pitch * TILE * M::COLUMNS {
                    (next, column) = (next.wrapping_add(64), 0);
                }
            }
            let mut w = [M::splat(0); TILE];
            for n in 0..TILE {
                w[n] = M::load_bytes(block.words.add((turn * TILE + n) * vector));
            }
            for r in 0..ROWS {
                let x = M::spread_bytes(rows[r].add(turn * 32));
                for n in 0..TILE {
                    sums[r][n] =
                        if EXACT { add_two::<M>(w[n], x, sums[r][n]) } else { M::add_pairs(w[n], x, sums[r][n]) };
                }
            }
        }
        for r in 0..ROWS {
            let at = totals.add((first_row + r) * TILE * 8 * M::COLUMNS);
            for n in 0..TILE {
                let before = if block.first == 0 { M::zero() } else { M::load(at.add(n * 8 * M::COLUMNS)) };
                sums[r][n] = M::sum(before, sums[r][n]);
            }
            if block.out.is_null() {
                for n in 0..TILE {
                    M::store(at.add(n * 8 * M::COLUMNS), sums[r][n]);
                }
            } else {
                let to = block.out.add((first_row + r) * m.job.out_pitch as usize);
                M::store_sums(sums[r], block.count, to);
            }
        }
    }
}
