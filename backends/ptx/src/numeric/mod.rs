//! Conversions between the number formats of PTX, bit for bit.
//!
//! Everything goes through one core, [`format::round_pack`], which rounds an exact `magnitude · 2^exponent` to a format;
//! [`half`] holds quick versions of the conversions that hot loops need, [`convert`] the rules of `cvt` (ftz, relu, sat,
//! satfinite, NaN), [`arith`] single-rounding add, multiply and fma in all rounding modes.

pub mod arith;
pub mod convert;
pub mod format;
pub mod half;
pub mod scale;

pub use convert::{FloatCvt, float_to_float, float_to_int, int_to_float, round_to_integral};
pub use format::{Format, Rounding, decode, encode};

#[cfg(test)]
mod tests;
