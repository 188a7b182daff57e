//! Products of bf16 with bf16, by processors that multiply pairs.
//!
//! Their instruction adds two products to a sum, the odd element's first, each as a fused multiply-add does; that is the
//! order of [`moec_ir::abi::Products`]. But it takes subnormal numbers for zero, be they operands or sums. So it is used
//! where none can arise, which the least exponents of what is multiplied tell ([`has_no_subnormal`]); elsewhere the same
//! elements go through multiply-adds.

mod few;
mod many;
mod products;
mod rows;

pub(crate) use products::products;
pub(crate) use rows::arrange;

use crate::machine::Machine;

/// A machine that multiplies pairs. A vector of words has those of eight lanes, two for each, of every column.
///
/// # Safety
/// As [`Machine`].
#[allow(clippy::missing_safety_doc, reason = "one contract for all, that of `Machine`")]
pub(crate) trait Pairs: Machine {
    /// `z + w[odd] * x[odd]`, rounded, `+ w[even] * x[even]`, rounded; subnormal numbers are zero.
    unsafe fn add_pairs(w: Self::B, x: Self::B, z: Self::F) -> Self::F;
    /// The 32 bytes at `p`, for every column.
    unsafe fn spread_bytes(p: *const u8) -> Self::B;
    /// Aligned to the vector.
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    /// Aligned to the vector.
    unsafe fn store_bytes(p: *mut u8, x: Self::B);
    /// In every word the lesser of `least` and twice the word less one: signs do not count, and zero is the greatest.
    unsafe fn least(least: Self::B, words: Self::B) -> Self::B;
    /// In every word the lesser.
    unsafe fn lesser(x: Self::B, y: Self::B) -> Self::B;
    /// A word in all places.
    unsafe fn splat_word(word: u16) -> Self::B;
    /// The least word.
    unsafe fn least_word(x: Self::B) -> u16;
    /// Writes the group of 64 words at `from` in the order of an arranged row, and returns [`Pairs::least`] of all ones and
    /// them.
    unsafe fn arrange_group(from: *const u8, to: *mut u8) -> Self::B;
}

/// [`Pairs::add_pairs`] with subnormal numbers as they are.
///
/// # Safety
/// The processor has the machine's features.
#[inline(always)]
pub(crate) unsafe fn add_two<M: Machine>(w: M::B, x: M::B, z: M::F) -> M::F {
    // SAFETY: the caller's contract.
    unsafe {
        let ([w_even, w_odd], [x_even, x_odd]) = (M::widen_bf16(w), M::widen_bf16(x));
        M::fma(w_even, x_even, M::fma(w_odd, x_odd, z))
    }
}

/// The biased exponent of the least of bf16 numbers that are not zero, of the least word of [`Pairs::least`].
#[inline(always)]
fn exponent(least: u16) -> u32 {
    // Zeros only: any number is a bound.
    if least == u16::MAX { u32::from(u8::MAX) } else { u32::from(least + 1) >> 8 }
}

/// The least word of [`Pairs::least`] of numbers with this exponent and greater ones.
#[inline(always)]
fn word_of(exponent: u32) -> u16 {
    // Of a subnormal number.
    if exponent == 0 { 0 } else { (exponent << 8) as u16 - 1 }
}

/// Whether sums of products of bf16 numbers have no subnormal number in them, by the least biased exponents of both sides.
///
/// A normal bf16 with exponent `e` is a multiple of 2^(e - 134), so a product is one of 2^(x + w - 268); and so is every sum,
/// as rounding leaves what fits and makes the rest multiples of more. What is not zero is then at least that, which is
/// normal from 2^-126 on.
#[inline(always)]
fn has_no_subnormal(x: u32, w: u32) -> bool {
    x > 0 && w > 0 && x + w >= 268 - 126
}
