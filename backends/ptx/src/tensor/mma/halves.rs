//! Fragments of 16-bit elements: registers to matrices.

use std::borrow::Borrow;

use super::Lanes;

/// Of m16n8k16: where the two elements of each register of a lane lie, of A by rows of 16 and of B by rows of 8.
const LANES_OF_16X8X16: [([u8; 4], [u8; 2]); 32] = {
    let mut all = [([0; 4], [0; 2]); 32];
    let mut lane = 0;
    while lane < 32 {
        let (row, column) = (lane as u8 / 4, 2 * (lane as u8 % 4));
        let at = 16 * row + column;
        all[lane] = ([at, at + 128, at + 8, at + 136], [8 * column + row, 8 * (column + 8) + row]);
        lane += 1;
    }
    all
};

/// [`Mma::gather`] of m16 with 16-bit elements.
#[inline]
pub(super) fn gather_halves<L: Borrow<Lanes>>(
    n: usize,
    k: usize,
    decode: impl Fn(u16) -> f32,
    [a, b]: [&[L]; 2],
    am: &mut [f32],
    bm: &mut [f32],
) {
    // The shape of nearly all, with nothing left to be checked.
    if let ([a0, a1, a2, a3], [b0, b1], Ok(am), Ok(bm)) =
        (a, b, <&mut [f32; 256]>::try_from(&mut *am), <&mut [f32; 128]>::try_from(&mut *bm))
        && (n, k) == (8, 16)
    {
        for (lane, (rows, columns)) in LANES_OF_16X8X16.iter().enumerate() {
            for (a, at) in [a0, a1, a2, a3].into_iter().zip(rows) {
                let word = a.borrow()[lane];
                let at = usize::from(*at & 254);
                am[at] = decode(word as u16);
                am[at + 1] = decode((word >> 16) as u16);
            }
            for (b, at) in [b0, b1].into_iter().zip(columns) {
                let word = b.borrow()[lane];
                let at = usize::from(*at).min(119);
                bm[at] = decode(word as u16);
                bm[at + 8] = decode((word >> 16) as u16);
            }
        }
        return;
    }
    for (r, lanes) in a.iter().enumerate() {
        for (lane, word) in lanes.borrow().iter().enumerate() {
            let at = (lane / 4 + 8 * (r & 1)) * k + 8 * (r >> 1) + 2 * (lane % 4);
            am[at] = decode(*word as u16);
            am[at + 1] = decode((*word >> 16) as u16);
        }
    }
    for (r, lanes) in b.iter().enumerate() {
        for (lane, word) in lanes.borrow().iter().enumerate() {
            let at = (8 * r + 2 * (lane % 4)) * n + lane / 4;
            bm[at] = decode(*word as u16);
            bm[at + n] = decode((*word >> 16) as u16);
        }
    }
}
