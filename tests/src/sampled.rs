//! What the reference makes of a few tokens of a layer with random weights that are too many to be held: of stacks of experts
//! only those that the tokens chose are made.

use moec_bundle::manifest::ParamInfo;
use moec_ir::graph::{Graph, Op, evaluate_node};
use moec_ir::{DType, Diagnostic, Tensor};
use moec_runtime::random_slices;

/// The outputs for `n_tokens` tokens, in the graph's order, with the weights of [`moec_runtime::Weights::Random`] of `seed`.
/// A row depends on nothing but its token, so these are rows of what more tokens give.
///
/// # Errors
/// `internal-error` for a graph with fused products of experts, which no front end gives.
pub fn evaluate(graph: &Graph, inputs: &[Tensor], n_tokens: usize, seed: u64) -> Result<Vec<Tensor>, Diagnostic> {
    let param = |i: u32| ParamInfo::from(&graph.params[i as usize]);
    let mut values: Vec<Option<Tensor>> = Vec::with_capacity(graph.nodes.len());
    for node in &graph.nodes {
        let made = match &node.op {
            Op::Input(i) => Some(inputs[*i as usize].clone()),
            // Made where it is used.
            Op::Param(_) => None,
            op => {
                let is_grouped = matches!(op, Op::GroupedLinear);
                if matches!(op, Op::GatherGroupedLinear | Op::GroupedLinearAct { .. }) {
                    return Err(Diagnostic::internal("internal-error", format!("`{}` is fused", node.name)));
                }
                let ids = if is_grouped { values[node.inputs[1].index()].clone() } else { None };
                let (experts, local) = ids.map_or((Vec::new(), None), |ids| {
                    let (experts, local) = renumbered(&ids);
                    (experts, Some(local))
                });
                let operand = |(n, id): (usize, &moec_ir::graph::ValueId)| match (&graph.node(*id).op, &local) {
                    (_, Some(local)) if n == 1 => local.clone(),
                    (Op::Param(i), Some(_)) => random_slices(seed, &param(*i), &experts),
                    (Op::Param(i), None) => moec_runtime::random_tensor(seed, &param(*i)),
                    _ => values[id.index()].clone().unwrap_or_else(|| Tensor::float(DType::F32, &[0], Vec::new())),
                };
                let operands: Vec<Tensor> = node.inputs.iter().enumerate().map(operand).collect();
                Some(evaluate_node(node, &operands.iter().collect::<Vec<_>>(), n_tokens))
            }
        };
        values.push(made);
    }
    let missing = || Diagnostic::internal("internal-error", "an output is a parameter");
    graph.outputs.iter().map(|(_, id)| values[id.index()].clone().ok_or_else(missing)).collect()
}

/// The experts that are chosen, in order, and the choices as places in that list; what is no expert stays none.
fn renumbered(ids: &Tensor) -> (Vec<u64>, Tensor) {
    let mut experts: Vec<u64> = ids.ints().iter().filter_map(|&id| u64::try_from(id).ok()).collect();
    experts.sort_unstable();
    experts.dedup();
    let local = |&id: &i64| u64::try_from(id).map_or(-1, |id| experts.partition_point(|&e| e < id) as i64);
    let local = Tensor::int(ids.dtype, &ids.shape, ids.ints().iter().map(local).collect());
    (experts, local)
}

/// Rows `tokens` of a tensor with a row for each token.
pub fn rows(tensor: &Tensor, tokens: &[usize]) -> Tensor {
    let cols = tensor.elements() / tensor.shape.first().copied().unwrap_or(1).max(1);
    let mut shape = tensor.shape.clone();
    if let Some(first) = shape.first_mut() {
        *first = tokens.len();
    }
    let range = |&t: &usize| t * cols..(t + 1) * cols;
    if tensor.dtype.is_float() {
        let values = tokens.iter().flat_map(|t| &tensor.floats()[range(t)]).copied().collect();
        Tensor::float(tensor.dtype, &shape, values)
    } else {
        let values = tokens.iter().flat_map(|t| &tensor.ints()[range(t)]).copied().collect();
        Tensor::int(tensor.dtype, &shape, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_rows_of_the_whole() {
        for case in crate::cases::all().iter().filter(|c| c.tokens.iter().any(|&t| t >= 5)).take(12) {
            let graph = &case.graph;
            let params: Vec<Tensor> =
                graph.params.iter().map(|p| moec_runtime::random_tensor(3, &ParamInfo::from(p))).collect();
            let input = case.input(9);
            let whole = moec_ir::graph::evaluate(graph, std::slice::from_ref(&input), &params).expect("evaluated");
            let tokens = [0, 4, 8];
            let some = evaluate(graph, &[rows(&input, &tokens)], tokens.len(), 3).expect("evaluated");
            for (some, whole) in some.iter().zip(&whole) {
                assert_eq!(*some, rows(whole, &tokens), "{}", case.name);
            }
        }
    }
}
