//! Few rows: weights are decoded in registers and multiplied at once, a few columns at a time over their whole length.

use crate::machine::Machine;
use crate::readers::{BLOCK, GROUP, ROOM, Reader, Source};
use crate::scratch::Scratch;
use crate::values::{Columns, Matrix};
use moec_ir::abi::arranged_len;

/// Vectors of columns at once.
const N: usize = 4;

/// Products of `ROWS` rows, all of the job, with all columns.
///
/// # Safety
/// The job's pointers are valid as [`moec_ir::abi::Products`] says, and the processor has the machine's features.
#[inline(always)]
pub(crate) unsafe fn few_rows<M: Machine, S: Source<M>, const ROWS: usize>(m: &Matrix, source: &S, scratch: Scratch) {
    let job = m.job;
    let (n_columns, k) = (job.n_columns as usize, job.k as usize);
    let width = arranged_len(job.k) as usize;
    let whole = k / GROUP * GROUP;
    let at_once = N * M::COLUMNS;
    let mut first_column = 0;
    while first_column < n_columns {
        let mut columns = [[0; 2]; N];
        for n in 0..N {
            // Past the last column, it is computed again.
            let first = first_column + n * M::COLUMNS;
            columns[n] = [first.min(n_columns - 1), (first + M::COLUMNS - 1).min(n_columns - 1)];
        }
        let ahead = Ahead::new::<M, S>(m, first_column, at_once);
        // SAFETY: the caller's contract; the columns exist; groups end within `k`, and rows are as long as all groups.
        unsafe {
            let rows = job.rows;
            let mut totals = [[M::zero(); N]; ROWS];
            let mut places = [Columns::of(m, columns[0]); N];
            for n in 1..N {
                places[n] = Columns::of(m, columns[n]);
            }
            let mut first = 0;
            while first < k {
                let end = (first + BLOCK).min(whole).max(first);
                let mut readers = [source.reader(m, &places[0], (first, end), scratch.room); N];
                for n in 1..N {
                    readers[n] = source.reader(m, &places[n], (first, end), scratch.room.add(n * ROOM));
                }
                let mut sums = [[M::zero(); N]; ROWS];
                for g in first / GROUP..end / GROUP {
                    let x = rows.add(g * GROUP);
                    if M::COLUMNS == 1 {
                        ahead.ask::<M, S, N>(&places[0], g, 0);
                        one::<M, S, ROWS, N, 0>(&readers, g, x, width, &mut sums);
                        ahead.ask::<M, S, N>(&places[1], g, 1);
                        one::<M, S, ROWS, N, 1>(&readers, g, x, width, &mut sums);
                        ahead.ask::<M, S, N>(&places[2], g, 2);
                        one::<M, S, ROWS, N, 2>(&readers, g, x, width, &mut sums);
                        ahead.ask::<M, S, N>(&places[3], g, 3);
                        one::<M, S, ROWS, N, 3>(&readers, g, x, width, &mut sums);
                    } else {
                        for n in 0..N {
                            ahead.ask::<M, S, N>(&places[n], g, n);
                            let w = readers[n].group(g);
                            multiply::<M, ROWS, N>(&w, n, x, width, &mut sums);
                        }
                    }
                }
                if first + BLOCK > whole && whole < k {
                    for n in 0..N {
                        tail::<M>(m, columns[n], whole, scratch.tail);
                        let mut w = [M::zero(); 8];
                        for j in 0..8 {
                            w[j] = M::load(scratch.tail.add(j * 8 * M::COLUMNS));
                        }
                        multiply::<M, ROWS, N>(&w, n, rows.add(whole), width, &mut sums);
                    }
                }
                for r in 0..ROWS {
                    for n in 0..N {
                        totals[r][n] = M::sum(totals[r][n], sums[r][n]);
                    }
                }
                first += BLOCK;
            }
            for r in 0..ROWS {
                let to = job.out.add(r * job.out_pitch as usize + first_column);
                M::store_sums(totals[r], n_columns - first_column, to);
            }
        }
        first_column += at_once;
    }
}

/// Asks for memory behind the columns that are read, with every group of them a piece of it.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// What lies [`Ahead::far`] behind the first column.
    next: *const u8,
    /// How far behind what is read memory is asked for: that much is added to an address, so that it may lie before it.
    far: usize,
}

/// How far that is at least.
const FAR: usize = 4096;
/// Bits of elements whose columns are so long that they are asked for one by one, as streams.
pub(crate) const WIDE: usize = 8;

impl Ahead {
    /// For `n` columns from `first` on.
    #[inline(always)]
    pub fn new<M: Machine, S: Source<M>>(m: &Matrix, first: usize, n: usize) -> Ahead {
        let pitch = (m.job.pitch as usize).max(1);
        let columns = if S::BITS >= WIDE { n } else { (2 * n).max(FAR / pitch) };
        if m.job.block_rows == 1 {
            // Those of the job that follows, which may look at all of them before anything else.
            let scales = match m.job.next_scales.is_null() {
                true => m.scales(first + columns),
                false => m.job.next_scales.wrapping_add(first * m.job.scales_pitch as usize),
            };
            for line in (0..n * m.job.scales_pitch as usize).step_by(64) {
                // SAFETY: nothing is read.
                unsafe { M::prefetch(scales.wrapping_add(line)) };
            }
        }
        let far = (columns * pitch).wrapping_add(m.jump(first + columns));
        Ahead { next: m.column(first).wrapping_add(far), far }
    }

    /// What belongs to group `g`, before that group of vector `n` of `N` is read.
    #[inline(always)]
    pub fn ask<M: Machine, S: Source<M>, const N: usize>(self, columns: &Columns, g: usize, n: usize) {
        let bytes = const { GROUP * S::BITS / 8 };
        // SAFETY: nothing is read.
        unsafe {
            if S::BITS >= WIDE {
                // The same place of other columns: processors ask for the rest of a stream by themselves.
                for c in 0..M::COLUMNS {
                    for line in (0..bytes).step_by(64) {
                        M::prefetch_second(columns.codes[c].wrapping_add(self.far.wrapping_add(g * bytes + line)));
                    }
                }
            } else {
                // Line by line, as it lies in memory.
                let bytes = bytes * M::COLUMNS;
                for line in (0..bytes).step_by(64) {
                    M::prefetch(self.next.wrapping_add((g * N + n) * bytes + line));
                }
            }
        }
    }
}

/// Group `g` of column vector `I`, if there is one.
///
/// Written out where a loop would leave sums in memory, which helps by a third with one column in a vector. With two, loops
/// over wide vectors are faster: written out, pointers no longer fit the registers.
#[inline(always)]
unsafe fn one<M: Machine, S: Source<M>, const ROWS: usize, const N: usize, const I: usize>(
    readers: &[S::Reader; N],
    g: usize,
    x: *const f32,
    width: usize,
    sums: &mut [[M::F; N]; ROWS],
) {
    if I < N {
        // SAFETY: the caller's contract.
        unsafe {
            let w = readers[I].group(g);
            multiply::<M, ROWS, N>(&w, I, x, width, sums);
        }
    }
}

/// Adds the products of one group of column vector `n` with every row.
#[inline(always)]
unsafe fn multiply<M: Machine, const ROWS: usize, const N: usize>(
    w: &[M::F; 8],
    n: usize,
    rows: *const f32,
    width: usize,
    sums: &mut [[M::F; N]; ROWS],
) {
    // SAFETY: the caller's contract.
    unsafe {
        turn::<M, ROWS, N, 0>(w, n, rows, width, sums);
        turn::<M, ROWS, N, 1>(w, n, rows, width, sums);
        turn::<M, ROWS, N, 2>(w, n, rows, width, sums);
        turn::<M, ROWS, N, 3>(w, n, rows, width, sums);
        turn::<M, ROWS, N, 4>(w, n, rows, width, sums);
        turn::<M, ROWS, N, 5>(w, n, rows, width, sums);
        turn::<M, ROWS, N, 6>(w, n, rows, width, sums);
        turn::<M, ROWS, N, 7>(w, n, rows, width, sums);
    }
}

/// Turn `J` of [`multiply`] for up to three rows. All indices are constants, so that no sum is kept in memory.
#[inline(always)]
unsafe fn turn<M: Machine, const ROWS: usize, const N: usize, const J: usize>(
    w: &[M::F; 8],
    n: usize,
    rows: *const f32,
    width: usize,
    sums: &mut [[M::F; N]; ROWS],
) {
    const { assert!(ROWS <= 3) };
    // SAFETY: the caller's contract.
    unsafe {
        sums[0][n] = M::fma(w[J], M::spread(rows.add(J * 8)), sums[0][n]);
        if ROWS > 1 {
            sums[1][n] = M::fma(w[J], M::spread(rows.add(width + J * 8)), sums[1][n]);
        }
        if ROWS > 2 {
            sums[2][n] = M::fma(w[J], M::spread(rows.add(2 * width + J * 8)), sums[2][n]);
        }
    }
}

/// Writes what the last, short group of the columns is, from element `whole` on: eight vectors.
///
/// # Safety
/// The columns exist; `to` is for eight vectors.
#[inline(always)]
pub(crate) unsafe fn tail<M: Machine>(m: &Matrix, columns: [usize; 2], whole: usize, to: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe { crate::many::scatter::<M>(m, columns, whole, m.job.k as usize - whole, to, 8 * M::COLUMNS) }
}
