//! Few rows: pairs of words are multiplied as they are read or decoded.

use super::many::tail;
use super::rows::Row;
use super::{Pairs, add_two, exponent, has_no_subnormal, word_of};
use crate::entries::Entries;
use crate::few::{Ahead, WIDE};
use crate::machine::Task;
use crate::readers::{BLOCK, GROUP, ROOM, WordReader, WordSource, whole_room};
use crate::scratch::{REST, Scratch, WIDENED_BYTES};
use crate::values::{Columns, Matrix};

/// Groups of a block.
const PER_BLOCK: usize = BLOCK / GROUP;
/// Vectors of columns whose sums are written at once.
const TILE: usize = 4;
/// Rows that are written down once for every column of a vector: spreading a load takes turns with the permutations that codes are
/// looked up by. Of more rows, the first cache would hold little else.
const WIDENED: usize = 2;

/// Whether [`few_rows`] has room for that many rows of that many elements.
#[inline(always)]
pub(super) fn fits<M: Pairs>(n_rows: usize, k: usize) -> bool {
    let widened = n_rows > WIDENED || n_rows * k.next_multiple_of(GROUP) * 2 * M::COLUMNS <= WIDENED_BYTES;
    widened && TILE * whole_room(k) * size_of::<Entries>() <= REST
}

/// Products of `ROWS` rows, all of the job, with all columns. [`fits`] is true for them.
///
/// # Safety
/// The job's pointers are valid as [`moec_ir::abi::Products`] says, and the processor has the machine's features.
#[inline(always)]
pub(super) unsafe fn few_rows<M: Pairs, S: WordSource<M>, const ROWS: usize>(m: &Matrix, source: &S, scratch: Scratch) {
    let job = m.job;
    let n_columns = job.n_columns as usize;
    let tile = TILE * M::COLUMNS;
    let mut rows = [std::ptr::null(); ROWS];
    let mut x_exponent = u32::MAX;
    for r in 0..ROWS {
        let row = Row::of(job.rows, job.k, r);
        for block in 0..(job.k as usize).div_ceil(BLOCK) {
            // SAFETY: the caller's contract.
            x_exponent = x_exponent.min(unsafe { row.exponent(job.k, block) });
        }
        rows[r] = row.words(0);
    }
    let mut operands = rows;
    if ROWS <= WIDENED {
        let bytes = job.k.next_multiple_of(GROUP as u64) as usize * 2;
        for r in 0..ROWS {
            let to = scratch.widened().wrapping_add(r * bytes * M::COLUMNS);
            for at in (0..bytes).step_by(32) {
                // SAFETY: the caller's contract; jobs of more elements do not come here.
                unsafe { M::store_bytes(to.add(at * M::COLUMNS), M::spread_bytes(rows[r].add(at))) };
            }
            operands[r] = to;
        }
    }
    let rows = Rows { words: rows, operands, x_exponent };
    // A copy, which nothing that is written can change.
    let source = &{ *source };
    for first_column in (0..n_columns).step_by(tile) {
        // SAFETY: the caller's contract; the columns exist.
        unsafe {
            let all = if S::BITS >= WIDE || ROWS < 4 {
                totals::<M, S, ROWS, TILE>(m, source, &rows, first_column, scratch)
            } else {
                // Four rows have chains of sums enough, and the sums of more vectors no longer fit the registers.
                totals::<M, S, ROWS, 2>(m, source, &rows, first_column, scratch)
            };
            for r in 0..ROWS {
                let to = job.out.add(r * job.out_pitch as usize + first_column);
                M::store_sums(all[r], n_columns - first_column, to);
            }
        }
    }
}

/// The totals of a tile of columns, `N` vectors at once.
#[inline(always)]
unsafe fn totals<M: Pairs, S: WordSource<M>, const ROWS: usize, const N: usize>(
    m: &Matrix,
    source: &S,
    rows: &Rows<ROWS>,
    first_column: usize,
    scratch: Scratch,
) -> [[M::F; TILE]; ROWS] {
    let last = m.job.n_columns as usize - 1;
    // SAFETY: the caller's contract; the columns exist.
    unsafe {
        let mut all = [[M::zero(); TILE]; ROWS];
        for part in 0..TILE / N {
            let at = first_column + part * N * M::COLUMNS;
            let mut numbers = [[0; 2]; N];
            for n in 0..N {
                // Past the last column, it is computed again.
                let first = at + n * M::COLUMNS;
                numbers[n] = [first.min(last), (first + M::COLUMNS - 1).min(last)];
            }
            let mut columns = [Columns::of(m, numbers[0]); N];
            for n in 1..N {
                columns[n] = Columns::of(m, numbers[n]);
            }
            let places = Places { numbers, columns, ahead: Ahead::new::<M, S>(m, at, N * M::COLUMNS) };
            let (mut totals, least) = add::<M, S, ROWS, N, false>(m, source, rows.operands, &places, scratch);
            if !has_no_subnormal(rows.x_exponent, exponent(least)) {
                for r in 0..ROWS {
                    let (row, to) = (rows.words[r], &raw mut totals[r]);
                    M::apart(&Exactly::<M, S, N> { m, source, row, places: &places, scratch, to });
                }
            }
            for r in 0..ROWS {
                for n in 0..N {
                    all[r][part * N + n] = totals[r][n];
                }
            }
        }
        all
    }
}

/// The rows of a job.
struct Rows<const ROWS: usize> {
    /// As they were arranged.
    words: [*const u8; ROWS],
    /// What products read: of few rows, the words once for every column of a vector.
    operands: [*const u8; ROWS],
    /// The least exponent of all.
    x_exponent: u32,
}

/// Columns that are multiplied at once.
struct Places<const N: usize> {
    numbers: [[usize; 2]; N],
    columns: [Columns; N],
    ahead: Ahead,
}

/// [`add`] of one row where a number may be subnormal.
struct Exactly<'j, M: Pairs, S, const N: usize> {
    m: &'j Matrix<'j>,
    source: &'j S,
    row: *const u8,
    places: &'j Places<N>,
    scratch: Scratch,
    to: *mut [M::F; N],
}

impl<M: Pairs, S: WordSource<M>, const N: usize> Task for Exactly<'_, M, S, N> {
    #[inline(always)]
    unsafe fn run(&self) {
        let &Exactly { m, source, row, places, scratch, to } = self;
        // SAFETY: the contract of `add`; the totals can be written.
        unsafe {
            let ([totals], _) = add::<M, S, 1, N, true>(m, source, [row], places, scratch);
            *to = totals;
        }
    }
}

/// The totals of rows by columns, and the least word of the columns ([`Pairs::least`]).
#[inline(always)]
unsafe fn add<M: Pairs, S: WordSource<M>, const ROWS: usize, const N: usize, const EXACT: bool>(
    m: &Matrix,
    source: &S,
    rows: [*const u8; ROWS],
    places: &Places<N>,
    scratch: Scratch,
) -> ([[M::F; N]; ROWS], u16) {
    let k = m.job.k as usize;
    let groups = k / GROUP;
    // SAFETY: the caller's contract; groups end within `k`, and rows are as long as all groups.
    unsafe {
        let mut least = M::splat(0xff);
        let mut totals = [[M::zero(); N]; ROWS];
        let mut sums = [[M::zero(); N]; ROWS];
        let mut first = 0;
        while first < groups {
            let end = if S::WHOLE { groups } else { groups.min(first + PER_BLOCK) };
            let range = (first * GROUP, end * GROUP);
            let (room, each) = if S::WHOLE { (scratch.rest.cast(), whole_room(k)) } else { (scratch.room, ROOM) };
            let mut readers = [source.reader(m, &places.columns[0], range, room); N];
            for n in 1..N {
                readers[n] = source.reader(m, &places.columns[n], range, room.wrapping_add(n * each));
            }
            for n in 0..N {
                if let Some(exponent) = readers[n].least_exponent() {
                    least = M::lesser(least, M::splat_word(word_of(exponent)));
                }
            }
            // All groups in one loop, as far as the reader goes: beginning one anew with every block costs as much as some groups.
            for g in first..end {
                if g.is_multiple_of(PER_BLOCK) {
                    end_block::<M, ROWS, N>(&mut totals, &mut sums);
                }
                for n in 0..N {
                    places.ahead.ask::<M, S, N>(&places.columns[n], g, n);
                    let w = if EXACT { readers[n].words(g) } else { readers[n].words_or_zero(g) };
                    let is_known = readers[n].least_exponent().is_some();
                    least = multiply::<M, ROWS, N, EXACT>(w, n, rows, g * GROUP, &mut sums, least, is_known);
                }
            }
            first = end;
        }
        if groups * GROUP < k {
            if groups.is_multiple_of(PER_BLOCK) {
                end_block::<M, ROWS, N>(&mut totals, &mut sums);
            }
            for n in 0..N {
                let to = scratch.tail.cast::<u8>();
                tail::<M>(m, places.numbers[n], groups * GROUP, to, M::COLUMNS * 32);
                let mut w = [M::splat(0); 4];
                for q in 0..4 {
                    w[q] = M::load_bytes(to.add(q * M::COLUMNS * 32));
                }
                least = multiply::<M, ROWS, N, EXACT>(w, n, rows, groups * GROUP, &mut sums, least, false);
            }
        }
        end_block::<M, ROWS, N>(&mut totals, &mut sums);
        (totals, M::least_word(least))
    }
}

/// Adds the sums of a block to totals, and begins new ones.
#[inline(always)]
unsafe fn end_block<M: Pairs, const ROWS: usize, const N: usize>(
    totals: &mut [[M::F; N]; ROWS],
    sums: &mut [[M::F; N]; ROWS],
) {
    for r in 0..ROWS {
        for n in 0..N {
            // SAFETY: the processor has the machine's features.
            unsafe {
                totals[r][n] = M::sum(totals[r][n], sums[r][n]);
                sums[r][n] = M::zero();
            }
        }
    }
}

/// Adds the products of one group of column vector `n` with every row; `i` is its first element. Returns [`Pairs::least`] of
/// its words and `least`, or that alone when `is_known`.
#[inline(always)]
unsafe fn multiply<M: Pairs, const ROWS: usize, const N: usize, const EXACT: bool>(
    w: [M::B; 4],
    n: usize,
    rows: [*const u8; ROWS],
    i: usize,
    sums: &mut [[M::F; N]; ROWS],
    mut least: M::B,
    is_known: bool,
) -> M::B {
    let wide = !EXACT && ROWS <= WIDENED;
    // SAFETY: the caller's contract.
    unsafe {
        for q in 0..4 {
            if !is_known {
                least = M::least(least, w[q]);
            }
            for r in 0..ROWS {
                let at = rows[r].add((i * 2 + q * 32) * if wide { M::COLUMNS } else { 1 });
                let x = if wide { M::load_bytes(at) } else { M::spread_bytes(at) };
                sums[r][n] = if EXACT { add_two::<M>(w[q], x, sums[r][n]) } else { M::add_pairs(w[q], x, sums[r][n]) };
            }
        }
    }
    least
}
