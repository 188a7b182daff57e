//! Integers in bytes: INT8 of compressed-tensors and ModelOpt, and ModelOpt's INT4, two rows in a byte.
//!
//! | codes | scales | zero points |
//! |---|---|---|
//! | `N` I8 `[.., N, K]` | `N_scale`, `N_weight_scale` `[N]`, `[N, G]` or one | `N_zero_point` I8, one for each scale |
//! | `N` U8 `[N/2, K]`, even rows in the low nibbles, two's complement | `N_scale` `[N, K/group]`, of W4A8 also `N_scale_2` for all | none |
//!
//! Sources: compressed-tensors (`compressors/int_quantized`), ModelOpt (`export/quant_utils.py`).

use super::Scheme;
use super::compressed_tensors::group_size;
use super::read::{Found, float_scales};
use crate::config::{Declared, Packing, Spec};
use crate::decode::integers::Zeros;
use crate::decode::{Elements, Integers};
use crate::read::safetensors::StoredType;
use moec_ir::diag::Diagnostic;
use std::sync::Arc;

/// The tensors.
pub(super) const SCHEME: Scheme = Scheme {
    name: "integers in bytes",
    codes: |name| Some(name.to_string()),
    takes: |dtype| matches!(dtype, StoredType::I8 | StoredType::U8),
    read,
};

/// The scale over all others that ModelOpt's W4A8 has (`N_scale_2`), or 1.
fn second_scale(at: &Found<'_, '_>, scales_name: &str, pairs: bool) -> Result<f32, Diagnostic> {
    let name = format!("{scales_name}_2");
    let needed = pairs && at.integers().is_some_and(|i| i.words.starts_with("W4A8"));
    if !needed && !at.checkpoint.contains(&name) {
        return Ok(1.0);
    }
    Ok(at.globals(&name, 1, false)?.first().copied().unwrap_or(1.0))
}

fn read<'a>(at: &Found<'a, '_>) -> Result<Option<Elements<'a>>, Diagnostic> {
    let names = [format!("{}_scale", at.name), format!("{}_weight_scale", at.name)];
    let Some((scales_name, scales)) = at.first(&names)? else {
        // DeepSeek's scales stand beside two codes in a byte.
        let others = at.checkpoint.contains(&format!("{}.scale", at.stem()));
        let wanted = at.integers().is_some() || at.codes.dtype == StoredType::I8 && !others;
        return if wanted { at.need(&names, "floats, one for each row or group").map(|_| None) } else { Ok(None) };
    };
    // Other scales belong to FP4.
    let Some(scale) = float_scales(scales.dtype) else { return Ok(None) };
    let pairs = at.codes.dtype == StoredType::U8;
    let spec = match at.declared {
        Declared::As(Spec::Unread(why)) => return Err(at.unread(&format!("as {why}"))),
        Declared::As(Spec::Coded(_)) => return Err(at.contradicts("integers")),
        Declared::As(Spec::Integers(i)) if (i.packing == Packing::RowPairs) != pairs => {
            return Err(at.contradicts(if pairs { "two codes in a byte" } else { "one code in a byte" }));
        }
        Declared::As(_) | Declared::NoConfig | Declared::Left => at.integers(),
    };
    if pairs && spec.is_none() {
        return Err(at.needs_config("what its bytes are"));
    }
    let &[ref leading @ .., rows, k] = at.codes.shape else {
        return Err(at.fits_not(&scales_name, &scales, "quantised weights have at least two axes"));
    };
    let n = if pairs { rows.saturating_mul(2) } else { rows };
    let grid = match scales.shape.strip_prefix(leading) {
        Some([] | [1]) => Some((1, 1)),
        Some(&[rows]) => Some((rows, 1)),
        Some(&[rows, groups]) => Some((rows, groups)),
        _ if scales.shape.iter().all(|&a| a == 1) => Some((1, 1)),
        _ => None,
    };
    let (scale_rows, n_groups) = grid.filter(|&(r, g)| (r == n || r == 1 && g == 1) && g > 0).ok_or_else(|| {
        at.fits_not(&scales_name, &scales, "one scale for all, for each row, or for each group is needed")
    })?;
    let group_size = group_size(at, spec, &scales_name, &scales, (k, scale_rows, n, n_groups))?;
    let zero_name = format!("{}_zero_point", at.name);
    let zeros = match (at.tensor(&zero_name)?, spec.and_then(|s| s.symmetric)) {
        (None, Some(false)) => {
            let expected = format!("I8[{scale_rows}, {n_groups}]");
            return Err(at.missing("quantised-zero-point-missing", "its zero points are", &[zero_name], &expected));
        }
        (None, _) => Zeros::All(0),
        (Some(z), Some(true)) if z.data.iter().any(|&b| b != 0) => {
            let what = format!("stored with zero points (`{zero_name}`, {}) that are not all zero", z.describe());
            return Err(at.contradicts(&what));
        }
        (Some(_), Some(true)) => Zeros::All(0),
        (Some(z), _)
            if z.dtype == StoredType::I8 && z.shape == scales.shape && leading.is_empty() && scale_rows == n =>
        {
            Zeros::Bytes(z.data)
        }
        (Some(z), _) => return Err(at.fits_not(&zero_name, &z, "zero points are I8, one for each scale")),
    };
    Ok(Some(Elements::Integers(Arc::new(Integers {
        leading: leading.to_vec(),
        n,
        k,
        packing: if pairs { Packing::RowPairs } else { Packing::Bytes },
        bits: if pairs { 4 } else { 8 },
        dense: false,
        codes: at.codes.data,
        code_cols: k,
        scales: scales.data,
        scale,
        by_group: false,
        zeros,
        n_groups,
        group_size,
        one_row: scale_rows != n,
        group_of: None,
        column_scales: at.column_scales(k)?,
        global: second_scale(at, &scales_name, pairs)?,
        scales_name,
    }))))
}
