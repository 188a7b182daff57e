//! Checks rules by evaluation: every way in which an e-graph makes a value has to give that value.
//!
//! This is stronger than comparing the extracted layer: forms that are never taken out are checked too.

use super::language::{ENode, LayerEGraph};
use super::rules::Rule;
use super::{Limits, saturate};
use egg::Id;
use moec_ir::graph::{Graph, Node, Op, evaluate_node};
use moec_ir::tensor::Tensor;
use std::collections::BTreeMap;

/// What the rules did to one layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Soundness {
    /// How often each rule found something new, by name.
    pub fired: BTreeMap<String, usize>,
    /// Values that were made in more than one way.
    pub compared: usize,
    /// Largest relative difference of two ways to make a float value.
    pub worst_error: f64,
    /// Whether two ways gave different integers (expert ids).
    pub ids_differ: bool,
}

/// Applies `rules` to `graph` until nothing new is found, evaluates every way to make every value, and compares.
///
/// `inputs` and `params` are in the order of the graph's. Ways whose operands cannot be evaluated are skipped; there are
/// none in an acyclic e-graph.
pub fn check(graph: &Graph, rules: &[Rule], inputs: &[Tensor], params: &[Tensor]) -> Soundness {
    let full = saturate(graph, rules, Limits::default());
    Soundness { fired: full.fired, ..compare(&full.egraph, inputs, params) }
}

fn compare(egraph: &LayerEGraph, inputs: &[Tensor], params: &[Tensor]) -> Soundness {
    let n_tokens = inputs.first().map_or(0, |t| t.shape[0]);
    let mut values: BTreeMap<Id, Tensor> = BTreeMap::new();
    let mut seen: BTreeMap<Id, Vec<&ENode>> = BTreeMap::new();
    let mut report = Soundness::default();
    loop {
        let mut progress = false;
        for class in egraph.classes() {
            for node in &class.nodes {
                let known = seen.get(&class.id).is_some_and(|done| done.contains(&node));
                let operands: Option<Vec<&Tensor>> =
                    node.children.iter().map(|&c| values.get(&egraph.find(c))).collect();
                let (false, Some(operands)) = (known, operands) else { continue };
                let value = match node.op {
                    Op::Input(i) => inputs[i as usize].clone(),
                    Op::Param(i) => params[i as usize].clone(),
                    _ => {
                        let name = node.op.name().to_string();
                        let ty = class.data.clone();
                        evaluate_node(
                            &Node { name, op: node.op.clone(), inputs: Vec::new(), ty, origin: None },
                            &operands,
                            n_tokens,
                        )
                    }
                };
                seen.entry(class.id).or_default().push(node);
                progress = true;
                match values.get(&class.id) {
                    None => {
                        values.insert(class.id, value);
                    }
                    Some(first) => {
                        report.compared += 1;
                        report.ids_differ |= first.ints() != value.ints();
                        report.worst_error = report.worst_error.max(value.worst_error(first));
                    }
                }
            }
        }
        if !progress {
            return report;
        }
    }
}
