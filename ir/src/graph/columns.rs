//! Local experts whose matrices are cut over several ranks, so that no sum is.
//!
//! ```text
//! rows ─► up, this rank's columns ─► columns of all ranks joined ─► down, this rank's columns ─► slot rows, joined by the token's rank
//! ```
//!
//! Where tensor-parallel ranks ([`super::shard`]) cut the second product along what it sums over, and add, here both products are cut
//! along their output columns: each element is computed whole on one rank, and has the bits that it has on one device. Activations
//! travel once more for it.

use super::emit::Emit;
use super::place::refused;
use super::shard::{Group, Shard, ShardKind, walk};
use super::slice::slice_param;
use super::{Graph, Op, Param, Placed, ValueId};
use crate::DType;
use crate::diag::Diagnostic;
use crate::shape::{Dim, TensorType};
use std::ops::Range;

/// One rank's columns of local experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    /// From `rows` and `local_ids`, as the whole experts take them, to `columns` `[T, F']`: this rank's of the activations.
    pub up: Graph,
    /// From `act_rows` `[T, F]`, the columns of all ranks, and `local_ids`, to `slot_rows` `[T, H']`: this rank's.
    pub down: Graph,
    /// The parameters of `up` that have an axis of experts, with all experts.
    pub up_stacks: Vec<Param>,
    /// The same of `down`.
    pub down_stacks: Vec<Param>,
}

/// The columns that rank `rank` of `count` computes of the experts of a placed layer.
///
/// # Errors
/// `layer-not-placeable` when experts are anything but products with elementwise operations between them: a norm of an expert's
/// output needs all columns. `shard-too-narrow` when there are fewer columns than ranks.
pub fn cut_columns(placed: &Placed, count: u32, rank: u32) -> Result<Columns, Diagnostic> {
    let graph = &placed.experts;
    let cut = Cut::find(graph)?;
    let shard = Shard { kind: ShardKind::Tensor, count, rank };
    let part = |node: usize, width: u64, unit: u64| {
        shard.part(width, unit).ok_or_else(|| {
            let name = &graph.nodes[node].name;
            let what = format!("`{name}` has {width} columns; they cannot be spread over {count} ranks");
            Diagnostic::input("shard-too-narrow", what).note("every rank needs at least one")
        })
    };
    let first = cut.group.starts.iter().map(|&i| rows_of_a_scale(graph, i)).max().unwrap_or(1);
    let up_range = part(cut.group.end, cut.group.width, first)?;
    let down_range = part(cut.group.end, cut.width, rows_of_a_scale(graph, cut.group.end))?;

    let ids = ValueId(cut.ids as u32);
    let mut up = Emit::new(graph);
    for &i in &cut.group.starts {
        cut_params(graph, &graph.nodes[i].inputs[2..], 1, &up_range, &mut up);
    }
    for &i in &cut.group.between {
        let wide = |v: &&ValueId| graph.ty(**v).last() == Some(Dim::Fixed(cut.group.width));
        let params: Vec<ValueId> = graph.nodes[i].inputs.iter().filter(wide).copied().collect();
        for v in params {
            cut_params(graph, &[v], graph.ty(v).shape.len() - 1, &up_range, &mut up);
        }
    }
    let columns = up.value(cut.act)?;
    let ids_here = up.value(ids)?;
    let Op::Unpermute { n_experts } = graph.nodes[cut.slots].op else {
        return Err(Diagnostic::internal("internal-error", "slots should come of an unpermute"));
    };
    let columns = up.b.node("columns", Op::Unpermute { n_experts }, &[columns, ids_here])?;
    up.b.output("columns", columns);

    let mut down = Emit::new(graph);
    cut_params(graph, &graph.nodes[cut.group.end].inputs[2..], 1, &down_range, &mut down);
    let ty = graph.ty(cut.act);
    let act = down.b.input("act_rows", TensorType::new(ty.dtype, [Dim::TOKENS, Dim::Fixed(cut.group.width)]));
    let ids_here = down.b.input("local_ids", TensorType::new(DType::I32, [Dim::TOKENS, Dim::Fixed(1)]));
    down.map.insert(cut.ids, ids_here);
    let rows = down.b.node("act_rows", Op::Permute { n_experts }, &[act, ids_here])?;
    down.map.insert(cut.act.index(), rows);
    let slots = down.value(ValueId(cut.slots as u32))?;
    down.b.output("slot_rows", slots);

    let stacks = |emit: &Emit<'_>| {
        let of = |stack: &Param| {
            let n = graph.params.iter().position(|p| p.name == stack.name)?;
            let used = emit.cut.iter().find(|(m, ..)| *m == n as u32)?;
            Some(slice_param(stack, used.1, &used.2))
        };
        placed.stacks.iter().filter_map(of).collect::<Vec<_>>()
    };
    let (up_stacks, down_stacks) = (stacks(&up), stacks(&down));
    let name = |what: &str| format!("{}, {what} {rank} of {count}", graph.name);
    Ok(Columns {
        up: Graph { name: name("up columns"), ..up.b.finish() },
        down: Graph { name: name("down columns"), ..down.b.finish() },
        up_stacks,
        down_stacks,
    })
}

/// Where experts are cut in two.
struct Cut {
    ids: usize,
    /// The products before, what is between, the product behind, and the width between.
    group: Group,
    /// The activations before they are rounded for the second product.
    act: ValueId,
    /// Columns of the second product.
    width: u64,
    /// The last node.
    slots: usize,
}

impl Cut {
    fn find(graph: &Graph) -> Result<Cut, Diagnostic> {
        let slots = graph.outputs[0].1.index();
        let end = graph.nodes[slots].inputs[0].index();
        let not = |i: usize, why: &str| {
            refused(graph, i, &format!("the matrices of its experts cannot be cut over ranks, {why}"))
        };
        if graph.nodes[end].op != Op::GroupedLinear {
            return Err(not(end, "for this step needs all columns of an expert's output"));
        }
        let mut act = graph.nodes[end].inputs[0];
        if let Op::Quantise(_) = graph.node(act).op {
            act = graph.node(act).inputs[0];
        }
        let width = graph.ty(act).last().and_then(Dim::fixed).unwrap_or(0);
        let mut group = Group { starts: Vec::new(), between: Vec::new(), end, width };
        let walked = walk(graph, act.index(), width, &mut group) && !group.starts.is_empty();
        let grouped = group.starts.iter().all(|&i| graph.nodes[i].op == Op::GroupedLinear);
        let rounded = group.between.iter().any(|&i| matches!(graph.nodes[i].op, Op::Quantise(_)));
        if !walked || !grouped || rounded {
            return Err(not(end, "for what is before this step is no product with elementwise operations behind it"));
        }
        let columns = graph.nodes[end].ty.last().and_then(Dim::fixed).unwrap_or(0);
        Ok(Cut { ids: graph.nodes[slots].inputs[1].index(), group, act, width: columns, slots })
    }
}

/// Rows of a product's matrix that share a scale, which are better not parted.
fn rows_of_a_scale(graph: &Graph, product: usize) -> u64 {
    let w = graph.node(graph.nodes[product].inputs[2]);
    let stored = if let Op::Param(n) = w.op { graph.params[n as usize].stored } else { None };
    stored.map_or(1, |f| f.block_rows.max(1))
}

fn cut_params(graph: &Graph, values: &[ValueId], axis: usize, range: &Range<u64>, emit: &mut Emit<'_>) {
    for &v in values {
        if let Op::Param(n) = graph.node(v).op {
            emit.cut.push((n, axis, range.clone()));
        }
    }
}
