//! MXFP4 as llama.cpp stores it: a block is the e8m0 scale and 16 bytes, whose low nibbles are elements 0 to 15 and whose
//! high nibbles are elements 16 to 31. Published checkpoints have elements 2j and 2j+1 in byte j instead.
//!
//! Steps are doubled and scales halved, so that all steps are whole numbers. The scale 255 is no number and is refused.

use super::iq4::part;

const DOUBLED: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

pub(super) fn mxfp4(block: &[u8], out: &mut [f32]) {
    part(halved_scale(block[0]), &DOUBLED, &block[1..], out);
}

/// `2^(code - 128)`; the smallest two are subnormal.
fn halved_scale(code: u8) -> f32 {
    let bits = if code < 2 { 0x0020_0000 << code } else { u32::from(code - 1) << 23 };
    f32::from_bits(bits)
}
