//! Tables of sixteen 16-bit floats, which stay in registers: a code is an index, and what is looked up is the value.
//!
//! Within a block all codes have one factor, so a code means one value. A code of four bits has sixteen of them. One of
//! e4m3 has 256, but those of one fraction differ by powers of two, which rounding does not see while nothing leaves the
//! normal range: sixteen entries (eight fractions of normal codes, eight subnormal codes), and the exponent is added to
//! the bits of what was looked up.

use crate::round::{narrow_bf16, narrow_f16};
use moec_ir::DType;
use moec_ir::quant::Code;

/// Low bytes of sixteen 16-bit floats, then their high bytes.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Entries([u8; 32]);

/// Bytes of [`Entries`].
pub(crate) const ENTRIES: usize = size_of::<Entries>();

/// The exponent of e4m3 whose values the entries of normal codes are made for.
const MIDDLE: u8 = 8;
/// Biased exponents of factors with which no product of an e4m3 code leaves the normal range of bf16.
const SAFE: std::ops::RangeInclusive<u32> = 32..=222;

/// What entries are made of: numbers that are multiplied by a factor and rounded, and what is then taken off their bits.
#[derive(Clone, Copy)]
pub(crate) struct Recipe {
    values: [f32; 16],
    less: [u16; 16],
    half: bool,
}

impl Recipe {
    /// For codes of four bits, rounded to bf16 or f16.
    pub fn four_bits(code: Code, round: DType) -> Recipe {
        Recipe { values: *crate::values::four_bits(code), less: [0; 16], half: round == DType::F16 }
    }

    /// For e4m3, rounded to bf16.
    pub fn e4m3() -> Recipe {
        let values = std::array::from_fn(|i| {
            let fraction = i as u8 & 7;
            moec_ir::quant::e4m3(if i < 8 { fraction | MIDDLE << 3 } else { fraction })
        });
        let less = std::array::from_fn(|i| if i < 8 { u16::from(MIDDLE) << 7 } else { 0 });
        Recipe { values, less, half: false }
    }

    /// The entries for one factor.
    #[inline(always)]
    pub fn entries(&self, factor: f32) -> Entries {
        // Whatever NaN the factor is, the products' fractions leave room to be rounded up.
        let factor = if factor.is_nan() { f32::NAN } else { factor };
        let mut words = [0u16; 16];
        if self.half {
            for i in 0..16 {
                words[i] = narrow_f16(self.values[i] * factor);
            }
        } else {
            for i in 0..16 {
                words[i] = narrow_bf16(self.values[i] * factor).wrapping_sub(self.less[i]);
            }
        }
        let mut bytes = [0; 32];
        for i in 0..16 {
            bytes[i] = words[i] as u8;
            bytes[16 + i] = (words[i] >> 8) as u8;
        }
        Entries(bytes)
    }
}

/// Whether e4m3 codes times this factor are what [`Recipe::e4m3`] makes of them.
pub(crate) fn is_safe_for_e4m3(factor: f32) -> bool {
    SAFE.contains(&(factor.to_bits() >> 23 & 0xff))
}
