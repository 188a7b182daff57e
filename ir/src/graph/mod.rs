//! The graph IR: what an MoE layer computes.
//!
//! A [`Graph`] is a list of nodes in topological order; each node makes one value. Values refer only to earlier nodes,
//! so a graph is acyclic by construction. Leaves are the caller's inputs and the checkpoint's parameters.

#[cfg(any(test, feature = "arbitrary"))]
pub mod arbitrary;
mod attr;
mod builder;
mod columns;
mod emit;
mod eval;
mod infer;
mod op;
mod parse;
mod place;
mod print;
mod quantise;
mod received;
mod shard;
mod slice;
mod verify;
mod wire;

pub use attr::{Attr, AttrError};
pub use builder::GraphBuilder;
pub use columns::{Columns, cut_columns};
pub use eval::{combine_expr, evaluate, evaluate_node, token_count};
pub use infer::infer_type;
pub use op::{GroupScore, Op, Reduce, RenormRule, RowMask, Score};
pub use parse::parse;
pub use place::{Maker, Placed, Rounding, Source, Wire, place};
pub use print::{print, source as print_source};
pub use quantise::quantise_activations;
pub use received::{experts_of_tokens, results_at_places, results_in_expert_order};
pub use shard::{Shard, ShardKind, shard};
pub use slice::slice_param;
pub use verify::verify;
pub use wire::round_on_wire;

use crate::diag::Origin;
use crate::quant::QuantFormat;
use crate::shape::TensorType;
use crate::weights::WeightSource;
use serde::{Deserialize, Serialize};

/// The value that node number `.0` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ValueId(pub u32);

impl ValueId {
    /// Index into [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for ValueId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// One operation and the value it makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Unique name within the graph, in the user's words where there are any (`experts.down`).
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// Operands, all earlier than this node.
    pub inputs: Vec<ValueId>,
    /// Type of the value; a float type narrower than f32 is a rounding point.
    pub ty: TensorType,
    /// Where the user said so.
    pub origin: Option<Origin>,
}

/// A tensor that the caller gives at every run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Name in the input file: `input`, `input_ids`, `router_states`.
    pub name: String,
    /// Its type; the outermost axis counts tokens.
    pub ty: TensorType,
}

/// A tensor of the checkpoint, constant over runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Name within the layer: `router.weight`, `experts.gate`.
    pub name: String,
    /// Its type in the graph's own layout: matrices are `[N, K]` (output rows, contracted columns), expert matrices `[E, N, K]`.
    pub ty: TensorType,
    /// Where its elements come from.
    pub source: WeightSource,
    /// How the checkpoint publishes it, and how it may lie in memory: codes and scales, from which kernels make the
    /// elements as they read. The value is the same: `code · (scale · global)` in f32, rounded to the type. `None` for
    /// elements that are stored as floats, or that become floats when the layer is loaded.
    pub stored: Option<QuantFormat>,
}

/// One MoE layer.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Graph {
    /// Name of the layer, for people: `deepseek_v3 layer 3`.
    pub name: String,
    /// The caller's tensors, referred to by [`Op::Input`].
    pub inputs: Vec<Input>,
    /// The checkpoint's tensors, referred to by [`Op::Param`].
    pub params: Vec<Param>,
    /// Nodes in topological order.
    pub nodes: Vec<Node>,
    /// Named results, in order. The first is `output` `[T, H]`; a routed layer also has `topk_ids` and `topk_weights`.
    pub outputs: Vec<(String, ValueId)>,
}

impl Graph {
    /// The node that makes `value`.
    pub fn node(&self, value: ValueId) -> &Node {
        &self.nodes[value.index()]
    }

    /// The type of `value`.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        &self.node(value).ty
    }

    /// The result called `name`.
    pub fn output(&self, name: &str) -> Option<ValueId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|&(_, v)| v)
    }
}
