//! Scalar functions in f32, and the expressions made of them.
//!
//! Every step is rounded on its own, as the reference evaluator does: LLVM is given no licence to contract or reorder.
//! Polynomials are least-maximum fits over the stated interval; the bound on their error is in the comment.

use crate::builder::{Builder, F32};
use moec_ir::Expr;
use moec_ir::expr::{Binary, ExprOp, Unary};

/// The value of an expression, which has an argument for each that it names: a kernel of another cannot be built.
pub fn evaluate<'c>(c: &'c Builder<'c>, expr: &Expr, args: &[F32<'c>]) -> F32<'c> {
    let mut steps: Vec<F32<'c>> = Vec::with_capacity(expr.ops.len());
    for op in &expr.ops {
        let step = |i: &u32| steps[*i as usize];
        let value = match op {
            ExprOp::Arg(n) => args
                .get(*n as usize)
                .copied()
                .unwrap_or_else(|| missing(c, "an expression names an argument that it does not have")),
            ExprOp::Const(x) => c.f32(x.0),
            ExprOp::Unary(f, x) => unary(c, *f, step(x)),
            ExprOp::Binary(f, x, y) => binary(*f, step(x), step(y)),
            ExprOp::Select(condition, x, y) => c.select(step(condition).gt(0.0), step(x), step(y)),
            ExprOp::Round(dtype, x) => c.round(*dtype, step(x)),
        };
        steps.push(value);
    }
    steps.last().copied().unwrap_or_else(|| missing(c, "an expression has no steps"))
}

/// Refuses the kernel; the value is never seen.
fn missing<'c>(c: &'c Builder<'c>, what: &str) -> F32<'c> {
    c.fail(what);
    c.f32(f32::NAN)
}

fn unary<'c>(c: &'c Builder<'c>, f: Unary, x: F32<'c>) -> F32<'c> {
    match f {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Exp => exp(c, x),
        Unary::Softplus => softplus(c, x),
        Unary::Sigmoid => sigmoid(c, x),
        Unary::Tanh => tanh(c, x),
        Unary::Erf => erf(c, x),
        Unary::Sqrt => x.sqrt(),
        Unary::RoundE4M3 => round_to_grid(c, x, 3, -6, 448.0),
        Unary::RoundE2M1 => round_to_grid(c, x, 1, 0, 6.0),
        Unary::CeilPow2 => {
            let up = (x.abs().bits() + 0x7f_ffff) & 0x7f80_0000;
            let up = c.select(up.lt(1 << 23), c.i32(1 << 23), up).min(254 << 23);
            c.select(x.is_nan(), x, up.as_f32())
        }
    }
}

/// The grid of a small float, as [`Unary::eval`] defines it: a sum rounds at the distance of the grid.
fn round_to_grid<'c>(c: &'c Builder<'c>, x: F32<'c>, mantissa: u32, least: i32, most: f32) -> F32<'c> {
    // NaN stays NaN through the minimum.
    let a = x.abs().minimum(most);
    let power = (a.bits() & 0x7f80_0000).as_f32();
    let least = 2f32.powi(least);
    let power = c.select(power.lt(least), c.f32(least), power);
    let shift = power * (1.5 * (1u32 << (23 - mantissa)) as f32);
    let rounded = ((a + shift) - shift).copysign(x);
    c.select(x.is_nan(), x, rounded)
}

fn binary<'c>(f: Binary, a: F32<'c>, b: F32<'c>) -> F32<'c> {
    match f {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Min => a.minimum(b),
        Binary::Max => a.maximum(b),
    }
}

/// `coefficients[0] + coefficients[1]·x + …` by Horner's rule.
fn polynomial<'c>(c: &'c Builder<'c>, coefficients: &[f32], x: F32<'c>) -> F32<'c> {
    let (last, rest) = coefficients.split_last().unwrap_or((&0.0, &[]));
    rest.iter().rev().fold(c.f32(*last), |sum, &k| sum.fma(x, k))
}

/// `e^x`, to about 2 ulp over the whole range; 0 and +inf beyond it.
///
/// `x·log2(e)` is split into a whole number `n` and a rest of at most ½, with log2(e) in two parts, so that the error of
/// the product does not grow with `x`; the special function unit does `2^rest`; `2^n` is applied in two steps because
/// the result may be subnormal.
pub fn exp<'c>(c: &'c Builder<'c>, x: F32<'c>) -> F32<'c> {
    let log2_e = std::f32::consts::LOG2_E;
    // log2(e) - LOG2_E as f32.
    let log2_e_low = (std::f64::consts::LOG2_E - f64::from(log2_e)) as f32;
    let n = (x * log2_e).rint();
    let rest = x.fma(log2_e_low, x.fma(log2_e, -n));
    let n = n.round_to_i32();
    let half = n.signed_shr(1);
    let scale = |n: crate::builder::I32<'c>| ((n + 127) << 23).as_f32();
    let y = rest.ex2_approx() * scale(half) * scale(n - half);
    let y = c.select(x.gt(88.8), c.f32(f32::INFINITY), y);
    c.select(x.lt(-104.5), c.f32(0.0), y)
}

/// `1 / (1 + e^-x)`; for negative `x` as `e^x / (1 + e^x)`, which keeps results down to the smallest subnormal.
fn sigmoid<'c>(c: &'c Builder<'c>, x: F32<'c>) -> F32<'c> {
    let e = exp(c, -x.abs());
    let r = c.f32(1.0) / (e + 1.0);
    c.select(x.lt(0.0), e * r, r)
}

/// `max(x, 0) + ln(1 + e^-|x|)`
fn softplus<'c>(c: &'c Builder<'c>, x: F32<'c>) -> F32<'c> {
    x.maximum(0.0) + ln_1p(c, exp(c, -x.abs()))
}

/// `ln(1 + u)` for `u` in 0…1: `2·atanh(u / (2 + u))`.
fn ln_1p<'c>(c: &'c Builder<'c>, u: F32<'c>) -> F32<'c> {
    let s = u / (u + 2.0);
    atanh(c, s) * 2.0
}

/// `atanh(s)` for `|s| ≤ 1/3`. Polynomial: |error| ≤ 1.2e-10 relative.
fn atanh<'c>(c: &'c Builder<'c>, s: F32<'c>) -> F32<'c> {
    const ODD: [f32; 5] = [0.333_333_37, 0.199_994_39, 0.143_084_44, 0.107_138_2, 0.121_505_04];
    let z = s * s;
    (s * z).fma(polynomial(c, &ODD, z), s)
}

/// Hyperbolic tangent: a polynomial below 0.6 (|error| ≤ 2.7e-9 relative), `1 - 2 / (e^2x + 1)` above.
fn tanh<'c>(c: &'c Builder<'c>, x: F32<'c>) -> F32<'c> {
    const ODD: [f32; 5] = [-0.333_333, 0.133_319_59, -0.053_786_68, 0.020_805_374, -0.005_905_856];
    let z = x * x;
    let small = (x * z).fma(polynomial(c, &ODD, z), x);
    let a = x.abs();
    let large = (c.f32(1.0) - c.f32(2.0) / (exp(c, a + a) + 1.0)).copysign(x);
    // NaN takes the polynomial, which keeps it.
    c.select(a.gt(0.6), large, small)
}

/// Error function: `x + x·p(x²)` below 0.95 (|error of p| ≤ 3.3e-11), `1 - e^(-x·q(x))` above (|error| ≤ 3.2e-11), 1 from 4 on.
fn erf<'c>(c: &'c Builder<'c>, x: F32<'c>) -> F32<'c> {
    const P: [f32; 8] = [
        0.128_379_17,
        -0.376_126_38,
        0.112_837_83,
        -0.026_865_445,
        0.005_221_075,
        -0.000_848_471_1,
        0.000_112_705_435,
        -9.680_134e-6,
    ];
    const Q: [f32; 9] = [
        1.128_471_3,
        0.636_066_1,
        0.104_227_96,
        -0.021_316_16,
        0.001_841_144_8,
        0.000_496_540_4,
        -0.000_212_755_3,
        3.348_702_4e-5,
        -2.081_936_8e-6,
    ];
    let z = x * x;
    let small = x.fma(polynomial(c, &P, z), x);
    let a = x.abs();
    let near = c.select(a.gt(4.0), c.f32(4.0), a);
    let large = c.f32(1.0) - exp(c, -(near * polynomial(c, &Q, near)));
    let large = c.select(a.gt(4.0), c.f32(1.0), large).copysign(x);
    c.select(a.gt(0.95), large, small)
}

/// `x^p` for `x ≥ 0`, as `e^(p·ln x)`: the relative error grows with `|p·ln x|`.
///
/// `x` is cut into `m·2^e` with `m` in √½…√2, and `ln m = 2·atanh((m - 1) / (m + 1))`.
pub fn pow<'c>(c: &'c Builder<'c>, x: F32<'c>, p: f32) -> F32<'c> {
    const TINY: f32 = f32::MIN_POSITIVE;
    let is_subnormal = x.lt(TINY);
    let scaled = c.select(is_subnormal, x * 16_777_216.0, x);
    // Bits of √½: what is below keeps its exponent, what is above moves to the next power of two.
    let shifted = scaled.bits() - 0x3f35_04f3;
    let e = shifted.signed_shr(23);
    let m = (scaled.bits() - (e << 23)).as_f32();
    let e = c.select(is_subnormal, e - 24, e).signed_to_f32();
    let ln_m = atanh(c, (m - 1.0) / (m + 1.0)) * 2.0;
    let ln = e.fma(std::f32::consts::LN_2, ln_m);
    let y = exp(c, ln * p);
    let at_zero = match p.partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Greater) => 0.0,
        Some(std::cmp::Ordering::Less) => f32::INFINITY,
        Some(std::cmp::Ordering::Equal) => 1.0,
        None => f32::NAN,
    };
    let at_infinity = if at_zero == 0.0 {
        f32::INFINITY
    } else if at_zero > 1.0 {
        0.0
    } else {
        at_zero
    };
    let y = c.select(x.gt(f32::MAX), c.f32(at_infinity), y);
    let y = c.select(x.gt(0.0), y, c.f32(at_zero));
    c.select(x.is_nan(), x, y)
}
