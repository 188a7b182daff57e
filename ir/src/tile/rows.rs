//! Row programs: what is computed on each token's row of scores.

use super::{BufferId, Plan, Quantise};
use crate::DType;
use crate::expr::Expr;
use crate::graph::{GroupScore, Reduce, RenormRule, RowMask};
use crate::shape::Dim;
use serde::{Deserialize, Serialize};

/// A straight-line program that runs once for each row, on values that are rows themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowProgram {
    /// How many rows there are.
    pub rows: Dim,
    /// Rows in expert order end where the last expert's do: those from the last entry of these offsets on hold no slot, and
    /// are left as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<BufferId>,
    /// Steps; operands are earlier steps.
    pub ops: Vec<RowOp>,
    /// What is kept.
    pub stores: Vec<RowStore>,
    /// Rows of activations that the same kernel rounds to codes; as many rows as the program has. Consumers whose formats or
    /// scales differ have codes of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quantise: Vec<Quantise>,
    /// Made when all rows are done, by whoever finishes last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<RowPlan>,
    /// Where products are made by many blocks, the last of which runs the other steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits: Option<RowLogits>,
}

/// Products of a row program that blocks share through global memory: each makes some of the columns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowLogits {
    /// The values of each product ([`RowOpKind::Linear`]), in the order of the steps: f32 `[rows, width]`.
    pub values: Vec<BufferId>,
    /// Counts blocks that are done, i32 `[rows, 1]`, one for each tile of rows: [`super::Role::Counter`].
    pub counter: BufferId,
}

/// Expert order at the end of a row program: one launch less.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowPlan {
    /// What is made. The ids are one of the program's stores.
    pub plan: Plan,
    /// Counts the blocks that have finished: [`super::Role::Counter`].
    pub counter: BufferId,
}

/// Index into [`RowProgram::ops`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowId(pub u32);

/// One step: a row of `width` values, f32 or (for ids) i32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowOp {
    /// What it computes.
    pub kind: RowOpKind,
    /// Number of values.
    pub width: u64,
    /// Floats are rounded to this type after the step; `I32` for ids.
    pub dtype: DType,
}

/// What a step computes. `x`, `ids`, … are earlier steps; `c` runs over the width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowOpKind {
    /// Row `r` of a buffer.
    Load(BufferId),
    /// Row 0 of a buffer: the same for all rows (a selection bias).
    LoadFirst(BufferId),
    /// `x[r, :] · w[c, :] (+ bias[c])` with `x: [rows, K]`, `w: [1, width, K]`: the router itself.
    Linear {
        /// Activations `[rows, K]`.
        x: BufferId,
        /// Weights `[width, K]`.
        w: BufferId,
        /// Bias, one row of `width`.
        bias: Option<BufferId>,
    },
    /// An expression over rows of this width, or of width 1, which are repeated.
    Map {
        /// The expression.
        expr: Expr,
        /// Its arguments.
        args: Vec<RowId>,
    },
    /// Softmax over the row, in f32 with the maximum subtracted first.
    Softmax(RowId),
    /// `x / sqrt(mean(x²) + eps)`
    RmsNorm {
        /// The row.
        x: RowId,
        /// Added to the mean of squares.
        eps: crate::expr::Real,
    },
    /// As [`crate::graph::Op::GroupLimit`].
    GroupLimit {
        /// Scores.
        x: RowId,
        /// Number of equal groups.
        n_groups: u32,
        /// Groups kept.
        keep: u32,
        /// Score of a group.
        score: GroupScore,
        /// What stands in the others.
        fill: RowMask,
    },
    /// The indices of the `width` largest, by (value descending, index ascending), NaN first.
    TopK(RowId),
    /// `x[ids[c]]`, 0 where `x` has no such column.
    Gather {
        /// Scores.
        x: RowId,
        /// Indices into it.
        ids: RowId,
    },
    /// As [`crate::graph::Op::Reduce`]; the width is 1.
    Reduce {
        /// The row.
        x: RowId,
        /// Maximum or sum.
        kind: Reduce,
    },
    /// `x`, with -inf at the indices `ids` that lie in it.
    MaskChosen {
        /// Scores.
        x: RowId,
        /// Indices into it.
        ids: RowId,
    },
    /// `a` and then `b`: both floats, or both ids.
    Join {
        /// The first columns.
        a: RowId,
        /// The others.
        b: RowId,
    },
    /// Row `index[r]` of a table: i32; -1 everywhere when the index is outside the table.
    Lookup {
        /// i32 `[V, width]`, contiguous.
        table: BufferId,
        /// i64 `[rows, 1]`.
        index: BufferId,
    },
    /// As [`crate::graph::Op::SumOutside`]; the width is 1.
    SumOutside {
        /// Weights.
        x: RowId,
        /// Expert ids.
        ids: RowId,
        /// Number of experts that have weights.
        n_experts: u32,
    },
    /// As [`crate::graph::Op::LocalIds`].
    LocalIds {
        /// Expert ids.
        ids: RowId,
        /// First id that is kept.
        first: u32,
        /// How many are kept.
        count: u32,
    },
    /// As [`crate::graph::Op::Renormalise`].
    Renormalise {
        /// Weights.
        x: RowId,
        /// The rule.
        rule: RenormRule,
    },
}

/// Keeps a row in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowStore {
    /// The row.
    pub value: RowId,
    /// `[rows, width]`.
    pub buffer: BufferId,
}

impl RowProgram {
    /// Steps alone.
    pub fn of(rows: Dim, ops: Vec<RowOp>, stores: Vec<RowStore>) -> RowProgram {
        RowProgram { rows, until: None, ops, stores, quantise: Vec::new(), plan: None, logits: None }
    }

    /// The products, by number of the step.
    pub fn products(&self) -> impl Iterator<Item = (usize, &RowOp)> {
        self.ops.iter().enumerate().filter(|(_, op)| matches!(op.kind, RowOpKind::Linear { .. }))
    }

    pub(super) fn operands(&self, add: &mut impl FnMut(BufferId, bool)) {
        for op in &self.ops {
            match &op.kind {
                RowOpKind::Load(b) | RowOpKind::LoadFirst(b) => add(*b, false),
                RowOpKind::Linear { x, w, bias } => {
                    add(*x, false);
                    add(*w, false);
                    if let Some(b) = bias {
                        add(*b, false);
                    }
                }
                RowOpKind::Lookup { table, index } => {
                    add(*table, false);
                    add(*index, false);
                }
                RowOpKind::Map { .. }
                | RowOpKind::Reduce { .. }
                | RowOpKind::MaskChosen { .. }
                | RowOpKind::Join { .. }
                | RowOpKind::SumOutside { .. }
                | RowOpKind::LocalIds { .. }
                | RowOpKind::Softmax(_)
                | RowOpKind::RmsNorm { .. }
                | RowOpKind::GroupLimit { .. }
                | RowOpKind::TopK(_)
                | RowOpKind::Gather { .. }
                | RowOpKind::Renormalise { .. } => {}
            }
        }
        self.until.into_iter().for_each(|b| add(b, false));
        self.stores.iter().for_each(|s| add(s.buffer, true));
        self.quantise.iter().for_each(|q| q.operands(add));
        if let Some(p) = &self.plan {
            p.plan.operands(add);
            add(p.counter, true);
        }
        if let Some(l) = &self.logits {
            l.values.iter().chain([&l.counter]).for_each(|&b| add(b, true));
        }
    }
}
