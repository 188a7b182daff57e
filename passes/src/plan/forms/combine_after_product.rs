//! Lets whoever stores the last rows of a run of columns of the down product add the slots up: one launch less.
//!
//! Sums are in slot order, as in a launch of their own: the bits are the same. What is worse is that few warps add up all
//! tokens, so that it is for few tokens.

use moec_ir::shape::Dim;
use moec_ir::tile::{Body, BufferId, ColAccess, Combine, Contract, ContractCombine, Groups, Program, RowAccess, STRIP};

/// Joins a combine to the product right before it that makes its rows. Numeric class: exact.
pub fn combine_after_product(program: &mut Program) {
    let found = program.kernels.windows(2).enumerate().find_map(|(at, pair)| match (&pair[0].body, &pair[1].body) {
        (Body::Contract(c), Body::Combine(sum)) => joins(program, c, sum).then(|| (at, sum.clone())),
        _ => None,
    });
    let Some((at, combine)) = found else { return };
    program.kernels.remove(at + 1);
    let strips = program.buffer(combine.out).cols.div_ceil(STRIP);
    let counter = super::counter(program, "stored", (Dim::Fixed(1), strips));
    if let Body::Contract(c) = &mut program.kernels[at].body {
        c.combine = Some(ContractCombine { combine, counter });
    }
}

/// Whether the sum reads the results of all segments, those by experts among them, column by column.
fn joins(program: &Program, c: &Contract, sum: &Combine) -> bool {
    let cols = program.buffer(sum.out).cols;
    let reads = |id: BufferId| {
        let mut args = sum.args.iter().filter(|a| a.buffer == id).peekable();
        let read = args.peek().is_some();
        read && args.all(|a| a.row == RowAccess::Same && a.col == ColAccess::From(0))
    };
    c.combine.is_none()
        && c.segments.iter().any(|s| s.out == sum.y && matches!(s.groups, Groups::ByExpert { .. }))
        && c.segments
            .iter()
            .all(|s| s.out_quant.is_none() && program.buffer(s.out).cols == cols && (s.out == sum.y || reads(s.out)))
}
