//! Graphs that no family needs, but a user's may be: each has a place where some rule must not fire.
#![allow(clippy::unwrap_used, reason = "these graphs are well formed")]

use moec_ir::activation::Curve;
use moec_ir::expr::Real;
use moec_ir::graph::{Graph, GraphBuilder, GroupScore, Op, RenormRule, RowMask, Score, ValueId};
use moec_ir::weights::WeightSource;
use moec_ir::{Activation, DType, Dim, TensorType};

const E: u64 = 6;
const K: u64 = 2;
const H: u64 = 8;
const I: u64 = 4;

/// Every one, with a name.
pub fn graphs() -> Vec<(String, Graph)> {
    let mut all = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let mut add = |name: &str, graph: Graph| all.push((format!("{name}, {dtype}"), graph));
        add("casts and factors", casts_and_factors(dtype));
        add("two choices", two_choices(dtype));
        add("ids from outside", ids_from_outside(dtype));
        add("sums with factors", sums_with_factors(dtype));
        add("gates and bases", gates_and_bases(dtype, H));
        add("gates and bases of one column", gates_and_bases(dtype, 1));
        add("unlike products", unlike_products(dtype));
        add("products of activations", products_of_activations(dtype));
        add("scores rounded", scores_rounded(dtype));
    }
    all
}

fn tokens(dtype: DType, cols: u64) -> TensorType {
    TensorType::new(dtype, [Dim::TOKENS, Dim::Fixed(cols)])
}

fn param(b: &mut GraphBuilder, name: &str, dtype: DType, shape: &[u64]) -> ValueId {
    b.param(name, TensorType::fixed(dtype, shape), WeightSource::tensor("unused"))
}

/// Another type of float than `dtype`.
fn other(dtype: DType) -> DType {
    if dtype == DType::F32 { DType::BF16 } else { DType::F32 }
}

/// Casts there and back, and chains of factors.
fn casts_and_factors(dtype: DType) -> Graph {
    let mut b = GraphBuilder::new("casts and factors");
    let x = b.input("input", tokens(dtype, H));
    for between in [DType::F32, DType::BF16, DType::F16] {
        let wide = b.node_as("wide", Op::Cast, &[x], Some(between)).unwrap();
        for to in [dtype, other(dtype)] {
            let back = b.node_as("back", Op::Cast, &[wide], Some(to)).unwrap();
            b.output("cast", back);
        }
    }
    // Products of the first pair are exact, those of the second are rounded.
    for (first, second) in [(0.5, 0.75), (0.3, 0.7), (1.0, 2.5)] {
        for between in [DType::F32, DType::BF16] {
            let once = b.node_as("once", Op::Scale(Real(first)), &[x], Some(between)).unwrap();
            let twice = b.node_as("twice", Op::Scale(Real(second)), &[once], Some(dtype)).unwrap();
            let narrowed = b.node_as("narrowed", Op::Scale(Real(1.0)), &[twice], Some(other(dtype))).unwrap();
            b.output("scaled", narrowed);
        }
    }
    b.finish()
}

/// A choice by scores of a router of its own.
fn choice(b: &mut GraphBuilder, name: &str, x: ValueId, dtype: DType, hidden: u64) -> (ValueId, ValueId) {
    let router = param(b, &format!("{name}.router.weight"), dtype, &[E, hidden]);
    let logits = b.node_as("logits", Op::Linear, &[x, router], Some(DType::F32)).unwrap();
    let scores = b.node("scores", Op::Score(Score::Sigmoid), &[logits]).unwrap();
    let ids = b.node("ids", Op::TopK { k: K as u32 }, &[scores]).unwrap();
    (ids, b.node("chosen", Op::GatherScores, &[scores, ids]).unwrap())
}

/// Rows that were permuted by other ids, for other experts, or narrowed on the way.
fn two_choices(dtype: DType) -> Graph {
    let mut b = GraphBuilder::new("two choices");
    let x = b.input("input", tokens(dtype, H));
    let (ids, weights) = choice(&mut b, "a", x, dtype, H);
    let (others, _) = choice(&mut b, "b", x, dtype, H);
    let w = param(&mut b, "up", dtype, &[E, H, H]);
    let biased = b.node("biased", Op::Scale(Real(0.3)), &[x]).unwrap();
    for (by, n_experts, ty) in
        [(ids, E as u32, dtype), (others, E as u32, dtype), (ids, 4, dtype), (ids, E as u32, other(dtype))]
    {
        let rows = b.node_as("rows", Op::Permute { n_experts }, &[biased, by], Some(ty)).unwrap();
        let y = b.node("y", Op::GroupedLinear, &[rows, ids, w]).unwrap();
        for slots in [dtype, other(dtype)] {
            let back = b.node_as("slots", Op::Unpermute { n_experts: E as u32 }, &[y, ids], Some(slots)).unwrap();
            let out = b.node("out", Op::WeightedSum, &[back, weights]).unwrap();
            b.output("output", out);
        }
    }
    b.finish()
}

/// Ids that the caller chooses, some of which no expert has, with the scores of a router.
fn ids_from_outside(dtype: DType) -> Graph {
    let mut b = GraphBuilder::new("ids from outside");
    let x = b.input("input", tokens(dtype, H));
    let ids = b.input("ids", tokens(DType::I32, K));
    let router = param(&mut b, "router.weight", dtype, &[E, H]);
    let logits = b.node_as("logits", Op::Linear, &[x, router], Some(DType::F32)).unwrap();
    for score in [Score::Softmax, Score::Sigmoid, Score::SqrtSoftplus] {
        let scores = b.node("scores", Op::Score(score), &[logits]).unwrap();
        let chosen = b.node("chosen", Op::GatherScores, &[scores, ids]).unwrap();
        let weights = b.node("weights", Op::Renormalise(RenormRule::Sum { eps: Real(0.0) }), &[chosen]).unwrap();
        b.output("weights", weights);
    }
    let w = param(&mut b, "up", dtype, &[E, H, H]);
    let rows = b.node("rows", Op::Permute { n_experts: E as u32 }, &[x, ids]).unwrap();
    let y = b.node("y", Op::GroupedLinear, &[rows, ids, w]).unwrap();
    let slots = b.node("slots", Op::Unpermute { n_experts: E as u32 }, &[y, ids]).unwrap();
    let given = b.input("weights", tokens(DType::F32, K));
    let out = b.node("out", Op::WeightedSum, &[slots, given]).unwrap();
    b.output("output", out);
    b.finish()
}

/// Factors on sums that are whole, rounded, scaled already, or have a base; on weights of other types.
fn sums_with_factors(dtype: DType) -> Graph {
    let mut b = GraphBuilder::new("sums with factors");
    let x = b.input("input", tokens(dtype, H));
    let (ids, chosen) = choice(&mut b, "a", x, dtype, H);
    let w = param(&mut b, "up", dtype, &[E, H, H]);
    let rows = b.node("rows", Op::Permute { n_experts: E as u32 }, &[x, ids]).unwrap();
    let y = b.node("y", Op::GroupedLinear, &[rows, ids, w]).unwrap();
    let slots = b.node("slots", Op::Unpermute { n_experts: E as u32 }, &[y, ids]).unwrap();
    for weights_type in [DType::F32, DType::BF16] {
        let weights = b.node_as("weights", Op::Cast, &[chosen], Some(weights_type)).unwrap();
        for sum_type in [DType::F32, DType::BF16] {
            let sum = b.node_as("sum", Op::WeightedSum, &[slots, weights], Some(sum_type)).unwrap();
            let scaled = b.node_as("scaled", Op::Scale(Real(2.5)), &[sum], Some(DType::F32)).unwrap();
            let again = b.node_as("again", Op::Scale(Real(0.75)), &[scaled], Some(dtype)).unwrap();
            b.output("again", again);
            let base = b.node_as("base", Op::Scale(Real(0.5)), &[x], Some(dtype)).unwrap();
            let added = b.node_as("added", Op::Add, &[sum, base], Some(DType::F32)).unwrap();
            let late = b.node_as("late", Op::Scale(Real(3.0)), &[added], Some(dtype)).unwrap();
            b.output("late", late);
        }
    }
    b.finish()
}

/// What is added to a sum, once and twice, for each token and for all; gates that are columns, rows and matrices.
fn gates_and_bases(dtype: DType, hidden: u64) -> Graph {
    let mut b = GraphBuilder::new("gates and bases");
    let x = b.input("input", tokens(dtype, hidden));
    let (ids, weights) = choice(&mut b, "a", x, dtype, hidden);
    let w = param(&mut b, "up", dtype, &[E, hidden, hidden]);
    let rows = b.node("rows", Op::Permute { n_experts: E as u32 }, &[x, ids]).unwrap();
    let y = b.node("y", Op::GroupedLinear, &[rows, ids, w]).unwrap();
    let slots = b.node("slots", Op::Unpermute { n_experts: E as u32 }, &[y, ids]).unwrap();
    let sum = b.node_as("sum", Op::WeightedSum, &[slots, weights], Some(DType::F32)).unwrap();
    let row = param(&mut b, "row", dtype, &[hidden]);
    let gate = param(&mut b, "gate", dtype, &[1, hidden]);
    let column = b.node("column", Op::Linear, &[x, gate]).unwrap();
    let square = b.node("square", Op::Mul, &[x, x]).unwrap();
    let gated = b.node("gated", Op::Mul, &[x, column]).unwrap();
    let gated_first = b.node("gated_first", Op::Mul, &[column, square]).unwrap();
    let gated_row = b.node_as("gated_row", Op::Mul, &[row, column], Some(dtype)).unwrap();
    let by_row = b.node("by_row", Op::Mul, &[x, row]).unwrap();
    let mut add = |name: &str, a: ValueId, c: ValueId| {
        let out = b.node_as(name, Op::Add, &[a, c], Some(dtype)).unwrap();
        b.output(name, out);
        out
    };
    let once = add("once", sum, gated);
    add("twice", once, gated_first);
    add("of_all", sum, row);
    add("first", gated_first, sum);
    add("square", sum, square);
    add("gated_row", sum, gated_row);
    add("by_row", sum, by_row);
    // The column alone is added to every column.
    add("column", sum, column);
    b.finish()
}

/// Gate and up of other rows, weights and biases; their halves swapped.
fn unlike_products(dtype: DType) -> Graph {
    let mut b = GraphBuilder::new("unlike products");
    let x = b.input("input", tokens(dtype, H));
    let z = b.input("other", tokens(dtype, H));
    let wg = param(&mut b, "gate", dtype, &[I, H]);
    let wu = param(&mut b, "up", dtype, &[I, H]);
    let wide = param(&mut b, "up_other_type", other(dtype), &[I, H]);
    let biases = [dtype, dtype, other(dtype)].map(|d| param(&mut b, "bias", d, &[I]));
    let gate = b.node("g", Op::Linear, &[x, wg]).unwrap();
    let biased = b.node("gb", Op::Linear, &[x, wg, biases[0]]).unwrap();
    let ups = [
        b.node("u", Op::Linear, &[x, wu]).unwrap(),
        b.node("u_of_others", Op::Linear, &[z, wu]).unwrap(),
        b.node("u_by_others", Op::Linear, &[x, wide]).unwrap(),
        b.node("u_biased", Op::Linear, &[x, wu, biases[1]]).unwrap(),
        b.node("u_biased_otherwise", Op::Linear, &[x, wu, biases[2]]).unwrap(),
        b.node_as("u_rounded_otherwise", Op::Linear, &[x, wu], Some(other(dtype))).unwrap(),
    ];
    for g in [gate, biased] {
        for u in ups {
            // Operands of two types may be refused.
            if let Ok(out) = b.node("act", Op::Activate(Activation::SwiGlu), &[g, u]) {
                b.output("act", out);
            }
        }
    }
    let w = param(&mut b, "both", dtype, &[2 * I, H]);
    let both = b.node("gu", Op::Linear, &[x, w]).unwrap();
    let apart = b.node("gu_of_others", Op::Linear, &[z, w]).unwrap();
    let halves = [(both, 0), (both, 1), (apart, 1)].map(|(v, i)| b.node("half", Op::Half(i), &[v]).unwrap());
    for (g, u) in [(0, 1), (1, 0), (0, 0), (0, 2)] {
        let out = b.node("act", Op::Activate(Activation::SwiGlu), &[halves[g], halves[u]]).unwrap();
        b.output("halves", out);
    }
    b.finish()
}

/// Activations of a gate, rounded and not, times matrices, columns and rows.
fn products_of_activations(dtype: DType) -> Graph {
    let mut b = GraphBuilder::new("products of activations");
    let x = b.input("input", tokens(dtype, H));
    let wg = param(&mut b, "gate", dtype, &[I, H]);
    let wu = param(&mut b, "up", dtype, &[I, H]);
    let wc = param(&mut b, "column", dtype, &[1, H]);
    let row = param(&mut b, "row", dtype, &[I]);
    let gate = b.node("g", Op::Linear, &[x, wg]).unwrap();
    let others = [
        b.node("u", Op::Linear, &[x, wu]).unwrap(),
        b.node_as("u_rounded_otherwise", Op::Linear, &[x, wu], Some(other(dtype))).unwrap(),
        b.node("c", Op::Linear, &[x, wc]).unwrap(),
        row,
    ];
    let acts = [Activation::Relu2, Activation::Silu, Activation::GeluTanh, Activation::Gelu];
    for act in acts.into_iter().chain([Activation::Ungated(Curve::Mish)]) {
        for kept in [DType::F32, DType::BF16] {
            let of_gate = b.node_as("act", Op::Activate(act.clone()), &[gate], Some(kept)).unwrap();
            for up in others {
                for operands in [[of_gate, up], [up, of_gate]] {
                    let out = b.node_as("act_times_up", Op::Mul, &operands, Some(dtype)).unwrap();
                    b.output("act_times_up", out);
                }
            }
        }
    }
    b.finish()
}

/// Scores that are rounded on the way to a choice; limits that keep every group, and not; sums that something is added to.
fn scores_rounded(dtype: DType) -> Graph {
    let mut b = GraphBuilder::new("scores rounded");
    let x = b.input("input", tokens(dtype, H));
    let router = param(&mut b, "router.weight", dtype, &[E, H]);
    let logits = b.node_as("logits", Op::Linear, &[x, router], Some(DType::F32)).unwrap();
    for score in [Score::Softmax, Score::Sigmoid, Score::SqrtSoftplus] {
        let scores = b.node("scores", Op::Score(score), &[logits]).unwrap();
        for (keep, ty) in [(3, DType::F32), (3, DType::BF16), (2, DType::F32)] {
            let limit = Op::GroupLimit { n_groups: 3, keep, score: GroupScore::Max, fill: RowMask::Zero };
            let limited = b.node_as("limited", limit, &[scores], Some(ty)).unwrap();
            let ids = b.node("ids", Op::TopK { k: K as u32 }, &[limited]).unwrap();
            b.output("ids", ids);
        }
        let ids = b.node("ids", Op::TopK { k: K as u32 }, &[scores]).unwrap();
        for ty in [DType::F32, DType::BF16] {
            let chosen = b.node_as("chosen", Op::GatherScores, &[scores, ids], Some(ty)).unwrap();
            for eps in [0.0, 1e-20, 0.1] {
                let weights =
                    b.node("weights", Op::Renormalise(RenormRule::Sum { eps: Real(eps) }), &[chosen]).unwrap();
                b.output("weights", weights);
            }
        }
    }
    b.finish()
}
