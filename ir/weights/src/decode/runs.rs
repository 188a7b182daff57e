//! Decodes runs of codes that lie one behind the other: the loops that loading a quantised layer spends its time in.

use moec_ir::quant::{Code, e2m1, e4m3, e5m2};
use std::sync::LazyLock;

static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|c| e4m3(c as u8)));
static E5M2: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|c| e5m2(c as u8)));
static E2M1: LazyLock<[f32; 16]> = LazyLock::new(|| std::array::from_fn(|c| e2m1(c as u8)));
static INT4: LazyLock<[f32; 16]> = LazyLock::new(|| std::array::from_fn(|c| c as f32 - 8.0));

/// The value of an e4m3 code, looked up.
pub(crate) fn e4m3_value(code: u8) -> f32 {
    E4M3[usize::from(code)]
}

/// Checked where a format comes from: `Code::ALL`.
const NO_WEIGHTS: &str = "weights should not be stored as codes of rows";

/// Code number `of` in each of the bytes `codes`, which are neighbours across rows, times the scales of the rows.
pub(crate) fn across(code: Code, codes: &[u8], of: usize, scales: &[f32], out: &mut [f32]) {
    let values = out.iter_mut().zip(codes.iter().zip(scales));
    let shift = of * 4;
    match code {
        Code::E4M3 => values.for_each(|(v, (&c, s))| *v = E4M3[usize::from(c)] * s),
        Code::E5M2 => values.for_each(|(v, (&c, s))| *v = E5M2[usize::from(c)] * s),
        Code::E2M1 => values.for_each(|(v, (&c, s))| *v = E2M1[usize::from(c >> shift & 15)] * s),
        Code::Int4 => values.for_each(|(v, (&c, s))| *v = INT4[usize::from(c >> shift & 15)] * s),
        Code::Int16 => unreachable!("{NO_WEIGHTS}"),
    }
}

/// Elements `first..` of a row of codes, each multiplied by `scale`: as many as `out` has room for.
pub(crate) fn scaled(code: Code, codes: &[u8], first: usize, scale: f32, out: &mut [f32]) {
    let of_bytes = |table: &[f32; 256], out: &mut [f32]| {
        out.iter_mut().zip(&codes[first..]).for_each(|(v, &c)| *v = table[usize::from(c)] * scale);
    };
    match code {
        Code::E4M3 => of_bytes(&E4M3, out),
        Code::E5M2 => of_bytes(&E5M2, out),
        Code::E2M1 => nibbles(codes, first, &E2M1.map(|v| v * scale), out),
        Code::Int4 => nibbles(codes, first, &INT4.map(|v| v * scale), out),
        Code::Int16 => unreachable!("{NO_WEIGHTS}"),
    }
}

/// What `table` says of codes `first..`, two to a byte, low nibble first: as many as `out` has room for.
pub(crate) fn nibbles(codes: &[u8], first: usize, table: &[f32; 16], out: &mut [f32]) {
    let mut codes = codes[first / 2..].iter();
    let mut out = out;
    if let (1, Some(v), Some(c)) = (first % 2, out.first_mut(), codes.as_slice().first()) {
        *v = table[usize::from(c >> 4)];
        codes.next();
        out = &mut out[1..];
    }
    for (pair, &c) in out.chunks_mut(2).zip(codes) {
        for (v, c) in pair.iter_mut().zip([c & 15, c >> 4]) {
            *v = table[usize::from(c)];
        }
    }
}

/// Four or eight bits of each little-endian word, from bit `shift` on, less the zero points, times the scales.
pub(crate) fn parts_of_words(words: &[u8], shift: u32, bits: u32, zeros: &[i32], scales: &[f32], out: &mut [f32]) {
    let mask = (1 << bits) - 1;
    let codes = words.chunks_exact(4).map(|w| w.first_chunk().copied().map_or(0, u32::from_le_bytes) >> shift & mask);
    for ((v, code), (zero, scale)) in out.iter_mut().zip(codes).zip(zeros.iter().zip(scales)) {
        *v = (code as i32 - zero) as f32 * scale;
    }
}

/// Eight codes of four bits from each little-endian word, taken from the nibbles that `places` says, less the zero points,
/// times the scales.
pub(crate) fn words_of_nibbles(words: &[u8], places: [u32; 8], zeros: &[i32], scales: &[f32], out: &mut [f32]) {
    let groups = zeros.chunks(8).zip(scales.chunks(8));
    for ((out, word), (zeros, scales)) in out.chunks_mut(8).zip(words.chunks_exact(4)).zip(groups) {
        let word = word.first_chunk().copied().map_or(0, u32::from_le_bytes);
        for ((v, place), (zero, scale)) in out.iter_mut().zip(places).zip(zeros.iter().zip(scales)) {
            *v = ((word >> (place * 4) & 15) as i32 - zero) as f32 * scale;
        }
    }
}
