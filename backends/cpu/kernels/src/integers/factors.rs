//! The factors of blocks of codes, of all columns of a vector.

use super::{Integers, MOST_LANES};
use crate::values::Matrix;
use moec_ir::quant::ScaleCode;

/// Writes the factors of blocks `first .. first + n` of a vector's columns, whose scales begin at `scales`: those of a block lie
/// one vector behind those of the block before.
///
/// # Safety
/// The columns have such blocks, and `to` is for as many vectors and aligned to them; the processor has the machine's features.
#[inline(always)]
pub(super) unsafe fn factors<M: Integers>(
    m: &Matrix,
    scale: ScaleCode,
    scales: &[*const u8; MOST_LANES],
    (first, n): (usize, usize),
    to: *mut f32,
) {
    let bytes = scale.bytes() as usize;
    let per_piece = 16 / bytes;
    // SAFETY: the caller's contract; a piece that is not whole is copied to where it can be read.
    unsafe {
        let global = M::splat_float(m.global);
        let mut at = 0;
        while at < n {
            let here = (n - at).min(per_piece);
            let from = (first + at) * bytes;
            let dwords = if here == per_piece {
                M::columns(scales, from)
            } else {
                let mut copy = [[0u8; 16]; MOST_LANES];
                let mut starts = [std::ptr::null(); MOST_LANES];
                for l in 0..M::LANES {
                    for i in 0..here * bytes {
                        copy[l][i] = *scales[l].add(from + i);
                    }
                    starts[l] = copy[l].as_ptr();
                }
                M::columns(&starts, 0)
            };
            let per_dword = 4 / bytes;
            for i in 0..here {
                let scales = M::scales(scale, dwords[i / per_dword], i % per_dword);
                M::store(to.add((at + i) * M::LANES), M::product(scales, global));
            }
            at += here;
        }
    }
}
