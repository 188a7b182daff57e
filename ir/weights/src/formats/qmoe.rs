//! Codes of `com.microsoft::QMoE` nodes: `(code − zero) · scale`, codes and zero points without a sign.
//!
//! | codes | scales | zero points |
//! |---|---|---|
//! | `N.qmoe4` U8 `[E, N, K/2]`, element `2j` in the low half of byte `j` | `N.qmoe_scales` `[E, N]` or `[E, N, G]`, floats | `N.qmoe_zeros` U8 `[E, ⌈N/2⌉]` or `[E, N, ⌈G/2⌉]`; 8 where there are none |
//! | `N.qmoe8` U8 `[E, N, K]` | as above | U8 `[E, N]` or `[E, N, G]`; 128 |
//!
//! The names are given by `read/onnx/qmoe.rs`. Source: ONNX Runtime 1.32, the schema of QMoE.

use super::Scheme;
use super::read::{Found, float_scales};
use crate::config::Packing;
use crate::decode::integers::Zeros;
use crate::decode::{Elements, Integers};
use crate::read::safetensors::StoredType;
use moec_ir::diag::Diagnostic;
use std::sync::Arc;

/// Codes of four bits.
pub(super) const FOUR: Scheme = Scheme {
    name: "QMoE, 4 bits",
    codes: |name| Some(format!("{name}.qmoe4")),
    takes: |_| true,
    read: |at| read(at, 4),
};

/// Codes of eight.
pub(super) const EIGHT: Scheme = Scheme {
    name: "QMoE, 8 bits",
    codes: |name| Some(format!("{name}.qmoe8")),
    takes: |_| true,
    read: |at| read(at, 8),
};

fn read<'a>(at: &Found<'a, '_>, bits: u32) -> Result<Option<Elements<'a>>, Diagnostic> {
    let (name, scales) = at.need(&[format!("{}.qmoe_scales", at.name)], "floats, one for each row or group")?;
    let &[experts, n, row_bytes] = at.codes.shape else {
        return Err(at.fits_not(&name, &scales, "codes have three axes"));
    };
    // Words of four bytes are read.
    if at.codes.dtype != StoredType::U8 || !row_bytes.is_multiple_of(4) {
        return Err(at.unread("in rows that are no whole words of bytes"));
    }
    let k = row_bytes.saturating_mul(8) / u64::from(bits);
    let n_groups = match *scales.shape {
        [e, rows] if (e, rows) == (experts, n) => 1,
        [e, rows, groups] if (e, rows) == (experts, n) && groups > 0 && k.is_multiple_of(groups) => groups,
        _ => return Err(at.fits_not(&name, &scales, "one scale for each row, or for each group of a row, is needed")),
    };
    let scale = float_scales(scales.dtype).ok_or_else(|| at.fits_not(&name, &scales, "scales are floats"))?;
    let whole_rows = scales.shape.len() == 2;
    let zeros_name = format!("{}.qmoe_zeros", at.name);
    let zeros = match at.tensor(&zeros_name)? {
        None => Zeros::All(1 << (bits - 1)),
        Some(z) => {
            let packed = |count: u64| (count * u64::from(bits)).div_ceil(8);
            let wanted = if whole_rows { vec![experts, packed(n)] } else { vec![experts, n, packed(n_groups)] };
            if z.dtype != StoredType::U8 || z.shape != wanted {
                return Err(at.fits_not(&zeros_name, &z, &format!("zero points are U8{wanted:?}")));
            }
            Zeros::Unsigned { bytes: z.data, cols: wanted[wanted.len() - 1], along_rows: whole_rows }
        }
    };
    Ok(Some(Elements::Integers(Arc::new(Integers {
        leading: vec![experts],
        n,
        k,
        packing: Packing::Rows,
        bits,
        dense: false,
        codes: at.codes.data,
        code_cols: row_bytes / 4,
        scales: scales.data,
        scale,
        by_group: false,
        zeros,
        n_groups,
        group_size: k / n_groups,
        one_row: false,
        group_of: None,
        column_scales: Vec::new(),
        global: 1.0,
        scales_name: name,
    }))))
}
