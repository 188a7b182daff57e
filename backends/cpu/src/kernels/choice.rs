//! Choosing among scores: top-k and group limits.
//!
//! A score becomes an i64 whose signed order is (value ascending, index descending), so that each choice is a maximum.

use super::rows::{Layout, Row};
use crate::emit::{Emit, Lanes, plain};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use moec_ir::graph::{GroupScore, RowMask};

/// The sort key of a score at an index below `n`: NaN above +inf, -0 equal to +0, lower indices first.
fn key(e: &mut Emit, score: Value, index: Value, n: u64) -> Value {
    let bits = e.bits_of(score);
    // Negative floats grow with their magnitude: flip it, so that integer order is float order.
    let sign = e.b.ins().sshr_imm_u(bits, 31);
    let flip = e.and(sign, 0x7fff_ffff);
    let ordered = e.b.ins().bxor(bits, flip);
    let zero = e.bits(Lanes::One, 0);
    let float_zero = e.float(Lanes::One, 0.0);
    let is_zero = e.compare(FloatCC::Equal, score, float_zero);
    let ordered = e.pick(is_zero, zero, ordered);
    let top = e.bits(Lanes::One, 0x7fff_ffff);
    let is_nan = e.compare(FloatCC::Unordered, score, score);
    let ordered = e.pick(is_nan, top, ordered);
    let high = e.b.ins().sextend(types::I64, ordered);
    let high = e.up(high, 32);
    let last = e.int(n - 1);
    let low = e.b.ins().isub(last, index);
    e.b.ins().bor(high, low)
}

/// The index that a key stands for.
fn index_of(e: &mut Emit, key: Value, n: u64) -> Value {
    let low = e.b.ins().ireduce(types::I32, key);
    let low = e.b.ins().uextend(types::I64, low);
    let last = e.int(n - 1);
    e.b.ins().isub(last, low)
}

/// A key below that of every score.
fn nothing(e: &mut Emit) -> Value {
    e.b.ins().iconst(types::I64, i64::MIN)
}

/// Takes the best of the `n` keys in scratch memory out, and returns its index.
fn take_best(e: &mut Emit, layout: &Layout, n: u64) -> Value {
    let none = nothing(e);
    let (zero, count) = (e.int(0), e.int(n));
    let best = e.repeat(zero, count, 1, &[none], |e, i, best| {
        let at = e.at(e.scratch, i, 8);
        let key = e.b.ins().load(types::I64, plain(), at, layout.keys as i32);
        vec![e.b.ins().smax(best[0], key)]
    })[0];
    let index = index_of(e, best, n);
    let at = e.at(e.scratch, index, 8);
    e.b.ins().store(plain(), none, at, layout.keys as i32);
    index
}

/// The indices of the `to.width` best of `x`.
pub(super) fn top_k(e: &mut Emit, layout: &Layout, x: Row, to: Row) {
    e.each_of(x.width, |e, i| {
        let score = x.load(e, Lanes::One, i);
        let key = key(e, score, i, x.width);
        let at = e.at(e.scratch, i, 8);
        e.b.ins().store(plain(), key, at, layout.keys as i32);
    });
    e.each_of(to.width, |e, choice| {
        let index = take_best(e, layout, x.width);
        to.store_int(e, index, choice);
    });
}

/// How many groups there are and how many stay.
pub(super) struct Groups {
    pub n: u32,
    pub keep: u32,
}

/// Keeps the scores of the best groups and fills the others.
pub(super) fn group_limit(
    e: &mut Emit,
    layout: &Layout,
    x: Row,
    groups: Groups,
    score: GroupScore,
    fill: RowMask,
    to: Row,
) {
    let n_groups = u64::from(groups.n);
    let per_group = x.width / n_groups;
    e.each_of(n_groups, |e, group| {
        let first = e.times(group, per_group);
        let none = nothing(e);
        let (zero, n) = (e.int(0), e.int(per_group));
        let best = e.repeat(zero, n, 1, &[none, none], |e, i, best| {
            let at = e.b.ins().iadd(first, i);
            let score = x.load(e, Lanes::One, at);
            let key = key(e, score, i, per_group);
            let loser = e.b.ins().smin(best[0], key);
            vec![e.b.ins().smax(best[0], key), e.b.ins().smax(best[1], loser)]
        });
        let value = |e: &mut Emit, key: Value| {
            let i = index_of(e, key, per_group);
            let at = e.b.ins().iadd(first, i);
            x.load(e, Lanes::One, at)
        };
        let mut total = value(e, best[0]);
        if score == GroupScore::Top2Sum && per_group > 1 {
            let second = value(e, best[1]);
            total = e.b.ins().fadd(total, second);
        }
        let key = key(e, total, group, n_groups);
        let at = e.at(e.scratch, group, 8);
        e.b.ins().store(plain(), key, at, layout.keys as i32);
    });
    let fill = match fill {
        RowMask::NegInf => f32::NEG_INFINITY,
        RowMask::Zero => 0.0,
    };
    e.each_of(to.width, |e, i| {
        let fill = e.float(Lanes::One, fill);
        to.store(e, fill, i);
    });
    e.each_of(u64::from(groups.keep), |e, _| {
        let group = take_best(e, layout, n_groups);
        let first = e.times(group, per_group);
        let last = e.plus(first, per_group as i64);
        e.each(first, last, |e, i| {
            let v = x.load(e, Lanes::One, i);
            to.store(e, v, i);
        });
    });
}
