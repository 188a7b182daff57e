//! NVIDIA ModelOpt: two FP4 codes in a byte, and its names of formats.
//!
//! | codes | scales | global scale | format |
//! |---|---|---|---|
//! | `N` U8 `[.., N, K/2]` | `N_scale` F8_E4M3 `[.., N, K/16]` | `N_scale_2`, multiplied | NVFP4 |
//! | `N` U8 `[.., N, K/2]` | `N_scale` F8_E4M3 `[.., N, K/32]` | `N_scale_2` | `W4A8_NVFP4_FP8`; of stacks along the output axis |
//! | `N` U8 `[E, K/2, N]` | `N_weight_scale` F8_E4M3 `[E, K/16, N]` | `N_weight_scale_2` | NVFP4 of stacks, packed along the middle axis |
//! | `N` U8 `[.., N, K/2]` | `N_scale` U8 `[.., N, K/32]` | | MXFP4, also of Quark |
//! | `N` I8 / U8 `[.., N, K/2]` | `stem.scale` e8m0 `[.., N, K/32]` | | MXFP4 of DeepSeek-V4 |
//!
//! A code is in the low nibble before the next one in the high nibble. safetensors' own type F4 counts codes instead of bytes.
//! Sources: ModelOpt (`torch/quantization/qtensor/nvfp4_tensor.py`), DeepSeek-V4's model card.

use super::fp8::{BLOCK, CHANNEL, MXFP4, MXFP8, TENSOR, words};
use super::read::{Found, float_scales};
use super::{ConfigReader, Context, Scheme, compressed_tensors, everywhere};
use crate::config::{CodedSpec, Group, IntegerSpec, Keys, Packing, Pattern, Rule, Spec, ZeroPoints};
use crate::decode::{Blocks, Elements};
use crate::read::safetensors::StoredType;
use moec_ir::diag::Diagnostic;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use std::sync::Arc;

/// NVFP4 by every publisher.
pub(super) const NVFP4: QuantFormat =
    QuantFormat { code: Code::E2M1, scale: ScaleCode::E4M3, block_rows: 1, block_cols: 16 };

/// `quant_method` modelopt, or any config with `quant_algo`.
pub(super) const CONFIG: ConfigReader = ConfigReader {
    is: |method, q| q.get("quant_algo").is_some() || method.starts_with("modelopt"),
    read,
    irrelevant: &[
        "fmt",
        "group_size",
        "has_zero_point",
        "pre_quant_scale",
        "moe_quant_algo",
        "config_groups",
        "quantized_layers",
        "smoothquant_val",
        "awq_block_size",
        "weight_block_size",
    ],
};

fn read(q: &Keys<'_>, context: &Context<'_>) -> Result<Vec<Rule>, Diagnostic> {
    let algo = q.word("quant_algo")?.unwrap_or_default();
    if algo.is_empty() {
        return compressed_tensors::groups(q, context);
    }
    if algo != "mixed_precision" {
        return Ok(everywhere(by_algo(q, &algo)?));
    }
    let mut rules: Vec<Rule> = Vec::new();
    // A mixture that says of no part what it is: the tensors tell.
    if q.get("quantized_layers").is_none() {
        return Ok(everywhere(Spec::Unsaid));
    }
    for (name, layer) in q.rules("quantized_layers")? {
        let Some(layer) = layer.object()? else { continue };
        let spec = by_algo(&layer, &layer.word("quant_algo")?.unwrap_or_default())?;
        layer.finish(&["group_size", "has_zero_point", "pre_quant_scale", "awq_block_size", "weight_block_size"])?;
        let pattern = Pattern::new(name);
        // Thousands of layers, few formats.
        match rules.iter_mut().find(|r| r.spec == spec) {
            Some(Rule { modules: Some(modules), .. }) => modules.push(pattern),
            _ => rules.push(Rule { modules: Some(vec![pattern]), spec }),
        }
    }
    Ok(rules)
}

/// ModelOpt's names of formats, weights first: `W4A8_…` are weights of four bits.
pub(super) fn by_algo(q: &Keys<'_>, algo: &str) -> Result<Spec, Diagnostic> {
    let coded = |format: QuantFormat| {
        let words = format!("{} of ModelOpt, {}", algo.to_uppercase(), words(&format));
        Spec::Coded(CodedSpec { words, format, blocks_said: true })
    };
    let integers = |bits, packing, group| {
        Spec::Integers(IntegerSpec {
            words: format!("{} of ModelOpt", algo.to_uppercase()),
            packing,
            bits,
            group,
            symmetric: Some(true),
            ordered: false,
            zeros: ZeroPoints::AsTheyAre,
            kernels: None,
        })
    };
    let size = q.whole("group_size")?.or(q.whole("awq_block_size")?).and_then(|n| u64::try_from(n).ok());
    // The formats have sizes of their own; a config that gives another is believed, and the tensors have to have it.
    let grouped = |f: QuantFormat| QuantFormat { block_cols: size.filter(|&n| n > 0).unwrap_or(f.block_cols), ..f };
    let columns = size.filter(|&n| n > 0).map_or(Group::Unsaid, Group::Columns);
    Ok(match algo {
        "nvfp4" | "w4a16_nvfp4" | "nvfp4_awq" => coded(grouped(NVFP4)),
        "w4a8_nvfp4_fp8" => coded(grouped(QuantFormat { block_cols: 32, ..NVFP4 })),
        "mxfp4" | "w4a16_mxfp4" | "w4a8_mxfp4_fp8" | "w4a8_mxfp4_mxfp8" => coded(grouped(MXFP4)),
        "mxfp8" => coded(grouped(MXFP8)),
        "fp8" => coded(TENSOR),
        "fp8_per_channel_per_token" | "fp8_pc_pt" => coded(CHANNEL),
        "fp8_pb_wo" | "fp8_block_scales" | "fp8_pb_real" => {
            coded(q.block("weight_block_size")?.map_or(BLOCK, |(block_rows, block_cols)| QuantFormat {
                block_rows,
                block_cols,
                ..BLOCK
            }))
        }
        "w8a8_sq_per_channel" | "int8_sq" | "int8_sq_per_channel" | "w8a16" | "int8_wo" => {
            integers(8, Packing::Bytes, Group::Row)
        }
        "int4_awq" | "w4a16_awq" | "w4a8_awq" | "w4a16" | "int4_wo" => integers(4, Packing::RowPairs, columns),
        _ => Spec::Unread(format!("`{}` of ModelOpt", algo.to_uppercase())),
    })
}

/// The tensors.
pub(super) const SCHEME: Scheme = Scheme {
    name: "FP4, two codes in a byte",
    codes: |name| Some(name.to_string()),
    takes: |dtype| matches!(dtype, StoredType::U8 | StoredType::I8 | StoredType::F4),
    read: read_codes,
};

fn read_codes<'a>(at: &Found<'a, '_>) -> Result<Option<Elements<'a>>, Diagnostic> {
    let (name, stem) = (at.name, at.stem());
    let names = [format!("{name}_scale"), format!("{name}_weight_scale"), format!("{stem}.scale")];
    let Some((scales_name, scales)) = at.first(&names)? else {
        // Bytes that nothing calls quantised may be integers of another scheme, which asks for its own scales.
        return match at.coded() {
            Some(_) => Err(at
                .need(&names, "F8_E4M3 for 16 codes, or e8m0 for 32")
                .err()
                .unwrap_or_else(|| at.unread("without scales"))),
            None => Ok(None),
        };
    };
    let format = match scales.dtype {
        StoredType::F8_E4M3 => nvfp4_of(at),
        StoredType::U8 | StoredType::F8_E8M0 => MXFP4,
        other if float_scales(other).is_some() => return Ok(None),
        _ => return Err(at.fits_not(&scales_name, &scales, "scales of FP4 are F8_E4M3 or e8m0 bytes")),
    };
    two_in_a_byte(at, format, &scales_name, scales).map(Some)
}

/// NVFP4, with as many codes to a scale as the config says.
fn nvfp4_of(at: &Found<'_, '_>) -> QuantFormat {
    let said = at.coded().filter(|c| c.format.code == Code::E2M1 && c.format.has_global());
    said.map_or(NVFP4, |c| QuantFormat { block_cols: c.format.block_cols, ..NVFP4 })
}

/// FP4 codes and their scales: packed along the last axis, or along the middle one of a stack.
fn two_in_a_byte<'a>(
    at: &Found<'a, '_>,
    format: QuantFormat,
    scales_name: &str,
    scales: crate::read::safetensors::TensorView<'a>,
) -> Result<Elements<'a>, Diagnostic> {
    let bits = at.codes.dtype.bits();
    let &[ref leading @ .., rows, last] = at.codes.shape else {
        return Err(at.fits_not(scales_name, &scales, "quantised weights have at least two axes"));
    };
    let group = format.block_cols.max(1);
    let scale_grid = scales.shape.strip_prefix(leading);
    let codes_in = |n: u64| n.saturating_mul(bits) / 4;
    let along_last = scale_grid == Some(&[rows, codes_in(last).div_ceil(group)]);
    let along_middle = bits == 8 && scale_grid == Some(&[codes_in(rows).div_ceil(group), last]);
    let (n, k, transposed) = match (along_last, along_middle) {
        (true, _) => (rows, codes_in(last), false),
        (false, true) => (last, codes_in(rows), true),
        (false, false) => {
            let why = format!("one scale for every {group} codes along an axis is needed");
            return Err(at.fits_not(scales_name, &scales, &why));
        }
    };
    at.check_coded(&format, n, k)?;
    let matrices = leading.iter().product::<u64>();
    let globals = match format.has_global() {
        true => at.globals(&format!("{scales_name}_2"), matrices, false)?,
        false => Vec::new(),
    };
    let grid_cols = k.div_ceil(group);
    let (codes, grid) = if transposed {
        ([rows.saturating_mul(last), 1, last], [grid_cols.saturating_mul(last), 1, last])
    } else {
        (Blocks::dense_codes(&format, n, k), Blocks::dense_scales(&format, n, k))
    };
    Ok(Elements::Blocks(Arc::new(Blocks {
        format,
        leading: leading.to_vec(),
        n,
        k,
        transposed,
        codes: (at.codes.data, codes),
        scales: (scales.data, grid),
        globals,
        column_scales: at.column_scales(k)?,
        scales_name: scales_name.to_string(),
    })))
}
