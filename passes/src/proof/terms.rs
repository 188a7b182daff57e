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

    /// A node over classes.
    pub fn of_node(&mut self, egraph: &LayerEGraph, node: &ENode) -> usize {
        let operands = node.children.iter().map(|&c| self.of_class(egraph, c)).collect();
        self.add(&node.op, node.dtype, operands)
    }

    /// A node over classes, of which some were seen as these nodes.
    pub fn of_seen(&mut self, egraph: &LayerEGraph, node: &ENode, seen: &BTreeMap<Id, ENode>) -> usize {
        let operand = |table: &mut Table, c: &Id| {
            let Some(n) = seen.get(c) else { return table.of_class(egraph, *c) };
            // A cast that does nothing has its own class below it.
            let below: BTreeMap<Id, ENode> =
                seen.iter().filter(|(id, _)| *id != c).map(|(&id, n)| (id, n.clone())).collect();
            table.of_seen(egraph, n, &below)
        };
        let operands = node.children.iter().map(|c| operand(self, c)).collect();
        self.add(&node.op, node.dtype, operands)
    }

    /// What a rule made.
    pub fn of_tree(&mut self, egraph: &LayerEGraph, tree: &Tree) -> usize {
        match tree {
            Tree::Class(id) => self.of_class(egraph, *id),
            Tree::Node(op, dtype, children) => {
                let operands = children.iter().map(|c| self.of_tree(egraph, c)).collect();
                self.add(op, *dtype, operands)
            }
        }
    }

    /// The node that was the first with this id. Its operands had lesser ids.
    fn of_class(&mut self, egraph: &LayerEGraph, id: Id) -> usize {
        if let Some(&term) = self.of_class.get(&id) {
            return term;
        }
        let term = self.of_node(egraph, egraph.id_to_node(id));
        self.of_class.insert(id, term);
        term
    }
}
