//! Rules about casts and constant factors.

use super::super::language::ENode;
use super::{Rewrite, Rule, Site, Tree};
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

fn drop_cast(s: &Site<'_>) -> Vec<Rewrite> {
    // No rewrite changes the type of a value, so any other cast stays.
    if s.node.op == Op::Cast { vec![s.made(Tree::Class(s.operand(0)))] } else { Vec::new() }
}

fn narrow_back(s: &Site<'_>) -> Vec<Rewrite> {
    if s.node.op != Op::Cast {
        return Vec::new();
    }
    let wide = s.ty(s.operand(0)).dtype;
    s.ways(s.operand(0), |n| (n.op == Op::Cast).then(|| n.children[0]))
        .filter(|_| s.needs("the value in between is f32", wide == DType::F32))
        .filter(|&x| s.needs("it is narrowed to the type that it had", s.ty(x).dtype == s.node.dtype))
        .map(|x| s.made(Tree::Class(x)))
        .collect()
}

fn drop_unit_scale(s: &Site<'_>) -> Vec<Rewrite> {
    let Op::Scale(c) = s.node.op else { return Vec::new() };
    if !s.needs("the factor is 1", c == Real(1.0)) {
        return Vec::new();
    }
    let x = s.operand(0);
    if s.ty(x).dtype == s.node.dtype {
        return vec![s.made(Tree::Class(x))];
    }
    vec![s.made(Tree::Node(Op::Cast, s.node.dtype, vec![Tree::Class(x)]))]
}

fn join_scales(s: &Site<'_>) -> Vec<Rewrite> {
    let Op::Scale(a) = s.node.op else { return Vec::new() };
    let inner = |n: &ENode| match n.op {
        Op::Scale(b) => Some((b, n.dtype, n.children[0])),
        _ => None,
    };
    s.ways(s.operand(0), inner)
        .filter(|(_, dtype, _)| s.needs("the first product is kept in f32", *dtype == DType::F32))
        .filter(|(b, ..)| {
            // Exact in f64.
            let product = f64::from(a.0) * f64::from(b.0);
            s.needs("the product of the factors is exact", f64::from(product as f32) == product)
        })
        .map(|(b, _, x)| s.made(Tree::Node(Op::Scale(Real(a.0 * b.0)), s.node.dtype, vec![Tree::Class(x)])))
        .collect()
}
