//! Graph → e-graph → graph: runs the rules that pay on every machine, and takes the layer with the least price out.

mod extract;
mod language;
mod missed;
mod picture;
mod price;
mod rules;

pub(crate) use language::{ENode, Firing, LayerEGraph};
pub use missed::{Missed, missed};
pub use picture::{EGraphPicture, PictureClass, PictureNode, egraph};
pub use price::{Price, is_score_row};
pub use rules::{Rule, allowed, catalogue};
pub(crate) use rules::{Site, Tree, Watch};

use crate::names::unique;
use crate::proof::Proof;
use egg::{Id, Runner, SimpleScheduler, StopReason};
use extract::extract;
use language::Facts;
use moec_ir::graph::{Graph, Node, Op, ValueId};
use moec_ir::{Diagnostic, Numerics, TensorType};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Limits of a saturation. Never a time: the same input has to give the same result on every machine.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most e-nodes.
    pub nodes: usize,
    /// Most rounds of all rules.
    pub iterations: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { nodes: 10_000, iterations: 30 }
    }
}

/// What a saturation did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saturation {
    /// Rules that found something new, with the number of times, in the order of the catalogue.
    pub fired: Vec<(String, usize)>,
    /// E-nodes at the end.
    pub nodes: usize,
    /// E-classes at the end.
    pub classes: usize,
    /// Rounds.
    pub iterations: usize,
    /// Whether nothing more could be found (and no limit was hit).
    pub saturated: bool,
    /// Price of the layer as given; nothing where a part of it has no kernel of its own.
    pub before: Option<Price>,
    /// Price of the layer that was taken out.
    pub after: Option<Price>,
    /// That the layer that was taken out is equal to the one that was given.
    pub proof: Proof,
}

/// Rewrites `graph` with the rules that `numerics` allows, and takes out the equal graph with the least price.
///
/// # Errors
/// `internal-error` when no graph with kernels comes out: a rule is wrong.
pub fn normalise(graph: &Graph, numerics: Numerics, limits: Limits) -> Result<(Graph, Saturation), Diagnostic> {
    normalise_with(graph, &rules::allowed(numerics), limits)
}

/// As [`normalise`], with the rules given.
///
/// # Errors
/// As [`normalise`].
pub fn normalise_with(graph: &Graph, rules: &[Rule], limits: Limits) -> Result<(Graph, Saturation), Diagnostic> {
    let full = saturate(graph, rules, limits);
    let egraph = &full.egraph;
    let roots: Vec<Id> = graph.outputs.iter().map(|(_, v)| egraph.find(full.ids[v.index()])).collect();
    let choice = extract(egraph, &roots).ok_or_else(|| {
        Diagnostic::internal("internal-error", format!("no way to compute `{}` came out of the e-graph", graph.name))
    })?;
    let out = rebuild(graph, egraph, &full.ids, &roots, &choice);
    let report = Saturation {
        fired: rules.iter().filter_map(|r| Some((r.name.to_string(), *full.fired.get(r.name)?))).collect(),
        nodes: egraph.total_number_of_nodes(),
        classes: egraph.number_of_classes(),
        iterations: full.iterations,
        saturated: full.saturated,
        before: Price::of_graph(graph),
        after: Price::of_graph(&out),
        proof: Proof::of(graph, &out, egraph, &egraph.analysis.firings).ok_or_else(|| {
            Diagnostic::internal(
                "internal-error",
                format!("the rewrites of `{}` do not prove what came out", graph.name),
            )
        })?,
    };
    tracing::debug!(?report, "saturated");
    Ok((out, report))
}

/// An e-graph after the rules have run.
pub(crate) struct FullEGraph {
    pub egraph: LayerEGraph,
    /// The class of each node of the graph.
    pub ids: Vec<Id>,
    /// How often each rule found something new, by name.
    pub fired: BTreeMap<String, usize>,
    iterations: usize,
    saturated: bool,
}

/// Puts `graph` into an e-graph and runs `rules` until nothing new is found, or a limit is hit.
pub(crate) fn saturate(graph: &Graph, rules: &[Rule], limits: Limits) -> FullEGraph {
    let mut egraph = LayerEGraph::new(Facts::of(graph));
    let ids = add_graph(&mut egraph, graph);
    let rewrites: Vec<_> = rules.iter().map(|r| r.to_egg()).collect();
    let runner = Runner::<ENode, Facts, ()>::new(Facts::of(graph))
        .with_egraph(egraph)
        .with_scheduler(SimpleScheduler)
        .with_node_limit(limits.nodes)
        .with_iter_limit(limits.iterations)
        // egg has a limit of its own, which would make the result depend on the machine.
        .with_time_limit(Duration::MAX)
        .run(&rewrites);
    let mut fired: BTreeMap<String, usize> = BTreeMap::new();
    for iteration in &runner.iterations {
        // Counted into a sorted map, so the order of this map does not matter.
        iteration.applied.iter().for_each(|(name, n)| *fired.entry(name.to_string()).or_default() += n);
    }
    let saturated = matches!(runner.stop_reason, Some(StopReason::Saturated));
    FullEGraph { iterations: runner.iterations.len(), egraph: runner.egraph, ids, fired, saturated }
}

/// Adds every node; returns the class of each.
fn add_graph(egraph: &mut LayerEGraph, graph: &Graph) -> Vec<Id> {
    let mut ids: Vec<Id> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let children = node.inputs.iter().map(|v| ids[v.index()]).collect();
        ids.push(egraph.add(ENode { op: node.op.clone(), dtype: node.ty.dtype, children }));
    }
    egraph.rebuild();
    ids
}

/// Writes the chosen nodes as a graph, in depth-first order from the outputs, with the user's names where a value had one.
fn rebuild(source: &Graph, egraph: &LayerEGraph, ids: &[Id], roots: &[Id], choice: &HashMap<Id, ENode>) -> Graph {
    let mut original: HashMap<Id, &Node> = HashMap::new();
    for (node, &id) in source.nodes.iter().zip(ids) {
        // The last node of a class is the one closest to the results: its name says most.
        original.insert(egraph.find(id), node);
    }
    let mut out = Graph {
        name: source.name.clone(),
        inputs: source.inputs.clone(),
        params: source.params.clone(),
        ..Graph::default()
    };
    let mut made: HashMap<Id, ValueId> = HashMap::new();
    // Leaves first and in the source's order: they are the calling convention.
    for (node, &id) in source.nodes.iter().zip(ids) {
        if matches!(node.op, Op::Input(_) | Op::Param(_)) {
            made.entry(egraph.find(id)).or_insert_with(|| {
                out.nodes.push(node.clone());
                ValueId(out.nodes.len() as u32 - 1)
            });
        }
    }
    for &root in roots {
        emit(egraph, root, choice, &original, &mut made, &mut out);
    }
    out.outputs = source.outputs.iter().zip(roots).map(|((name, _), root)| (name.clone(), made[root])).collect();
    out
}

fn emit(
    egraph: &LayerEGraph,
    id: Id,
    choice: &HashMap<Id, ENode>,
    original: &HashMap<Id, &Node>,
    made: &mut HashMap<Id, ValueId>,
    out: &mut Graph,
) {
    let id = egraph.find(id);
    if made.contains_key(&id) {
        return;
    }
    let node = &choice[&id];
    for &child in &node.children {
        emit(egraph, child, choice, original, made, out);
    }
    let inputs = node.children.iter().map(|&c| made[&egraph.find(c)]).collect();
    let source = original.get(&id);
    let name = source.map_or(node.op.name(), |n| n.name.as_str());
    let name = unique(name, '.', |n| out.nodes.iter().any(|node| node.name == n));
    let ty: TensorType = egraph[id].data.clone();
    out.nodes.push(Node { name, op: node.op.clone(), inputs, ty, origin: source.and_then(|n| n.origin.clone()) });
    made.insert(id, ValueId(out.nodes.len() as u32 - 1));
}
