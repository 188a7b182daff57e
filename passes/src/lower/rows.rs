//! A cluster of score rows → a row program.

use super::{Lowering, binary, scaled};
use moec_ir::expr::{Binary, Expr, ExprBuilder, Unary};
use moec_ir::graph::{Op, Score, ValueId};
use moec_ir::tile::{Body, RowId, RowOp, RowOpKind, RowProgram, RowStore};
use moec_ir::{DType, Diagnostic, Dim};

impl Lowering<'_> {
    /// Makes the row program of cluster `c`, and stores what others read.
    pub(super) fn row_program(&mut self, c: usize) -> Result<(), Diagnostic> {
        let members = self.clusters[c].values.clone();
        let Some(&last) = members.last() else { return Ok(()) };
        let rows = self.ty(last).shape[0];
        let mut p = RowProgram::of(rows, Vec::new(), Vec::new());
        let mut row_of: Vec<(ValueId, RowId)> = Vec::new();
        for &v in &members {
            let id = self.row_op(v, &members, &mut p, &mut row_of)?;
            row_of.push((v, id));
        }
        for &v in &members {
            if self.is_read_outside(v, &members)
                && let Some(&(_, value)) = row_of.iter().find(|(w, _)| *w == v)
            {
                let buffer = self.result(v)?;
                p.stores.push(RowStore { value, buffer });
            }
        }
        let name = if members.len() > 1 { "route".to_string() } else { self.node(last).name.clone() };
        p.until = self.until(last)?;
        self.push(&name, Body::Rows(p));
        Ok(())
    }

    fn is_read_outside(&self, v: ValueId, members: &[ValueId]) -> bool {
        let is_output = self.graph.outputs.iter().any(|(_, w)| *w == v);
        let users = self.graph.nodes.iter().enumerate().filter(|(_, n)| n.inputs.contains(&v));
        is_output || users.map(|(i, _)| ValueId(i as u32)).any(|user| !members.contains(&user))
    }

    /// The row of an operand: an earlier step, or a load.
    fn row_operand(
        &mut self,
        v: ValueId,
        members: &[ValueId],
        p: &mut RowProgram,
        row_of: &mut Vec<(ValueId, RowId)>,
    ) -> Result<RowId, Diagnostic> {
        if let Some(&(_, id)) = row_of.iter().find(|(w, _)| *w == v) {
            return Ok(id);
        }
        if members.contains(&v) {
            return Err(self.unsupported(v, "its row program reads it before it is made"));
        }
        let buffer = self.value(v)?;
        let ty = self.ty(v);
        let per_row = ty.shape.len() == 2 && ty.shape[0] == p.rows;
        let first = ty.shape.len() == 1 || (ty.shape.len() == 2 && ty.shape[0] == Dim::Fixed(1));
        let kind = match (per_row, first) {
            (true, _) => RowOpKind::Load(buffer),
            (false, true) => RowOpKind::LoadFirst(buffer),
            (false, false) => return Err(self.unsupported(v, format!("{ty} is not a row for each token"))),
        };
        let width = self.columns(v)?;
        // Loaded floats are widened exactly; ids stay integers.
        let dtype = if ty.dtype.is_float() { DType::F32 } else { DType::I32 };
        let id = add(p, kind, width, dtype);
        row_of.push((v, id));
        Ok(id)
    }

    fn row_op(
        &mut self,
        v: ValueId,
        members: &[ValueId],
        p: &mut RowProgram,
        row_of: &mut Vec<(ValueId, RowId)>,
    ) -> Result<RowId, Diagnostic> {
        let node = self.node(v);
        let (width, dtype) = (self.columns(v)?, node.ty.dtype);
        if node.op == Op::Linear {
            let x = self.value(node.inputs[0])?;
            let w = self.value(node.inputs[1])?;
            let bias = node.inputs.get(2).map(|&b| self.value(b)).transpose()?;
            return Ok(add(p, RowOpKind::Linear { x, w, bias }, width, dtype));
        }
        if node.op == Op::Lookup {
            let (table, index) = (self.value(node.inputs[0])?, self.value(node.inputs[1])?);
            return Ok(add(p, RowOpKind::Lookup { table, index }, width, dtype));
        }
        let mut operands = Vec::new();
        for &x in &node.inputs {
            operands.push(self.row_operand(x, members, p, row_of)?);
        }
        let x = operands[0];
        let kind = match &node.op {
            Op::Score(Score::Softmax) => RowOpKind::Softmax(x),
            Op::Score(Score::Sigmoid) => RowOpKind::Map { expr: unary(&[Unary::Sigmoid]), args: operands },
            Op::Score(Score::SqrtSoftplus) => {
                RowOpKind::Map { expr: unary(&[Unary::Softplus, Unary::Sqrt]), args: operands }
            }
            Op::RmsNorm { eps } => match operands.get(1) {
                None => RowOpKind::RmsNorm { x, eps: *eps },
                Some(&gain) => {
                    let normed = add(p, RowOpKind::RmsNorm { x, eps: *eps }, width, DType::F32);
                    RowOpKind::Map { expr: binary(Binary::Mul), args: vec![normed, gain] }
                }
            },
            Op::GroupLimit { n_groups, keep, score, fill } => {
                RowOpKind::GroupLimit { x, n_groups: *n_groups, keep: *keep, score: *score, fill: *fill }
            }
            Op::TopK { .. } => RowOpKind::TopK(x),
            Op::GatherScores => RowOpKind::Gather { x, ids: operands[1] },
            Op::Map(expr) => RowOpKind::Map { expr: expr.clone(), args: operands },
            Op::Reduce(kind) => RowOpKind::Reduce { x, kind: *kind },
            Op::MaskChosen => RowOpKind::MaskChosen { x, ids: operands[1] },
            Op::JoinColumns => RowOpKind::Join { a: x, b: operands[1] },
            Op::SumOutside { n_experts } => RowOpKind::SumOutside { x, ids: operands[1], n_experts: *n_experts },
            Op::LocalIds { first, count } => RowOpKind::LocalIds { ids: x, first: *first, count: *count },
            Op::Renormalise(rule) => RowOpKind::Renormalise { x, rule: *rule },
            Op::Add => RowOpKind::Map { expr: binary(Binary::Add), args: operands },
            Op::Mul => RowOpKind::Map { expr: binary(Binary::Mul), args: operands },
            Op::Scale(c) => RowOpKind::Map { expr: scaled(c.0), args: operands },
            Op::Cast => RowOpKind::Map { expr: Expr::identity(), args: operands },
            _ => return Err(self.unsupported(v, "no row program computes it")),
        };
        Ok(add(p, kind, width, dtype))
    }
}

fn add(p: &mut RowProgram, kind: RowOpKind, width: u64, dtype: DType) -> RowId {
    p.ops.push(RowOp { kind, width, dtype });
    RowId(p.ops.len() as u32 - 1)
}

/// Functions applied one after another to argument 0.
fn unary(fs: &[Unary]) -> Expr {
    let mut b = ExprBuilder::new();
    let mut x = b.arg(0);
    for &f in fs {
        x = b.unary(f, x);
    }
    b.finish(x)
}
