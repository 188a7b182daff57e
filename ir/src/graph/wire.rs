//! Rows that are rounded for their way to the experts.

use super::{Graph, GraphBuilder, Op, ValueId};
use crate::DType;
use crate::act_quant::ActScale;
use crate::diag::Diagnostic;

use super::place::Wire;

/// `graph` with the rows that are dispatched to experts rounded as `wire` says: the layer that a placed layer with such a
/// wire computes, on one rank or many. This changes the layer's numbers, unless its rows have that form already.
///
/// Rows of a narrower type become the layer's type again when they have arrived. Rows of codes are multiplied with their
/// exact values, as [`super::quantise_activations`] does.
///
/// # Errors
/// `layer-not-placeable` for rows that are rounded to another format already, for a format with a given global scale,
/// and for a type that is no narrower float.
pub fn round_on_wire(graph: &Graph, wire: Wire) -> Result<Graph, Diagnostic> {
    let mut b = GraphBuilder::new(&graph.name);
    let mut new: Vec<ValueId> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        b.set_origin(node.origin.clone());
        let mut inputs: Vec<ValueId> = node.inputs.iter().map(|v| new[v.index()]).collect();
        let made = match &node.op {
            Op::Input(n) => b.input(&graph.inputs[*n as usize].name, node.ty.clone()),
            Op::Param(n) => {
                let param = &graph.params[*n as usize];
                let made = b.param(&param.name, param.ty.clone(), param.source.clone());
                b.store_as(made, param.stored);
                made
            }
            Op::Permute { .. } => {
                let sent = graph.node(node.inputs[0]);
                let from = sent.ty.dtype;
                let not = |why: String| {
                    Diagnostic::input(
                        "layer-not-placeable",
                        format!("rows of `{}` cannot be sent so: {why}", graph.name),
                    )
                    .note(format!("at `{}` ({})", node.name, node.op.name()))
                    .help("send them as they are, or name a narrower float type or a format whose scales follow from the row")
                };
                match (wire, &sent.op) {
                    (Wire::Rows(to), _) if to == from => b.node_as(&node.name, node.op.clone(), &inputs, Some(from))?,
                    (Wire::Codes(q), Op::Quantise(same)) if q == *same => {
                        b.node_as(&node.name, node.op.clone(), &inputs, Some(from))?
                    }
                    (_, Op::Quantise(_)) => return Err(not("they are rounded to another format already".into())),
                    (Wire::Rows(to @ (DType::BF16 | DType::F16)), _) if from == DType::F32 => {
                        inputs[0] = b.node_as(&format!("{}.sent", sent.name), Op::Cast, &inputs[..1], Some(to))?;
                        let rows = b.node_as(&format!("{}.sent", node.name), node.op.clone(), &inputs, Some(to))?;
                        b.node_as(&node.name, Op::Cast, &[rows], Some(from))?
                    }
                    (Wire::Rows(to), _) => return Err(not(format!("they are {from}, and {to} does not round them"))),
                    (Wire::Codes(q), _) if q.has_global() => {
                        return Err(not("the format needs a global scale from the checkpoint".into()));
                    }
                    (Wire::Codes(q), _) => {
                        let exact = q.scale == ActScale::Pow2 && from == DType::BF16;
                        let to = if exact { from } else { DType::F32 };
                        let name = format!("{}.sent", sent.name);
                        inputs[0] = b.node_as(&name, Op::Quantise(q), &inputs[..1], Some(to))?;
                        b.node_as(&node.name, node.op.clone(), &inputs, Some(to))?
                    }
                }
            }
            op => b.node_as(&node.name, op.clone(), &inputs, Some(node.ty.dtype))?,
        };
        new.push(made);
    }
    for (name, v) in &graph.outputs {
        b.output(name, new[v.index()]);
    }
    Ok(b.finish())
}
