//! The scale-factor formats of block-scaled matrix multiplication: ue8m0 and ue4m3.

use super::format::{self, Rounding};

/// The NaN of ue8m0.
pub const UE8M0_NAN: u8 = 0xff;

/// The value of a ue8m0 byte: 2^(byte − 127), NaN for 0xff. Exact in f32 (byte 0 is the subnormal 2^−127).
#[must_use]
#[inline]
pub fn ue8m0_to_f32(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        UE8M0_NAN => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// `cvt.{rz,rp}{.satfinite}.ue8m0x2`: the power of two at or below (`Zero`) or at or above (`Up`) the magnitude.
///
/// The sign is ignored. NaN gives 0xff. Magnitudes below 2^−127 give byte 0. Beyond 2^127: 0xfe with `satfinite`, else 0xff.
/// Rounding toward zero keeps finite magnitudes finite.
#[must_use]
pub fn f32_to_ue8m0(x: f32, rounding: Rounding, satfinite: bool) -> u8 {
    if x.is_nan() {
        return UE8M0_NAN;
    }
    let bits = x.to_bits() & 0x7fff_ffff;
    if bits == 0x7f80_0000 {
        return if satfinite { 0xfe } else { UE8M0_NAN };
    }
    let exponent = bits >> 23;
    let mantissa = bits & 0x007f_ffff;
    if exponent == 0 {
        // 2^-127 has mantissa 0x400000; anything above it needs the next power, 2^-126, when rounding up.
        return u8::from(rounding == Rounding::Up && mantissa > 0x0040_0000);
    }
    let up = u32::from(rounding == Rounding::Up && mantissa != 0);
    match exponent + up {
        value @ 0..=0xfe => value as u8,
        _ if satfinite => 0xfe,
        _ => UE8M0_NAN,
    }
}

/// The value of a ue4m3 byte: e4m3 with the sign bit ignored, NaN for 0x7f.
#[must_use]
#[inline]
pub fn ue4m3_to_f32(byte: u8) -> f32 {
    super::half::e4m3_table()[usize::from(byte & 0x7f)]
}

/// Rounds to ue4m3 (nearest even, saturating); negative values give 0.
#[must_use]
pub fn f32_to_ue4m3(x: f32) -> u8 {
    if x < 0.0 {
        return 0;
    }
    format::encode(f64::from(x), &format::E4M3, Rounding::NearestEven, true) as u8 & 0x7f
}
