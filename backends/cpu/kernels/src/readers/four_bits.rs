//! Codes of four bits.

use super::blocks::{Blocks, make};
use super::{GROUP, ROOM, Reader, Source, WordReader, widen};
use crate::entries::{Entries, Least, Recipe};
use crate::machine::Machine;
use crate::values::{Columns, Matrix};
use moec_ir::quant::ScaleCode;

/// Elements of a block as `1 << SHIFT`; 0 where that is known when a job comes.
const fn shift_of<const SHIFT: u32>(shift: u32) -> u32 {
    if SHIFT == 0 { shift } else { SHIFT }
}

/// The shift of blocks of 16, of which a group has two for each half of a column.
const FINE: u32 = 4;

/// A bound of exponents that leaves rows those of all but very small numbers.
const ENOUGH: u32 = 64;

/// Codes of four bits whose values are of 16 bits: f16 when `HALF`, else bf16. Scales are looked up by their bytes
/// (`BYTES`) or entries are made for every block.
#[derive(Clone, Copy)]
pub(crate) struct FourBits<'t, const BYTES: bool, const SHIFT: u32, const HALF: bool> {
    pub recipe: &'t Recipe,
    pub scale: ScaleCode,
    pub shift: u32,
    /// The entries for every byte of a scale, when `BYTES`.
    pub table: *const Entries,
    /// [`WordReader::least_exponent`] of all of them.
    pub least_exponent: u32,
}

#[derive(Clone, Copy)]
pub(crate) struct FourBitsReader<const BYTES: bool, const SHIFT: u32, const HALF: bool> {
    codes: [*const u8; 2],
    blocks: Blocks<BYTES>,
    least_exponent: u32,
}

impl<M: Machine, const BYTES: bool, const SHIFT: u32, const HALF: bool> Source<M> for FourBits<'_, BYTES, SHIFT, HALF> {
    type Reader = FourBitsReader<BYTES, SHIFT, HALF>;
    const BITS: usize = 4;
    const WHOLE: bool = BYTES;

    #[inline(always)]
    unsafe fn reader(&self, m: &Matrix, columns: &Columns, range: (usize, usize), room: *mut Entries) -> Self::Reader {
        let shift = shift_of::<SHIFT>(self.shift);
        let mut entries = [self.table.cast::<u8>(); 2];
        if !BYTES && range.0 < range.1 {
            for c in 0..M::COLUMNS {
                // SAFETY: the caller's contract; half of the room is for each column.
                unsafe {
                    let room = room.add(c * ROOM / 2);
                    entries[c] = make::<M>(m, self.recipe, self.scale, shift, columns.scales[c], range, room);
                }
            }
        }
        let &Columns { codes, scales } = columns;
        let mut least_exponent = self.least_exponent;
        if BYTES && least_exponent < ENOUGH && self.scale == ScaleCode::E8M0 && range.0 < range.1 {
            // Some scale of the job is very small; it need not be one of these.
            let (from, n) = (range.0 >> shift, ((range.1 - 1) >> shift) + 1 - (range.0 >> shift));
            let mut least = u8::MAX;
            for c in 0..M::COLUMNS {
                // SAFETY: the caller's contract: there are scales of these elements.
                least = least.min(unsafe { M::least_byte(scales[c].add(from), n) });
            }
            least_exponent = exponent_of_byte(least, self.recipe);
        }
        FourBitsReader { codes, blocks: Blocks { entries, scales, shift }, least_exponent }
    }
}

/// [`WordReader::least_exponent`] of codes whose least scale is this e8m0.
#[inline(always)]
pub(crate) fn exponent_of_byte(least: u8, recipe: &Recipe) -> u32 {
    let mut all = Least::ZEROS;
    all.add(f32::from_bits(u32::from(least) << 23));
    if least == 0 { 0 } else { all.exponent(recipe.least_value()) }
}

impl<M: Machine, const BYTES: bool, const SHIFT: u32, const HALF: bool> Reader<M>
    for FourBitsReader<BYTES, SHIFT, HALF>
{
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract.
        unsafe { widen::<M, HALF>(WordReader::<M>::words(self, g)) }
    }
}

impl<M: Machine, const BYTES: bool, const SHIFT: u32, const HALF: bool> WordReader<M>
    for FourBitsReader<BYTES, SHIFT, HALF>
{
    const HALF: bool = HALF;

    #[inline(always)]
    fn least_exponent(&self) -> Option<u32> {
        if BYTES { Some(self.least_exponent) } else { None }
    }

    #[inline(always)]
    unsafe fn words(&self, g: usize) -> [M::B; 4] {
        // SAFETY: the caller's contract: 32 bytes of each column are there.
        unsafe {
            let p = [self.codes[0].add(g * 32), self.codes[1].add(g * 32)];
            let i = g * GROUP;
            let blocks = Blocks { shift: shift_of::<SHIFT>(self.blocks.shift), ..self.blocks };
            let first = blocks.four::<M>(i);
            let second = if SHIFT == FINE { blocks.four::<M>(i + 16) } else { first };
            M::four_bits(p, [first, second])
        }
    }
}

/// As [`FourBits`], with values of bf16 and blocks of 32 elements or more whose scales are too many for a table: entries are
/// made in registers where they are used.
#[derive(Clone, Copy)]
pub(crate) struct MadeFourBits<'t, const SHIFT: u32> {
    pub recipe: &'t Recipe,
    pub scale: ScaleCode,
    pub shift: u32,
}

#[derive(Clone, Copy)]
pub(crate) struct MadeFourBitsReader<'t, const SHIFT: u32> {
    codes: [*const u8; 2],
    /// The factors of the first column's blocks, as if from block 0 on.
    factors: *const f32,
    /// How many factors behind those of the first column those of the other one lie.
    other: usize,
    shift: u32,
    values: &'t [f32; 16],
    least_exponent: u32,
}

impl<'t, M: Machine, const SHIFT: u32> Source<M> for MadeFourBits<'t, SHIFT> {
    type Reader = MadeFourBitsReader<'t, SHIFT>;
    const BITS: usize = 4;
    const WHOLE: bool = true;

    #[inline(always)]
    unsafe fn reader(
        &self,
        m: &Matrix,
        columns: &Columns,
        (first, end): (usize, usize),
        room: *mut Entries,
    ) -> Self::Reader {
        let shift = shift_of::<SHIFT>(self.shift);
        let (room, from) = (room.cast::<f32>(), first >> shift);
        let mut least = Least::ZEROS;
        let n = if first < end { ((end - 1) >> shift) + 1 - from } else { 0 };
        let other = n.next_multiple_of(16);
        if first < end {
            for c in 0..M::COLUMNS {
                let room = room.wrapping_add(c * other);
                // SAFETY: the caller's contract: there is room for so many factors.
                unsafe {
                    M::factors(self.scale, columns.scales[c], from, n, m.global, room);
                    least.add_all(M::least_of(room, n));
                }
            }
        }
        let codes = columns.codes;
        let values = &self.recipe.values;
        let least_exponent = least.exponent(self.recipe.least_value());
        MadeFourBitsReader {
            codes,
            factors: room.cast_const().wrapping_sub(from),
            other,
            shift,
            values,
            least_exponent,
        }
    }
}

impl<M: Machine, const SHIFT: u32> Reader<M> for MadeFourBitsReader<'_, SHIFT> {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract.
        unsafe { widen::<M, false>(WordReader::<M>::words(self, g)) }
    }
}

impl<M: Machine, const SHIFT: u32> WordReader<M> for MadeFourBitsReader<'_, SHIFT> {
    const HALF: bool = false;
    const MAY_FLUSH: bool = true;

    #[inline(always)]
    fn least_exponent(&self) -> Option<u32> {
        Some(self.least_exponent)
    }

    #[inline(always)]
    unsafe fn words(&self, g: usize) -> [M::B; 4] {
        // SAFETY: the caller's contract.
        unsafe { self.made::<M, false>(g) }
    }

    #[inline(always)]
    unsafe fn words_or_zero(&self, g: usize) -> [M::B; 4] {
        // SAFETY: the caller's contract.
        unsafe { self.made::<M, true>(g) }
    }
}

impl<const SHIFT: u32> MadeFourBitsReader<'_, SHIFT> {
    #[inline(always)]
    unsafe fn made<M: Machine, const MAY_FLUSH: bool>(&self, g: usize) -> [M::B; 4] {
        // SAFETY: the caller's contract: 32 bytes of each column are there, and factors of their blocks.
        unsafe {
            let p = [self.codes[0].add(g * 32), self.codes[1].add(g * 32)];
            let shift = shift_of::<SHIFT>(self.shift);
            let first = self.factors.wrapping_add((g * GROUP) >> shift);
            let second = self.factors.wrapping_add((g * GROUP + 32) >> shift);
            let other = if M::COLUMNS == 1 { 0 } else { self.other };
            let factors = [first, second, first.wrapping_add(other), second.wrapping_add(other)];
            M::four_bits_of::<MAY_FLUSH>(self.values, p, factors)
        }
    }
}
