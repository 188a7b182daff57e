//! Rules about the way back: un-permutation, weighted sum, scaling factor, shared expert.

use super::super::language::ENode;
use super::{Rewrite, Rule, Site, Tree};
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
        name: "skip-undispatched-slots",
        theme: "combine",
        class: Reassociates,
        about: "so too where ids are given: a slot that no expert has is left out of the sum, in place of its weight times zero",
        rewrite: skip_undispatched_slots,
    },
    Rule {
        name: "scale-into-combine",
        theme: "combine",
        class: Exact,
        about: "the routed scaling factor multiplies the f32 sum before it is rounded, as before",
        rewrite: scale_into_combine,
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
#[derive(Clone)]
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

fn unpermute_into_combine(s: &Site<'_>) -> Vec<Rewrite> {
    // A weight times zero may be a zero of another sign, or NaN.
    combined(s, |ids, n_experts| s.chosen(ids, n_experts.into()))
}

fn skip_undispatched_slots(s: &Site<'_>) -> Vec<Rewrite> {
    combined(s, |_, _| true)
}

/// A weighted sum of rows that were un-permuted by ids of some experts, as a combine.
fn combined(s: &Site<'_>, allowed: impl Fn(Id, u32) -> bool) -> Vec<Rewrite> {
    if s.node.op != Op::WeightedSum {
        return Vec::new();
    }
    let [slots, weights] = [0, 1].map(|i| s.operand(i));
    let source = |n: &ENode| match n.op {
        Op::Unpermute { n_experts } => Some((n_experts, n.children[0], n.children[1])),
        _ => None,
    };
    s.ways(slots, source)
        .filter(|(_, y, _)| s.needs("the copy does not narrow its rows", s.ty(*y).dtype == s.ty(slots).dtype))
        .filter(|(n_experts, _, ids)| allowed(*ids, *n_experts))
        .map(|(n_experts, y, ids)| {
            let sum = CombineNode {
                n_experts,
                scale: Real(1.0),
                round: DType::F32,
                gate_round: DType::F32,
                dtype: s.node.dtype,
                operands: vec![y, ids, weights],
            };
            s.made(sum.tree())
        })
        .collect()
}

fn scale_into_combine(s: &Site<'_>) -> Vec<Rewrite> {
    let Op::Scale(c) = s.node.op else { return Vec::new() };
    // Only a sum that is still whole is multiplied exactly as before.
    s.ways(s.operand(0), combine)
        .filter(|n| s.needs("the sum is kept in f32", n.dtype == DType::F32))
        .filter(|n| s.needs("the sum has no factor yet", n.scale == Real(1.0)))
        .filter(|n| s.needs("nothing has been added to the sum", n.operands.len() == 3))
        .map(|n| s.made(CombineNode { scale: c, dtype: s.node.dtype, ..n }.tree()))
        .collect()
}

fn shared_into_combine(s: &Site<'_>) -> Vec<Rewrite> {
    if s.node.op != Op::Add {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (sum, base) in [(0, 1), (1, 0)].map(|(a, b)| (s.operand(a), s.operand(b))) {
        s.read_anew();
        for n in s.ways(sum, combine) {
            let holds = s.needs("nothing has been added to the sum", n.operands.len() == 3)
                && s.needs("what is added has the shape of the sum", s.ty(base).shape == s.ty(sum).shape);
            if holds {
                let operands = [n.operands.clone(), vec![base]].concat();
                found.push(s.made(CombineNode { round: n.dtype, dtype: s.node.dtype, operands, ..n }.tree()));
            }
        }
    }
    found
}

fn shared_gate_into_combine(s: &Site<'_>) -> Vec<Rewrite> {
    let Some(n) = combine(s.node) else { return Vec::new() };
    let [y, ids, weights, base] = n.operands[..] else { return Vec::new() };
    let factors = |m: &ENode| (m.op == Op::Mul).then(|| (m.children[0], m.children[1], m.dtype));
    let mut found = Vec::new();
    for (a, b, gate_round) in s.ways(base, factors) {
        for (x, gate) in [(a, b), (b, a)] {
            let column = matches!(s.ty(gate).shape[..], [Dim::PerToken(1), Dim::Fixed(1)]);
            let holds = s.needs("the gate is a number for each token", column)
                && s.needs("it is multiplied with rows of the sum's shape", s.ty(x).shape == s.ty(base).shape);
            if holds {
                let operands = vec![y, ids, weights, x, gate];
                found.push(s.made(CombineNode { operands, gate_round, ..n.clone() }.tree()));
            }
        }
    }
    found
}
