//! Four-bit codes of unequal steps: IQ4_NL (blocks of 32) and IQ4_XS (blocks of 256).
//!
//! | type | bytes | value |
//! |---|---|---|
//! | IQ4_NL | `d` f16, 16 × two nibbles | `d · step(q)` |
//! | IQ4_XS | `d` f16, upper scale bits u16, 4 × two lower scale nibbles, 128 × two nibbles | `(d · (scale - 32)) · step(q)`, parts of 32 |
//!
//! In each part of 32 the low nibbles are elements 0 to 15, the high ones 16 to 31.

use super::half;

const STEPS: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

pub(super) fn iq4_nl(block: &[u8], out: &mut [f32]) {
    part(half(block, 0), &STEPS, &block[2..], out);
}

pub(super) fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let (d, high) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
    for (i, (out, codes)) in out.chunks_exact_mut(32).zip(block[8..].chunks_exact(16)).enumerate() {
        let low = block[4 + i / 2] >> (i % 2 * 4) & 15;
        let scale = (low | ((high >> (2 * i) & 3) as u8) << 4) as i8 - 32;
        part(d * f32::from(scale), &STEPS, codes, out);
    }
}

/// 32 elements from 16 bytes of two codes.
pub(super) fn part(scale: f32, steps: &[f32; 16], codes: &[u8], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &q) in low.iter_mut().zip(high).zip(codes) {
        *low = scale * steps[usize::from(q & 15)];
        *high = scale * steps[usize::from(q >> 4)];
    }
}
