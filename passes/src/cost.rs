//! What a graph node costs on a machine: a roofline of bytes and flops, plus launches.
//!
//! The model decides between equal graphs; it does not predict a time to the microsecond. Its one subtle figure is the
//! number of experts that a batch touches, `E·(1 − (1 − k/E)^T)`: it decides how many weight bytes are read.

use crate::lower::WeightStorage;
use moec_ir::graph::{Graph, Op, ValueId};
use moec_ir::quant::QuantFormat;
use moec_ir::target::Machine;
use moec_ir::{DType, TensorType};

/// A machine and a token count.
#[derive(Clone, Copy, Debug)]
pub struct CostModel {
    /// The machine.
    pub machine: Machine,
    /// The token count of the bucket that is compiled for.
    pub n_tokens: u64,
    /// Whether weights that are published as codes are read as codes.
    pub weights: WeightStorage,
}

/// What the cost model has to know of an operand beyond its type.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// The type.
    pub ty: &'a TensorType,
    /// How it is published, when it is a parameter or several parameters joined (all alike).
    pub stored: Option<QuantFormat>,
    /// Whether it is a `Concat`, which only fused forms can read.
    pub joined: bool,
}

impl CostModel {
    /// Modelled time of one node, in seconds; infinite for a form that has no kernel.
    pub fn node(&self, op: &Op, operands: &[Operand], result: &TensorType) -> f64 {
        let joined = operands.iter().any(|o| o.joined);
        let bytes = |t: &TensorType| t.bytes(self.n_tokens) as f64;
        let all: f64 = operands.iter().map(|o| self.bytes(o)).sum::<f64>() + bytes(result);
        let given = operands;
        let operands: Vec<&TensorType> = operands.iter().map(|o| o.ty).collect();
        match op {
            Op::Input(_) | Op::Param(_) | Op::Concat { .. } => 0.0,
            Op::Linear | Op::GroupedLinear | Op::GatherGroupedLinear if joined => f64::INFINITY,
            Op::Linear | Op::LinearAct { .. } => {
                let flops = 2.0 * self.rows(operands[0]) * elements(operands[1]);
                self.kernel(all, flops, operands[1].dtype)
            }
            Op::GroupedLinear | Op::GatherGroupedLinear | Op::GroupedLinearAct { .. } => {
                let (ids, w) = (operands[1], operands[2]);
                let k = ids.last().and_then(|d| d.fixed()).unwrap_or(1) as f64;
                let experts = w.shape[0].fixed().unwrap_or(1) as f64;
                let touched = experts * (1.0 - (1.0 - k / experts).max(0.0).powf(self.n_tokens as f64));
                let weights = self.bytes(&given[2]) / experts * touched;
                let slots = k * self.n_tokens as f64;
                // Gathered rows are read from the token rows, which are k times fewer.
                let traffic = weights + bytes(operands[0]) + bytes(result);
                self.kernel(traffic, 2.0 * slots * elements(w) / experts, w.dtype)
            }
            // Choice and scores share one launch, which every way of writing the router has: only their work counts.
            Op::Reduce(_)
            | Op::MaskChosen
            | Op::JoinColumns
            | Op::Lookup
            | Op::SumOutside { .. }
            | Op::LocalIds { .. } => self.elementwise(all),
            Op::Score(_)
            | Op::GroupLimit { .. }
            | Op::TopK { .. }
            | Op::GatherScores
            | Op::Renormalise(_)
            | Op::RmsNorm { .. } => self.elementwise(all),
            Op::Add | Op::Mul | Op::Scale(_) | Op::Cast | Op::Map(_) if is_score_row(result) => self.elementwise(all),
            Op::Add
            | Op::Mul
            | Op::Scale(_)
            | Op::Cast
            | Op::Map(_)
            | Op::Activate(_)
            | Op::Half(_)
            | Op::Quantise(_) => self.kernel(all, 0.0, DType::F32),
            Op::Permute { .. } | Op::Unpermute { .. } => self.kernel(2.0 * bytes(result), 0.0, DType::F32),
            Op::WeightedSum | Op::Combine { .. } => self.kernel(all, 0.0, DType::F32),
        }
    }

    /// Bytes that are read of an operand: of codes and scales where it lies in memory as such.
    fn bytes(&self, o: &Operand) -> f64 {
        let fixed: Vec<u64> = o.ty.shape.iter().filter_map(|d| d.fixed()).collect();
        match (o.stored, &fixed[..]) {
            (Some(format), [stack @ .., n, k]) if self.weights == WeightStorage::AsPublished => {
                stack.iter().map(|&e| e as f64).product::<f64>() * format.matrix_bytes(*n, *k) as f64
            }
            _ => o.ty.bytes(self.n_tokens) as f64,
        }
    }

    fn kernel(&self, bytes: f64, flops: f64, dtype: DType) -> f64 {
        let peak = match dtype {
            DType::BF16 | DType::F16 => self.machine.bf16_flops,
            DType::F64 | DType::F32 | DType::I32 | DType::I64 | DType::U8 => self.machine.f32_flops,
        };
        self.machine.launch_s + (bytes / self.machine.memory_bytes_per_s).max(flops / peak)
    }

    fn elementwise(&self, bytes: f64) -> f64 {
        // A thousandth of a launch for each step keeps shorter programs ahead at small token counts.
        self.machine.launch_s * 1e-3 + bytes / self.machine.memory_bytes_per_s
    }

    fn rows(&self, x: &TensorType) -> f64 {
        let last = x.last().map_or(1, |d| d.at(self.n_tokens)).max(1);
        x.elements(self.n_tokens) as f64 / last as f64
    }
}

/// Whether a value is `[T, n]` with few enough columns to stay in a row program.
pub fn is_score_row(ty: &TensorType) -> bool {
    use moec_ir::Dim;
    matches!(ty.shape[..], [Dim::PerToken(1), Dim::Fixed(n)] if n <= 1024)
}

fn elements(ty: &TensorType) -> f64 {
    ty.shape.iter().map(|d| d.fixed().unwrap_or(1) as f64).product()
}

/// How a value is published: a parameter, or parameters that are joined and stored alike.
fn stored(graph: &Graph, v: ValueId) -> Option<QuantFormat> {
    let node = graph.node(v);
    match node.op {
        Op::Param(i) => graph.params.get(i as usize)?.stored,
        Op::Concat { .. } => {
            let first = stored(graph, *node.inputs.first()?)?;
            node.inputs.iter().all(|&p| stored(graph, p) == Some(first)).then_some(first)
        }
        _ => None,
    }
}

/// Modelled time of every node that the outputs need.
pub fn graph_cost(model: &CostModel, graph: &Graph) -> f64 {
    let mut needed = vec![false; graph.nodes.len()];
    graph.outputs.iter().for_each(|(_, v)| needed[v.index()] = true);
    let mut total = 0.0;
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        if !needed[i] {
            continue;
        }
        node.inputs.iter().for_each(|v| needed[v.index()] = true);
        let operands: Vec<Operand> = node
            .inputs
            .iter()
            .map(|&v| {
                let joined = matches!(graph.node(v).op, Op::Concat { .. });
                Operand { ty: graph.ty(v), stored: stored(graph, v), joined }
            })
            .collect();
        total += model.node(&node.op, &operands, &node.ty);
    }
    total
}
