//! Rules about matrix products: one product for gate and up, gathered rows, activation in the epilogue.

use super::super::language::{ENode, LayerEGraph};
use super::{Rule, Tree, ty, ways};
use egg::Id;
use moec_ir::NumericClass::Exact;
use moec_ir::graph::Op;

/// The rules of this theme.
pub const RULES: &[Rule] = &[
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

fn merge_gate_and_up(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    let Op::Activate(act) = &node.op else { return Vec::new() };
    if !act.is_gated() || ty(egraph, node.children[0]).dtype != ty(egraph, node.children[1]).dtype {
        return Vec::new();
    }
    let dtype = ty(egraph, node.children[0]).dtype;
    let mut found = Vec::new();
    for g in ways(egraph, node.children[0], product) {
        for u in ways(egraph, node.children[1], product) {
            let same_rows = g.op == u.op && g.leading == u.leading && g.bias.is_some() == u.bias.is_some();
            // A bias may have its own element type; only biases of one type lie side by side.
            let same_bias = match (g.bias, u.bias) {
                (Some(a), Some(b)) => ty(egraph, a) == ty(egraph, b),
                _ => true,
            };
            if !same_rows || !same_bias || ty(egraph, g.weights) != ty(egraph, u.weights) {
                continue;
            }
            // Output rows are the axis before the last of a matrix, and the last axis of a bias.
            let axis = ty(egraph, g.weights).shape.len() as u32 - 2;
            let join = |a: Id, b: Id| {
                Tree::Node(Op::Concat { axis }, ty(egraph, a).dtype, vec![Tree::Class(a), Tree::Class(b)])
            };
            let mut operands: Vec<Tree> = g.leading.iter().map(|&id| Tree::Class(id)).collect();
            operands.push(join(g.weights, u.weights));
            if let (Some(a), Some(b)) = (g.bias, u.bias) {
                operands.push(join(a, b));
            }
            let both = Tree::Node(g.op.clone(), dtype, operands);
            let half = |i| Tree::Node(Op::Half(i), dtype, vec![both.clone()]);
            found.push(Tree::Node(node.op.clone(), node.dtype, vec![half(0), half(1)]));
        }
    }
    found
}

fn activation_into_epilogue(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    let Op::Activate(act) = &node.op else { return Vec::new() };
    let both: Vec<Id> = if act.is_gated() {
        let half = |which: u32| move |n: &ENode| (n.op == Op::Half(which)).then(|| n.children[0]);
        let ups: Vec<Id> = ways(egraph, node.children[1], half(1)).collect();
        ways(egraph, node.children[0], half(0)).filter(|g| ups.contains(g)).collect()
    } else {
        vec![node.children[0]]
    };
    let mut found = Vec::new();
    for id in both {
        let round = ty(egraph, id).dtype;
        for p in ways(egraph, id, product) {
            let act = act.clone();
            let op = match p.op {
                Op::Linear => Op::LinearAct { act, round },
                _ => Op::GroupedLinearAct { act, round, gather: p.op == Op::GatherGroupedLinear },
            };
            let operands = p.leading.iter().copied().chain([p.weights]).chain(p.bias).map(Tree::Class).collect();
            found.push(Tree::Node(op, node.dtype, operands));
        }
    }
    found
}

fn permute_into_gather(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    let op = match &node.op {
        Op::GroupedLinear => Op::GatherGroupedLinear,
        Op::GroupedLinearAct { act, round, gather: false } => {
            Op::GroupedLinearAct { act: act.clone(), round: *round, gather: true }
        }
        _ => return Vec::new(),
    };
    let (rows, ids, weights) = (node.children[0], node.children[1], node.children[2]);
    let n_experts = ty(egraph, weights).shape[0].fixed();
    let source = move |n: &ENode| match n.op {
        Op::Permute { n_experts: e } if Some(u64::from(e)) == n_experts && n.children[1] == ids => Some(n.children[0]),
        _ => None,
    };
    // A permute that also narrows its rows rounds once per slot; reading the source would skip that rounding.
    ways(egraph, rows, source)
        .filter(|&x| ty(egraph, x).dtype == ty(egraph, rows).dtype)
        .map(|x| {
            let mut operands = vec![Tree::Class(x)];
            operands.extend(node.children[1..].iter().map(|&c| Tree::Class(c)));
            Tree::Node(op.clone(), node.dtype, operands)
        })
        .collect()
}
