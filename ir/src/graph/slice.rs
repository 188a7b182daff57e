//! A part of a parameter: some of the entries of one of its axes.

use super::Param;
use crate::quant::QuantFormat;
use crate::shape::Dim;
use crate::weights::{WeightSource, WeightStep};
use std::ops::Range;

/// The parameter with entries `range` of `axis` only: of its type, and of what its source gives.
pub fn slice_param(whole: &Param, axis: usize, range: &Range<u64>) -> Param {
    let mut param = whole.clone();
    let len = range.end - range.start;
    if param.ty.shape[axis] == Dim::Fixed(len) && range.start == 0 {
        return param;
    }
    let of = param.ty.shape[axis].fixed();
    param.ty.shape[axis] = Dim::Fixed(len);
    slice(&mut param.source, axis, range, of);
    // A block of codes that is parted has no scale of its own here: it becomes floats when it is loaded.
    let axes = param.ty.shape.len();
    let block = |f: QuantFormat| match axes - axis {
        1 => f.block_cols,
        2 => f.block_rows,
        _ => 1,
    };
    param.stored = param.stored.filter(|&f| block(f) == 0 || range.start.is_multiple_of(block(f)));
    param
}

/// Leaves only `range` of `axis`, which has `of` entries, of what a source gives.
fn slice(source: &mut WeightSource, axis: usize, range: &Range<u64>, of: Option<u64>) {
    let len = range.end - range.start;
    let step = |axis: usize| WeightStep::Slice { axis: axis as u32, start: range.start, step: 1, len, of };
    match source {
        WeightSource::Tensor { steps, .. } => steps.push(step(axis)),
        WeightSource::PerExpert { first, count, steps, .. } => {
            if axis == 0 {
                *first += range.start;
                *count = len;
            } else {
                steps.push(step(axis - 1));
            }
        }
        WeightSource::FirstOf(list) => list.iter_mut().for_each(|s| slice(s, axis, range, of)),
        // One number has no parts.
        WeightSource::LargestInputScale(_) => {}
    }
}
