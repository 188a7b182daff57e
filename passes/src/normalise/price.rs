//! What a form of a layer is preferred for: fewer kernels, then fewer values that kernels move, then fewer steps.
//!
//! These hold on every machine and for every token count. What depends on either is chosen later, by [`crate::plan`].

use super::language::{ENode, LayerEGraph};
use egg::Id;
use moec_ir::graph::{Graph, Op};
use moec_ir::{Dim, TensorType};
use std::iter::Sum;
use std::ops::Add;

/// A price; the first difference decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price {
    /// Kernels, each of which reads its operands from memory and writes its result there.
    pub kernels: u64,
    /// Values that are read and written for one token, weights once.
    pub values: u64,
    /// Steps of row programs.
    pub steps: u64,
}

impl Price {
    /// Of one node; `joined` says which operands are a `Concat`. `None` for a form that has no kernel.
    pub fn of(op: &Op, operands: &[&TensorType], joined: &[bool], result: &TensorType) -> Option<Price> {
        let moved = operands.iter().map(|t| t.elements(1)).sum::<u64>() + result.elements(1);
        let kernel = Price { kernels: 1, values: moved, steps: 0 };
        let step = Price { kernels: 0, values: moved, steps: 1 };
        match op {
            Op::Input(_) | Op::Param(_) | Op::Concat { .. } => Some(Price::default()),
            // Joined weights are read by products that take gate and up apart.
            Op::Linear | Op::GroupedLinear | Op::GatherGroupedLinear if joined.contains(&true) => None,
            Op::Linear
            | Op::LinearAct { .. }
            | Op::GroupedLinear
            | Op::GatherGroupedLinear
            | Op::GroupedLinearAct { .. } => Some(kernel),
            // Choice and scores share one launch, which every way of writing the router has.
            Op::Reduce(_)
            | Op::MaskChosen
            | Op::JoinColumns
            | Op::Lookup
            | Op::SumOutside { .. }
            | Op::LocalIds { .. }
            | Op::Score(_)
            | Op::GroupLimit { .. }
            | Op::TopK { .. }
            | Op::GatherScores
            | Op::Renormalise(_)
            | Op::RmsNorm { .. } => Some(step),
            Op::Add | Op::Mul | Op::Scale(_) | Op::Cast | Op::Map(_) if is_score_row(result) => Some(step),
            Op::Add
            | Op::Mul
            | Op::Scale(_)
            | Op::Cast
            | Op::Map(_)
            | Op::Activate(_)
            | Op::Half(_)
            | Op::Quantise(_)
            | Op::Permute { .. }
            | Op::Unpermute { .. }
            | Op::SlotToRow { .. }
            | Op::StoreAt { .. }
            | Op::WeightedSum
            | Op::Combine { .. } => Some(kernel),
        }
    }

    /// Of a node of a class. `None` for a form that has no kernel.
    pub(super) fn of_enode(egraph: &LayerEGraph, class: Id, node: &ENode) -> Option<Price> {
        let operands: Vec<&TensorType> = node.children.iter().map(|&c| &egraph[c].data).collect();
        let is_joined = |&c: &Id| egraph[c].nodes.iter().any(|n| matches!(n.op, Op::Concat { .. }));
        let joined: Vec<bool> = node.children.iter().map(is_joined).collect();
        Price::of(&node.op, &operands, &joined, &egraph[class].data)
    }

    /// Of every node that the outputs need, each once. `None` where one has no kernel.
    pub fn of_graph(graph: &Graph) -> Option<Price> {
        let mut needed = vec![false; graph.nodes.len()];
        graph.outputs.iter().for_each(|(_, v)| needed[v.index()] = true);
        let mut total = Price::default();
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            if !needed[i] {
                continue;
            }
            node.inputs.iter().for_each(|v| needed[v.index()] = true);
            let operands: Vec<&TensorType> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
            let is_joined = |v: &_| matches!(graph.node(*v).op, Op::Concat { .. });
            let joined: Vec<bool> = node.inputs.iter().map(is_joined).collect();
            total = total + Price::of(&node.op, &operands, &joined, &node.ty)?;
        }
        Some(total)
    }
}

impl Add for Price {
    type Output = Price;

    fn add(self, other: Price) -> Price {
        let [kernels, values, steps] =
            [(self.kernels, other.kernels), (self.values, other.values), (self.steps, other.steps)]
                .map(|(a, b)| a.saturating_add(b));
        Price { kernels, values, steps }
    }
}

impl Sum for Price {
    fn sum<I: Iterator<Item = Price>>(prices: I) -> Price {
        prices.fold(Price::default(), Add::add)
    }
}

/// Whether a value is `[T, n]` with few enough columns to stay in a row program.
pub fn is_score_row(ty: &TensorType) -> bool {
    matches!(ty.shape[..], [Dim::PerToken(1), Dim::Fixed(n)] if n <= 1024)
}
