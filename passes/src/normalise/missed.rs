//! Fusions that a layer did not get, and what they asked for.

use super::language::{Facts, LayerEGraph};
use super::rules::{Rule, Site, Watch, catalogue};
use super::{add_graph, language::ENode};
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

/// What rules about fusion ask for in vain in a layer after rewriting, in its order; nothing about rules that do not fit its
/// operations at all.
#[must_use]
pub fn missed(normal: &Graph, numerics: Numerics) -> Vec<Missed> {
    let mut egraph = LayerEGraph::new(Facts::of(normal));
    let ids = add_graph(&mut egraph, normal);
    let fusions: Vec<Rule> = catalogue().into_iter().filter(|r| ["gemm", "combine"].contains(&r.theme)).collect();
    let mut out = Vec::new();
    for (node, &id) in normal.nodes.iter().zip(&ids) {
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
    use moec_ir::{DType, Dim, TensorType};

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
        let found = missed(&layer(DType::BF16), Numerics::Deterministic);
        let unmet = vec!["the copy does not narrow its rows".to_string()];
        assert_eq!(found, [Missed { rule: "permute-into-gather", value: "y".to_string(), unmet }]);
        assert_eq!(missed(&layer(DType::F32), Numerics::Deterministic), []);
    }
}
