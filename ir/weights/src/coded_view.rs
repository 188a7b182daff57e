//! A host's own codes and scales as a quantised weight: copied, converted where that is exact, or read where they lie.

use crate::MemoryView;
use crate::decode::{Blocks, Elements, ScaleFault, check_scales};
use crate::pack::{pack_pieces, parts};
use crate::resolve::{Piece, fixed_shape};
use crate::strided::Strided;
use moec_ir::DType;
use moec_ir::abi::Strides;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::Param;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::tile::{Buffer, Role};
use std::sync::Arc;

/// What is given for a parameter that is published as codes and scales.
#[derive(Clone, Debug)]
pub struct CodedView<'a> {
    /// What was given; blocks are the parameter's.
    format: QuantFormat,
    n: u64,
    k: u64,
    /// Bytes: `[.., N, bytes of K]`.
    codes: MemoryView<'a>,
    /// `[.., rows of blocks, columns of blocks]`.
    scales: MemoryView<'a>,
    /// One for all matrices, or one for each; empty for 1.
    globals: Vec<f32>,
}

/// Codes and scales as somebody holds them: [`CodedView::new`] looks at them.
#[derive(Clone, Debug)]
pub struct GivenCodes<'a> {
    /// What a code means; `None` for bytes without a type, which are the parameter's.
    pub code: Option<Code>,
    /// Bytes, `[.., N, bytes of K]`. The bytes of K may be cut into blocks, one axis more: `[.., N, K / 32, 16]`.
    pub codes: MemoryView<'a>,
    /// What a scale means; `None` for bytes without a type.
    pub scale: Option<ScaleCode>,
    /// One for each block of the parameter: `[.., rows of blocks, columns of blocks]`.
    pub scales: MemoryView<'a>,
    /// Scales of whole matrices, one or one for each; empty for 1.
    pub globals: Vec<f32>,
}

impl<'a> CodedView<'a> {
    /// Checks types and shapes against the parameter; nothing is read.
    ///
    /// # Errors
    /// `stored-format-mismatch` for a parameter without codes, for other codes, and for scales of another kind;
    /// `tensor-shape-mismatch`; `quantised-scale-invalid` for a global scale that is no positive number.
    pub fn new(param: &Param, given: GivenCodes<'a>) -> Result<CodedView<'a>, Diagnostic> {
        let GivenCodes { code, mut codes, scale, scales, globals } = given;
        let shape = fixed_shape(param).unwrap_or_default();
        let (Some(want), [stack @ .., n, k], 2 | 3) = (param.stored, &shape[..], shape.len()) else {
            let what = format!("the layer was compiled for `{}` as floats, but codes were given for it", param.name);
            return Err(Diagnostic::input("stored-format-mismatch", what)
                .help("compile the layer for weights that are published as codes, or give it floats"));
        };
        let code = code.unwrap_or(want.code);
        // Bytes without a type are what the layer reads, when that is bytes.
        let bytes = |of: ScaleCode| of.dtype() == DType::U8;
        let scale = match scale {
            Some(scale) => scale,
            None if bytes(want.scale) => want.scale,
            None => ScaleCode::E8M0,
        };
        let format = QuantFormat { code, scale, ..want };
        if code != want.code {
            return Err(parts::mismatch(param, &format!("what was given is {format}"), &want.to_string()));
        }
        if codes.axes.len() == shape.len() + 1 {
            join_last(&mut codes);
        }
        let (grid_rows, grid_cols) = format.scale_grid(*n, *k);
        let with = |last: [u64; 2]| [stack, &last].concat();
        expect(param, "codes", &codes, DType::U8, &with([*n, code.bytes(*k)]))?;
        expect(param, "scales", &scales, scale.dtype(), &with([grid_rows, grid_cols]))?;
        let matrices: u64 = stack.iter().product();
        if globals.len() > 1 && globals.len() as u64 != matrices {
            let what = format!("{} global scales were given for `{}`, {}", globals.len(), param.name, param.ty);
            return Err(Diagnostic::input("tensor-shape-mismatch", what).note("one for all matrices, or one for each"));
        }
        if let Some((index, value)) = globals.iter().enumerate().find(|(_, g)| !(g.is_finite() && **g > 0.0)) {
            return Err(invalid(param, "global scale", index as u64, *value));
        }
        Ok(CodedView { format, n: *n, k: *k, codes, scales, globals })
    }

    /// Looks at every scale.
    ///
    /// # Errors
    /// `quantised-scale-invalid` for one that is zero over codes that are not, negative, infinite or not a number.
    pub fn check_scales(&self, param: &Param) -> Result<(), Diagnostic> {
        // Some tools give integers scales of either sign; who hands them in one by one knows what they are.
        let either = self.format.code == Code::Int4;
        check_scales(&Elements::Blocks(Arc::new(self.blocks())), either)
            .map_err(|ScaleFault { index, value, .. }| invalid(param, "scale", index, value))
    }

    /// Fills `dst` with the part of the parameter that `buffer` is for, or with its values.
    ///
    /// # Errors
    /// `scale-not-exact` for a scale that the type which kernels read cannot hold; `stored-format-mismatch`,
    /// `buffer-shape-mismatch`.
    pub fn pack(&self, param: &Param, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
        let shape = fixed_shape(param).unwrap_or_default();
        let piece = Piece {
            name: param.name.clone(),
            tensor: param.name.clone(),
            stored: self.format.to_string(),
            elements: Elements::Blocks(Arc::new(self.blocks())),
            view: Strided::dense(&shape),
        };
        let pieces = std::slice::from_ref(&piece);
        match parts::is_part(buffer) {
            true => parts::pack("what was given", param, pieces, buffer, dst, &|| ()),
            false => pack_pieces(param, pieces, buffer, dst, &|| ()),
        }
    }

    /// The memory that stands for `buffer` where it lies, and how; else why none does. As [`MemoryView::in_place`].
    ///
    /// # Errors
    /// In words.
    pub fn in_place(&self, param: &Param, buffer: &Buffer, strided: bool) -> Result<(Part, Strides), String> {
        let stored = param.stored.ok_or("kernels read it as floats")?;
        match buffer.role {
            Role::WeightScale(_) if stored.scale != self.format.scale => Err(format!(
                "kernels read its scales as {}, they are {}",
                stored.scale.name(),
                self.format.scale.name()
            )),
            Role::WeightScale(_) => Ok((Part::Scales, self.scales.lies_as(buffer, strided)?)),
            Role::WeightGlobal(_) => Err("its global scales are copied".into()),
            Role::Weight(_) if parts::is_part(buffer) => Ok((Part::Codes, self.codes.lies_as(buffer, strided)?)),
            Role::Weight(_) | Role::Input(_) | Role::Output(_) | Role::Workspace | Role::Counter => {
                Err("kernels read it as floats".into())
            }
        }
    }

    /// The same, with other memory for codes and scales.
    pub fn in_memory<'b>(&self, codes: &'b [u8], scales: &'b [u8]) -> CodedView<'b> {
        let with = |view: &MemoryView<'_>, bytes| MemoryView { dtype: view.dtype, axes: view.axes.clone(), bytes };
        let (format, n, k, globals) = (self.format, self.n, self.k, self.globals.clone());
        CodedView { format, n, k, codes: with(&self.codes, codes), scales: with(&self.scales, scales), globals }
    }

    /// Codes or scales.
    pub fn part(&self, part: Part) -> &MemoryView<'a> {
        match part {
            Part::Codes => &self.codes,
            Part::Scales => &self.scales,
        }
    }

    fn blocks(&self) -> Blocks<'a> {
        // A matrix alone is a stack of one.
        let steps = |view: &MemoryView<'_>| match view.axes[..] {
            [matrix, row, col] => [matrix.1, row.1, col.1],
            [row, col] => [0, row.1, col.1],
            _ => [0; 3],
        };
        let leading = self.codes.axes.iter().rev().skip(2).rev().map(|a| a.0).collect();
        Blocks {
            format: self.format,
            leading,
            n: self.n,
            k: self.k,
            transposed: false,
            codes: (self.codes.bytes, steps(&self.codes)),
            scales: (self.scales.bytes, steps(&self.scales)),
            globals: self.globals.clone(),
            column_scales: Vec::new(),
            scales_name: String::new(),
        }
    }
}

/// One of the tensors of a quantised weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The codes.
    Codes,
    /// The scales of blocks.
    Scales,
}

/// `[.., a, b]` as `[.., a · b]`, where that is one run of memory.
fn join_last(view: &mut MemoryView<'_>) {
    if let [.., (a, far), (b, near)] = view.axes[..]
        && (far == b.saturating_mul(near) || a == 1)
        && let Some(joined) = a.checked_mul(b)
    {
        view.axes.truncate(view.axes.len() - 2);
        view.axes.push((joined, near));
    }
}

fn expect(param: &Param, what: &str, given: &MemoryView<'_>, dtype: DType, shape: &[u64]) -> Result<(), Diagnostic> {
    let found = given.shape();
    if given.dtype == dtype && found == shape {
        return Ok(());
    }
    let format = param.stored.map_or_else(String::new, |f| f.to_string());
    Err(Diagnostic::input(
        "tensor-shape-mismatch",
        format!("the {what} given for `{}` are {}{found:?}; {dtype}{shape:?} is needed", param.name, given.dtype),
    )
    .note(format!(
        "`{}` is {}, stored as {format}: codes by scales, rows and columns of a block",
        param.name, param.ty
    )))
}

fn invalid(param: &Param, what: &str, index: u64, value: f32) -> Diagnostic {
    let what = format!("{what} {index} that was given for `{}` is {value}; a scale is a positive number", param.name);
    Diagnostic::input("quantised-scale-invalid", what)
        .help("give the scales that codes are multiplied with, as they are published")
}
