//! Tensor maps of a contraction.
//!
//! Tiles lie in shared memory as rows of 128 bytes along k, in the 128-byte swizzle: the layout that tensor cores read
//! without bank conflicts, and the widest that one copy writes.

use crate::builder::MapId;
use moec_ir::DType;
use moec_ir::engine::{ROW_BYTES, code_row_bytes};
use moec_ir::quant::Code;
use moec_ir::shape::Dim;
use moec_ir::tile::{BufferId, Contract, MapElem, Program, RowMap, Segment, TensorMap};

/// The maps of one segment.
#[derive(Clone, Debug)]
pub struct SegmentMaps {
    /// For each panel: `[E, N, K]`, or the bytes of its codes, boxes of `[1, rows, k]`.
    pub weights: Vec<MapId>,
    /// `[rows, K]`: boxes of rows, or of one row where rows are gathered, or made by the same launch.
    pub activations: MapId,
}

/// The maps of a launch; segments that read the same rows the same way share one.
struct Table<'o> {
    maps: Vec<TensorMap>,
    operands: &'o [(BufferId, bool)],
}

impl Table<'_> {
    /// The number of the map of `buffer` with these dimensions, strides and boxes.
    fn add(
        &mut self,
        buffer: BufferId,
        elem: MapElem,
        (dims, strides): (Vec<Dim>, Vec<u64>),
        (box_dims, swizzle_bytes): (Vec<u32>, u32),
    ) -> Result<MapId, String> {
        let operand = self.operands.iter().position(|&(b, _)| b == buffer);
        let operand = operand.ok_or("a kernel copies a buffer that is none of its operands")? as u32;
        let map = TensorMap { operand, elem, dims, strides, box_dims, swizzle_bytes };
        let at = self.maps.iter().position(|m| *m == map).unwrap_or_else(|| {
            self.maps.push(map);
            self.maps.len() - 1
        });
        Ok(MapId(at as u32))
    }
}

/// The maps of every segment, for tiles of `panel_rows` weight rows; rows of activations that are not gathered come
/// `box_rows` at a time. `operands` are those of the kernel.
///
/// # Errors
/// A buffer that is no operand.
pub fn maps(
    program: &Program,
    contract: &Contract,
    operands: &[(BufferId, bool)],
    panel_rows: u32,
    box_rows: u32,
) -> Result<(Vec<TensorMap>, Vec<SegmentMaps>), String> {
    let mut table = Table { maps: Vec::new(), operands };
    let mut segment = |(i, s): (usize, &Segment)| -> Result<SegmentMaps, String> {
        let a = program.buffer(s.a);
        let rows = rows_of_box(contract, i, box_rows);
        let dims = (vec![Dim::Fixed(a.cols), a.rows], vec![a.pitch * 2]);
        let boxes = (vec![ROW_BYTES / 2, rows], ROW_BYTES);
        let activations = table.add(s.a, elem(a.dtype), dims, boxes)?;
        let mut weights = Vec::new();
        for panel in &s.panels {
            let w = program.buffer(panel.weights);
            let rows = program.buffer(s.out).cols;
            // Codes come as bytes, in the swizzle that is as wide as their part of a step.
            let (elem, cols, wide) = match &panel.quant {
                None => (elem(w.dtype), a.cols, ROW_BYTES / 2),
                Some(q) => (MapElem::U8, q.format.code.bytes(a.cols), code_row_bytes(q)),
            };
            let pitch = w.pitch * elem.bytes();
            let dims = vec![Dim::Fixed(cols), Dim::Fixed(rows), Dim::Fixed(w.batch)];
            let boxes = (vec![wide, panel_rows, 1], wide * elem.bytes() as u32);
            weights.push(table.add(panel.weights, elem, (dims, vec![pitch, rows * pitch]), boxes)?);
        }
        Ok(SegmentMaps { weights, activations })
    };
    let segments = contract.segments.iter().enumerate().map(&mut segment).collect::<Result<_, _>>()?;
    Ok((table.maps, segments))
}

/// How the weights' codes of a step lie in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeRows {
    /// As many as fill [`ROW_BYTES`].
    Whole,
    /// FP4 spread to a byte each by the copy, which fill [`ROW_BYTES`].
    Spread,
    /// 4-bit codes for as many bytes of rows: half of [`ROW_BYTES`], in the swizzle of that width.
    Half,
}

/// The maps of every segment whose rows and weights are codes, for steps of [`ROW_BYTES`] bytes of rows in shared memory.
///
/// # Errors
/// Rows or weights that are no codes; a buffer that is no operand.
pub fn coded_maps(
    program: &Program,
    contract: &Contract,
    operands: &[(BufferId, bool)],
    (panel_rows, box_rows): (u32, u32),
    code_rows: impl Fn(Code) -> CodeRows,
) -> Result<(Vec<TensorMap>, Vec<SegmentMaps>), String> {
    let mut table = Table { maps: Vec::new(), operands };
    // The columns of a row of k codes, and what they are.
    let row = |code: Code, k: u64| match code_rows(code) {
        CodeRows::Spread => (MapElem::U4Padded, k.next_multiple_of(u64::from(ROW_BYTES))),
        CodeRows::Whole | CodeRows::Half => (MapElem::U8, code.bytes(k)),
    };
    let mut segment = |(i, s): (usize, &Segment)| -> Result<SegmentMaps, String> {
        let (a, k, n) = (program.buffer(s.a), s.k(program), s.n(program));
        let quant = s.a_quant.as_ref().ok_or("a product of codes has rows that are none")?;
        let (elem, cols) = row(quant.q.code, k);
        let rows = rows_of_box(contract, i, box_rows);
        let dims = (vec![Dim::Fixed(cols), a.rows], vec![a.pitch]);
        let activations = table.add(s.a, elem, dims, (vec![ROW_BYTES, rows], ROW_BYTES))?;
        let mut weights = Vec::new();
        for panel in &s.panels {
            let w = program.buffer(panel.weights);
            let quant = panel.quant.as_ref().ok_or("a product of codes has weights that are none")?;
            let (elem, cols) = row(quant.format.code, k);
            let dims = vec![Dim::Fixed(cols), Dim::Fixed(n), Dim::Fixed(w.batch)];
            let wide = if code_rows(quant.format.code) == CodeRows::Half { ROW_BYTES / 2 } else { ROW_BYTES };
            let boxes = (vec![wide, panel_rows, 1], wide);
            weights.push(table.add(panel.weights, elem, (dims, vec![w.pitch, n * w.pitch]), boxes)?);
        }
        Ok(SegmentMaps { weights, activations })
    };
    let segments = contract.segments.iter().enumerate().map(&mut segment).collect::<Result<_, _>>()?;
    Ok((table.maps, segments))
}

/// Rows of activations that a copy brings for a segment. Of rows that the launch itself makes none but those of a tile are read: others
/// may not be stored yet.
fn rows_of_box(contract: &Contract, segment: usize, box_rows: u32) -> u32 {
    let gathers = matches!(contract.segments[segment].a_rows, RowMap::Gather(_));
    if gathers || contract.chain_to(segment).is_some() { 1 } else { box_rows }
}

fn elem(dtype: DType) -> MapElem {
    if dtype == DType::F16 { MapElem::F16 } else { MapElem::Bf16 }
}
