//! Choosing the largest scores of a row: top-k and group limits.
//!
//! Scores are compared by an unsigned key that has their order: NaN above +inf, -0 equal to +0. No score has key 0, which
//! stands for "none".

use super::{Values, Warp};
use crate::builder::{Builder, F32, I32, Var};
use moec_ir::DType;
use moec_ir::graph::{GroupScore, RowMask};

fn key<'c>(c: &'c Builder<'c>, x: F32<'c>) -> I32<'c> {
    // -0 + 0 is +0.
    let bits = (x + 0.0).bits();
    let key = c.select(bits.is_negative(), bits ^ u32::MAX, bits | 0x8000_0000);
    c.select(x.is_nan(), c.i32(u32::MAX), key)
}

/// The score that has this key; any NaN for NaN's.
fn score_of<'c>(c: &'c Builder<'c>, key: I32<'c>) -> F32<'c> {
    c.select(key.is_negative(), key ^ 0x8000_0000, key ^ u32::MAX).as_f32()
}

/// The indices of the `out.width` largest scores, by (score descending, index ascending).
///
/// Lane `l` holds the keys of columns `l`, `l + 32`, …; each round takes the largest of the warp away.
pub fn top_k<'c>(warp: &Warp<'_, 'c>, x: &Values<'c>, out: &Values<'c>) {
    let c = warp.c;
    let columns = warp.columns(x.width);
    let keys: Vec<Var<I32>> =
        columns.iter().map(|&(col, exists)| c.var(c.select(exists, key(c, x.float(col)), c.i32(0)))).collect();
    c.range(0, out.width, 1, |choice| {
        let mut best = (c.i32(0), c.i32(0));
        for (key, &(col, _)) in keys.iter().zip(&columns) {
            let key = key.get();
            // Columns ascend, so an equal one later does not replace an earlier one.
            let better = key.gt(best.0);
            best = (c.select(better, key, best.0), c.select(better, col, best.1));
        }
        let most = c.warp_max(best.0);
        let winner = c.warp_min(c.select(best.0.eq(most), best.1, c.i32(u32::MAX)));
        c.when(warp.lane.eq(0), || out.set_int(choice, winner));
        for (key, &(col, exists)) in keys.iter().zip(&columns) {
            let taken = exists.and(col.eq(winner));
            key.set(c.select(taken, c.i32(0), key.get()));
        }
    });
}

/// Parameters of a group limit.
pub struct GroupRule {
    pub n_groups: u32,
    pub keep: u32,
    pub score: GroupScore,
    pub fill: RowMask,
}

/// Keeps the scores of the best groups and fills the others. `scratch` holds two words for each group.
pub fn group_limit<'c>(
    warp: &Warp<'_, 'c>,
    x: &Values<'c>,
    scratch: &Values<'c>,
    rule: &GroupRule,
    dtype: DType,
    out: &Values<'c>,
) {
    let c = warp.c;
    let per_group = x.width / rule.n_groups;
    c.range(0, rule.n_groups, 1, |group| {
        let first = group * per_group;
        let (largest, second) = (c.var(c.i32(0)), c.var(c.i32(0)));
        warp.for_columns(per_group, |col| {
            let key = key(c, x.float(first + col));
            let most = largest.get();
            let is_largest = key.gt(most);
            let rest = c.select(is_largest, most, key);
            second.set(c.select(rest.gt(second.get()), rest, second.get()));
            largest.set(c.select(is_largest, key, most));
        });
        let (mine, next) = (largest.get(), second.get());
        let most = c.warp_max(mine);
        let score = match rule.score {
            GroupScore::Max => most,
            GroupScore::Top2Sum if per_group < 2 => most,
            GroupScore::Top2Sum => {
                // One lane that holds the largest offers its second instead.
                let holders = c.ballot(mine.eq(most));
                let is_first = mine.eq(most).and((holders & c.lanes_before()).eq(0));
                let runner_up = c.warp_max(c.select(is_first, next, mine));
                key(c, score_of(c, most) + score_of(c, runner_up))
            }
        };
        c.when(warp.lane.eq(0), || scratch.set_int(group, score));
    });
    c.warp_barrier();
    // A group is kept when fewer than `keep` groups come before it.
    warp.for_columns(rule.n_groups, |group| {
        let score = scratch.int(group);
        let before = c.var(c.i32(0));
        c.range(0, rule.n_groups, 1, |other| {
            let theirs = scratch.int(other);
            let comes_before = theirs.gt(score).or(theirs.eq(score).and(other.lt(group)));
            before.set(before.get() + comes_before.as_i32());
        });
        scratch.set_int(group + rule.n_groups, before.get().lt(rule.keep).as_i32());
    });
    c.warp_barrier();
    let fill = match rule.fill {
        RowMask::NegInf => f32::NEG_INFINITY,
        RowMask::Zero => 0.0,
    };
    warp.for_columns(x.width, |col| {
        let is_kept = scratch.int(col / per_group + rule.n_groups).ne(0);
        out.set_float(col, c.round(dtype, c.select(is_kept, x.float(col), c.f32(fill))));
    });
}
