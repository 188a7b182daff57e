//! From a checkpoint's layout to the buffer that kernels read, and back.

use crate::checkpoint::Checkpoint;
use crate::coded;
use crate::convert::{Source, convert_row};
use crate::input_scale;
use crate::integers::{self, Integers};
use crate::quantised::{self, Quantised};
use crate::strided::{Row, Strided};
use half::{bf16, f16};
use moec_ir::DType;
use moec_ir::Tensor;
use moec_ir::abi::BUFFER_ALIGN;
use moec_ir::diag::Diagnostic;
use moec_ir::graph::Param;
use moec_ir::tile::Buffer;
use moec_ir::weights::{WeightSource, WeightStep};
use rayon::prelude::*;
use std::sync::Arc;

/// Fills `dst` with a parameter from a checkpoint, in the layout of `buffer`.
///
/// A tensor that is stored quantised is dequantised in f32 ([`crate::quantised`]); a buffer of codes, scales or global
/// scales gets what the checkpoint has of them, bit for bit.
/// Elements are rounded to the parameter's type and then to the buffer's (to nearest even; widening is exact). Columns
/// from `cols` to `pitch` become zero. Every byte of `dst` is written. Runs on all threads of the rayon pool.
///
/// # Errors
/// `tensor-missing`, `tensor-shape-mismatch`, `weight-type-unsupported`, `weight-steps-mismatch`, `stored-format-mismatch`,
/// `scale-not-exact`, `quantised-scale-missing`,
/// `weight-out-of-range`, `buffer-shape-mismatch`, and those of [`Checkpoint::tensor`].
pub fn pack_weight(checkpoint: &Checkpoint, param: &Param, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
    if coded::is_part(buffer) {
        return coded::pack_part(checkpoint, param, buffer, dst);
    }
    if let WeightSource::LargestInputScale(of) = &param.source {
        let scale = input_scale::largest(checkpoint, of)?;
        return pack_tensor(&Tensor::float(DType::F32, &[1], vec![scale]), param, buffer, dst);
    }
    let layout = Layout::new(param, buffer, dst.len())?;
    let pieces = resolve(checkpoint, param)?;
    let per_piece = layout.rows / pieces.len().max(1) as u64;
    for piece in &pieces {
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

/// The checkpoint's own memory as the buffer, when it needs no packing: one tensor of the wanted type, whole, in order,
/// without padding, at an address that kernels accept.
///
/// # Errors
/// As [`pack_weight`].
pub fn borrow_weight<'a>(
    checkpoint: &'a Checkpoint,
    param: &Param,
    buffer: &Buffer,
) -> Result<Option<&'a [u8]>, Diagnostic> {
    if coded::is_part(buffer) || matches!(param.source, WeightSource::LargestInputScale(_)) {
        return Ok(None);
    }
    Layout::new(param, buffer, buffer.bytes(0) as usize)?;
    let pieces = resolve(checkpoint, param)?;
    let [Piece { view, elements: Elements::Plain(dtype, data) }] = &pieces[..] else { return Ok(None) };
    let Some(start) = view.contiguous() else { return Ok(None) };
    let same = *dtype == buffer.dtype && param.ty.dtype == buffer.dtype && buffer.pitch == buffer.cols;
    let start = start as usize * buffer.dtype.bytes();
    let bytes = data.get(start..start + buffer.bytes(0) as usize);
    Ok(bytes.filter(|b| same && (b.as_ptr() as u64).is_multiple_of(BUFFER_ALIGN)))
}

/// As [`pack_weight`], for a parameter that is already a host tensor in the graph's layout.
///
/// # Errors
/// `tensor-shape-mismatch`, `weight-type-unsupported`, `weight-out-of-range`, `buffer-shape-mismatch`, and
/// `stored-format-mismatch` for a buffer of codes or scales.
pub fn pack_tensor(tensor: &Tensor, param: &Param, buffer: &Buffer, dst: &mut [u8]) -> Result<(), Diagnostic> {
    if coded::is_part(buffer) {
        return Err(coded::given_as_floats(param));
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

pub(crate) fn fixed_shape(param: &Param) -> Option<Vec<u64>> {
    param.ty.shape.iter().map(|d| d.fixed()).collect()
}

/// A stored tensor and the view of it that a source describes.
pub(crate) struct Piece<'a> {
    pub(crate) elements: Elements<'a>,
    pub(crate) view: Strided,
}

/// The elements of a stored tensor.
#[derive(Clone)]
pub(crate) enum Elements<'a> {
    /// Of a type that moec has, and their bytes.
    Plain(DType, &'a [u8]),
    /// Codes and scales of floats.
    Quantised(Arc<Quantised<'a>>),
    /// Integers with zero points.
    Integers(Arc<Integers<'a>>),
}

/// Finds the tensors of a parameter and checks that they have its shape: one piece, or one for each expert.
///
/// Layouts may share names and differ in shape only; of those that are there, the first that fits counts.
pub(crate) fn resolve<'a>(checkpoint: &'a Checkpoint, param: &Param) -> Result<Vec<Piece<'a>>, Diagnostic> {
    let mut there = Vec::new();
    existing(checkpoint, &param.source, &mut there);
    let mut error = None;
    for source in there {
        match resolve_one(checkpoint, param, source) {
            Ok(pieces) => return Ok(pieces),
            Err(d) => error = error.or(Some(d)),
        }
    }
    Err(error.unwrap_or_else(|| missing(checkpoint, param)))
}

fn resolve_one<'a>(
    checkpoint: &'a Checkpoint,
    param: &Param,
    source: &WeightSource,
) -> Result<Vec<Piece<'a>>, Diagnostic> {
    let want = fixed_shape(param).unwrap_or_default();
    match source {
        WeightSource::Tensor { names, steps } => {
            let name =
                names.iter().find(|n| quantised::contains(checkpoint, n)).ok_or_else(|| missing(checkpoint, param))?;
            Ok(vec![piece(checkpoint, param, name, steps, &want)?])
        }
        WeightSource::PerExpert { names, first, count, steps } => {
            let template = template(checkpoint, names, *first).ok_or_else(|| missing(checkpoint, param))?;
            if want.first() != Some(count) || *count > checkpoint.names().count() as u64 {
                return Err(missing(checkpoint, param).note(format!(
                    "{count} experts are asked for, the weight is {}, and the checkpoint has {} tensors in all",
                    param.ty,
                    checkpoint.names().count()
                )));
            }
            (*first..first.saturating_add(*count))
                .map(|e| piece(checkpoint, param, &template.replace("{e}", &e.to_string()), steps, &want[1..]))
                .collect()
        }
        WeightSource::FirstOf(_) | WeightSource::LargestInputScale(_) => Err(missing(checkpoint, param)),
    }
}

/// The sources, depth first, that have tensors in the checkpoint.
pub(crate) fn existing<'s>(checkpoint: &Checkpoint, source: &'s WeightSource, out: &mut Vec<&'s WeightSource>) {
    match source {
        WeightSource::Tensor { names, .. } if names.iter().any(|n| quantised::contains(checkpoint, n)) => {
            out.push(source);
        }
        WeightSource::PerExpert { names, first, .. } if template(checkpoint, names, *first).is_some() => {
            out.push(source)
        }
        WeightSource::Tensor { .. } | WeightSource::PerExpert { .. } | WeightSource::LargestInputScale(_) => {}
        WeightSource::FirstOf(list) => list.iter().for_each(|s| existing(checkpoint, s, out)),
    }
}

pub(crate) fn template<'s>(checkpoint: &Checkpoint, names: &'s [String], first: u64) -> Option<&'s String> {
    names.iter().find(|n| quantised::contains(checkpoint, &n.replace("{e}", &first.to_string())))
}

fn piece<'a>(
    checkpoint: &'a Checkpoint,
    param: &Param,
    name: &str,
    steps: &[WeightStep],
    want: &[u64],
) -> Result<Piece<'a>, Diagnostic> {
    let is_float = param.ty.dtype.is_float();
    let integers = if is_float { integers::find(checkpoint, name)? } else { None };
    let codes = if is_float && integers.is_none() { quantised::find(checkpoint, name)? } else { None };
    let (mut view, stored, file, elements) = match codes {
        None if let Some(q) = integers => {
            let view = Strided::dense(&[q.n, q.k]);
            let stored = format!("integers {:?}", view.shape());
            (view, stored, checkpoint.path(), Elements::Integers(Arc::new(q)))
        }
        Some(q) => {
            let mut view = Strided::dense(&q.shape());
            if q.transposed {
                view = view.step(&WeightStep::Transpose).map_err(|why| internal(param, &why))?;
            }
            let stored = format!("quantised {:?}", view.shape());
            (view, stored, checkpoint.path(), Elements::Quantised(Arc::new(q)))
        }
        None => {
            let tensor = checkpoint.tensor(name)?.ok_or_else(|| {
                missing(checkpoint, param)
                    .note(format!("`{name}` is not there, though other tensors of this weight are"))
            })?;
            let dtype = tensor.dtype.dtype().filter(|d| {
                if param.ty.dtype.is_float() {
                    matches!(d, DType::F32 | DType::F16 | DType::BF16)
                } else {
                    !d.is_float()
                }
            });
            let Some(dtype) = dtype else {
                return Err(unsupported(
                    param,
                    &format!("`{name}` in `{}`", tensor.file.display()),
                    tensor.dtype.name(),
                ));
            };
            (Strided::dense(tensor.shape), tensor.describe(), tensor.file, Elements::Plain(dtype, tensor.data))
        }
    };
    let file = file.display();
    let before = view.shape();
    for step in steps {
        view = view.step(step).map_err(|why| {
            Diagnostic::input(
                "weight-steps-mismatch",
                format!(
                    "`{name}` in `{file}` is {stored}, which cannot be brought into the layout of `{}`, {}",
                    param.name, param.ty
                ),
            )
            .note(why)
            .help(
                "config.json and weights do not belong together, or the model's family stores this weight another way",
            )
        })?;
    }
    if view.shape() != want {
        let found = view.shape();
        let how = if found == before { String::new() } else { format!(" ({found:?} in the layer's layout)") };
        return Err(Diagnostic::input(
            "tensor-shape-mismatch",
            format!(
                "`{name}` in `{file}` is {stored}{how}, but the layer asks for {want:?} (`{}`, {})",
                param.name, param.ty
            ),
        )
        .help("config.json and weights do not belong together; check that both come from the same model"));
    }
    Ok(Piece { elements, view })
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
                    Elements::Quantised(q) => dequantise(row, |at, step, v| q.read(at, step, v), c, layout, out),
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

fn missing(checkpoint: &Checkpoint, param: &Param) -> Diagnostic {
    let mut tried = Vec::new();
    candidates(&param.source, &mut tried);
    let mut d = Diagnostic::input(
        "tensor-missing",
        format!("`{}` has no tensor for the weight `{}`, {}", checkpoint.path().display(), param.name, param.ty),
    )
    .note(format!("looked for {}", tried.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")));
    if let Some(near) = tried.first().and_then(|n| checkpoint.nearest(n)) {
        d = d.note(format!("the most similar name there is `{near}`"));
    }
    d.help("check the layer number, and that config.json and weights come from the same model")
}

fn candidates(source: &WeightSource, out: &mut Vec<String>) {
    match source {
        WeightSource::Tensor { names, .. } => out.extend(names.iter().cloned()),
        WeightSource::PerExpert { names, first, .. } => {
            out.extend(names.iter().map(|n| n.replace("{e}", &first.to_string())));
        }
        WeightSource::FirstOf(list) | WeightSource::LargestInputScale(list) => {
            list.iter().for_each(|s| candidates(s, out));
        }
    }
}

fn unsupported(param: &Param, what: &str, found: &str) -> Diagnostic {
    let supported = if param.ty.dtype.is_float() { "float32, float16 or bfloat16" } else { "int32 or int64" };
    Diagnostic::input(
        "weight-type-unsupported",
        format!("{what} is stored as {found}, but `{}`, {}, has to be read from {supported}", param.name, param.ty),
    )
    .help("give a checkpoint that was converted to one of these types")
}

fn out_of_range(param: &Param, buffer: &Buffer, value: i64) -> Diagnostic {
    Diagnostic::input(
        "weight-out-of-range",
        format!("the weight `{}` holds {value}, which does not fit {}", param.name, buffer.dtype),
    )
}

fn internal(param: &Param, what: &str) -> Diagnostic {
    Diagnostic::internal("internal-error", format!("{what} (weight `{}`)", param.name))
}
