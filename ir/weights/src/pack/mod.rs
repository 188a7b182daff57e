//! Dumb copying: from the views of stored tensors to the buffer that kernels read, and back.

mod convert;
pub(crate) mod parts;
pub(crate) mod strided;

use crate::decode::Elements;
use crate::resolve::{Piece, fixed_shape, internal, unsupported};
use convert::{Source, convert_row};
use half::{bf16, f16};
use moec_ir::DType;
use moec_ir::Tensor;
use moec_ir::abi::BUFFER_ALIGN;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::Param;
use moec_ir::tile::Buffer;
use rayon::prelude::*;
use strided::{Row, Strided};

/// Fills `dst` with the elements of `pieces`, one behind the other.
pub(crate) fn pack_pieces(
    param: &Param,
    pieces: &[Piece<'_>],
    buffer: &Buffer,
    dst: &mut [u8],
) -> Result<(), Diagnostic> {
    let layout = Layout::new(param, buffer, dst.len())?;
    let per_piece = layout.rows / pieces.len().max(1) as u64;
    for piece in pieces {
        if piece.view.shape().iter().product::<u64>() != per_piece * layout.cols {
            return Err(internal(param, "pieces of a weight should have equal sizes"));
        }
    }
    fill(&layout, dst, |row| {
        // `rows` is a multiple of the number of pieces, and `row < rows`.
        let piece = &pieces[(row / per_piece) as usize];
        (piece.view.row(row % per_piece), piece.elements.clone())
    })
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
    let view = Strided::dense(&shape);
    fill(&layout, dst, |row| (view.row(row), Elements::Plain(tensor.dtype, &bytes)))
        .map_err(|value| out_of_range(param, buffer, value))
}

/// The inverse of packing: a parameter in the graph's layout, from the bytes of its buffer. Padding is dropped.
///
/// # Errors
/// `buffer-shape-mismatch` when parameter, buffer and bytes do not fit each other.
pub fn unpack_weight(param: &Param, buffer: &Buffer, src: &[u8]) -> Result<Tensor, Diagnostic> {
    let layout = Layout::new(param, buffer, src.len())?;
    let row_bytes = layout.cols as usize * buffer.dtype.bytes();
    let mut dense = Vec::with_capacity(layout.rows as usize * row_bytes);
    if layout.pitch_bytes > 0 {
        src.chunks_exact(layout.pitch_bytes).for_each(|row| dense.extend_from_slice(&row[..row_bytes]));
    }
    let shape: Vec<usize> = fixed_shape(param).unwrap_or_default().into_iter().map(|n| n as usize).collect();
    Tensor::from_bytes(buffer.dtype, &shape, &dense)
        .ok_or_else(|| internal(param, "unpacked rows should fill the shape"))
}

/// How a parameter lies in its buffer: rows of `cols` elements, `pitch_bytes` apart.
struct Layout {
    rows: u64,
    cols: u64,
    pitch_bytes: usize,
    /// The type that the layer gives the parameter: a rounding point before the buffer's own type.
    through: DType,
    dtype: DType,
}

impl Layout {
    fn new(param: &Param, buffer: &Buffer, len: usize) -> Result<Layout, Diagnostic> {
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
        Ok(Layout { rows, cols, pitch_bytes, through: param.ty.dtype, dtype: buffer.dtype })
    }
}

/// Rows of one task: enough to share cache lines between rows when the source is transposed.
const ROWS_PER_TASK: usize = 32;
/// Columns that a task reads from all its rows before it goes on: columns of a transposed tensor lie a power of two apart,
/// and more of them would push each other out of the first-level cache.
const COLS_PER_STEP: u64 = 16;

/// Fills every row of `dst`; `row_source` gives where a row's elements are, and the stored tensor.
/// The error is an integer that does not fit.
fn fill<'a>(
    layout: &Layout,
    dst: &mut [u8],
    row_source: impl Fn(u64) -> (Row<'a>, Elements<'a>) + Sync,
) -> Result<(), i64> {
    if layout.pitch_bytes == 0 {
        return Ok(());
    }
    let width = layout.dtype.bytes();
    dst.par_chunks_mut(layout.pitch_bytes * ROWS_PER_TASK).enumerate().try_for_each(|(task, chunk)| {
        let first = (task * ROWS_PER_TASK) as u64;
        let rows: Vec<_> = (0..chunk.len() / layout.pitch_bytes).map(|r| row_source(first + r as u64)).collect();
        let mut c = 0;
        while c < layout.cols {
            // Contiguous rows are done in one go; strided ones in steps, so that rows side by side share cache lines.
            let step = match rows[0].0.affine() {
                Some((_, 1)) => layout.cols,
                _ => COLS_PER_STEP.min(layout.cols - c),
            };
            for (r, (row, elements)) in rows.iter().enumerate() {
                let at = r * layout.pitch_bytes;
                let out = &mut chunk[at + c as usize * width..at + (c + step) as usize * width];
                match elements {
                    Elements::Plain(from, data) => copy(row, *from, data, c, layout, out)?,
                    Elements::Blocks(q) => dequantise(row, |at, step, v| q.read(at, step, v), c, layout, out),
                    Elements::Integers(q) => dequantise(row, |at, step, v| q.read(at, step, v), c, layout, out),
                }
            }
            c += step;
        }
        for row in chunk.chunks_exact_mut(layout.pitch_bytes) {
            row[layout.cols as usize * width..].fill(0);
        }
        Ok(())
    })
}

/// Columns `c..` of a row, as many as `out` has room for.
fn copy(row: &Row<'_>, from: DType, data: &[u8], c: u64, layout: &Layout, out: &mut [u8]) -> Result<(), i64> {
    let size = from.bytes();
    if let (Some((start, stride)), true) = (row.affine(), from.is_float()) {
        let source = Source { data, start: (start + c * stride) as usize * size, stride: stride as usize * size };
        convert_row(source, from, layout.through, layout.dtype, out);
        return Ok(());
    }
    let position = |i: usize| match row.affine() {
        Some((start, stride)) => (start + (c + i as u64) * stride) as usize * size,
        None => row.at(c + i as u64) as usize * size,
    };
    if !from.is_float() {
        for (i, out) in out.chunks_exact_mut(layout.dtype.bytes()).enumerate() {
            let bytes = &data[position(i)..];
            let value = match from {
                DType::U8 => i64::from(bytes.first().copied().unwrap_or(0)),
                DType::I32 => i64::from(i32::from_le_bytes(first(bytes))),
                DType::I64 | DType::F64 | DType::F32 | DType::F16 | DType::BF16 => i64::from_le_bytes(first(bytes)),
            };
            if layout.dtype == DType::I64 {
                out.copy_from_slice(&value.to_le_bytes());
            } else {
                out.copy_from_slice(&i32::try_from(value).map_err(|_| value)?.to_le_bytes());
            }
        }
        return Ok(());
    }
    // The loops are written out by type so that each is a tight loop of its own.
    let through = layout.through;
    match from {
        DType::F32 => convert(layout.dtype, out, through, |i| f32::from_le_bytes(first(&data[position(i)..]))),
        DType::F16 => convert(layout.dtype, out, through, |i| f16::from_le_bytes(first(&data[position(i)..])).to_f32()),
        DType::BF16 => {
            convert(layout.dtype, out, through, |i| bf16::from_le_bytes(first(&data[position(i)..])).to_f32());
        }
        DType::F64 | DType::I32 | DType::I64 | DType::U8 => {}
    }
    Ok(())
}

/// Dequantises columns `c..` of a row, as many as `out` has room for.
fn dequantise(row: &Row<'_>, read: impl Fn(u64, u64, &mut [f32]), c: u64, layout: &Layout, out: &mut [u8]) {
    let mut values = vec![0.0; out.len() / layout.dtype.bytes()];
    match row.affine() {
        Some((start, stride)) => read(start + c * stride, stride, &mut values),
        None => values.iter_mut().enumerate().for_each(|(i, v)| read(row.at(c + i as u64), 1, std::slice::from_mut(v))),
    }
    convert(layout.dtype, out, layout.through, |i| values[i]);
}

/// The first bytes of a slice that is known to be long enough.
#[inline]
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk::<N>().copied().unwrap_or([0; N])
}

fn convert(to: DType, out: &mut [u8], through: DType, get: impl Fn(usize) -> f32) {
    let narrow = through != to && matches!(through, DType::F16 | DType::BF16);
    let get = |i| if narrow { through.round(get(i)) } else { get(i) };
    match to {
        DType::F32 => {
            for (i, o) in out.chunks_exact_mut(4).enumerate() {
                o.copy_from_slice(&get(i).to_le_bytes());
            }
        }
        DType::F16 => {
            for (i, o) in out.chunks_exact_mut(2).enumerate() {
                o.copy_from_slice(&f16::from_f32(get(i)).to_le_bytes());
            }
        }
        DType::BF16 => {
            for (i, o) in out.chunks_exact_mut(2).enumerate() {
                o.copy_from_slice(&bf16::from_f32(get(i)).to_le_bytes());
            }
        }
        DType::F64 | DType::I32 | DType::I64 | DType::U8 => {}
    }
}

fn out_of_range(param: &Param, buffer: &Buffer, value: i64) -> Diagnostic {
    Diagnostic::input(
        "weight-out-of-range",
        format!("the weight `{}` holds {value}, which does not fit {}", param.name, buffer.dtype),
    )
}
