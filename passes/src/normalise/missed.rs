//! Fusions that a layer did not get, and what they asked for.

use super::language::{Facts, LayerEGraph};
use super::rules::{Rule, Site, Watch, allowed, catalogue};
use super::{Limits, add_graph, language::ENode, saturate};
use moec_ir::Numerics;
use moec_ir::graph::Graph;
use std::collections::BTreeMap;

/// A fusion that fits the operations around a value, and was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The rule.
    pub rule: &'static str,
    /// The value, by the user's name.
    pub value: String,
    /// What was asked for and is not so: conditions in words.
    pub unmet: Vec<String>,
}

/// What rules about fusion ask for in vain in a layer as it was written and after rewriting, in its order; nothing about rules that
/// do not fit its operations at all, nor, in the layer as written, about rules that rewrote it elsewhere or later.
#[must_use]
pub fn missed(written: &Graph, normal: &Graph, numerics: Numerics) -> Vec<Missed> {
    let mut out = missed_in(normal, numerics, &|_| true);
    let fired = saturate(written, &allowed(numerics), Limits::default()).fired;
    for m in missed_in(written, numerics, &|rule| !fired.contains_key(rule.name)) {
        if !out.contains(&m) {
            out.push(m);
        }
    }
    out
}

fn missed_in(graph: &Graph, numerics: Numerics, is_asked: &dyn Fn(&Rule) -> bool) -> Vec<Missed> {
    let mut egraph = LayerEGraph::new(Facts::of(graph));
    let ids = add_graph(&mut egraph, graph);
    let is_fusion = |r: &Rule| ["gemm", "combine"].contains(&r.theme);
    let fusions: Vec<Rule> = catalogue().into_iter().filter(|r| is_fusion(r) && is_asked(r)).collect();
    let mut out = Vec::new();
    for (node, &id) in graph.nodes.iter().zip(&ids) {
        for rule in &fusions {
            let unmet: Vec<String> = egraph[id].nodes.iter().flat_map(|n| unmet(rule, &egraph, n, numerics)).collect();
            if !unmet.is_empty() {
                out.push(Missed { rule: rule.name, value: node.name.clone(), unmet });
            }
        }
    }
    out
}

/// The conditions of a rule that do not hold at a node, when that keeps it from being rewritten.
fn unmet(rule: &Rule, egraph: &LayerEGraph, node: &ENode, numerics: Numerics) -> Vec<String> {
    let watch = Watch::default();
    if !(rule.rewrite)(&Site::new(egraph, node, &watch)).is_empty() {
        // What is allowed was done already, as far as it is cheaper.
        let forbidden = !numerics.allows(rule.class);
        return if forbidden { vec![format!("numerics that allow `{}`", rule.class.name())] } else { Vec::new() };
    }
    let seen: BTreeMap<&str, (usize, usize)> = watch.seen.into_inner();
    seen.into_iter().filter(|(_, (_, failed))| *failed > 0).map(|(condition, _)| condition.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use moec_ir::graph::{GraphBuilder, Op};
    use moec_ir::weights::WeightSource;
    use moec_ir::{Activation, DType, Dim, TensorType};

    /// One matrix for each expert, over rows that are copied in a type.
    fn layer(rows: DType) -> Graph {
        let mut b = GraphBuilder::new("copied");
        let x = b.input("input", TensorType::new(DType::F32, [Dim::TOKENS, Dim::Fixed(8)]));
        let router = b.param("router", TensorType::fixed(DType::F32, &[4, 8]), WeightSource::tensor("router"));
        let down = b.param("down", TensorType::fixed(rows, &[4, 8, 8]), WeightSource::tensor("down"));
        let logits = b.node("logits", Op::Linear, &[x, router]).unwrap();
        let ids = b.node("ids", Op::TopK { k: 2 }, &[logits]).unwrap();
        let copy = b.node_as("copy", Op::Permute { n_experts: 4 }, &[x, ids], Some(rows)).unwrap();
        let y = b.node("y", Op::GroupedLinear, &[copy, ids, down]).unwrap();
        b.output("output", y);
        b.finish()
    }

    #[test]
    fn a_copy_that_narrows_keeps_rows_from_being_gathered() {
        let narrowed = layer(DType::BF16);
        let found = missed(&narrowed, &narrowed, Numerics::Deterministic);
        let unmet = vec!["the copy does not narrow its rows".to_string()];
        assert_eq!(found, [Missed { rule: "permute-into-gather", value: "y".to_string(), unmet }]);
        assert_eq!(missed(&layer(DType::F32), &layer(DType::F32), Numerics::Deterministic), []);
    }

    /// An activation of a product, times another product.
    fn gated(kept: DType) -> Graph {
        let mut b = GraphBuilder::new("gated");
        let x = b.input("input", TensorType::new(DType::BF16, [Dim::TOKENS, Dim::Fixed(8)]));
        let [gate, up] = ["gate", "up"].map(|name| {
            let w = b.param(name, TensorType::fixed(DType::BF16, &[8, 8]), WeightSource::tensor(name));
            b.node(name, Op::Linear, &[x, w]).unwrap()
        });
        let act = b.node_as("act", Op::Activate(Activation::Silu), &[gate], Some(kept)).unwrap();
        let out = b.node_as("out", Op::Mul, &[act, up], Some(DType::BF16)).unwrap();
        b.output("output", out);
        b.finish()
    }

    #[test]
    fn an_activation_that_is_rounded_keeps_its_product_apart() {
        let of = |graph: &Graph| {
            let (normal, _) = crate::normalise(graph, Numerics::Deterministic, Limits::default()).unwrap();
            missed(graph, &normal, Numerics::Deterministic)
        };
        let unmet = vec!["the activation is kept in f32".to_string()];
        assert_eq!(
            of(&gated(DType::BF16)),
            [Missed { rule: "multiply-into-activation", value: "out".to_string(), unmet }]
        );
        assert_eq!(of(&gated(DType::F32)), []);
    }
}
