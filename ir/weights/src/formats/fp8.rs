//! FP8: bytes of e4m3 or e5m2, with one scale for a matrix, a row, or a block of rows and columns.
//!
//! | codes | scales | by |
//! |---|---|---|
//! | `N` F8_E4M3, F8_E5M2 | `N_scale_inv` | DeepSeek, MiniMax, Qwen: blocks of `weight_block_size`, ragged edges cut short |
//! | | `N_scale` | compressed-tensors, ModelOpt, Quark: per tensor, channel or block; e8m0 for 32 columns is MXFP8 |
//! | | `N_weight_scale` | ModelOpt, of stacks |
//! | | `stem.scale` | DeepSeek's own files |
//! | | `stem.qscale_weight` | Mistral's own files |
//!
//! A scale multiplies, whatever its name says. Sources: DeepSeek-V3 (`inference/kernel.py`, `weight_dequant`), OCP MX 1.0.

use super::read::{Found, float_scales};
use super::shapes::{Grid, covers, grid, plausible};
use super::{ConfigReader, Context, Scheme, everywhere};
use crate::config::{CodedSpec, Keys, Pattern, Rule, Spec};
use crate::decode::{Blocks, Elements};
use crate::read::safetensors::StoredType;
use moec_ir::diag::Diagnostic;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use std::sync::Arc;

pub(super) const TENSOR: QuantFormat = format(0, 0);
pub(super) const CHANNEL: QuantFormat = format(1, 0);
pub(super) const BLOCK: QuantFormat = format(128, 128);
pub(super) const MXFP8: QuantFormat =
    QuantFormat { code: Code::E4M3, scale: ScaleCode::E8M0, block_rows: 1, block_cols: 32 };
pub(super) const MXFP4: QuantFormat =
    QuantFormat { code: Code::E2M1, scale: ScaleCode::E8M0, block_rows: 1, block_cols: 32 };

const fn format(block_rows: u64, block_cols: u64) -> QuantFormat {
    QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows, block_cols }
}

/// `quant_method` fp8 (blocks of `weight_block_size`, else one scale for a matrix), fbgemm_fp8 (rows), mxfp8 and nvfp4.
pub(super) const CONFIG: ConfigReader = ConfigReader {
    is: |method, _| matches!(method, "fp8" | "fbgemm-fp8" | "mxfp8" | "nvfp4"),
    read: |q, context| {
        let method = q.word("quant_method")?.unwrap_or_default();
        let blocks = q.block("weight_block_size")?;
        let format = match (method.as_str(), blocks) {
            ("nvfp4", _) => super::modelopt::NVFP4,
            ("mxfp8", _) | (_, Some((1, 32))) => MXFP8,
            ("fp8", Some((rows, cols))) => format(rows, cols),
            ("fp8", None) => TENSOR,
            _ => CHANNEL,
        };
        let code = code(q, "fmt")?;
        let format = if format.code == Code::E4M3 { QuantFormat { code, ..format } } else { format };
        let words = format!("{} ({})", method.to_uppercase(), words(&format));
        let blocks_said = method != "fp8" || blocks.is_some();
        let spec = Spec::Coded(CodedSpec { words, format, blocks_said });
        let mut rules = everywhere(spec);
        // DeepSeek-V4 says `fp8` of its linear layers, and of its routed experts, elsewhere, that they are MXFP4.
        if context.expert_dtype == Some("fp4") {
            let words = "MXFP4 experts".to_string();
            let spec = Spec::Coded(CodedSpec { words, format: MXFP4, blocks_said: true });
            rules.insert(0, Rule { modules: Some(vec![Pattern::new("experts.*")]), spec });
        }
        Ok(rules)
    },
    irrelevant: &["activation_scale_ub", "weight_per_tensor", "act_per_tensor", "is_checkpoint_fp8_serialized"],
};

/// `quantization` of Mistral's `params.json`: one format for all linear layers.
pub(super) const MISTRAL: ConfigReader = ConfigReader {
    is: |_, q| q.get("qformat_weight").is_some(),
    read: |q, _: &Context<'_>| {
        let named = q.word("qformat_weight")?.unwrap_or_default();
        match named.as_str() {
            "fp8_e4m3" => {
                let words = "FP8 with one scale a matrix".to_string();
                Ok(everywhere(Spec::Coded(CodedSpec { words, format: TENSOR, blocks_said: true })))
            }
            _ => Err(super::unread(q, &named)),
        }
    },
    irrelevant: &["qscheme_act", "qscheme_weight", "qformat_act"],
};

/// The code that `key` names; e4m3 where it names none.
fn code(q: &Keys<'_>, key: &str) -> Result<Code, Diagnostic> {
    match q.word(key)?.as_deref() {
        None | Some("e4m3" | "float8_e4m3fn" | "e4m3fn") => Ok(Code::E4M3),
        Some("e5m2" | "float8_e5m2") => Ok(Code::E5M2),
        Some(_) => Err(q.wrong(key, "\"e4m3\" or \"e5m2\"")),
    }
}

/// The blocks of a format in words.
pub(super) fn words(f: &QuantFormat) -> String {
    match (f.block_rows, f.block_cols) {
        (0, 0) => "one scale a matrix".to_string(),
        (1, 0) => "one scale a row".to_string(),
        (1, cols) => format!("a scale for {cols} columns"),
        (rows, cols) => format!("blocks of {rows} × {cols}"),
    }
}

/// The tensors.
pub(super) const SCHEME: Scheme = Scheme {
    name: "FP8",
    codes: |name| Some(name.to_string()),
    takes: |dtype| matches!(dtype, StoredType::F8_E4M3 | StoredType::F8_E5M2),
    read: |at| read(at).map(Some),
};

/// The scales of ModelOpt's stacks `[E, K, N]`: one an expert, whatever the config says, or `[E, N/128, 1, K/128, 1]`, the blocks of
/// the transpose.
fn stack_grid(leading: &[u64], (n, k): (u64, u64), scales: &[u64], blocks: &[(u64, u64)]) -> Option<Grid> {
    if let Some(&[a, 1, b, 1]) = scales.strip_prefix(leading) {
        return blocks.iter().find(|&&(rows, cols)| rows > 0 && cols > 0).and_then(|&(rows, cols)| {
            let fits = a == k.div_ceil(rows) && b == n.div_ceil(cols);
            fits.then_some(Grid { rows: cols, cols: rows, steps: [a * b, 1, b] })
        });
    }
    // Blocks in two dimensions are no scale an expert.
    let in_blocks = blocks.iter().any(|&(rows, cols)| rows > 1 && cols > 1);
    let with_expert = [blocks, if in_blocks { &[] } else { &[(0, 0)] }].concat();
    grid(leading, (n, k), scales, &with_expert)
}

fn read<'a>(at: &Found<'a, '_>) -> Result<Elements<'a>, Diagnostic> {
    let code = if at.codes.dtype == StoredType::F8_E5M2 { Code::E5M2 } else { Code::E4M3 };
    let (name, stem) = (at.name, at.stem());
    let names = [
        format!("{name}_scale_inv"),
        format!("{name}_scale"),
        format!("{name}_weight_scale"),
        format!("{stem}.scale"),
        format!("{stem}.qscale_weight"),
    ];
    let (scales_name, scales) = at.need(&names, "floats or e8m0 bytes, one for each matrix, row or block")?;
    let &[ref leading @ .., n, k] = at.codes.shape else {
        return Err(at.fits_not(&scales_name, &scales, "quantised weights have at least two axes"));
    };
    let scale = match scales.dtype {
        StoredType::U8 | StoredType::F8_E8M0 => ScaleCode::E8M0,
        other => float_scales(other)
            .ok_or_else(|| at.fits_not(&scales_name, &scales, "scales of FP8 are F32, BF16, F16, or e8m0 bytes"))?,
    };
    // DeepSeek's scales of blocks are powers of two or floats under one config; bytes without a type of their own, and scales
    // of rows and matrices, are powers of two only where the config says so.
    let of_blocks = |c: &CodedSpec| {
        let (rows, cols) = (c.format.block_rows, c.format.block_cols);
        scales.dtype == StoredType::F8_E8M0 && cols > 0 || (rows, cols) == (1, 32)
    };
    if scale == ScaleCode::E8M0
        && at.coded().is_some_and(|c| c.format.scale != ScaleCode::E8M0 && c.blocks_said && !of_blocks(c))
    {
        return Err(at.fits_not(&scales_name, &scales, "the config says FP8 whose scales are floats"));
    }
    let said = at.coded().filter(|c| c.blocks_said).map(|c| (c.format.block_rows, c.format.block_cols));
    // The names of DeepSeek's scales say that there are blocks: a grid of one is not one scale for all.
    let blocks_only = scales_name.ends_with("_scale_inv") || scales_name.ends_with(".scale");
    let usual: &[(u64, u64)] = match (scale, blocks_only) {
        (ScaleCode::E8M0, true) => &[(1, 32), (128, 128)],
        (ScaleCode::E8M0, false) => &[(1, 32)],
        (_, true) => &[(128, 128)],
        (_, false) => &[(0, 0), (1, 0)],
    };
    let blocks = said.map_or(usual.to_vec(), |b| vec![b]);
    if let Some((rows, cols)) =
        said.filter(|&(rows, cols)| rows > 1 && !plausible(rows, n) || cols > 0 && !plausible(cols, k))
    {
        let why = format!("no tool writes blocks of {rows} × {cols} for {n} × {k}");
        return Err(at.fits_not(&scales_name, &scales, &why));
    }
    let of_stack = !leading.is_empty() && scales_name.ends_with("_weight_scale");
    let found = match of_stack {
        true => stack_grid(leading, (n, k), scales.shape, &blocks),
        false => grid(leading, (n, k), scales.shape, &blocks),
    };
    let Some(grid) = found else {
        let format = |(block_rows, block_cols)| QuantFormat { code, scale, block_rows, block_cols };
        let why = match said {
            Some(b) => {
                let (rows, cols) = format(b).scale_grid(n, k);
                format!("the config says {}, which are {rows} × {cols} scales for {n} × {k}", words(&format(b)))
            }
            None => {
                "without a config that gives the blocks: one scale for all or one a row; 128 × 128 where the name is DeepSeek's".to_string()
            }
        };
        return Err(at.fits_not(&scales_name, &scales, &why));
    };
    let format = QuantFormat { code, scale, block_rows: grid.rows, block_cols: grid.cols };
    // ModelOpt says "per channel" of stacks that have one scale an expert.
    let said_of_stack = said.filter(|_| of_stack && (grid.rows, grid.cols) == (0, 0)).unwrap_or((grid.rows, grid.cols));
    at.check_coded(&QuantFormat { block_rows: said_of_stack.0, block_cols: said_of_stack.1, ..format }, n, k)?;
    let matrices = leading.iter().product();
    if !covers(&format, matrices, (n, k), grid.steps, scales.data.len()) {
        return Err(at.fits_not(&scales_name, &scales, "there are too few scales"));
    }
    Ok(Elements::Blocks(Arc::new(Blocks {
        format,
        leading: leading.to_vec(),
        n,
        k,
        transposed: false,
        codes: (at.codes.data, Blocks::dense_codes(&format, n, k)),
        scales: (scales.data, grid.steps),
        globals: Vec::new(),
        column_scales: at.column_scales(k)?,
        scales_name,
    })))
}
