//! Few rows: pairs of words are multiplied as they are read or decoded.

use super::many::tail;
use super::rows::Row;
use super::{Pairs, add_two, exponent, has_no_subnormal, word_of};
use crate::few::prefetch_scales;
use crate::machine::Task;
use crate::readers::{BLOCK, GROUP, ROOM, WordReader, WordSource};
use crate::scratch::Scratch;
use crate::values::Matrix;

/// Vectors of columns at once.
const N: usize = 4;

/// Products of `ROWS` rows, all of the job, with all columns.
///
/// # Safety
/// The job's pointers are valid as [`moec_ir::abi::Products`] says, and the processor has the machine's features.
#[inline(always)]
pub(super) unsafe fn few_rows<M: Pairs, S: WordSource<M>, const ROWS: usize>(m: &Matrix, source: &S, scratch: Scratch) {
    let job = m.job;
    let n_columns = job.n_columns as usize;
    let at_once = N * M::COLUMNS;
    let mut rows = [Row::of(job.rows, job.k, 0); ROWS];
    let mut x_exponent = u32::MAX;
    for r in 0..ROWS {
        rows[r] = Row::of(job.rows, job.k, r);
        for block in 0..(job.k as usize).div_ceil(BLOCK) {
            // SAFETY: the caller's contract.
            x_exponent = x_exponent.min(unsafe { rows[r].exponent(job.k, block) });
        }
    }
    let mut first_column = 0;
    while first_column < n_columns {
        let mut columns = [[0; 2]; N];
        for n in 0..N {
            // Past the last column, it is computed again.
            let first = first_column + n * M::COLUMNS;
            columns[n] = [first.min(n_columns - 1), (first + M::COLUMNS - 1).min(n_columns - 1)];
        }
        // SAFETY: the caller's contract; the columns exist.
        unsafe {
            prefetch_scales::<M>(m, first_column + at_once, at_once);
            let (mut totals, least) = add::<M, S, ROWS, false>(m, source, rows, columns, scratch);
            if !has_no_subnormal(x_exponent, exponent(least)) {
                for r in 0..ROWS {
                    let to = &raw mut totals[r];
                    M::apart(&Exactly::<M, S> { m, source, row: rows[r], columns, scratch, to });
                }
            }
            for r in 0..ROWS {
                let to = job.out.add(r * job.out_pitch as usize + first_column);
                M::store_sums(totals[r], n_columns - first_column, to);
            }
        }
        first_column += at_once;
    }
}

/// [`add`] of one row where a number may be subnormal.
struct Exactly<'j, M: Pairs, S> {
    m: &'j Matrix<'j>,
    source: &'j S,
    row: Row,
    columns: [[usize; 2]; N],
    scratch: Scratch,
    to: *mut [M::F; N],
}

impl<M: Pairs, S: WordSource<M>> Task for Exactly<'_, M, S> {
    #[inline(always)]
    unsafe fn run(&self) {
        // SAFETY: the contract of `add`; the totals can be written.
        unsafe {
            let ([totals], _) = add::<M, S, 1, true>(self.m, self.source, [self.row], self.columns, self.scratch);
            *self.to = totals;
        }
    }
}

/// The totals of rows by columns, and the least word of the columns ([`Pairs::least`]).
#[inline(always)]
unsafe fn add<M: Pairs, S: WordSource<M>, const ROWS: usize, const EXACT: bool>(
    m: &Matrix,
    source: &S,
    rows: [Row; ROWS],
    columns: [[usize; 2]; N],
    scratch: Scratch,
) -> ([[M::F; N]; ROWS], u16) {
    let k = m.job.k as usize;
    let whole = k / GROUP * GROUP;
    // The same place of the columns that come next.
    let ahead = N * M::COLUMNS * m.job.pitch as usize;
    // SAFETY: the caller's contract; groups end within `k`, and rows are as long as all groups.
    unsafe {
        let mut least = M::splat(0xff);
        let mut totals = [[M::zero(); N]; ROWS];
        let mut first = 0;
        while first < k {
            let end = (first + BLOCK).min(whole).max(first);
            let mut readers = [source.reader(m, columns[0], (first, end), ahead, scratch.room); N];
            for n in 1..N {
                readers[n] = source.reader(m, columns[n], (first, end), ahead, scratch.room.add(n * ROOM));
            }
            for n in 0..N {
                if let Some(exponent) = readers[n].least_exponent() {
                    least = M::lesser(least, M::splat_word(word_of(exponent)));
                }
            }
            let mut sums = [[M::zero(); N]; ROWS];
            for g in first / GROUP..end / GROUP {
                for n in 0..N {
                    let w = readers[n].words(g);
                    let is_known = readers[n].least_exponent().is_some();
                    least = multiply::<M, ROWS, EXACT>(w, n, rows, g * GROUP, &mut sums, least, is_known);
                }
            }
            if first + BLOCK > whole && whole < k {
                for n in 0..N {
                    let to = scratch.tail.cast::<u8>();
                    tail::<M>(m, columns[n], whole, to, M::COLUMNS * 32);
                    let mut w = [M::splat(0); 4];
                    for q in 0..4 {
                        w[q] = M::load_bytes(to.add(q * M::COLUMNS * 32));
                    }
                    least = multiply::<M, ROWS, EXACT>(w, n, rows, whole, &mut sums, least, false);
                }
            }
            for r in 0..ROWS {
                for n in 0..N {
                    totals[r][n] = M::sum(totals[r][n], sums[r][n]);
                }
            }
            first += BLOCK;
        }
        (totals, M::least_word(least))
    }
}

/// Adds the products of one group of column vector `n` with every row; `i` is its first element. Returns [`Pairs::least`] of
/// its words and `least`, or that alone when `is_known`.
#[inline(always)]
unsafe fn multiply<M: Pairs, const ROWS: usize, const EXACT: bool>(
    w: [M::B; 4],
    n: usize,
    rows: [Row; ROWS],
    i: usize,
    sums: &mut [[M::F; N]; ROWS],
    mut least: M::B,
    is_known: bool,
) -> M::B {
    // SAFETY: the caller's contract.
    unsafe {
        for q in 0..4 {
            if !is_known {
                least = M::least(least, w[q]);
            }
            for r in 0..ROWS {
                let x = M::spread_bytes(rows[r].words(i).add(q * 32));
                sums[r][n] = if EXACT { add_two::<M>(w[q], x, sums[r][n]) } else { M::add_pairs(w[q], x, sums[r][n]) };
            }
        }
    }
    least
}
