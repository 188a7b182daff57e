//! Rules about scores and choices.

use super::super::language::ENode;
use super::{Rewrite, Rule, Site, Tree};
use egg::Id;
use moec_ir::NumericClass::{Exact, TieSensitive};
use moec_ir::graph::{Op, RenormRule, Score};
use moec_ir::{DType, Dim};

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

fn drop_group_limit(s: &Site<'_>) -> Vec<Rewrite> {
    let Op::GroupLimit { n_groups, keep, .. } = s.node.op else { return Vec::new() };
    if s.needs("every group is kept", keep == n_groups) { vec![s.made(Tree::Class(s.operand(0)))] } else { Vec::new() }
}

/// Number of experts that have scores.
fn experts(s: &Site<'_>, scores: Id) -> u64 {
    s.ty(scores).last().and_then(Dim::fixed).unwrap_or(0)
}

fn score_after_gather(s: &Site<'_>) -> Vec<Rewrite> {
    if s.node.op != Op::GatherScores {
        return Vec::new();
    }
    let scored = |n: &ENode| match n.op {
        Op::Score(kind) => Some((kind, n.children[0], n.dtype)),
        _ => None,
    };
    let ids = s.operand(1);
    s.ways(s.operand(0), scored)
        .filter(|(kind, ..)| s.needs("the score is elementwise", matches!(kind, Score::Sigmoid | Score::SqrtSoftplus)))
        .filter(|_| s.chosen(ids, experts(s, s.operand(0))))
        .map(|(kind, logits, dtype)| {
            let chosen = Tree::Node(Op::GatherScores, s.ty(logits).dtype, vec![Tree::Class(logits), Tree::Class(ids)]);
            s.made(Tree::Node(Op::Score(kind), dtype, vec![chosen]))
        })
        .collect()
}

fn choose_before_score(s: &Site<'_>) -> Vec<Rewrite> {
    let Op::TopK { .. } = s.node.op else { return Vec::new() };
    let scored = |n: &ENode| matches!(n.op, Op::Score(_)).then(|| n.children[0]);
    s.ways(s.operand(0), scored)
        .map(|logits| s.made(Tree::Node(s.node.op.clone(), s.node.dtype, vec![Tree::Class(logits)])))
        .collect()
}

fn softmax_over_chosen(s: &Site<'_>) -> Vec<Rewrite> {
    let Op::Renormalise(RenormRule::Sum { eps }) = s.node.op else { return Vec::new() };
    let gathered = |n: &ENode| (n.op == Op::GatherScores).then(|| (n.children[0], n.children[1]));
    let scored = |n: &ENode| match n.op {
        Op::Score(kind) => Some((kind, n.children[0])),
        _ => None,
    };
    let mut found = Vec::new();
    for (scores, ids) in s.ways(s.operand(0), gathered) {
        for (kind, logits) in s.ways(scores, scored) {
            let whole = [scores, s.operand(0)].iter().all(|&v| s.ty(v).dtype == DType::F32);
            let holds = s.needs("the score is a softmax", kind == Score::Softmax)
                && s.needs("scores are kept in f32", whole)
                && s.needs("what is added to the sum is nothing beside it", eps.0 <= 1e-12)
                && s.chosen(ids, experts(s, scores));
            if holds {
                let dtype = s.ty(logits).dtype;
                let chosen = Tree::Node(Op::GatherScores, dtype, vec![Tree::Class(logits), Tree::Class(ids)]);
                found.push(s.made(Tree::Node(Op::Score(Score::Softmax), s.node.dtype, vec![chosen])));
            }
        }
    }
    found
}
