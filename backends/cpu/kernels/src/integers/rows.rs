//! Rows of integers: codes in pairs, then the scales of blocks.

use super::STEP;
use crate::arrange::{OfRow, of_elements};
use moec_ir::abi::arranged_len;

/// What numbers must be added to so that their integers are the lowest bits: 1.5 · 2^23.
const ROUNDS: f32 = 12_582_912.0;

/// An arranged row.
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// Pairs of codes: of each eight, `j` and `j + 4` are pair `j`.
    pub pairs: *const i32,
    /// The scale of each block.
    pub scales: *const f32,
}

impl Row {
    /// Row number `r` of those at `rows`, of `k` elements each.
    #[inline(always)]
    pub fn of(rows: *const f32, k: u64, r: usize) -> Row {
        let pairs = rows.wrapping_add(r * arranged_len(k) as usize);
        Row { pairs: pairs.cast(), scales: pairs.wrapping_add(scales_at(k as usize)) }
    }
}

/// Where scales begin, in floats: behind the codes of whole steps.
const fn scales_at(k: usize) -> usize {
    k.next_multiple_of(STEP) / 2
}

/// [`moec_ir::abi::CpuKernels::arrange`] for rows of integers, which are those of
/// [`ActQuant::INT16`](moec_ir::ActQuant::INT16).
///
/// # Safety
/// `from` holds `k` elements, and `to` is for [`arranged_len`]`(k)` floats.
#[inline(always)]
pub(crate) unsafe fn arrange(from: *const u8, encoding: u64, k: u64, to: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe { of_elements(from, encoding, Blocks { k: k as usize, to }) }
}

/// A row of blocks of integers, and their scales.
struct Blocks {
    k: usize,
    to: *mut f32,
}

impl OfRow for Blocks {
    #[inline(always)]
    unsafe fn make(&self, element: impl Fn(usize) -> f32) {
        let Blocks { k, to } = *self;
        let (pairs, scales) = (to.cast::<u32>(), to.wrapping_add(scales_at(k)));
        for block in 0..k.div_ceil(STEP) {
            let mut x = [0.0; STEP];
            let first = block * STEP;
            if first + STEP <= k {
                for i in 0..STEP {
                    x[i] = element(first + i);
                }
            } else {
                for i in 0..k - first {
                    x[i] = element(first + i);
                }
            }
            // Magnitudes are in the order of their bits, infinity and NaN being the greatest.
            let mut most = 0;
            for i in 0..STEP {
                most = most.max(x[i].to_bits() & 0x7fff_ffff);
            }
            let most = f32::from_bits(most);
            let scale = if most < f32::INFINITY { most.max(LEAST) / 32767.0 } else { f32::NAN };
            let per_unit = if most < f32::INFINITY { 1.0 / scale } else { 0.0 };
            // SAFETY: the caller's contract: there is room for whole blocks.
            unsafe {
                *scales.add(block) = scale;
                for eight in 0..STEP / 8 {
                    for j in 0..4 {
                        let code = |i: usize| (x[eight * 8 + i] * per_unit + ROUNDS).to_bits();
                        *pairs.add(block * STEP / 2 + eight * 4 + j) = code(j) & 0xffff | code(j + 4) << 16;
                    }
                }
            }
        }
    }
}

/// The least magnitude that a scale is made of, 2^-110: scales below are subnormal, and have too few bits.
const LEAST: f32 = f32::from_bits((127 - 110) << 23);
