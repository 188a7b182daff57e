//! Parts of a graph as graphs of their own.

use super::slice::slice_param;
use super::{Graph, GraphBuilder, Op, ValueId};
use crate::diag::Diagnostic;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Copies what values need from one graph to another.
pub(super) struct Emit<'a> {
    graph: &'a Graph,
    pub b: GraphBuilder,
    /// Values of the old graph that are there.
    pub map: BTreeMap<usize, ValueId>,
    /// Parameters of which a part is there: number, axis and range.
    pub cut: Vec<(u32, usize, Range<u64>)>,
    /// Number of experts in place of the layer's, and the parameters that have an axis of them.
    pub n_local: Option<u32>,
    pub stacks: BTreeSet<u32>,
    /// What stands for the weights in sums of these slots.
    pub weights: Option<(usize, ValueId)>,
}

impl<'a> Emit<'a> {
    pub fn new(graph: &'a Graph) -> Emit<'a> {
        Emit {
            graph,
            b: GraphBuilder::new(""),
            map: BTreeMap::new(),
            cut: Vec::new(),
            n_local: None,
            stacks: BTreeSet::new(),
            weights: None,
        }
    }

    /// `v` in the new graph, with all that it needs.
    pub fn value(&mut self, v: ValueId) -> Result<ValueId, Diagnostic> {
        if let Some(&made) = self.map.get(&v.index()) {
            return Ok(made);
        }
        let node = self.graph.node(v);
        let made = match &node.op {
            Op::Input(n) => {
                let input = &self.graph.inputs[*n as usize];
                self.b.input(&input.name, input.ty.clone())
            }
            Op::Param(n) => self.param(*n),
            op => {
                let is_sum = |slots: usize| *op == Op::WeightedSum && node.inputs[0].index() == slots;
                let weights = self.weights.filter(|(slots, _)| is_sum(*slots)).map(|(_, w)| w);
                let mut operands = Vec::with_capacity(node.inputs.len());
                for (i, &input) in node.inputs.iter().enumerate() {
                    operands.push(match weights {
                        Some(w) if i == 1 => w,
                        _ => self.value(input)?,
                    });
                }
                let mut op = op.clone();
                if let (
                    Some(n),
                    Op::Permute { n_experts }
                    | Op::Unpermute { n_experts }
                    | Op::SlotToRow { n_experts }
                    | Op::StoreAt { n_experts, .. },
                ) = (self.n_local, &mut op)
                {
                    *n_experts = n;
                }
                self.b.set_origin(node.origin.clone());
                self.b.node_as(&node.name, op, &operands, Some(node.ty.dtype))?
            }
        };
        self.map.insert(v.index(), made);
        Ok(made)
    }

    fn param(&mut self, n: u32) -> ValueId {
        let whole = &self.graph.params[n as usize];
        let local = self.n_local.filter(|_| self.stacks.contains(&n));
        // Until a placement says otherwise, the local experts are the first ones.
        let param = local.map_or_else(|| whole.clone(), |count| slice_param(whole, 0, &(0..u64::from(count))));
        let cut = self.cut.iter().find(|(m, ..)| *m == n);
        let param = cut.map_or(param.clone(), |(_, axis, range)| slice_param(&param, *axis, range));
        let made = self.b.param(&param.name, param.ty, param.source);
        self.b.store_as(made, param.stored);
        made
    }
}
