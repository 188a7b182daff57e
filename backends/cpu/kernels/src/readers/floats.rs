//! Floats of 16 and of 32 bits.

use super::{Reader, Source, WordReader, eight, halves, widen};
use crate::entries::Entries;
use crate::machine::Machine;
use crate::values::{Columns, Matrix};

/// Floats of 16 bits; f16 when `HALF`.
#[derive(Clone, Copy)]
pub(crate) struct Words<const HALF: bool>;

#[derive(Clone, Copy)]
pub(crate) struct WordsReader<const HALF: bool> {
    at: [*const u8; 2],
}

impl<M: Machine, const HALF: bool> Source<M> for Words<HALF> {
    type Reader = WordsReader<HALF>;
    const BITS: usize = 16;
    const FLOATS: bool = true;
    const WHOLE: bool = true;

    #[inline(always)]
    unsafe fn reader(&self, _: &Matrix, columns: &Columns, _: (usize, usize), _: *mut Entries) -> Self::Reader {
        WordsReader { at: columns.codes }
    }
}

impl<M: Machine, const HALF: bool> Reader<M> for WordsReader<HALF> {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract.
        unsafe { widen::<M, HALF>(WordReader::<M>::words(self, g)) }
    }
}

impl<M: Machine, const HALF: bool> WordReader<M> for WordsReader<HALF> {
    const HALF: bool = HALF;

    #[inline(always)]
    unsafe fn words(&self, g: usize) -> [M::B; 4] {
        // SAFETY: the caller's contract: 128 bytes of each column are there.
        unsafe {
            let p = [self.at[0].add(g * 128), self.at[1].add(g * 128)];
            M::groups_of_words(p)
        }
    }
}

/// Floats of 32 bits.
#[derive(Clone, Copy)]
pub(crate) struct Floats;

#[derive(Clone, Copy)]
pub(crate) struct FloatsReader {
    at: [*const u8; 2],
}

impl<M: Machine> Source<M> for Floats {
    type Reader = FloatsReader;
    const BITS: usize = 32;
    const FLOATS: bool = true;
    const WHOLE: bool = true;

    #[inline(always)]
    unsafe fn reader(&self, _: &Matrix, columns: &Columns, _: (usize, usize), _: *mut Entries) -> Self::Reader {
        FloatsReader { at: columns.codes }
    }
}

impl<M: Machine> Reader<M> for FloatsReader {
    #[inline(always)]
    unsafe fn group(&self, g: usize) -> [M::F; 8] {
        // SAFETY: the caller's contract: 256 bytes of each column are there.
        unsafe {
            let p = [self.at[0].add(g * 256), self.at[1].add(g * 256)];
            let mut pairs = [[M::zero(); 2]; 4];
            for j in 0..4 {
                pairs[j] = M::deal([halves::<M>(p, 32 * j, 128), halves::<M>(p, 32 * j + 16, 128)]);
            }
            eight(pairs)
        }
    }
}
