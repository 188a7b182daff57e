//! Codes, scales and global scales as kernels read them: copied from the checkpoint, never computed anew.
//!
//! A bundle whose kernels read codes was compiled for one format. What a checkpoint holds may be cut otherwise (a stack
//! of fused matrices, one scale for a whole tensor), as long as every block of the bundle has one scale there. Codes are
//! copied bit for bit; scales too, or, where the checkpoint has them in another type, converted when that is exact.

use super::read_once::{ReadOnce, Release};
use crate::decode::{Blocks, Elements};
use crate::resolve::{Piece, fixed_shape};
use moec_ir::diag::Diagnostic;
use moec_ir::graph::Param;
use moec_ir::quant::{QuantFormat, ScaleCode, e4m3};
use moec_ir::tile::{Buffer, Role};
use moec_ir::{DType, Tensor};
use rayon::prelude::*;

/// Whether a buffer holds codes or scales rather than values.
pub fn is_part(buffer: &Buffer) -> bool {
    match buffer.role {
        Role::WeightScale(_) | Role::WeightGlobal(_) => true,
        Role::Weight(_) => buffer.dtype == DType::U8,
        Role::Input(_) | Role::Output(_) | Role::Workspace | Role::Counter => false,
    }
}

/// Fills `dst` with the codes, scales or global scales of a parameter, in the layout of `buffer`; padding is zero. `from` names
/// in messages where the pieces come from.
///
/// # Errors
/// `stored-format-mismatch` when the checkpoint has other blocks or codes, or floats; `scale-not-exact` when a scale does
/// not fit the type that kernels read; `buffer-shape-mismatch`.
pub(crate) fn pack(
    from: &str,
    param: &Param,
    pieces: &[Piece<'_>],
    buffer: &Buffer,
    dst: &mut [u8],
    release: Release<'_>,
) -> Result<(), Diagnostic> {
    let layout = PartLayout::new(param, buffer, dst.len())?;
    let stored = Stored::new(from, param, &layout, pieces)?;
    let pitch = buffer.pitch as usize * buffer.dtype.bytes();
    if pitch == 0 || layout.matrices * layout.n * layout.k == 0 {
        dst.fill(0);
        return Ok(());
    }
    let cols = buffer.cols as usize * buffer.dtype.bytes();
    let rows_read = ReadOnce::new((dst.len() / pitch / pieces.len().max(1)) as u64, pitch, release);
    let copy = |(row, out): (usize, &mut [u8])| {
        let (out, padding) = out.split_at_mut(cols);
        padding.fill(0);
        match buffer.role {
            Role::WeightScale(_) => stored.scales(row as u64, out),
            Role::WeightGlobal(_) => stored.globals(out),
            Role::Weight(_) | Role::Input(_) | Role::Output(_) | Role::Workspace | Role::Counter => {
                stored.codes(row as u64, out)
            }
        }
    };
    dst.par_chunks_mut(pitch).enumerate().try_for_each(|(row, out)| {
        copy((row, out))?;
        rows_read.copied(1);
        Ok(())
    })
}

/// Whether `pieces` hold a parameter in the format that it is marked as stored in, so that its codes can be copied.
pub(crate) fn holds_codes(param: &Param, pieces: &[Piece<'_>]) -> bool {
    let (Some(format), Some(shape)) = (param.stored, fixed_shape(param)) else { return false };
    let [stack @ .., n, k] = &shape[..] else { return false };
    let layout = PartLayout { format, matrices: stack.iter().product(), n: *n, k: *k };
    Stored::new("", param, &layout, pieces).is_ok_and(|stored| {
        // Rows of a piece are alike, so that the first tells of all whether they run along the codes.
        let (grid_rows, grid_cols) = format.scale_grid(*n, *k);
        let codes = vec![0; format.code.bytes(*k) as usize];
        let scales = vec![0; (grid_cols * format.scale.bytes()) as usize];
        let count = pieces.len().max(1) as u64;
        let (rows, grid_rows) = (layout.matrices * n / count, layout.matrices * grid_rows / count);
        let alike =
            |i: u64| stored.codes(i * rows, &mut codes.clone()).and(stored.scales(i * grid_rows, &mut scales.clone()));
        let whole = layout.matrices.is_multiple_of(count) || count == 1;
        layout.matrices * n * k == 0 || whole && (0..count).all(|i| alike(i).is_ok())
    })
}

/// The error of a parameter that is given as floats to kernels that read codes.
pub(crate) fn given_as_floats(param: &Param) -> Diagnostic {
    let want = param.stored.map_or_else(|| "codes".to_string(), |f| f.to_string());
    mismatch(param, "floats were given for it", &want)
}

pub(crate) fn mismatch(param: &Param, found: &str, want: &str) -> Diagnostic {
    Diagnostic::input(
        "stored-format-mismatch",
        format!("the layer was compiled for `{}` stored as {want}, but {found}", param.name),
    )
    .help("compile the layer from this checkpoint's own config.json, or with `--weight-storage dequantised`")
}

/// The shape of a quantised parameter and of its scales.
struct PartLayout {
    format: QuantFormat,
    matrices: u64,
    n: u64,
    k: u64,
}

impl PartLayout {
    fn new(param: &Param, buffer: &Buffer, len: usize) -> Result<PartLayout, Diagnostic> {
        let unfit = |why: &str| {
            Diagnostic::input(
                "buffer-shape-mismatch",
                format!("the buffer `{}` cannot hold a part of the weight `{}`, {}", buffer.name, param.name, param.ty),
            )
            .note(why)
            .help("the bundle is inconsistent; compile it again with the same version of moec")
        };
        let format = param.stored.ok_or_else(|| unfit("the weight is not stored as codes"))?;
        let shape = fixed_shape(param).ok_or_else(|| unfit("a weight cannot depend on the token count"))?;
        let [stack @ .., n, k] = &shape[..] else { return Err(unfit("codes need a matrix")) };
        let matrices = stack.iter().try_fold(1u64, |a, &d| a.checked_mul(d)).ok_or_else(|| unfit("it is too large"))?;
        let (n, k) = (*n, *k);
        let (grid_rows, grid_cols) = format.scale_grid(n, k);
        let (dtype, batch, rows, cols) = match buffer.role {
            Role::WeightScale(_) => (format.scale.dtype(), matrices, grid_rows, grid_cols),
            Role::WeightGlobal(_) => (DType::F32, 1, 1, matrices),
            Role::Weight(_) | Role::Input(_) | Role::Output(_) | Role::Workspace | Role::Counter => {
                (DType::U8, matrices, n, format.code.bytes(k))
            }
        };
        let shape = (buffer.dtype, buffer.batch, buffer.rows.fixed(), buffer.cols);
        let bytes = [rows, buffer.pitch, dtype.bytes() as u64].iter().try_fold(batch, |a, &b| a.checked_mul(b));
        if shape != (dtype, batch, Some(rows), cols) || buffer.pitch < cols || bytes != Some(len as u64) {
            return Err(unfit(&format!("{dtype}[{batch}, {rows}, {cols}] is needed, {len} bytes were given")));
        }
        Ok(PartLayout { format, matrices, n, k })
    }
}

/// A parameter as a checkpoint stores it, or somebody gives it.
struct Stored<'a> {
    /// Where from, for messages.
    from: &'a str,
    param: &'a Param,
    layout: &'a PartLayout,
    pieces: Vec<(&'a Piece<'a>, &'a Blocks<'a>)>,
}

/// A row of the parameter in the checkpoint: which stored row, counted through the matrices, and from which column.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    row: u64,
    first: u64,
}

impl<'a> Stored<'a> {
    fn new(
        from: &'a str,
        param: &'a Param,
        layout: &'a PartLayout,
        pieces: &'a [Piece<'a>],
    ) -> Result<Stored<'a>, Diagnostic> {
        let want = layout.format;
        let coded = pieces.iter().map(|p| match &p.elements {
            Elements::Blocks(q) if q.format.code == want.code && q.column_scales.is_empty() => Ok((p, &**q)),
            Elements::Blocks(q) => Err(mismatch(param, &format!("{from} has it as {}", q.format), &want.to_string())),
            Elements::Integers(_) => {
                Err(mismatch(param, &format!("{from} has it as integers with zero points"), &want.to_string()))
            }
            Elements::Ggml(q) => {
                Err(mismatch(param, &format!("{from} has it as {}", q.blocks.name()), &want.to_string()))
            }
            Elements::Plain(dtype, _) => Err(mismatch(param, &format!("{from} has it as {dtype}"), &want.to_string())),
        });
        let stored = Stored { from, param, layout, pieces: coded.collect::<Result<_, _>>()? };
        if !(layout.matrices * layout.n).is_multiple_of(stored.pieces.len().max(1) as u64) {
            return Err(stored.other_blocks("its pieces have unequal sizes"));
        }
        Ok(stored)
    }

    fn other_blocks(&self, why: &str) -> Diagnostic {
        let found = self.pieces.first().map_or_else(String::new, |(_, q)| q.format.to_string());
        mismatch(self.param, &format!("{} has it as {found}", self.from), &self.layout.format.to_string()).note(why)
    }

    /// Where row `row` of the parameter is, counted through its matrices.
    fn place(&self, row: u64) -> Result<(&'a Blocks<'a>, Place), Diagnostic> {
        let per_piece = self.layout.matrices * self.layout.n / self.pieces.len().max(1) as u64;
        let (piece, q) = self.pieces[(row / per_piece.max(1)) as usize];
        let k = self.layout.k;
        match piece.view.row(row % per_piece.max(1)).affine() {
            Some((start, stride)) if (stride == 1 || k <= 1) && start % q.k + k <= q.k => {
                Ok((q, Place { row: start / q.k, first: start % q.k }))
            }
            _ => Err(self.other_blocks("its rows do not run along the codes there")),
        }
    }

    /// The codes of a row.
    fn codes(&self, row: u64, out: &mut [u8]) -> Result<(), Diagnostic> {
        let (q, at) = self.place(row)?;
        let bits = self.layout.format.code.bits();
        if !(at.first * bits).is_multiple_of(8) {
            return Err(self.other_blocks("its first column is in the middle of a byte"));
        }
        let first = at.first * bits / 8;
        q.copy_codes(at.row, first, out);
        // What follows the last code of a row is padding.
        if let (4, Some(last), false) = (bits, out.last_mut(), self.layout.k.is_multiple_of(2)) {
            *last &= 15;
        }
        Ok(())
    }

    /// A row of the grid of scales, counted through the matrices.
    fn scales(&self, grid_row: u64, out: &mut [u8]) -> Result<(), Diagnostic> {
        let PartLayout { format, n, k, .. } = *self.layout;
        let (grid_rows, _) = format.scale_grid(n, k);
        let first_row = grid_row / grid_rows * n + grid_row % grid_rows * format.block_rows;
        let rows = if format.block_rows == 0 {
            n
        } else {
            format.block_rows.min(n - grid_row % grid_rows * format.block_rows)
        };
        let (q, at) = self.place(first_row)?;
        let line = |q: &Blocks, p: Place| (q.scale_row(p.row), p.first);
        for row in first_row + 1..first_row + rows {
            let (other, place) = self.place(row)?;
            if !std::ptr::eq(other, q) || line(other, place) != line(q, at) {
                return Err(self.other_blocks("a block of rows has several scales there"));
            }
        }
        let global = q.global(at.row);
        let cols = if format.block_cols == 0 { k } else { format.block_cols };
        let width = format.scale.bytes() as usize;
        let as_stored = q.format.scale == format.scale && (format.has_global() || global == 1.0);
        let same_blocks = q.format.block_cols == format.block_cols && at.first.is_multiple_of(cols.max(1));
        if let (true, true, Some(run)) = (as_stored, same_blocks, q.scale_run(at.row, at.first, out.len() / width)) {
            out.copy_from_slice(run);
            return Ok(());
        }
        for (c, out) in out.chunks_exact_mut(width).enumerate() {
            let first = c as u64 * cols;
            let last = (first + cols).min(k).saturating_sub(1).max(first);
            let index = q.scale_index(at.row, at.first + first);
            if index != q.scale_index(at.row, at.first + last) {
                return Err(self.other_blocks("a block of columns has several scales there"));
            }
            if as_stored {
                out.copy_from_slice(q.scale_bytes(index));
                continue;
            }
            let scale = q.scale_value(index);
            let value = if format.has_global() { scale } else { scale * global };
            let bytes = encode(format.scale, value).ok_or_else(|| {
                Diagnostic::input(
                    "scale-not-exact",
                    format!(
                        "a scale of `{}` is {value:?}, which {} cannot hold, but kernels read {format}",
                        self.param.name,
                        format.scale.name()
                    ),
                )
                .help(
                    "compile the layer from this checkpoint's own config.json, or with `--weight-storage dequantised`",
                )
            })?;
            out.copy_from_slice(&bytes[..width]);
        }
        Ok(())
    }

    /// The global scale of every matrix.
    fn globals(&self, out: &mut [u8]) -> Result<(), Diagnostic> {
        let n = self.layout.n;
        for (matrix, out) in out.chunks_exact_mut(4).enumerate() {
            let matrix = matrix as u64;
            let (q, at) = self.place(matrix * n)?;
            let global = q.global(at.row);
            for row in [matrix * n + n / 2, matrix * n + n.saturating_sub(1)] {
                let (other, place) = self.place(row)?;
                if other.global(place.row).to_bits() != global.to_bits() {
                    return Err(self.other_blocks("a matrix has several global scales there"));
                }
            }
            out.copy_from_slice(&global.to_le_bytes());
        }
        Ok(())
    }
}

/// The bytes of a scale, when the code has exactly this value.
fn encode(code: ScaleCode, value: f32) -> Option<[u8; 4]> {
    let narrow = |bytes: &[u8]| {
        let mut out = [0; 4];
        out[..bytes.len()].copy_from_slice(bytes);
        out
    };
    let all = match code {
        ScaleCode::F32 => narrow(&value.to_le_bytes()),
        ScaleCode::BF16 => narrow(&half::bf16::from_f32(value).to_le_bytes()),
        ScaleCode::F16 => narrow(&half::f16::from_f32(value).to_le_bytes()),
        ScaleCode::E8M0 => [(value.to_bits() >> 23) as u8, 0, 0, 0],
        ScaleCode::E4M3 => [(0..=255u8).find(|&c| e4m3(c).to_bits() == value.to_bits())?, 0, 0, 0],
    };
    let back = code.decode(&all, 0);
    (back.to_bits() == value.to_bits() || back.is_nan() && value.is_nan()).then_some(all)
}

/// The inverse of packing codes, scales or global scales: what the buffer holds without padding, `[batch, rows, cols]`.
///
/// # Errors
/// `buffer-shape-mismatch` when buffer and bytes do not fit each other.
pub fn unpack_part(buffer: &Buffer, src: &[u8]) -> Result<Tensor, Diagnostic> {
    let width = buffer.dtype.bytes();
    let (pitch, cols) = (buffer.pitch as usize * width, buffer.cols as usize * width);
    let rows = buffer.rows.fixed().unwrap_or(0);
    let shape = [buffer.batch as usize, rows as usize, buffer.cols as usize];
    let dense: Vec<u8> = src.chunks_exact(pitch.max(1)).flat_map(|row| row[..cols.min(row.len())].to_vec()).collect();
    let fits = src.len() as u64 == buffer.bytes(0);
    Tensor::from_bytes(buffer.dtype, &shape, &dense).filter(|_| fits).ok_or_else(|| {
        Diagnostic::input(
            "buffer-shape-mismatch",
            format!("{} bytes are not the buffer `{}`, {shape:?}", src.len(), buffer.name),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scale_of_every_code_is_encoded_as_itself() {
        for code in ScaleCode::ALL {
            for bits in 0..=0xffffu32 {
                let bytes = match code.bytes() {
                    1 => [bits as u8, 0, 0, 0],
                    2 => [bits as u8, (bits >> 8) as u8, 0, 0],
                    _ => (bits << 16).to_le_bytes(),
                };
                let value = code.decode(&bytes, 0);
                if !value.is_nan() {
                    assert_eq!(encode(code, value), Some(bytes), "{code:?} {bits:#x}");
                }
            }
        }
    }

    #[test]
    fn scales_between_two_codes_are_not_encoded() {
        for (code, value) in [
            (ScaleCode::BF16, 1.001),
            (ScaleCode::F16, 1e-9),
            (ScaleCode::E8M0, 3.0),
            (ScaleCode::E8M0, -2.0),
            (ScaleCode::E4M3, 1.05),
        ] {
            assert_eq!(encode(code, value), None, "{code:?} {value}");
        }
    }
}
