//! The experts' graph for rows that kernels receive: one row for all slots of a token.

use super::emit::Emit;
use super::{Graph, verify};
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
        if let super::Op::Input(n) = node.op {
            emit.map.insert(i, if n == 0 { made } else { ids });
        }
    }
    let slots = emit.value(*result)?;
    emit.b.output(name, slots);
    let graph = Graph { name: format!("{}, {top_k} slots of a row", experts.name), ..emit.b.finish() };
    verify(&graph).into_iter().next().map_or(Ok(graph), Err)
}
