//! Where the values of a row lie in shared memory.

use crate::tile::{RowId, RowOpKind, RowProgram};

/// Byte offsets within a row's memory. A value's place is used again after the last step that reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// Of each step's value.
    pub offsets: Vec<u32>,
    /// Of each step's scratch memory.
    pub scratch: Vec<u32>,
    /// Bytes of a row.
    pub row_bytes: u32,
}

impl RowLayout {
    /// Of the values of a program's steps.
    pub fn new(program: &RowProgram) -> RowLayout {
        let n = program.ops.len();
        // The step after which a value is dead; logits of all linear steps are made before the first other step.
        let mut last_use: Vec<usize> = (0..n).collect();
        for (i, op) in program.ops.iter().enumerate() {
            operands(&op.kind).iter().for_each(|o| last_use[o.0 as usize] = i);
        }
        let first_use = |i: usize| if matches!(program.ops[i].kind, RowOpKind::Linear { .. }) { 0 } else { i };
        // (first byte, end, first step, last step)
        let mut placed: Vec<(u32, u32, usize, usize)> = Vec::new();
        let mut place = |bytes: u32, from: usize, to: usize| {
            let mut at = 0;
            let mut others: Vec<_> = placed.iter().filter(|p| p.2 <= to && from <= p.3).copied().collect();
            others.sort_unstable();
            for (start, end, ..) in others {
                if at + bytes > start {
                    at = at.max(end);
                }
            }
            placed.push((at, at + bytes, from, to));
            at
        };
        // Logits first: they are alive from the beginning.
        let mut offsets = vec![0; n];
        let mut scratch = vec![0; n];
        let is_linear = |i: &usize| matches!(program.ops[*i].kind, RowOpKind::Linear { .. });
        let (linear, others): (Vec<usize>, Vec<usize>) = (0..n).partition(is_linear);
        for i in linear.into_iter().chain(others) {
            let op = &program.ops[i];
            offsets[i] = place(op.width as u32 * 4, first_use(i), last_use[i]);
            if let RowOpKind::GroupLimit { n_groups, .. } = op.kind {
                scratch[i] = place(n_groups * 8, i, i);
            }
        }
        let row_bytes = placed.iter().map(|p| p.1).max().unwrap_or(0).max(4);
        RowLayout { offsets, scratch, row_bytes }
    }
}

fn operands(kind: &RowOpKind) -> Vec<RowId> {
    match kind {
        RowOpKind::Load(_) | RowOpKind::LoadFirst(_) | RowOpKind::Linear { .. } | RowOpKind::Lookup { .. } => {
            Vec::new()
        }
        RowOpKind::Map { args, .. } => args.clone(),
        RowOpKind::Softmax(x)
        | RowOpKind::RmsNorm { x, .. }
        | RowOpKind::GroupLimit { x, .. }
        | RowOpKind::TopK(x)
        | RowOpKind::Renormalise { x, .. } => vec![*x],
        RowOpKind::LocalIds { ids, .. } => vec![*ids],
        RowOpKind::Reduce { x, .. } => vec![*x],
        RowOpKind::Join { a, b } => vec![*a, *b],
        RowOpKind::Gather { x, ids } | RowOpKind::MaskChosen { x, ids } | RowOpKind::SumOutside { x, ids, .. } => {
            vec![*x, *ids]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::{BufferId, RowOp};
    use crate::{DType, Dim, Expr};

    #[test]
    fn values_that_live_together_do_not_overlap() {
        let row = |kind| RowOp { kind, width: 10, dtype: DType::F32 };
        let map =
            |args: &[u32]| RowOpKind::Map { expr: Expr::identity(), args: args.iter().map(|&a| RowId(a)).collect() };
        let ops = vec![
            row(RowOpKind::Load(BufferId(0))),
            row(map(&[0])),
            row(map(&[1])),
            row(map(&[2, 0])),
            row(RowOpKind::Linear { x: BufferId(0), w: BufferId(1), bias: None }),
            row(map(&[4, 3])),
        ];
        let layout = RowLayout::new(&RowProgram {
            rows: Dim::TOKENS,
            until: None,
            ops,
            stores: Vec::new(),
            quantise: Vec::new(),
            plan: None,
            logits: None,
        });
        let apart = |a: usize, b: usize| layout.offsets[a].abs_diff(layout.offsets[b]) >= 40;
        for (a, b) in [(0, 1), (0, 2), (1, 2), (2, 3), (0, 3), (4, 0), (4, 1), (4, 2), (4, 3), (5, 4), (5, 3)] {
            assert!(apart(a, b), "{a} and {b}: {:?}", layout.offsets);
        }
        assert!(layout.row_bytes < 6 * 40, "places should be used again");
    }
}
