//! Lets the router's kernel make expert order when it is done: one launch less.
//!
//! A GPU's blocks, or clusters of them where the schedule says so, count themselves, and the last one plans. On the CPU a launch
//! costs nothing that would be worth it.

use moec_ir::shape::Dim;
use moec_ir::tile::{Body, Program, RowPlan};

/// Joins a plan to the row program right before it that stores its ids. Numeric class: exact.
pub fn plan_after_route(program: &mut Program) {
    let found = program.kernels.windows(2).enumerate().find_map(|(at, pair)| match (&pair[0].body, &pair[1].body) {
        (Body::Rows(rows), Body::Plan(plan)) => {
            let joins = rows.plan.is_none() && rows.stores.iter().any(|s| s.buffer == plan.ids);
            joins.then(|| (at, plan.clone()))
        }
        _ => None,
    });
    let Some((at, plan)) = found else { return };
    program.kernels.remove(at + 1);
    let counter = super::counter(program, "finished", (Dim::Fixed(1), 1));
    if let Body::Rows(rows) = &mut program.kernels[at].body {
        rows.plan = Some(RowPlan { plan, counter });
    }
}
