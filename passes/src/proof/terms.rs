//! Makes terms of graphs and of what an e-graph held.

use super::Term;
use crate::normalise::{ENode, LayerEGraph, Tree};
use egg::Id;
use moec_ir::DType;
use moec_ir::graph::{Graph, Op};
use std::collections::{BTreeMap, HashMap};

/// Terms, each once.
#[derive(Default)]
pub struct Table {
    /// Operands come first.
    pub terms: Vec<Term>,
    index: HashMap<Term, usize>,
    /// The term that a class began with.
    of_class: HashMap<Id, usize>,
}

impl Table {
    fn add(&mut self, op: &Op, dtype: DType, operands: Vec<usize>) -> usize {
        let term = Term { op: op.clone(), dtype, operands };
        let next = self.terms.len();
        let at = *self.index.entry(term.clone()).or_insert(next);
        if at == next {
            self.terms.push(term);
        }
        at
    }

    /// The term of each node.
    pub fn of_graph(&mut self, graph: &Graph) -> Vec<usize> {
        let mut terms: Vec<usize> = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            let operands = node.inputs.iter().map(|v| terms[v.index()]).collect();
            terms.push(self.add(&node.op, node.ty.dtype, operands));
        }
        terms
    }

    /// A node over classes, of which some were seen as these nodes.
    pub fn of_seen(&mut self, egraph: &LayerEGraph, node: &ENode, seen: &BTreeMap<Id, ENode>) -> usize {
        let operands = node.children.iter().map(|&c| self.of_class_seen(egraph, c, seen)).collect();
        self.add(&node.op, node.dtype, operands)
    }

    /// What a rule made of values, of which some were seen as these nodes: a step speaks of each value in one way.
    pub fn of_tree(&mut self, egraph: &LayerEGraph, tree: &Tree, seen: &BTreeMap<Id, ENode>) -> usize {
        match tree {
            Tree::Class(id) => self.of_class_seen(egraph, *id, seen),
            Tree::Node(op, dtype, children) => {
                let operands = children.iter().map(|c| self.of_tree(egraph, c, seen)).collect();
                self.add(op, *dtype, operands)
            }
        }
    }

    fn of_class_seen(&mut self, egraph: &LayerEGraph, id: Id, seen: &BTreeMap<Id, ENode>) -> usize {
        let Some(node) = seen.get(&id) else { return self.of_class(egraph, id) };
        // A cast that does nothing has its own class below it.
        let below: BTreeMap<Id, ENode> = seen.iter().filter(|(i, _)| **i != id).map(|(&i, n)| (i, n.clone())).collect();
        self.of_seen(egraph, node, &below)
    }

    /// The node that was the first with this id. Its operands had lesser ids.
    fn of_class(&mut self, egraph: &LayerEGraph, id: Id) -> usize {
        if let Some(&term) = self.of_class.get(&id) {
            return term;
        }
        let term = self.of_seen(egraph, egraph.id_to_node(id), &BTreeMap::new());
        self.of_class.insert(id, term);
        term
    }
}
