//! Add, multiply and fused multiply-add with a single rounding in any mode, for f32, f16, bf16 and f64.
//!
//! f32 and smaller: the operation runs in f64; what the f64 loses is folded into its last bit ("round to odd"), after which the
//! second rounding is exact, since f64 has more than two spare bits over f32 (Boldo and Melquiond, "Emulation of FMA and
//! correctly rounded sums", 2008). f64: the error term comes from error-free transformations.

use super::format::{self, Rounding};

/// `a + b` with the last bit of the f64 set when inexact, so that a later rounding to f32 or less is correct.
#[must_use]
#[inline]
pub fn add_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let bb = sum - a;
    let error = (a - (sum - bb)) + (b - bb);
    to_odd(sum, error)
}

#[inline]
fn to_odd(sum: f64, error: f64) -> f64 {
    if error == 0.0 || !error.is_finite() || sum.to_bits() & 1 == 1 {
        return sum;
    }
    // An even last bit and a non-zero error: step toward the error, which makes the bit odd.
    let toward_larger_magnitude = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if toward_larger_magnitude { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}

/// Rounds an f64 (exact, or rounded to odd) to f32.
#[must_use]
#[inline]
pub fn to_f32(x: f64, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::NearestEven => x as f32,
        _ => f32::from_bits(format::encode(x, &format::F32, rounding, false) as u32),
    }
}

/// f32 addition. The sign of an exact zero sum follows IEEE 754: −0 only when rounding down or when both are −0.
#[must_use]
#[inline]
pub fn add_f32(a: f32, b: f32, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::NearestEven => a + b,
        _ => signed_zero(to_f32(add_to_odd(f64::from(a), f64::from(b)), rounding), a, b, rounding),
    }
}

fn signed_zero(sum: f32, a: f32, b: f32, rounding: Rounding) -> f32 {
    if sum == 0.0
        && rounding == Rounding::Down
        && a == -b
        && !(a == 0.0 && a.is_sign_positive() && b.is_sign_positive())
    {
        return -0.0;
    }
    sum
}

/// f32 multiplication; the product of two f32 is exact in f64.
#[must_use]
#[inline]
pub fn mul_f32(a: f32, b: f32, rounding: Rounding) -> f32 {
    match rounding {
        Rounding::NearestEven => a * b,
        _ => to_f32(f64::from(a) * f64::from(b), rounding),
    }
}

/// f32 fused multiply-add.
#[must_use]
#[inline]
pub fn fma_f32(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let result = to_f32(add_to_odd(product, f64::from(c)), rounding);
    let both_positive_zero = product.to_bits() == 0 && c.to_bits() == 0;
    if result == 0.0 && rounding == Rounding::Down && product == -f64::from(c) && !both_positive_zero {
        return -0.0;
    }
    result
}

/// The exact error of `a + b` (Knuth).
fn two_sum_error(a: f64, b: f64, sum: f64) -> f64 {
    let bb = sum - a;
    (a - (sum - bb)) + (b - bb)
}

/// Moves a nearest-even f64 result to the neighbour that a directed rounding asks for, given the sign of the error
/// (exact − result).
fn direct(result: f64, error: f64, rounding: Rounding) -> f64 {
    if error == 0.0 || result.is_nan() || error.is_nan() {
        return result;
    }
    match rounding {
        Rounding::Up if error > 0.0 => result.next_up(),
        Rounding::Down if error < 0.0 => result.next_down(),
        Rounding::Zero if result > 0.0 && error < 0.0 => result.next_down(),
        Rounding::Zero if result < 0.0 && error > 0.0 => result.next_up(),
        _ => result,
    }
}

/// f64 addition.
#[must_use]
pub fn add_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    let sum = a + b;
    if rounding == Rounding::NearestEven {
        return sum;
    }
    if sum.is_infinite() && a.is_finite() && b.is_finite() {
        return overflow(sum, rounding);
    }
    if sum == 0.0 && rounding == Rounding::Down && a == -b && a != 0.0 {
        return -0.0;
    }
    if !sum.is_finite() {
        return sum;
    }
    direct(sum, two_sum_error(a, b, sum), rounding)
}

fn overflow(result: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Zero => f64::MAX.copysign(result),
        Rounding::Up if result < 0.0 => f64::MIN,
        Rounding::Down if result > 0.0 => f64::MAX,
        _ => result,
    }
}

/// f64 multiplication.
#[must_use]
pub fn mul_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    fma_f64(a, b, if a * b == 0.0 { 0f64.copysign(a * b) } else { -0.0 }, rounding)
}

/// f64 fused multiply-add, through a 106-bit product and a wide sum.
#[must_use]
pub fn fma_f64(a: f64, b: f64, c: f64, rounding: Rounding) -> f64 {
    let nearest = a.mul_add(b, c);
    if rounding == Rounding::NearestEven || !a.is_finite() || !b.is_finite() || !c.is_finite() {
        return nearest;
    }
    if nearest.is_infinite() {
        return overflow(nearest, rounding);
    }
    if a == 0.0 || b == 0.0 {
        return if c == 0.0 && rounding == Rounding::Down && (a * b).is_sign_negative() != c.is_sign_negative() {
            -0.0
        } else {
            nearest
        };
    }
    let order = compare_fma(a, b, c, nearest);
    if order == 0 {
        return if nearest == 0.0 && rounding == Rounding::Down && c != 0.0 { -0.0 } else { nearest };
    }
    if nearest == 0.0 {
        // A sum below half of the smallest subnormal.
        return match rounding {
            Rounding::Up if order > 0 => f64::from_bits(1),
            Rounding::Down if order < 0 => -f64::from_bits(1),
            _ => 0f64.copysign(f64::from(order)),
        };
    }
    direct(nearest, f64::from(order), rounding)
}

/// f64 division.
#[must_use]
pub fn div_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    let nearest = a / b;
    if rounding == Rounding::NearestEven || a == 0.0 || b == 0.0 || !a.is_finite() || !b.is_finite() {
        return nearest;
    }
    if nearest.is_infinite() {
        return overflow(nearest, rounding);
    }
    // The sign of the true quotient less `nearest` is that of the residual over `b`.
    let order = compare_fma(-nearest, b, a, 0.0) * if b < 0.0 { -1 } else { 1 };
    match (nearest == 0.0, rounding, order) {
        (true, Rounding::Up, 1) => f64::from_bits(1),
        (true, Rounding::Down, -1) => -f64::from_bits(1),
        (true, ..) => nearest,
        (false, ..) => direct(nearest, f64::from(order), rounding),
    }
}

/// f64 square root.
#[must_use]
pub fn sqrt_f64(a: f64, rounding: Rounding) -> f64 {
    let nearest = a.sqrt();
    if rounding == Rounding::NearestEven || a <= 0.0 || !a.is_finite() {
        return nearest;
    }
    direct(nearest, f64::from(compare_fma(-nearest, nearest, a, 0.0)), rounding)
}

/// The sign of `a·b + c − r`, exactly, for finite operands and non-zero product.
fn compare_fma(a: f64, b: f64, c: f64, r: f64) -> i8 {
    // Sum of signed big integers over a common exponent, as little-endian limbs. The span of exponents is below 4300 bits.
    let (ma, ea) = format::split(a);
    let (mb, eb) = format::split(b);
    let terms = [(u128::from(ma) * u128::from(mb), ea + eb, (a < 0.0) != (b < 0.0)), part(c, false), part(r, true)];
    let base = terms.iter().filter(|t| t.0 != 0).map(|t| t.1).min().unwrap_or(0);
    let mut limbs = [0i64; 150];
    for (magnitude, exponent, negative) in terms {
        if magnitude == 0 {
            continue;
        }
        let place = (exponent - base) as usize;
        let (limb, bit) = (place / 32, place % 32);
        // 106 bits shifted by up to 31 do not fit u128 (137 bits): two halves.
        for (index, half) in [(0usize, magnitude as u64), (2, (magnitude >> 64) as u64)] {
            let wide = u128::from(half) << bit;
            for step in 0..3 {
                let piece = (wide >> (32 * step)) as u32;
                let value = i64::from(piece);
                limbs[limb + index + step] += if negative { -value } else { value };
            }
        }
    }
    let mut carry = 0i64;
    let mut non_zero = false;
    for limb in &mut limbs {
        let value = *limb + carry;
        carry = value >> 32;
        *limb = value & 0xffff_ffff;
        non_zero |= *limb != 0;
    }
    match (carry < 0, non_zero || carry > 0) {
        (true, _) => -1,
        (false, true) => 1,
        (false, false) => 0,
    }
}

fn part(x: f64, negate: bool) -> (u128, i32, bool) {
    if x == 0.0 {
        return (0, 0, false);
    }
    let (magnitude, exponent) = format::split(x);
    (u128::from(magnitude), exponent, (x < 0.0) != negate)
}
