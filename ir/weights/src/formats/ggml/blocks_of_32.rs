//! Blocks of 32 with one half as scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! | type | bytes | value |
//! |---|---|---|
//! | Q4_0 | `d` f16, 16 × two nibbles | `d · (q - 8)` |
//! | Q4_1 | `d` f16, `m` f16, 16 × two nibbles | `d · q + m` |
//! | Q5_0 | `d` f16, fifth bits u32, 16 × two nibbles | `d · (q - 16)` |
//! | Q5_1 | `d` f16, `m` f16, fifth bits u32, 16 × two nibbles | `d · q + m` |
//! | Q8_0 | `d` f16, 32 × i8 | `d · q` |
//!
//! The low nibbles are elements 0 to 15, the high ones 16 to 31.

use super::half;

pub(super) fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    nibbles(&block[2..], [0; 4], out, |q| d * (q as i32 - 8) as f32);
}

pub(super) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..], [0; 4], out, |q| d * q as f32 + m);
}

pub(super) fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    nibbles(&block[6..], [block[2], block[3], block[4], block[5]], out, |q| d * (q as i32 - 16) as f32);
}

pub(super) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[8..], [block[4], block[5], block[6], block[7]], out, |q| d * q as f32 + m);
}

pub(super) fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    out.iter_mut().zip(&block[2..]).for_each(|(v, &q)| *v = d * f32::from(q as i8));
}

/// Codes of a nibble and, above it, the bit of the same number in `fifth`.
fn nibbles(codes: &[u8], fifth: [u8; 4], out: &mut [f32], value: impl Fn(u32) -> f32) {
    let fifth = u32::from_le_bytes(fifth);
    let (low, high) = out.split_at_mut(16);
    for (i, ((low, high), &q)) in low.iter_mut().zip(high).zip(codes).enumerate() {
        *low = value(u32::from(q & 15) | (fifth >> i & 1) << 4);
        *high = value(u32::from(q >> 4) | (fifth >> (i + 16) & 1) << 4);
    }
}
