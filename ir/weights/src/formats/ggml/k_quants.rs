//! Blocks of 256 with scales of their parts: Q2_K to Q6_K.
//!
//! | type | bytes | value |
//! |---|---|---|
//! | Q2_K | 16 × (scale, minimum) nibbles, 64 × four codes, `d` f16, `m` f16 | `(d · scale) · q - m · minimum`, parts of 16 |
//! | Q3_K | 32 × third bits, 64 × four codes, 16 scales of 6 bits in 12 bytes, `d` f16 | `(d · (scale - 32)) · (q - 4)`, parts of 16 |
//! | Q4_K | `d` f16, `m` f16, 8 × (scale, minimum) of 6 bits in 12 bytes, 128 × two codes | `(d · scale) · q - m · minimum`, parts of 32 |
//! | Q5_K | as Q4_K, with 32 × fifth bits before the codes | the same |
//! | Q6_K | 128 × two lower nibbles, 64 × four upper pairs of bits, 16 × i8 scale, `d` f16 | `(d · scale) · (q - 32)`, parts of 16 |

use super::half;

pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, m) = (half(block, 80), half(block, 82));
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, minimum) = (d * f32::from(scales[part] & 15), m * f32::from(scales[part] >> 4));
        let (codes, shift) = quarter(codes, part);
        out.iter_mut().zip(codes).for_each(|(v, q)| *v = scale * f32::from(q >> shift & 3) - minimum);
    }
}

pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (third, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half(block, 108);
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        // The lower four bits lie in bytes 0 to 7, of two parts each, the upper two in bytes 8 to 11, of four parts each.
        let low = scales[part % 8] >> (part / 8 * 4) & 15;
        let high = scales[8 + part % 4] >> (part / 4 * 2) & 3;
        let scale = d * f32::from((low | high << 4) as i8 - 32);
        let (codes, shift) = quarter(codes, part);
        let third = third[part % 2 * 16..].iter().map(|bits| bits >> (part / 2) & 1);
        for ((v, q), third) in out.iter_mut().zip(codes).zip(third) {
            *v = scale * f32::from((q >> shift & 3 | third << 2) as i8 - 4);
        }
    }
}

pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    four_bits_and_fifth(block, &[0; 32], &block[16..], out);
}

pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    four_bits_and_fifth(block, &block[16..48], &block[48..], out);
}

fn four_bits_and_fifth(block: &[u8], fifth: &[u8], codes: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&block[4..16], part);
        let (scale, minimum) = (d * f32::from(scale), m * f32::from(minimum));
        let codes = codes[part / 2 * 32..].iter().map(|q| q >> (part % 2 * 4) & 15);
        for ((v, q), fifth) in out.iter_mut().zip(codes).zip(fifth) {
            *v = scale * f32::from(q | (fifth >> part & 1) << 4) - minimum;
        }
    }
}

pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (part, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[part] as i8);
        // In each half of the block: 64 bytes with elements 0 to 63 below and 64 to 127 above; 32 bytes with four pairs.
        let (of, within) = (part / 8, part % 8);
        let low = low[of * 64 + within % 4 * 16..].iter().map(|q| q >> (within / 4 * 4) & 15);
        let high = high[of * 32 + within % 2 * 16..].iter().map(|q| q >> (within / 2 * 2) & 3);
        for ((v, low), high) in out.iter_mut().zip(low).zip(high) {
            *v = scale * f32::from((low | high << 4) as i8 - 32);
        }
    }
}

/// The bytes with the two-bit codes of part `part` of 16, and by how many bits they are shifted: in each half of a block,
/// 32 bytes with four parts of 32 elements above each other.
fn quarter(codes: &[u8], part: usize) -> (&[u8], usize) {
    (&codes[part / 8 * 32 + part % 2 * 16..], part % 8 / 2 * 2)
}

/// Scale and minimum of part `part` of 8, of six bits each in 12 bytes: parts 0 to 3 in the lower six bits of bytes 0 to 3
/// and 4 to 7; parts 4 to 7 in the nibbles of bytes 8 to 11, with their upper two bits above those of part `part - 4`.
fn scale_and_minimum(bytes: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        return (bytes[part] & 63, bytes[part + 4] & 63);
    }
    let (low, scale, minimum) = (bytes[part + 4], bytes[part - 4], bytes[part]);
    (low & 15 | scale >> 6 << 4, low >> 4 | minimum >> 6 << 4)
}
