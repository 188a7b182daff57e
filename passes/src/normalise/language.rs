//! The e-graph's language: graph operations with their rounding point, and the type of every class.

use super::rules::Tree;
use egg::{Analysis, DidMerge, EGraph, Id, Language};
use moec_ir::graph::{Graph, Op, infer_type};
use moec_ir::{DType, NumericClass, TensorType};
use std::collections::BTreeMap;

/// A graph node whose operands are e-classes.
///
/// `dtype` is part of the node: the same operation with another rounding point is another value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ENode {
    /// The operation.
    pub op: Op,
    /// Element type of the result.
    pub dtype: DType,
    /// Operands.
    pub children: Vec<Id>,
}

impl Language for ENode {
    type Discriminant = (Op, DType);

    fn discriminant(&self) -> Self::Discriminant {
        (self.op.clone(), self.dtype)
    }

    fn matches(&self, other: &Self) -> bool {
        self.op == other.op && self.dtype == other.dtype && self.children.len() == other.children.len()
    }

    fn children(&self) -> &[Id] {
        &self.children
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

/// The facts that the analysis needs, types of the leaves; and what was done so far.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    inputs: Vec<TensorType>,
    params: Vec<TensorType>,
    /// Rules that found something new, in order.
    pub firings: Vec<Firing>,
}

/// Where a rule found something new.
#[derive(Clone, Debug)]
pub struct Firing {
    /// Its name.
    pub rule: &'static str,
    /// What it does to the bits.
    pub class: NumericClass,
    /// The node that was there.
    pub before: ENode,
    /// The nodes that the rule saw behind its operands, by class.
    pub seen: BTreeMap<Id, ENode>,
    /// What the rule made of it.
    pub after: Tree,
}

/// The e-graph of one layer.
pub type LayerEGraph = EGraph<ENode, Facts>;

impl Facts {
    /// The leaves of `graph`.
    pub fn of(graph: &Graph) -> Facts {
        Facts {
            inputs: graph.inputs.iter().map(|i| i.ty.clone()).collect(),
            params: graph.params.iter().map(|p| p.ty.clone()).collect(),
            firings: Vec::new(),
        }
    }
}

impl Analysis<ENode> for Facts {
    /// Element type and shape: equal for all nodes of a class.
    type Data = TensorType;

    fn make(egraph: &mut LayerEGraph, node: &ENode, _id: Id) -> TensorType {
        match node.op {
            Op::Input(i) => return egraph.analysis.inputs[i as usize].clone(),
            Op::Param(i) => return egraph.analysis.params[i as usize].clone(),
            _ => {}
        }
        let types: Vec<&TensorType> = node.children.iter().map(|&c| &egraph[c].data).collect();
        let names = vec!["operand"; types.len()];
        let mut ty = infer_type(node.op.name(), &node.op, &types, &names).expect("rules should build well-typed nodes");
        if ty.dtype.is_float() {
            ty.dtype = node.dtype;
        }
        ty
    }

    fn merge(&mut self, a: &mut TensorType, b: TensorType) -> DidMerge {
        assert_eq!(*a, b, "rewrites should keep the type of a value");
        DidMerge(false, false)
    }
}
