//! Rows in expert order that hold no slot: a slot whose expert is another rank's, or none (a zero-compute expert), is not
//! dispatched, and the rows behind the last expert's stay unwritten. Kernels that copy rows stop before them.

use super::Lowering;
use moec_ir::graph::{Graph, Op, ValueId};
use moec_ir::tile::BufferId;
use moec_ir::{Diagnostic, Dim};

/// By which ids the rows of a value are sorted, and how many experts there are.
pub(super) type ExpertOrder = (ValueId, u64);

/// For each value whose rows are in expert order and come from a product of the experts: the order. A kernel that makes
/// expert order itself (`permute`) writes every row.
pub(super) fn expert_orders(graph: &Graph) -> Vec<Option<ExpertOrder>> {
    let mut orders: Vec<Option<ExpertOrder>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let rows = |v: &ValueId| graph.ty(*v).shape.first();
        let order = match node.op {
            Op::GroupedLinear | Op::GatherGroupedLinear | Op::GroupedLinearAct { .. } => {
                let experts = node.inputs.get(2).and_then(rows).and_then(|d| d.fixed());
                experts.map(|n| (node.inputs[1], n))
            }
            Op::Permute { .. } | Op::Unpermute { .. } | Op::SlotToRow { .. } | Op::WeightedSum | Op::Combine { .. } => {
                None
            }
            _ => {
                let same = node.inputs.iter().filter(|v| rows(v) == node.ty.shape.first());
                same.filter_map(|v| orders[v.index()]).next()
            }
        };
        orders.push(order);
    }
    orders
}

impl Lowering<'_> {
    /// The offsets that end the rows of `v`; `None` when all of its rows hold a slot, or it is an output of which no other says which
    /// rows do.
    pub(super) fn until(&mut self, v: ValueId) -> Result<Option<BufferId>, Diagnostic> {
        let outputs = || self.graph.outputs.iter().map(|(_, w)| *w);
        let tells = |w: ValueId, ids| matches!(self.node(w).op, Op::SlotToRow { .. }) && self.node(w).inputs[0] == ids;
        let is_output = outputs().any(|w| w == v);
        let is_told = |ids| outputs().any(|w| tells(w, ids));
        match self.orders[v.index()] {
            Some((ids, n_experts)) if (!is_output || is_told(ids)) && self.may_miss(ids, n_experts) => {
                Ok(Some(self.plan(ids, n_experts)?.offsets))
            }
            _ => Ok(None),
        }
    }

    /// Whether some of `ids` may be none of the experts.
    fn may_miss(&self, ids: ValueId, n_experts: u64) -> bool {
        let node = self.node(ids);
        match node.op {
            Op::TopK { .. } => self.ty(node.inputs[0]).last() != Some(Dim::Fixed(n_experts)),
            _ => true,
        }
    }
}
