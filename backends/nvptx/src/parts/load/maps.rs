//! Tensor maps of a contraction.
//!
//! Tiles lie in shared memory as rows of 128 bytes along k, in the 128-byte swizzle: the layout that tensor cores read
//! without bank conflicts, and the widest that one copy writes.

use crate::builder::MapId;
use moec_ir::DType;
use moec_ir::quant::Code;
use moec_ir::shape::Dim;
use moec_ir::tile::{BufferId, Contract, MapElem, PanelQuant, Program, RowMap, Segment, TensorMap};

/// Bytes of a row of a tile.
pub const SWIZZLE_BYTES: u32 = 128;

/// Bytes of the codes of one row in a step along k: 64 or 32.
pub fn code_bytes(q: &PanelQuant) -> u32 {
    SWIZZLE_BYTES / 2 * q.format.code.bits() as u32 / 8
}

/// The maps of one segment.
#[derive(Clone, Debug)]
pub struct SegmentMaps {
    /// For each panel: `[E, N, K]`, or the bytes of its codes, boxes of `[1, rows, k]`.
    pub weights: Vec<MapId>,
    /// `[rows, K]`: boxes of rows, or of one row where rows are gathered.
    pub activations: MapId,
}

/// The maps of every segment, for tiles of `panel_rows` weight rows; rows of activations that are not gathered come
/// `box_rows` at a time. `operands` are those of the kernel.
pub fn maps(
    program: &Program,
    contract: &Contract,
    operands: &[(BufferId, bool)],
    panel_rows: u32,
    box_rows: u32,
) -> (Vec<TensorMap>, Vec<SegmentMaps>) {
    let mut all: Vec<TensorMap> = Vec::new();
    let mut add = |map: TensorMap| {
        // Segments that read the same rows the same way share a map.
        let at = all.iter().position(|m| *m == map).unwrap_or_else(|| {
            all.push(map);
            all.len() - 1
        });
        MapId(at as u32)
    };
    let operand = |id: BufferId| operands.iter().position(|&(b, _)| b == id).unwrap_or(operands.len()) as u32;
    let segment = |s: &Segment| {
        let a = program.buffer(s.a);
        let rows = if matches!(s.a_rows, RowMap::Gather(_)) { 1 } else { box_rows };
        let activations = add(TensorMap {
            operand: operand(s.a),
            elem: elem(a.dtype),
            dims: vec![Dim::Fixed(a.cols), a.rows],
            strides: vec![a.pitch * 2],
            box_dims: vec![SWIZZLE_BYTES / 2, rows],
            swizzle_bytes: SWIZZLE_BYTES,
        });
        let weights = s.panels.iter().map(|panel| {
            let w = program.buffer(panel.weights);
            let rows = program.buffer(s.out).cols;
            // Codes come as bytes, in the swizzle that is as wide as their part of a step.
            let (elem, cols, wide) = match &panel.quant {
                None => (elem(w.dtype), a.cols, SWIZZLE_BYTES / 2),
                Some(q) => (MapElem::U8, q.format.code.bytes(a.cols), code_bytes(q)),
            };
            let pitch = w.pitch * elem.bytes();
            add(TensorMap {
                operand: operand(panel.weights),
                elem,
                dims: vec![Dim::Fixed(cols), Dim::Fixed(rows), Dim::Fixed(w.batch)],
                strides: vec![pitch, rows * pitch],
                box_dims: vec![wide, panel_rows, 1],
                swizzle_bytes: wide * elem.bytes() as u32,
            })
        });
        SegmentMaps { weights: weights.collect(), activations }
    };
    let segments = contract.segments.iter().map(segment).collect();
    (all, segments)
}

/// The maps of every segment whose rows and weights are codes, for steps of [`SWIZZLE_BYTES`] bytes in shared memory. FP4
/// codes that are multiplied with FP8 are `spread` to a byte each.
pub fn coded_maps(
    program: &Program,
    contract: &Contract,
    operands: &[(BufferId, bool)],
    (panel_rows, box_rows): (u32, u32),
    spread: impl Fn(Code) -> bool,
) -> (Vec<TensorMap>, Vec<SegmentMaps>) {
    let mut all: Vec<TensorMap> = Vec::new();
    let mut add = |map: TensorMap| {
        let at = all.iter().position(|m| *m == map).unwrap_or_else(|| {
            all.push(map);
            all.len() - 1
        });
        MapId(at as u32)
    };
    let operand = |id: BufferId| operands.iter().position(|&(b, _)| b == id).unwrap_or(operands.len()) as u32;
    // The columns of a row of k codes, and what they are.
    let row = |code: Code, k: u64| match spread(code) {
        true => (MapElem::U4Padded, k.next_multiple_of(u64::from(SWIZZLE_BYTES))),
        false => (MapElem::U8, code.bytes(k)),
    };
    let segment = |s: &Segment| {
        let (a, k) = (program.buffer(s.a), s.k(program));
        let (elem, cols) = row(s.a_quant.as_ref().map_or(Code::E4M3, |q| q.q.code), k);
        let rows = if matches!(s.a_rows, RowMap::Gather(_)) { 1 } else { box_rows };
        let activations = add(TensorMap {
            operand: operand(s.a),
            elem,
            dims: vec![Dim::Fixed(cols), a.rows],
            strides: vec![a.pitch],
            box_dims: vec![SWIZZLE_BYTES, rows],
            swizzle_bytes: SWIZZLE_BYTES,
        });
        let n = s.n(program);
        let weights = s.panels.iter().map(|panel| {
            let w = program.buffer(panel.weights);
            let (elem, cols) = row(panel.quant.as_ref().map_or(Code::E4M3, |q| q.format.code), k);
            add(TensorMap {
                operand: operand(panel.weights),
                elem,
                dims: vec![Dim::Fixed(cols), Dim::Fixed(n), Dim::Fixed(w.batch)],
                strides: vec![w.pitch, n * w.pitch],
                box_dims: vec![SWIZZLE_BYTES, panel_rows, 1],
                swizzle_bytes: SWIZZLE_BYTES,
            })
        });
        SegmentMaps { weights: weights.collect(), activations }
    };
    let segments = contract.segments.iter().map(segment).collect();
    (all, segments)
}

fn elem(dtype: DType) -> MapElem {
    if dtype == DType::F16 { MapElem::F16 } else { MapElem::Bf16 }
}
