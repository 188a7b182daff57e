//! Codes of four bits.

use super::blocks::{Blocks, make};
use super::{BLOCK, GROUP, LEAST_BLOCK, ROOM, Reader, Source, WordReader, widen};
use crate::entries::{Entries, Least, Recipe};
use crate::machine::Machine;
use crate::values::Matrix;
use moec_ir::quant::ScaleCode;

/// Codes of four bits whose values are of 16 bits: f16 when `HALF`, else bf16. Scales are looked up by their bytes
/// (`BYTES`) or entries are made for every block; blocks are of 16 elements (`FINE`) or of 32 or more.
#[derive(Clone, Copy)]
pub(crate) struct FourBits<'t, const BYTES: bool, const FINE: bool, const HALF: bool> {
    pub recipe: &'t Recipe,
    pub scale: ScaleCode,
    pub shift: u32,
    /// The entries for every byte of a scale, when `BYTES`.
    pub table: *const Entries,
    /// The factors of every byte of a scale, when `BYTES`.
    pub factors: &'t [f32; 256],
    /// [`WordReader::least_exponent`] of all of them.
    pub least_exponent: u32,
}

#[derive(Clone, Copy)]
pub(crate) struct FourBitsReader<const BYTES: bool, const FINE: bool, const HALF: bool> {
    codes: [*const u8; 2],
    blocks: Blocks<BYTES>,
    ahead: usize,
    least_exponent: u32,
}

impl<M: Machine, const BYTES: bool, const FINE: bool, const HALF: bool> Source<M> for FourBits<'_, BYTES, FINE, HALF> {
    type Reader = FourBitsReader<BYTES, FINE, HALF>;
    const BITS: usize = 4;

    #[inline(always)]
    unsafe fn reader(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        range: (usize, usize),
        ahead: usize,
        room: *mut Entries,
    ) -> Self::Reader {
        let mut entries = [self.table.cast::<u8>(); 2];
        if !BYTES && range.0 < range.1 {
            for c in 0..M::COLUMNS {
                // SAFETY: the caller's contract; half of the room is for each column.
                unsafe {
                    let room = room.add(c * ROOM / 2);
                    entries[c] = make::<M>(m, self.recipe, self.scale, self.shift, columns[c], range, room);
                }
            }
        }
        let scales = [m.scales(columns[0]), m.scales(columns[1])];
        let blocks = Blocks { entries, scales, shift: self.shift };
        let codes = [m.column(columns[0]), m.column(columns[1])];
        let mut least_exponent = self.least_exponent;
        if BYTES && FINE && self.scale == ScaleCode::E8M0 && range.0 < range.1 {
            // These scales reach down to nothing, and grow with their bytes: the least that is there tells.
            let (from, to) = (range.0 >> self.shift, (range.1 - 1) >> self.shift);
            let mut least = Least::ZEROS;
            for c in 0..M::COLUMNS {
                // SAFETY: the caller's contract: there are scales of these elements.
                let byte = unsafe { M::least_byte(scales[c].add(from), to + 1 - from) };
                least.add(self.factors[usize::from(byte)]);
            }
            least_exponent = least.exponent(self.recipe.least_value());
        }
        FourBitsReader { codes, blocks, ahead, least_exponent }
    }
}

impl<M: Machine, const BYTES: bool, const FINE: bool, const HALF: bool> Reader<M>
    for FourBitsReader<BYTES, FINE, HALF>
{
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract.
        unsafe { widen::<M, HALF>(WordReader::<M>::words(self, g)) }
    }
}

impl<M: Machine, const BYTES: bool, const FINE: bool, const HALF: bool> WordReader<M>
    for FourBitsReader<BYTES, FINE, HALF>
{
    const HALF: bool = HALF;

    #[inline(always)]
    fn least_exponent(&self) -> Option<u32> {
        // Where a group has twice as many scales, looking at words costs; else looking at scales costs as much.
        if BYTES && FINE { Some(self.least_exponent) } else { None }
    }

    #[inline(always)]
    unsafe fn words(&self, g: usize) -> [M::B; 4] {
        // SAFETY: the caller's contract: 32 bytes of each column are there.
        unsafe {
            let p = [self.codes[0].add(g * 32), self.codes[1].add(g * 32)];
            for c in 0..M::COLUMNS {
                M::prefetch(p[c].wrapping_add(self.ahead));
            }
            let indices = nibbles::<M>(p);
            let i = g * GROUP;
            let first = self.blocks.pair::<M>(i);
            let second = if FINE { self.blocks.pair::<M>(i + 16) } else { first };
            let [a, b] = words::<M>(first, indices[0]);
            let [c, d] = words::<M>(second, indices[1]);
            [a, b, c, d]
        }
    }
}

/// As [`FourBits`], with values of bf16 and blocks of 32 elements or more whose scales are too many for a table: entries are
/// made in registers where they are used.
#[derive(Clone, Copy)]
pub(crate) struct MadeFourBits<'t> {
    pub recipe: &'t Recipe,
    pub scale: ScaleCode,
    pub shift: u32,
}

#[derive(Clone, Copy)]
pub(crate) struct MadeFourBitsReader<'t> {
    codes: [*const u8; 2],
    /// The factors of each column's blocks, as if from block 0 on.
    factors: [*const f32; 2],
    shift: u32,
    ahead: usize,
    values: &'t [f32; 16],
    least_exponent: u32,
}

impl<'t, M: Machine> Source<M> for MadeFourBits<'t> {
    type Reader = MadeFourBitsReader<'t>;
    const BITS: usize = 4;

    #[inline(always)]
    unsafe fn reader(
        &self,
        m: &Matrix,
        columns: [usize; 2],
        (first, end): (usize, usize),
        ahead: usize,
        room: *mut Entries,
    ) -> Self::Reader {
        let mut factors = [std::ptr::null(); 2];
        let mut least = Least::ZEROS;
        if first < end {
            let (from, to) = (first >> self.shift, (end - 1) >> self.shift);
            for c in 0..M::COLUMNS {
                let room = room.cast::<f32>().wrapping_add(c * BLOCK / LEAST_BLOCK);
                // SAFETY: the caller's contract; a block of a sum has at most so many blocks of codes.
                unsafe {
                    M::factors(self.scale, m.scales(columns[c]), from, to + 1 - from, m.global, room);
                    for i in 0..to + 1 - from {
                        least.add(*room.add(i));
                    }
                }
                factors[c] = room.cast_const().wrapping_sub(from);
            }
        }
        let codes = [m.column(columns[0]), m.column(columns[1])];
        let values = &self.recipe.values;
        let least_exponent = least.exponent(self.recipe.least_value());
        MadeFourBitsReader { codes, factors, shift: self.shift, ahead, values, least_exponent }
    }
}

impl<M: Machine> Reader<M> for MadeFourBitsReader<'_> {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract.
        unsafe { widen::<M, false>(WordReader::<M>::words(self, g)) }
    }
}

impl<M: Machine> WordReader<M> for MadeFourBitsReader<'_> {
    const HALF: bool = false;

    #[inline(always)]
    fn least_exponent(&self) -> Option<u32> {
        Some(self.least_exponent)
    }

    #[inline(always)]
    unsafe fn words(&self, g: usize) -> [M::B; 4] {
        // SAFETY: the caller's contract: 32 bytes of each column are there, and factors of their blocks.
        unsafe {
            let p = [self.codes[0].add(g * 32), self.codes[1].add(g * 32)];
            for c in 0..M::COLUMNS {
                M::prefetch(p[c].wrapping_add(self.ahead));
            }
            let (a, b) = ((g * GROUP) >> self.shift, (g * GROUP + 32) >> self.shift);
            let (first, second) = (self.factors[0], self.factors[M::COLUMNS - 1]);
            let factors =
                [first.wrapping_add(a), first.wrapping_add(b), second.wrapping_add(a), second.wrapping_add(b)];
            let entries = M::entries_of(self.values, factors);
            let [first, second] = nibbles::<M>(p);
            let [a, b] = words::<M>(entries, first);
            let [c, d] = words::<M>(entries, second);
            [a, b, c, d]
        }
    }
}

/// 64 codes of four bits as indices: elements 0 … 15 and 32 … 47, then 16 … 31 and 48 … 63.
#[inline(always)]
unsafe fn nibbles<M: Machine>(p: [*const u8; 2]) -> [M::B; 2] {
    // SAFETY: the caller's contract.
    unsafe {
        let pairs = M::bytes(p);
        let nibble = M::splat(15);
        M::interleave(M::and(pairs, nibble), M::and(M::down_four(pairs), nibble))
    }
}

/// The values at sixteen indices (twice), in two vectors.
#[inline(always)]
unsafe fn words<M: Machine>([low, high]: [M::B; 2], indices: M::B) -> [M::B; 2] {
    // SAFETY: the caller's contract.
    unsafe { M::interleave(M::look_up(low, indices), M::look_up(high, indices)) }
}
