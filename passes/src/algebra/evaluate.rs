//! Every operation of the graph IR over any [`Number`].

use super::expert_order::{rows_of_slots, slots_by_expert};
use super::numbers::Number;
use super::{Elements, Value};
use moec_ir::act_quant::ActQuant;
use moec_ir::activation::Activation;
use moec_ir::expr::{Binary, Expr, ExprOp, Unary};
use moec_ir::graph::{GroupScore, Op, Reduce, RenormRule, RowMask, Score};
use moec_ir::{DType, TensorType};
use std::cmp::Ordering;

/// The value of an operation other than a leaf, of a type, from its operands.
pub fn evaluate<N: Number>(op: &Op, ty: &TensorType, x: &[&Value<N>], n_tokens: usize) -> Value<N> {
    let shape: Vec<usize> = ty.shape.iter().map(|d| d.at(n_tokens as u64) as usize).collect();
    let elements = match op {
        Op::TopK { .. } | Op::Lookup | Op::LocalIds { .. } | Op::SlotToRow { .. } => Elements::Ids(ids(op, x)),
        Op::JoinColumns if !ty.dtype.is_float() => Elements::Ids(join_columns(x, |v| v.ids())),
        _ => Elements::Numbers(numbers(op, &shape, x).iter().map(|n| n.rounded(ty.dtype)).collect()),
    };
    Value { shape, elements }
}

fn ids<N: Number>(op: &Op, x: &[&Value<N>]) -> Vec<i64> {
    match op {
        Op::TopK { k } => x[0].rows().flat_map(|row| best(row, *k as usize)).map(|i| i as i64).collect(),
        Op::Lookup => {
            let k = x[0].cols();
            let row = |&i: &i64| match usize::try_from(i).ok().and_then(|i| x[0].ids().chunks(k).nth(i)) {
                Some(row) => row.to_vec(),
                None => vec![-1; k],
            };
            x[1].ids().iter().flat_map(row).collect()
        }
        Op::LocalIds { first, count } => {
            let (first, count) = (i64::from(*first), i64::from(*count));
            x[0].ids().iter().map(|id| if (first..first + count).contains(id) { id - first } else { -1 }).collect()
        }
        Op::SlotToRow { n_experts } => rows_of_slots(x[0].ids(), *n_experts as usize)
            .into_iter()
            .map(|row| row.map_or(-1, |row| row as i64))
            .collect(),
        _ => Vec::new(),
    }
}

fn numbers<N: Number>(op: &Op, shape: &[usize], x: &[&Value<N>]) -> Vec<N> {
    let zero = || N::constant(0.0);
    match op {
        // Leaves are given, ids are made above.
        Op::Input(_) | Op::Param(_) | Op::TopK { .. } | Op::Lookup | Op::LocalIds { .. } | Op::SlotToRow { .. } => {
            Vec::new()
        }
        Op::Linear => linear(x[0], x[1], x.get(2).copied()),
        Op::LinearAct { act, round } => activated(act, *round, &linear(x[0], x[1], x.get(2).copied()), x[1].shape[0]),
        Op::Add => each(shape, x, |a| a[0].add(&a[1])),
        Op::Mul => each(shape, x, |a| a[0].mul(&a[1])),
        Op::Scale(c) => x[0].numbers().iter().map(|n| N::constant(c.0).mul(n)).collect(),
        Op::Cast => x[0].numbers().to_vec(),
        Op::Map(expr) => each(shape, x, |a| of_expr(expr, a)),
        Op::Activate(act) => each(shape, x, |a| of_expr(&act.expr(), a)),
        Op::Score(kind) => x[0].rows().flat_map(|row| score(*kind, row)).collect(),
        Op::RmsNorm { eps } => {
            let normed = x[0].rows().flat_map(|row| {
                let squares = row.iter().fold(zero(), |sum, n| sum.add(&n.mul(n)));
                let mean = squares.div(&N::constant(row.len() as f32)).add(&N::constant(eps.0));
                let by = N::function("sqrt", &[mean], |m| m[0].sqrt());
                row.iter().map(|n| n.div(&by)).collect::<Vec<_>>()
            });
            let gain = |i: usize| x.get(1).map(|g| g.numbers()[i % g.numbers().len()].clone());
            normed.enumerate().map(|(i, n)| gain(i).map_or(n.clone(), |g| n.mul(&g))).collect()
        }
        Op::Quantise(q) => x[0].rows().flat_map(|row| quantised(*q, row, x.get(1).map(|g| &g.numbers()[0]))).collect(),
        Op::GroupLimit { n_groups, keep, score, fill } => {
            x[0].rows().flat_map(|row| limited(row, *n_groups as usize, *keep as usize, *score, *fill)).collect()
        }
        Op::GatherScores => {
            let (e, k) = (x[0].cols(), x[1].cols());
            let at = |(slot, &id): (usize, &i64)| match usize::try_from(id) {
                Ok(id) if id < e => x[0].numbers()[slot / k * e + id].clone(),
                _ => zero(),
            };
            x[1].ids().iter().enumerate().map(at).collect()
        }
        Op::Renormalise(rule) => x[0].rows().flat_map(|row| renormalised(*rule, row)).collect(),
        Op::Reduce(Reduce::Sum) => x[0].rows().map(|row| row.iter().fold(zero(), |sum, n| sum.add(n))).collect(),
        Op::Reduce(Reduce::Max) => {
            x[0].rows().map(|row| best(row, 1).first().map_or_else(N::masked, |&i| row[i].clone())).collect()
        }
        Op::MaskChosen => {
            let (e, k) = (x[0].cols(), x[1].cols());
            let chosen = |i: usize| x[1].ids()[i / e * k..(i / e + 1) * k].contains(&((i % e) as i64));
            x[0].numbers().iter().enumerate().map(|(i, n)| if chosen(i) { N::masked() } else { n.clone() }).collect()
        }
        Op::JoinColumns => join_columns(x, |v| v.numbers()),
        Op::SumOutside { n_experts } => {
            let outside = |id: i64| !(0..i64::from(*n_experts)).contains(&id);
            let rows = x[0].rows().zip(x[1].ids().chunks(x[1].cols()));
            rows.map(|(w, ids)| {
                w.iter().zip(ids).filter(|(_, id)| outside(**id)).fold(zero(), |sum, (w, _)| sum.add(w))
            })
            .collect()
        }
        Op::Permute { n_experts } => {
            let (k, rows) = (x[1].cols(), slots_by_expert(x[1].ids(), *n_experts as usize));
            let sources = rows.into_iter().map(|slot| Some(slot / k)).chain(std::iter::repeat(None));
            take(x[0], sources.take(shape[0]))
        }
        Op::Unpermute { n_experts } => take(x[0], rows_of_slots(x[1].ids(), *n_experts as usize).into_iter()),
        Op::StoreAt { .. } => x[0].numbers().to_vec(),
        Op::GroupedLinear => grouped(x, false),
        Op::GatherGroupedLinear => grouped(x, true),
        Op::GroupedLinearAct { act, round, gather } => activated(act, *round, &grouped(x, *gather), x[2].shape[1]),
        Op::WeightedSum => weighted(x[0], (0..x[0].shape[0]).map(Some), x[1]),
        Op::Concat { axis } => {
            let inner = |v: &Value<N>| v.shape[*axis as usize..].iter().product::<usize>().max(1);
            let pairs = x[0].numbers().chunks(inner(x[0])).zip(x[1].numbers().chunks(inner(x[1])));
            pairs.flat_map(|(a, b)| a.iter().chain(b).cloned()).collect()
        }
        Op::Half(which) => {
            let half = shape.last().copied().unwrap_or(1);
            x[0].rows().flat_map(|row| row[half * *which as usize..][..half].to_vec()).collect()
        }
        Op::Combine { n_experts, scale, round, gate_round } => {
            let (sum, h) =
                (weighted(x[0], rows_of_slots(x[1].ids(), *n_experts as usize).into_iter(), x[2]), x[0].cols());
            let one = |(i, sum): (usize, &N)| {
                let sum = if scale.0 == 1.0 { sum.clone() } else { N::constant(scale.0).mul(sum) };
                let Some(base) = x.get(3).map(|b| &b.numbers()[i]) else { return sum };
                let gated = x.get(4).map(|gate| base.mul(&gate.numbers()[i / h]).rounded(*gate_round));
                sum.rounded(*round).add(gated.as_ref().unwrap_or(base))
            };
            sum.iter().enumerate().map(one).collect()
        }
    }
}

/// `f` of the elements of all operands, with the broadcasting of `numpy`.
fn each<N: Number>(shape: &[usize], x: &[&Value<N>], f: impl Fn(&[N]) -> N) -> Vec<N> {
    let read = |v: &Value<N>, flat: usize| {
        let (mut rest, mut at, mut stride) = (flat, 0, 1);
        for (back, len) in shape.iter().rev().enumerate() {
            let (c, own) = (rest % len, v.shape.len().checked_sub(back + 1).map_or(1, |axis| v.shape[axis]));
            rest /= len;
            at += if own == 1 { 0 } else { c * stride };
            stride *= own;
        }
        v.numbers()[at].clone()
    };
    let n: usize = shape.iter().product();
    (0..n).map(|i| f(&x.iter().map(|v| read(v, i)).collect::<Vec<_>>())).collect()
}

fn of_expr<N: Number>(expr: &Expr, args: &[N]) -> N {
    let mut v: Vec<N> = Vec::with_capacity(expr.ops.len());
    for op in &expr.ops {
        let at = |i: &u32| &v[*i as usize];
        let smaller = |a: &N, b: &N| if a.real() <= b.real() { a.clone() } else { b.clone() };
        let larger = |a: &N, b: &N| if a.real() >= b.real() { a.clone() } else { b.clone() };
        let minus = |a: &N| N::constant(-1.0).mul(a);
        v.push(match op {
            ExprOp::Arg(n) => args[*n as usize].clone(),
            ExprOp::Const(c) => N::constant(c.0),
            ExprOp::Unary(Unary::Neg, a) => minus(at(a)),
            ExprOp::Unary(Unary::Abs, a) => larger(at(a), &minus(at(a))),
            ExprOp::Unary(f, a) => function(*f, at(a)),
            ExprOp::Binary(Binary::Add, a, b) => at(a).add(at(b)),
            ExprOp::Binary(Binary::Sub, a, b) => at(a).add(&minus(at(b))),
            ExprOp::Binary(Binary::Mul, a, b) => at(a).mul(at(b)),
            ExprOp::Binary(Binary::Div, a, b) => at(a).div(at(b)),
            ExprOp::Binary(Binary::Min, a, b) => smaller(at(a), at(b)),
            ExprOp::Binary(Binary::Max, a, b) => larger(at(a), at(b)),
            ExprOp::Select(c, a, b) => if at(c).real() > 0.0 { at(a) } else { at(b) }.clone(),
            ExprOp::Round(dtype, a) => at(a).rounded(*dtype),
        });
    }
    v.pop().unwrap_or_else(|| N::constant(f32::NAN))
}

fn function<N: Number>(f: Unary, x: &N) -> N {
    N::function(f.name(), std::slice::from_ref(x), |x| f64::from(f.eval(x[0] as f32)))
}

fn score<N: Number>(kind: Score, row: &[N]) -> Vec<N> {
    match kind {
        Score::Sigmoid => row.iter().map(|x| function(Unary::Sigmoid, x)).collect(),
        Score::SqrtSoftplus => row.iter().map(|x| function(Unary::Sqrt, &function(Unary::Softplus, x))).collect(),
        Score::Softmax => {
            // Over the reals nothing depends on what is taken off every logit so that no power overflows.
            let most = row.iter().map(|x| x.real()).filter(|x| x.is_finite()).fold(f64::MIN, f64::max);
            let powers: Vec<N> =
                row.iter().map(|x| N::function("exp", std::slice::from_ref(x), |x| (x[0] - most).exp())).collect();
            let sum = powers.iter().fold(N::constant(0.0), |sum, p| sum.add(p));
            powers.iter().map(|p| p.div(&sum)).collect()
        }
    }
}

/// The indices of the `k` largest, by (value descending, index ascending).
fn best<N: Number>(row: &[N], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    // Choices are made of f32.
    let by =
        |&i: &usize, &j: &usize| (row[j].real() as f32).partial_cmp(&(row[i].real() as f32)).unwrap_or(Ordering::Equal);
    order.sort_by(by);
    order.truncate(k);
    order
}

fn limited<N: Number>(row: &[N], n_groups: usize, keep: usize, score: GroupScore, fill: RowMask) -> Vec<N> {
    let per = row.len() / n_groups;
    let of_group = |group: &[N]| match score {
        GroupScore::Max => group[best(group, 1)[0]].clone(),
        GroupScore::Top2Sum => best(group, 2).into_iter().fold(N::constant(0.0), |sum, i| sum.add(&group[i])),
    };
    let kept = best(&row.chunks(per).map(of_group).collect::<Vec<_>>(), keep);
    let fill = match fill {
        RowMask::NegInf => N::masked(),
        RowMask::Zero => N::constant(0.0),
    };
    row.iter().enumerate().map(|(i, n)| if kept.contains(&(i / per)) { n.clone() } else { fill.clone() }).collect()
}

fn renormalised<N: Number>(rule: RenormRule, row: &[N]) -> Vec<N> {
    let sum = || row.iter().fold(N::constant(0.0), |sum, n| sum.add(n));
    let by = match rule {
        RenormRule::Sum { eps } => sum().add(&N::constant(eps.0)),
        RenormRule::SumAtLeast { min } => {
            let (sum, least) = (sum(), N::constant(min.0));
            if sum.real() < least.real() { least } else { sum }
        }
        RenormRule::PNorm { p } => {
            let p = f64::from(p.0);
            N::function(&format!("norm {p}"), row, |x| x.iter().map(|x| x.abs().powf(p)).sum::<f64>().powf(1.0 / p))
        }
    };
    row.iter().map(|n| n.div(&by)).collect()
}

/// Each element of a quantised row depends on all of it, in a way that nothing is known of.
fn quantised<N: Number>(q: ActQuant, row: &[N], global: Option<&N>) -> Vec<N> {
    let args: Vec<N> = row.iter().chain(global).cloned().collect();
    let element = |i: usize| {
        N::function(&format!("{q:?} {i}"), &args, |x| {
            let (row, global) = x.split_at(row.len());
            let row: Vec<f32> = row.iter().map(|&x| x as f32).collect();
            f64::from(q.quantise(&row, global.first().map_or(1.0, |&g| g as f32))[i])
        })
    };
    (0..row.len()).map(element).collect()
}

fn dot<N: Number>(a: &[N], b: &[N], bias: Option<&N>) -> N {
    let sum = a.iter().zip(b).fold(N::constant(0.0), |sum, (x, y)| sum.add(&x.mul(y)));
    bias.map_or(sum.clone(), |b| sum.add(b))
}

fn linear<N: Number>(x: &Value<N>, w: &Value<N>, bias: Option<&Value<N>>) -> Vec<N> {
    let row = |x| w.rows().enumerate().map(move |(n, w)| dot(x, w, bias.map(|b| &b.numbers()[n]))).collect::<Vec<_>>();
    x.rows().flat_map(row).collect()
}

/// Rows in expert order, or those of their tokens, times the matrix of their expert; zero past the last dispatched slot.
fn grouped<N: Number>(x: &[&Value<N>], gather: bool) -> Vec<N> {
    let (rows, ids, w, bias) = (x[0], x[1], x[2], x.get(3));
    let (e, n, k) = (w.shape[0], w.shape[1], w.shape[2]);
    let slots = slots_by_expert(ids.ids(), e);
    let mut out = vec![N::constant(0.0); ids.ids().len() * n];
    for (row, &slot) in slots.iter().enumerate() {
        let expert = ids.ids()[slot] as usize;
        let from = if gather { slot / ids.cols() } else { row };
        for c in 0..n {
            let column = expert * n + c;
            let b = bias.map(|b| &b.numbers()[column]);
            out[row * n + c] = dot(&rows.numbers()[from * k..][..k], &w.numbers()[column * k..][..k], b);
        }
    }
    out
}

/// Gate beside up, or up alone, `cols` to a row, rounded and activated.
fn activated<N: Number>(act: &Activation, round: DType, rows: &[N], cols: usize) -> Vec<N> {
    let expr = act.expr();
    let of_row = |row: &[N]| {
        let row: Vec<N> = row.iter().map(|n| n.rounded(round)).collect();
        let half = cols / 2;
        if act.is_gated() {
            (0..half).map(|c| of_expr(&expr, &[row[c].clone(), row[half + c].clone()])).collect::<Vec<_>>()
        } else {
            row.iter().map(|n| of_expr(&expr, std::slice::from_ref(n))).collect()
        }
    };
    rows.chunks(cols.max(1)).flat_map(of_row).collect()
}

fn take<N: Number>(x: &Value<N>, rows: impl Iterator<Item = Option<usize>>) -> Vec<N> {
    let h = x.cols();
    rows.flat_map(|row| row.map_or(vec![N::constant(0.0); h], |r| x.numbers()[r * h..][..h].to_vec())).collect()
}

/// The sum of the rows of each token's slots, times their weights.
fn weighted<N: Number>(y: &Value<N>, rows: impl Iterator<Item = Option<usize>>, w: &Value<N>) -> Vec<N> {
    let (h, k) = (y.cols(), w.cols());
    let mut out = vec![N::constant(0.0); w.numbers().len() / k.max(1) * h];
    for (slot, row) in rows.enumerate().filter_map(|(slot, row)| Some((slot, row?))) {
        for c in 0..h {
            let at = &mut out[slot / k * h + c];
            *at = at.add(&w.numbers()[slot].mul(&y.numbers()[row * h + c]));
        }
    }
    out
}

fn join_columns<'a, N, T: Clone + 'a>(x: &[&'a Value<N>], of: impl Fn(&'a Value<N>) -> &'a [T]) -> Vec<T> {
    let [a, b] = [x[0], x[1]].map(|v| of(v).chunks(v.cols().max(1)));
    a.zip(b).flat_map(|(a, b)| a.iter().chain(b).cloned()).collect()
}
