//! AVX2, FMA and F16C: Intel since 2013, AMD since 2015. One column in a vector.

mod integers;

use crate::machine::{Machine, Task};
use moec_ir::quant::ScaleCode;
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Two times four floats.
#[inline(always)]
unsafe fn two(a: *const f32, b: *const f32) -> __m256 {
    // SAFETY: as below.
    unsafe { _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b)) }
}

/// Floats rounded to bf16, to nearest even, in the lower halves of 32 bits.
#[inline(always)]
unsafe fn rounded(x: __m256) -> __m256i {
    // SAFETY: as below.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        _mm256_srli_epi32::<16>(up)
    }
}

/// The low bytes of sixteen words, then their high bytes: `values · factor` rounded to bf16 less `less`.
#[inline(always)]
unsafe fn entry(values: &[f32; 16], less: u16, factor: f32) -> __m256i {
    // SAFETY: as below.
    unsafe {
        let v = values.as_ptr();
        let factor = _mm256_set1_ps(factor);
        // Packing takes turns between the lanes of two vectors: these bring the words in order.
        let a = rounded(_mm256_mul_ps(two(v, v.add(8)), factor));
        let b = rounded(_mm256_mul_ps(two(v.add(4), v.add(12)), factor));
        let words = _mm256_sub_epi16(_mm256_packus_epi32(a, b), _mm256_set1_epi16(less as i16));
        let low = _mm256_and_si256(words, _mm256_set1_epi16(0xff));
        let bytes = _mm256_packus_epi16(low, _mm256_srli_epi16::<8>(words));
        _mm256_permute4x64_epi64::<0b11_01_10_00>(bytes)
    }
}

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
    unsafe fn sum(x: __m256, y: __m256) -> __m256 {
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
    unsafe fn add(x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_add_epi8(x, y) }
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
    unsafe fn select(mask: __m256i, x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_blendv_epi8(y, x, mask) }
    }

    #[inline(always)]
    unsafe fn widen_bf16(x: __m256i) -> [__m256; 2] {
        unsafe {
            let even = _mm256_slli_epi32::<16>(x);
            let odd = _mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000u32 as i32));
            [_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd)]
        }
    }

    #[inline(always)]
    unsafe fn widen_f16(x: __m256i) -> [__m256; 2] {
        unsafe {
            // The even words of both lanes, then the odd ones.
            let order =
                _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
            let x = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(x, order));
            [_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(x))]
        }
    }

    #[inline(always)]
    unsafe fn deal(x: [__m256i; 2]) -> [__m256; 2] {
        unsafe {
            let (a, b) = (_mm256_castsi256_ps(x[0]), _mm256_castsi256_ps(x[1]));
            [_mm256_shuffle_ps::<0b10_00_10_00>(a, b), _mm256_shuffle_ps::<0b11_01_11_01>(a, b)]
        }
    }

    #[inline(always)]
    unsafe fn entries(values: &[f32; 16], less: u16, factors: *const f32, n: usize, to: *mut u8) {
        unsafe {
            for i in 0..n {
                _mm256_storeu_si256(to.add(i * 32).cast(), entry(values, less, *factors.add(i)));
            }
        }
    }

    #[inline(always)]
    unsafe fn entries_of(values: &[f32; 16], p: [*const f32; 4]) -> [__m256i; 2] {
        unsafe {
            let (a, b) = (entry(values, 0, *p[0]), entry(values, 0, *p[1]));
            [_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b)]
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
    unsafe fn entry_pairs(p: [*const u8; 4]) -> [__m256i; 2] {
        // SAFETY: the caller's contract.
        unsafe { [Self::quarters(p), Self::quarters([p[0].add(16), p[1].add(16), p[2], p[3]])] }
    }

    #[inline(always)]
    unsafe fn apart(task: &impl Task) {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn apart(task: &impl Task) {
            // SAFETY: the caller's contract.
            unsafe { task.run() }
        }
        // SAFETY: the caller's contract.
        unsafe { apart(task) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn prefetch_second(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}
