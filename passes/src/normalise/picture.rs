//! An e-graph for viewers, in the JSON format of the crate `egraph-serialize` 0.3. That crate is not used: it makes `serde_json` keep
//! maps in the order of insertion, in the whole program.

use super::extract::extract;
use super::price::Price;
use super::rules::allowed;
use super::{Limits, saturate};
use egg::Id;
use moec_ir::Numerics;
use moec_ir::graph::{Graph, Op};
use serde::Serialize;
use std::collections::BTreeMap;

/// All forms of a layer.
#[derive(Debug, Default, Serialize)]
pub struct EGraphPicture {
    /// Operations, by names of their own.
    pub nodes: BTreeMap<String, PictureNode>,
    /// The classes of the outputs.
    pub root_eclasses: Vec<String>,
    /// The type of each class.
    pub class_data: BTreeMap<String, PictureClass>,
}

/// An operation.
#[derive(Debug, Serialize)]
pub struct PictureNode {
    /// What it is called.
    pub op: String,
    /// Nodes, each of which stands for its class.
    pub children: Vec<String>,
    /// Its class.
    pub eclass: String,
    /// Kernels.
    pub cost: f64,
    /// Whether a rule has put another in its place: never.
    pub subsumed: bool,
}

/// A class.
#[derive(Debug, Serialize)]
pub struct PictureClass {
    /// The type of its values.
    pub r#type: String,
}

/// What a node without kernels costs.
const NO_KERNEL: f64 = 1000.0;

/// The e-graph of a layer after the rules that `numerics` allows have run: a node's cost is its kernels, 1000 where it has none; the
/// nodes that are taken out come first in their class, and are called `NAME (taken)`.
pub fn egraph(graph: &Graph, numerics: Numerics) -> EGraphPicture {
    let full = saturate(graph, &allowed(numerics), Limits::default());
    let egraph = &full.egraph;
    let roots: Vec<Id> = graph.outputs.iter().map(|(_, v)| egraph.find(full.ids[v.index()])).collect();
    let taken = extract(egraph, &roots).unwrap_or_default();
    let class_name = |id: Id| format!("c{}", egraph.find(id));
    // Any node stands for its class as an operand: the first.
    let node_name = |id: Id, n: usize| format!("c{}.{n}", egraph.find(id));
    let mut classes: Vec<_> = egraph.classes().collect();
    classes.sort_by_key(|c| c.id);
    let mut out = EGraphPicture::default();
    for class in classes {
        let chosen = taken.get(&class.id);
        let mut nodes: Vec<_> = class.nodes.iter().collect();
        nodes.sort_by_key(|n| (Some(*n) != chosen, *n));
        for (i, node) in nodes.into_iter().enumerate() {
            let name = match &node.op {
                Op::Input(i) => graph.inputs[*i as usize].name.clone(),
                Op::Param(i) => graph.params[*i as usize].name.clone(),
                op => op.name().to_string(),
            };
            let is_taken = Some(node) == chosen;
            let price = Price::of_enode(egraph, class.id, node);
            let node = PictureNode {
                op: if is_taken { format!("{name} (taken)") } else { name },
                children: node.children.iter().map(|&c| node_name(c, 0)).collect(),
                eclass: class_name(class.id),
                cost: price.map_or(NO_KERNEL, |p| p.kernels as f64),
                subsumed: false,
            };
            out.nodes.insert(node_name(class.id, i), node);
        }
        let data = PictureClass { r#type: class.data.to_string() };
        out.class_data.insert(class_name(class.id), data);
    }
    out.root_eclasses = roots.into_iter().map(class_name).collect();
    out
}
