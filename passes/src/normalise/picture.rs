//! An e-graph for viewers, in the format of `egraph-serialize`.

use super::extract::extract;
use super::price::Price;
use super::rules::{Rule, catalogue};
use super::{Limits, saturate};
use egg::Id;
use egraph_serialize::{ClassData, EGraph, Node, NodeId};
use moec_ir::graph::{Graph, Op};
use moec_ir::{Numerics, TensorType};

/// What a node without kernels costs.
const NO_KERNEL: f64 = 1000.0;

/// The e-graph of a layer after the rules that `numerics` allows have run: a node's cost is its kernels, 1000 where it has none; the
/// nodes that are taken out come first in their class, and are called `NAME (taken)`.
pub fn egraph(graph: &Graph, numerics: Numerics) -> EGraph {
    let rules: Vec<Rule> = catalogue().into_iter().filter(|r| numerics.allows(r.class)).collect();
    let full = saturate(graph, &rules, Limits::default());
    let egraph = &full.egraph;
    let roots: Vec<Id> = graph.outputs.iter().map(|(_, v)| egraph.find(full.ids[v.index()])).collect();
    let taken = extract(egraph, &roots).unwrap_or_default();
    let class_name = |id: Id| format!("c{}", egraph.find(id));
    // Any node stands for its class as an operand: the first.
    let node_name = |id: Id, n: usize| NodeId::from(format!("c{}.{n}", egraph.find(id)));
    let mut classes: Vec<_> = egraph.classes().collect();
    classes.sort_by_key(|c| c.id);
    let mut out = EGraph::default();
    for class in classes {
        let chosen = taken.get(&class.id);
        let mut nodes: Vec<_> = class.nodes.iter().collect();
        nodes.sort_by_key(|n| (Some(*n) != chosen, *n));
        for (i, node) in nodes.into_iter().enumerate() {
            let operands: Vec<&TensorType> = node.children.iter().map(|&c| &egraph[c].data).collect();
            let is_joined = |&c: &Id| egraph[c].nodes.iter().any(|n| matches!(n.op, Op::Concat { .. }));
            let joined: Vec<bool> = node.children.iter().map(is_joined).collect();
            let price = Price::of(&node.op, &operands, &joined, &class.data);
            let name = match &node.op {
                Op::Input(i) => graph.inputs[*i as usize].name.clone(),
                Op::Param(i) => graph.params[*i as usize].name.clone(),
                op => op.name().to_string(),
            };
            let is_taken = Some(node) == chosen;
            let node = Node {
                op: if is_taken { format!("{name} (taken)") } else { name },
                children: node.children.iter().map(|&c| node_name(c, 0)).collect(),
                eclass: class_name(class.id).into(),
                cost: price.map_or(NO_KERNEL, |p| p.kernels as f64).try_into().unwrap_or_default(),
                subsumed: false,
            };
            out.add_node(node_name(class.id, i), node);
        }
        let data = ClassData { typ: Some(class.data.to_string()), extra: Default::default() };
        out.class_data.insert(class_name(class.id).into(), data);
    }
    out.root_eclasses = roots.into_iter().map(|r| class_name(r).into()).collect();
    out
}
