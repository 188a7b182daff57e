//! From floats to codes and scales: what makes quantised rows, in a kernel of their own, in the router's, and in the
//! epilogue of a product.
//!
//! Every step is the one of [`ActQuant::expr`] or rounds alike, so that codes are the reference's.

use crate::builder::{Builder, F32, Global, I32};
use crate::parts::math::evaluate;
use moec_ir::act_quant::ActQuant;
use moec_ir::quant::{Code, ScaleCode};
use moec_ir::target::Features;

/// The scale of a block.
#[derive(Clone, Copy)]
pub struct BlockScale<'c> {
    /// As it is stored.
    pub stored: F32<'c>,
    /// What codes are multiplied with: the stored scale, times the global one.
    pub factor: F32<'c>,
}

/// The scale of a block whose largest magnitude is `most`. `global` is the one of the tensor or row, where the format has
/// one.
pub fn block_scale<'c>(c: &'c Builder<'c>, q: ActQuant, most: F32<'c>, global: Option<F32<'c>>) -> BlockScale<'c> {
    let args: Vec<F32> = [most].into_iter().chain(global).collect();
    let stored = evaluate(c, &q.scale_expr(), &args);
    BlockScale { stored, factor: global.map_or(stored, |g| stored * g) }
}

/// The global scale of a row whose largest magnitude is `most`, where each row has its own.
pub fn row_global<'c>(c: &'c Builder<'c>, q: ActQuant, most: F32<'c>) -> F32<'c> {
    evaluate(c, &q.global_expr(), &[most])
}

/// Which floats the machine makes codes of by instructions. The others are made of the bits of the rounded value, which are the same.
#[derive(Clone, Copy)]
pub struct Conversions {
    e4m3: bool,
    e2m1: bool,
}

impl Conversions {
    /// Those of machines that multiply the codes of a kernel.
    pub const ALL: Conversions = Conversions { e4m3: true, e2m1: true };

    pub fn of(features: Features) -> Conversions {
        Conversions { e4m3: features.e4m3, e2m1: features.e2m1 }
    }

    /// As [`code_pair`].
    pub fn code_pair<'c>(self, c: &'c Builder<'c>, q: ActQuant, pair: [F32<'c>; 2], factor: F32<'c>) -> I32<'c> {
        let (converts, bits) = match q.code {
            Code::E2M1 => (self.e2m1, 4),
            Code::E4M3 | Code::E5M2 | Code::Int4 | Code::Int16 => (self.e4m3, 8),
        };
        if converts {
            return code_pair(c, q, pair[0], pair[1], factor);
        }
        let [low, high] = pair.map(|x| {
            let value = evaluate(c, &q.code_expr(), &[x, factor]);
            if bits == 4 { e2m1_bits(c, value) } else { e4m3_bits(c, value) }
        });
        low | (high << bits)
    }

    /// Writes a scale.
    pub fn store_scale<'c>(self, c: &'c Builder<'c>, q: ActQuant, to: Global<'c>, stored: F32<'c>) {
        match q.stored().scale {
            ScaleCode::E4M3 if !self.e4m3 => c.store_bits(to, e4m3_bits(c, stored), 1),
            _ => store_scale(c, q, to, stored),
        }
    }
}

/// The code of an e4m3 number.
fn e4m3_bits<'c>(c: &'c Builder<'c>, value: F32<'c>) -> I32<'c> {
    let (sign, magnitude) = ((value.bits() >> 24) & 0x80, value.abs());
    // Three bits of the mantissa stay, and the exponent has 120 less; below 2^-6 there is none.
    let normal = (magnitude.bits() >> 20) - (120 << 3);
    let subnormal = (magnitude * 512.0).round_to_i32();
    let code = sign | c.select(magnitude.lt(1.0 / 64.0), subnormal, normal);
    c.select(value.is_nan(), c.i32(0x7f), code)
}

/// The code of an e2m1 number.
fn e2m1_bits<'c>(c: &'c Builder<'c>, value: F32<'c>) -> I32<'c> {
    let (sign, magnitude) = ((value.bits() >> 28) & 8, value.abs());
    let normal = (magnitude.bits() >> 22) - (126 << 1);
    // No code is NaN: the scale of such a block is.
    let subnormal = c.select(magnitude.gt(0.0), c.i32(1), c.i32(0));
    sign | c.select(magnitude.lt(1.0), subnormal, normal.min(7))
}

/// Writes a scale.
pub fn store_scale<'c>(c: &'c Builder<'c>, q: ActQuant, to: Global<'c>, stored: F32<'c>) {
    match q.stored().scale {
        ScaleCode::F32 | ScaleCode::BF16 | ScaleCode::F16 => c.store_f32(to, stored),
        ScaleCode::E8M0 => c.store_bits(to, stored.bits() >> 23, 1),
        ScaleCode::E4M3 => c.store_bits(to, c.to_e4m3(stored, c.f32(0.0)), 1),
    }
}

/// The codes of two elements of a block with scale `factor`, `x` in the lower bits: 16 bits of FP8, 8 bits of FP4.
pub fn code_pair<'c>(c: &'c Builder<'c>, q: ActQuant, x: F32<'c>, y: F32<'c>, factor: F32<'c>) -> I32<'c> {
    let (x, y) = (x / factor, y / factor);
    match q.code {
        Code::E2M1 => c.to_e2m1(x, y),
        Code::E4M3 | Code::E5M2 | Code::Int4 | Code::Int16 => c.to_e4m3(x, y),
    }
}
