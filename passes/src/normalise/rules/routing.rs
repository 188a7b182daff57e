//! Rules about scores and choices.

use super::super::language::{ENode, LayerEGraph};
use super::{Rule, Tree, ty, ways};
use moec_ir::NumericClass::{Exact, TieSensitive};
use moec_ir::graph::{Op, RenormRule, Score};

/// The rules of this theme.
pub const RULES: &[Rule] = &[
    Rule {
        name: "drop-group-limit",
        theme: "routing",
        class: Exact,
        about: "when every group is kept, nothing is masked",
        rewrite: drop_group_limit,
    },
    Rule {
        name: "score-after-gather",
        theme: "routing",
        class: Exact,
        about: "an elementwise score of the chosen logits is the chosen score: k instead of E of them",
        rewrite: score_after_gather,
    },
    Rule {
        name: "choose-before-score",
        theme: "routing",
        class: TieSensitive,
        about: "a strictly increasing score does not change the order, but for scores that saturate",
        rewrite: choose_before_score,
    },
    Rule {
        name: "softmax-over-chosen",
        theme: "routing",
        class: TieSensitive,
        about: "softmax over all, gathered and renormalised, is the softmax of the chosen, but for underflow",
        rewrite: softmax_over_chosen,
    },
];

fn drop_group_limit(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    match node.op {
        Op::GroupLimit { n_groups, keep, .. }
            if keep == n_groups && ty(egraph, node.children[0]).dtype == node.dtype =>
        {
            vec![Tree::Class(node.children[0])]
        }
        _ => Vec::new(),
    }
}

fn score_after_gather(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    if node.op != Op::GatherScores {
        return Vec::new();
    }
    let elementwise = |n: &ENode| match n.op {
        Op::Score(s @ (Score::Sigmoid | Score::SqrtSoftplus)) => Some((s, n.children[0], n.dtype)),
        _ => None,
    };
    ways(egraph, node.children[0], elementwise)
        .filter(|(_, _, dtype)| *dtype == node.dtype)
        .map(|(s, logits, dtype)| {
            let chosen = Tree::Node(
                Op::GatherScores,
                ty(egraph, logits).dtype,
                vec![Tree::Class(logits), Tree::Class(node.children[1])],
            );
            Tree::Node(Op::Score(s), dtype, vec![chosen])
        })
        .collect()
}

fn choose_before_score(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    let Op::TopK { .. } = node.op else { return Vec::new() };
    let scored = |n: &ENode| matches!(n.op, Op::Score(_)).then(|| n.children[0]);
    ways(egraph, node.children[0], scored)
        .map(|logits| Tree::Node(node.op.clone(), node.dtype, vec![Tree::Class(logits)]))
        .collect()
}

fn softmax_over_chosen(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    let Op::Renormalise(RenormRule::Sum { eps }) = node.op else { return Vec::new() };
    if eps.0 > 1e-12 {
        return Vec::new();
    }
    let gathered = |n: &ENode| (n.op == Op::GatherScores).then(|| (n.children[0], n.children[1]));
    let softmax = |n: &ENode| (n.op == Op::Score(Score::Softmax)).then(|| n.children[0]);
    let mut found = Vec::new();
    for (scores, ids) in ways(egraph, node.children[0], gathered) {
        for logits in ways(egraph, scores, softmax) {
            let dtype = ty(egraph, logits).dtype;
            let chosen = Tree::Node(Op::GatherScores, dtype, vec![Tree::Class(logits), Tree::Class(ids)]);
            found.push(Tree::Node(Op::Score(Score::Softmax), node.dtype, vec![chosen]));
        }
    }
    found
}
