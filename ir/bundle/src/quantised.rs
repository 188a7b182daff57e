//! Quantised tensors of a checkpoint, found under the name of the float tensor that they stand for.
//!
//! Families name float tensors (`….gate_proj.weight`). A quantised checkpoint has codes and scales under names that
//! follow a convention of its publisher, not of the family; this is the table of conventions:
//!
//! | codes | scales | global scale | format |
//! |---|---|---|---|
//! | `N` F8_E4M3 / F8_E5M2 | `N_scale_inv`, `N_scale`, DeepSeek's `stem.scale` or Mistral's `stem.qscale_weight` | | FP8 per tensor, per channel, or in blocks: those of the config, else 128×128; ragged edges cut short |
//! | `N` F8_E4M3 | `N_scale` e8m0 `[.., N, K/32]` | | MXFP8 |
//! | `N` U8 `[.., N, K/2]` | `N_scale` F8_E4M3 | `N_scale_2`, multiplied | NVFP4 of ModelOpt |
//! | `N_packed` U8 | `N_scale` F8_E4M3 | `N_global_scale`, divided by | NVFP4 of compressed-tensors |
//! | `N_packed` U8 | `N_scale` U8 | | MXFP4 of compressed-tensors |
//! | `N` I8 / U8 `[.., N, K/2]` | `stem.scale` e8m0 | | MXFP4 of DeepSeek-V4 |
//! | `N_blocks` U8 `[.., N, K/32, 16]` | `N_scales` U8 | | MXFP4 of gpt-oss; the float tensor is the transpose `[.., K, N]` |
//! | `N_packed` I32 `[.., N, K/8]` | `N_scale` | | INT4 of compressed-tensors, symmetric |
//!
//! `stem` is `N` without `.weight`. Integers with zero points, GPTQ and AWQ are in [`crate::integers`].

use crate::checkpoint::Checkpoint;
use crate::safetensors::{StoredType, TensorView};
use moec_ir::diag::Diagnostic;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};

/// Rows and columns of an FP8 block.
const FP8_BLOCK: u64 = 128;

/// A stack of quantised `[n, k]` matrices.
#[derive(Clone, Debug)]
pub struct Quantised<'a> {
    /// How codes and scales are read.
    pub format: QuantFormat,
    /// Matrices of the stack.
    pub matrices: u64,
    /// Rows of a matrix.
    pub n: u64,
    /// Columns of a matrix, in elements.
    pub k: u64,
    /// Whether the float tensor is the transpose of the stored matrices.
    pub transposed: bool,
    /// Leading axes of the stack.
    pub leading: Vec<u64>,
    codes: &'a [u8],
    scales: &'a [u8],
    /// One for all matrices, or one for each.
    globals: Vec<f32>,
}

/// The names under which a quantised form of `name` may be stored, codes first.
fn code_names(name: &str) -> [String; 2] {
    [format!("{name}_blocks"), format!("{name}_packed")]
}

/// Whether the checkpoint has `name`, as it is or quantised.
pub fn contains(checkpoint: &Checkpoint, name: &str) -> bool {
    checkpoint.contains(name)
        || code_names(name).iter().any(|n| checkpoint.contains(n))
        || crate::integers::contains(checkpoint, name)
}

/// The quantised tensor that stands for the float tensor `name`; `None` when `name` is stored as it is, or not at all.
///
/// # Errors
/// `quantised-scale-missing` and `quantised-scale-mismatch`, and those of [`Checkpoint::tensor`].
pub fn find<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<Option<Quantised<'a>>, Diagnostic> {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    let scale = |names: &[String]| -> Result<Option<(String, TensorView<'a>)>, Diagnostic> {
        for n in names {
            if let Some(t) = checkpoint.tensor(n)? {
                return Ok(Some((n.clone(), t)));
            }
        }
        Ok(None)
    };
    if let Some(codes) = checkpoint.tensor(name)? {
        let code = match codes.dtype {
            StoredType::F8_E4M3 => Code::E4M3,
            StoredType::F8_E5M2 => Code::E5M2,
            StoredType::U8 | StoredType::I8 => Code::E2M1,
            _ => return Ok(None),
        };
        let names = [
            format!("{name}_scale_inv"),
            format!("{name}_scale"),
            format!("{stem}.scale"),
            format!("{stem}.qscale_weight"),
        ];
        let (scale_name, scales) = scale(&names)?.ok_or_else(|| scale_missing(name, &codes, &names))?;
        scaled_inputs(checkpoint, stem)?;
        let global = checkpoint.tensor(&format!("{name}_scale_2"))?.map(|g| (g, false));
        let blocks_only = scale_name.ends_with("_scale_inv") || scale_name.ends_with(".scale");
        let wanted = match code {
            Code::E2M1 => Blocks::ByShape,
            _ => Blocks::Fp8 { hint: checkpoint.hints().block, blocks_only },
        };
        return Quantised::new(name, code, codes, (&scale_name, scales), global, wanted).map(Some);
    }
    if let Some(codes) = checkpoint.tensor(&format!("{name}_blocks"))? {
        let scale_name = format!("{name}_scales");
        let scales = checkpoint
            .tensor(&scale_name)?
            .ok_or_else(|| scale_missing(name, &codes, std::slice::from_ref(&scale_name)))?;
        return Quantised::new(name, Code::E2M1, codes, (&scale_name, scales), None, Blocks::GptOss).map(Some);
    }
    if let Some(codes) = checkpoint.tensor(&format!("{name}_packed"))? {
        let code = if codes.dtype == StoredType::I32 { Code::Int4 } else { Code::E2M1 };
        let scale_name = format!("{name}_scale");
        let scales = checkpoint
            .tensor(&scale_name)?
            .ok_or_else(|| scale_missing(name, &codes, std::slice::from_ref(&scale_name)))?;
        let global = checkpoint.tensor(&format!("{name}_global_scale"))?.map(|g| (g, true));
        return Quantised::new(name, code, codes, (&scale_name, scales), global, Blocks::ByShape).map(Some);
    }
    Ok(None)
}

/// How the size of a block is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocks {
    /// The blocks of the config, or 128 × 128, the last ones cut short; or by shape.
    Fp8 {
        /// The blocks of the config.
        hint: Option<(u64, u64)>,
        /// The name of the scales says that there are blocks: a grid of one is not one scale for all.
        blocks_only: bool,
    },
    /// From the shape of the scales: one for all, one a row, or equal groups along K.
    ByShape,
    /// Groups of 32 that are an axis of the codes.
    GptOss,
}

impl<'a> Quantised<'a> {
    fn new(
        name: &str,
        code: Code,
        codes: TensorView<'a>,
        (scale_name, scales): (&str, TensorView<'a>),
        global: Option<(TensorView<'a>, bool)>,
        blocks: Blocks,
    ) -> Result<Quantised<'a>, Diagnostic> {
        let mismatch = |why: String| {
            Diagnostic::input(
                "quantised-scale-mismatch",
                format!(
                    "the scales `{scale_name}`, {}, do not fit the codes of `{name}`, {}, in `{}`",
                    scales.describe(),
                    codes.describe(),
                    codes.file.display()
                ),
            )
            .note(why)
            .help("see `moec explain quantised-scale-mismatch` for the formats that are read")
        };
        // Bytes of a row of codes, whatever they were stored as.
        let element_bytes = if codes.dtype == StoredType::I32 { 4 } else { 1 };
        let mut shape = codes.shape.to_vec();
        if blocks == Blocks::GptOss {
            let bytes = shape.pop().filter(|&b| b == 16);
            let groups = bytes.and_then(|_| shape.pop());
            let groups = groups.ok_or_else(|| mismatch("blocks are 16 bytes, 32 codes, along the last axis".into()))?;
            shape.push(groups.saturating_mul(16));
        }
        let (Some(row), Some(n)) = (shape.pop(), shape.pop()) else {
            return Err(mismatch("quantised weights have at least two axes".into()));
        };
        let row_bytes = row.saturating_mul(element_bytes);
        let k = row_bytes.saturating_mul(8) / code.bits();
        let matrices = shape.iter().try_fold(1u64, |a, &b| a.checked_mul(b)).unwrap_or(u64::MAX);
        let scale = match scales.dtype {
            StoredType::F32 => ScaleCode::F32,
            StoredType::BF16 => ScaleCode::BF16,
            StoredType::F16 => ScaleCode::F16,
            StoredType::F8_E4M3 => ScaleCode::E4M3,
            StoredType::U8 | StoredType::F8_E8M0 => ScaleCode::E8M0,
            _ => return Err(mismatch("scales are F32, BF16, F16, F8_E4M3, or e8m0 bytes".into())),
        };
        if code == Code::E2M1 && !matches!(scale, ScaleCode::E4M3 | ScaleCode::E8M0) {
            return Err(mismatch("scales of FP4 are F8_E4M3 or e8m0 bytes".into()));
        }
        let count = scales.shape.iter().try_fold(1u64, |a, &b| a.checked_mul(b)).unwrap_or(u64::MAX);
        // Rows and columns of the grid of one matrix, where the scales have such axes.
        let grid = match scales.shape {
            [.., rows, cols] => Some((*rows, *cols)),
            _ => None,
        };
        let (block_rows, block_cols) = match blocks {
            Blocks::GptOss => (1, 32),
            Blocks::Fp8 { hint, blocks_only } => fp8_block(hint, scale, grid, (n, k))
                .or_else(|| block_of(scale, count, matrices, n, k).filter(|_| !(blocks_only && grid == Some((1, 1)))))
                .ok_or_else(|| {
                    mismatch("one scale for all, one for each row, or one for each block of 128 × 128".into())
                })?,
            Blocks::ByShape => block_of(scale, count, matrices, n, k)
                .ok_or_else(|| mismatch("one scale for all, one for each row, or equal groups along K".into()))?,
        };
        let format = QuantFormat { code, scale, block_rows, block_cols };
        let (grid_rows, grid_cols) = format.scale_grid(n, k);
        let expected = matrices.checked_mul(grid_rows).and_then(|c| c.checked_mul(grid_cols));
        if expected != Some(count) {
            return Err(mismatch(format!(
                "{matrices} matrices of {n} × {k} need {grid_rows} × {grid_cols} scales each"
            )));
        }
        let globals = match global {
            None => vec![1.0],
            Some((g, divide)) => {
                let bad = g.dtype != StoredType::F32 || g.data.len() % 4 != 0 || g.data.is_empty();
                let values: Vec<f32> =
                    g.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                if bad || (values.len() != 1 && values.len() as u64 != matrices) {
                    return Err(mismatch(format!("the global scale is {}; one F32 is needed", g.describe())));
                }
                values.into_iter().map(|v| if divide { 1.0 / v } else { v }).collect()
            }
        };
        let transposed = blocks == Blocks::GptOss;
        Ok(Quantised {
            format,
            matrices,
            n,
            k,
            transposed,
            leading: shape,
            codes: codes.data,
            scales: scales.data,
            globals,
        })
    }

    /// The shape of the stored matrices: `[leading.., n, k]`.
    pub fn shape(&self) -> Vec<u64> {
        self.leading.iter().copied().chain([self.n, self.k]).collect()
    }

    /// The codes of a row, counted through the matrices.
    pub(crate) fn code_row(&self, row: u64) -> &'a [u8] {
        let bytes = self.format.code.bytes(self.k) as usize;
        &self.codes[row as usize * bytes..(row as usize + 1) * bytes]
    }

    /// The row of the grids of scales, counted through the matrices, that a row of the matrices has.
    pub(crate) fn scale_row(&self, row: u64) -> u64 {
        let (grid_rows, _) = self.format.scale_grid(self.n, self.k);
        row / self.n * grid_rows + (row % self.n).checked_div(self.format.block_rows).unwrap_or(0)
    }

    /// The number of the scale of an element.
    pub(crate) fn scale_index(&self, row: u64, col: u64) -> u64 {
        let (_, grid_cols) = self.format.scale_grid(self.n, self.k);
        self.scale_row(row) * grid_cols + col.checked_div(self.format.block_cols).unwrap_or(0)
    }

    /// A scale as it is stored.
    pub(crate) fn scale_bytes(&self, index: u64) -> &'a [u8] {
        let bytes = self.format.scale.bytes() as usize;
        &self.scales[index as usize * bytes..(index as usize + 1) * bytes]
    }

    /// A scale.
    pub(crate) fn scale_value(&self, index: u64) -> f32 {
        self.format.scale.decode(self.scales, index as usize)
    }

    /// The global scale of the matrix that a row is in.
    pub(crate) fn global(&self, row: u64) -> f32 {
        self.globals.get((row / self.n) as usize).or(self.globals.first()).copied().unwrap_or(1.0)
    }

    /// Dequantises elements `start, start + stride, …` of the stored matrices, counted row by row, into `out`.
    pub fn read(&self, start: u64, stride: u64, out: &mut [f32]) {
        let mut done = 0;
        while done < out.len() {
            let at = start + done as u64 * stride;
            // Elements that are left in this row.
            let left = (self.k - at % self.k).div_ceil(stride.max(1)) as usize;
            let here = left.min(out.len() - done);
            self.read_row(at / self.k, at % self.k, stride, &mut out[done..done + here]);
            done += here;
        }
    }

    fn read_row(&self, row: u64, first: u64, stride: u64, out: &mut [f32]) {
        let f = &self.format;
        let (grid_rows, grid_cols) = f.scale_grid(self.n, self.k);
        let (matrix, r) = (row / self.n, row % self.n);
        let row_bytes = f.code.bytes(self.k) as usize;
        let codes = &self.codes[row as usize * row_bytes..(row as usize + 1) * row_bytes];
        let grid_row = r.checked_div(f.block_rows).unwrap_or(0);
        let scale_base = (matrix * grid_rows + grid_row) * grid_cols;
        let global = self.globals.get(matrix as usize).or(self.globals.first()).copied().unwrap_or(1.0);
        let (mut block, mut scale) = (u64::MAX, 0.0);
        for (i, v) in out.iter_mut().enumerate() {
            let col = first + i as u64 * stride;
            let b = col.checked_div(f.block_cols).unwrap_or(0);
            if b != block {
                block = b;
                scale = f.scale.decode(self.scales, (scale_base + b) as usize) * global;
            }
            *v = f.code.decode(codes, col as usize) * scale;
        }
    }
}

/// The block of FP8 weights whose grid of scales is `grid`: the config's, the usual one, or another that is in use.
fn fp8_block(
    hint: Option<(u64, u64)>,
    scale: ScaleCode,
    grid: Option<(u64, u64)>,
    (n, k): (u64, u64),
) -> Option<(u64, u64)> {
    let (rows, cols) = grid?;
    let fits = |&(r, c): &(u64, u64)| n.div_ceil(r) == rows && k.div_ceil(c) == cols;
    // Powers of two with one scale for every 32 columns are MXFP8.
    let mx = (scale == ScaleCode::E8M0).then_some((1, 32));
    let usual = [(FP8_BLOCK, FP8_BLOCK), (1, FP8_BLOCK), (64, 64), (32, 32), (1, 32)];
    hint.into_iter().chain(mx).chain(usual).find(fits)
}

/// Rows and columns of a block from the number of scales.
fn block_of(scale: ScaleCode, count: u64, matrices: u64, n: u64, k: u64) -> Option<(u64, u64)> {
    if count == matrices {
        return Some((0, 0));
    }
    let rows = matrices.checked_mul(n).filter(|&r| r > 0)?;
    let per_row = count.checked_div(rows).filter(|&c| c > 0 && c.checked_mul(rows) == Some(count))?;
    // The formats of these scales have groups of a fixed size, of which the last may be cut short.
    let usual = match scale {
        ScaleCode::E8M0 => 32,
        ScaleCode::E4M3 => 16,
        ScaleCode::F32 | ScaleCode::BF16 | ScaleCode::F16 => 0,
    };
    match per_row {
        _ if usual > 0 && k.div_ceil(usual) == per_row => Some((1, usual)),
        1 => Some((1, 0)),
        _ => k.is_multiple_of(per_row).then_some((1, k / per_row)),
    }
}

/// Refuses weights that were scaled together with the layer's input (AWQ inside ModelOpt): the input is not scaled here.
fn scaled_inputs(checkpoint: &Checkpoint, stem: &str) -> Result<(), Diagnostic> {
    let name = format!("{stem}.pre_quant_scale");
    if !checkpoint.contains(&name) {
        return Ok(());
    }
    Err(Diagnostic::input(
        "quantised-checkpoint",
        format!("`{name}` in `{}` scales the input of a product, which moec does not do", checkpoint.path().display()),
    )
    .note("the weights were divided by this scale when they were quantised; without it the result would be wrong")
    .help("give a checkpoint that was quantised without scales on the channels of activations"))
}

fn scale_missing(name: &str, codes: &TensorView<'_>, names: &[String]) -> Diagnostic {
    Diagnostic::input(
        "quantised-scale-missing",
        format!(
            "`{name}` in `{}` is quantised, {}, but its scales are not in the checkpoint",
            codes.file.display(),
            codes.describe()
        ),
    )
    .note(format!("looked for {}", names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")))
    .help("give the checkpoint whole, or one in a format that `moec explain quantised-scale-missing` lists")
}
