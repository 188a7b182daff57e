//! Lets the router's kernel, which reads each token's row anyway, round it to codes: a launch less for each format and scale
//! in which products ask for the rows.

use moec_ir::tile::{Body, Kernel, Program, Quantise, Role};

/// Joins every quantisation of given rows to the row program that has as many. Numeric class: exact.
pub fn quantise_in_route(program: &mut Program) {
    while let Some((found, route, quantise)) = find(program) {
        program.kernels.remove(found);
        let route = if found < route { route - 1 } else { route };
        if let Body::Rows(rows) = &mut program.kernels[route].body {
            rows.quantise.push(quantise);
        }
    }
}

/// A quantisation and the row program that takes it.
fn find(program: &Program) -> Option<(usize, usize, Quantise)> {
    let route = program.kernels.iter().position(|k| matches!(k.body, Body::Rows(_)))?;
    let Body::Rows(rows) = &program.kernels[route].body else { return None };
    let (found, quantise) = program.kernels.iter().enumerate().find_map(|(i, k)| {
        let Body::Quantise(q) = &k.body else { return None };
        // Nothing makes the rows, so that they may be read at any time.
        let given = matches!(program.buffer(q.x).role, Role::Input(_));
        (given && program.buffer(q.out).rows == rows.rows && q.until == rows.until).then(|| (i, q.clone()))
    })?;
    // Whoever reads the codes must come after the router, too.
    let made = program.kernels[found].body.operands();
    let is_read =
        |k: &Kernel| k.body.operands().iter().any(|(b, _)| made.iter().any(|(m, written)| *written && m == b));
    let read_before = program.kernels[..route].iter().enumerate().any(|(i, k)| i != found && is_read(k));
    (!read_before).then_some((found, route, quantise))
}
