//! NEON, which every 64-bit Arm processor has. One column in a vector, which is two registers.

mod integers;

use crate::machine::{Machine, Task};
use crate::{arrange_row, products_of};
use moec_ir::abi::{CpuKernels, Products};
use moec_ir::quant::ScaleCode;
use std::arch::aarch64::*;
use std::arch::asm;

#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// The functions for NEON.
pub(crate) fn kernels() -> CpuKernels {
    CpuKernels { arrange, products }
}

unsafe extern "C" fn arrange(from: *const u8, encoding: u64, k: u64, to: *mut f32) {
    // SAFETY: the contract of `CpuKernels::arrange`.
    unsafe { arrange_row(from, encoding, k, to) }
}

unsafe extern "C" fn products(job: *const Products) {
    // SAFETY: the contract of `CpuKernels::products`; there is no processor without NEON.
    unsafe { products_of::<Neon>(&*job) }
}

/// Four f16 as f32, subnormal ones included. (Vectors of f16 are no stable type.)
#[inline(always)]
fn widen_half(x: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: every processor has the instruction, which touches nothing but its operands.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) x, options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// The low bytes of sixteen words, and their high bytes: `values · factor` rounded to bf16, to nearest even, less `less`.
#[inline(always)]
unsafe fn entry(values: &[f32; 16], less: u16, factor: f32) -> [uint8x16_t; 2] {
    // SAFETY: as below.
    unsafe {
        let mut words = [vdup_n_u16(0); 4];
        for q in 0..4 {
            let bits = vreinterpretq_u32_f32(vmulq_n_f32(vld1q_f32(values.as_ptr().add(4 * q)), factor));
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            words[q] = vshrn_n_u32::<16>(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd));
        }
        let less = vdupq_n_u16(less);
        let a = vreinterpretq_u8_u16(vsubq_u16(vcombine_u16(words[0], words[1]), less));
        let b = vreinterpretq_u8_u16(vsubq_u16(vcombine_u16(words[2], words[3]), less));
        [vuzp1q_u8(a, b), vuzp2q_u8(a, b)]
    }
}

/// What a function gives for both registers.
macro_rules! both {
    ($x:ident => $one:expr) => {{
        let $x = 0;
        let first = $one;
        let $x = 1;
        [first, $one]
    }};
}

// Every block below has the same reason.
// SAFETY: the caller's contract: pointers are valid for what is read or written.
#[allow(unused_unsafe, reason = "since Rust 1.87 only pointers make these functions unsafe")]
impl Machine for Neon {
    type F = [float32x4_t; 2];
    type B = [uint8x16_t; 2];
    const COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        unsafe { [vdupq_n_f32(0.0); 2] }
    }

    #[inline(always)]
    unsafe fn fma(x: Self::F, y: Self::F, z: Self::F) -> Self::F {
        unsafe { both!(i => vfmaq_f32(z[i], x[i], y[i])) }
    }

    #[inline(always)]
    unsafe fn sum(x: Self::F, y: Self::F) -> Self::F {
        unsafe { both!(i => vaddq_f32(x[i], y[i])) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { both!(i => vld1q_f32(p.add(4 * i))) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            vst1q_f32(p, x[0]);
            vst1q_f32(p.add(4), x[1]);
        }
    }

    #[inline(always)]
    unsafe fn spread(p: *const f32) -> Self::F {
        unsafe { Self::load(p) }
    }

    #[inline(always)]
    unsafe fn sums(t: Self::F) -> [f32; 2] {
        unsafe {
            let s = vaddq_f32(t[0], t[1]);
            let pairs = vadd_f32(vget_low_f32(s), vget_high_f32(s));
            [vget_lane_f32::<0>(vpadd_f32(pairs, pairs)), 0.0]
        }
    }

    #[inline(always)]
    unsafe fn store_sums(x: [Self::F; 4], n: usize, to: *mut f32) {
        unsafe {
            // Lanes 0 and 1, and 2 and 3, of two columns, whose sums are pairs; then pairs of all four.
            let mut pairs = [vdupq_n_f32(0.0); 2];
            for i in 0..2 {
                let a = vreinterpretq_f64_f32(vaddq_f32(x[2 * i][0], x[2 * i][1]));
                let b = vreinterpretq_f64_f32(vaddq_f32(x[2 * i + 1][0], x[2 * i + 1][1]));
                let (low, high) = (vzip1q_f64(a, b), vzip2q_f64(a, b));
                pairs[i] = vaddq_f32(vreinterpretq_f32_f64(low), vreinterpretq_f32_f64(high));
            }
            store_first(vpaddq_f32(pairs[0], pairs[1]), n, to);
        }
    }

    #[inline(always)]
    unsafe fn bytes(p: [*const u8; 2]) -> Self::B {
        unsafe { both!(i => vld1q_u8(p[0].add(16 * i))) }
    }

    #[inline(always)]
    unsafe fn quarters(p: [*const u8; 4]) -> Self::B {
        unsafe { both!(i => vld1q_u8(p[i])) }
    }

    #[inline(always)]
    unsafe fn splat(byte: u8) -> Self::B {
        unsafe { [vdupq_n_u8(byte); 2] }
    }

    #[inline(always)]
    unsafe fn and(x: Self::B, y: Self::B) -> Self::B {
        unsafe { both!(i => vandq_u8(x[i], y[i])) }
    }

    #[inline(always)]
    unsafe fn or(x: Self::B, y: Self::B) -> Self::B {
        unsafe { both!(i => vorrq_u8(x[i], y[i])) }
    }

    #[inline(always)]
    unsafe fn xor(x: Self::B, y: Self::B) -> Self::B {
        unsafe { both!(i => veorq_u8(x[i], y[i])) }
    }

    #[inline(always)]
    unsafe fn equal(x: Self::B, y: Self::B) -> Self::B {
        unsafe { both!(i => vceqq_u8(x[i], y[i])) }
    }

    #[inline(always)]
    unsafe fn add(x: Self::B, y: Self::B) -> Self::B {
        unsafe { both!(i => vaddq_u8(x[i], y[i])) }
    }

    #[inline(always)]
    unsafe fn down_four(x: Self::B) -> Self::B {
        unsafe { both!(i => vreinterpretq_u8_u16(vshrq_n_u16::<4>(vreinterpretq_u16_u8(x[i])))) }
    }

    #[inline(always)]
    unsafe fn look_up(table: Self::B, index: Self::B) -> Self::B {
        unsafe { both!(i => vqtbl1q_u8(table[i], index[i])) }
    }

    #[inline(always)]
    unsafe fn interleave(x: Self::B, y: Self::B) -> [Self::B; 2] {
        unsafe { [both!(i => vzip1q_u8(x[i], y[i])), both!(i => vzip2q_u8(x[i], y[i]))] }
    }

    #[inline(always)]
    unsafe fn select(mask: Self::B, x: Self::B, y: Self::B) -> Self::B {
        unsafe { both!(i => vbslq_u8(mask[i], x[i], y[i])) }
    }

    #[inline(always)]
    unsafe fn widen_bf16(x: Self::B) -> [Self::F; 2] {
        unsafe {
            let words = both!(i => vreinterpretq_u32_u8(x[i]));
            let upper = vdupq_n_u32(0xffff_0000);
            [
                both!(i => vreinterpretq_f32_u32(vshlq_n_u32::<16>(words[i]))),
                both!(i => vreinterpretq_f32_u32(vandq_u32(words[i], upper))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn widen_f16(x: Self::B) -> [Self::F; 2] {
        unsafe {
            let (a, b) = (vreinterpretq_u16_u8(x[0]), vreinterpretq_u16_u8(x[1]));
            let (even, odd) = (vuzp1q_u16(a, b), vuzp2q_u16(a, b));
            [
                [widen_half(vget_low_u16(even)), widen_half(vget_high_u16(even))],
                [widen_half(vget_low_u16(odd)), widen_half(vget_high_u16(odd))],
            ]
        }
    }

    #[inline(always)]
    unsafe fn deal(x: [Self::B; 2]) -> [Self::F; 2] {
        unsafe {
            let a = both!(i => vreinterpretq_f32_u8(x[0][i]));
            let b = both!(i => vreinterpretq_f32_u8(x[1][i]));
            [both!(i => vuzp1q_f32(a[i], b[i])), both!(i => vuzp2q_f32(a[i], b[i]))]
        }
    }

    #[inline(always)]
    unsafe fn entries(values: &[f32; 16], less: u16, factors: *const f32, n: usize, to: *mut u8) {
        unsafe {
            for i in 0..n {
                let [low, high] = entry(values, less, *factors.add(i));
                vst1q_u8(to.add(i * 32), low);
                vst1q_u8(to.add(i * 32 + 16), high);
            }
        }
    }

    #[inline(always)]
    unsafe fn entries_of(values: &[f32; 16], p: [*const f32; 4]) -> [Self::B; 2] {
        unsafe {
            let (a, b) = (entry(values, 0, *p[0]), entry(values, 0, *p[1]));
            [[a[0], b[0]], [a[1], b[1]]]
        }
    }

    #[inline(always)]
    unsafe fn factors(scale: ScaleCode, from: *const u8, first: usize, n: usize, global: f32, to: *mut f32) {
        for i in 0..n {
            // SAFETY: the caller's contract.
            unsafe { *to.add(i) = crate::values::factor(scale, from, first + i, global) };
        }
    }

    #[inline(always)]
    unsafe fn entry_pairs(p: [*const u8; 4]) -> [Self::B; 2] {
        unsafe { [Self::quarters(p), Self::quarters([p[0].add(16), p[1].add(16), p[2], p[3]])] }
    }

    #[inline(always)]
    unsafe fn apart(task: &impl Task) {
        #[inline(never)]
        unsafe fn apart(task: &impl Task) {
            // SAFETY: the caller's contract.
            unsafe { task.run() }
        }
        // SAFETY: the caller's contract.
        unsafe { apart(task) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a hint, which no address makes fail. (The intrinsic is not stable.)
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn prefetch_second(p: *const u8) {
        // SAFETY: as above.
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
}

/// Writes the first `n` of four floats.
#[inline(always)]
unsafe fn store_first(x: float32x4_t, n: usize, to: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        if n >= 4 {
            vst1q_f32(to, x);
            return;
        }
        let mut all = [0.0f32; 4];
        vst1q_f32(all.as_mut_ptr(), x);
        std::ptr::copy_nonoverlapping(all.as_ptr(), to, n);
    }
}
