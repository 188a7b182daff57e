//! Quantised activations for a layer that was written without them.

use super::{Graph, GraphBuilder, Node, Op, ValueId};
use crate::DType;
use crate::act_quant::{ActQuant, ActScale};
use crate::diag::Diagnostic;

/// `graph` with the rows before its expert matrices, and before dense matrices that are stored quantised, rounded to the
/// format `q`: what a machine computes that multiplies codes. This changes the layer's numbers.
///
/// Rows are quantised before they are permuted: `T` rows instead of `T·K`. A matrix that is stored as codes whose values
/// are no bf16 numbers takes part with its exact values (f32) instead of rounded ones.
///
/// # Errors
/// `activation-format-needs-scale` for a format with a global scale, which only a layer graph can name.
pub fn quantise_activations(graph: &Graph, q: ActQuant) -> Result<Graph, Diagnostic> {
    if q.has_global() {
        return Err(Diagnostic::input(
            "activation-format-needs-scale",
            "rows in this format have a global scale, which the layer does not name",
        )
        .help("give a layer graph whose `quantise` operations have a second operand, or take a format without one"));
    }
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
    let mut out = r.b.finish();
    for (new, old) in out.params.iter_mut().zip(&graph.params) {
        new.stored = old.stored;
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
    quantised: Vec<(ValueId, ValueId)>,
}

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
            Op::Permute { .. } if self.feeds_experts_only(v) => inputs[0] = self.quantise(inputs[0])?,
            Op::GroupedLinear if !self.comes_quantised(node.inputs[0]) => inputs[0] = self.quantise(inputs[0])?,
            Op::Linear if self.weight_is_stored(node.inputs[1]) => inputs[0] = self.quantise(inputs[0])?,
            _ => {}
        }
        // Rows keep the type that they are given; everything else its own rounding point.
        let dtype = if matches!(node.op, Op::Permute { .. }) { self.b.ty(inputs[0]).dtype } else { node.ty.dtype };
        self.b.node_as(&node.name, node.op.clone(), &inputs, Some(dtype))
    }

    fn quantise(&mut self, x: ValueId) -> Result<ValueId, Diagnostic> {
        if let Some(&(_, done)) = self.quantised.iter().find(|(v, _)| *v == x) {
            return Ok(done);
        }
        // Codes times a power of two are bf16 numbers.
        let from = self.b.ty(x).dtype;
        let dtype = if self.q.scale == ActScale::Pow2 && from == DType::BF16 { from } else { DType::F32 };
        let name = format!("{}.quantised", self.b.name(x));
        let done = self.b.node_as(&name, Op::Quantise(self.q), &[x], Some(dtype))?;
        self.quantised.push((x, done));
        Ok(done)
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
