//! Which values are made by row programs, and which of them together.

use crate::normalise::is_score_row;
use moec_ir::Dim;
use moec_ir::graph::{Graph, Op, ValueId};

/// Values that one row program makes, in the order of the graph.
pub struct Cluster {
    /// The members.
    pub values: Vec<ValueId>,
}

/// Clusters of the values that the outputs need; the second result maps each value to its cluster.
///
/// With `fuse`, everything that leads to the choice of experts and their weights is one cluster, router included. Without
/// it, each operation that only a row program computes is a cluster of its own.
pub fn find(graph: &Graph, fuse: bool) -> (Vec<Cluster>, Vec<Option<usize>>) {
    let needed = needed(graph);
    let mut in_route = vec![false; graph.nodes.len()];
    if fuse {
        for root in routing_roots(graph, &needed) {
            mark(graph, root, &mut in_route);
        }
        keep_apart(graph, &mut in_route);
    }
    let mut clusters = Vec::new();
    let mut cluster_of = vec![None; graph.nodes.len()];
    let route: Vec<ValueId> = ids(graph).filter(|v| in_route[v.index()]).collect();
    if !route.is_empty() {
        route.iter().for_each(|v| cluster_of[v.index()] = Some(0));
        clusters.push(Cluster { values: route });
    }
    for v in ids(graph).filter(|v| needed[v.index()]) {
        if cluster_of[v.index()].is_none() && only_by_rows(&graph.node(v).op) {
            cluster_of[v.index()] = Some(clusters.len());
            clusters.push(Cluster { values: vec![v] });
        }
    }
    (clusters, cluster_of)
}

fn ids(graph: &Graph) -> impl Iterator<Item = ValueId> + use<> {
    (0..graph.nodes.len() as u32).map(ValueId)
}

fn needed(graph: &Graph) -> Vec<bool> {
    let mut needed = vec![false; graph.nodes.len()];
    graph.outputs.iter().for_each(|(_, v)| needed[v.index()] = true);
    for i in (0..graph.nodes.len()).rev() {
        if needed[i] {
            graph.nodes[i].inputs.iter().for_each(|v| needed[v.index()] = true);
        }
    }
    needed
}

/// Expert ids, routing weights and per-token gates, wherever they are used.
fn routing_roots(graph: &Graph, needed: &[bool]) -> Vec<ValueId> {
    let mut roots: Vec<ValueId> = Vec::new();
    for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| needed[*i]) {
        if only_by_rows(&node.op) && is_score_row(&node.ty) && !matches!(node.op, Op::RmsNorm { .. }) {
            roots.push(ValueId(i as u32));
        }
        match node.op {
            Op::WeightedSum => roots.push(node.inputs[1]),
            Op::Combine { .. } => roots.extend([2, 4].iter().filter_map(|&n| node.inputs.get(n))),
            // A gate: one value for each token.
            Op::Mul => roots.extend(node.inputs.iter().filter(|&&v| graph.ty(v).shape == [Dim::TOKENS, Dim::Fixed(1)])),
            _ => {}
        }
    }
    roots
}

/// Marks `v` and everything above it that a row program can make.
fn mark(graph: &Graph, v: ValueId, in_route: &mut [bool]) {
    let node = graph.node(v);
    let score_row = node.ty.shape.len() == 2
        && node.ty.shape[0] == Dim::TOKENS
        && node.ty.shape[1].fixed().is_some_and(|n| n <= 1024);
    if in_route[v.index()] || !score_row {
        return;
    }
    match node.op {
        // The router reads activations, which are buffers.
        Op::Linear => {
            in_route[v.index()] = graph.node(node.inputs[1]).op.is_param()
                && node.inputs.get(2).is_none_or(|b| graph.node(*b).op.is_param())
        }
        Op::Score(_)
        | Op::GroupLimit { .. }
        | Op::TopK { .. }
        | Op::GatherScores
        | Op::Renormalise(_)
        | Op::Add
        | Op::Mul
        | Op::Scale(_)
        | Op::Cast
        | Op::Map(_)
        | Op::Reduce(_)
        | Op::MaskChosen
        | Op::JoinColumns
        | Op::Lookup
        | Op::SumOutside { .. }
        | Op::LocalIds { .. } => {
            in_route[v.index()] = true;
            node.inputs.iter().for_each(|&x| mark(graph, x, in_route));
        }
        _ => {}
    }
}

/// Takes out what reads a value that another kernel makes of the cluster's own results: one launch cannot be before and after it.
fn keep_apart(graph: &Graph, in_route: &mut [bool]) {
    let mut after = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        if node.inputs.iter().any(|x| after[x.index()]) {
            in_route[i] = false;
        }
        after[i] = !in_route[i] && node.inputs.iter().any(|x| in_route[x.index()] || after[x.index()]);
    }
}

/// Whether only a row program computes the operation.
fn only_by_rows(op: &Op) -> bool {
    match op {
        Op::Score(_)
        | Op::RmsNorm { .. }
        | Op::GroupLimit { .. }
        | Op::TopK { .. }
        | Op::GatherScores
        | Op::Reduce(_)
        | Op::MaskChosen
        | Op::JoinColumns
        | Op::Lookup
        | Op::SumOutside { .. }
        | Op::LocalIds { .. }
        | Op::Renormalise(_) => true,
        Op::Input(_)
        | Op::Param(_)
        | Op::Linear
        | Op::Add
        | Op::Mul
        | Op::Scale(_)
        | Op::Cast
        | Op::Map(_)
        | Op::Quantise(_)
        | Op::Activate(_)
        | Op::Permute { .. }
        | Op::Unpermute { .. }
        | Op::SlotToRow { .. }
        | Op::StoreAt { .. }
        | Op::GroupedLinear
        | Op::WeightedSum
        | Op::Concat { .. }
        | Op::Half(_)
        | Op::GatherGroupedLinear
        | Op::GroupedLinearAct { .. }
        | Op::LinearAct { .. }
        | Op::Combine { .. } => false,
    }
}
