//! Codes of e4m3.

use super::blocks::{Blocks, make};
use super::{BLOCK, GROUP, ROOM, Reader, Source, WordReader, widen};
use crate::entries::{E4M3_LEAST, ENTRIES, Entries, Least, Recipe};
use crate::machine::Machine;
use crate::values::{Columns, Matrix, factor};
use moec_ir::quant::ScaleCode;

/// Codes of e4m3 whose values are bf16, with factors that are safe.
#[derive(Clone, Copy)]
pub(crate) struct E4m3<'t> {
    /// For codes whose upper bits are 0, and for the others.
    pub recipes: &'t [Recipe; 2],
    pub scale: ScaleCode,
    pub shift: u32,
    /// [`WordReader::least_exponent`].
    pub least_exponent: u32,
}

#[derive(Clone, Copy)]
pub(crate) struct E4m3Reader {
    codes: [*const u8; 2],
    /// For codes whose upper bits are 0, and for the others.
    blocks: [Blocks<false>; 2],
    least_exponent: u32,
}

impl<M: Machine> Source<M> for E4m3<'_> {
    type Reader = E4m3Reader;
    const BITS: usize = 8;

    #[inline(always)]
    unsafe fn reader(&self, m: &Matrix, columns: &Columns, range: (usize, usize), room: *mut Entries) -> Self::Reader {
        let mut entries = [[std::ptr::null(); 2]; 2];
        if range.0 < range.1 {
            for c in 0..M::COLUMNS {
                for kind in 0..2 {
                    // SAFETY: the caller's contract; a quarter of the room is for each column and kind.
                    unsafe {
                        let room = room.add((c * 2 + kind) * ROOM / 4);
                        let recipe = &self.recipes[kind];
                        entries[kind][c] = make::<M>(m, recipe, self.scale, self.shift, columns.scales[c], range, room);
                    }
                }
            }
        }
        let scales = columns.scales;
        let blocks = [
            Blocks { entries: entries[0], scales, shift: self.shift },
            Blocks { entries: entries[1], scales, shift: self.shift },
        ];
        let codes = columns.codes;
        E4m3Reader { codes, blocks, least_exponent: self.least_exponent }
    }
}

impl<M: Machine> Reader<M> for E4m3Reader {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract.
        unsafe { widen::<M, false>(WordReader::<M>::words(self, g)) }
    }
}

impl<M: Machine> WordReader<M> for E4m3Reader {
    const HALF: bool = false;

    #[inline(always)]
    fn least_exponent(&self) -> Option<u32> {
        Some(self.least_exponent)
    }

    #[inline(always)]
    unsafe fn words(&self, g: usize) -> [M::B; 4] {
        // SAFETY: the caller's contract: 64 bytes of each column are there.
        unsafe {
            let p = [self.codes[0].add(g * 64), self.codes[1].add(g * 64)];
            let least = M::entry_pairs(self.blocks[0].four::<M>(g * GROUP));
            let others = M::entry_pairs(self.blocks[1].four::<M>(g * GROUP));
            let [first, second] = M::sixty_four_bytes(p);
            let [a, b] = e4m3_values::<M>(least, others, first);
            let [c, d] = e4m3_values::<M>(least, others, second);
            [a, b, c, d]
        }
    }
}

/// As [`E4m3`] with blocks of 64 elements or more: a group has one block, whose entries are brought in their places once.
#[derive(Clone, Copy)]
pub(crate) struct WideE4m3<'t> {
    /// For codes whose upper bits are 0, and for the others.
    pub recipes: &'t [Recipe; 2],
    pub scale: ScaleCode,
    pub shift: u32,
    /// [`WordReader::least_exponent`].
    pub least_exponent: u32,
}

#[derive(Clone, Copy)]
pub(crate) struct WideE4m3Reader<B> {
    codes: [*const u8; 2],
    /// Four vectors for each block, as if from block 0 on.
    entries: *const [[B; 2]; 2],
    shift: u32,
    least_exponent: u32,
}

impl<M: Machine> Source<M> for WideE4m3<'_> {
    type Reader = WideE4m3Reader<M::B>;
    const BITS: usize = 8;

    #[inline(always)]
    unsafe fn reader(
        &self,
        m: &Matrix,
        columns: &Columns,
        (first, end): (usize, usize),
        room: *mut Entries,
    ) -> Self::Reader {
        const { assert!(size_of::<[[M::B; 2]; 2]>() * (BLOCK / GROUP) <= ROOM * ENTRIES) };
        let room = room.cast::<[[M::B; 2]; 2]>();
        let from = first >> self.shift;
        if first < end {
            let n = ((end - 1) >> self.shift) + 1 - from;
            let mut factors = [[0.0; (BLOCK / GROUP).next_multiple_of(16)]; 2];
            // SAFETY: the caller's contract; blocks are as long as groups or longer.
            unsafe {
                for c in 0..M::COLUMNS {
                    M::factors(self.scale, columns.scales[c], from, n, m.global, factors[c].as_mut_ptr());
                }
                for block in 0..n {
                    for kind in 0..2 {
                        let mut entries = [Entries::ZERO; 2];
                        for c in 0..M::COLUMNS {
                            self.recipes[kind].entries::<M>(&factors[c][block], 1, &mut entries[c]);
                        }
                        let [a, b] = [&raw const entries[0], &raw const entries[1]].map(|p| p.cast::<u8>());
                        (*room.add(block))[kind] = M::entry_pairs([a, a, b, b]);
                    }
                }
            }
        }
        let entries = room.cast_const().wrapping_sub(from);
        let codes = columns.codes;
        WideE4m3Reader { codes, entries, shift: self.shift, least_exponent: self.least_exponent }
    }
}

impl<M: Machine> Reader<M> for WideE4m3Reader<M::B> {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract.
        unsafe { widen::<M, false>(WordReader::<M>::words(self, g)) }
    }
}

impl<M: Machine> WordReader<M> for WideE4m3Reader<M::B> {
    const HALF: bool = false;

    #[inline(always)]
    fn least_exponent(&self) -> Option<u32> {
        Some(self.least_exponent)
    }

    #[inline(always)]
    unsafe fn words(&self, g: usize) -> [M::B; 4] {
        // SAFETY: the caller's contract: 64 bytes of each column are there.
        unsafe {
            let p = [self.codes[0].add(g * 64), self.codes[1].add(g * 64)];
            let [least, others] = *self.entries.wrapping_add((g * GROUP) >> self.shift);
            let [first, second] = M::sixty_four_bytes(p);
            let [a, b] = e4m3_values::<M>(least, others, first);
            let [c, d] = e4m3_values::<M>(least, others, second);
            [a, b, c, d]
        }
    }
}

/// As [`WideE4m3`] where the columns of a vector have one scale: by the values of all magnitudes with it, which are made for a
/// job. So factors need not be safe.
#[derive(Clone, Copy)]
pub(crate) struct TabledE4m3 {
    /// A table for every block of every row of the grid that the job's columns lie in.
    tables: *const u8,
    /// The scales of the first row, and bytes to those of the next.
    scales: *const u8,
    scales_pitch: usize,
    /// Tables of a row.
    blocks: usize,
    shift: u32,
    least_exponent: u32,
}

/// Bytes of a table: low bytes of all magnitudes, then the high ones.
const TABLE: usize = 256;

impl TabledE4m3 {
    /// Makes the tables of a job, if its columns share scales and there is room.
    ///
    /// # Safety
    /// The job's pointers are valid, and the processor has the machine's features.
    #[inline(always)]
    pub unsafe fn new<M: Machine>(m: &Matrix, scale: ScaleCode, shift: u32, room: &mut [u8]) -> Option<TabledE4m3> {
        let job = m.job;
        let blocks = (job.k as usize).div_ceil(m.block);
        if !job.block_rows.is_multiple_of(2) || !job.first_column.is_multiple_of(2) {
            return None;
        }
        let row_of = |column: u64| column.checked_div(job.block_rows).unwrap_or(0);
        let rows = row_of(job.first_column + job.n_columns - 1) - row_of(job.first_column) + 1;
        let tables = room.get_mut(..rows as usize * blocks * TABLE)?;
        let (scales, scales_pitch) = (m.scales(0), job.scales_pitch as usize);
        let values = crate::values::e4m3_magnitudes();
        let mut least = Least::ZEROS;
        for (i, table) in tables.chunks_exact_mut(TABLE).enumerate() {
            // SAFETY: the caller's contract: the grid has such a row and block.
            unsafe {
                let factor = factor(scale, scales.wrapping_add(i / blocks * scales_pitch), i % blocks, m.global);
                least.add(factor);
                M::e4m3_table(values, factor, table.as_mut_ptr());
            }
        }
        let least_exponent = least.exponent(E4M3_LEAST);
        Some(TabledE4m3 { tables: tables.as_ptr(), scales, scales_pitch, blocks, shift, least_exponent })
    }
}

#[derive(Clone, Copy)]
pub(crate) struct TabledE4m3Reader {
    codes: [*const u8; 2],
    tables: *const u8,
    shift: u32,
    least_exponent: u32,
}

impl<M: Machine> Source<M> for TabledE4m3 {
    type Reader = TabledE4m3Reader;
    const BITS: usize = 8;
    const WHOLE: bool = true;

    #[inline(always)]
    unsafe fn reader(&self, _: &Matrix, columns: &Columns, _: (usize, usize), _: *mut Entries) -> Self::Reader {
        let bytes = columns.scales[0].addr() - self.scales.addr();
        let row = if bytes == 0 { 0 } else { bytes / self.scales_pitch };
        let tables = self.tables.wrapping_add(row * self.blocks * TABLE);
        TabledE4m3Reader { codes: columns.codes, tables, shift: self.shift, least_exponent: self.least_exponent }
    }
}

impl<M: Machine> Reader<M> for TabledE4m3Reader {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract.
        unsafe { widen::<M, false>(WordReader::<M>::words(self, g)) }
    }
}

impl<M: Machine> WordReader<M> for TabledE4m3Reader {
    const HALF: bool = false;

    #[inline(always)]
    fn least_exponent(&self) -> Option<u32> {
        Some(self.least_exponent)
    }

    #[inline(always)]
    unsafe fn words(&self, g: usize) -> [M::B; 4] {
        // SAFETY: the caller's contract: 64 bytes of each column are there, and a table of their block.
        unsafe {
            let p = [self.codes[0].add(g * 64), self.codes[1].add(g * 64)];
            M::e4m3_by_table(p, self.tables.wrapping_add(((g * GROUP) >> self.shift) * TABLE))
        }
    }
}

/// The values of sixteen codes (twice), in two vectors.
#[inline(always)]
unsafe fn e4m3_values<M: Machine>(least: [M::B; 2], others: [M::B; 2], codes: M::B) -> [M::B; 2] {
    // SAFETY: the caller's contract.
    unsafe {
        let sign = M::splat(0x80);
        let index = M::and(codes, M::splat(15));
        let upper = M::and(M::down_four(codes), M::splat(7));
        let is_least = M::equal(upper, M::splat(0));
        let low = M::select(is_least, M::look_up(least[0], index), M::look_up(others[0], index));
        let high = M::select(is_least, M::look_up(least[1], index), M::add(M::look_up(others[1], index), upper));
        // NaN is the largest magnitude: its value is made all ones.
        let nan = M::equal(M::or(codes, sign), M::splat(0xff));
        let high = M::xor(high, M::and(codes, sign));
        M::interleave(M::or(low, nan), M::or(high, nan))
    }
}
