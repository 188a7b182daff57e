//! Dumb copying: from the views of stored tensors to the buffer that kernels read, and back.

pub(crate) mod convert;
mod copy;
pub(crate) mod parts;
pub(crate) mod read_once;
mod transpose;

use crate::decode::Elements;
use crate::resolve::{Piece, fixed_shape, internal, unsupported};
use crate::strided::Strided;
pub(crate) use copy::{Rows, copy_rows};
use moec_ir::DType;
use moec_ir::Tensor;
use moec_ir::abi::BUFFER_ALIGN;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::Param;
use moec_ir::tile::Buffer;
use read_once::{ReadOnce, Release};

/// Fills `dst` with the elements of `pieces`, one behind the other; `release` lets go of what has been read.
pub(crate) fn pack_pieces(
    param: &Param,
    pieces: &[Piece<'_>],
    buffer: &Buffer,
    dst: &mut [u8],
    release: Release<'_>,
) -> Result<(), Diagnostic> {
    let layout = Layout::new(param, buffer, dst.len())?;
    let per_piece = layout.rows / pieces.len().max(1) as u64;
    for piece in pieces {
        if piece.view.shape().iter().product::<u64>() != per_piece * layout.copied.cols {
            return Err(internal(param, "pieces of a weight should have equal sizes"));
        }
    }
    if per_piece == 0 {
        return Ok(());
    }
    let rows_read = ReadOnce::new(per_piece, layout.copied.pitch_bytes, release);
    let source = |row| {
        let piece = &pieces[(row / per_piece) as usize];
        (piece.view.row(row % per_piece), &piece.elements)
    };
    copy_rows(&layout.copied, dst, source, |rows| rows_read.copied(rows))
        .map_err(|value| out_of_range(param, buffer, value))
}

/// The stored memory as the buffer, when it is the buffer.
pub(crate) fn borrow_pieces<'a>(
    param: &Param,
    pieces: &[Piece<'a>],
    buffer: &Buffer,
) -> Result<Option<&'a [u8]>, Diagnostic> {
    Layout::new(param, buffer, buffer.bytes(0) as usize)?;
    let [Piece { view, elements: Elements::Plain(dtype, data), .. }] = pieces else { return Ok(None) };
    let Some(start) = view.contiguous() else { return Ok(None) };
    let same = *dtype == buffer.dtype && param.ty.dtype == buffer.dtype && buffer.pitch == buffer.cols;
    let start = start as usize * buffer.dtype.bytes();
    let bytes = data.get(start..start + buffer.bytes(0) as usize);
    Ok(bytes.filter(|b| same && (b.as_ptr() as u64).is_multiple_of(BUFFER_ALIGN)))
}

/// As [`crate::Plan::pack`], for a parameter that is already a host tensor in the graph's layout.
///
/// # Errors
/// `tensor-shape-mismatch`, `weight-type-unsupported`, `weight-out-of-range`, `buffer-shape-mismatch`, and
/// `stored-format-mismatch` for a buffer of codes or scales.
pub fn pack_tensor(tensor: &Tensor, param: &Param, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
    if parts::is_part(buffer) {
        return Err(parts::given_as_floats(param));
    }
    let layout = Layout::new(param, buffer, dst.len())?;
    let shape: Vec<u64> = tensor.shape.iter().map(|&n| n as u64).collect();
    if Some(&shape) != fixed_shape(param).as_ref() {
        return Err(Diagnostic::input(
            "tensor-shape-mismatch",
            format!("the weight `{}` is {}{shape:?}, but the layer asks for {}", param.name, tensor.dtype, param.ty),
        ));
    }
    if tensor.dtype.is_float() != buffer.dtype.is_float() || tensor.dtype == DType::F64 {
        return Err(unsupported(param, "the tensor that was given", &tensor.dtype.to_string()));
    }
    let bytes = tensor.to_bytes();
    let (view, elements) = (Strided::dense(&shape), Elements::Plain(tensor.dtype, &bytes));
    copy_rows(&layout.copied, dst, |row| (view.row(row), &elements), |_| ())
        .map_err(|value| out_of_range(param, buffer, value))
}

/// The inverse of packing: a parameter in the graph's layout, from the bytes of its buffer. Padding is dropped.
///
/// # Errors
/// `buffer-shape-mismatch` when parameter, buffer and bytes do not fit each other.
pub fn unpack_weight(param: &Param, buffer: &Buffer, src: &[u8]) -> Result<Tensor, Diagnostic> {
    let layout = Layout::new(param, buffer, src.len())?;
    let row_bytes = layout.copied.cols as usize * buffer.dtype.bytes();
    let mut dense = Vec::with_capacity(layout.rows as usize * row_bytes);
    if layout.copied.pitch_bytes > 0 {
        src.chunks_exact(layout.copied.pitch_bytes).for_each(|row| dense.extend_from_slice(&row[..row_bytes]));
    }
    let shape: Vec<usize> = fixed_shape(param).unwrap_or_default().into_iter().map(|n| n as usize).collect();
    Tensor::from_bytes(buffer.dtype, &shape, &dense)
        .ok_or_else(|| internal(param, "unpacked rows should fill the shape"))
}

/// How a parameter lies in its buffer.
pub(crate) struct Layout {
    rows: u64,
    pub copied: Rows,
}

impl Layout {
    pub fn new(param: &Param, buffer: &Buffer, len: usize) -> Result<Layout, Diagnostic> {
        let unfit = |why: String| {
            Diagnostic::input(
                "buffer-shape-mismatch",
                format!("the buffer `{}` cannot hold the weight `{}`, {}", buffer.name, param.name, param.ty),
            )
            .note(why)
            .help("the bundle is inconsistent; compile it again with the same version of moec")
        };
        let shape = fixed_shape(param).ok_or_else(|| unfit("a weight cannot depend on the token count".into()))?;
        let cols = shape.last().copied().unwrap_or(1);
        let leading = &shape[..shape.len().saturating_sub(1)];
        let rows = leading.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let held = buffer.rows.fixed().and_then(|r| r.checked_mul(buffer.batch));
        if rows.is_none() || rows != held || cols != buffer.cols || buffer.pitch < cols {
            return Err(unfit(format!(
                "the buffer is {}[{}, {}, {}] with rows {} elements apart",
                buffer.dtype, buffer.batch, buffer.rows, buffer.cols, buffer.pitch
            )));
        }
        let rows = rows.unwrap_or(0);
        let pitch_bytes = buffer.pitch.checked_mul(buffer.dtype.bytes() as u64);
        let bytes = pitch_bytes.and_then(|p| p.checked_mul(rows));
        if bytes != Some(len as u64) {
            return Err(unfit(format!("{len} bytes were given for it")));
        }
        if buffer.dtype.is_float() != param.ty.dtype.is_float() || buffer.dtype == DType::F64 {
            return Err(unfit(format!("its element type is {}", buffer.dtype)));
        }
        let pitch_bytes = pitch_bytes.unwrap_or(0) as usize;
        Ok(Layout { rows, copied: Rows { cols, pitch_bytes, through: param.ty.dtype, dtype: buffer.dtype } })
    }
}

pub(crate) fn out_of_range(param: &Param, buffer: &Buffer, value: i64) -> Diagnostic {
    Diagnostic::input(
        "weight-out-of-range",
        format!("the weight `{}` holds {value}, which does not fit {}", param.name, buffer.dtype),
    )
}
