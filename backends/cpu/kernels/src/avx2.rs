//! AVX2, FMA and F16C: Intel since 2013, AMD since 2015. One column in a vector.

use crate::machine::Machine;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

// Every block below has the same reason.
// SAFETY: the caller's contract: the processor has AVX2, FMA and F16C, and pointers are valid for what is read or written.
impl Machine for Avx2 {
    type F = __m256;
    type B = __m256i;
    const COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn fma(x: __m256, y: __m256, z: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(x, y, z) }
    }

    #[inline(always)]
    unsafe fn add(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_add_ps(x, y) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_load_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        unsafe { _mm256_store_ps(p, x) }
    }

    #[inline(always)]
    unsafe fn spread(p: *const f32) -> __m256 {
        unsafe { _mm256_load_ps(p) }
    }

    #[inline(always)]
    unsafe fn sums(t: __m256) -> [f32; 2] {
        unsafe {
            let s = _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps::<1>(t));
            let pairs = _mm_add_ps(s, _mm_movehl_ps(s, s));
            [_mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs))), 0.0]
        }
    }

    #[inline(always)]
    unsafe fn bytes(p: [*const u8; 2]) -> __m256i {
        unsafe { _mm256_loadu_si256(p[0].cast()) }
    }

    #[inline(always)]
    unsafe fn quarters(p: [*const u8; 4]) -> __m256i {
        unsafe {
            let low = _mm256_castsi128_si256(_mm_loadu_si128(p[0].cast()));
            _mm256_inserti128_si256::<1>(low, _mm_loadu_si128(p[1].cast()))
        }
    }

    #[inline(always)]
    unsafe fn splat(byte: u8) -> __m256i {
        unsafe { _mm256_set1_epi8(byte as i8) }
    }

    #[inline(always)]
    unsafe fn and(x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(x, y) }
    }

    #[inline(always)]
    unsafe fn and_not(x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_andnot_si256(x, y) }
    }

    #[inline(always)]
    unsafe fn or(x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(x, y) }
    }

    #[inline(always)]
    unsafe fn xor(x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(x, y) }
    }

    #[inline(always)]
    unsafe fn equal(x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_cmpeq_epi8(x, y) }
    }

    #[inline(always)]
    unsafe fn add_words(x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(x, y) }
    }

    #[inline(always)]
    unsafe fn down_four(x: __m256i) -> __m256i {
        unsafe { _mm256_srli_epi16::<4>(x) }
    }

    #[inline(always)]
    unsafe fn look_up(table: __m256i, index: __m256i) -> __m256i {
        unsafe { _mm256_shuffle_epi8(table, index) }
    }

    #[inline(always)]
    unsafe fn interleave(x: __m256i, y: __m256i) -> [__m256i; 2] {
        unsafe { [_mm256_unpacklo_epi8(x, y), _mm256_unpackhi_epi8(x, y)] }
    }

    #[inline(always)]
    unsafe fn widen_bf16(x: __m256i) -> [__m256; 2] {
        unsafe {
            let zero = _mm256_setzero_si256();
            let (low, high) = (_mm256_unpacklo_epi16(zero, x), _mm256_unpackhi_epi16(zero, x));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }

    #[inline(always)]
    unsafe fn widen_f16(x: __m256i) -> [__m256; 2] {
        unsafe {
            // The lower halves of both lanes, then the upper ones.
            let x = _mm256_permute4x64_epi64::<0b11_01_10_00>(x);
            [_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(x))]
        }
    }

    #[inline(always)]
    unsafe fn floats(x: __m256i) -> __m256 {
        unsafe { _mm256_castsi256_ps(x) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
