//! From floats to codes and scales: what makes quantised rows, in a kernel of their own, in the router's, and in the
//! epilogue of a product.
//!
//! Every step is the one of [`ActQuant::expr`] or rounds alike, so that codes are the reference's.

use crate::builder::{Builder, F32, Global, I32};
use crate::parts::math::evaluate;
use moec_ir::act_quant::ActQuant;
use moec_ir::quant::{Code, ScaleCode};

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
        Code::E4M3 | Code::E5M2 | Code::Int4 => c.to_e4m3(x, y),
    }
}
