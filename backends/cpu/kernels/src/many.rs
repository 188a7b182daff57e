//! Many rows: a block of a panel of columns is made floats once, in cache, and multiplied with all rows.

use crate::few::tail;
use crate::machine::Machine;
use crate::readers::{BLOCK, GROUP, Reader, Source, place};
use crate::scratch::{PANEL_COLUMNS, Scratch};
use crate::values::{Columns, Matrix};
use moec_ir::abi::arranged_len;

/// Vectors of columns of a tile.
const TILE: usize = 4;

/// How the elements of a panel become floats.
pub(crate) trait Fill<M: Machine>: Copy {
    /// Writes whole groups of elements `first .. end`, at most a block, of the columns of a vector; a vector is `stride`
    /// floats behind the one before.
    ///
    /// # Safety
    /// The matrix has these columns and elements, `to` is as large as that, and the processor has the machine's features.
    unsafe fn fill(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        range: (usize, usize),
        to: *mut f32,
        stride: usize,
        scratch: Scratch,
    );
}

/// Through a reader.
#[derive(Clone, Copy)]
pub(crate) struct Read<S>(pub S);

impl<M: Machine, S: Source<M>> Fill<M> for Read<S> {
    #[inline(always)]
    unsafe fn fill(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        (first, end): (usize, usize),
        to: *mut f32,
        stride: usize,
        scratch: Scratch,
    ) {
        let group = GROUP * S::BITS / 8;
        // SAFETY: the caller's contract.
        unsafe {
            let reader = self.0.reader(m, &Columns::of(m, columns), (first, end), scratch.room);
            for g in first / GROUP..end / GROUP {
                // The same columns' next block.
                for column in &columns[..M::COLUMNS] {
                    let next = m.column(*column).wrapping_add(g * group + BLOCK * S::BITS / 8);
                    for line in (0..group).step_by(64) {
                        M::prefetch_second(next.wrapping_add(line));
                    }
                }
                let vectors = reader.group(g);
                for j in 0..8 {
                    M::store(to.add((g * 8 - first / 8 + j) * stride), vectors[j]);
                }
            }
        }
    }
}

/// One value at a time: encodings that no reader is for.
#[derive(Clone, Copy)]
pub(crate) struct Any;

impl<M: Machine> Fill<M> for Any {
    #[inline(always)]
    unsafe fn fill(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        (first, end): (usize, usize),
        to: *mut f32,
        stride: usize,
        _: Scratch,
    ) {
        for g in (first..end).step_by(GROUP) {
            // SAFETY: the caller's contract.
            unsafe { scatter::<M>(m, columns, g, GROUP, to.add((g - first) / 8 * stride), stride) };
        }
    }
}

/// Writes a group of `n` elements from `first` on, and zeros behind them, in the order of lanes.
///
/// # Safety
/// The matrix has these columns and elements; `to` is for eight vectors `stride` floats apart.
#[inline(always)]
pub(crate) unsafe fn scatter<M: Machine>(
    m: &Matrix,
    columns: [usize; 2],
    first: usize,
    n: usize,
    to: *mut f32,
    stride: usize,
) {
    for (c, column) in columns.into_iter().enumerate().take(M::COLUMNS) {
        let mut values = [0.0; GROUP];
        // SAFETY: the caller's contract.
        unsafe {
            m.decode(column, first, &mut values[..n]);
            for (i, v) in values.into_iter().enumerate() {
                *to.add(place(i) / 8 * stride + c * 8 + place(i) % 8) = v;
            }
        }
    }
}

/// Products of all rows with all columns.
///
/// # Safety
/// The job's pointers are valid as [`moec_ir::abi::Products`] says, and the processor has the machine's features.
#[inline(always)]
pub(crate) unsafe fn many_rows<M: Machine>(m: &Matrix, fill: &impl Fill<M>, scratch: Scratch) {
    let job = m.job;
    let (n_rows, n_columns, k) = (job.n_rows as usize, job.n_columns as usize, job.k as usize);
    let whole = k / GROUP * GROUP;
    let (vector, tile) = (8 * M::COLUMNS, TILE * M::COLUMNS);
    for first_column in (0..n_columns).step_by(PANEL_COLUMNS) {
        let count = (n_columns - first_column).min(PANEL_COLUMNS);
        let n_tiles = count.div_ceil(tile);
        // Past the last column, it is computed again.
        let column = |i: usize| first_column + i.min(count - 1);
        // SAFETY: the caller's contract; scratch memory holds a panel's block and the totals of all its products.
        unsafe {
            for i in 0..n_tiles * n_rows * TILE {
                M::store(scratch.totals.add(i * vector), M::zero());
            }
            for first in (0..k).step_by(BLOCK) {
                let end = (first + BLOCK).min(whole).max(first);
                let has_tail = first + BLOCK > whole && whole < k;
                let turns = (end - first) / 8 + if has_tail { 8 } else { 0 };
                for t in 0..n_tiles {
                    let panel = scratch.panel.add(t * turns * TILE * vector);
                    for n in 0..TILE {
                        let i = t * tile + n * M::COLUMNS;
                        let columns = [column(i), column(i + M::COLUMNS - 1)];
                        let to = panel.add(n * vector);
                        fill.fill(m, columns, (first, end), to, TILE * vector, scratch);
                        if has_tail {
                            tail::<M>(m, columns, whole, scratch.tail);
                            for j in 0..8 {
                                let v = M::load(scratch.tail.add(j * vector));
                                M::store(to.add(((end - first) / 8 + j) * TILE * vector), v);
                            }
                        }
                    }
                    let totals = scratch.totals.add(t * n_rows * TILE * vector);
                    multiply::<M>(job.rows.add(first), arranged_len(job.k) as usize, n_rows, panel, turns, totals);
                }
            }
            for t in 0..n_tiles {
                for r in 0..n_rows {
                    let to = job.out.add(r * job.out_pitch as usize + first_column + t * tile);
                    let mut totals = [M::zero(); TILE];
                    for n in 0..TILE {
                        totals[n] = M::load(scratch.totals.add(((t * n_rows + r) * TILE + n) * vector));
                    }
                    M::store_sums(totals, count - t * tile, to);
                }
            }
        }
    }
}

/// Adds the products of one block of a tile's columns with all rows to their totals.
#[inline(always)]
unsafe fn multiply<M: Machine>(
    rows: *const f32,
    width: usize,
    n_rows: usize,
    panel: *const f32,
    turns: usize,
    totals: *mut f32,
) {
    let mut r = 0;
    while r < n_rows {
        let left = n_rows - r;
        // SAFETY: the caller's contract.
        unsafe {
            let rows = rows.add(r * width);
            let totals = totals.add(r * TILE * 8 * M::COLUMNS);
            // Six times four sums leave eight of 32 registers. Of 16, three times four would leave too few: they are spilled.
            r += if M::COLUMNS == 2 {
                match left {
                    1 => tile::<M, 1>(rows, width, panel, turns, totals),
                    2 => tile::<M, 2>(rows, width, panel, turns, totals),
                    3 => tile::<M, 3>(rows, width, panel, turns, totals),
                    4 | 8 => tile::<M, 4>(rows, width, panel, turns, totals),
                    5 | 9 | 10 => tile::<M, 5>(rows, width, panel, turns, totals),
                    _ => tile::<M, 6>(rows, width, panel, turns, totals),
                }
            } else {
                match left {
                    1 => tile::<M, 1>(rows, width, panel, turns, totals),
                    _ => tile::<M, 2>(rows, width, panel, turns, totals),
                }
            };
        }
    }
}

/// `ROWS` rows by a tile's columns, over one block; returns `ROWS`.
#[inline(always)]
unsafe fn tile<M: Machine, const ROWS: usize>(
    rows: *const f32,
    width: usize,
    panel: *const f32,
    turns: usize,
    totals: *mut f32,
) -> usize {
    let vector = 8 * M::COLUMNS;
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[M::zero(); TILE]; ROWS];
        for turn in 0..turns {
            let mut w = [M::zero(); TILE];
            for n in 0..TILE {
                w[n] = M::load(panel.add((turn * TILE + n) * vector));
            }
            for r in 0..ROWS {
                let x = M::spread(rows.add(r * width + turn * 8));
                for n in 0..TILE {
                    sums[r][n] = M::fma(w[n], x, sums[r][n]);
                }
            }
        }
        for r in 0..ROWS {
            for n in 0..TILE {
                let at = totals.add((r * TILE + n) * vector);
                M::store(at, M::sum(M::load(at), sums[r][n]));
            }
        }
    }
    ROWS
}
