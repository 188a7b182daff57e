//! Quantised activations for a layer that was written without them.

use super::{Graph, GraphBuilder, Node, Op, ValueId};
use crate::DType;
use crate::act_quant::{ActQuant, ActScale};
use crate::diag::Diagnostic;
use crate::shape::TensorType;
use crate::weights::WeightSource;

/// `graph` with the rows before its expert matrices, and before dense matrices that are stored quantised, rounded to the
/// format `q`: what a machine computes that multiplies codes. This changes the layer's numbers.
///
/// Rows are quantised before they are permuted: `T` rows instead of `T·K`. A matrix that is stored as codes whose values
/// are no bf16 numbers takes part with its exact values (f32) instead of rounded ones.
///
/// In a format with a given global scale, rows before matrices that are stored with global scales too (NVFP4) are rounded, and
/// others stay: the scale becomes a parameter, the largest of those that the checkpoint holds beside the matrices that
/// multiply the rows. So all experts take the same rows; vLLM does the same.
///
/// # Errors
/// `activation-format-needs-scale` for a format with a global scale when no matrix is stored with one.
pub fn quantise_activations(graph: &Graph, q: ActQuant) -> Result<Graph, Diagnostic> {
    let mut r = Rewriter { graph, q, b: GraphBuilder::new(&graph.name), new: Vec::new(), quantised: Vec::new() };
    for (i, node) in graph.nodes.iter().enumerate() {
        let v = ValueId(i as u32);
        r.b.set_origin(node.origin.clone());
        let made = r.node(v, node)?;
        r.new.push(made);
    }
    for (name, v) in &graph.outputs {
        r.b.output(name, r.new[v.index()]);
    }
    if q.has_global() && r.quantised.is_empty() {
        return Err(Diagnostic::input(
            "activation-format-needs-scale",
            "rows in this format have a global scale, and no expert matrix of the layer is stored with one",
        )
        .help("give a checkpoint in NVFP4, a layer graph whose `quantise` operations have a second operand, or take a format without one"));
    }
    let mut out = r.b.finish();
    for new in &mut out.params {
        new.stored = graph.params.iter().find(|old| old.name == new.name).and_then(|old| old.stored);
    }
    Ok(out)
}

struct Rewriter<'a> {
    graph: &'a Graph,
    q: ActQuant,
    b: GraphBuilder,
    /// The new value of every old one so far.
    new: Vec<ValueId>,
    /// Values that have been quantised, and what became of them.
    quantised: Vec<(Rows, ValueId)>,
}

/// Rows, and the matrices that multiply them where these have a say in the scale.
type Rows = (ValueId, Vec<u32>);

impl Rewriter<'_> {
    fn node(&mut self, v: ValueId, node: &Node) -> Result<ValueId, Diagnostic> {
        let mut inputs: Vec<ValueId> = node.inputs.iter().map(|x| self.new[x.index()]).collect();
        match &node.op {
            Op::Input(n) => return Ok(self.b.input(&node.name, self.graph.inputs[*n as usize].ty.clone())),
            Op::Param(n) => {
                let param = &self.graph.params[*n as usize];
                let mut ty = param.ty.clone();
                if param.stored.is_some_and(|f| !f.is_exact(ty.dtype)) && self.is_multiplied(v) {
                    ty.dtype = DType::F32;
                }
                return Ok(self.b.param(&node.name, ty, param.source.clone()));
            }
            // All of its rows are multiplied: they are quantised where they are fewer.
            Op::Permute { .. } if self.feeds_experts_only(v) => inputs[0] = self.quantise(inputs[0], v)?,
            Op::GroupedLinear if !self.comes_quantised(node.inputs[0]) => {
                inputs[0] = self.quantise(inputs[0], node.inputs[0])?;
            }
            Op::Linear if self.weight_is_stored(node.inputs[1]) => {
                inputs[0] = self.quantise(inputs[0], node.inputs[0])?;
            }
            _ => {}
        }
        // Rows keep the type that they are given; everything else its own rounding point.
        let dtype = if matches!(node.op, Op::Permute { .. }) { self.b.ty(inputs[0]).dtype } else { node.ty.dtype };
        self.b.node_as(&node.name, node.op.clone(), &inputs, Some(dtype))
    }

    /// The quantised form of `x`, which stands for the operand `rows` of some products.
    fn quantise(&mut self, x: ValueId, rows: ValueId) -> Result<ValueId, Diagnostic> {
        let matrices = if self.q.has_global() { self.matrices(rows) } else { Vec::new() };
        if self.q.has_global() && matrices.is_empty() {
            return Ok(x);
        }
        if let Some((_, done)) = self.quantised.iter().find(|((v, of), _)| *v == x && *of == matrices) {
            return Ok(*done);
        }
        // Codes times a power of two are bf16 numbers.
        let from = self.b.ty(x).dtype;
        let dtype = if self.q.scale == ActScale::Pow2 && from == DType::BF16 { from } else { DType::F32 };
        let (mut name, mut operands) = (format!("{}.quantised", self.b.name(x)), vec![x]);
        if let Some(&first) = matrices.first() {
            let params = &self.graph.params;
            let of = matrices.iter().map(|&n| params[n as usize].source.clone()).collect();
            let first = &params[first as usize].name;
            let scale = WeightSource::LargestInputScale(of);
            operands.push(self.b.param(&format!("{first}.input_scale"), TensorType::fixed(DType::F32, &[1]), scale));
            name = format!("{first}.input");
        }
        let done = self.b.node_as(&name, Op::Quantise(self.q), &operands, Some(dtype))?;
        self.quantised.push(((x, matrices), done));
        Ok(done)
    }

    /// The matrices that multiply some rows; none unless all of them are stored with global scales.
    fn matrices(&self, rows: ValueId) -> Vec<u32> {
        let grouped = self.users(rows).any(|n| matches!(n.op, Op::GroupedLinear));
        let of = |n: &Node| match n.op {
            Op::GroupedLinear if n.inputs[0] == rows => Some(n.inputs[2]),
            Op::Linear if !grouped && n.inputs[0] == rows && self.weight_is_stored(n.inputs[1]) => Some(n.inputs[1]),
            _ => None,
        };
        let params = self.users(rows).filter_map(of).map(|w| match self.graph.node(w).op {
            Op::Param(n) => self.graph.params[n as usize].stored.filter(|f| f.has_global()).map(|_| n),
            _ => None,
        });
        params.collect::<Option<Vec<u32>>>().unwrap_or_default()
    }

    fn users(&self, v: ValueId) -> impl Iterator<Item = &Node> {
        self.graph.nodes.iter().filter(move |n| n.inputs.contains(&v))
    }

    fn feeds_experts_only(&self, v: ValueId) -> bool {
        let is_output = self.graph.outputs.iter().any(|(_, o)| *o == v);
        !is_output && self.users(v).all(|n| matches!(n.op, Op::GroupedLinear) && n.inputs[0] == v)
    }

    /// Whether an operand of a grouped product was quantised before its rows were permuted.
    fn comes_quantised(&self, v: ValueId) -> bool {
        matches!(self.graph.node(v).op, Op::Permute { .. }) && self.feeds_experts_only(v)
    }

    fn weight_is_stored(&self, w: ValueId) -> bool {
        matches!(self.graph.node(w).op, Op::Param(n) if self.graph.params[n as usize].stored.is_some())
    }

    /// Whether a parameter is the matrix of a product whose rows are quantised.
    fn is_multiplied(&self, v: ValueId) -> bool {
        self.users(v).any(|n| match n.op {
            Op::GroupedLinear => n.inputs[2] == v,
            Op::Linear => n.inputs[1] == v,
            _ => false,
        })
    }
}
