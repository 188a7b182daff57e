//! The rules of `cvt`: float to float, float to integer, integer to float, and rounding to an integral value.
//!
//! Source: PTX ISA 9.1, section 9.7.9.21.

use super::format::{self, Format, Rounding, Special};

/// One float-to-float conversion of `cvt`, for one element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloatCvt {
    /// Source format.
    pub from: Format,
    /// Destination format.
    pub to: Format,
    /// Rounding; irrelevant when the destination holds every source value.
    pub rounding: Rounding,
    /// `.ftz`: subnormal f32 inputs and results become zeros of the same sign.
    pub ftz: bool,
    /// `.sat`: clamp to [0, 1], NaN to +0.
    pub sat: bool,
    /// `.relu`: negative results become +0.
    pub relu: bool,
    /// `.satfinite`: overflow and infinity become the largest finite value.
    pub satfinite: bool,
}

impl FloatCvt {
    /// A conversion without modifiers.
    #[must_use]
    pub const fn new(from: Format, to: Format, rounding: Rounding) -> Self {
        Self { from, to, rounding, ftz: false, sat: false, relu: false, satfinite: false }
    }
}

/// Converts one element; `bits` and the result stand in the low bits (tf32 as its 19-bit value).
///
/// NaN becomes the destination's canonical NaN (the largest value where there is none), except that f32 to f64 and same-format
/// conversions keep quiet NaNs as canonical too: PTX leaves payloads open.
#[must_use]
pub fn float_to_float(bits: u64, cvt: &FloatCvt) -> u64 {
    let mut x = format::decode(bits, &cvt.from);
    if cvt.ftz && cvt.from == format::F32 && x.abs() < f64::from(f32::MIN_POSITIVE) {
        x = 0f64.copysign(x);
    }
    if cvt.sat {
        x = if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 };
    }
    let mut result = format::encode(x, &cvt.to, cvt.rounding, cvt.satfinite);
    if cvt.relu && !cvt.to.is_nan(result) && result & cvt.to.sign_mask() != 0 {
        result = 0;
    }
    if cvt.ftz && cvt.to == format::F32 && result & 0x7f80_0000 == 0 {
        result &= cvt.to.sign_mask();
    }
    result
}

/// Float to integer: rounds (`.rni .rzi .rmi .rpi` as the four modes), then clamps to the destination's range.
///
/// `from_f64` says that the source is f64. NaN gives 0, or, when the source is f64 or the destination 64 bits wide, the pattern
/// with only the top bit set. The result stands in the low `bits` bits.
#[must_use]
pub fn float_to_int(x: f64, rounding: Rounding, signed: bool, bits: u32, from_f64: bool) -> u64 {
    let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    if x.is_nan() {
        return if from_f64 || bits == 64 { 1 << (bits - 1) } else { 0 };
    }
    let rounded = round_to_integral(x, rounding);
    // `as` saturates at the 128-bit range, which contains every destination's.
    let value = rounded as i128;
    let (low, high) =
        if signed { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) };
    value.clamp(low, high) as u64 & mask
}

/// Rounds to an integral value, keeping the sign of zero; infinities and NaN stay.
#[must_use]
pub fn round_to_integral(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::NearestEven | Rounding::Stochastic { .. } => x.round_ties_even(),
        Rounding::NearestAway => x.round(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

/// Integer to float with one rounding; `value` is the mathematical value of the source.
#[must_use]
pub fn int_to_float(value: i128, to: &Format, rounding: Rounding) -> u64 {
    let magnitude = value.unsigned_abs() as u64;
    if magnitude == 0 {
        return 0;
    }
    let packed = format::round_pack(value < 0, magnitude, 0, to, rounding, false);
    debug_assert!(to.special == Special::Ieee);
    packed
}
