//! Quick conversions for hot loops: f16, bf16, tf32 and the 8-bit and smaller formats to and from f32, round to nearest even.
//!
//! All are bit-identical to [`super::format::encode`] and [`super::format::decode`]; the tests compare them exhaustively.

use std::sync::LazyLock;

use super::format::{self, Format};

/// f16 to f32, exact. NaNs keep their payload and become quiet-or-not as they were.
#[must_use]
#[inline]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    if magnitude >= 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | (magnitude & 0x3ff) << 13);
    }
    // Read with f32's bias the value is 2^112 too small; the product is exact, also for f16's subnormals.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(sign | scaled.to_bits())
}

/// f32 to f16, round to nearest even; overflow gives infinity, NaN 0x7fff.
#[must_use]
#[inline]
pub fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    if magnitude > 0x7f80_0000 {
        return 0x7fff;
    }
    if magnitude >= 0x4780_0000 {
        return sign | 0x7c00;
    }
    if magnitude < 0x3880_0000 {
        // Subnormal result: adding 0.5 puts the f16 unit (2^-24) at the last bit of the f32, which rounds for us.
        let shifted = f32::from_bits(magnitude) + 0.5;
        return sign | (shifted.to_bits() - 0x3f00_0000) as u16;
    }
    let rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    sign | ((rounded - 0x3800_0000) >> 13) as u16
}

/// bf16 to f32, exact.
#[must_use]
#[inline]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// f32 to bf16, round to nearest even; NaN gives 0x7fff.
#[must_use]
#[inline]
pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return 0x7fff;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// The tf32 value that the tensor core reads from a 32-bit register: the low 13 bits are ignored.
#[must_use]
#[inline]
pub fn tf32_operand(bits: u32) -> f32 {
    f32::from_bits(bits & 0xffff_e000)
}

fn table(format: &Format) -> [f32; 256] {
    std::array::from_fn(|bits| format::decode(bits as u64, format) as f32)
}

macro_rules! small_tables {
    ($($(#[$doc:meta])* $name:ident, $table:ident, $format:expr;)*) => {$(
        static $table: LazyLock<[f32; 256]> = LazyLock::new(|| table(&$format));
        $(#[$doc])*
        #[must_use]
        pub fn $name() -> &'static [f32; 256] {
            &$table
        }
    )*};
}

small_tables! {
    /// The 256 values of e4m3.
    e4m3_table, E4M3_VALUES, format::E4M3;
    /// The 256 values of e5m2.
    e5m2_table, E5M2_VALUES, format::E5M2;
    /// The values of e2m3 by the low six bits of a byte.
    e2m3_table, E2M3_VALUES, format::E2M3;
    /// The values of e3m2 by the low six bits of a byte.
    e3m2_table, E3M2_VALUES, format::E3M2;
    /// The values of e2m1 by the low four bits of a byte.
    e2m1_table, E2M1_VALUES, format::E2M1;
}
