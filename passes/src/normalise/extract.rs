//! Takes the set of nodes with the least price out of an e-graph, counting shared values once.
//!
//! Greedy on the DAG: each class keeps the set of classes that its best node needs, with their prices; sets are joined,
//! not added, so a value that is used twice is paid once. Repeated until nothing gets cheaper. Layers have tens of
//! nodes, so sets are small.

use super::language::{ENode, LayerEGraph};
use super::price::Price;
use egg::Id;
use std::collections::{BTreeMap, HashMap};

/// What a class needs under its best node: every class below it and the price of that class's own node.
#[derive(Clone)]
struct Needs {
    node: ENode,
    below: BTreeMap<Id, Price>,
    total: Price,
}

/// The best node of every class that the roots need; `None` when a root has no form with kernels.
pub fn extract(egraph: &LayerEGraph, roots: &[Id]) -> Option<HashMap<Id, ENode>> {
    let mut best: BTreeMap<Id, Needs> = BTreeMap::new();
    let mut classes: Vec<Id> = egraph.classes().map(|c| c.id).collect();
    classes.sort();
    loop {
        let mut changed = false;
        for &id in &classes {
            let mut nodes: Vec<&ENode> = egraph[id].nodes.iter().collect();
            // Equal prices are decided by the order of nodes, not by the order in which they were found.
            nodes.sort();
            for node in nodes {
                let Some(needs) = needs(egraph, id, node, &best) else { continue };
                let cheaper = best.get(&id).is_none_or(|old| needs.total < old.total);
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

fn needs(egraph: &LayerEGraph, id: Id, node: &ENode, best: &BTreeMap<Id, Needs>) -> Option<Needs> {
    let own = Price::of_enode(egraph, id, node)?;
    let mut below: BTreeMap<Id, Price> = BTreeMap::new();
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
    let total = below.values().copied().sum();
    Some(Needs { node: node.clone(), below, total })
}

#[cfg(test)]
mod tests {
    use super::super::rules::catalogue;
    use super::super::{Limits, saturate};
    use super::*;
    use crate::verify::layers::{Layer, deepseek, plain};
    use moec_ir::DType;

    /// What the roots need with one node chosen for each class; `None` for cycles and for forms without kernels.
    fn price(egraph: &LayerEGraph, roots: &[Id], node: &impl Fn(Id) -> ENode) -> Option<Price> {
        fn visit(
            egraph: &LayerEGraph,
            id: Id,
            node: &impl Fn(Id) -> ENode,
            open: &mut Vec<Id>,
            done: &mut BTreeMap<Id, Price>,
        ) -> Option<()> {
            let id = egraph.find(id);
            if done.contains_key(&id) {
                return Some(());
            }
            if open.contains(&id) {
                return None;
            }
            open.push(id);
            let node_here = node(id);
            for &child in &node_here.children {
                visit(egraph, child, node, open, done)?;
            }
            open.pop();
            done.insert(id, Price::of_enode(egraph, id, &node_here)?);
            Some(())
        }
        let mut done = BTreeMap::new();
        roots.iter().try_for_each(|&root| visit(egraph, root, node, &mut Vec::new(), &mut done))?;
        Some(done.into_values().sum())
    }

    #[test]
    fn no_other_choice_of_nodes_has_a_lower_price() {
        for layer in
            [plain(DType::BF16), deepseek(DType::BF16), Layer { shared: Some(12), bias: true, ..plain(DType::F32) }]
        {
            let graph = layer.graph();
            let full = saturate(&graph, &catalogue(), Limits::default());
            let egraph = &full.egraph;
            let roots: Vec<Id> = graph.outputs.iter().map(|(_, v)| egraph.find(full.ids[v.index()])).collect();
            let choice = extract(egraph, &roots).expect("a form");
            let extracted = price(egraph, &roots, &|id| choice[&id].clone()).expect("a form");
            let several: Vec<Id> = egraph.classes().filter(|c| c.nodes.len() > 1).map(|c| c.id).collect();
            let ways: Vec<usize> = several.iter().map(|&id| egraph[id].nodes.len()).collect();
            let all: usize = ways.iter().product();
            assert!(all > 1 && all <= 1 << 20, "{all} choices");
            let mut least = extracted;
            for n in 0..all {
                // The digits of `n`, one for each class.
                let mut rest = n;
                let digits: Vec<usize> = ways.iter().map(|w| (rest % w, rest /= w).0).collect();
                let node = |id: Id| {
                    let digit = several.iter().position(|&c| c == id).map_or(0, |i| digits[i]);
                    egraph[id].nodes[digit].clone()
                };
                least = least.min(price(egraph, &roots, &node).unwrap_or(least));
            }
            assert_eq!(least, extracted, "{layer:?}: {all} choices");
        }
    }
}
