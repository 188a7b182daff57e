//! Published weight formats: what stored codes and scales mean.
//!
//! A parameter's value is always the dequantised float; a format says how a checkpoint stores it. Two-codes-in-a-byte
//! formats have element `2j` in the low nibble and `2j+1` in the high one, along K.
//!
//! Sources: OCP Microscaling Formats (MX) 1.0 for e2m1, e4m3, e5m2 and e8m0; DeepSeek-V3 (FP8 blocks), gpt-oss (MXFP4),
//! NVIDIA ModelOpt and compressed-tensors (NVFP4, INT4) for the layouts.

use crate::DType;
use serde::{Deserialize, Serialize};

/// How one element is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Code {
    /// FP8, 4 exponent and 3 mantissa bits, no infinity, largest 448.
    E4M3,
    /// FP8, 5 exponent and 2 mantissa bits, with infinity, largest 57344.
    E5M2,
    /// FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives; two in a byte.
    E2M1,
    /// `u - 8` for a nibble `u`; two in a byte.
    Int4,
    /// A 16-bit integer of either sign. Rows are rounded to such; no weights are stored so.
    Int16,
}

/// How one scale is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleCode {
    /// IEEE binary32.
    F32,
    /// bfloat16.
    BF16,
    /// IEEE binary16.
    F16,
    /// `2^(byte - 127)`; 255 is NaN.
    E8M0,
    /// FP8 e4m3.
    E4M3,
}

/// A block format of matrices `[N, K]`: one scale for each block of rows and columns, the last blocks being cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QuantFormat {
    /// Elements.
    pub code: Code,
    /// Scales, one for each block.
    pub scale: ScaleCode,
    /// Rows of a block; 0 for all rows.
    pub block_rows: u64,
    /// Columns of a block; 0 for all columns.
    pub block_cols: u64,
}

impl Code {
    /// Every code that weights are stored in, in declaration order.
    pub const ALL: [Code; 4] = [Code::E4M3, Code::E5M2, Code::E2M1, Code::Int4];

    /// The name in text forms and JSON: `e4m3`, `int4`, …
    pub fn name(self) -> &'static str {
        match self {
            Code::E4M3 => "e4m3",
            Code::E5M2 => "e5m2",
            Code::E2M1 => "e2m1",
            Code::Int4 => "int4",
            Code::Int16 => "int16",
        }
    }

    /// The code called `name` in text forms, if there is one.
    pub fn from_name(name: &str) -> Option<Code> {
        Code::ALL.into_iter().chain([Code::Int16]).find(|c| c.name() == name)
    }

    /// Bits of an element.
    pub fn bits(self) -> u64 {
        match self {
            Code::E4M3 | Code::E5M2 => 8,
            Code::E2M1 | Code::Int4 => 4,
            Code::Int16 => 16,
        }
    }

    /// Bytes of `n` elements along K.
    pub fn bytes(self, n: u64) -> u64 {
        match self {
            Code::E4M3 | Code::E5M2 => n,
            Code::E2M1 | Code::Int4 => n.div_ceil(2),
            Code::Int16 => 2 * n,
        }
    }

    /// Element `i` of a row of codes.
    pub fn decode(self, row: &[u8], i: usize) -> f32 {
        match self {
            Code::E4M3 => e4m3(row[i]),
            Code::E5M2 => e5m2(row[i]),
            Code::E2M1 => e2m1(nibble(row, i)),
            Code::Int4 => f32::from(nibble(row, i)) - 8.0,
            Code::Int16 => f32::from(i16::from_le_bytes([row[2 * i], row[2 * i + 1]])),
        }
    }
}

impl ScaleCode {
    /// Every code, in declaration order.
    pub const ALL: [ScaleCode; 5] = [ScaleCode::F32, ScaleCode::BF16, ScaleCode::F16, ScaleCode::E8M0, ScaleCode::E4M3];

    /// The name in text forms and JSON: `f32`, `e8m0`, …
    pub fn name(self) -> &'static str {
        match self {
            ScaleCode::F32 => "f32",
            ScaleCode::BF16 => "bf16",
            ScaleCode::F16 => "f16",
            ScaleCode::E8M0 => "e8m0",
            ScaleCode::E4M3 => "e4m3",
        }
    }

    /// The code called `name` in text forms, if there is one.
    pub fn from_name(name: &str) -> Option<ScaleCode> {
        ScaleCode::ALL.into_iter().find(|c| c.name() == name)
    }

    /// The element type of a buffer of such scales: the float itself, or bytes.
    pub fn dtype(self) -> DType {
        match self {
            ScaleCode::F32 => DType::F32,
            ScaleCode::BF16 => DType::BF16,
            ScaleCode::F16 => DType::F16,
            ScaleCode::E8M0 | ScaleCode::E4M3 => DType::U8,
        }
    }

    /// Bytes of one scale.
    pub fn bytes(self) -> u64 {
        match self {
            ScaleCode::F32 => 4,
            ScaleCode::BF16 | ScaleCode::F16 => 2,
            ScaleCode::E8M0 | ScaleCode::E4M3 => 1,
        }
    }

    /// Scale `i` of an array of scales.
    pub fn decode(self, bytes: &[u8], i: usize) -> f32 {
        match self {
            ScaleCode::F32 => f32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]),
            ScaleCode::BF16 => half::bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
            ScaleCode::F16 => half::f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32(),
            ScaleCode::E8M0 => e8m0(bytes[i]),
            ScaleCode::E4M3 => e4m3(bytes[i]),
        }
    }
}

impl ScaleCode {
    /// The bytes of a scale that is a number of this code; other numbers are cut to one.
    pub fn encode(self, scale: f32) -> Vec<u8> {
        match self {
            ScaleCode::F32 => scale.to_le_bytes().to_vec(),
            ScaleCode::BF16 => half::bf16::from_f32(scale).to_le_bytes().to_vec(),
            ScaleCode::F16 => half::f16::from_f32(scale).to_le_bytes().to_vec(),
            ScaleCode::E8M0 => vec![(scale.to_bits() >> 23) as u8],
            ScaleCode::E4M3 => vec![to_e4m3(scale)],
        }
    }
}

impl std::fmt::Display for QuantFormat {
    /// `e2m1 by e8m0(1, 32)`: codes, scales, rows and columns of a block.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (code, scale) = (self.code.name(), self.scale.name());
        write!(f, "{code} by {scale}({}, {})", self.block_rows, self.block_cols)
    }
}

impl QuantFormat {
    /// Whether a matrix has a scale of its own over those of its blocks: where these are e4m3, which does not reach far
    /// enough alone (NVFP4). Without one in the checkpoint it is 1.
    pub fn has_global(&self) -> bool {
        self.scale == ScaleCode::E4M3
    }

    /// Whether every value of the format is a number of type `dtype`, so that rounding to it changes nothing.
    pub fn is_exact(&self, dtype: DType) -> bool {
        match dtype {
            DType::F32 => true,
            // Four significant bits and a power of two.
            DType::BF16 => self.scale == ScaleCode::E8M0 && self.code != Code::E5M2,
            DType::F16 | DType::F64 | DType::I32 | DType::I64 | DType::U8 => false,
        }
    }

    /// Whether rows of 16-bit integers are multiplied with codes of this format: codes are small integers or halves of them, and
    /// blocks along K are 16 elements, a multiple of 32, or all.
    pub fn takes_int16_rows(&self) -> bool {
        let is_small = matches!(self.code, Code::E2M1 | Code::Int4);
        is_small && (self.block_cols == 16 || self.block_cols.is_multiple_of(32))
    }

    /// Bytes of the codes and scales of an `[n, k]` matrix, without padding.
    pub fn matrix_bytes(&self, n: u64, k: u64) -> u64 {
        let (rows, cols) = self.scale_grid(n, k);
        n * self.code.bytes(k) + rows * cols * self.scale.bytes()
    }

    /// Whether the scales of `self` and of `other` lie alike over an `[n, k]` matrix: a block that covers an axis is the
    /// same block, however its length is written.
    pub fn same_blocks(&self, other: &QuantFormat, n: u64, k: u64) -> bool {
        let cut = |block: u64, len: u64| if block == 0 { len } else { block.min(len) };
        cut(self.block_rows, n) == cut(other.block_rows, n) && cut(self.block_cols, k) == cut(other.block_cols, k)
    }

    /// Rows and columns of the grid of scales of an `[n, k]` matrix.
    pub fn scale_grid(&self, n: u64, k: u64) -> (u64, u64) {
        let blocks = |len: u64, block: u64| if block == 0 { 1 } else { len.div_ceil(block) };
        (blocks(n, self.block_rows), blocks(k, self.block_cols))
    }

    /// Dequantises row `row` of an `[n, k]` matrix into `out` (`k` values): `code · scale · global`, in f32.
    ///
    /// `codes` is the row's bytes, `scales` the matrix's whole grid, row-major.
    pub fn decode_row(&self, codes: &[u8], scales: &[u8], global: f32, row: u64, (n, k): (u64, u64), out: &mut [f32]) {
        let (_, grid_cols) = self.scale_grid(n, k);
        let grid_row = row.checked_div(self.block_rows).unwrap_or(0);
        for (i, v) in out.iter_mut().enumerate().take(k as usize) {
            let grid_col = (i as u64).checked_div(self.block_cols).unwrap_or(0);
            let scale = self.scale.decode(scales, (grid_row * grid_cols + grid_col) as usize);
            *v = self.code.decode(codes, i) * (scale * global);
        }
    }
}

fn nibble(row: &[u8], i: usize) -> u8 {
    if i.is_multiple_of(2) { row[i / 2] & 15 } else { row[i / 2] >> 4 }
}

/// The value of an FP4 e2m1 code; only the low nibble counts.
pub fn e2m1(code: u8) -> f32 {
    const MAGNITUDE: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let m = MAGNITUDE[usize::from(code & 7)];
    if code & 8 == 0 { m } else { -m }
}

/// The value of an FP8 e4m3 (fn) code.
pub fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * (-9f32).exp2(),
        _ => (8.0 + mantissa) * ((exponent - 10) as f32).exp2(),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The code of a number that e2m1 has; of another, the next larger magnitude's, 6 at most. NaN becomes 6.
pub fn to_e2m1(x: f32) -> u8 {
    if x.is_nan() {
        return 7;
    }
    let magnitude = (0..7u8).find(|&c| e2m1(c) >= x.abs()).unwrap_or(7);
    magnitude | u8::from(x.is_sign_negative()) << 3
}

/// The code of a number that e4m3 has; of another, the next larger magnitude's, 448 at most. NaN becomes the
/// positive one.
pub fn to_e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 127;
    }
    let magnitude = (0..126u8).find(|&c| e4m3(c) >= x.abs()).unwrap_or(126);
    magnitude | u8::from(x.is_sign_negative()) << 7
}

/// The value of an FP8 e5m2 code: the upper byte of a binary16.
pub fn e5m2(code: u8) -> f32 {
    half::f16::from_bits(u16::from(code) << 8).to_f32()
}

/// The value of an e8m0 scale.
pub fn e8m0(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        // 2^-127 is subnormal in binary32.
        0 => f32::from_bits(1 << 22),
        c => f32::from_bits(u32::from(c) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_codes_are_ordered_and_end_at_448() {
        let values: Vec<f32> = (0..127).map(e4m3).collect();
        assert!(values.windows(2).all(|w| w[0] < w[1]));
        assert_eq!((values[0], values[1], values[8], values[126]), (0.0, 2f32.powi(-9), 2f32.powi(-6), 448.0));
        assert!(e4m3(127).is_nan() && e4m3(255).is_nan());
        assert!((0..127).all(|c| e4m3(c | 128) == -e4m3(c)));
    }

    #[test]
    fn e8m0_codes_are_powers_of_two() {
        for c in 0..=254u8 {
            assert_eq!(f64::from(e8m0(c)), (f64::from(c) - 127.0).exp2());
        }
        assert!(e8m0(255).is_nan());
    }

    #[test]
    fn every_number_has_its_code() {
        (0..=255u8).filter(|c| c & 127 != 127).for_each(|c| assert_eq!(to_e4m3(e4m3(c)), c));
        (0..16u8).for_each(|c| assert_eq!(to_e2m1(e2m1(c)), c));
        (1..=254u8).for_each(|c| assert_eq!(ScaleCode::E8M0.encode(e8m0(c)), [c]));
        assert_eq!((to_e4m3(f32::NAN), ScaleCode::E8M0.encode(f32::NAN)[0]), (127, 255));
    }

    #[test]
    fn e5m2_reaches_57344_and_infinity() {
        assert_eq!((e5m2(0x7b), e5m2(0x7c), e5m2(1)), (57344.0, f32::INFINITY, 2f32.powi(-16)));
    }

    #[test]
    fn rows_of_ragged_blocks_use_the_block_they_lie_in() {
        let f = QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 2, block_cols: 2 };
        assert_eq!(f.scale_grid(3, 3), (2, 2));
        let scales: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|s| s.to_le_bytes()).collect();
        let one = 0x38;
        let mut out = [0.0; 3];
        f.decode_row(&[one; 3], &scales, 1.0, 2, (3, 3), &mut out);
        assert_eq!(out, [3.0, 3.0, 4.0]);
    }

    #[test]
    fn nibbles_are_read_low_first() {
        let f = QuantFormat { code: Code::E2M1, scale: ScaleCode::E8M0, block_rows: 1, block_cols: 32 };
        let mut out = [0.0; 2];
        f.decode_row(&[0x7a], &[128], 1.0, 0, (1, 2), &mut out);
        assert_eq!(out, [-2.0, 12.0]);
        assert_eq!(Code::Int4.decode(&[0xf0], 0), -8.0);
        assert_eq!(Code::Int4.decode(&[0xf0], 1), 7.0);
    }
}
