//! The experts' graphs for rows that kernels exchange: one row for all slots of a token, and results where the product leaves them.

use super::emit::Emit;
use super::{Graph, Op, ValueId, verify};
use crate::DType;
use crate::diag::Diagnostic;
use crate::shape::{Dim, TensorType};

/// The experts of a placed layer for `top_k` slots of a row, not one: `local_ids` is i32 `[T, K]`, negative for slots whose
/// experts are elsewhere, and `slot_rows` is `[T*K, H']`. The rows of slots that are here have the bits that they have one by one.
///
/// # Errors
/// `internal-error` for a graph that is not the experts' of [`super::place`].
pub fn experts_of_tokens(experts: &Graph, top_k: u64) -> Result<Graph, Diagnostic> {
    let broken = || Diagnostic::internal("internal-error", "experts take rows and local ids");
    let [rows, _] = &experts.inputs[..] else { return Err(broken()) };
    let [(name, result)] = &experts.outputs[..] else { return Err(broken()) };
    let mut emit = Emit::new(experts);
    let made = emit.b.input(&rows.name, rows.ty.clone());
    let ids = emit.b.input("local_ids", TensorType::new(DType::I32, [Dim::TOKENS, Dim::Fixed(top_k)]));
    for (i, node) in experts.nodes.iter().enumerate() {
        if let Op::Input(n) = node.op {
            emit.map.insert(i, if n == 0 { made } else { ids });
        }
    }
    let slots = emit.value(*result)?;
    emit.b.output(name, slots);
    let graph = Graph { name: format!("{}, {top_k} slots of a row", experts.name), ..emit.b.finish() };
    verify(&graph).into_iter().next().map_or(Ok(graph), Err)
}

/// The same experts, whose result rows stay in expert order, where the last product leaves them: `expert_rows` `[T*K, H']`, of which
/// `slot_to_row` i32 `[T, K]` says which row a slot has, -1 for those that are elsewhere. Rows behind those of the last expert hold nothing.
///
/// # Errors
/// `internal-error` for a graph whose result is not brought back to slot order.
pub fn results_in_expert_order(experts: &Graph) -> Result<Graph, Diagnostic> {
    left_in_expert_order(experts, |emit, rows, ids, n_experts| {
        let map = emit.b.node("slot_to_row", Op::SlotToRow { n_experts }, &[ids])?;
        emit.b.output("expert_rows", rows);
        emit.b.output("slot_to_row", map);
        Ok(())
    })
}

/// The same experts, whose result rows are stored where they are wanted: `slot_places` i64 `[T, K]` is an input, which says at which
/// address the row of a slot goes, a multiple of `unit` elements. `expert_rows` `[T*K, H']` are these rows in expert order, which lie there and
/// nowhere else.
///
/// # Errors
/// `internal-error` for a graph whose result is not brought back to slot order.
pub fn results_at_places(experts: &Graph, unit: u32) -> Result<Graph, Diagnostic> {
    left_in_expert_order(experts, |emit, rows, ids, n_experts| {
        let slots = TensorType { dtype: DType::I64, ..emit.b.ty(ids).clone() };
        let places = emit.b.input("slot_places", slots);
        let stored = emit.b.node("expert_rows", Op::StoreAt { n_experts, unit }, &[rows, ids, places])?;
        emit.b.output("expert_rows", stored);
        Ok(())
    })
}

/// Experts whose results are not brought back to slot order: `leave` is given rows, ids and the number of experts.
fn left_in_expert_order(
    experts: &Graph,
    leave: impl FnOnce(&mut Emit<'_>, ValueId, ValueId, u32) -> Result<(), Diagnostic>,
) -> Result<Graph, Diagnostic> {
    let broken = || Diagnostic::internal("internal-error", "results of experts should come back in slot order");
    let [(_, slots)] = &experts.outputs[..] else { return Err(broken()) };
    let node = experts.node(*slots);
    let (Op::Unpermute { n_experts }, &[rows, ids]) = (&node.op, &node.inputs[..]) else { return Err(broken()) };
    let mut emit = Emit::new(experts);
    // As they were: an input that only results of other slots need stays one.
    for (i, node) in experts.nodes.iter().enumerate() {
        if let Op::Input(n) = node.op {
            let input = &experts.inputs[n as usize];
            let made = emit.b.input(&input.name, input.ty.clone());
            emit.map.insert(i, made);
        }
    }
    let (rows, ids) = (emit.value(rows)?, emit.value(ids)?);
    leave(&mut emit, rows, ids, *n_experts)?;
    let graph = Graph { name: experts.name.clone(), ..emit.b.finish() };
    verify(&graph).into_iter().next().map_or(Ok(graph), Err)
}
