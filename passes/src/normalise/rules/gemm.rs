//! Rules about matrix products: one product for gate and up, gathered rows, activation in the epilogue.

use super::super::language::ENode;
use super::{Rewrite, Rule, Site, Tree};
use egg::Id;
use moec_ir::DType;
use moec_ir::NumericClass::Exact;
use moec_ir::graph::Op;

/// The rules of this theme.
pub const RULES: &[Rule] = &[
    Rule {
        name: "multiply-into-activation",
        theme: "gemm",
        class: Exact,
        about: "an activation times up is a gated activation: no kernel for the product of both",
        rewrite: multiply_into_activation,
    },
    Rule {
        name: "merge-gate-and-up",
        theme: "gemm",
        class: Exact,
        about: "gate and up read the same rows: one product over gate-over-up weights reads them once",
        rewrite: merge_gate_and_up,
    },
    Rule {
        name: "activation-into-epilogue",
        theme: "gemm",
        class: Exact,
        about: "the activation runs on the accumulators, rounded as before: the products are never stored",
        rewrite: activation_into_epilogue,
    },
    Rule {
        name: "permute-into-gather",
        theme: "gemm",
        class: Exact,
        about: "the grouped product reads token rows where they are: no permuted copy",
        rewrite: permute_into_gather,
    },
];

/// A product: the rows it reads, its expert ids if grouped, its weights and bias.
struct Product {
    op: Op,
    leading: Vec<Id>,
    weights: Id,
    bias: Option<Id>,
}

fn product(node: &ENode) -> Option<Product> {
    let n_leading = match node.op {
        Op::Linear => 1,
        Op::GroupedLinear | Op::GatherGroupedLinear => 2,
        _ => return None,
    };
    Some(Product {
        op: node.op.clone(),
        leading: node.children[..n_leading].to_vec(),
        weights: node.children[n_leading],
        bias: node.children.get(n_leading + 1).copied(),
    })
}

fn multiply_into_activation(s: &Site<'_>) -> Vec<Rewrite> {
    if s.node.op != Op::Mul {
        return Vec::new();
    }
    let curve = |n: &ENode| match &n.op {
        Op::Activate(act) => Some((act.gated()?, n.dtype, n.children[0])),
        _ => None,
    };
    let mut found = Vec::new();
    for (of_gate, up) in [(0, 1), (1, 0)].map(|(a, b)| (s.operand(a), s.operand(b))) {
        for (act, dtype, gate) in s.ways(of_gate, curve) {
            let holds = s.needs("the activation is kept in f32", dtype == DType::F32)
                && s.needs("gate and up have one type", s.ty(gate) == s.ty(up));
            if holds {
                let operands = vec![Tree::Class(gate), Tree::Class(up)];
                found.push(s.made(Tree::Node(Op::Activate(act), s.node.dtype, operands)));
            }
        }
    }
    found
}

fn merge_gate_and_up(s: &Site<'_>) -> Vec<Rewrite> {
    let Op::Activate(act) = &s.node.op else { return Vec::new() };
    let [gate, up] = s.node.children[..] else { return Vec::new() };
    let dtype = s.ty(gate).dtype;
    if !act.is_gated() || !s.needs("gate and up are rounded to one type", dtype == s.ty(up).dtype) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for g in s.ways(gate, product) {
        for u in s.ways(up, product) {
            let biases = match (g.bias, u.bias) {
                (Some(a), Some(b)) => s.needs("biases have one type", s.ty(a) == s.ty(b)),
                (a, b) => s.needs("both have a bias, or neither", a.is_none() && b.is_none()),
            };
            let holds = biases
                && s.needs("gate and up read the same rows", g.op == u.op && g.leading == u.leading)
                && s.needs("their weights have one type", s.ty(g.weights) == s.ty(u.weights));
            if !holds {
                continue;
            }
            // Output rows are the axis before the last of a matrix, and the last axis of a bias.
            let axis = s.ty(g.weights).shape.len() as u32 - 2;
            let join =
                |a: Id, b: Id| Tree::Node(Op::Concat { axis }, s.ty(a).dtype, vec![Tree::Class(a), Tree::Class(b)]);
            let mut operands: Vec<Tree> = g.leading.iter().map(|&id| Tree::Class(id)).collect();
            operands.push(join(g.weights, u.weights));
            if let (Some(a), Some(b)) = (g.bias, u.bias) {
                operands.push(join(a, b));
            }
            let both = Tree::Node(g.op.clone(), dtype, operands);
            let half = |i| Tree::Node(Op::Half(i), dtype, vec![both.clone()]);
            found.push(s.made(Tree::Node(s.node.op.clone(), s.node.dtype, vec![half(0), half(1)])));
        }
    }
    found
}

fn activation_into_epilogue(s: &Site<'_>) -> Vec<Rewrite> {
    let Op::Activate(act) = &s.node.op else { return Vec::new() };
    let mut found = Vec::new();
    let mut into_epilogue = |both: Id| {
        let round = s.ty(both).dtype;
        for p in s.ways(both, product) {
            let act = act.clone();
            let op = match p.op {
                Op::Linear => Op::LinearAct { act, round },
                _ => Op::GroupedLinearAct { act, round, gather: p.op == Op::GatherGroupedLinear },
            };
            let operands = p.leading.iter().copied().chain([p.weights]).chain(p.bias).map(Tree::Class).collect();
            found.push(s.made(Tree::Node(op, s.node.dtype, operands)));
        }
    };
    if !act.is_gated() {
        into_epilogue(s.operand(0));
        return found;
    }
    let half = |n: &ENode| match n.op {
        Op::Half(which) => Some((which, n.children[0])),
        _ => None,
    };
    for g in s.ways(s.operand(0), half) {
        for u in s.ways(s.operand(1), half) {
            if s.needs("gate and up are the halves of one product", (g.0, u) == (0, (1, g.1))) {
                into_epilogue(g.1);
            }
        }
    }
    found
}

fn permute_into_gather(s: &Site<'_>) -> Vec<Rewrite> {
    let op = match &s.node.op {
        Op::GroupedLinear => Op::GatherGroupedLinear,
        Op::GroupedLinearAct { act, round, gather: false } => {
            Op::GroupedLinearAct { act: act.clone(), round: *round, gather: true }
        }
        _ => return Vec::new(),
    };
    let [rows, ids, weights] = [0, 1, 2].map(|i| s.operand(i));
    let n_experts = s.ty(weights).shape[0].fixed();
    let source = |n: &ENode| match n.op {
        Op::Permute { n_experts } => Some((n_experts, n.children[0], n.children[1])),
        _ => None,
    };
    s.ways(rows, source)
        .filter(|&(e, ..)| s.needs("rows lie in the order of as many experts", Some(u64::from(e)) == n_experts))
        .filter(|&(.., by)| s.needs("rows lie in the order of the same ids", by == ids))
        // A permute that also narrows its rows rounds once per slot; reading the source would skip that rounding.
        .filter(|&(_, x, _)| s.needs("the copy does not narrow its rows", s.ty(x).dtype == s.ty(rows).dtype))
        .map(|(_, x, _)| {
            let mut operands = vec![Tree::Class(x)];
            operands.extend(s.node.children[1..].iter().map(|&c| Tree::Class(c)));
            s.made(Tree::Node(op.clone(), s.node.dtype, operands))
        })
        .collect()
}
