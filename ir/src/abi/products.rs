//! What compiled contractions ask of the vector code that they call.

use super::DType;
use crate::quant::{Code, QuantFormat, ScaleCode};

/// Bytes of [`Products::scratch`].
pub const PRODUCTS_SCRATCH_BYTES: u64 = 192 << 10;

/// Floats that an arranged row of `k` elements has room for: whole groups of 64, and a line of memory more, so that the same
/// place of many rows does not fall on the same lines of a cache.
pub const fn arranged_len(k: u64) -> u64 {
    k.next_multiple_of(64) + 16
}

/// Products of a few rows with a few columns of a matrix: `out[r, c] = Σ rows[r, i] · weights[c, i]` over `k` elements.
///
/// # Order
/// In f32, with fused multiply-adds, the same for every shape, encoding and processor, and for each product alone:
/// * elements lie in groups of 64, missing ones of the last group being 0. Each half of a group fills four of eight lanes:
///   lanes 0 … 3 take elements `8q + 2l + o` of the first, in turn `j = 2q + 1 - o` of eight, and lanes 4 … 7 those 32
///   behind: pairs one after the other, and of each pair the odd element first, as processors that multiply pairs do;
/// * a lane's sum starts at 0 with every block of 512 elements, and is added to the lane's total after it;
/// * with the totals `t`: `s[l] = t[l] + t[l + 4]`, and the product is `(s[0] + s[2]) + (s[1] + s[3])`.
///
/// # Values
/// A code means `round(code · (scale · global))`, every operation in f32 and rounded once.
///
/// # Rows of 16-bit integers
/// Where rows are such ([`Encoding::with_int16_rows`]) the order is another one. With the codes `x` and scales `r` of a row in
/// blocks of 32, a step is 32 elements, or 16 where blocks of weights are 16, and
/// ends at the last element:
/// * `p = Σ x[i] · code[i]` over a step, exact in integers and as f32, codes of e2m1 being doubled;
/// * steps go from the first to the last: `sum = fma(p · r, scale · global, sum)` from 0 on, each operation rounded once;
/// * the product is the sum, of e2m1 half of it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Products {
    /// `n_rows` rows, each [`arranged_len`]`(k)` floats behind the one before, aligned to 64 bytes, as `arrange` of the same
    /// [`CpuKernels`](super::CpuKernels) wrote them for this encoding's kind of rows ([`Encoding::with_bf16_rows`]).
    pub rows: *const f32,
    /// Rows: at most 64.
    pub n_rows: u64,
    /// Contracted elements.
    pub k: u64,
    /// The first column's elements.
    pub weights: *const u8,
    /// Bytes from a column to the next.
    pub pitch: u64,
    /// Columns.
    pub n_columns: u64,
    /// The products: row `r`, column `c` at `r * out_pitch + c`.
    pub out: *mut f32,
    /// Elements from a row of products to the next.
    pub out_pitch: u64,
    /// [`PRODUCTS_SCRATCH_BYTES`] bytes, aligned to 64.
    pub scratch: *mut u8,
    /// [`Encoding::bits`] of the weights.
    pub encoding: u64,
    /// Where the first column of the job begins that will follow, which memory is asked for as this one ends; null when nobody knows.
    pub next: *const u8,
    /// The matrix's grid of scales; not read when the weights are floats, and neither are the fields below.
    pub scales: *const u8,
    /// Bytes from a row of the grid to the next.
    pub scales_pitch: u64,
    /// A factor on all scales, or null.
    pub global: *const f32,
    /// Number of the first column in the matrix.
    pub first_column: u64,
    /// Columns of a block, which share a scale; 0 for all.
    pub block_rows: u64,
    /// Elements of a block along a column; 0 for all.
    pub block_cols: u64,
    /// Where the scales of that first column begin; null when nobody knows, or columns share scales.
    pub next_scales: *const u8,
}

/// What weights lie in memory as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightCode {
    /// Floats of type f32, bf16 or f16.
    Floats(DType),
    /// Codes with scales; the value is rounded to `round`, one of f32, bf16, f16.
    Codes {
        /// The elements.
        code: Code,
        /// The scales.
        scale: ScaleCode,
        /// The type of the values.
        round: DType,
    },
}

/// [`WeightCode`] as a number, for generated code: a float type in bits 0 … 7; a code plus one in bits 8 … 15, or 0; its
/// scale in bits 16 … 23; whether rows are bf16 in bit 24, and whether they are 16-bit integers in bit 25.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding(u64);

/// Bit 24 of an [`Encoding`].
const BF16_ROWS: u64 = 1 << 24;
/// Bit 25.
const INT16_ROWS: u64 = 1 << 25;

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

impl Encoding {
    /// Floats; `None` for types that are no weights.
    pub fn floats(dtype: DType) -> Option<Encoding> {
        FLOATS.iter().position(|&d| d == dtype).map(|i| Encoding(i as u64))
    }

    /// Codes of a format, rounded to a type; `None` for types that are no weights.
    pub fn codes(format: &QuantFormat, round: DType) -> Option<Encoding> {
        let code = Code::ALL.iter().position(|&c| c == format.code)? as u64;
        let scale = ScaleCode::ALL.iter().position(|&s| s == format.scale)? as u64;
        Some(Encoding(Encoding::floats(round)?.0 | (code + 1) << 8 | scale << 16))
    }

    /// The same, for rows of bf16 and weights whose values are all bf16, which some processors multiply in pairs: the bits
    /// of the products are the same. Rows must be arranged with it exactly when they are multiplied with it.
    pub fn with_bf16_rows(self) -> Encoding {
        Encoding(self.0 | BF16_ROWS)
    }

    /// Whether a number is one of [`Encoding::with_bf16_rows`].
    pub fn has_bf16_rows(bits: u64) -> bool {
        bits & BF16_ROWS != 0
    }

    /// The same, for rows that are rounded to 16-bit integers as they are arranged. Weights are codes of four bits
    /// ([`QuantFormat::takes_int16_rows`]), whose values are not rounded.
    pub fn with_int16_rows(self) -> Encoding {
        Encoding(self.0 | INT16_ROWS)
    }

    /// Whether a number is one of [`Encoding::with_int16_rows`].
    pub fn has_int16_rows(bits: u64) -> bool {
        bits & INT16_ROWS != 0
    }

    /// The number.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// What a number stands for; `None` for those that stand for nothing.
    pub fn decode(bits: u64) -> Option<WeightCode> {
        let bits = bits & !(BF16_ROWS | INT16_ROWS);
        let dtype = *FLOATS.get((bits & 0xff) as usize)?;
        if bits >> 24 != 0 {
            return None;
        }
        let Some(code) = (bits >> 8 & 0xff).checked_sub(1) else {
            return (bits >> 16 == 0).then_some(WeightCode::Floats(dtype));
        };
        let (code, scale) = (*Code::ALL.get(code as usize)?, *ScaleCode::ALL.get((bits >> 16) as usize)?);
        Some(WeightCode::Codes { code, scale, round: dtype })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_is_read_back() {
        for round in FLOATS {
            let floats = Encoding::floats(round).unwrap();
            assert_eq!(Encoding::decode(floats.bits()), Some(WeightCode::Floats(round)));
            let pairs = floats.with_bf16_rows().bits();
            assert_eq!(Encoding::decode(pairs), Encoding::decode(floats.bits()));
            assert!(Encoding::has_bf16_rows(pairs) && !Encoding::has_bf16_rows(floats.bits()));
            let integers = floats.with_int16_rows().bits();
            assert_eq!(Encoding::decode(integers), Encoding::decode(floats.bits()));
            assert!(Encoding::has_int16_rows(integers) && !Encoding::has_int16_rows(pairs));
            for code in Code::ALL {
                for scale in ScaleCode::ALL {
                    let format = QuantFormat { code, scale, block_rows: 1, block_cols: 32 };
                    let bits = Encoding::codes(&format, round).unwrap().bits();
                    assert_eq!(Encoding::decode(bits), Some(WeightCode::Codes { code, scale, round }));
                }
            }
        }
    }

    #[test]
    fn other_numbers_stand_for_nothing() {
        for bits in [3, 0x500, 0x1_0000, 0x5_0100, 1 << 26, u64::MAX] {
            assert_eq!(Encoding::decode(bits), None, "{bits:#x}");
        }
        assert_eq!(Encoding::floats(DType::I32), None);
    }
}
