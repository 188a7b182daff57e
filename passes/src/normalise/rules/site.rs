//! A place where a rule is tried, and the conditions that it asks there.
//!
//! Conditions have words, so that a check of the rules can count where each held and where it did not, and can leave one out.

use super::Tree;
use crate::normalise::language::{ENode, LayerEGraph};
use egg::Id;
use moec_ir::graph::Op;
use moec_ir::{Dim, TensorType};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// What a rule makes of a node, and how it read it.
#[derive(Clone, Debug)]
pub struct Rewrite {
    /// The other way to make the value.
    pub tree: Tree,
    /// The nodes that the rule saw behind operands, by class.
    pub seen: BTreeMap<Id, ENode>,
}

/// A node of an e-graph at which a rule is tried.
pub struct Site<'a> {
    /// All values.
    pub egraph: &'a LayerEGraph,
    /// The node that is to be made in another way.
    pub node: &'a ENode,
    /// Who counts conditions.
    pub watch: &'a Watch,
    /// The node that was read last in each class.
    reading: RefCell<BTreeMap<Id, ENode>>,
}

/// Counts conditions. The default one counts for nobody, and leaves none out.
#[derive(Debug, Default)]
pub struct Watch {
    /// By the words of a condition: how often it held, and how often not.
    pub seen: RefCell<BTreeMap<&'static str, (usize, usize)>>,
    /// A condition that is taken to hold always.
    pub without: Option<&'static str>,
}

impl<'a> Site<'a> {
    /// A node to be read.
    pub fn new(egraph: &'a LayerEGraph, node: &'a ENode, watch: &'a Watch) -> Site<'a> {
        Site { egraph, node, watch, reading: RefCell::default() }
    }

    /// What the rule makes of what it reads just now.
    pub fn made(&self, tree: Tree) -> Rewrite {
        Rewrite { tree, seen: self.reading.borrow().clone() }
    }

    /// Begins to read the operands anew.
    pub fn read_anew(&self) {
        self.reading.borrow_mut().clear();
    }

    /// Whether the rule may go on: what is asked, in words, and whether it is so.
    pub fn needs(&self, condition: &'static str, holds: bool) -> bool {
        let mut seen = self.watch.seen.borrow_mut();
        let (held, failed) = seen.entry(condition).or_default();
        *(if holds { held } else { failed }) += 1;
        holds || self.watch.without == Some(condition)
    }

    /// The n-th operand.
    pub fn operand(&self, n: usize) -> Id {
        self.node.children[n]
    }

    /// The type of a value.
    pub fn ty(&self, id: Id) -> &'a TensorType {
        &self.egraph[id].data
    }

    /// Every way in which `pick` reads a node that makes a value.
    pub fn ways<T>(&self, id: Id, pick: impl Fn(&'a ENode) -> Option<T>) -> impl Iterator<Item = T> {
        self.egraph[id].nodes.iter().filter_map(move |node| {
            let picked = pick(node)?;
            self.reading.borrow_mut().insert(id, node.clone());
            Some(picked)
        })
    }

    /// Whether every id is one of `n_experts`. Ids that are given from outside may be others, and those of a choice among more
    /// experts than have weights.
    pub fn chosen(&self, ids: Id, n_experts: u64) -> bool {
        let scores = |n: &'a ENode| matches!(n.op, Op::TopK { .. }).then(|| n.children[0]);
        let among = |scores: Id| self.ty(scores).last().and_then(Dim::fixed).is_some_and(|e| e <= n_experts);
        self.needs("the ids are a choice among these experts", self.ways(ids, scores).any(among))
    }
}
