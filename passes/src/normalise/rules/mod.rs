//! The rewrite catalogue. Rules are grouped by theme, one file each; `docs/rewrites.md` lists them.

mod algebra;
mod combine;
mod gemm;
mod routing;
mod site;

pub use site::{Rewrite, Site, Watch};

use super::language::{ENode, Facts, Firing, LayerEGraph};
use egg::{Applier, EClass, Id, PatternAst, SearchMatches, Searcher, Subst, Symbol};
use moec_ir::graph::{Op, infer_type};
use moec_ir::{DType, NumericClass, Numerics, TensorType};

/// A directed rewrite of one graph node, which may look at how its operands are made.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Kebab-case verb phrase.
    pub name: &'static str,
    /// The room of the catalogue: `gemm`, `combine`, `routing`, `algebra`.
    pub theme: &'static str,
    /// What it does to the bits.
    pub class: NumericClass,
    /// When it may fire, and what it saves: one sentence.
    pub about: &'static str,
    /// The other ways to make the value of the node at a site.
    pub rewrite: fn(&Site<'_>) -> Vec<Rewrite>,
}

/// A value to be built: an existing class, or a new node.
#[derive(Clone, Debug)]
pub enum Tree {
    /// A value that exists.
    Class(Id),
    /// A node over other values, with its rounding point.
    Node(Op, DType, Vec<Tree>),
}

/// Every rule, in the order of the catalogue.
pub fn catalogue() -> Vec<Rule> {
    [gemm::RULES, combine::RULES, routing::RULES, algebra::RULES].concat()
}

/// The rules that `numerics` allows.
pub fn allowed(numerics: Numerics) -> Vec<Rule> {
    catalogue().into_iter().filter(|r| numerics.allows(r.class)).collect()
}

impl Tree {
    /// The type of its value; `None` when the operands do not fit.
    pub(crate) fn ty(&self, egraph: &LayerEGraph) -> Option<TensorType> {
        match self {
            Tree::Class(id) => Some(egraph[*id].data.clone()),
            Tree::Node(op, dtype, children) => {
                let types: Vec<TensorType> = children.iter().map(|c| c.ty(egraph)).collect::<Option<_>>()?;
                let names = vec!["operand"; types.len()];
                let mut ty = infer_type(op.name(), op, &types.iter().collect::<Vec<_>>(), &names).ok()?;
                if ty.dtype.is_float() {
                    ty.dtype = *dtype;
                }
                Some(ty)
            }
        }
    }

    fn add(&self, egraph: &mut LayerEGraph) -> Id {
        match self {
            Tree::Class(id) => *id,
            Tree::Node(op, dtype, children) => {
                let children = children.iter().map(|c| c.add(egraph)).collect();
                egraph.add(ENode { op: op.clone(), dtype: *dtype, children })
            }
        }
    }
}

impl Rule {
    /// What it makes of the nodes of a class, each with the node.
    fn all(&self, egraph: &LayerEGraph, class: &EClass<ENode, TensorType>) -> Vec<(ENode, Rewrite)> {
        let watch = Watch::default();
        let of = |node: &ENode| {
            let rewrites = (self.rewrite)(&Site::new(egraph, node, &watch));
            rewrites.into_iter().map(|r| (node.clone(), r)).collect::<Vec<_>>()
        };
        class.nodes.iter().flat_map(of).collect()
    }

    /// The rule as `egg` wants it.
    pub fn to_egg(self) -> egg::Rewrite<ENode, Facts> {
        egg::Rewrite::new(self.name, self, self).expect("a rule without pattern variables should be well formed")
    }
}

impl Searcher<ENode, Facts> for Rule {
    fn search_eclass_with_limit(
        &self,
        egraph: &LayerEGraph,
        id: Id,
        _limit: usize,
    ) -> Option<SearchMatches<'_, ENode>> {
        let found = !self.all(egraph, &egraph[id]).is_empty();
        found.then(|| SearchMatches { eclass: id, substs: vec![Subst::default()], ast: None })
    }

    fn vars(&self) -> Vec<egg::Var> {
        Vec::new()
    }
}

impl Applier<ENode, Facts> for Rule {
    fn apply_one(
        &self,
        egraph: &mut LayerEGraph,
        id: Id,
        _subst: &Subst,
        _ast: Option<&PatternAst<ENode>>,
        _rule: Symbol,
    ) -> Vec<Id> {
        let rewrites = self.all(egraph, &egraph[id]);
        let mut changed = Vec::new();
        // A graph may mix element types in ways that a rule did not think of: such a rewrite is none.
        let own = egraph[id].data.clone();
        for (before, Rewrite { tree, seen }) in rewrites {
            if tree.ty(egraph).as_ref() != Some(&own) {
                continue;
            }
            let new = tree.add(egraph);
            debug_assert_eq!(egraph[new].data, egraph[id].data, "rule `{}` should keep the type", self.name);
            if egraph.union(id, new) {
                let firing = Firing { rule: self.name, class: self.class, before, seen, after: tree };
                egraph.analysis.firings.push(firing);
                changed.push(id);
            }
        }
        changed
    }
}
