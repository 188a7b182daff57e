//! Products of integers: `smlal`, by an element of a row. A vector of pairs has the first integers of all columns in one register
//! and the second ones in the other.

use super::{Neon, store_first, widen_half};
use crate::integers::{Integers, MOST_LANES};
use crate::machine::{Machine, Task};
use moec_ir::quant::ScaleCode;
use std::arch::aarch64::*;

/// The integers of two registers as words.
#[inline(always)]
unsafe fn words(x: [uint32x4_t; 2]) -> [int16x8_t; 2] {
    // SAFETY: every processor has NEON.
    unsafe { [vreinterpretq_s16_u32(x[0]), vreinterpretq_s16_u32(x[1])] }
}

/// The low bytes of words as integers of all columns, and the high ones, of bytes of which every column has four: two vectors of
/// pairs.
#[inline(always)]
unsafe fn two_pairs(bytes: [int8x16_t; 2]) -> [[uint32x4_t; 2]; 2] {
    // SAFETY: every processor has NEON.
    unsafe {
        let (a, b) = (vreinterpretq_s16_s8(bytes[0]), vreinterpretq_s16_s8(bytes[1]));
        // Bytes 0 and 1 of every column, and bytes 2 and 3.
        let (first, second) = (vuzp1q_s16(a, b), vuzp2q_s16(a, b));
        let low = |x| vreinterpretq_u32_s16(vshrq_n_s16::<8>(vshlq_n_s16::<8>(x)));
        let high = |x| vreinterpretq_u32_s16(vshrq_n_s16::<8>(x));
        [[low(first), low(second)], [high(first), high(second)]]
    }
}

// SAFETY: as of `Machine`.
#[allow(unused_unsafe, reason = "since Rust 1.87 only pointers make these functions unsafe")]
impl Integers for Neon {
    type D = [uint32x4_t; 2];
    type Table = int8x16_t;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn table(values: &[i8; 16]) -> int8x16_t {
        unsafe { vld1q_s8(values.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn columns(p: &[*const u8; MOST_LANES], at: usize) -> [Self::D; 4] {
        unsafe {
            let mut dwords = [[vdupq_n_u32(0); 2]; 4];
            for half in 0..2 {
                let mut x = [vdupq_n_u32(0); 4];
                for c in 0..4 {
                    x[c] = vreinterpretq_u32_u8(vld1q_u8(p[half * 4 + c].add(at)));
                }
                let even = vreinterpretq_u64_u32(vtrn1q_u32(x[0], x[1]));
                let odd = vreinterpretq_u64_u32(vtrn2q_u32(x[0], x[1]));
                let next_even = vreinterpretq_u64_u32(vtrn1q_u32(x[2], x[3]));
                let next_odd = vreinterpretq_u64_u32(vtrn2q_u32(x[2], x[3]));
                dwords[0][half] = vreinterpretq_u32_u64(vzip1q_u64(even, next_even));
                dwords[1][half] = vreinterpretq_u32_u64(vzip1q_u64(odd, next_odd));
                dwords[2][half] = vreinterpretq_u32_u64(vzip2q_u64(even, next_even));
                dwords[3][half] = vreinterpretq_u32_u64(vzip2q_u64(odd, next_odd));
            }
            dwords
        }
    }

    #[inline(always)]
    unsafe fn pairs(table: int8x16_t, codes: Self::D) -> [Self::D; 4] {
        unsafe {
            let mut even = [vdupq_n_s8(0); 2];
            let mut odd = even;
            for half in 0..2 {
                let bytes = vreinterpretq_u8_u32(codes[half]);
                even[half] = vqtbl1q_s8(table, vandq_u8(bytes, vdupq_n_u8(15)));
                odd[half] = vqtbl1q_s8(table, vshrq_n_u8::<4>(bytes));
            }
            let ([a, c], [b, d]) = (two_pairs(even), two_pairs(odd));
            [a, b, c, d]
        }
    }

    #[inline(always)]
    unsafe fn none() -> Self::D {
        unsafe { [vdupq_n_u32(0); 2] }
    }

    #[inline(always)]
    unsafe fn add_products(sum: Self::D, w: Self::D, x: i32) -> Self::D {
        unsafe {
            let (w, x) = (words(w), vreinterpret_s16_s32(vdup_n_s32(x)));
            let low = vmlal_lane_s16::<0>(vreinterpretq_s32_u32(sum[0]), vget_low_s16(w[0]), x);
            let low = vmlal_lane_s16::<1>(low, vget_low_s16(w[1]), x);
            let high = vmlal_high_lane_s16::<0>(vreinterpretq_s32_u32(sum[1]), w[0], x);
            let high = vmlal_high_lane_s16::<1>(high, w[1], x);
            [vreinterpretq_u32_s32(low), vreinterpretq_u32_s32(high)]
        }
    }

    #[inline(always)]
    unsafe fn add_integers(x: Self::D, y: Self::D) -> Self::D {
        unsafe { [vaddq_u32(x[0], y[0]), vaddq_u32(x[1], y[1])] }
    }

    #[inline(always)]
    unsafe fn load_pairs(p: *const i32) -> Self::D {
        unsafe { [vld1q_u32(p.cast()), vld1q_u32(p.add(4).cast())] }
    }

    #[inline(always)]
    unsafe fn store_pairs(p: *mut i32, x: Self::D) {
        unsafe {
            vst1q_u32(p.cast(), x[0]);
            vst1q_u32(p.add(4).cast(), x[1]);
        }
    }

    #[inline(always)]
    unsafe fn to_floats(x: Self::D) -> Self::F {
        unsafe { [vcvtq_f32_s32(vreinterpretq_s32_u32(x[0])), vcvtq_f32_s32(vreinterpretq_s32_u32(x[1]))] }
    }

    #[inline(always)]
    unsafe fn splat_float(x: f32) -> Self::F {
        unsafe { [vdupq_n_f32(x); 2] }
    }

    #[inline(always)]
    unsafe fn product(x: Self::F, y: Self::F) -> Self::F {
        unsafe { [vmulq_f32(x[0], y[0]), vmulq_f32(x[1], y[1])] }
    }

    #[inline(always)]
    unsafe fn scales(scale: ScaleCode, bits: Self::D, i: usize) -> Self::F {
        unsafe { [four_scales(scale, bits[0], i), four_scales(scale, bits[1], i)] }
    }

    #[inline(always)]
    unsafe fn store_first(x: Self::F, n: usize, to: *mut f32) {
        unsafe {
            store_first(x[0], n, to);
            if n > 4 {
                store_first(x[1], n - 4, to.add(4));
            }
        }
    }

    #[inline(always)]
    unsafe fn apart_integers(task: &impl Task) {
        // SAFETY: the caller's contract.
        unsafe { Self::apart(task) }
    }
}

/// Scale number `i` of those in every 32 bits.
#[inline(always)]
unsafe fn four_scales(scale: ScaleCode, bits: uint32x4_t, i: usize) -> float32x4_t {
    // SAFETY: every processor has NEON.
    unsafe {
        let down = |by: usize| vshlq_u32(bits, vdupq_n_s32(-((by * i) as i32)));
        let nan = vdupq_n_f32(f32::NAN);
        match scale {
            ScaleCode::F32 => vreinterpretq_f32_u32(bits),
            ScaleCode::BF16 => vreinterpretq_f32_u32(vshlq_n_u32::<16>(down(16))),
            ScaleCode::F16 => widen_half(vmovn_u32(down(16))),
            ScaleCode::E8M0 => {
                let x = vandq_u32(down(8), vdupq_n_u32(0xff));
                let is_nan = vceqq_u32(x, vdupq_n_u32(255));
                // 2⁻¹²⁷ is subnormal.
                let x = vmaxq_u32(vshlq_n_u32::<23>(x), vdupq_n_u32(1 << 22));
                vbslq_f32(is_nan, nan, vreinterpretq_f32_u32(x))
            }
            ScaleCode::E4M3 => {
                let x = down(8);
                let magnitude = vandq_u32(x, vdupq_n_u32(0x7f));
                let is_nan = vceqq_u32(magnitude, vdupq_n_u32(0x7f));
                // An f32 that is 2¹²⁰ times too small.
                let small = vreinterpretq_f32_u32(vshlq_n_u32::<20>(magnitude));
                let value = vreinterpretq_u32_f32(vmulq_n_f32(small, f32::from_bits((127 + 120) << 23)));
                let sign = vandq_u32(vshlq_n_u32::<24>(x), vdupq_n_u32(1 << 31));
                vbslq_f32(is_nan, nan, vreinterpretq_f32_u32(vorrq_u32(value, sign)))
            }
        }
    }
}
