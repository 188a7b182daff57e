//! Puts a dense product beside a grouped one that runs at the same time: the shared expert beside the routed ones.
//!
//! Both become segments of one launch, so that their tiles fill the machine together. Legal when nothing between the two
//! kernels makes what the moved one reads or reads what it makes.

use moec_ir::tile::{Body, BufferId, Groups, Kernel, Panel, Program, ScaledProduct, Segment};

/// Merges every dense product into a grouped one where that is legal. Numeric class: exact.
pub fn merge_launches(program: &mut Program) {
    quantise_early(program);
    while let Some((dense, grouped)) = find(program) {
        let Body::Contract(moved) = program.kernels[dense].body.clone() else { return };
        if let Body::Contract(into) = &mut program.kernels[grouped].body {
            into.segments.extend(moved.segments);
        }
        program.kernels.remove(dense);
        quantise_early(program);
    }
}

/// Moves every kernel that rounds rows to codes to right behind the products that make the rows, or the choice of experts:
/// what stands between two products keeps them apart.
fn quantise_early(program: &mut Program) {
    for i in 1..program.kernels.len() {
        let mut at = i;
        while at > 0 && matches!(program.kernels[at].body, Body::Quantise(_)) {
            let before = &program.kernels[at - 1];
            let stays = matches!(before.body, Body::Rows(_) | Body::Plan(_) | Body::Quantise(_));
            if stays || !may_pass(&program.kernels[at], std::slice::from_ref(before)) {
                break;
            }
            program.kernels.swap(at, at - 1);
            at -= 1;
        }
    }
}

fn find(program: &Program) -> Option<(usize, usize)> {
    let is = |k: &Kernel, want_grouped: bool| match &k.body {
        Body::Contract(c) => c.segments.iter().any(|s| matches!(s.groups, Groups::ByExpert { .. })) == want_grouped,
        Body::Rows(_) | Body::Plan(_) | Body::Map(_) | Body::Quantise(_) | Body::Combine(_) => false,
    };
    let kernels = &program.kernels;
    for (d, dense) in kernels.iter().enumerate().filter(|(_, k)| is(k, false)) {
        for (g, _) in kernels.iter().enumerate().filter(|(_, k)| is(k, true)) {
            let between = if d < g { &kernels[d + 1..=g] } else { &kernels[g..d] };
            if may_pass(dense, between) && same_types(program, d, g) {
                return Some((d, g));
            }
        }
    }
    None
}

/// Whether `kernel` may change places with all of `others`: no buffer that one of them writes is touched by the other.
fn may_pass(kernel: &Kernel, others: &[Kernel]) -> bool {
    let mine = kernel.body.operands();
    let conflicts = |(theirs, written): (BufferId, bool)| mine.iter().any(|&(b, w)| b == theirs && (w || written));
    others.iter().all(|other| !other.body.operands().into_iter().any(conflicts))
}

/// One launch has one kind of multiply: element types of activations and weights have to agree; codes that are multiplied
/// with codes, too, for an instruction takes two types of them.
fn same_types(program: &Program, d: usize, g: usize) -> bool {
    let types = |k: usize| match &program.kernels[k].body {
        Body::Contract(c) => {
            let of = |s: &Segment| {
                let codes = |p: &Panel| p.quant.as_ref().map(|q| q.format.code);
                let rows = s.a_quant.as_ref().map(|q| (q.q, s.panels.iter().map(codes).collect::<Vec<_>>()));
                (
                    program.buffer(s.a).dtype,
                    rows,
                    c.scaled_product(ScaledProduct::of),
                    s.panels[0].dtype(program),
                    s.panels.len(),
                )
            };
            c.segments.first().map(of)
        }
        Body::Rows(_) | Body::Plan(_) | Body::Map(_) | Body::Quantise(_) | Body::Combine(_) => None,
    };
    types(d) == types(g)
}
