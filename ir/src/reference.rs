//! The obvious implementations of routing and dispatch, shared by both reference evaluators.

use crate::graph::{GroupScore, Reduce, RenormRule, RowMask, Score};
use std::cmp::Ordering;

/// Orders scores for a choice: larger first, NaN before everything, -0 equal to +0.
pub fn by_score_descending(a: f32, b: f32) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
    }
}

/// The indices of the `k` best scores, by (score descending, index ascending).
pub fn top_k(scores: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| by_score_descending(scores[a], scores[b]).then(a.cmp(&b)));
    order.truncate(k);
    order
}

/// Softmax in f64 over one row, rounded to f32. A row with NaN or +inf gives NaN where `exp(x - max)` is NaN, as in IEEE arithmetic.
pub fn softmax(x: &[f32]) -> Vec<f32> {
    let max = x.iter().fold(f32::NEG_INFINITY, |m, &v| if v.is_nan() || m.is_nan() { f32::NAN } else { m.max(v) });
    let e: Vec<f64> = x.iter().map(|&v| (f64::from(v) - f64::from(max)).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|v| (v / sum) as f32).collect()
}

/// A score over one row.
pub fn score(kind: Score, x: &[f32]) -> Vec<f32> {
    use crate::expr::Unary;
    match kind {
        Score::Softmax => softmax(x),
        Score::Sigmoid => x.iter().map(|&v| Unary::Sigmoid.eval(v)).collect(),
        Score::SqrtSoftplus => x.iter().map(|&v| Unary::Softplus.eval(v).sqrt()).collect(),
    }
}

/// One row of [`crate::graph::Op::GroupLimit`].
pub fn group_limit(x: &[f32], n_groups: usize, keep: usize, score: GroupScore, fill: RowMask) -> Vec<f32> {
    let per = x.len() / n_groups;
    let scores: Vec<f32> = x
        .chunks(per)
        .map(|group| {
            let best = top_k(group, 2);
            match score {
                GroupScore::Max => group[best[0]],
                GroupScore::Top2Sum => best.iter().map(|&i| group[i]).sum(),
            }
        })
        .collect();
    let kept = top_k(&scores, keep);
    let fill = match fill {
        RowMask::NegInf => f32::NEG_INFINITY,
        RowMask::Zero => 0.0,
    };
    x.iter().enumerate().map(|(i, &v)| if kept.contains(&(i / per)) { v } else { fill }).collect()
}

/// One row of [`crate::graph::Op::Reduce`]; sums in f64.
pub fn reduce(kind: Reduce, x: &[f32]) -> f32 {
    use crate::expr::Binary;
    match kind {
        Reduce::Max => x.iter().copied().reduce(|a, b| Binary::Max.eval(a, b)).unwrap_or(f32::NEG_INFINITY),
        Reduce::Sum => x.iter().map(|&v| f64::from(v)).sum::<f64>() as f32,
    }
}

/// One row of [`crate::graph::Op::SumOutside`], in f32, in slot order.
pub fn sum_outside(weights: &[f32], ids: &[i64], n_experts: u64) -> f32 {
    let outside = |id: i64| u64::try_from(id).map_or(true, |id| id >= n_experts);
    weights.iter().zip(ids).filter(|(_, id)| outside(**id)).fold(0.0, |sum, (w, _)| sum + w)
}

/// One id of [`crate::graph::Op::LocalIds`].
pub fn local_id(id: i64, first: u32, count: u32) -> i64 {
    let local = id - i64::from(first);
    if (0..i64::from(count)).contains(&local) { local } else { -1 }
}

/// One row of [`crate::graph::Op::Renormalise`]; sums in f64.
pub fn renormalise(w: &[f32], rule: RenormRule) -> Vec<f32> {
    let sum: f64 = w.iter().map(|&v| f64::from(v)).sum();
    let by = match rule {
        RenormRule::Sum { eps } => sum + f64::from(eps.0),
        RenormRule::SumAtLeast { min } => {
            if sum.is_nan() {
                sum
            } else {
                sum.max(f64::from(min.0))
            }
        }
        RenormRule::PNorm { p } => {
            let p = f64::from(p.0);
            w.iter().map(|&v| f64::from(v).abs().powf(p)).sum::<f64>().powf(1.0 / p)
        }
    };
    w.iter().map(|&v| (f64::from(v) / by) as f32).collect()
}

/// One row of an RMS norm without gain.
pub fn rms_norm(x: &[f32], eps: f32) -> Vec<f32> {
    let mean = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / x.len() as f64;
    let by = (mean + f64::from(eps)).sqrt();
    x.iter().map(|&v| (f64::from(v) / by) as f32).collect()
}

/// Inner product in f64, rounded to f32.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>() as f32
}

/// Expert order of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// `E + 1` entries; expert `e` has rows `offsets[e]..offsets[e+1]`.
    pub offsets: Vec<usize>,
    /// Row of each slot; `None` when its id is outside `0..E`.
    pub slot_to_row: Vec<Option<usize>>,
    /// Slot of each row: as many entries as dispatched slots.
    pub row_to_slot: Vec<usize>,
}

/// Sorts slots by expert, stably.
pub fn plan(ids: &[i64], n_experts: usize) -> Plan {
    let expert = |slot: usize| usize::try_from(ids[slot]).ok().filter(|&e| e < n_experts);
    let mut row_to_slot: Vec<usize> = (0..ids.len()).filter(|&s| expert(s).is_some()).collect();
    row_to_slot.sort_by_key(|&s| expert(s));
    let mut offsets = vec![0; n_experts + 1];
    let mut slot_to_row = vec![None; ids.len()];
    for (row, &slot) in row_to_slot.iter().enumerate() {
        slot_to_row[slot] = Some(row);
        if let Some(e) = expert(slot) {
            offsets[e + 1] += 1;
        }
    }
    for e in 0..n_experts {
        offsets[e + 1] += offsets[e];
    }
    Plan { offsets, slot_to_row, row_to_slot }
}
