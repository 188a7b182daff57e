//! Element arithmetic of f16 and bf16, and minimum and maximum of every width.

use crate::numeric::arith;
use crate::numeric::format::{self, Rounding};
use crate::numeric::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// PTX's minimum and maximum: NaN loses unless `nan`, −0 is below +0.
#[inline]
pub(crate) fn min_max_f32(a: f32, b: f32, max: bool, nan: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return if nan || (a.is_nan() && b.is_nan()) {
            f32::from_bits(0x7fff_ffff)
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    if a == b {
        // Equal values differ at most in the sign of zero.
        return if a.is_sign_negative() == max { b } else { a };
    }
    if (a < b) == max { b } else { a }
}

/// As [`min_max_f32`] for f64.
#[inline]
pub(crate) fn min_max_f64(a: f64, b: f64, max: bool) -> f64 {
    if a.is_nan() {
        return b;
    }
    if b.is_nan() {
        return a;
    }
    if a == b {
        return if a.is_sign_negative() == max { b } else { a };
    }
    if (a < b) == max { b } else { a }
}

/// A 16-bit floating-point format.
pub(crate) trait Half {
    const NAN: u16;
    fn load(bits: u16) -> f32;
    /// One rounding of an f32.
    fn store(x: f32) -> u16;
    /// One rounding of an f64 that is exact or rounded to odd.
    fn store_wide(x: f64) -> u16;
}

pub(crate) struct F16;
pub(crate) struct Bf16;

impl Half for F16 {
    const NAN: u16 = 0x7fff;

    #[inline]
    fn load(bits: u16) -> f32 {
        f16_to_f32(bits)
    }

    #[inline]
    fn store(x: f32) -> u16 {
        if x.is_nan() { Self::NAN } else { f32_to_f16(x) }
    }

    #[inline]
    fn store_wide(x: f64) -> u16 {
        let single = x as f32;
        if f64::from(single) == x || x.is_nan() {
            Self::store(single)
        } else {
            format::encode(x, &format::F16, Rounding::NearestEven, false) as u16
        }
    }
}

impl Half for Bf16 {
    const NAN: u16 = 0x7fff;

    #[inline]
    fn load(bits: u16) -> f32 {
        bf16_to_f32(bits)
    }

    #[inline]
    fn store(x: f32) -> u16 {
        if x.is_nan() { Self::NAN } else { f32_to_bf16(x) }
    }

    #[inline]
    fn store_wide(x: f64) -> u16 {
        let single = x as f32;
        if f64::from(single) == x || x.is_nan() {
            Self::store(single)
        } else {
            format::encode(x, &format::BF16, Rounding::NearestEven, false) as u16
        }
    }
}

/// How a half instruction treats its operands and result.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HalfMode {
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
    pub nan: bool,
    pub xorsign: bool,
    /// Results whose operand is the out-of-bounds NaN are 0 (`.oob`).
    pub oob: bool,
}

fn flush(bits: u16, mode: HalfMode) -> u16 {
    // Only f16 has `.ftz`.
    if mode.ftz && bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }
}

fn finish<H: Half>(bits: u16, mode: HalfMode) -> u16 {
    let mut bits = flush(bits, mode);
    let x = H::load(bits);
    if mode.sat {
        bits = if x.is_nan() { 0 } else { H::store(x.clamp(0.0, 1.0) + 0.0) };
    }
    if mode.relu && (x < 0.0 || bits == 0x8000) {
        bits = 0;
    }
    bits
}

/// Two-operand element arithmetic.
pub(crate) fn binary<H: Half>(op: &str, a: u16, b: u16, mode: HalfMode) -> u16 {
    let (a, b) = (flush(a, mode), flush(b, mode));
    let (x, y) = (H::load(a), H::load(b));
    let bits = match op {
        // f32 has more than twice the bits, so that rounding a sum twice is rounding it once.
        "add" => H::store(x + y),
        "sub" => H::store(x - y),
        "mul" => H::store_wide(f64::from(x) * f64::from(y)),
        _ => {
            let (x, y, sign) = if mode.xorsign { (x.abs(), y.abs(), (a ^ b) & 0x8000) } else { (x, y, 0) };
            let m = min_max_f32(x, y, op == "max", mode.nan);
            if m.is_nan() { H::NAN } else { H::store(m) | sign }
        }
    };
    finish::<H>(bits, mode)
}

/// Fused multiply-add of elements.
pub(crate) fn fma<H: Half>(a: u16, b: u16, c: u16, mode: HalfMode) -> u16 {
    const OOB_NAN: u16 = 0xffff;
    if mode.oob && (a == OOB_NAN || b == OOB_NAN) {
        return 0;
    }
    let (x, y, z) = (H::load(flush(a, mode)), H::load(flush(b, mode)), H::load(flush(c, mode)));
    let bits = H::store_wide(arith::add_to_odd(f64::from(x) * f64::from(y), f64::from(z)));
    finish::<H>(bits, mode)
}

/// One-operand element functions.
pub(crate) fn unary<H: Half>(op: &str, a: u16, mode: HalfMode) -> u16 {
    let a = flush(a, mode);
    let x = f64::from(H::load(a));
    match op {
        "abs" => a & 0x7fff,
        "neg" => a ^ 0x8000,
        "ex2" => finish::<H>(H::store(x.exp2() as f32), mode),
        _ => finish::<H>(H::store(x.tanh() as f32), mode),
    }
}
