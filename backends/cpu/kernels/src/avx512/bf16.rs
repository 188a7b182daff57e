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
    unsafe fn splat_word(word: u16) -> __m512i {
        unsafe { _mm512_set1_epi16(word as i16) }
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

/// Whether this processor adds pairs as Intel documents it and the order of sums needs it: as two fused multiply-adds, those
/// of the odd elements first.
///
/// # Safety
/// The processor has AVX-512 BF16 beside what `Avx512` needs.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
pub(crate) unsafe fn adds_as_documented() -> bool {
    // Some numbers of either sign around 1, whose sums are rounded (Knuth's multiplicative generator).
    let mut state = 1u32;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16 & 0x807f | (0x3d + (state >> 9 & 3)) << 8) as u16
    };
    let mut sums = [0.0f32; 16];
    for _ in 0..64 {
        let (w, x): ([u16; 32], [u16; 32]) = (std::array::from_fn(|_| number()), std::array::from_fn(|_| number()));
        // SAFETY: the arrays are as large as vectors; the caller's contract.
        unsafe {
            let (w, x) = (_mm512_loadu_si512(w.as_ptr().cast()), _mm512_loadu_si512(x.as_ptr().cast()));
            let z = _mm512_loadu_ps(sums.as_ptr());
            let pairs = Avx512::<true>::add_pairs(w, x, z);
            let two = crate::pairs::add_two::<Avx512<true>>(w, x, z);
            if _mm512_cmpneq_epi32_mask(_mm512_castps_si512(pairs), _mm512_castps_si512(two)) != 0 {
                return false;
            }
            _mm512_storeu_ps(sums.as_mut_ptr(), pairs);
        }
    }
    true
}
