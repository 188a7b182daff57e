//! Lets the router's kernel, which reads each token's row anyway, round it to codes: one launch less.

use moec_ir::tile::{Body, Program, Role};

/// Joins the quantisation of given rows to the row program that has as many. Numeric class: exact.
pub fn quantise_in_route(program: &mut Program) {
    let Some(route) = program.kernels.iter().position(|k| matches!(k.body, Body::Rows(_))) else { return };
    let Body::Rows(rows) = &program.kernels[route].body else { return };
    let found = program.kernels.iter().position(|k| {
        let Body::Quantise(q) = &k.body else { return false };
        // Nothing makes the rows, so that they may be read at any time.
        let given = matches!(program.buffer(q.x).role, Role::Input(_));
        given && program.buffer(q.out).rows == rows.rows
    });
    // Whoever reads the codes must come after the router, too.
    let Some(found) = found.filter(|_| rows.quantise.is_none()) else { return };
    let made = program.kernels[found].body.operands();
    let is_read = |k: &moec_ir::tile::Kernel| {
        k.body.operands().iter().any(|(b, _)| made.iter().any(|(m, written)| *written && m == b))
    };
    if program.kernels[..route].iter().enumerate().any(|(i, k)| i != found && is_read(k)) {
        return;
    }
    let Body::Quantise(quantise) = program.kernels.remove(found).body else { return };
    let route = if found < route { route - 1 } else { route };
    if let Body::Rows(rows) = &mut program.kernels[route].body {
        rows.quantise = Some(quantise);
    }
}
