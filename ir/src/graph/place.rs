//! A layer whose tokens and experts live on ranks: three graphs, and what travels between them.
//!
//! ```text
//! input of a rank's own tokens
//!   │ head      the router: expert ids, weights, the row that is sent for each token
//!   ▼
//! dispatch      one row to each rank that has one of the token's experts, as `Wire` says
//!   │ experts   on the rank that holds them: one result row for each slot that came
//!   ▼
//! combine       result rows back to the token's rank, to their slots
//!   │ tail      the weighted sum in slot order, shared experts, what follows
//!   ▼
//! output
//! ```
//!
//! No sum crosses ranks. Every row of a slot is computed whole on one rank, from the same row and the same weights as in
//! the layer that is not placed, and the weighted sum is made where the token lives, in slot order: the output has the
//! layer's own bits wherever its experts are. The price is that a row comes back for each slot instead of for each rank.
//!
//! Which rank holds which expert is no part of the graphs: `experts` has a number of *local experts*, and what sits in
//! them is given when it is loaded ([`crate::placement`]).

use super::emit::Emit;
use super::{Graph, Op, Param, ValueId, verify};
use crate::DType;
use crate::act_quant::ActQuant;
use crate::diag::Diagnostic;
use crate::shape::{Dim, TensorType};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Where a value that crosses between the graphs comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The layer's input of this name.
    Input(String),
    /// The head's output of this name.
    Head(String),
}

/// What a dispatched row is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// Elements of this type.
    Rows(DType),
    /// Codes and scales. The experts read `code · (scale · global)`, which is what the layer's own rounding gives.
    Codes(ActQuant),
}

impl Wire {
    /// Bytes of a row of `cols` elements on its way: its elements; or its codes, its scales, and a scale of its own where the
    /// format has one.
    pub fn row_bytes(self, cols: u64) -> u64 {
        match self {
            Wire::Rows(dtype) => cols * dtype.bytes() as u64,
            Wire::Codes(q) => {
                let f = q.stored();
                let scales = if f.block_cols == 0 { 1 } else { cols.div_ceil(f.block_cols) };
                f.code.bytes(cols) + scales * f.scale.dtype().bytes() as u64 + if q.has_row() { 4 } else { 0 }
            }
        }
    }
}

/// Where the rows of a layer that rounds them before its experts are rounded. Both give the same values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Before they are sent: codes travel, and experts read what they stand for as floats.
    BeforeDispatch,
    /// Where they arrive, so that products can be those of codes. Codes travel where a row that is rounded twice is the row that is
    /// rounded once ([`ActQuant::rounds_twice_as_once`]), else floats.
    AfterDispatch,
}

/// Which graph makes an output of the layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Maker {
    /// The head.
    Head,
    /// The tail.
    Tail,
}

/// A placed layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// From the layer's inputs to ids, weights and rows; `None` where all of these are inputs of the layer.
    pub head: Option<Graph>,
    /// From `rows` `[T, H]` and `local_ids` i32 `[T, 1]`, with `T` the slots that came, to `slot_rows` `[T, H']`.
    pub experts: Graph,
    /// From `slot_rows` `[T*K, H']`, `slot_weights` `[T, K]`, inputs of the layer and values of the head to the outputs.
    pub tail: Graph,
    /// The row of each token that is dispatched, `[T, H]`.
    pub rows: Source,
    /// The experts of each token, i32 or i64 `[T, K]`. A slot whose id no expert has is not dispatched.
    pub ids: Source,
    /// The weights of the slots, `[T, K]`, which the tail takes as `slot_weights`; `None` where it takes none.
    pub weights: Option<Source>,
    /// The tail's other inputs by name, and what they are.
    pub crossing: Vec<(String, Source)>,
    /// What a dispatched row is on its way. Result rows come back in the type of `slot_rows`.
    pub wire: Wire,
    /// Experts of the layer.
    pub n_experts: u32,
    /// Slots of a token.
    pub top_k: u64,
    /// The parameters of `experts` that have an axis of experts, whole: all experts, in their order.
    pub stacks: Vec<Param>,
    /// The layer's outputs, in order.
    pub outputs: Vec<(String, Maker)>,
}

impl Placed {
    /// Elements of a dispatched row, and of a result row.
    pub fn widths(&self) -> (u64, u64) {
        let cols = |ty: &TensorType| ty.last().and_then(Dim::fixed).unwrap_or(0);
        (cols(&self.experts.inputs[0].ty), cols(self.experts.ty(self.experts.outputs[0].1)))
    }
}

/// Takes a layer in the unfused form apart, for ranks of `n_local` local experts.
///
/// # Errors
/// `layer-not-placeable` — the layer has not one dispatch to experts, or its experts use more of a token than its row,
/// or more of it than their results is used; the note names the operation. Those of [`verify`].
pub fn place(graph: &Graph, n_local: u32, rounding: Rounding) -> Result<Placed, Diagnostic> {
    if let Some(d) = verify(graph).into_iter().next() {
        return Err(d);
    }
    let cut = Cut::find(graph, rounding)?;
    let n_local = n_local.clamp(1, cut.n_experts);
    let (experts, stacks) = experts(graph, &cut, n_local)?;
    let mut heads = Heads { graph, emit: Emit::new(graph), names: BTreeMap::new() };
    let rows = heads.source(cut.rows)?;
    let ids = heads.source(cut.ids)?;
    let weights = cut.weights.map(|w| heads.source(w)).transpose()?;
    let mut outputs = Vec::new();
    for (name, v) in &graph.outputs {
        if cut.after.contains(&v.index()) {
            outputs.push((name.clone(), Maker::Tail));
        } else {
            heads.output(name, *v)?;
            outputs.push((name.clone(), Maker::Head));
        }
    }
    let (tail, crossing) = tail(graph, &cut, &mut heads)?;
    let head = heads.emit.b.finish();
    let head = Graph { name: format!("{}, head", graph.name), ..head };
    Ok(Placed {
        head: (!head.outputs.is_empty()).then_some(head),
        experts,
        tail,
        rows,
        ids,
        weights,
        crossing,
        wire: cut.wire,
        n_experts: cut.n_experts,
        top_k: cut.top_k,
        stacks,
        outputs,
    })
}

/// Where a layer is cut.
struct Cut {
    /// The token rows that are dispatched, before codes are made of them.
    rows: ValueId,
    /// What the experts' rank has of them.
    arrive: ValueId,
    wire: Wire,
    ids: ValueId,
    n_experts: u32,
    top_k: u64,
    /// The results back in slot order.
    slots: usize,
    /// The weights of the sum of slots.
    weights: Option<ValueId>,
    /// Nodes from the permuted rows to `slots`, both included.
    region: BTreeSet<usize>,
    /// Nodes that read results of experts.
    after: BTreeSet<usize>,
}

impl Cut {
    fn find(graph: &Graph, rounding: Rounding) -> Result<Cut, Diagnostic> {
        let of = |is: fn(&Op) -> bool| (0..graph.nodes.len()).filter(|&i| is(&graph.nodes[i].op)).collect::<Vec<_>>();
        let fused = of(|op| matches!(op, Op::GatherGroupedLinear | Op::GroupedLinearAct { .. } | Op::Combine { .. }));
        if let Some(&i) = fused.first() {
            return Err(refused(graph, i, "it is in the fused form already").help("give the layer as it was written"));
        }
        let (permutes, unpermutes) =
            (of(|op| matches!(op, Op::Permute { .. })), of(|op| matches!(op, Op::Unpermute { .. })));
        let ([permuted], [slots]) = (&permutes[..], &unpermutes[..]) else {
            let last = graph.nodes.len() - 1;
            let i = permutes.get(1).or(unpermutes.get(1)).copied().unwrap_or(last);
            let why = format!(
                "tokens are dispatched to experts {} times and brought back {} times; once each can be placed",
                permutes.len(),
                unpermutes.len()
            );
            return Err(refused(graph, i, &why));
        };
        let (permuted, slots) = (*permuted, *slots);
        let node = &graph.nodes[permuted];
        let Op::Permute { n_experts } = node.op else {
            return Err(Diagnostic::internal("internal-error", "a permute should be one"));
        };
        let (sent, ids) = (node.inputs[0], node.inputs[1]);
        let reached = |from: usize| {
            let mut set = BTreeSet::from([from]);
            for (i, n) in graph.nodes.iter().enumerate() {
                if n.inputs.iter().any(|v| set.contains(&v.index())) {
                    set.insert(i);
                }
            }
            set
        };
        let (dispatched, mut after) = (reached(permuted), reached(slots));
        after.remove(&slots);
        let region: BTreeSet<usize> = dispatched.difference(&after).copied().collect();
        for (i, n) in graph.nodes.iter().enumerate() {
            let inner = |v: &ValueId| region.contains(&v.index()) && v.index() != slots;
            if !region.contains(&i) && n.inputs.iter().any(inner) {
                return Err(refused(graph, i, "it reads rows in expert order, which are on the experts' ranks"));
            }
            let outside = |v: &&ValueId| !region.contains(&v.index()) && !is_constant(graph, **v) && **v != ids;
            if region.contains(&i)
                && i != permuted
                && let Some(&v) = n.inputs.iter().find(outside)
            {
                let why = format!("experts read `{}` besides the token's row, and one row is sent", graph.node(v).name);
                return Err(refused(graph, i, &why));
            }
        }
        if let Some((name, v)) = graph.outputs.iter().find(|(_, v)| region.contains(&v.index())) {
            let why = format!("the output `{name}` is a row for each slot, which nothing sums up");
            return Err(refused(graph, v.index(), &why));
        }
        if !graph.outputs.iter().any(|(_, v)| after.contains(&v.index())) {
            return Err(refused(graph, slots, "no output comes of its experts"));
        }
        let floats = |v: ValueId| (v, v, Wire::Rows(graph.ty(v).dtype));
        let (rows, arrive, wire) = match (&graph.node(sent).op, &graph.node(sent).inputs[..], rounding) {
            // Rounded where they are multiplied: rows travel as they are.
            (&Op::Quantise(q), &[rows], _) if !q.is_stored() => floats(rows),
            // Rounding a row and sending it is one step: codes travel.
            (&Op::Quantise(q), &[rows], Rounding::BeforeDispatch) => (rows, sent, Wire::Codes(q)),
            (&Op::Quantise(q), &[rows], Rounding::AfterDispatch) if q.rounds_twice_as_once(graph.ty(rows).dtype) => {
                (rows, rows, Wire::Codes(q))
            }
            (Op::Quantise(_), &[rows], Rounding::AfterDispatch) => floats(rows),
            _ => floats(sent),
        };
        let top_k = graph.ty(ids).last().and_then(Dim::fixed).unwrap_or(1);
        let weights = weights_of(graph, slots)?;
        Ok(Cut { rows, arrive, wire, ids, n_experts, top_k, slots, weights, region, after })
    }
}

/// The weights of the sum over slots.
fn weights_of(graph: &Graph, slots: usize) -> Result<Option<ValueId>, Diagnostic> {
    let mut found = None;
    for (i, n) in graph.nodes.iter().enumerate() {
        if n.op != Op::WeightedSum || n.inputs[0].index() != slots {
            continue;
        }
        if found.is_some_and(|w| w != n.inputs[1]) {
            return Err(refused(graph, i, "the same slots are summed with two sets of weights"));
        }
        found = Some(n.inputs[1]);
    }
    Ok(found)
}

pub(super) fn refused(graph: &Graph, i: usize, why: &str) -> Diagnostic {
    let node = &graph.nodes[i];
    Diagnostic::input("layer-not-placeable", format!("`{}` cannot be spread over ranks: {why}", graph.name))
        .note(format!("at `{}` ({})", node.name, node.op.name()))
        .help("compile the layer whole, for one rank")
        .at(node.origin.clone())
}

/// Whether a value is made of parameters alone.
fn is_constant(graph: &Graph, v: ValueId) -> bool {
    let node = graph.node(v);
    match node.op {
        Op::Param(_) => true,
        Op::Input(_) => false,
        _ => node.inputs.iter().all(|&v| is_constant(graph, v)),
    }
}

/// The graph of the local experts, and its parameters that have an axis of experts, whole.
fn experts(graph: &Graph, cut: &Cut, n_local: u32) -> Result<(Graph, Vec<Param>), Diagnostic> {
    let mut emit = Emit::new(graph);
    emit.n_local = Some(n_local);
    for &i in &cut.region {
        let node = &graph.nodes[i];
        if node.op == Op::GroupedLinear {
            node.inputs[2..].iter().for_each(|&v| stack(graph, v, &mut emit.stacks));
        }
    }
    let TensorType { dtype, shape } = graph.ty(cut.arrive);
    let rows = emit.b.input("rows", TensorType::new(*dtype, [Dim::TOKENS, shape[1]]));
    let ids = emit.b.input("local_ids", TensorType::new(DType::I32, [Dim::TOKENS, Dim::Fixed(1)]));
    emit.map.insert(cut.arrive.index(), rows);
    emit.map.insert(cut.ids.index(), ids);
    let slots = emit.value(ValueId(cut.slots as u32))?;
    emit.b.output("slot_rows", slots);
    let stacks = emit.stacks.iter().map(|&n| graph.params[n as usize].clone()).collect();
    let out = emit.b.finish();
    Ok((Graph { name: format!("{}, {n_local} local experts", graph.name), ..out }, stacks))
}

/// The parameters with an axis of experts that `v` is made of.
fn stack(graph: &Graph, v: ValueId, found: &mut BTreeSet<u32>) {
    let node = graph.node(v);
    if let Op::Param(n) = node.op {
        found.insert(n);
    }
    node.inputs.iter().for_each(|&v| stack(graph, v, found));
}

/// The graph from the slots' rows to the layer's outputs, and its inputs besides them.
fn tail(graph: &Graph, cut: &Cut, heads: &mut Heads<'_>) -> Result<(Graph, Vec<(String, Source)>), Diagnostic> {
    let mut emit = Emit::new(graph);
    let mut crossing = Vec::new();
    let roots: Vec<ValueId> =
        graph.outputs.iter().map(|(_, v)| *v).filter(|v| cut.after.contains(&v.index())).collect();
    // What the tail needs and the head has made anyway is handed over; the rest, such as shared experts, is the tail's.
    for v in needed(graph, &roots, cut, &heads.emit) {
        let source = heads.source(v)?;
        let name = match &source {
            Source::Input(name) => name.clone(),
            Source::Head(name) => format!("head.{name}"),
        };
        let ty = graph.ty(v).clone();
        let made = emit.b.input(&name, ty);
        emit.map.insert(v.index(), made);
        crossing.push((name, source));
    }
    if let Some(w) = cut.weights {
        // An input of its own: the weight of a slot without an expert is made zero here and nowhere else.
        let ty = graph.ty(w).clone();
        emit.weights = Some((cut.slots, emit.b.input("slot_weights", ty)));
    }
    let ty = graph.ty(ValueId(cut.slots as u32)).clone();
    let slots = emit.b.input("slot_rows", ty);
    emit.map.insert(cut.slots, slots);
    for (name, v) in &graph.outputs {
        if cut.after.contains(&v.index()) {
            let made = emit.value(*v)?;
            emit.b.output(name, made);
        }
    }
    let out = emit.b.finish();
    Ok((Graph { name: format!("{}, tail", graph.name), ..out }, crossing))
}

/// The inputs of the layer and the values of the head that the tail's outputs need, in the order of the graph.
fn needed(graph: &Graph, roots: &[ValueId], cut: &Cut, head: &Emit<'_>) -> Vec<ValueId> {
    let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
    let mut open = roots.to_vec();
    while let Some(v) = open.pop() {
        if v.index() == cut.slots || !seen.insert(v) {
            continue;
        }
        let node = graph.node(v);
        let made = head.map.contains_key(&v.index()) && !is_constant(graph, v);
        if made || matches!(node.op, Op::Input(_)) {
            found.insert(v);
            continue;
        }
        let is_sum = node.op == Op::WeightedSum && node.inputs[0].index() == cut.slots;
        open.extend(node.inputs.iter().take(if is_sum { 1 } else { usize::MAX }));
    }
    found.into_iter().collect()
}

/// The head in the making, and the names of its outputs.
struct Heads<'a> {
    graph: &'a Graph,
    emit: Emit<'a>,
    names: BTreeMap<ValueId, String>,
}

impl Heads<'_> {
    /// Where `v` comes from: an input of the layer, or an output of the head, which is made when it is not there.
    fn source(&mut self, v: ValueId) -> Result<Source, Diagnostic> {
        if let Op::Input(n) = self.graph.node(v).op {
            return Ok(Source::Input(self.graph.inputs[n as usize].name.clone()));
        }
        if let Some(name) = self.names.get(&v) {
            return Ok(Source::Head(name.clone()));
        }
        let public = self.graph.outputs.iter().find(|(_, o)| *o == v).map(|(name, _)| name.clone());
        let name = public.unwrap_or_else(|| format!("sent.{}", self.graph.node(v).name));
        self.output(&name, v)?;
        Ok(Source::Head(name))
    }

    fn output(&mut self, name: &str, v: ValueId) -> Result<(), Diagnostic> {
        if self.names.get(&v).is_some_and(|n| n == name) {
            return Ok(());
        }
        let made = self.emit.value(v)?;
        self.emit.b.output(name, made);
        self.names.entry(v).or_insert_with(|| name.to_string());
        Ok(())
    }
}
