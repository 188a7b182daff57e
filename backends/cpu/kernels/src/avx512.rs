//! AVX-512 with byte permutations: Intel since 2019, AMD since 2022. Two columns in a vector.

pub(crate) mod bf16;
mod integers;

use crate::machine::{Machine, Task};
use moec_ir::quant::ScaleCode;
use std::arch::x86_64::*;

/// With products of pairs when `BF16`.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>;

/// The sum of one column's lanes.
#[inline(always)]
unsafe fn sum(t: __m256) -> f32 {
    // SAFETY: as below.
    unsafe {
        let s = _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps::<1>(t));
        let pairs = _mm_add_ps(s, _mm_movehl_ps(s, s));
        _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)))
    }
}

/// The scales at `at` whose bits of the mask are set; no other memory is read.
#[inline(always)]
unsafe fn sixteen_scales(scale: ScaleCode, at: *const u8, mask: u16) -> __m512 {
    // SAFETY: as below.
    unsafe {
        match scale {
            ScaleCode::F32 => _mm512_maskz_loadu_ps(mask, at.cast()),
            ScaleCode::BF16 => {
                let words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
            }
            ScaleCode::F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at.cast())),
            ScaleCode::E8M0 => {
                let x = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, at.cast()));
                // 2⁻¹²⁷ is subnormal.
                let least = _mm512_cmpeq_epi32_mask(x, _mm512_setzero_si512());
                let nan = _mm512_cmpeq_epi32_mask(x, _mm512_set1_epi32(255));
                let x = _mm512_mask_mov_epi32(_mm512_slli_epi32::<23>(x), least, _mm512_set1_epi32(1 << 22));
                _mm512_mask_mov_ps(_mm512_castsi512_ps(x), nan, _mm512_set1_ps(f32::NAN))
            }
            ScaleCode::E4M3 => {
                let x = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(mask, at.cast()));
                let magnitude = _mm256_and_si256(x, _mm256_set1_epi16(0x7f));
                let nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
                let sign = _mm256_slli_epi16::<8>(_mm256_xor_si256(x, magnitude));
                // An f16 that is 2⁸ times too small.
                let half = _mm256_or_si256(_mm256_slli_epi16::<7>(magnitude), sign);
                let x = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0));
                _mm512_mask_mov_ps(x, nan, _mm512_set1_ps(f32::NAN))
            }
        }
    }
}

/// `values · factor` rounded to bf16, to nearest even, in the upper halves of 32 bits.
#[inline(always)]
unsafe fn rounded(values: __m512, factor: f32) -> __m512i {
    // SAFETY: as below.
    unsafe {
        let bits = _mm512_castps_si512(_mm512_mul_ps(values, _mm512_set1_ps(factor)));
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd)
    }
}

/// `values · factor` rounded to bf16 as words, of two factors. Those that should be subnormal may be zero when `MAY_FLUSH`.
#[inline(always)]
unsafe fn two_entries<const BF16: bool, const MAY_FLUSH: bool>(values: __m512, first: f32, second: f32) -> __m512i {
    // SAFETY: as below.
    unsafe {
        if BF16 && MAY_FLUSH {
            let low = _mm512_mul_ps(values, _mm512_set1_ps(first));
            let high = _mm512_mul_ps(values, _mm512_set1_ps(second));
            return std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
        }
        let upper = _mm512_loadu_si512(UPPER_WORDS.as_ptr().cast());
        _mm512_permutex2var_epi16(rounded(values, first), upper, rounded(values, second))
    }
}

/// The upper words of 32 bits of two vectors.
const UPPER_WORDS: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = 2 * i as u16 + 1;
        i += 1;
    }
    order
};

/// The even bytes of two vectors.
const EVEN_BYTES: [u8; 64] = {
    let mut order = [0; 64];
    let mut i = 0;
    while i < 64 {
        order[i] = 2 * i as u8;
        i += 1;
    }
    order
};

/// For each quarter of [`word_indices`], where the bytes of its words are: in the low codes, or 64 behind them in the high ones.
/// The upper byte of a word does not matter.
const CODES: [[u8; 64]; 4] = {
    let mut order = [[0; 64]; 4];
    let mut at = 0;
    while at < 4 * 64 {
        let (quarter, byte) = (at / 64, at % 64);
        let code = byte % 16 / 2;
        order[quarter][byte] = (byte / 16 * 16 + quarter * 4 + code / 2 + code % 2 * 64) as u8;
        at += 1;
    }
    order
};

/// Pairs of codes of four bits as indices in words, in four quarters: eight codes of each 16 bytes, plus 16 for each 16 bytes before.
/// What lies above six bits means nothing.
#[inline(always)]
unsafe fn word_indices(pairs: __m512i) -> [__m512i; 4] {
    // SAFETY: as below.
    unsafe {
        let nibble = _mm512_set1_epi8(15);
        let pieces = _mm512_setr_epi64(
            0,
            0,
            0x1010_1010_1010_1010,
            0x1010_1010_1010_1010,
            0x2020_2020_2020_2020,
            0x2020_2020_2020_2020,
            0x3030_3030_3030_3030,
            0x3030_3030_3030_3030,
        );
        // Each becomes one operation of three operands.
        let low = _mm512_or_si512(_mm512_and_si512(pairs, nibble), pieces);
        let high = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16::<4>(pairs), nibble), pieces);
        [
            _mm512_permutex2var_epi8(low, _mm512_loadu_si512(CODES[0].as_ptr().cast()), high),
            _mm512_permutex2var_epi8(low, _mm512_loadu_si512(CODES[1].as_ptr().cast()), high),
            _mm512_permutex2var_epi8(low, _mm512_loadu_si512(CODES[2].as_ptr().cast()), high),
            _mm512_permutex2var_epi8(low, _mm512_loadu_si512(CODES[3].as_ptr().cast()), high),
        ]
    }
}

/// The indices of the third byte of each of sixteen words.
#[inline(always)]
unsafe fn third_bytes() -> __m128i {
    // SAFETY: as below.
    unsafe { _mm_setr_epi8(2, 6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50, 54, 58, 62) }
}

// Every block below has the same reason.
// SAFETY: the caller's contract: the processor has AVX-512 F, BW, DQ, VL and VBMI, and pointers are valid for what is read or
// written.
impl<const BF16: bool> Machine for Avx512<BF16> {
    type F = __m512;
    type B = __m512i;
    const COLUMNS: usize = 2;
    const WORD_ENTRIES: bool = true;
    const E4M3_TABLES: bool = true;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn fma(x: __m512, y: __m512, z: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(x, y, z) }
    }

    #[inline(always)]
    unsafe fn sum(x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_add_ps(x, y) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_load_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        unsafe { _mm512_store_ps(p, x) }
    }

    #[inline(always)]
    unsafe fn spread(p: *const f32) -> __m512 {
        unsafe { _mm512_broadcast_f32x8(_mm256_load_ps(p)) }
    }

    #[inline(always)]
    unsafe fn sums(t: __m512) -> [f32; 2] {
        unsafe { [sum(_mm512_castps512_ps256(t)), sum(_mm512_extractf32x8_ps::<1>(t))] }
    }

    #[inline(always)]
    unsafe fn store_sums(x: [__m512; 4], n: usize, to: *mut f32) {
        unsafe {
            // Lanes 0 … 3 and 4 … 7 of four columns; then lanes 0 and 1, and 2 and 3, of eight. (No closures: they would
            // be compiled without the processor's features.)
            let (low, high) =
                (_mm512_shuffle_f32x4::<0b10_00_10_00>(x[0], x[1]), _mm512_shuffle_f32x4::<0b11_01_11_01>(x[0], x[1]));
            let a = _mm512_castps_pd(_mm512_add_ps(low, high));
            let (low, high) =
                (_mm512_shuffle_f32x4::<0b10_00_10_00>(x[2], x[3]), _mm512_shuffle_f32x4::<0b11_01_11_01>(x[2], x[3]));
            let b = _mm512_castps_pd(_mm512_add_ps(low, high));
            let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
            let pairs = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
            let sums = _mm512_add_ps(pairs, _mm512_movehdup_ps(pairs));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 0, 0, 0, 0, 0, 0, 0);
            let sums = _mm512_castps512_ps256(_mm512_permutexvar_ps(order, sums));
            let mask = if n >= 8 { 0xff } else { (1u8 << n) - 1 };
            _mm256_mask_storeu_ps(to, mask, sums);
        }
    }

    #[inline(always)]
    unsafe fn groups_of_words(p: [*const u8; 2]) -> [__m512i; 4] {
        unsafe {
            // Pieces of 16 bytes change places: columns and halves become the pieces of a vector.
            let (a, b) = (_mm512_loadu_si512(p[0].cast()), _mm512_loadu_si512(p[0].add(64).cast()));
            let (c, d) = (_mm512_loadu_si512(p[1].cast()), _mm512_loadu_si512(p[1].add(64).cast()));
            let even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
            let odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
            let (ab_even, cd_even) = (_mm512_permutex2var_epi64(a, even, b), _mm512_permutex2var_epi64(c, even, d));
            let (ab_odd, cd_odd) = (_mm512_permutex2var_epi64(a, odd, b), _mm512_permutex2var_epi64(c, odd, d));
            [
                _mm512_shuffle_i64x2::<0b01_00_01_00>(ab_even, cd_even),
                _mm512_shuffle_i64x2::<0b01_00_01_00>(ab_odd, cd_odd),
                _mm512_shuffle_i64x2::<0b11_10_11_10>(ab_even, cd_even),
                _mm512_shuffle_i64x2::<0b11_10_11_10>(ab_odd, cd_odd),
            ]
        }
    }

    #[inline(always)]
    unsafe fn bytes(p: [*const u8; 2]) -> __m512i {
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(p[0].cast()));
            // A load into half of a vector, of which the other half is not read: insertions take turns with permutations on AMD's processors.
            _mm512_mask_loadu_epi64(low, 0b1111_0000, p[1].wrapping_sub(32).cast())
        }
    }

    #[inline(always)]
    unsafe fn quarters(p: [*const u8; 4]) -> __m512i {
        unsafe {
            // Loads into some of a vector's pieces, which no shuffle is needed for.
            let x = _mm512_broadcast_i64x2(_mm_loadu_si128(p[0].cast()));
            let x = _mm512_mask_broadcast_i64x2(x, 0b0000_1100, _mm_loadu_si128(p[1].cast()));
            let x = _mm512_mask_broadcast_i64x2(x, 0b0011_0000, _mm_loadu_si128(p[2].cast()));
            _mm512_mask_broadcast_i64x2(x, 0b1100_0000, _mm_loadu_si128(p[3].cast()))
        }
    }

    #[inline(always)]
    unsafe fn splat(byte: u8) -> __m512i {
        unsafe { _mm512_set1_epi8(byte as i8) }
    }

    #[inline(always)]
    unsafe fn and(x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(x, y) }
    }

    #[inline(always)]
    unsafe fn or(x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(x, y) }
    }

    #[inline(always)]
    unsafe fn xor(x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(x, y) }
    }

    #[inline(always)]
    unsafe fn equal(x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_movm_epi8(_mm512_cmpeq_epi8_mask(x, y)) }
    }

    #[inline(always)]
    unsafe fn add(x: __m512i, y: __m512i) -> __m512i {
        unsafe { _mm512_add_epi8(x, y) }
    }

    #[inline(always)]
    unsafe fn down_four(x: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi16::<4>(x) }
    }

    #[inline(always)]
    unsafe fn look_up(table: __m512i, index: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(table, index) }
    }

    #[inline(always)]
    unsafe fn interleave(x: __m512i, y: __m512i) -> [__m512i; 2] {
        unsafe { [_mm512_unpacklo_epi8(x, y), _mm512_unpackhi_epi8(x, y)] }
    }

    #[inline(always)]
    unsafe fn select(mask: __m512i, x: __m512i, y: __m512i) -> __m512i {
        // Becomes one operation of three operands.
        unsafe { _mm512_or_si512(_mm512_and_si512(mask, x), _mm512_andnot_si512(mask, y)) }
    }

    #[inline(always)]
    unsafe fn widen_bf16(x: __m512i) -> [__m512; 2] {
        unsafe {
            let even = _mm512_slli_epi32::<16>(x);
            let odd = _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000u32 as i32));
            [_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)]
        }
    }

    #[inline(always)]
    unsafe fn widen_f16(x: __m512i) -> [__m512; 2] {
        unsafe {
            // The even words of all pieces of 16 bytes, then the odd ones.
            let order = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
            let x = _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(order));
            let x = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), x);
            [_mm512_cvtph_ps(_mm512_castsi512_si256(x)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(x))]
        }
    }

    #[inline(always)]
    unsafe fn deal(x: [__m512i; 2]) -> [__m512; 2] {
        unsafe {
            let (a, b) = (_mm512_castsi512_ps(x[0]), _mm512_castsi512_ps(x[1]));
            [_mm512_shuffle_ps::<0b10_00_10_00>(a, b), _mm512_shuffle_ps::<0b11_01_11_01>(a, b)]
        }
    }

    #[inline(always)]
    unsafe fn entries(values: &[f32; 16], less: u16, factors: *const f32, n: usize, to: *mut u8) {
        unsafe {
            let values = _mm512_loadu_ps(values.as_ptr());
            let less = _mm512_set1_epi32(i32::from(less) << 16);
            let third = third_bytes();
            let fourth = _mm_add_epi8(third, _mm_set1_epi8(1));
            let order = _mm512_inserti64x2::<1>(_mm512_castsi128_si512(third), fourth);
            for i in 0..n {
                let up = _mm512_sub_epi32(rounded(values, *factors.add(i)), less);
                let bytes = _mm512_castsi512_si256(_mm512_permutexvar_epi8(order, up));
                _mm256_storeu_si256(to.add(i * 32).cast(), bytes);
            }
        }
    }

    #[inline(always)]
    unsafe fn factors(scale: ScaleCode, from: *const u8, first: usize, n: usize, global: f32, to: *mut f32) {
        for i in (0..n).step_by(16) {
            let mask = if n - i >= 16 { 0xffff } else { (1u16 << (n - i)) - 1 };
            unsafe {
                let x = sixteen_scales(scale, from.add((first + i) * scale.bytes() as usize), mask);
                let x = _mm512_mul_ps(x, _mm512_set1_ps(global));
                let nan = _mm512_cmpunord_ps_mask(x, x);
                // Whole, as processors do not forward masked stores to loads.
                _mm512_storeu_ps(to.add(i), _mm512_mask_mov_ps(x, nan, _mm512_set1_ps(f32::NAN)));
            }
        }
    }

    #[inline(always)]
    unsafe fn least_byte(p: *const u8, n: usize) -> u8 {
        unsafe {
            let ones = _mm512_set1_epi8(-1);
            let mut least = ones;
            for i in (0..n).step_by(64) {
                let mask = if n - i >= 64 { u64::MAX } else { (1u64 << (n - i)) - 1 };
                least = _mm512_min_epu8(least, _mm512_mask_loadu_epi8(ones, mask, p.add(i).cast()));
            }
            let x = _mm256_min_epu8(_mm512_castsi512_si256(least), _mm512_extracti64x4_epi64::<1>(least));
            let x = _mm_min_epu8(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            // The lesser of both bytes of every word.
            let words = _mm_min_epu8(x, _mm_srli_epi16::<8>(x));
            _mm_cvtsi128_si32(_mm_minpos_epu16(words)) as u8
        }
    }

    #[inline(always)]
    unsafe fn word_entries(values: &[f32; 16], factors: *const f32, n: usize, to: *mut u8) {
        unsafe {
            let values = _mm512_loadu_ps(values.as_ptr());
            for i in 0..n {
                let words = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded(values, *factors.add(i))));
                _mm256_storeu_si256(to.add(i * 32).cast(), words);
            }
        }
    }

    #[inline(always)]
    unsafe fn four_bits(p: [*const u8; 2], [first, second]: [[*const u8; 4]; 2]) -> [__m512i; 4] {
        unsafe {
            let [a, b] = [Self::bytes([first[0], first[1]]), Self::bytes([first[2], first[3]])];
            let [c, d] = [Self::bytes([second[0], second[1]]), Self::bytes([second[2], second[3]])];
            let i = word_indices(Self::bytes(p));
            [
                _mm512_permutex2var_epi16(a, i[0], b),
                _mm512_permutex2var_epi16(a, i[1], b),
                _mm512_permutex2var_epi16(c, i[2], d),
                _mm512_permutex2var_epi16(c, i[3], d),
            ]
        }
    }

    #[inline(always)]
    unsafe fn four_bits_of<const MAY_FLUSH: bool>(
        values: &[f32; 16],
        p: [*const u8; 2],
        factors: [*const f32; 4],
    ) -> [__m512i; 4] {
        unsafe {
            let values = _mm512_loadu_ps(values.as_ptr());
            let a = two_entries::<BF16, MAY_FLUSH>(values, *factors[0], *factors[1]);
            let b = two_entries::<BF16, MAY_FLUSH>(values, *factors[2], *factors[3]);
            let i = word_indices(Self::bytes(p));
            [
                _mm512_permutex2var_epi16(a, i[0], b),
                _mm512_permutex2var_epi16(a, i[1], b),
                _mm512_permutex2var_epi16(a, i[2], b),
                _mm512_permutex2var_epi16(a, i[3], b),
            ]
        }
    }

    #[inline(always)]
    unsafe fn least_of(p: *const f32, n: usize) -> u32 {
        let mut least = u32::MAX;
        for i in (0..n).step_by(16) {
            let mask = if n - i >= 16 { 0xffff } else { (1u16 << (n - i)) - 1 };
            unsafe {
                let x = _mm512_maskz_loadu_epi32(mask, p.add(i).cast());
                let x = _mm512_sub_epi32(_mm512_slli_epi32::<1>(x), _mm512_set1_epi32(1));
                least = least.min(_mm512_reduce_min_epu32(x));
            }
        }
        least
    }

    #[inline(always)]
    unsafe fn entries_of(values: &[f32; 16], p: [*const f32; 4]) -> [__m512i; 2] {
        unsafe {
            let values = _mm512_loadu_ps(values.as_ptr());
            // The third bytes of both vectors' words, then the fourth ones.
            let third = third_bytes();
            let fourth = _mm_add_epi8(third, _mm_set1_epi8(1));
            let order = _mm512_castsi128_si512(third);
            let order = _mm512_inserti64x2::<1>(order, _mm_add_epi8(third, _mm_set1_epi8(64)));
            let order = _mm512_inserti64x2::<2>(order, fourth);
            let order = _mm512_inserti64x2::<3>(order, _mm_add_epi8(fourth, _mm_set1_epi8(64)));
            let a = _mm512_permutex2var_epi8(rounded(values, *p[0]), order, rounded(values, *p[1]));
            let b = _mm512_permutex2var_epi8(rounded(values, *p[2]), order, rounded(values, *p[3]));
            [_mm512_shuffle_i64x2::<0b01_00_01_00>(a, b), _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b)]
        }
    }

    #[inline(always)]
    unsafe fn entry_pairs(p: [*const u8; 4]) -> [__m512i; 2] {
        unsafe {
            // Low and high bytes of one column's entry, then of the other's.
            let first = Self::bytes([p[0], p[2]]);
            let second = Self::bytes([p[1], p[3]]);
            let low = _mm512_permutex2var_epi64(first, _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), second);
            let high = _mm512_permutex2var_epi64(first, _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15), second);
            [low, high]
        }
    }

    #[inline(always)]
    unsafe fn sixty_four_bytes(p: [*const u8; 2]) -> [__m512i; 2] {
        unsafe {
            let (a, b) = (_mm512_loadu_si512(p[0].cast()), _mm512_loadu_si512(p[1].cast()));
            let even = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13), b);
            let odd = _mm512_permutex2var_epi64(a, _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15), b);
            [even, odd]
        }
    }

    #[inline(always)]
    unsafe fn e4m3_table(values: &[f32; 128], factor: f32, to: *mut u8) {
        unsafe {
            let upper = _mm512_loadu_si512(UPPER_WORDS.as_ptr().cast());
            let low = _mm512_loadu_si512(EVEN_BYTES.as_ptr().cast());
            let high = _mm512_add_epi8(low, _mm512_set1_epi8(1));
            for half in 0..2 {
                let v = values.as_ptr().add(half * 64);
                let [a, b] = [rounded(_mm512_loadu_ps(v), factor), rounded(_mm512_loadu_ps(v.add(16)), factor)];
                let [c, d] = [rounded(_mm512_loadu_ps(v.add(32)), factor), rounded(_mm512_loadu_ps(v.add(48)), factor)];
                let ab = _mm512_permutex2var_epi16(a, upper, b);
                let cd = _mm512_permutex2var_epi16(c, upper, d);
                _mm512_storeu_si512(to.add(half * 64).cast(), _mm512_permutex2var_epi8(ab, low, cd));
                _mm512_storeu_si512(to.add(128 + half * 64).cast(), _mm512_permutex2var_epi8(ab, high, cd));
            }
        }
    }

    #[inline(always)]
    unsafe fn e4m3_by_table(p: [*const u8; 2], table: *const u8) -> [__m512i; 4] {
        unsafe {
            let [a, b] = [_mm512_loadu_si512(table.cast()), _mm512_loadu_si512(table.add(64).cast())];
            let [c, d] = [_mm512_loadu_si512(table.add(128).cast()), _mm512_loadu_si512(table.add(192).cast())];
            let sign = Self::splat(0x80);
            let [first, second] = Self::sixty_four_bytes(p);
            // The sign is no part of an index.
            let (low, high) = (_mm512_permutex2var_epi8(a, first, b), _mm512_permutex2var_epi8(c, first, d));
            let [w, x] = Self::interleave(low, Self::xor(high, Self::and(first, sign)));
            let (low, high) = (_mm512_permutex2var_epi8(a, second, b), _mm512_permutex2var_epi8(c, second, d));
            let [y, z] = Self::interleave(low, Self::xor(high, Self::and(second, sign)));
            [w, x, y, z]
        }
    }

    #[inline(always)]
    unsafe fn apart(task: &impl Task) {
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
        unsafe fn apart(task: &impl Task) {
            // SAFETY: the caller's contract.
            unsafe { task.run() }
        }
        #[inline(never)]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
        unsafe fn apart_bf16(task: &impl Task) {
            // SAFETY: the caller's contract.
            unsafe { task.run() }
        }
        // SAFETY: the caller's contract.
        unsafe { if BF16 { apart_bf16(task) } else { apart(task) } }
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
