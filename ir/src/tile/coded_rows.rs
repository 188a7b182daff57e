//! Rows of activations as codes: what a quantised product multiplies.

use super::{BufferId, Contract, Segment};
use crate::act_quant::ActQuant;
use crate::quant::{Code, QuantFormat, ScaleCode};
use serde::{Deserialize, Serialize};

/// What the codes of a buffer of rows mean: `value[r, k] = code[r, k] · (scale · global)`, both products in f32, where
/// `scale` is the one of the block of columns that `k` lies in. Which codes and scales a row gets: [`ActQuant`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowQuant {
    /// Codes, scales and blocks.
    pub q: ActQuant,
    /// Elements of a row: K. The buffer of codes has their bytes as columns, rows a multiple of 64 bytes apart; what
    /// lies between two rows of 4-bit codes may be read by kernels, so that who writes rows writes zeros there on sm_100.
    pub cols: u64,
    /// `[rows, ceil(K / block)]` of the scale code's type, rows a multiple of 16 bytes apart.
    pub scales: BufferId,
    /// f32: `[1, 1]`, given, where the format has a global scale; `[rows, 1]`, made with the codes, where it is each row's
    /// own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<BufferId>,
}

/// Rounds the rows of `x` to codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantise {
    /// Floats `[rows, K]`.
    pub x: BufferId,
    /// Codes, u8 `[rows, bytes]`.
    pub out: BufferId,
    /// What they mean.
    pub quant: RowQuant,
    /// Rows in expert order end where the last expert's do: those from the last entry of these offsets on hold no slot, and
    /// are left as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<BufferId>,
}

impl RowQuant {
    /// Blocks of a row.
    pub fn n_blocks(&self) -> u64 {
        self.format().scale_grid(1, self.cols).1
    }

    /// Codes and scales as they lie in memory.
    pub fn format(&self) -> QuantFormat {
        self.q.stored()
    }

    pub(super) fn operands(&self, written: bool, add: &mut impl FnMut(BufferId, bool)) {
        add(self.scales, written);
        if let Some(global) = self.global {
            add(global, written && self.q.has_row());
        }
    }
}

impl Quantise {
    pub(super) fn operands(&self, add: &mut impl FnMut(BufferId, bool)) {
        add(self.x, false);
        self.until.into_iter().for_each(|b| add(b, false));
        add(self.out, true);
        self.quant.operands(true, add);
    }
}

/// A product of codes with codes that tensor cores compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaledProduct {
    /// Blocks of 32 along K, scales that are powers of two: `kind::mxf8f6f4`.
    Mx,
    /// FP4 in blocks of 16 along K with e4m3 scales: `kind::mxf4nvf4`. Global scales multiply the sum.
    Nv,
    /// FP8 whose scales cover 128 of K or a multiple: the sum over each 128 is scaled in f32 and added.
    Fp8,
    /// FP8 rows whose scales cover 128 of K or a multiple, and 4-bit codes, which are FP8 numbers, too: the sum over each group
    /// of K that has one scale is scaled in f32 and added.
    Widened,
}

/// Which product rows and weights of two formats make on some tensor cores.
pub type Pairing = fn(ActQuant, QuantFormat) -> Option<ScaledProduct>;

impl ScaledProduct {
    /// How rows and weights of these formats are multiplied; `None` when no machine multiplies them as they are.
    ///
    /// Source: PTX ISA, `tcgen05.mma` and `mma.sync` with `.block_scale`; DeepGEMM for f32 scales.
    pub fn of(rows: ActQuant, weights: QuantFormat) -> Option<ScaledProduct> {
        let a = rows.stored();
        let multiple = |block: u64, of: u64| block == 0 || block.is_multiple_of(of);
        let weight_rows = weights.block_rows == 1;
        let is_fp8 = a.code == Code::E4M3 && weights.code == Code::E4M3;
        match (a.scale, weights.scale) {
            (ScaleCode::E8M0, ScaleCode::E8M0)
                if weight_rows
                    && weights.block_cols == 32
                    && multiple(a.block_cols, 32)
                    && weights.code != Code::Int4 =>
            {
                Some(ScaledProduct::Mx)
            }
            (ScaleCode::E4M3, ScaleCode::E4M3)
                if weight_rows
                    && (a.code, weights.code) == (Code::E2M1, Code::E2M1)
                    && (a.block_cols, weights.block_cols) == (16, 16) =>
            {
                Some(ScaledProduct::Nv)
            }
            (ScaleCode::F32 | ScaleCode::E8M0, ScaleCode::F32 | ScaleCode::BF16 | ScaleCode::F16)
                if is_fp8 && multiple(a.block_cols, 128) && multiple(weights.block_cols, 128) =>
            {
                Some(ScaledProduct::Fp8)
            }
            _ => None,
        }
    }

    /// The same by tensor cores that multiply FP8 and know no block scales: sm_90's. 4-bit codes become FP8 on the way to them.
    ///
    /// | weights | scales |
    /// |---|---|
    /// | FP8 | f32, bf16 or f16, of 128 columns, a multiple, or all |
    /// | FP4, INT4 | any, of 16, 32, 64, 128 columns, a multiple, or all; those of 128 columns are at most 16 bytes |
    pub fn of_fp8(rows: ActQuant, weights: QuantFormat) -> Option<ScaledProduct> {
        if let Some(ScaledProduct::Fp8) = ScaledProduct::of(rows, weights) {
            return Some(ScaledProduct::Fp8);
        }
        let a = rows.stored();
        let whole = |block: u64| block == 0 || block.is_multiple_of(128);
        let in_a_step = |block: u64| matches!(block, 16 | 32 | 64) && 128 / block * weights.scale.bytes() <= 16;
        let fits = a.code == Code::E4M3
            && matches!(a.scale, ScaleCode::F32 | ScaleCode::E8M0)
            && whole(a.block_cols)
            && matches!(weights.code, Code::E2M1 | Code::Int4)
            && (whole(weights.block_cols) || in_a_step(weights.block_cols));
        fits.then_some(ScaledProduct::Widened)
    }
}

impl Segment {
    /// How codes are multiplied with codes; `None` where rows are floats, or for a pair that nothing multiplies.
    pub fn scaled_product(&self, pairing: Pairing) -> Option<ScaledProduct> {
        let rows = self.a_quant.as_ref()?;
        let of = |p: &super::Panel| pairing(rows.q, p.quant.as_ref()?.format);
        let first = of(self.panels.first()?)?;
        self.panels.iter().all(|p| of(p) == Some(first)).then_some(first)
    }
}

impl Contract {
    /// How codes are multiplied with codes, when all segments do it in one way.
    pub fn scaled_product(&self, pairing: Pairing) -> Option<ScaledProduct> {
        let first = self.segments.first()?.scaled_product(pairing)?;
        self.segments.iter().all(|s| s.scaled_product(pairing) == Some(first)).then_some(first)
    }

    /// How instructions with one type of code on each side multiply all segments.
    ///
    /// # Errors
    /// Why they do not.
    pub fn one_scaled_product(&self, pairing: Pairing) -> Result<ScaledProduct, String> {
        let codes = |s: &Segment| -> Vec<Option<Code>> {
            let of_panels = s.panels.iter().map(|p| p.quant.as_ref().map(|q| q.format.code));
            of_panels.chain([s.a_quant.as_ref().map(|q| q.q.code)]).collect()
        };
        let fits = |s: &Segment| {
            let all = codes(s);
            all[..all.len() - 1].iter().all(|c| c == &all[0])
        };
        let first = self.segments.first().map(codes).unwrap_or_default();
        let alike = |s: &Segment| fits(s) && codes(s).last() == first.last() && codes(s)[0] == first[0];
        let product = self.scaled_product(pairing).ok_or("its segments are multiplied in different ways")?;
        if self.segments.iter().all(alike) {
            Ok(product)
        } else {
            Err("its panels or segments have different codes".into())
        }
    }

    /// Whether rows of some segment are codes.
    pub fn has_coded_rows(&self) -> bool {
        self.segments.iter().any(|s| s.a_quant.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_tensor_cores_take_are_known() {
        let format = |code, scale, block_rows, block_cols| QuantFormat { code, scale, block_rows, block_cols };
        let deepseek = format(Code::E4M3, ScaleCode::F32, 128, 128);
        let mxfp4 = format(Code::E2M1, ScaleCode::E8M0, 1, 32);
        let nvfp4 = format(Code::E2M1, ScaleCode::E4M3, 1, 16);
        let int4 = format(Code::Int4, ScaleCode::BF16, 1, 32);
        let cases = [
            (ActQuant::FP8_BLOCK, deepseek, Some(ScaledProduct::Fp8)),
            (ActQuant::FP8_BLOCK_POW2, deepseek, Some(ScaledProduct::Fp8)),
            (ActQuant::FP8_TOKEN, format(Code::E4M3, ScaleCode::F32, 1, 0), Some(ScaledProduct::Fp8)),
            (ActQuant::MXFP8, deepseek, None),
            (ActQuant::MXFP8, mxfp4, Some(ScaledProduct::Mx)),
            (ActQuant::FP8_BLOCK_POW2, mxfp4, Some(ScaledProduct::Mx)),
            (ActQuant::MXFP4, mxfp4, Some(ScaledProduct::Mx)),
            (ActQuant::NVFP4, nvfp4, Some(ScaledProduct::Nv)),
            (ActQuant::NVFP4_ROW, nvfp4, Some(ScaledProduct::Nv)),
            (ActQuant::NVFP4, mxfp4, None),
            (ActQuant::MXFP8, int4, None),
        ];
        for (rows, weights, wanted) in cases {
            assert_eq!(ScaledProduct::of(rows, weights), wanted, "{rows:?} by {weights}");
        }
        let wide_scales = format(Code::Int4, ScaleCode::F32, 1, 16);
        let fp8_cases = [
            (ActQuant::FP8_BLOCK, deepseek, Some(ScaledProduct::Fp8)),
            (ActQuant::FP8_BLOCK_POW2, mxfp4, Some(ScaledProduct::Widened)),
            (ActQuant::FP8_TOKEN, nvfp4, Some(ScaledProduct::Widened)),
            (ActQuant::FP8_BLOCK, int4, Some(ScaledProduct::Widened)),
            (ActQuant::FP8_BLOCK, format(Code::Int4, ScaleCode::F16, 1, 0), Some(ScaledProduct::Widened)),
            (ActQuant::FP8_BLOCK, wide_scales, None),
            (ActQuant::FP8_BLOCK, format(Code::Int4, ScaleCode::BF16, 1, 8), None),
            (ActQuant::MXFP8, mxfp4, None),
            (ActQuant::MXFP4, mxfp4, None),
            (ActQuant::NVFP4, nvfp4, None),
        ];
        for (rows, weights, wanted) in fp8_cases {
            assert_eq!(ScaledProduct::of_fp8(rows, weights), wanted, "{rows:?} by {weights}");
        }
    }
}
