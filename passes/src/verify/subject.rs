//! What rules are tried on: the e-graph of a layer and the values of its classes.

use super::inputs::Kind;
use super::layers::{Layer, deepseek, plain};
use super::odd;
use crate::algebra::{Field, Value, evaluate};
use crate::normalise::{ENode, LayerEGraph, Limits, allowed, saturate};
use egg::Id;
use moec_ir::graph::{Graph, Node, Op, evaluate_node};
use moec_ir::{Activation, DType, Numerics, Tensor, TensorType};
use std::collections::BTreeMap;

/// Tokens of every run; more than two, so that each kind has its own.
pub const TOKENS: usize = 5;

/// A layer with all forms that exact rules give it, and its values.
pub struct Subject {
    /// For reports.
    pub name: String,
    /// All its values.
    pub egraph: LayerEGraph,
    /// Values in f32, by class, for inputs of each kind.
    pub runs: Vec<(Kind, BTreeMap<Id, Tensor>)>,
    /// Values over a field, by class.
    pub field: BTreeMap<Id, Value<Field>>,
}

/// Layers of every kind, and odd graphs.
pub fn all() -> Vec<Subject> {
    let mut graphs = Vec::new();
    for d in [DType::F32, DType::BF16, DType::F16] {
        let layers = [
            plain(d),
            deepseek(d),
            Layer { selection: Some((4, 4)), ..deepseek(d) },
            Layer { shared: Some(12), shared_gate: true, bias: true, ..plain(d) },
            Layer { act: Activation::Relu2, ..deepseek(d) },
            Layer { top_k: 6, scale: 3.0, ..plain(d) },
            Layer { scale: 1.0, ..deepseek(d) },
        ];
        graphs.extend(layers.into_iter().enumerate().map(|(i, l)| (format!("layer {i}, {d}"), l.graph())));
    }
    graphs.extend(odd::graphs());
    graphs.into_iter().enumerate().map(|(i, (name, graph))| Subject::new(name, &graph, i as u64)).collect()
}

impl Subject {
    fn new(name: String, graph: &Graph, seed: u64) -> Subject {
        let full = saturate(graph, &allowed(Numerics::Bitwise), Limits::default());
        let egraph = full.egraph;
        // The classes of the graph as it was written come first: their values do not depend on any rule.
        let written: Vec<(Id, ENode)> = graph
            .nodes
            .iter()
            .zip(&full.ids)
            .map(|(node, &id)| {
                let children = node.inputs.iter().map(|v| full.ids[v.index()]).collect();
                (id, ENode { op: node.op.clone(), dtype: node.ty.dtype, children })
            })
            .collect();
        let tensors = |kind: Kind| kind.tensors(graph, TOKENS as u64, seed + 1);
        let runs = Kind::ALL.map(|kind| {
            let (inputs, params) = tensors(kind);
            let leaf = |op: &Op| match op {
                Op::Input(i) => Some(inputs[*i as usize].clone()),
                Op::Param(i) => Some(params[*i as usize].clone()),
                _ => None,
            };
            (kind, values(&egraph, &written, leaf, &|node, ty, x| in_f32(&node.op, ty, x)))
        });
        let (inputs, params) = tensors(Kind::Random);
        let leaf = |op: &Op| match op {
            Op::Input(i) => Some(Value::beside(&inputs[*i as usize], u64::from(*i) << 32)),
            Op::Param(i) => Some(Value::beside(&params[*i as usize], (u64::from(*i) + 1000) << 32)),
            _ => None,
        };
        let field = values(&egraph, &written, leaf, &|node, ty, x| evaluate(&node.op, ty, x, TOKENS));
        Subject { name, egraph, runs: runs.into(), field }
    }
}

/// The value of an operation by the reference evaluator.
pub fn in_f32(op: &Op, ty: &TensorType, x: &[&Tensor]) -> Tensor {
    let node = Node { name: String::new(), op: op.clone(), inputs: Vec::new(), ty: ty.clone(), origin: None };
    evaluate_node(&node, x, TOKENS)
}

/// The value of every class: by the node as it was written, else by the first that can be evaluated.
fn values<V>(
    egraph: &LayerEGraph,
    written: &[(Id, ENode)],
    leaf: impl Fn(&Op) -> Option<V>,
    of: &dyn Fn(&ENode, &TensorType, &[&V]) -> V,
) -> BTreeMap<Id, V> {
    let mut known: BTreeMap<Id, V> = BTreeMap::new();
    let mut evaluated = |id: Id, node: &ENode| {
        let id = egraph.find(id);
        if known.contains_key(&id) {
            return false;
        }
        let operands: Option<Vec<&V>> = node.children.iter().map(|&c| known.get(&egraph.find(c))).collect();
        let Some(operands) = operands else { return false };
        let value = leaf(&node.op).unwrap_or_else(|| of(node, &egraph[id].data, &operands));
        known.insert(id, value);
        true
    };
    written.iter().for_each(|(id, node)| {
        evaluated(*id, node);
    });
    loop {
        let mut progress = false;
        for class in egraph.classes() {
            for node in &class.nodes {
                progress |= evaluated(class.id, node);
            }
        }
        if !progress {
            return known;
        }
    }
}
