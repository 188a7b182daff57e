//! Lets many CTAs share the columns of the router's product: each stores some logits, and who is last of a block of rows reads them all
//! and chooses.
//!
//! A cluster has eight CTAs, and some GPUs have none: with few tokens most multiprocessors would watch while so few read the router's
//! weights.

use moec_ir::DType;
use moec_ir::tile::{Body, Program, Role, RowLogits};

/// Shares the products of the first row program that has any. Numeric class: exact.
pub fn logits_by_many(program: &mut Program) {
    let found = program.kernels.iter().enumerate().find_map(|(at, k)| match &k.body {
        Body::Rows(rows) if rows.logits.is_none() => {
            let widths: Vec<u64> = rows.products().map(|(_, op)| op.width).collect();
            (!widths.is_empty()).then_some((at, rows.rows, widths))
        }
        _ => None,
    });
    let Some((at, n_rows, widths)) = found else { return };
    let one = |width| super::buffer(program, "logits_of_ctas", Role::Workspace, DType::F32, (n_rows, width));
    let values = widths.into_iter().map(one).collect();
    let counter = super::counter(program, "counted", (n_rows, 1));
    if let Body::Rows(rows) = &mut program.kernels[at].body {
        rows.logits = Some(RowLogits { values, counter });
    }
}
