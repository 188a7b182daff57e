//! The end of a product, of codes or not, for one output column: global scales, bias, epilogue expression.

use crate::builder::{Bool, F32, I32};
use crate::kernels::{Kernel, View};
use crate::parts::math::evaluate;
use moec_ir::tile::{Panel, Program, Segment};

/// What is done with the sums of a column.
pub struct ScaledColumn<'k, 'c, 'p> {
    k: &'k Kernel<'c, 'p>,
    segment: &'k Segment,
    /// Column of the result.
    pub col: I32<'c>,
    /// Whether the result has it.
    pub has_col: Bool<'c>,
    biases: Vec<Option<F32<'c>>>,
    /// Global scales of the panels, times that of all rows where there is one.
    factors: Vec<Option<F32<'c>>>,
}

impl<'k, 'c, 'p> ScaledColumn<'k, 'c, 'p> {
    /// For column `col`; one past the end is computed and not stored.
    pub fn new(
        k: &'k Kernel<'c, 'p>,
        program: &Program,
        segment: &'k Segment,
        expert: I32<'c>,
        col: I32<'c>,
    ) -> ScaledColumn<'k, 'c, 'p> {
        let c = k.builder;
        let n = segment.n(program) as u32;
        let bias = |view: View<'c>| c.load_elements(view.at(expert, col.min(n - 1)), view.dtype, 1)[0];
        let of_rows = segment.a_quant.as_ref().filter(|q| !q.q.has_row()).and_then(|q| q.global);
        let of_rows = of_rows.map(|id| c.load_f32(k.view(id).base));
        let of_panel = |id| c.load_f32(k.view(id).at(c.i32(0), expert));
        let factor = |p: &Panel| {
            // Codes that became floats have theirs in them.
            let quant = p.quant.as_ref().filter(|_| segment.a_quant.is_some());
            let of_panel = quant.and_then(|q| q.global).map(of_panel);
            match (of_rows, of_panel) {
                (Some(a), Some(b)) => Some(a * b),
                (a, b) => a.or(b),
            }
        };
        ScaledColumn {
            k,
            segment,
            col,
            has_col: col.lt(n),
            biases: segment.biases.iter().map(|b| b.map(|b| bias(k.view(b)))).collect(),
            factors: segment.panels.iter().map(factor).collect(),
        }
    }

    /// The result of a row from its sums, one of each panel; `of_row` is the global scale of its own.
    pub fn value(&self, sums: &[F32<'c>], of_row: Option<F32<'c>>) -> F32<'c> {
        let arg = |((&sum, bias), factor): ((&F32<'c>, &Option<F32<'c>>), &Option<F32<'c>>)| {
            let sum = factor.map_or(sum, |f| sum * f);
            let sum = of_row.map_or(sum, |f| sum * f);
            bias.map_or(sum, |b| sum + b)
        };
        let args: Vec<F32> = sums.iter().zip(&self.biases).zip(&self.factors).map(arg).collect();
        evaluate(self.k.builder, &self.segment.epilogue, &args)
    }
}
