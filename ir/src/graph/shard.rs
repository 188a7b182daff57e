//! One rank's part of a layer whose weights are spread over several devices.
//!
//! A rank gets the layer's whole input and computes a part of the sum that the layer's output is: the outputs of all
//! ranks, added in f32, are the output of the whole layer. Everything that is not cut (the router, norms before the
//! experts) is computed on every rank alike; what is added to the cut sum but is not part of it (biases of the way down,
//! zero-compute experts, a dense expert that cannot be cut) is added by rank 0 alone.
//!
//! * **Tensor parallel**: pairs of matrix products with only elementwise operations between them — an expert's gate and
//!   up, and its down — are cut along the width between them: rows of the first, columns of the second.
//! * **Expert parallel**: experts are cut into contiguous ranges. Every rank routes over all experts; slots whose expert
//!   is elsewhere get the id -1 ([`Op::LocalIds`]), which is not dispatched.

use super::slice::slice_param;
use super::{Graph, GraphBuilder, Op, ValueId, verify};
use crate::diag::Diagnostic;
use crate::shape::Dim;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::Range;

/// How a layer is spread over devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardKind {
    /// Every expert's width is cut.
    Tensor,
    /// The list of experts is cut.
    Expert,
}

/// One rank of a spread layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// What is cut.
    pub kind: ShardKind,
    /// Number of ranks.
    pub count: u32,
    /// This rank, from 0.
    pub rank: u32,
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            ShardKind::Tensor => "tensor-parallel",
            ShardKind::Expert => "expert-parallel",
        };
        write!(f, "{kind} rank {} of {}", self.rank, self.count)
    }
}

/// Widths that do not divide evenly are cut at multiples of this, where there is enough of them: rows of 16 elements can
/// be copied without a remainder in every element type.
const UNEVEN_UNIT: u64 = 16;

impl Shard {
    /// This rank's part of `width` columns, in multiples of `unit` where every rank gets one; the first ranks get one more.
    /// `None` when there are fewer columns than ranks.
    pub fn part(&self, width: u64, unit: u64) -> Option<Range<u64>> {
        let (count, rank) = (u64::from(self.count), u64::from(self.rank));
        let unit = if width.div_ceil(unit.max(1)) >= count { unit.max(1) } else { 1 };
        let blocks = width.div_ceil(unit);
        if blocks < count {
            return None;
        }
        let (each, more) = (blocks / count, blocks % count);
        let at = |r: u64| ((r * each + r.min(more)) * unit).min(width);
        Some(at(rank)..at(rank + 1))
    }

    fn is_first(&self) -> bool {
        self.rank == 0
    }
}

/// The graph that `shard` computes of the layer `graph`, in the unfused form or not.
///
/// Its first output is a partial sum; the others (expert ids, routing weights) are the same on every rank.
///
/// # Errors
/// * `shard-out-of-range` — there is no such rank.
/// * `shard-too-narrow` — there are fewer experts, or columns of an expert, than ranks.
/// * `layer-not-shardable` — the output is not a sum over ranks, because something that is not linear follows the
///   experts inside the layer, or nothing in it can be cut.
/// * Those of [`verify`].
pub fn shard(graph: &Graph, shard: Shard) -> Result<Graph, Diagnostic> {
    if shard.rank >= shard.count {
        return Err(Diagnostic::input(
            "shard-out-of-range",
            format!("there is no rank {} among {}; ranks are counted from 0", shard.rank, shard.count),
        ));
    }
    if let Some(d) = verify(graph).into_iter().next() {
        return Err(d);
    }
    let mut groups = match shard.kind {
        ShardKind::Tensor => find_groups(graph),
        ShardKind::Expert => Vec::new(),
    };
    loop {
        let mut s =
            Sharding { graph, shard, groups: &groups, b: GraphBuilder::new(""), map: Vec::new(), cut: Vec::new() };
        match s.run() {
            Ok(()) => {
                let mut out = s.b.finish();
                out.name = format!("{}, {shard}", graph.name);
                return Ok(tidy(out));
            }
            Err(Stop::Not(d)) => return Err(*d),
            // A dense expert whose result is not used linearly is computed whole, by every rank that needs it.
            Err(Stop::KeepWhole(ends)) => groups.retain(|g| !ends.contains(&g.end)),
        }
    }
}

/// Matrix products that are cut along the columns between them.
#[derive(Debug)]
pub(super) struct Group {
    /// Products whose rows (N) are cut.
    pub starts: Vec<usize>,
    /// Elementwise operations between.
    pub between: Vec<usize>,
    /// The product whose columns (K) are cut.
    pub end: usize,
    /// The width that is cut.
    pub width: u64,
}

/// The operand that holds the weights of a matrix product, when it can be cut along rows and columns.
fn weights_operand(op: &Op) -> Option<usize> {
    match op {
        Op::Linear => Some(1),
        Op::GroupedLinear | Op::GatherGroupedLinear => Some(2),
        _ => None,
    }
}

fn is_product_of_param(graph: &Graph, i: usize) -> bool {
    let node = &graph.nodes[i];
    weights_operand(&node.op).is_some_and(|w| graph.node(node.inputs[w]).op.is_param())
}

fn find_groups(graph: &Graph) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for end in 0..graph.nodes.len() {
        let node = &graph.nodes[end];
        if !is_product_of_param(graph, end) {
            continue;
        }
        let Some(Dim::Fixed(width)) = graph.ty(node.inputs[0]).last() else { continue };
        let mut group = Group { starts: Vec::new(), between: Vec::new(), end, width };
        let walked = walk(graph, node.inputs[0].index(), width, &mut group);
        let members: BTreeSet<usize> = group.starts.iter().chain(&group.between).copied().collect();
        let used_elsewhere = graph.nodes.iter().enumerate().any(|(user, n)| {
            user != end && !members.contains(&user) && n.inputs.iter().any(|v| members.contains(&v.index()))
        }) || graph.outputs.iter().any(|(_, v)| members.contains(&v.index()));
        // A product that ends one group cannot begin the next: its sum is not known to any one rank.
        let chained = groups.iter().any(|g| group.starts.contains(&g.end) || g.starts.contains(&end));
        if walked && !group.starts.is_empty() && !used_elsewhere && !chained {
            groups.push(group);
        }
    }
    groups
}

/// Walks up from value `at` over elementwise operations to matrix products; false when something else is met.
pub(super) fn walk(graph: &Graph, at: usize, width: u64, group: &mut Group) -> bool {
    if group.starts.contains(&at) || group.between.contains(&at) {
        return true;
    }
    let node = &graph.nodes[at];
    if is_product_of_param(graph, at) {
        group.starts.push(at);
        return true;
    }
    let columnwise = match node.op {
        Op::Activate(_) | Op::Cast | Op::Scale(_) | Op::Map(_) | Op::Add | Op::Mul => true,
        // Blocks of columns stay together; a scale for the whole row needs all of them.
        Op::Quantise(q) => q.block > 0,
        _ => false,
    };
    if !columnwise {
        return false;
    }
    group.between.push(at);
    node.inputs.iter().all(|&v| {
        let last = graph.ty(v).last();
        // One value for each row is spread over the columns that there are.
        last == Some(Dim::Fixed(1)) && width != 1
            || (graph.node(v).op.is_param() && last == Some(Dim::Fixed(width)))
            || walk(graph, v.index(), width, group)
    })
}

/// What a rank holds of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    /// All of it.
    Whole,
    /// This rank's columns.
    Cut(Range<u64>),
    /// A term of it: the terms of all ranks add up to the value. With the products that made it a sum.
    Partial(BTreeSet<usize>),
}

enum Stop {
    Not(Box<Diagnostic>),
    KeepWhole(BTreeSet<usize>),
}

impl From<Diagnostic> for Stop {
    fn from(d: Diagnostic) -> Stop {
        Stop::Not(Box::new(d))
    }
}

struct Sharding<'a> {
    graph: &'a Graph,
    shard: Shard,
    groups: &'a [Group],
    b: GraphBuilder,
    /// For each node of the whole layer, its value here and what this rank holds of it. Parameters are made when they are used.
    map: Vec<Option<(ValueId, Held)>>,
    /// Cut parameters: number, axis and range, and what they are here.
    cut: Vec<(u32, usize, Range<u64>, ValueId)>,
}

impl Sharding<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        for i in 0..self.graph.nodes.len() {
            let node = &self.graph.nodes[i];
            let made = match node.op {
                Op::Param(_) => None,
                Op::Input(n) => {
                    let input = &self.graph.inputs[n as usize];
                    Some((self.b.input(&input.name, input.ty.clone()), Held::Whole))
                }
                _ => Some(self.node(i)?),
            };
            self.map.push(made);
        }
        for (i, (name, v)) in self.graph.outputs.iter().enumerate() {
            let (value, held) = self.operand(*v);
            if i == 0 && !matches!(held, Held::Partial(_)) {
                return Err(self.not_shardable(v.index(), "nothing that is cut leads to the output").into());
            }
            self.b.output(name, value);
        }
        Ok(())
    }

    fn not_shardable(&self, i: usize, why: &str) -> Diagnostic {
        let node = &self.graph.nodes[i];
        Diagnostic::input(
            "layer-not-shardable",
            format!("`{}` cannot be cut into {} parts that add up: {why}", self.graph.name, self.shard.count),
        )
        .note(format!("at `{}` ({})", node.name, node.op.name()))
        .at(node.origin.clone())
    }

    fn too_narrow(&self, i: usize, what: &str, n: u64) -> Stop {
        let node = &self.graph.nodes[i];
        Diagnostic::input(
            "shard-too-narrow",
            format!("`{}` has {n} {what}; they cannot be spread over {} ranks", node.name, self.shard.count),
        )
        .note("every rank needs at least one")
        .at(node.origin.clone())
        .into()
    }

    /// A value of the whole layer here; a parameter is made whole.
    fn operand(&mut self, v: ValueId) -> (ValueId, Held) {
        if let Some(Some(made)) = self.map.get(v.index()) {
            return made.clone();
        }
        let made = (self.param(v, None), Held::Whole);
        self.map[v.index()] = Some(made.clone());
        made
    }

    /// The parameter that `v` names, whole or a range of one of its axes.
    fn param(&mut self, v: ValueId, part: Option<(usize, &Range<u64>)>) -> ValueId {
        let Op::Param(n) = self.graph.node(v).op else { return v };
        let known =
            |c: &&(u32, usize, Range<u64>, ValueId)| part.is_some_and(|(a, r)| c.0 == n && c.1 == a && c.2 == *r);
        if let Some((.., made)) = self.cut.iter().find(known) {
            return *made;
        }
        let whole = &self.graph.params[n as usize];
        let param = part.map_or_else(|| whole.clone(), |(axis, range)| slice_param(whole, axis, range));
        let made = self.b.param(&param.name, param.ty, param.source);
        self.b.store_as(made, param.stored);
        self.cut.extend(part.map(|(axis, range)| (n, axis, range.clone(), made)));
        made
    }

    fn node(&mut self, i: usize) -> Result<(ValueId, Held), Stop> {
        let node = &self.graph.nodes[i];
        self.b.set_origin(node.origin.clone());
        let group = |n: &Group| n.starts.contains(&i) || n.between.contains(&i) || n.end == i;
        if let Some(g) = self.groups.iter().find(|g| group(g)) {
            return self.grouped(i, g);
        }
        if self.shard.kind == ShardKind::Expert && dispatch_experts(self.graph, i).is_some() {
            return self.dispatch(i);
        }
        let operands: Vec<(ValueId, Held)> = node.inputs.iter().map(|&v| self.operand(v)).collect();
        self.plain(i, node.op.clone(), operands)
    }

    fn emit(&mut self, i: usize, op: Op, operands: &[ValueId]) -> Result<ValueId, Stop> {
        let node = &self.graph.nodes[i];
        Ok(self.b.node_as(&node.name, op, operands, Some(node.ty.dtype))?)
    }

    /// A node of a group of products that are cut between them.
    fn grouped(&mut self, i: usize, g: &Group) -> Result<(ValueId, Held), Stop> {
        let node = &self.graph.nodes[i];
        let (unit, fixed) = self.unit(g);
        let Some(range) = self.shard.part(g.width, unit) else {
            return Err(self.too_narrow(g.end, "columns", g.width));
        };
        if fixed && g.width.div_ceil(unit) < u64::from(self.shard.count) {
            return Err(self.too_narrow(g.end, &format!("blocks of {unit} columns"), g.width.div_ceil(unit)));
        }
        if g.between.contains(&i) {
            let mut operands = Vec::new();
            for &v in &node.inputs {
                let columns = self.graph.ty(v).shape.len() - 1;
                let cut = self.graph.node(v).op.is_param() && self.graph.ty(v).last() == Some(Dim::Fixed(g.width));
                if cut && g.width != 1 {
                    operands.push(self.param(v, Some((columns, &range))));
                    continue;
                }
                let (value, held) = self.operand(v);
                if let Held::Partial(ends) = held {
                    return Err(self.needs_whole(i, ends));
                }
                operands.push(value);
            }
            return Ok((self.emit(i, node.op.clone(), &operands)?, Held::Cut(range)));
        }
        let weights = weights_operand(&node.op).unwrap_or(1);
        let (x, held) = self.operand(node.inputs[0]);
        let mut operands = vec![x];
        for &v in &node.inputs[1..weights] {
            operands.push(self.operand(v).0);
        }
        let axes = self.graph.ty(node.inputs[weights]).shape.len();
        let bias = node.inputs.get(weights + 1).copied();
        if i == g.end {
            operands.push(self.param(node.inputs[weights], Some((axes - 1, &range))));
            if let Some(bias) = bias.filter(|_| self.shard.is_first()) {
                operands.push(self.operand(bias).0);
            }
            return Ok((self.emit(i, node.op.clone(), &operands)?, Held::Partial([i].into())));
        }
        if let Held::Partial(ends) = held {
            return Err(self.needs_whole(i, ends));
        }
        operands.push(self.param(node.inputs[weights], Some((axes - 2, &range))));
        if let Some(bias) = bias {
            if !self.graph.node(bias).op.is_param() {
                return Err(self.not_shardable(i, "its bias is not a parameter").into());
            }
            operands.push(self.param(bias, Some((axes - 2, &range))));
        }
        Ok((self.emit(i, node.op.clone(), &operands)?, Held::Cut(range)))
    }

    /// Columns that should not be parted in group `g`: blocks that share a scale. The second result says whether they must
    /// not be, because their values depend on each other.
    fn unit(&self, g: &Group) -> (u64, bool) {
        let stored = |i: usize| {
            let node = &self.graph.nodes[i];
            let w = self.graph.node(node.inputs[weights_operand(&node.op).unwrap_or(1)]);
            if let Op::Param(n) = w.op { self.graph.params[n as usize].stored } else { None }
        };
        let along_k = stored(g.end).map_or(1, |f| f.block_cols);
        let along_n = g.starts.iter().filter_map(|&i| stored(i)).map(|f| f.block_rows).max().unwrap_or(1);
        let activations = g.between.iter().filter_map(|&i| match self.graph.nodes[i].op {
            Op::Quantise(q) => Some(u64::from(q.block)),
            _ => None,
        });
        let blocks = activations.max().unwrap_or(1);
        let fixed = blocks > 1;
        let unit = if fixed { blocks } else { blocks.max(along_k).max(along_n) };
        if unit > 1 || g.width.is_multiple_of(u64::from(self.shard.count)) {
            return (unit, fixed);
        }
        (UNEVEN_UNIT, false)
    }

    /// An operation on rows in expert order, with this rank's experts only.
    fn dispatch(&mut self, i: usize) -> Result<(ValueId, Held), Stop> {
        let node = &self.graph.nodes[i];
        let n_experts = dispatch_experts(self.graph, i).unwrap_or(0);
        let Some(range) = self.shard.part(n_experts, 1) else {
            return Err(self.too_narrow(i, "experts", n_experts));
        };
        let (first, count) = (range.start as u32, (range.end - range.start) as u32);
        let ids_at = 1;
        let mut operands = Vec::new();
        for (n, &v) in node.inputs.iter().enumerate() {
            let is_stack = weights_of_experts(&node.op).is_some_and(|w| n >= w);
            operands.push(if n == ids_at {
                (self.local_ids(v, first, count)?, Held::Whole)
            } else if is_stack {
                (self.stack(i, v, &range)?, Held::Whole)
            } else {
                self.operand(v)
            });
        }
        let mut op = node.op.clone();
        if let Op::Permute { n_experts } | Op::Unpermute { n_experts } | Op::Combine { n_experts, .. } = &mut op {
            *n_experts = count;
        }
        // Back in the order of slots, slots of other ranks are zero here.
        if matches!(op, Op::Unpermute { .. } | Op::Combine { .. }) {
            operands[0].1 = Held::Partial([i].into());
        }
        self.plain(i, op, operands)
    }

    /// A parameter with an axis of experts, or two joined ones, cut to `range`.
    fn stack(&mut self, i: usize, v: ValueId, range: &Range<u64>) -> Result<ValueId, Stop> {
        let node = self.graph.node(v);
        match node.op {
            Op::Param(_) => Ok(self.param(v, Some((0, range)))),
            Op::Concat { axis } if axis > 0 => {
                let parts = [self.stack(i, node.inputs[0], range)?, self.stack(i, node.inputs[1], range)?];
                self.emit(v.index(), node.op.clone(), &parts)
            }
            _ => Err(self.not_shardable(i, "its weights are not parameters").into()),
        }
    }

    fn local_ids(&mut self, ids: ValueId, first: u32, count: u32) -> Result<ValueId, Stop> {
        let (ids, _) = self.operand(ids);
        let op = Op::LocalIds { first, count };
        if let Some(made) = self.b.find(&op, &[ids]) {
            return Ok(made);
        }
        Ok(self.b.node("local_ids", op, &[ids])?)
    }

    /// A node outside the cut products: linear operations keep a sum a sum.
    fn plain(&mut self, i: usize, op: Op, operands: Vec<(ValueId, Held)>) -> Result<(ValueId, Held), Stop> {
        let ends: BTreeSet<usize> = operands
            .iter()
            .filter_map(|(_, h)| if let Held::Partial(ends) = h { Some(ends) } else { None })
            .flatten()
            .copied()
            .collect();
        let values: Vec<ValueId> = operands.iter().map(|(v, _)| *v).collect();
        if ends.is_empty() {
            return Ok((self.emit(i, op, &values)?, Held::Whole));
        }
        let partial: Vec<bool> = operands.iter().map(|(_, h)| matches!(h, Held::Partial(_))).collect();
        let only = |n: usize| partial.iter().enumerate().all(|(m, &p)| p == (m == n));
        let bias_at = match op {
            Op::Linear => Some(2),
            Op::GroupedLinear | Op::GatherGroupedLinear => Some(3),
            _ => None,
        };
        let mut values = values;
        match &op {
            Op::Linear | Op::GroupedLinear | Op::GatherGroupedLinear if only(0) => {
                if !self.shard.is_first() {
                    values.truncate(bias_at.unwrap_or(values.len()));
                }
            }
            Op::Permute { .. } | Op::Unpermute { .. } | Op::WeightedSum if only(0) => {}
            Op::Scale(_) | Op::Cast | Op::Half(_) => {}
            Op::JoinColumns if partial.iter().all(|&p| p) => {}
            Op::Mul if only(0) || only(1) => {}
            Op::Add if partial.iter().all(|&p| p) => {}
            Op::Add => {
                let term = usize::from(partial[1]);
                if !self.shard.is_first() {
                    if self.b.ty(values[term]).shape != self.graph.nodes[i].ty.shape {
                        return Err(self.needs_whole(i, ends));
                    }
                    return Ok((self.emit(i, Op::Cast, &[values[term]])?, Held::Partial(ends)));
                }
            }
            // y, ids, weights, base, gate
            Op::Combine { .. } if partial[0] && !partial[1] && !partial[2] && !partial.get(4).is_some_and(|&p| p) => {
                if !self.shard.is_first() && !partial.get(3).is_some_and(|&p| p) {
                    values.truncate(3);
                }
            }
            _ => return Err(self.needs_whole(i, ends)),
        }
        Ok((self.emit(i, op, &values)?, Held::Partial(ends)))
    }

    /// Node `i` needs a value that no rank has.
    fn needs_whole(&self, i: usize, ends: BTreeSet<usize>) -> Stop {
        let dense = |&e: &usize| self.groups.iter().any(|g| g.end == e) && self.graph.nodes[e].op == Op::Linear;
        if ends.iter().all(dense) {
            return Stop::KeepWhole(ends);
        }
        let node = &self.graph.nodes[i];
        let why = format!("`{}` ({}) needs the sum of all ranks, inside the layer", node.name, node.op.name());
        let d = self.not_shardable(i, &why);
        Stop::Not(Box::new(d.help("compile the layer whole; ranks of it would have to exchange data before this step")))
    }
}

/// The number of experts of an operation on rows in expert order.
fn dispatch_experts(graph: &Graph, i: usize) -> Option<u64> {
    let node = &graph.nodes[i];
    match &node.op {
        Op::Permute { n_experts }
        | Op::Unpermute { n_experts }
        | Op::SlotToRow { n_experts }
        | Op::StoreAt { n_experts, .. }
        | Op::Combine { n_experts, .. } => Some(u64::from(*n_experts)),
        op => weights_of_experts(op).and_then(|w| graph.ty(node.inputs[w]).shape[0].fixed()),
    }
}

/// The first operand with an axis of experts.
fn weights_of_experts(op: &Op) -> Option<usize> {
    matches!(op, Op::GroupedLinear | Op::GatherGroupedLinear | Op::GroupedLinearAct { .. }).then_some(2)
}

/// Drops what the outputs do not need, and rounds where a value is made instead of in a cast of its own.
fn tidy(mut graph: Graph) -> Graph {
    let n_users = |graph: &Graph, v: ValueId| {
        let users = graph.nodes.iter().flat_map(|n| &n.inputs).filter(|&&u| u == v).count();
        users + graph.outputs.iter().filter(|(_, o)| *o == v).count()
    };
    for i in 0..graph.nodes.len() {
        let Op::Cast = graph.nodes[i].op else { continue };
        let v = graph.nodes[i].inputs[0];
        let made_here = !matches!(graph.node(v).op, Op::Input(_) | Op::Param(_));
        if made_here && graph.ty(v).dtype == crate::DType::F32 && n_users(&graph, v) == 1 {
            graph.nodes[v.index()].ty.dtype = graph.nodes[i].ty.dtype;
            for user in &mut graph.nodes {
                user.inputs.iter_mut().filter(|u| u.index() == i).for_each(|u| *u = v);
            }
            graph.outputs.iter_mut().filter(|(_, u)| u.index() == i).for_each(|(_, u)| *u = v);
        }
    }
    let mut needed = vec![false; graph.nodes.len()];
    graph.outputs.iter().for_each(|(_, v)| needed[v.index()] = true);
    for i in (0..graph.nodes.len()).rev() {
        // The caller gives every input, used or not.
        needed[i] |= matches!(graph.nodes[i].op, Op::Input(_));
        if needed[i] {
            graph.nodes[i].inputs.iter().for_each(|v| needed[v.index()] = true);
        }
    }
    let mut new_id = vec![ValueId(0); graph.nodes.len()];
    let mut new_param = vec![0u32; graph.params.len()];
    let (mut nodes, mut params) = (Vec::new(), Vec::new());
    for (i, mut node) in std::mem::take(&mut graph.nodes).into_iter().enumerate().filter(|(i, _)| needed[*i]) {
        if let Op::Param(n) = &mut node.op {
            new_param[*n as usize] = params.len() as u32;
            params.push(graph.params[*n as usize].clone());
            *n = new_param[*n as usize];
        }
        node.inputs.iter_mut().for_each(|v| *v = new_id[v.index()]);
        new_id[i] = ValueId(nodes.len() as u32);
        nodes.push(node);
    }
    graph.outputs.iter_mut().for_each(|(_, v)| *v = new_id[v.index()]);
    Graph { nodes, params, ..graph }
}
