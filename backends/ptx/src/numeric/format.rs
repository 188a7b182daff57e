//! Binary floating-point formats as data, and the one rounding routine that all conversions share.

/// What the largest exponent of a format is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Infinities and NaNs, as IEEE 754 (f16, bf16, tf32, f32, f64, e5m2).
    Ieee,
    /// No infinity; only the pattern with all exponent and mantissa bits set is a NaN (e4m3).
    NanOnly,
    /// Every pattern is a number (e2m3, e3m2, e2m1).
    Finite,
}

/// A sign-magnitude binary format. The sign is the bit above exponent and mantissa.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// Width of the exponent field in bits.
    pub exponent_bits: u32,
    /// Width of the mantissa field in bits, without the hidden bit.
    pub mantissa_bits: u32,
    /// Exponent bias.
    pub bias: i32,
    /// Use of the largest exponent.
    pub special: Special,
}

/// IEEE half precision.
pub const F16: Format = Format::new(5, 10, 15, Special::Ieee);
/// bfloat16.
pub const BF16: Format = Format::new(8, 7, 127, Special::Ieee);
/// TensorFloat-32 as a 19-bit value; in a register it stands in the upper 19 bits (see [`TF32_SHIFT`]).
pub const TF32: Format = Format::new(8, 10, 127, Special::Ieee);
/// IEEE single precision.
pub const F32: Format = Format::new(8, 23, 127, Special::Ieee);
/// IEEE double precision.
pub const F64: Format = Format::new(11, 52, 1023, Special::Ieee);
/// 8-bit float, largest value 448.
pub const E4M3: Format = Format::new(4, 3, 7, Special::NanOnly);
/// 8-bit float, largest value 57344.
pub const E5M2: Format = Format::new(5, 2, 15, Special::Ieee);
/// 6-bit float, largest value 7.5.
pub const E2M3: Format = Format::new(2, 3, 1, Special::Finite);
/// 6-bit float, largest value 28.
pub const E3M2: Format = Format::new(3, 2, 3, Special::Finite);
/// 4-bit float, largest value 6.
pub const E2M1: Format = Format::new(2, 1, 1, Special::Finite);

/// How far a tf32 value is shifted up in its 32-bit register.
pub const TF32_SHIFT: u32 = 13;

/// How an inexact value becomes a representable one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// `.rn`: to nearest, ties to even.
    NearestEven,
    /// `.rna`: to nearest, ties away from zero.
    NearestAway,
    /// `.rz`: toward zero.
    Zero,
    /// `.rm`: toward negative infinity.
    Down,
    /// `.rp`: toward positive infinity.
    Up,
    /// `.rs`: `bits` (`count` of them) are added to the discarded part, aligned at its top; a carry rounds away from zero.
    Stochastic {
        /// The random bits, in the low `count` bits.
        bits: u32,
        /// How many random bits there are, 1 to 16.
        count: u32,
    },
}

impl Format {
    const fn new(exponent_bits: u32, mantissa_bits: u32, bias: i32, special: Special) -> Self {
        Self { exponent_bits, mantissa_bits, bias, special }
    }

    /// Width in bits with the sign.
    #[must_use]
    pub const fn width(&self) -> u32 {
        1 + self.exponent_bits + self.mantissa_bits
    }

    /// The sign bit's mask.
    #[must_use]
    pub const fn sign_mask(&self) -> u64 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// The pattern of the largest finite value, without sign.
    #[must_use]
    pub const fn max_finite(&self) -> u64 {
        let all = self.sign_mask() - 1;
        match self.special {
            Special::Ieee => all - (1 << self.mantissa_bits),
            Special::NanOnly => all - 1,
            Special::Finite => all,
        }
    }

    /// The pattern of infinity; for a format without one, that of its NaN or else its largest value.
    #[must_use]
    pub const fn infinity(&self) -> u64 {
        match self.special {
            Special::Ieee => self.max_finite() + 1,
            Special::NanOnly => self.max_finite() + 1,
            Special::Finite => self.max_finite(),
        }
    }

    /// The canonical NaN of PTX: all exponent and mantissa bits set, sign clear. A format without NaN gives its largest value,
    /// as `cvt.satfinite` does.
    #[must_use]
    pub const fn nan(&self) -> u64 {
        self.sign_mask() - 1
    }

    /// Whether a pattern (bits above the width ignored) is a NaN.
    #[must_use]
    pub const fn is_nan(&self, bits: u64) -> bool {
        let magnitude = bits & (self.sign_mask() - 1);
        match self.special {
            Special::Ieee => magnitude > self.infinity(),
            Special::NanOnly => magnitude == self.nan(),
            Special::Finite => false,
        }
    }
}

/// The value of a bit pattern; exact for every format up to f64. Bits above the format's width are ignored.
#[must_use]
pub fn decode(bits: u64, format: &Format) -> f64 {
    let magnitude = bits & (format.sign_mask() - 1);
    let sign = if bits & format.sign_mask() != 0 { -1.0 } else { 1.0 };
    if format.is_nan(bits) {
        return f64::NAN;
    }
    if format.special == Special::Ieee && magnitude == format.infinity() {
        return sign * f64::INFINITY;
    }
    let exponent = (magnitude >> format.mantissa_bits) as i32;
    let mantissa = magnitude & ((1 << format.mantissa_bits) - 1);
    let (significand, exponent) =
        if exponent == 0 { (mantissa, 1) } else { (mantissa | 1 << format.mantissa_bits, exponent) };
    sign * significand as f64 * exp2i(exponent - format.bias - format.mantissa_bits as i32)
}

/// 2^e as f64, also where the result is subnormal.
fn exp2i(e: i32) -> f64 {
    if e >= -1022 { f64::from_bits(((e + 1023) as u64) << 52) } else { f64::from_bits(1u64 << (e + 1074).max(0)) }
}

/// Splits a finite, non-zero f64 into `(magnitude, exponent)` with value `magnitude · 2^exponent`.
#[must_use]
pub fn split(x: f64) -> (u64, i32) {
    let bits = x.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as i32;
    let mantissa = bits & ((1 << 52) - 1);
    if exponent == 0 { (mantissa, -1074) } else { (mantissa | 1 << 52, exponent - 1075) }
}

/// Rounds the exact value `±magnitude · 2^exponent` to `format`.
///
/// On overflow: with `satfinite` the largest finite value; else infinity or the largest finite value as the rounding direction
/// says (a format without infinity gives its NaN, one without NaN its largest value). Zero keeps the sign.
#[must_use]
pub fn round_pack(
    negative: bool,
    magnitude: u64,
    exponent: i32,
    format: &Format,
    rounding: Rounding,
    satfinite: bool,
) -> u64 {
    let sign = if negative { format.sign_mask() } else { 0 };
    if magnitude == 0 {
        return sign;
    }
    let top = 63 - magnitude.leading_zeros() as i32 + exponent;
    let ulp = top.max(1 - format.bias) - format.mantissa_bits as i32;
    let shift = ulp - exponent;
    let mut kept;
    if shift <= 0 {
        // More than 63 places cannot happen: the kept part has at most mantissa_bits + 1 bits.
        kept = magnitude << (-shift).min(63);
    } else {
        let wide = u128::from(magnitude);
        let places = shift.min(100) as u32;
        kept = (wide >> places) as u64;
        let rest = wide & ((1u128 << places) - 1);
        let half = 1u128 << (places - 1);
        let up = match rounding {
            Rounding::NearestEven => rest > half || (rest == half && kept & 1 == 1),
            Rounding::NearestAway => rest >= half,
            Rounding::Zero => false,
            Rounding::Down => negative && rest != 0,
            Rounding::Up => !negative && rest != 0,
            Rounding::Stochastic { bits, count } => {
                let top_bits = if places >= count { rest >> (places - count) } else { rest << (count - places) };
                top_bits + u128::from(bits & ((1 << count) - 1)) >= 1u128 << count
            }
        };
        kept += u64::from(up);
    }
    // A subnormal has exponent field 0; a carry into the hidden bit or the next exponent comes out right by addition.
    let field = (ulp + format.mantissa_bits as i32 + format.bias - 1) as u64;
    let packed = if kept >> format.mantissa_bits == 0 { kept } else { (field << format.mantissa_bits) + kept };
    if packed > format.max_finite() {
        let stays_finite = match rounding {
            Rounding::Zero => true,
            Rounding::Down => !negative,
            Rounding::Up => negative,
            Rounding::NearestEven | Rounding::NearestAway | Rounding::Stochastic { .. } => false,
        };
        let magnitude = if satfinite || stays_finite { format.max_finite() } else { format.infinity() };
        // The NaN of a format without infinity has no sign in PTX.
        return if magnitude == format.nan() && format.special == Special::NanOnly {
            magnitude
        } else {
            sign | magnitude
        };
    }
    sign | packed
}

/// Rounds an f64 (which holds every f32, f16 and smaller value exactly) to a format. NaN gives the format's canonical NaN.
///
/// Infinity stays infinity unless `satfinite`, or unless the format has none.
#[must_use]
pub fn encode(x: f64, format: &Format, rounding: Rounding, satfinite: bool) -> u64 {
    if x.is_nan() {
        return format.nan();
    }
    let negative = x.is_sign_negative();
    if x.is_infinite() {
        let magnitude = if satfinite { format.max_finite() } else { format.infinity() };
        let unsigned = magnitude == format.nan() && format.special == Special::NanOnly;
        return if negative && !unsigned { format.sign_mask() | magnitude } else { magnitude };
    }
    if x == 0.0 {
        return if negative { format.sign_mask() } else { 0 };
    }
    let (magnitude, exponent) = split(x);
    round_pack(negative, magnitude, exponent, format, rounding, satfinite)
}
