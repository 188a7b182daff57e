//! Products of pairs of integers, one at a time.

use super::{Portable, make};
use crate::integers::{Integers, MOST_LANES};
use crate::machine::{Machine, Task};
use moec_ir::quant::ScaleCode;

/// The integers of a pair.
#[inline(always)]
fn pair(x: u32) -> [i32; 2] {
    [i32::from(x as i16), i32::from((x >> 16) as i16)]
}

impl Integers for Portable {
    type D = [u32; 8];
    type Table = [i8; 16];
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn table(values: &[i8; 16]) -> [i8; 16] {
        *values
    }

    #[inline(always)]
    unsafe fn columns(p: &[*const u8; MOST_LANES], at: usize) -> [[u32; 8]; 4] {
        // SAFETY: the caller's contract.
        let dword = |l: usize, d: usize| u32::from_le(unsafe { p[l].add(at + 4 * d).cast::<u32>().read_unaligned() });
        let mut all = [[0; 8]; 4];
        for (d, dwords) in all.iter_mut().enumerate() {
            *dwords = make(|l| dword(l, d));
        }
        all
    }

    #[inline(always)]
    unsafe fn pairs(table: [i8; 16], codes: [u32; 8]) -> [[u32; 8]; 4] {
        let word = |code: u32| table[(code & 15) as usize] as i16 as u16;
        let mut all = [[0; 8]; 4];
        for (j, pairs) in all.iter_mut().enumerate() {
            *pairs = make(|l| u32::from(word(codes[l] >> (4 * j))) | u32::from(word(codes[l] >> (4 * (j + 4)))) << 16);
        }
        all
    }

    #[inline(always)]
    unsafe fn none() -> [u32; 8] {
        [0; 8]
    }

    #[inline(always)]
    unsafe fn add_products(sum: [u32; 8], w: [u32; 8], x: i32) -> [u32; 8] {
        let [a, b] = pair(x as u32);
        make(|l| {
            let [c, d] = pair(w[l]);
            sum[l].wrapping_add((a * c + b * d) as u32)
        })
    }

    #[inline(always)]
    unsafe fn add_integers(x: [u32; 8], y: [u32; 8]) -> [u32; 8] {
        make(|l| x[l].wrapping_add(y[l]))
    }

    #[inline(always)]
    unsafe fn load_pairs(p: *const i32) -> [u32; 8] {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<[u32; 8]>().read() }
    }

    #[inline(always)]
    unsafe fn store_pairs(p: *mut i32, x: [u32; 8]) {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<[u32; 8]>().write(x) }
    }

    #[inline(always)]
    unsafe fn to_floats(x: [u32; 8]) -> [f32; 8] {
        make(|l| x[l] as i32 as f32)
    }

    #[inline(always)]
    unsafe fn splat_float(x: f32) -> [f32; 8] {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn product(x: [f32; 8], y: [f32; 8]) -> [f32; 8] {
        make(|l| x[l] * y[l])
    }

    #[inline(always)]
    unsafe fn scales(scale: ScaleCode, bits: [u32; 8], i: usize) -> [f32; 8] {
        // SAFETY: the four bytes hold this scale.
        make(|l| unsafe { crate::values::factor(scale, bits[l].to_le_bytes().as_ptr(), i, 1.0) })
    }

    #[inline(always)]
    unsafe fn store_first(x: [f32; 8], n: usize, to: *mut f32) {
        // SAFETY: the caller's contract.
        unsafe { std::ptr::copy_nonoverlapping(x.as_ptr(), to, n) }
    }

    #[inline(always)]
    unsafe fn apart_integers(task: &impl Task) {
        // SAFETY: the caller's contract.
        unsafe { Self::apart(task) }
    }
}
