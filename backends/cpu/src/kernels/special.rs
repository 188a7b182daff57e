//! Row steps of the less usual routers: reductions, masks, joined rows, hash tables, zero-compute experts.

use super::rows::{Row, total};
use crate::emit::{Emit, Lanes, plain};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Value, types};
use moec_ir::graph::Reduce;
use moec_ir::shape::Dim;
use moec_ir::tile::BufferId;

/// The largest value, or the sum (in f64, rounded once), of a row.
pub(super) fn reduce(e: &mut Emit, x: Row, kind: Reduce, to: Row) {
    let value = match kind {
        Reduce::Max => {
            let least = e.float(Lanes::One, f32::NEG_INFINITY);
            x.fold(e, least, |e, max, x| e.extreme(FloatCC::GreaterThan, max, x))
        }
        Reduce::Sum => {
            let sum = total(e, x);
            e.b.ins().fdemote(types::F32, sum)
        }
    };
    let zero = e.int(0);
    to.store(e, value, zero);
}

/// `x` with -inf at the indices that lie in it.
pub(super) fn mask_chosen(e: &mut Emit, x: Row, ids: Row, to: Row) {
    copy(e, x, to, 0);
    e.each_of(ids.width, |e, i| {
        let id = ids.load_int(e, i);
        let inside = e.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, id, to.width as i64);
        e.when(inside, |e| {
            let none = e.float(Lanes::One, f32::NEG_INFINITY);
            to.store(e, none, id);
        });
    });
}

/// `a` and then `b`.
pub(super) fn join(e: &mut Emit, a: Row, b: Row, to: Row) {
    copy(e, a, to, 0);
    copy(e, b, to, a.width);
}

/// Copies a row's 32-bit values, of whichever type, to `to[from..]`.
fn copy(e: &mut Emit, x: Row, to: Row, from: u64) {
    e.each_of(x.width, |e, i| {
        let v = x.load_int(e, i);
        let at = e.plus(i, from as i64);
        to.store_int(e, v, at);
    });
}

/// Row `index[row]` of a table, or -1 everywhere.
pub(super) fn lookup(e: &mut Emit, table: BufferId, index: BufferId, row: Value, to: Row) {
    let at = e.row_pointer(index, row);
    let index = e.b.ins().load(types::I64, plain(), at, 0);
    let n_rows = if let Dim::Fixed(n) = e.buffer(table).rows { n } else { 0 };
    let inside = e.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, index, n_rows as i64);
    let zero = e.int(0);
    // Row 0 is read, and thrown away, for an index outside the table.
    let safe = e.b.ins().select(inside, index, zero);
    let from = e.row_pointer(table, safe);
    e.each_of(to.width, |e, i| {
        let at = e.at(from, i, 4);
        let id = e.load_i32(at, 0);
        let none = e.b.ins().iconst(types::I64, -1);
        let id = e.b.ins().select(inside, id, none);
        to.store_int(e, id, i);
    });
}

/// The sum of the weights whose id is outside `0..n_experts`, in slot order, in f32.
pub(super) fn sum_outside(e: &mut Emit, weights: Row, ids: Row, n_experts: u32, to: Row) {
    let (zero, n) = (e.int(0), e.int(weights.width));
    let nothing = e.float(Lanes::One, 0.0);
    let sum = e.repeat(zero, n, 1, &[nothing], |e, i, sum| {
        let id = ids.load_int(e, i);
        let outside = e.b.ins().icmp_imm_u(IntCC::UnsignedGreaterThanOrEqual, id, i64::from(n_experts));
        let w = weights.load(e, Lanes::One, i);
        let more = e.b.ins().fadd(sum[0], w);
        vec![e.b.ins().select(outside, more, sum[0])]
    })[0];
    to.store(e, sum, zero);
}

/// The ids `first..first+count` counted from `first`, and -1 for the others.
pub(super) fn local_ids(e: &mut Emit, ids: Row, first: u32, count: u32, to: Row) {
    e.each_of(to.width, |e, i| {
        let id = ids.load_int(e, i);
        let local = e.plus(id, -i64::from(first));
        let inside = e.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, local, i64::from(count));
        let none = e.b.ins().iconst(types::I64, -1);
        let id = e.b.ins().select(inside, local, none);
        to.store_int(e, id, i);
    });
}
