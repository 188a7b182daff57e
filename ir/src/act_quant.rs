//! Quantised activations: which numbers a row is rounded to before a matrix product.
//!
//! The value of a quantised row stays a float, `code · scale` (`· global`): what a product of codes and scales computes,
//! whatever the machine stores.

use crate::DType;
use crate::expr::{Binary, Expr, ExprBuilder, Unary};
use crate::quant::{Code, QuantFormat, ScaleCode, to_e2m1, to_e4m3};
use serde::{Deserialize, Serialize};

/// How the scale of a block follows from its largest magnitude `m`. `most` is the largest code: 448 or 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActScale {
    /// `max(m, 1e-10) / most` in f32. Source: SGLang's per-token-group quantisation for DeepSeek-V3. Of 16-bit integers
    /// `max(m, 2^-110) / 32767`, and NaN where `m` is infinite.
    F32,
    /// The smallest power of two that is not below `max(m, 1e-10) / most`: never clips. DeepSeek-V3.1 (`ue8m0`) and MX
    /// formats as NVIDIA's quantisers make them.
    Pow2,
    /// `round_e4m3(m / (most · global))`, times the global scale: NVFP4. A block whose scale rounds to 0 is 0.
    E4M3,
    /// As `E4M3`, with a global scale of the row's own: its largest magnitude (at least 1e-10) / (`most` · 448).
    #[serde(rename = "e4m3_row")]
    E4M3Row,
}

impl ActScale {
    /// Every rule, in declaration order.
    pub const ALL: [ActScale; 4] = [ActScale::F32, ActScale::Pow2, ActScale::E4M3, ActScale::E4M3Row];

    /// The name in text forms and JSON: `f32`, `pow2`, `e4m3` or `e4m3_row`.
    pub fn name(self) -> &'static str {
        match self {
            ActScale::F32 => "f32",
            ActScale::Pow2 => "pow2",
            ActScale::E4M3 => "e4m3",
            ActScale::E4M3Row => "e4m3_row",
        }
    }

    /// The rule called `name` in text forms, if there is one.
    pub fn from_name(name: &str) -> Option<ActScale> {
        ActScale::ALL.into_iter().find(|s| s.name() == name)
    }
}

/// A block format of rows: one scale for each `block` columns, the last block being cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActQuant {
    /// Elements: [`Code::E4M3`], [`Code::E2M1`] or [`Code::Int16`].
    pub code: Code,
    /// Scales.
    pub scale: ActScale,
    /// Columns of a block; 0 for the whole row.
    pub block: u32,
}

/// A row in codes: `value[i] = code[i] · (scale · global)`, products in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct CodedRow {
    /// As [`QuantFormat`] says: two 4-bit codes in a byte.
    pub codes: Vec<u8>,
    /// The value of each block's scale: a number of the format's scale code.
    pub scales: Vec<f32>,
    /// 1 where the format has none.
    pub global: f32,
}

impl ActQuant {
    /// FP8 in blocks of 128 with f32 scales (DeepSeek-V3).
    pub const FP8_BLOCK: ActQuant = ActQuant { code: Code::E4M3, scale: ActScale::F32, block: 128 };
    /// FP8 in blocks of 128 with powers of two as scales (DeepSeek-V3.1).
    pub const FP8_BLOCK_POW2: ActQuant = ActQuant { code: Code::E4M3, scale: ActScale::Pow2, block: 128 };
    /// FP8 with one scale for each row.
    pub const FP8_TOKEN: ActQuant = ActQuant { code: Code::E4M3, scale: ActScale::F32, block: 0 };
    /// MXFP4.
    pub const MXFP4: ActQuant = ActQuant { code: Code::E2M1, scale: ActScale::Pow2, block: 32 };
    /// MXFP8.
    pub const MXFP8: ActQuant = ActQuant { code: Code::E4M3, scale: ActScale::Pow2, block: 32 };
    /// NVFP4 with a global scale for each row.
    pub const NVFP4_ROW: ActQuant = ActQuant { code: Code::E2M1, scale: ActScale::E4M3Row, block: 16 };
    /// 16-bit integers in blocks of 32: what CPUs multiply with codes of four bits, exactly. An element errs by at most 2^-15.98 of
    /// the largest magnitude of its block, or of 2^-110 where that is less. A block with NaN or an infinity is NaN.
    pub const INT16: ActQuant = ActQuant { code: Code::Int16, scale: ActScale::F32, block: 32 };
    /// NVFP4 with a given global scale.
    pub const NVFP4: ActQuant = ActQuant { code: Code::E2M1, scale: ActScale::E4M3, block: 16 };

    /// Whether rows are quantised with a global scale, the second operand.
    pub fn has_global(self) -> bool {
        self.scale == ActScale::E4M3
    }

    /// Whether the largest magnitude of the row takes part, as argument 2 of [`ActQuant::expr`].
    pub fn has_row(self) -> bool {
        self.scale == ActScale::E4M3Row
    }

    /// Whether a rounded row that is kept in `dtype` has the same values when it is rounded again: the codes of a block whose
    /// largest one became smaller are twice as large then, for half the scale. A block whose largest element is rounded up to infinity
    /// (from 3.2e38) keeps that, and may lose others.
    pub fn rounds_twice_as_once(self, dtype: DType) -> bool {
        self.scale == ActScale::Pow2 && matches!(dtype, DType::BF16 | DType::F32)
    }

    /// The format that users call `name`: `fp8-block`, `fp8-block-pow2`, `fp8-token`, `mxfp8`, `mxfp4`, `nvfp4` or
    /// `nvfp4-static`.
    pub fn from_name(name: &str) -> Option<ActQuant> {
        ActQuant::NAMES.iter().find(|(n, _)| *n == name).map(|&(_, q)| q)
    }

    /// What rows can be rounded to by name: [`ActQuant::from_name`], or `int16`, which does not travel and lies in no memory.
    pub fn rounding(name: &str) -> Option<ActQuant> {
        if name == "int16" { Some(ActQuant::INT16) } else { ActQuant::from_name(name) }
    }

    /// Whether codes of rows lie in memory or travel; otherwise rows are rounded where they are multiplied.
    pub fn is_stored(self) -> bool {
        self.code != Code::Int16
    }

    /// The formats that have a name and are stored.
    pub const NAMES: [(&'static str, ActQuant); 7] = [
        ("fp8-block", ActQuant::FP8_BLOCK),
        ("fp8-block-pow2", ActQuant::FP8_BLOCK_POW2),
        ("fp8-token", ActQuant::FP8_TOKEN),
        ("mxfp8", ActQuant::MXFP8),
        ("mxfp4", ActQuant::MXFP4),
        ("nvfp4", ActQuant::NVFP4_ROW),
        ("nvfp4-static", ActQuant::NVFP4),
    ];

    /// Whether the format is one that rows can be quantised to: FP8 e4m3 or FP4 e2m1, or 16-bit integers in blocks of 32.
    pub fn is_known(self) -> bool {
        matches!(self.code, Code::E4M3 | Code::E2M1) || self == ActQuant::INT16
    }

    /// The quantised value of an element: argument 0 is the element, 1 the largest magnitude of its block, 2 the
    /// global scale or ([`ActQuant::has_row`]) the largest magnitude of its row.
    pub fn expr(self) -> Expr {
        let mut b = ExprBuilder::new();
        let (x, m) = (b.arg(0), b.arg(1));
        let global = (self.has_global() || self.has_row()).then(|| b.arg(2));
        let global = global.map(|g| if self.has_row() { self.global(&mut b, g) } else { g });
        let stored = self.scale_of(&mut b, m, global);
        let scale = global.map_or(stored, |g| b.binary(Binary::Mul, stored, g));
        let code = self.code_of(&mut b, x, scale);
        let value = b.binary(Binary::Mul, code, scale);
        // 0 / 0 in a block of zeros; NaN stays NaN because the block's magnitude is NaN, too.
        let value = if global.is_some() { b.select(scale, value, scale) } else { value };
        b.finish(value)
    }

    /// The scale that is stored for a block, before any global scale: argument 0 is the largest magnitude of the block, 1
    /// the global scale.
    pub fn scale_expr(self) -> Expr {
        let mut b = ExprBuilder::new();
        let m = b.arg(0);
        let global = (self.has_global() || self.has_row()).then(|| b.arg(1));
        let stored = self.scale_of(&mut b, m, global);
        b.finish(stored)
    }

    /// The value of an element's code: argument 0 is the element, 1 the scale of its block, times the global scale.
    pub fn code_expr(self) -> Expr {
        let mut b = ExprBuilder::new();
        let (x, scale) = (b.arg(0), b.arg(1));
        let code = self.code_of(&mut b, x, scale);
        b.finish(code)
    }

    /// The global scale of a row whose largest magnitude is argument 0, where it is the row's own.
    pub fn global_expr(self) -> Expr {
        let mut b = ExprBuilder::new();
        let m = b.arg(0);
        let global = self.global(&mut b, m);
        b.finish(global)
    }

    /// The largest code.
    fn most(self) -> f32 {
        match self.code {
            Code::E2M1 => 6.0,
            Code::Int16 => 32767.0,
            Code::E4M3 | Code::E5M2 | Code::Int4 => 448.0,
        }
    }

    fn global(self, b: &mut ExprBuilder, row: u32) -> u32 {
        let (least, most, largest_scale) = (b.constant(1e-10), b.constant(self.most()), b.constant(448.0));
        let m = b.binary(Binary::Max, row, least);
        let largest = b.binary(Binary::Mul, most, largest_scale);
        b.binary(Binary::Div, m, largest)
    }

    fn scale_of(self, b: &mut ExprBuilder, m: u32, global: Option<u32>) -> u32 {
        let most = b.constant(self.most());
        if let Some(global) = global {
            let unit = b.binary(Binary::Mul, most, global);
            let wanted = b.binary(Binary::Div, m, unit);
            return b.unary(Unary::RoundE4M3, wanted);
        }
        if self.code == Code::Int16 {
            // Below 2^-110 scales are subnormal, and have too few bits. Infinity less itself is NaN.
            let least = b.constant(2f32.powi(-110));
            let at_least = b.binary(Binary::Max, m, least);
            let scale = b.binary(Binary::Div, at_least, most);
            let nothing = b.binary(Binary::Sub, m, m);
            return b.binary(Binary::Add, scale, nothing);
        }
        let least = b.constant(1e-10);
        let m = b.binary(Binary::Max, m, least);
        let scale = b.binary(Binary::Div, m, most);
        if self.scale == ActScale::Pow2 { b.unary(Unary::CeilPow2, scale) } else { scale }
    }

    fn code_of(self, b: &mut ExprBuilder, x: u32, scale: u32) -> u32 {
        if self.code == Code::Int16 {
            // Of numbers to which this is added only integers are left, the nearest one, even at ties.
            let (one, integers) = (b.constant(1.0), b.constant(12_582_912.0));
            let per_unit = b.binary(Binary::Div, one, scale);
            let ratio = b.binary(Binary::Mul, x, per_unit);
            let moved = b.binary(Binary::Add, ratio, integers);
            return b.binary(Binary::Sub, moved, integers);
        }
        let ratio = b.binary(Binary::Div, x, scale);
        b.unary(if self.code == Code::E2M1 { Unary::RoundE2M1 } else { Unary::RoundE4M3 }, ratio)
    }

    /// How codes and scales lie in memory: one row is a block of rows.
    pub fn stored(self) -> QuantFormat {
        let scale = match self.scale {
            ActScale::F32 => ScaleCode::F32,
            ActScale::Pow2 => ScaleCode::E8M0,
            ActScale::E4M3 | ActScale::E4M3Row => ScaleCode::E4M3,
        };
        QuantFormat { code: self.code, scale, block_rows: 1, block_cols: u64::from(self.block) }
    }

    /// A row as codes, scales and global scale. `global` is the given one, where the format has one.
    pub fn encode(self, row: &[f32], global: f32) -> CodedRow {
        let block = if self.block == 0 { row.len().max(1) } else { self.block as usize };
        let global = match self.scale {
            ActScale::E4M3Row => self.global_expr().eval(&[abs_max(row)]),
            ActScale::E4M3 => global,
            ActScale::F32 | ActScale::Pow2 => 1.0,
        };
        let (scale_of, code_of) = (self.scale_expr(), self.code_expr());
        let scales: Vec<f32> = row.chunks(block).map(|b| scale_of.eval(&[abs_max(b), global])).collect();
        let mut codes = vec![0u8; self.code.bytes(row.len() as u64) as usize];
        for (i, &x) in row.iter().enumerate() {
            let value = code_of.eval(&[x, scales[i / block] * global]);
            match self.code {
                Code::E2M1 => codes[i / 2] |= to_e2m1(value) << (4 * (i % 2)),
                Code::Int16 => codes[2 * i..2 * i + 2].copy_from_slice(&(value as i16).to_le_bytes()),
                Code::E4M3 | Code::E5M2 | Code::Int4 => codes[i] = to_e4m3(value),
            }
        }
        CodedRow { codes, scales, global }
    }

    /// The quantised value of a row, in f32.
    pub fn quantise(self, row: &[f32], global: f32) -> Vec<f32> {
        let expr = self.expr();
        let block = if self.block == 0 { row.len().max(1) } else { self.block as usize };
        let third = if self.has_row() { abs_max(row) } else { global };
        let blocks = row.chunks(block).flat_map(|b| {
            let m = abs_max(b);
            b.iter().map(|&x| expr.eval(&[x, m, third])).collect::<Vec<_>>()
        });
        blocks.collect()
    }
}

/// The largest magnitude; NaN when one is NaN, 0 for none.
pub fn abs_max(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, v| Binary::Max.eval(m, v.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{e2m1, e4m3};

    fn nearest(x: f32, codes: impl Iterator<Item = f32>) -> f32 {
        codes.min_by(|a, b| (a - x).abs().total_cmp(&(b - x).abs())).unwrap()
    }

    #[test]
    fn rounding_to_small_floats_gives_the_nearest_code() {
        for i in 0..20_000u32 {
            let x = (i as f32 - 10_000.0) * 0.0517;
            let to_e4m3 = Unary::RoundE4M3.eval(x);
            let best = nearest(x, (0..=255u8).map(e4m3).filter(|v| !v.is_nan()));
            assert_eq!((to_e4m3 - x).abs(), (best - x).abs(), "{x}: {to_e4m3} or {best}");
            let small = x / 50.0;
            let to_e2m1 = Unary::RoundE2M1.eval(small);
            assert_eq!((to_e2m1 - small).abs(), (nearest(small, (0..16u8).map(e2m1)) - small).abs(), "{small}");
        }
    }

    #[test]
    fn every_code_rounds_to_itself_and_ties_go_to_even() {
        (0..=255u8).map(e4m3).filter(|v| !v.is_nan()).for_each(|v| assert_eq!(Unary::RoundE4M3.eval(v), v));
        (0..16u8).map(e2m1).for_each(|v| assert_eq!(Unary::RoundE2M1.eval(v), v));
        for (x, y) in
            [(0.25, 0.0), (0.75, 1.0), (1.25, 1.0), (1.75, 2.0), (2.5, 2.0), (3.5, 4.0), (5.0, 4.0), (9.0, 6.0)]
        {
            assert_eq!((Unary::RoundE2M1.eval(x), Unary::RoundE2M1.eval(-x)), (y, -y));
        }
        // Half of the least e4m3 number, and one and a half of it.
        let least = 2f32.powi(-9);
        assert_eq!((Unary::RoundE4M3.eval(least / 2.0), Unary::RoundE4M3.eval(least * 1.5)), (0.0, 2.0 * least));
        assert_eq!((Unary::RoundE4M3.eval(f32::INFINITY), Unary::RoundE4M3.eval(-465.0)), (448.0, -448.0));
        assert!(Unary::RoundE4M3.eval(f32::NAN).is_nan() && Unary::RoundE2M1.eval(f32::NAN).is_nan());
    }

    #[test]
    fn powers_of_two_are_rounded_up() {
        for (x, y) in [(1.0, 1.0), (1.1, 2.0), (0.75, 1.0), (0.0, 2f32.powi(-126)), (3e38, 2f32.powi(127))] {
            assert_eq!(Unary::CeilPow2.eval(x), y);
        }
    }

    #[test]
    fn blocks_have_scales_of_their_own() {
        let q = ActQuant { code: Code::E4M3, scale: ActScale::F32, block: 2 };
        assert_eq!(q.quantise(&[448.0, 1.06, 4.48, 1.0, -7.0], 1.0)[..2], [448.0, 1.0]);
        assert_eq!(q.quantise(&[448.0, 1.06, 4.48, 1.0, -7.0], 1.0)[4], -7.0);
    }

    #[test]
    fn codes_and_scales_have_the_quantised_values() {
        let row: Vec<f32> = (0..301).map(|i| ((i * 37 % 101) as f32 - 50.0) * 1.7f32.powi(i / 40 - 3)).collect();
        for q in ActQuant::NAMES.map(|(_, q)| q).into_iter().chain([ActQuant::INT16]) {
            let coded = q.encode(&row, 0.37);
            let format = q.stored();
            let scales: Vec<u8> = coded.scales.iter().flat_map(|&s| format.scale.encode(s)).collect();
            let mut values = vec![0.0; row.len()];
            format.decode_row(&coded.codes, &scales, coded.global, 0, (1, row.len() as u64), &mut values);
            assert_eq!(values, q.quantise(&row, 0.37), "{q:?}");
        }
    }

    #[test]
    fn rows_with_powers_of_two_as_scales_round_twice_as_once() {
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let kept = |v: &[f32]| v.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect::<Vec<f32>>();
        // Ratios of the largest element to its scale from just above half of the largest code to all of it, in every size.
        let mut rows: Vec<Vec<f32>> = (-140..=127)
            .flat_map(|e| (0..64).map(move |i| (e, i)))
            .map(|(e, i)| {
                let most = 2f32.powi(e) * (1.0 + i as f32 / 64.0);
                (0..40).map(|j| most * [1.0, -0.37, 0.002, 0.0][j % 4] * 0.8f32.powi(j as i32)).collect()
            })
            .collect();
        rows.extend([vec![0.0; 33], vec![-0.0, 1e-11], vec![f32::INFINITY, 1.0, f32::MAX], vec![f32::NEG_INFINITY]]);
        for q in [ActQuant::MXFP8, ActQuant::MXFP4, ActQuant::FP8_BLOCK_POW2] {
            assert!(q.rounds_twice_as_once(DType::BF16) && !q.rounds_twice_as_once(DType::F16));
            for row in &rows {
                let once = q.quantise(row, 1.0);
                assert_eq!(bits(&kept(&once)), bits(&once), "{q:?} of {row:?} in bf16");
                let twice = q.quantise(&once, 1.0);
                if once.iter().all(|x| x.is_finite()) {
                    assert_eq!(bits(&twice), bits(&once), "{q:?} of {row:?}");
                }
                let infinite = |v: &[f32]| v.iter().map(|x| x.is_infinite()).collect::<Vec<_>>();
                assert_eq!(infinite(&twice), infinite(&once), "{q:?} of {row:?}");
            }
            assert!(q.quantise(&q.quantise(&[1.0, f32::NAN], 1.0), 1.0).iter().all(|v| v.is_nan()));
        }
        // Other scales are not found again.
        assert!(!ActQuant::FP8_BLOCK.rounds_twice_as_once(DType::F32));
    }

    #[test]
    fn nvfp4_blocks_of_zeros_are_zero_and_nan_is_kept() {
        assert_eq!(ActQuant::NVFP4.quantise(&[0.0; 17], 0.5), [0.0; 17]);
        let v = ActQuant::NVFP4.quantise(&[6.0, 3.0, f32::NAN], 1.0 / 448.0);
        assert!(v.iter().all(|x| x.is_nan()));
        assert_eq!(ActQuant::NVFP4.quantise(&[6.0, 3.1], 1.0 / 448.0), [6.0, 3.0]);
        assert_eq!(ActQuant::NVFP4_ROW.quantise(&[6.0, 3.1], 0.0), [6.0, 3.0]);
        assert_eq!(ActQuant::NVFP4_ROW.quantise(&[0.0; 3], 0.0), [0.0; 3]);
    }

    /// The bound that [`ActQuant::INT16`] states, over every size of block and every place in it.
    #[test]
    fn integers_of_16_bits_err_by_less_than_their_bound() {
        for e in -149..=127 {
            for i in 0..64 {
                let most = (f64::from(e).exp2() * (1.0 + f64::from(i) / 64.0)) as f32;
                let row: Vec<f32> = (0..32).map(|j| most * 0.83f32.powi(j) * [1.0, -1.0][j as usize % 2]).collect();
                for (x, y) in row.iter().zip(ActQuant::INT16.quantise(&row, 1.0)) {
                    let error = (f64::from(*x) - f64::from(y)).abs();
                    let bound = f64::from(most).max((-110f64).exp2()) / 2.0 * (-14.98f64).exp2();
                    assert!(error <= bound, "{x:e} beside {most:e} becomes {y:e}");
                }
            }
        }
        assert_eq!(ActQuant::INT16.quantise(&[0.0, -0.0], 1.0), [0.0, 0.0]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = vec![1.0; 64];
            row[40] = bad;
            let got = ActQuant::INT16.quantise(&row, 1.0);
            assert!(got[..32].iter().all(|&v| v == 1.0) && got[32..].iter().all(|v| v.is_nan()));
        }
    }

    /// What rounding to 16-bit integers does to products with codes of four bits, beside what rounding those to bf16 does:
    /// little by the norm of the results, whatever outliers rows have; but a column that does not read an outlier errs by it.
    #[test]
    fn outliers_cost_the_columns_that_do_not_read_them() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let (k, n) = (512, 400);
        let weights: Vec<f32> = (0..n * k).map(|_| (random() * 8.0).floor()).collect();
        // One outlier in the row, or one in each block.
        for (every, size) in [(1, 1.0), (k, 1e3), (k, 1e5), (k, 1e7), (32, 1e2), (32, 1e4), (32, 1e30), (32, 1e-40)] {
            let bf16 = |x: f32| half::bf16::from_f32(x).to_f32();
            let row: Vec<f32> = (0..k).map(|i| bf16(random() * if i % every == 0 { size } else { 1.0 })).collect();
            let rounded = ActQuant::INT16.quantise(&row, 1.0);
            let (mut error, mut own, mut worse) = (0.0f64, 0.0f64, 0);
            for w in weights.chunks(k) {
                let dot = |x: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
                let (y, off) = (dot(&row), dot(&rounded) - dot(&row));
                error += off * off;
                own += (f64::from(bf16(y as f32)) - y).powi(2);
                worse += u32::from(off.abs() > y.abs() / 512.0);
            }
            let ratio = (error / own).sqrt();
            assert!(ratio < 1.0 / 16.0, "outliers of {size:e}: {ratio} of the error of bf16");
            // Zero is one code of sixteen.
            assert!((every, size) != (k, 1e5) || worse > n as u32 / 40, "{worse} columns of {n} lost their own digits");
        }
    }
}
