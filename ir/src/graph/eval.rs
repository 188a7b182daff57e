//! The reference evaluator of the graph IR: the definition of every operation.
//!
//! Sums run in f64 and are rounded to f32, then to the node's type; everything else is f32.

use super::{Graph, Node, Op};
use crate::DType;
use crate::activation::Activation;
use crate::diag::Diagnostic;
use crate::expr::Expr;
use crate::reference as r;
use crate::shape::{Dim, TensorType};
use crate::tensor::Tensor;

/// Runs a verified graph.
///
/// `inputs` and `params` are in the order of [`Graph::inputs`] and [`Graph::params`]; the token count follows
/// from the first input. Returns the values of [`Graph::outputs`], in order.
///
/// # Errors
/// `tensor-shape` or `tensor-type` when a given tensor is not what the graph says.
pub fn evaluate(graph: &Graph, inputs: &[Tensor], params: &[Tensor]) -> Result<Vec<Tensor>, Diagnostic> {
    let first = graph.inputs.first().zip(inputs.first());
    let n_tokens = first.and_then(|(i, t)| token_count(&i.ty, &t.shape)).unwrap_or(0);
    let given = |kind: &str, what: &str, ty: &TensorType, t: Option<&Tensor>| -> Result<Tensor, Diagnostic> {
        let t =
            t.ok_or_else(|| Diagnostic::input("tensor-missing", format!("no tensor is given for {kind} `{what}`")))?;
        let want: Vec<usize> = ty.shape.iter().map(|d| d.at(n_tokens as u64) as usize).collect();
        if t.shape != want {
            return Err(Diagnostic::input(
                "tensor-shape",
                format!("{kind} `{what}` is {:?}; the layer takes {want:?}", t.shape),
            ));
        }
        if t.dtype != ty.dtype {
            return Err(Diagnostic::input(
                "tensor-type",
                format!("{kind} `{what}` is {}; the layer takes {}", t.dtype, ty.dtype),
            ));
        }
        Ok(t.clone())
    };
    let mut values: Vec<Tensor> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let value = match node.op {
            Op::Input(i) => {
                let input = &graph.inputs[i as usize];
                given("input", &input.name, &input.ty, inputs.get(i as usize))?
            }
            Op::Param(i) => {
                let param = &graph.params[i as usize];
                given("parameter", &param.name, &param.ty, params.get(i as usize))?
            }
            _ => {
                let operands: Vec<&Tensor> = node.inputs.iter().map(|v| &values[v.index()]).collect();
                evaluate_node(node, &operands, n_tokens)
            }
        };
        values.push(value);
    }
    Ok(graph.outputs.iter().map(|(_, v)| values[v.index()].clone()).collect())
}

/// The value of one node other than a leaf, from its operands.
pub fn evaluate_node(node: &Node, x: &[&Tensor], n_tokens: usize) -> Tensor {
    let shape: Vec<usize> = node.ty.shape.iter().map(|d| d.at(n_tokens as u64) as usize).collect();
    let float = |values: Vec<f32>| Tensor::float(node.ty.dtype, &shape, values);
    let act = |act: &Activation, args: &[f32]| act.expr().eval(args);
    match &node.op {
        Op::Input(_) | Op::Param(_) => float(vec![0.0; shape.iter().product()]),
        Op::Linear => float(linear(x[0], x[1].floats(), x.get(2).map(|b| b.floats()))),
        Op::LinearAct { act: a, round } => {
            let h = linear(x[0], x[1].floats(), x.get(2).map(|b| b.floats()));
            float(activate_rows(a, &h, x[1].shape[0], *round))
        }
        Op::Add => float(broadcast(x[0], x[1], &shape, |a, b| a + b)),
        Op::Mul => float(broadcast(x[0], x[1], &shape, |a, b| a * b)),
        Op::Map(expr) => {
            let n: usize = shape.iter().product();
            let at = |i: usize| x.iter().map(|t| t.floats()[broadcast_index(&t.shape, &shape, i)]).collect::<Vec<_>>();
            float((0..n).map(|i| expr.eval(&at(i))).collect())
        }
        Op::Reduce(kind) => float(by_row(x[0], |row| vec![r::reduce(*kind, row)])),
        Op::MaskChosen => {
            let (e, k) = (x[0].cols(), x[1].cols());
            let mut out = x[0].floats().to_vec();
            for (slot, &id) in x[1].ints().iter().enumerate() {
                if let Some(id) = usize::try_from(id).ok().filter(|&id| id < e) {
                    out[slot / k * e + id] = f32::NEG_INFINITY;
                }
            }
            float(out)
        }
        Op::JoinColumns => {
            if node.ty.dtype.is_float() {
                return float(concat(x[0], x[1], 1));
            }
            let rows = x[0].ints().chunks(x[0].cols()).zip(x[1].ints().chunks(x[1].cols()));
            Tensor::int(node.ty.dtype, &shape, rows.flat_map(|(a, b)| [a, b].concat()).collect())
        }
        Op::Lookup => {
            let k = x[0].cols();
            let row = |&i: &i64| match usize::try_from(i).ok().filter(|&i| i < x[0].shape[0]) {
                Some(i) => x[0].ints()[i * k..(i + 1) * k].to_vec(),
                None => vec![-1; k],
            };
            Tensor::int(node.ty.dtype, &shape, x[1].ints().iter().flat_map(row).collect())
        }
        Op::SumOutside { n_experts } => {
            let rows = x[0].floats().chunks(x[0].cols()).zip(x[1].ints().chunks(x[1].cols()));
            float(rows.map(|(w, ids)| r::sum_outside(w, ids, u64::from(*n_experts))).collect())
        }
        Op::LocalIds { first, count } => {
            let local = x[0].ints().iter().map(|&id| r::local_id(id, *first, *count)).collect();
            Tensor::int(node.ty.dtype, &shape, local)
        }
        Op::Scale(c) => float(x[0].floats().iter().map(|v| c.0 * v).collect()),
        Op::Cast => float(x[0].floats().to_vec()),
        Op::Activate(a) => {
            let n = x[0].elements();
            float((0..n).map(|i| act(a, &x.iter().map(|t| t.floats()[i]).collect::<Vec<_>>())).collect())
        }
        Op::Score(kind) => float(by_row(x[0], |row| r::score(*kind, row))),
        Op::RmsNorm { eps } => {
            let mut out = by_row(x[0], |row| r::rms_norm(row, eps.0));
            if let Some(gain) = x.get(1) {
                let n = gain.elements().max(1);
                out.iter_mut().enumerate().for_each(|(i, v)| *v *= gain.floats()[i % n]);
            }
            float(out)
        }
        Op::Quantise(q) => {
            let global = x.get(1).map_or(1.0, |g| g.floats()[0]);
            float(by_row(x[0], |row| q.quantise(row, global)))
        }
        Op::GroupLimit { n_groups, keep, score, fill } => {
            float(by_row(x[0], |row| r::group_limit(row, *n_groups as usize, *keep as usize, *score, *fill)))
        }
        Op::TopK { k } => {
            let ids = x[0].floats().chunks(x[0].cols()).flat_map(|row| r::top_k(row, *k as usize));
            Tensor::int(DType::I32, &shape, ids.map(|i| i as i64).collect())
        }
        Op::GatherScores => {
            let (e, k) = (x[0].cols(), x[1].cols());
            let ids = x[1].ints().iter().enumerate();
            let chosen = |slot: usize, id: i64| match usize::try_from(id) {
                Ok(id) if id < e => x[0].floats()[slot / k * e + id],
                _ => 0.0,
            };
            float(ids.map(|(slot, &id)| chosen(slot, id)).collect())
        }
        Op::Renormalise(rule) => float(by_row(x[0], |row| r::renormalise(row, *rule))),
        Op::Permute { n_experts } => {
            let plan = r::plan(x[1].ints(), *n_experts as usize);
            let k = x[1].cols();
            let tokens: Vec<Option<usize>> = plan.row_to_slot.iter().map(|s| Some(s / k)).collect();
            float(take_rows(x[0], &tokens, shape[0]))
        }
        Op::Unpermute { n_experts } => {
            let plan = r::plan(x[1].ints(), *n_experts as usize);
            float(take_rows(x[0], &plan.slot_to_row, shape[0]))
        }
        Op::SlotToRow { n_experts } => {
            let rows = r::plan(x[0].ints(), *n_experts as usize).slot_to_row;
            Tensor::int(node.ty.dtype, &shape, rows.iter().map(|row| row.map_or(-1, |row| row as i64)).collect())
        }
        // Where rows lie is no part of what they are.
        Op::StoreAt { .. } => float(x[0].floats().to_vec()),
        Op::GroupedLinear => float(grouped(x[0], x[1], x[2], x.get(3).copied(), false)),
        Op::GatherGroupedLinear => float(grouped(x[0], x[1], x[2], x.get(3).copied(), true)),
        Op::GroupedLinearAct { act, round, gather } => {
            let h = grouped(x[0], x[1], x[2], x.get(3).copied(), *gather);
            float(activate_rows(act, &h, x[2].shape[1], *round))
        }
        Op::WeightedSum => {
            let k = x[1].cols();
            let rows: Vec<Option<usize>> = (0..n_tokens * k).map(Some).collect();
            float(weighted_sum(x[0], &rows, x[1]))
        }
        Op::Concat { axis } => float(concat(x[0], x[1], *axis as usize)),
        Op::Half(which) => {
            let cols = x[0].cols();
            let from = cols / 2 * *which as usize;
            float(by_row(x[0], |row| row[from..from + cols / 2].to_vec()))
        }
        Op::Combine { n_experts, scale, round, gate_round } => {
            let plan = r::plan(x[1].ints(), *n_experts as usize);
            let mut out = weighted_sum(x[0], &plan.slot_to_row, x[2]);
            let h = x[0].cols();
            let expr = combine_expr(scale.0, *round, *gate_round, x.len() - 3);
            for (i, v) in out.iter_mut().enumerate() {
                let mut args = vec![*v];
                args.extend(x.get(3).map(|base| base.floats()[i]));
                args.extend(x.get(4).map(|gate| gate.floats()[i / h]));
                *v = expr.eval(&args);
            }
            float(out)
        }
    }
}

/// What [`Op::Combine`] does to the sum of a token's slots (argument 0), the base (1) and its gate (2), if there are any.
///
/// `n_extra` is the number of arguments besides the sum.
pub fn combine_expr(scale: f32, round: DType, gate_round: DType, n_extra: usize) -> Expr {
    use crate::expr::{Binary, ExprBuilder};
    let mut b = ExprBuilder::new();
    let mut sum = b.arg(0);
    if scale != 1.0 {
        let c = b.constant(scale);
        sum = b.binary(Binary::Mul, c, sum);
    }
    if n_extra > 0 {
        sum = b.round(round, sum);
        let mut base = b.arg(1);
        if n_extra > 1 {
            let gate = b.arg(2);
            let gated = b.binary(Binary::Mul, base, gate);
            base = b.round(gate_round, gated);
        }
        sum = b.binary(Binary::Add, sum, base);
    }
    b.finish(sum)
}

fn by_row(x: &Tensor, f: impl Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
    x.floats().chunks(x.cols().max(1)).flat_map(f).collect()
}

/// `x[.., K] · w[N, K]ᵀ + bias[N]`
fn linear(x: &Tensor, w: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let k = x.cols();
    let mut out = Vec::new();
    for row in x.floats().chunks(k.max(1)) {
        for (n, col) in w.chunks(k.max(1)).enumerate() {
            out.push(r::dot(row, col) + bias.map_or(0.0, |b| b[n]));
        }
    }
    out
}

/// Rows in expert order (or tokens, when `gather`) times their expert's matrix. Rows past the last dispatched slot are 0.
fn grouped(x: &Tensor, ids: &Tensor, w: &Tensor, bias: Option<&Tensor>, gather: bool) -> Vec<f32> {
    let (e, n, k) = (w.shape[0], w.shape[1], w.shape[2]);
    let plan = r::plan(ids.ints(), e);
    let mut out = vec![0.0; ids.elements() * n];
    for (row, &slot) in plan.row_to_slot.iter().enumerate() {
        let expert = ids.ints()[slot] as usize;
        let source = if gather { slot / ids.cols() } else { row };
        let a = &x.floats()[source * k..(source + 1) * k];
        for col in 0..n {
            let b = &w.floats()[(expert * n + col) * k..(expert * n + col + 1) * k];
            out[row * n + col] = r::dot(a, b) + bias.map_or(0.0, |t| t.floats()[expert * n + col]);
        }
    }
    out
}

/// Activation of rows whose first half is gate and second half up (all of it up, when ungated).
fn activate_rows(act: &Activation, h: &[f32], cols: usize, round: DType) -> Vec<f32> {
    let expr = act.expr();
    let n = if act.is_gated() { cols / 2 } else { cols };
    let value = |row: &[f32], c: usize| {
        let first = round.round(row[c]);
        if act.is_gated() { expr.eval(&[first, round.round(row[n + c])]) } else { expr.eval(&[first]) }
    };
    h.chunks(cols.max(1)).flat_map(|row| (0..n).map(|c| value(row, c)).collect::<Vec<_>>()).collect()
}

fn take_rows(x: &Tensor, rows: &[Option<usize>], n_rows: usize) -> Vec<f32> {
    let h = x.cols();
    let mut out = vec![0.0; n_rows * h];
    for (i, row) in rows.iter().enumerate() {
        if let Some(row) = row {
            out[i * h..(i + 1) * h].copy_from_slice(&x.floats()[row * h..(row + 1) * h]);
        }
    }
    out
}

/// `Σ_j w[t, j] · y[rows[t*K + j]]`, in slot order, in f32 with a fused multiply-add.
fn weighted_sum(y: &Tensor, rows: &[Option<usize>], w: &Tensor) -> Vec<f32> {
    let (h, k) = (y.cols(), w.cols());
    let n_tokens = w.shape[0];
    let mut out = vec![0.0f32; n_tokens * h];
    for (slot, row) in rows.iter().enumerate() {
        let Some(row) = row else { continue };
        let weight = w.floats()[slot];
        for c in 0..h {
            let sum = &mut out[slot / k * h + c];
            *sum = weight.mul_add(y.floats()[row * h + c], *sum);
        }
    }
    out
}

fn concat(a: &Tensor, b: &Tensor, axis: usize) -> Vec<f32> {
    let inner = |t: &Tensor| t.shape[axis..].iter().product::<usize>();
    let (ia, ib) = (inner(a), inner(b));
    let outer: usize = a.shape[..axis].iter().product();
    let mut out = Vec::with_capacity(a.elements() + b.elements());
    for o in 0..outer {
        out.extend_from_slice(&a.floats()[o * ia..(o + 1) * ia]);
        out.extend_from_slice(&b.floats()[o * ib..(o + 1) * ib]);
    }
    out
}

fn broadcast(a: &Tensor, b: &Tensor, shape: &[usize], f: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    let n: usize = shape.iter().product();
    let at = |t: &Tensor, i: usize| t.floats()[broadcast_index(&t.shape, shape, i)];
    (0..n).map(|i| f(at(a, i), at(b, i))).collect()
}

/// The element of an operand of shape `of` that element `flat` of the broadcast result reads.
fn broadcast_index(of: &[usize], result: &[usize], flat: usize) -> usize {
    let (mut rest, mut at, mut stride) = (flat, 0, 1);
    for (i, &len) in result.iter().enumerate().rev() {
        let c = rest % len;
        rest /= len;
        let Some(axis) = (i + of.len()).checked_sub(result.len()) else { continue };
        if of[axis] != 1 {
            at += c * stride;
        }
        stride *= of[axis];
    }
    at
}

/// The token count that a graph input of this type and shape implies; `None` when it has no token axis.
pub fn token_count(ty: &TensorType, shape: &[usize]) -> Option<usize> {
    ty.shape.iter().zip(shape).find_map(|(d, &n)| match d {
        Dim::PerToken(k) if *k > 0 => Some(n / *k as usize),
        Dim::PerToken(_) | Dim::Fixed(_) => None,
    })
}
