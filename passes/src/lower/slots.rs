//! Rows in expert order that hold no slot: a slot whose expert is another rank's, or none (a zero-compute expert), is not
//! dispatched, and the rows behind the last expert's stay unwritten. Kernels that copy rows stop before them.

use super::{Lowering, Storing};
use moec_ir::graph::{Graph, Op, ValueId};
use moec_ir::target::TargetKind;
use moec_ir::tile::{Body, BufferId, ColAccess, Map, MapArg, Places, Role, RowAccess, SlotPlaces};
use moec_ir::{DType, Diagnostic, Dim, Expr};

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
            Op::Permute { .. }
            | Op::Unpermute { .. }
            | Op::SlotToRow { .. }
            | Op::StoreAt { .. }
            | Op::WeightedSum
            | Op::Combine { .. } => None,
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
    /// Makes the output `v`, whose rows are stored at places: by the product that makes them, or by a kernel that copies them there.
    pub(super) fn store_at(&mut self, v: ValueId, n_experts: u64, unit: u64) -> Result<(), Diagnostic> {
        let &[rows, ids, places] = &self.node(v).inputs[..] else { return Err(self.unsupported(v, "it takes three")) };
        if !matches!(self.target.kind, TargetKind::Gpu { .. }) {
            return Err(self.unsupported(v, "memory of others is mapped by GPUs only"));
        }
        let outputs = || self.graph.outputs.iter().map(|(_, w)| *w);
        let users = |x: ValueId| self.graph.nodes.iter().flat_map(|n| &n.inputs).filter(|&&u| u == x).count();
        if outputs().filter(|w| *w == v).count() != 1 || users(v) > 0 {
            return Err(self.unsupported(v, "it can be an output only"));
        }
        let alone = users(rows) == 1 && outputs().all(|w| w != rows) && self.stored[rows.index()].is_none();
        let of_slots = self.value(places)?;
        let plan = self.plan(ids, n_experts)?;
        let of_rows =
            self.places_of(plan.offsets, of_slots).ok_or_else(|| self.unsupported(v, "its order is unknown"))?;
        let at = Places { of_rows, unit };
        if alone && matches!(self.node(rows).op, Op::GroupedLinear | Op::GroupedLinearAct { .. }) {
            return self.product(rows, Storing::Places(v, at));
        }
        let source = self.value(rows)?;
        let out = self.result(v)?;
        let args = vec![MapArg { buffer: source, row: RowAccess::Same, col: ColAccess::From(0) }];
        let (expr, until, out_places) = (Expr::identity(), Some(plan.offsets), Some(at));
        self.push(&self.node(v).name, Body::Map(Map { args, expr, out, until, out_places }));
        Ok(())
    }

    /// Has the kernel that makes the order with these offsets bring places of slots into it.
    fn places_of(&mut self, offsets: BufferId, of_slots: BufferId) -> Option<BufferId> {
        let rows = self.program.kernels.iter().find_map(|k| match &k.body {
            Body::Plan(p) if p.offsets == offsets => Some(self.program.buffer(p.row_to_token).rows),
            _ => None,
        })?;
        let of_rows = self.add_buffer("row_places", DType::I64, (1, rows, 1), 1, Role::Workspace);
        let made = self.program.kernels.iter_mut().find_map(|k| match &mut k.body {
            Body::Plan(p) if p.offsets == offsets && p.places.is_none() => Some(p),
            _ => None,
        })?;
        made.places = Some(SlotPlaces { of_slots, of_rows });
        Some(of_rows)
    }

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
