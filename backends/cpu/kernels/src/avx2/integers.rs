//! Products of pairs of integers: `vpmaddwd`.

use super::Avx2;
use crate::integers::{Integers, MOST_LANES};
use crate::machine::{Machine, Task};
use moec_ir::quant::ScaleCode;
use std::arch::x86_64::*;

// SAFETY: as of `Machine`.
impl Integers for Avx2 {
    type D = __m256i;
    type Table = __m256i;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn table(values: &[i8; 16]) -> __m256i {
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(values.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn columns(p: &[*const u8; MOST_LANES], at: usize) -> [__m256i; 4] {
        unsafe {
            // Piece `i` of vector `c` is column `4i + c`, so that transposing within pieces brings columns in order.
            let mut x = [_mm256_setzero_si256(); 4];
            for c in 0..4 {
                let first = _mm256_castsi128_si256(_mm_loadu_si128(p[c].add(at).cast()));
                x[c] = _mm256_inserti128_si256::<1>(first, _mm_loadu_si128(p[4 + c].add(at).cast()));
            }
            let (a, b) = (_mm256_unpacklo_epi32(x[0], x[1]), _mm256_unpackhi_epi32(x[0], x[1]));
            let (c, d) = (_mm256_unpacklo_epi32(x[2], x[3]), _mm256_unpackhi_epi32(x[2], x[3]));
            [
                _mm256_unpacklo_epi64(a, c),
                _mm256_unpackhi_epi64(a, c),
                _mm256_unpacklo_epi64(b, d),
                _mm256_unpackhi_epi64(b, d),
            ]
        }
    }

    #[inline(always)]
    unsafe fn pairs(table: __m256i, codes: __m256i) -> [__m256i; 4] {
        unsafe {
            let nibble = _mm256_set1_epi8(15);
            let even = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, nibble));
            let odd = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble));
            [
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(even)),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(odd)),
                _mm256_srai_epi16::<8>(even),
                _mm256_srai_epi16::<8>(odd),
            ]
        }
    }

    #[inline(always)]
    unsafe fn none() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn add_products(sum: __m256i, w: __m256i, x: i32) -> __m256i {
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(w, _mm256_set1_epi32(x))) }
    }

    #[inline(always)]
    unsafe fn add_integers(x: __m256i, y: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(x, y) }
    }

    #[inline(always)]
    unsafe fn load_pairs(p: *const i32) -> __m256i {
        unsafe { _mm256_load_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_pairs(p: *mut i32, x: __m256i) {
        unsafe { _mm256_store_si256(p.cast(), x) }
    }

    #[inline(always)]
    unsafe fn to_floats(x: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(x) }
    }

    #[inline(always)]
    unsafe fn splat_float(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn product(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(x, y) }
    }

    #[inline(always)]
    unsafe fn scales(scale: ScaleCode, bits: __m256i, i: usize) -> __m256 {
        unsafe {
            let down = |by: usize| _mm_cvtsi32_si128((by * i) as i32);
            let nan = _mm256_set1_ps(f32::NAN);
            match scale {
                ScaleCode::F32 => _mm256_castsi256_ps(bits),
                ScaleCode::BF16 => {
                    let x = _mm256_srl_epi32(bits, down(16));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
                }
                ScaleCode::F16 => {
                    let x = _mm256_and_si256(_mm256_srl_epi32(bits, down(16)), _mm256_set1_epi32(0xffff));
                    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(x, x));
                    _mm256_cvtph_ps(_mm256_castsi256_si128(words))
                }
                ScaleCode::E8M0 => {
                    let x = _mm256_and_si256(_mm256_srl_epi32(bits, down(8)), _mm256_set1_epi32(0xff));
                    let is_nan = _mm256_cmpeq_epi32(x, _mm256_set1_epi32(255));
                    // 2⁻¹²⁷ is subnormal.
                    let x = _mm256_max_epu32(_mm256_slli_epi32::<23>(x), _mm256_set1_epi32(1 << 22));
                    _mm256_blendv_ps(_mm256_castsi256_ps(x), nan, _mm256_castsi256_ps(is_nan))
                }
                ScaleCode::E4M3 => {
                    let x = _mm256_srl_epi32(bits, down(8));
                    let magnitude = _mm256_and_si256(x, _mm256_set1_epi32(0x7f));
                    let is_nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
                    // An f32 that is 2¹²⁰ times too small.
                    let small = _mm256_castsi256_ps(_mm256_slli_epi32::<20>(magnitude));
                    let value = _mm256_mul_ps(small, _mm256_set1_ps(f32::from_bits((127 + 120) << 23)));
                    let sign = _mm256_and_si256(_mm256_slli_epi32::<24>(x), _mm256_set1_epi32(i32::MIN));
                    let value = _mm256_or_ps(value, _mm256_castsi256_ps(sign));
                    _mm256_blendv_ps(value, nan, _mm256_castsi256_ps(is_nan))
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store_first(x: __m256, n: usize, to: *mut f32) {
        unsafe {
            let mut all = [0.0f32; 8];
            _mm256_storeu_ps(all.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(all.as_ptr(), to, n);
        }
    }

    #[inline(always)]
    unsafe fn apart_integers(task: &impl Task) {
        // SAFETY: the caller's contract.
        unsafe { Self::apart(task) }
    }
}
