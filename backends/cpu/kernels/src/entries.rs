//! Tables of sixteen 16-bit floats, which stay in registers: a code is an index, and what is looked up is the value.
//!
//! Within a block all codes have one factor, so a code means one value. A code of four bits has sixteen of them. One of
//! e4m3 has 256, but those with the same lower four bits differ by powers of four, which rounding does not see while
//! nothing leaves the normal range: sixteen entries for the lower bits, and what the upper bits say is added to the upper
//! byte of what was looked up. The sixteen codes whose upper bits are 0, some of them subnormal, have entries of their own.

use crate::machine::Machine;
use crate::round::{narrow_bf16, narrow_f16};
use moec_ir::DType;
use moec_ir::quant::Code;
use std::sync::LazyLock;

/// Low bytes of sixteen 16-bit floats, then their high bytes; or sixteen words, for codes of four bits on machines that look up
/// words ([`Machine::WORD_ENTRIES`]).
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Entries([u8; 32]);

impl Entries {
    pub const ZERO: Entries = Entries([0; 32]);
}

/// Bytes of [`Entries`].
pub(crate) const ENTRIES: usize = size_of::<Entries>();

/// The upper bits of the e4m3 codes whose values the entries of normal codes are made for.
const MIDDLE: u8 = 4;
/// The least e4m3 that is not zero, 2^-9.
pub(crate) const E4M3_LEAST: f32 = f32::from_bits((127 - 9) << 23);
/// Biased exponents of factors with which no product of an e4m3 code leaves the normal range of bf16.
pub(crate) const SAFE: std::ops::RangeInclusive<u32> = 32..=222;

/// What entries are made of: numbers that are multiplied by a factor and rounded, and what is then taken off their bits.
#[derive(Clone, Copy)]
pub(crate) struct Recipe {
    pub values: [f32; 16],
    less: u16,
    half: bool,
    four_bits: bool,
}

impl Recipe {
    /// For codes of four bits, rounded to bf16 or f16.
    pub fn four_bits(code: Code, round: DType) -> Recipe {
        Recipe { values: *crate::values::four_bits(code), less: 0, half: round == DType::F16, four_bits: true }
    }

    /// For e4m3, rounded to bf16: for codes whose upper bits are 0, and for all others, with those upper bits taken off.
    pub fn e4m3() -> [Recipe; 2] {
        [0, MIDDLE].map(|upper| Recipe {
            values: std::array::from_fn(|low| moec_ir::quant::e4m3(low as u8 | upper << 4)),
            less: u16::from(upper) << 8,
            half: false,
            four_bits: false,
        })
    }

    /// The least of the values that are not zero, as a power of two.
    #[inline(always)]
    pub fn least_value(&self) -> f32 {
        // e2m1 has 0.5, integers 1.
        if self.values.contains(&0.5) { 0.5 } else { 1.0 }
    }

    /// Writes the entries of `n` factors. A factor that is NaN is a quiet one, so that products' fractions leave room to be
    /// rounded up.
    ///
    /// # Safety
    /// There are as many factors, `to` can be written, and the processor has the machine's features.
    #[inline(always)]
    pub unsafe fn entries<M: Machine>(&self, factors: *const f32, n: usize, to: *mut Entries) {
        // SAFETY: the caller's contract.
        unsafe {
            if self.four_bits && !self.half {
                M::word_entries(&self.values, factors, n, to.cast());
                return;
            }
            if !self.half {
                M::entries(&self.values, self.less, factors, n, to.cast());
                return;
            }
            for at in 0..n {
                let mut bytes = [0; ENTRIES];
                for i in 0..16 {
                    let [low, high] = narrow_f16(self.values[i] * *factors.add(at)).to_le_bytes();
                    let at = places(M::WORD_ENTRIES, i);
                    (bytes[at[0]], bytes[at[1]]) = (low, high);
                }
                to.add(at).write(Entries(bytes));
            }
        }
    }
}

/// Where the low and the high byte of entry `i` are: in words, or first all low bytes.
fn places(words: bool, i: usize) -> [usize; 2] {
    if words { [2 * i, 2 * i + 1] } else { [i, 16 + i] }
}

/// The entries of codes whose scale is an e8m0 of this byte, as bytes and as words ([`Machine::WORD_ENTRIES`]).
type ByE8m0 = [[Entries; 256]; 2];

pub(crate) static E2M1_BY_E8M0: LazyLock<ByE8m0> = LazyLock::new(|| by_e8m0(Code::E2M1));
pub(crate) static INT4_BY_E8M0: LazyLock<ByE8m0> = LazyLock::new(|| by_e8m0(Code::Int4));

fn by_e8m0(code: Code) -> ByE8m0 {
    let values = crate::values::four_bits(code);
    [false, true].map(|words| {
        std::array::from_fn(|byte| {
            let factor = moec_ir::quant::e8m0(byte as u8);
            // The NaN that factors have.
            let factor = if factor.is_nan() { f32::NAN } else { factor };
            let mut bytes = [0; ENTRIES];
            for i in 0..16 {
                let [low, high] = narrow_bf16(values[i] * factor).to_le_bytes();
                let at = places(words, i);
                (bytes[at[0]], bytes[at[1]]) = (low, high);
            }
            Entries(bytes)
        })
    })
}

/// The least magnitude of numbers, zeros aside.
#[derive(Clone, Copy)]
pub(crate) struct Least(u32);

impl Least {
    /// Of zeros only.
    pub const ZEROS: Least = Least(u32::MAX);

    /// With another number.
    #[inline(always)]
    pub fn add(&mut self, x: f32) {
        // The sign is shifted out; zero becomes the greatest.
        self.0 = self.0.min((x.to_bits() << 1).wrapping_sub(1));
    }

    /// With what [`Machine::least_of`] found.
    #[inline(always)]
    pub fn add_all(&mut self, least: u32) {
        self.0 = self.0.min(least);
    }

    /// A bound of the biased exponents of products with numbers of at least `value`, a power of two, rounded to bf16; 0 when
    /// one may be subnormal.
    #[inline(always)]
    pub fn exponent(self, value: f32) -> u32 {
        // Zeros only: any number is a bound.
        if self.0 == u32::MAX {
            return 255;
        }
        let exponent = (self.0 + 1) >> 24;
        if exponent == 0 { 0 } else { (exponent + (value.to_bits() >> 23)).saturating_sub(127) }
    }
}

/// Whether e4m3 codes times this factor are what [`Recipe::e4m3`] makes of them.
pub(crate) fn is_safe_for_e4m3(factor: f32) -> bool {
    SAFE.contains(&(factor.to_bits() >> 23 & 0xff))
}
