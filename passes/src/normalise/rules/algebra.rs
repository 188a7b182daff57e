//! Rules about casts and constant factors.

use super::super::language::{ENode, LayerEGraph};
use super::{Rule, Tree, ty, ways};
use moec_ir::DType;
use moec_ir::NumericClass::{Exact, Reassociates};
use moec_ir::expr::Real;
use moec_ir::graph::Op;

/// The rules of this theme.
pub const RULES: &[Rule] = &[
    Rule {
        name: "drop-cast",
        theme: "algebra",
        class: Exact,
        about: "a cast to the type that the value has does nothing",
        rewrite: drop_cast,
    },
    Rule {
        name: "narrow-back",
        theme: "algebra",
        class: Exact,
        about: "widening and narrowing back gives the value that was there",
        rewrite: narrow_back,
    },
    Rule {
        name: "drop-unit-scale",
        theme: "algebra",
        class: Exact,
        about: "a factor of one does nothing",
        rewrite: drop_unit_scale,
    },
    Rule {
        name: "join-scales",
        theme: "algebra",
        class: Reassociates,
        about: "two constant factors are one",
        rewrite: join_scales,
    },
];

fn drop_cast(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    let x = node.children.first().copied();
    match x {
        Some(x) if node.op == Op::Cast && ty(egraph, x).dtype == node.dtype => vec![Tree::Class(x)],
        _ => Vec::new(),
    }
}

fn narrow_back(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    if node.op != Op::Cast || ty(egraph, node.children[0]).dtype != DType::F32 {
        return Vec::new();
    }
    ways(egraph, node.children[0], |n| (n.op == Op::Cast).then(|| n.children[0]))
        .filter(|&x| ty(egraph, x).dtype == node.dtype)
        .map(Tree::Class)
        .collect()
}

fn drop_unit_scale(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    if node.op != Op::Scale(Real(1.0)) {
        return Vec::new();
    }
    let x = node.children[0];
    if ty(egraph, x).dtype == node.dtype {
        return vec![Tree::Class(x)];
    }
    vec![Tree::Node(Op::Cast, node.dtype, vec![Tree::Class(x)])]
}

fn join_scales(egraph: &LayerEGraph, node: &ENode) -> Vec<Tree> {
    let Op::Scale(a) = node.op else { return Vec::new() };
    let inner = |n: &ENode| match n.op {
        Op::Scale(b) if n.dtype == DType::F32 => Some((b, n.children[0])),
        _ => None,
    };
    ways(egraph, node.children[0], inner)
        .map(|(b, x)| Tree::Node(Op::Scale(Real(a.0 * b.0)), node.dtype, vec![Tree::Class(x)]))
        .collect()
}
