//! Rules about the way back: un-permutation, weighted sum, scaling factor, shared expert.

use super::super::language::{ENode, LayerEGraph};
use super::{Rule, Tree, ty, ways};
use egg::Id;
use moec_ir::NumericClass::{Exact, Reassociates};
use moec_ir::expr::Real;
use moec_ir::graph::Op;
use moec_ir::{DType, Dim};

/// The rules of this theme.
pub const RULES: &[Rule] = &[
    Rule {
        name: "unpermute-into-combine",
        theme: "combine",
        class: Exact,
        about: "the weighted sum reads expert rows where they are, in slot order: no un-permuted copy",
        rewrite: unpermute_into_combine,
    },
    Rule {
        name: "scale-into-combine",
        theme: "combine",
        class: Exact,
        about: "the routed scaling factor multiplies the f32 sum before it is rounded, as before",
        rewrite: scale_into_combine,
    },
    Rule {
        name: "scale-into-weights",
        theme: "combine",
        class: Reassociates,
        about: "the routed scaling factor multiplies k weights instead of H sums",
        rewrite: scale_into_weights,
    },
    Rule {
        name: "shared-into-combine",
        theme: "combine",
        class: Exact,
        about: "the shared expert's result is added where the routed sum is made",
        rewrite: shared_into_combine,
    },
    Rule {
        name: "shared-gate-into-combine",
        theme: "combine",
        class: Exact,
        about: "the shared expert's gate multiplies its result where it is added",
        rewrite: shared_gate_into_combine,
    },
];

/// A combine node: attributes and operands.
struct CombineNode {
    n_experts: u32,
    scale: Real,
    round: DType,
    gate_round: DType,
    dtype: DType,
    operands: Vec<Id>,
}

fn combine(node: &ENode) -> Option<CombineNode> {
    match node.op {
        Op::Combine { n_experts, scale, round, gate_round } => Some(CombineNode {
            n_experts,
            scale,
            round,
            gate_round,
            dtype: node.dtype,
            operands: node.children.clone(),
        }),
        _ => None,
    }
}

impl CombineNode {
    fn tree(self) -> Tree {
        let CombineNode { n_experts, scale, round, gate_round, dtype, operands } = self;
        let operands = operands.into_iter().map(Tree::Class).collect();
        Tree::Node(Op::Combine { n_experts, scale, round, gate_round }, dtype, operands)
    }
}

fn unpermute_into_combine(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    if node.op != Op::WeightedSum {
        return Vec::new();
    }
    let (slots, weights) = (node.children[0], node.children[1]);
    let source = |n: &ENode| match n.op {
        Op::Unpermute { n_experts } => Some((n_experts, n.children[0], n.children[1])),
        _ => None,
    };
    ways(egraph, slots, source)
        .filter(|(_, y, _)| ty(egraph, *y).dtype == ty(egraph, slots).dtype)
        .map(|(n_experts, y, ids)| {
            let operands = vec![y, ids, weights];
            CombineNode {
                n_experts,
                scale: Real(1.0),
                round: DType::F32,
                gate_round: DType::F32,
                dtype: node.dtype,
                operands,
            }
            .tree()
        })
        .collect()
}

fn scale_into_combine(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    let Op::Scale(c) = node.op else { return Vec::new() };
    // Only a sum that is still whole (f32), unscaled and without a base is multiplied exactly as before.
    let whole = |n: &CombineNode| n.dtype == DType::F32 && n.scale == Real(1.0) && n.operands.len() == 3;
    ways(egraph, node.children[0], combine)
        .filter(whole)
        .map(|n| CombineNode { scale: c, dtype: node.dtype, ..n }.tree())
        .collect()
}

fn scale_into_weights(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    let Op::Scale(c) = node.op else { return Vec::new() };
    let sum = |n: &ENode| (n.op == Op::WeightedSum && n.dtype == DType::F32).then(|| (n.children[0], n.children[1]));
    ways(egraph, node.children[0], sum)
        .filter(|(_, w)| ty(egraph, *w).dtype == DType::F32)
        .map(|(slots, w)| {
            let scaled = Tree::Node(Op::Scale(c), DType::F32, vec![Tree::Class(w)]);
            Tree::Node(Op::WeightedSum, node.dtype, vec![Tree::Class(slots), scaled])
        })
        .collect()
}

fn shared_into_combine(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    if node.op != Op::Add {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (sum, base) in [(0, 1), (1, 0)] {
        let base = node.children[base];
        let bare = |n: &CombineNode| n.operands.len() == 3;
        for n in ways(egraph, node.children[sum], combine).filter(bare) {
            if ty(egraph, base).shape != ty(egraph, node.children[sum]).shape {
                continue;
            }
            let operands = [n.operands.clone(), vec![base]].concat();
            found.push(CombineNode { round: n.dtype, dtype: node.dtype, operands, ..n }.tree());
        }
    }
    found
}

fn shared_gate_into_combine(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    let Some(n) = combine(node).filter(|n| n.operands.len() == 4) else { return Vec::new() };
    let base = n.operands[3];
    let column = |id: Id| matches!(ty(egraph, id).shape[..], [Dim::PerToken(1), Dim::Fixed(1)]);
    let gated = |m: &ENode| match m.op {
        Op::Mul if column(m.children[1]) => Some((m.children[0], m.children[1], m.dtype)),
        Op::Mul if column(m.children[0]) => Some((m.children[1], m.children[0], m.dtype)),
        _ => None,
    };
    ways(egraph, base, gated)
        .filter(|(x, _, _)| ty(egraph, *x).shape == ty(egraph, base).shape)
        .map(|(x, gate, gate_round)| {
            let operands = [&n.operands[..3], &[x, gate]].concat();
            CombineNode { operands, gate_round, ..n }.tree()
        })
        .collect()
}
