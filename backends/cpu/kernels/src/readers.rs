//! Weights as they come from memory: groups of 64 elements of a vector's columns, made floats in registers.

mod blocks;
mod e4m3;
mod floats;
mod four_bits;

pub(crate) use e4m3::{E4m3, TabledE4m3, WideE4m3};
pub(crate) use floats::{Floats, Words};
pub(crate) use four_bits::{FourBits, MadeFourBits, exponent_of_byte};

use crate::entries::Entries;
use crate::machine::Machine;
use crate::values::{Columns, Matrix};

/// Elements of a group, which eight vectors hold.
pub(crate) const GROUP: usize = 64;
/// Elements of a block of a sum.
pub(crate) const BLOCK: usize = 512;
/// Least elements of a block of codes that has entries of its own, where entries are made for every block.
pub(crate) const LEAST_BLOCK: usize = 32;
/// Entries that a reader of a block needs room for: of two columns, with one or two for a block of codes.
pub(crate) const ROOM: usize = 4 * BLOCK / LEAST_BLOCK;
/// As [`ROOM`], for a reader of `k` elements: a factor for each block of codes of two columns, in pieces of sixteen.
pub(crate) const fn whole_room(k: usize) -> usize {
    (k.div_ceil(LEAST_BLOCK).next_multiple_of(16) * 2 * size_of::<f32>()).div_ceil(size_of::<Entries>())
}

/// The place of element `i` of a group in the order of lanes: turn times eight plus lane.
pub(crate) const fn place(i: usize) -> usize {
    let turn = i % 32 / 8 * 2 + (1 - i % 2);
    turn * 8 + i / 32 * 4 + i % 8 / 2
}

/// Reads the columns of a vector.
pub(crate) trait Reader<M: Machine>: Copy {
    /// Group `g` of the columns: vector `j` is what lanes take in turn `j`.
    ///
    /// # Safety
    /// The group lies within what the reader was made for, and the processor has the machine's features.
    unsafe fn group(&self, g: usize) -> [M::F; 8];
}

/// A reader of values of 16 bits.
pub(crate) trait WordReader<M: Machine>: Reader<M> {
    /// Whether they are f16, not bf16.
    const HALF: bool;
    /// Whether [`WordReader::words_or_zero`] does less.
    const MAY_FLUSH: bool = false;

    /// A bound of the biased exponents of all values that are not zero, from below; `None` where scales do not tell.
    fn least_exponent(&self) -> Option<u32> {
        None
    }

    /// Group `g` of the columns: each of four vectors has eight words of each column's first half and eight of the other.
    ///
    /// # Safety
    /// As [`Reader::group`].
    unsafe fn words(&self, g: usize) -> [M::B; 4];

    /// As [`WordReader::words`], but a number that is subnormal may become zero.
    ///
    /// # Safety
    /// As [`Reader::group`].
    #[inline(always)]
    unsafe fn words_or_zero(&self, g: usize) -> [M::B; 4] {
        // SAFETY: the caller's contract.
        unsafe { self.words(g) }
    }
}

/// A source of values of 16 bits.
pub(crate) trait WordSource<M: Machine>: Source<M, Reader: WordReader<M>> {}
impl<M: Machine, S: Source<M, Reader: WordReader<M>>> WordSource<M> for S {}

/// A kind of weights of a job.
pub(crate) trait Source<M: Machine>: Copy {
    type Reader: Reader<M>;
    /// Bits of an element.
    const BITS: usize;
    /// Whether a reader may be for any number of elements, with [`whole_room`] for it.
    const WHOLE: bool = false;
    /// Whether elements are floats, which are decoded with few registers.
    const FLOATS: bool = false;

    /// A reader of whole groups of elements `first .. end`, at most a block unless it is [`Source::WHOLE`], of one or two columns.
    ///
    /// `room` is for [`ROOM`] entries, which the reader points to.
    ///
    /// # Safety
    /// The matrix has these columns and elements, and `room` is as large as that.
    unsafe fn reader(&self, m: &Matrix, columns: &Columns, range: (usize, usize), room: *mut Entries) -> Self::Reader;
}

/// Eight vectors of four pairs of vectors, with even elements and with odd ones: what is odd has its turn first.
#[inline(always)]
fn eight<F: Copy>(pairs: [[F; 2]; 4]) -> [F; 8] {
    let [[a, b], [c, d], [e, f], [g, h]] = pairs;
    [b, a, d, c, f, e, h, g]
}

/// Words of bf16, or of f16 when `HALF`, as floats.
#[inline(always)]
unsafe fn widen<M: Machine, const HALF: bool>(words: [M::B; 4]) -> [M::F; 8] {
    let mut pairs = [[unsafe { M::zero() }; 2]; 4];
    for q in 0..4 {
        // SAFETY: the processor has the machine's features.
        pairs[q] = unsafe { if HALF { M::widen_f16(words[q]) } else { M::widen_bf16(words[q]) } };
    }
    eight(pairs)
}

/// Sixteen bytes `at` behind each column's pointer, and sixteen more `apart` behind those.
#[inline(always)]
unsafe fn halves<M: Machine>(p: [*const u8; 2], at: usize, apart: usize) -> M::B {
    // SAFETY: the caller's contract.
    unsafe { M::quarters([p[0].add(at), p[0].add(at + apart), p[1].add(at), p[1].add(at + apart)]) }
}
