//! Copies strided pieces of stored tensors into the rows of a buffer. It knows no names and no formats of checkpoints.
//!
//! Stored elements lie in runs: along the last axis, or along the first for codes that were packed from the transpose.
//! A row of the buffer that is such a run is read in one go. Otherwise rows side by side usually are the runs, and a tile
//! of them is read run by run and transposed in the first-level cache.

use super::convert::{Source, convert_row, narrow};
use super::transpose::{TILE_LINE, TILE_ROWS, Tile};
use crate::decode::Elements;
use crate::decode::integers::GroupRun;
use crate::strided::Row;
use moec_ir::DType;
use rayon::prelude::*;

/// The rows of a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// Elements of a row.
    pub cols: u64,
    /// From one row to the next, in bytes; what follows the elements becomes zero.
    pub pitch_bytes: usize,
    /// The type that elements are rounded to before the buffer's own.
    pub through: DType,
    /// The element type.
    pub dtype: DType,
}

/// Values on their way from codes to bytes.
const CHUNK: usize = 256;

/// What a thread works in.
struct Scratch {
    tile: Tile,
    values: [f32; CHUNK],
}

/// Fills every row of `dst`; `row_source` gives where a row's elements are, and the stored tensor. Runs on all threads of
/// the rayon pool; `copied` is told of how many rows are there now.
///
/// # Errors
/// An integer that does not fit the rows' type.
pub(crate) fn copy_rows<'a>(
    rows: &Rows,
    dst: &mut [u8],
    row_source: impl Fn(u64) -> (Row<'a>, &'a Elements<'a>) + Sync,
    copied: impl Fn(u64) + Sync,
) -> Result<(), i64> {
    if rows.pitch_bytes == 0 {
        return Ok(());
    }
    dst.par_chunks_mut(rows.pitch_bytes * TILE_ROWS).enumerate().try_for_each(|(task, dst)| {
        let first = (task * TILE_ROWS) as u64;
        let sources: Vec<_> = (first..).take(dst.len() / rows.pitch_bytes).map(&row_source).collect();
        let mut scratch = Scratch { tile: Tile::new(), values: [0.0; CHUNK] };
        let (mut left, mut dst) = (&sources[..], dst);
        while let Some((row, elements)) = left.first() {
            let regular = regular_rows(left);
            let (here, rest) = dst.split_at_mut(regular.count * rows.pitch_bytes);
            match (elements, row.affine()) {
                (Elements::Plain(from, data), _) if !from.is_float() => {
                    for ((row, _), out) in left.iter().zip(here.chunks_exact_mut(rows.pitch_bytes)) {
                        copy_integers(row, *from, data, rows, out)?;
                    }
                }
                (_, Some((start, stride))) => {
                    let grid = Grid { start, row_stride: regular.stride, col_stride: stride };
                    copy_grid(elements, grid, rows, here, &mut scratch);
                }
                (_, None) => copy_scattered(elements, row, rows, here, &mut scratch),
            }
            let padding = rows.cols as usize * rows.dtype.bytes();
            here.chunks_exact_mut(rows.pitch_bytes).for_each(|row| row[padding..].fill(0));
            (left, dst) = (&left[regular.count..], rest);
        }
        copied(sources.len() as u64);
        Ok(())
    })
}

/// Where the elements of rows lie in a stored tensor: element `(r, c)` is at `start + r * row_stride + c * col_stride`.
#[derive(Clone, Copy)]
struct Grid {
    start: u64,
    row_stride: u64,
    col_stride: u64,
}

struct RegularRows {
    count: usize,
    stride: u64,
}

/// How many of the first rows are of one tensor, have elements equally far apart, and are equally far from each other.
fn regular_rows(sources: &[(Row<'_>, &Elements<'_>)]) -> RegularRows {
    let start_of = |i: usize| {
        let (row, elements) = sources.get(i).filter(|(_, e)| std::ptr::eq(*e, sources[0].1))?;
        row.affine().filter(|a| Some(a.1) == sources[0].0.affine().map(|first| first.1)).map(|a| a.0).filter(|_| {
            // Integers are copied element by element anyway.
            !matches!(elements, Elements::Plain(from, _) if !from.is_float())
        })
    };
    let step = |i: usize| start_of(i + 1)?.checked_sub(start_of(i)?);
    let Some(stride) = step(0) else { return RegularRows { count: 1, stride: 0 } };
    let count = 2 + (1..).take_while(|&i| step(i) == Some(stride)).count();
    RegularRows { count, stride }
}

fn copy_grid(elements: &Elements<'_>, grid: Grid, rows: &Rows, dst: &mut [u8], scratch: &mut Scratch) {
    let Scratch { tile, values } = scratch;
    let group = &mut GroupRun::default();
    let width = rows.dtype.bytes();
    let count = dst.len() / rows.pitch_bytes;
    if grid.col_stride == elements.run_stride() || rows.cols == 1 || count == 1 {
        for (r, row) in dst.chunks_exact_mut(rows.pitch_bytes).enumerate() {
            let out = &mut row[..rows.cols as usize * width];
            elements.read(grid.start + r as u64 * grid.row_stride, grid.col_stride, rows, out, (values, group));
        }
        return;
    }
    let tile_cols = TILE_LINE / width;
    for first in (0..rows.cols).step_by(tile_cols) {
        let cols = (rows.cols - first).min(tile_cols as u64) as usize;
        for c in 0..cols {
            let at = grid.start + (first + c as u64) * grid.col_stride;
            let out = &mut tile.column(c, width)[..count * width];
            elements.read(at, grid.row_stride, rows, out, (values, group));
        }
        tile.write_rows(width, (count, cols * width), dst, first as usize * width, rows.pitch_bytes);
    }
}

/// One row whose elements are wherever the view says.
fn copy_scattered(elements: &Elements<'_>, row: &Row<'_>, rows: &Rows, dst: &mut [u8], scratch: &mut Scratch) {
    let group = &mut GroupRun::default();
    for (c, out) in dst.chunks_exact_mut(rows.dtype.bytes()).enumerate().take(rows.cols as usize) {
        elements.read(row.at(c as u64), 1, rows, out, (&mut scratch.values, group));
    }
}

impl Elements<'_> {
    /// From one element of a run to the next, in elements of the float tensor.
    fn run_stride(&self) -> u64 {
        match self {
            Elements::Plain(..) | Elements::Ggml(_) => 1,
            Elements::Blocks(b) => b.run_stride(),
            Elements::Integers(q) => q.run_stride(),
        }
    }

    /// Elements `start, start + stride, …`, counted row by row, rounded to the rows' types: as many as `out` has room for.
    fn read(
        &self,
        start: u64,
        stride: u64,
        rows: &Rows,
        out: &mut [u8],
        (values, group): (&mut [f32; CHUNK], &mut GroupRun),
    ) {
        let width = rows.dtype.bytes();
        if let Elements::Plain(from, data) = self {
            let size = from.bytes();
            let source = Source { data, start: start as usize * size, stride: stride as usize * size };
            return convert_row(source, *from, rows.through, rows.dtype, out);
        }
        for (chunk, out) in out.chunks_mut(CHUNK * width).enumerate() {
            let values = &mut values[..out.len() / width];
            let start = start + (chunk * CHUNK) as u64 * stride;
            match self {
                Elements::Plain(..) => {}
                Elements::Blocks(q) => q.read(start, stride, group, values),
                Elements::Integers(q) => q.read(start, stride, group, values),
                Elements::Ggml(q) => q.read(start, stride, values),
            }
            narrow(values, DType::F32, rows.through, rows.dtype, out);
        }
    }
}

/// One row of integers.
fn copy_integers(row: &Row<'_>, from: DType, data: &[u8], rows: &Rows, out: &mut [u8]) -> Result<(), i64> {
    let out = out.chunks_exact_mut(rows.dtype.bytes()).take(rows.cols as usize);
    for (c, out) in out.enumerate() {
        let bytes = &data[row.at(c as u64) as usize * from.bytes()..];
        let value = match from {
            DType::U8 => i64::from(bytes.first().copied().unwrap_or(0)),
            DType::I32 => i64::from(bytes.first_chunk().copied().map_or(0, i32::from_le_bytes)),
            DType::I64 | DType::F64 | DType::F32 | DType::F16 | DType::BF16 => {
                bytes.first_chunk().copied().map_or(0, i64::from_le_bytes)
            }
        };
        if rows.dtype == DType::I64 {
            out.copy_from_slice(&value.to_le_bytes());
        } else {
            out.copy_from_slice(&i32::try_from(value).map_err(|_| value)?.to_le_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strided::Strided;
    use half::{bf16, f16};
    use moec_ir::weights::WeightStep;
    use proptest::prelude::*;

    /// One element at a time, by the types' own conversions.
    fn obvious(data: &[u8], from: DType, view: &Strided, rows: &Rows, dst: &mut [u8]) {
        let width = rows.dtype.bytes();
        for (r, row) in dst.chunks_exact_mut(rows.pitch_bytes).enumerate() {
            row.fill(0);
            for c in 0..rows.cols {
                let stored = &data[view.row(r as u64).at(c) as usize * from.bytes()..];
                let x = match from {
                    DType::BF16 => bf16::from_le_bytes([stored[0], stored[1]]).to_f32(),
                    DType::F16 => f16::from_le_bytes([stored[0], stored[1]]).to_f32(),
                    _ => f32::from_le_bytes([stored[0], stored[1], stored[2], stored[3]]),
                };
                let x = rows.through.round(x);
                let bytes = match rows.dtype {
                    DType::BF16 => bf16::from_f32(x).to_le_bytes().to_vec(),
                    DType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
                    _ => x.to_le_bytes().to_vec(),
                };
                row[c as usize * width..][..width].copy_from_slice(&bytes);
            }
        }
    }

    /// Views of a stored `[batch, a, b]`: as it is, transposed, every second row or column of it, and what no strides say.
    fn view(kind: u8, [batch, a, b]: [u64; 3]) -> Strided {
        let every_second =
            |axis: u32, len: u64| WeightStep::Slice { axis, start: len.min(2) - 1, step: 2, len: len / 2, of: None };
        let flat = WeightStep::Reshape { shape: vec![batch * b, a] };
        let steps = match kind {
            0 => vec![],
            1 => vec![WeightStep::Transpose],
            2 => vec![WeightStep::Transpose, every_second(1, b)],
            3 => vec![WeightStep::Transpose, every_second(2, a)],
            4 => vec![every_second(2, b)],
            5 => vec![every_second(1, a)],
            _ => vec![WeightStep::Transpose, every_second(0, batch), WeightStep::Transpose, WeightStep::Transpose],
        };
        let steps = if kind == 7 { vec![WeightStep::Transpose, flat] } else { steps };
        steps.iter().try_fold(Strided::dense(&[batch, a, b]), Strided::step).expect("steps should fit")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn floats_of_any_view_are_copied_as_one_by_one(
            (kind, from, through, to) in (0u8..8, 0usize..3, 0usize..3, 0usize..3),
            batch in 1u64..4, a in 1u64..301, b in 1u64..301, padding in 0usize..3, seed in any::<u32>(),
        ) {
            let [from, through, to] = [from, through, to].map(|i| [DType::F32, DType::BF16, DType::F16][i]);
            let view = view(kind, [batch, a, b]);
            let shape = view.shape();
            let cols = *shape.last().expect("rank");
            let n_rows = (shape.iter().product::<u64>().checked_div(cols)).unwrap_or(0) as usize;
            let pitch_bytes = (cols as usize + padding) * to.bytes();
            let rows = Rows { cols, pitch_bytes, through, dtype: to };
            // Any bits but those of a NaN, of which only the quiet bit is defined.
            let data: Vec<u8> = (0..batch * a * b).flat_map(|i| {
                let bits = (i as u32 ^ seed).wrapping_mul(0x9E37_79B9);
                let bits = if from == DType::F16 { bits & 0xFFFF_BFFF } else { bits & 0xBFFF_FFFF };
                bits.to_le_bytes()[4 - from.bytes()..].to_vec()
            }).collect();
            let data = if from == DType::F16 { data.iter().map(|b| b & 0xBF).collect() } else { data };
            let (mut got, mut want) = (vec![0xAB; n_rows * pitch_bytes], vec![0xAB; n_rows * pitch_bytes]);
            let elements = Elements::Plain(from, &data);
            prop_assert_eq!(copy_rows(&rows, &mut got, |r| (view.row(r), &elements), |_| ()), Ok(()));
            if pitch_bytes > 0 {
                obvious(&data, from, &view, &rows, &mut want);
            }
            prop_assert!(got == want, "{from} through {through} to {to}");
        }
    }
}
