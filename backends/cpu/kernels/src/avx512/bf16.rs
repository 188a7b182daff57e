//! Products of pairs: `vdpbf16ps`, of Intel since 2020 and AMD since 2022.

use super::Avx512;
use crate::pairs::Pairs;
use std::arch::x86_64::*;

// SAFETY: the caller's contract: the processor has AVX-512 BF16 beside what `Avx512` needs, and pointers are valid for what
// is read or written.
impl Pairs for Avx512<true> {
    #[inline(always)]
    unsafe fn add_pairs(w: __m512i, x: __m512i, z: __m512) -> __m512 {
        unsafe {
            _mm512_dpbf16_ps(
                z,
                std::mem::transmute::<__m512i, __m512bh>(w),
                std::mem::transmute::<__m512i, __m512bh>(x),
            )
        }
    }

    #[inline(always)]
    unsafe fn spread_bytes(p: *const u8) -> __m512i {
        unsafe { _mm512_broadcast_i64x4(_mm256_load_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> __m512i {
        unsafe { _mm512_load_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, x: __m512i) {
        unsafe { _mm512_store_si512(p.cast(), x) }
    }

    #[inline(always)]
    unsafe fn least(least: __m512i, words: __m512i) -> __m512i {
        unsafe {
            let twice = _mm512_add_epi16(words, words);
            _mm512_min_epu16(least, _mm512_add_epi16(twice, _mm512_set1_epi16(-1)))
        }
    }

    #[inline(always)]
    unsafe fn lesser(x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_min_epu16(x, y) }
    }

    #[inline(always)]
    unsafe fn least_word(x: __m512i) -> u16 {
        unsafe {
            let x = _mm256_min_epu16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x));
            let x = _mm_min_epu16(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            _mm_cvtsi128_si32(_mm_minpos_epu16(x)) as u16
        }
    }

    #[inline(always)]
    unsafe fn arrange_group(from: *const u8, to: *mut u8) -> __m512i {
        unsafe {
            let (a, b) = (_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(64).cast()));
            let first = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b);
            let second = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b);
            _mm512_store_si512(to.cast(), first);
            _mm512_store_si512(to.add(64).cast(), second);
            Self::least(Self::least(_mm512_set1_epi8(-1), a), b)
        }
    }
}
