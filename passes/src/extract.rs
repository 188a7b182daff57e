//! Takes the cheapest set of nodes out of an e-graph, counting shared values once.
//!
//! Greedy on the DAG: each class keeps the set of classes that its best node needs, with their costs; sets are joined,
//! not added, so a value that is used twice is paid once. Repeated until nothing gets cheaper. Layers have tens of
//! nodes, so sets are small.

use crate::cost::{CostModel, Operand};
use crate::language::{ENode, LayerEGraph};
use egg::Id;
use moec_ir::graph::Op;
use moec_ir::quant::QuantFormat;
use std::collections::{BTreeMap, HashMap};

/// What a class needs under its best node: every class below it and the cost of that class's own node.
#[derive(Clone)]
struct Needs {
    node: ENode,
    below: BTreeMap<Id, f64>,
    total: f64,
}

/// The best node of every class that the roots need; `None` when a root cannot be had at finite cost.
pub fn extract(egraph: &LayerEGraph, roots: &[Id], cost: &CostModel) -> Option<HashMap<Id, ENode>> {
    let mut best: BTreeMap<Id, Needs> = BTreeMap::new();
    let mut classes: Vec<Id> = egraph.classes().map(|c| c.id).collect();
    classes.sort();
    loop {
        let mut changed = false;
        for &id in &classes {
            let mut nodes: Vec<&ENode> = egraph[id].nodes.iter().collect();
            // Equal costs are decided by the order of nodes, not by the order in which they were found.
            nodes.sort();
            for node in nodes {
                let Some(needs) = needs(egraph, id, node, cost, &best) else { continue };
                let cheaper = best.get(&id).is_none_or(|old| needs.total < old.total * (1.0 - 1e-12));
                if cheaper {
                    best.insert(id, needs);
                    changed = true;
                }
            }
        }
        if !changed {
            break;
        }
    }
    let mut choice = HashMap::new();
    let mut todo: Vec<Id> = roots.to_vec();
    while let Some(id) = todo.pop() {
        let id = egraph.find(id);
        let needs = best.get(&id)?;
        if choice.insert(id, needs.node.clone()).is_none() {
            todo.extend(needs.node.children.iter().copied());
        }
    }
    Some(choice)
}

/// How a class is published: a parameter, or parameters that are joined and stored alike.
fn stored(egraph: &LayerEGraph, id: Id) -> Option<QuantFormat> {
    egraph[id].nodes.iter().find_map(|n| match n.op {
        Op::Param(i) => egraph.analysis.stored(i),
        Op::Concat { .. } => {
            let first = stored(egraph, *n.children.first()?)?;
            n.children.iter().all(|&c| stored(egraph, c) == Some(first)).then_some(first)
        }
        _ => None,
    })
}

fn needs(egraph: &LayerEGraph, id: Id, node: &ENode, cost: &CostModel, best: &BTreeMap<Id, Needs>) -> Option<Needs> {
    let operands: Vec<Operand> = node
        .children
        .iter()
        .map(|&c| {
            let joined = egraph[c].nodes.iter().any(|n| matches!(n.op, Op::Concat { .. }));
            Operand { ty: &egraph[c].data, stored: stored(egraph, c), joined }
        })
        .collect();
    let own = cost.node(&node.op, &operands, &egraph[id].data);
    if !own.is_finite() {
        return None;
    }
    let mut below: BTreeMap<Id, f64> = BTreeMap::new();
    for &child in &node.children {
        let child = egraph.find(child);
        let b = best.get(&child)?;
        // A class below itself is a cycle.
        if child == id || b.below.contains_key(&id) {
            return None;
        }
        below.extend(b.below.iter().map(|(k, v)| (*k, *v)));
    }
    below.insert(id, own);
    let total = below.values().sum();
    Some(Needs { node: node.clone(), below, total })
}
