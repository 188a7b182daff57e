//! Products of pairs of integers: `vpdpwssd`, of Intel since 2019 and AMD since 2022.

use super::Avx512;
use crate::integers::{Integers, MOST_LANES};
use crate::machine::Task;
use moec_ir::quant::ScaleCode;
use std::arch::x86_64::*;

// SAFETY: the caller's contract: the processor has AVX-512 VNNI beside what `Avx512` needs, and pointers are valid for what is
// read or written.
impl Integers for Avx512<false> {
    type D = __m512i;
    type Table = __m512i;
    const TILE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn table(values: &[i8; 16]) -> __m512i {
        unsafe {
            let words = _mm256_cvtepi8_epi16(_mm_loadu_si128(values.as_ptr().cast()));
            _mm512_broadcast_i64x4(words)
        }
    }

    #[inline(always)]
    unsafe fn columns(p: &[*const u8; MOST_LANES], at: usize) -> [__m512i; 4] {
        unsafe {
            // Piece `i` of vector `c` is column `4i + c`, so that transposing within pieces brings columns in order.
            let mut x = [_mm512_setzero_si512(); 4];
            for c in 0..4 {
                let first = _mm512_castsi128_si512(_mm_loadu_si128(p[c].add(at).cast()));
                let two = _mm512_mask_broadcast_i32x4(first, 0x00f0, _mm_loadu_si128(p[4 + c].add(at).cast()));
                let three = _mm512_mask_broadcast_i32x4(two, 0x0f00, _mm_loadu_si128(p[8 + c].add(at).cast()));
                x[c] = _mm512_mask_broadcast_i32x4(three, 0xf000, _mm_loadu_si128(p[12 + c].add(at).cast()));
            }
            let (a, b) = (_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
            let (c, d) = (_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
            [
                _mm512_unpacklo_epi64(a, c),
                _mm512_unpackhi_epi64(a, c),
                _mm512_unpacklo_epi64(b, d),
                _mm512_unpackhi_epi64(b, d),
            ]
        }
    }

    #[inline(always)]
    unsafe fn pairs(table: __m512i, codes: __m512i) -> [__m512i; 4] {
        unsafe {
            // The table is there twice, so that of the five bits of an index the upper one does not matter.
            [
                _mm512_permutexvar_epi16(codes, table),
                _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(codes), table),
                _mm512_permutexvar_epi16(_mm512_srli_epi16::<8>(codes), table),
                _mm512_permutexvar_epi16(_mm512_srli_epi16::<12>(codes), table),
            ]
        }
    }

    #[inline(always)]
    unsafe fn none() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn add_products(sum: __m512i, w: __m512i, x: i32) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(sum, w, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    unsafe fn add_integers(x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(x, y) }
    }

    #[inline(always)]
    unsafe fn load_pairs(p: *const i32) -> __m512i {
        unsafe { _mm512_load_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_pairs(p: *mut i32, x: __m512i) {
        unsafe { _mm512_store_si512(p.cast(), x) }
    }

    #[inline(always)]
    unsafe fn to_floats(x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    unsafe fn splat_float(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn product(x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(x, y) }
    }

    #[inline(always)]
    unsafe fn scales(scale: ScaleCode, bits: __m512i, i: usize) -> __m512 {
        unsafe {
            let down = |by: usize| _mm_cvtsi32_si128((by * i) as i32);
            match scale {
                ScaleCode::F32 => _mm512_castsi512_ps(bits),
                ScaleCode::BF16 => {
                    let x = _mm512_srl_epi32(bits, down(16));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
                }
                ScaleCode::F16 => _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srl_epi32(bits, down(16)))),
                ScaleCode::E8M0 => {
                    let x = _mm512_and_si512(_mm512_srl_epi32(bits, down(8)), _mm512_set1_epi32(0xff));
                    let nan = _mm512_cmpeq_epi32_mask(x, _mm512_set1_epi32(255));
                    // 2⁻¹²⁷ is subnormal.
                    let x = _mm512_max_epu32(_mm512_slli_epi32::<23>(x), _mm512_set1_epi32(1 << 22));
                    _mm512_mask_mov_ps(_mm512_castsi512_ps(x), nan, _mm512_set1_ps(f32::NAN))
                }
                ScaleCode::E4M3 => {
                    let x = _mm512_srl_epi32(bits, down(8));
                    let magnitude = _mm512_and_si512(x, _mm512_set1_epi32(0x7f));
                    let nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
                    // An f32 that is 2¹²⁰ times too small.
                    let small = _mm512_castsi512_ps(_mm512_slli_epi32::<20>(magnitude));
                    let x = _mm512_slli_epi32::<24>(x);
                    let value = _mm512_mul_ps(small, _mm512_set1_ps(f32::from_bits((127 + 120) << 23)));
                    let sign = _mm512_and_si512(x, _mm512_set1_epi32(i32::MIN));
                    let value = _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(value), sign));
                    _mm512_mask_mov_ps(value, nan, _mm512_set1_ps(f32::NAN))
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store_first(x: __m512, n: usize, to: *mut f32) {
        unsafe { _mm512_mask_storeu_ps(to, ((1u32 << n) - 1) as u16, x) }
    }

    #[inline(always)]
    unsafe fn apart_integers(task: &impl Task) {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
        unsafe fn apart(task: &impl Task) {
            // SAFETY: the caller's contract.
            unsafe { task.run() }
        }
        // SAFETY: the caller's contract.
        unsafe { apart(task) }
    }
}
