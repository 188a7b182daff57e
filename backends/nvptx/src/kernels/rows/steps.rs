//! The steps of a row program other than the router, one warp to a row.

use super::super::{Kernel, View};
use super::{Warp, choice};
use crate::builder::{F32, I32};
use crate::parts::math::{evaluate, exp, pow};
use moec_ir::DType;
use moec_ir::graph::{Reduce, RenormRule};
use moec_ir::tile::{RowId, RowOpKind};

/// Weights up to which a sum is made in index order by every lane for itself.
const MOST_SERIAL: u32 = 64;

/// Runs step `i` for row `row`. The operands are in shared memory, seen by all lanes.
pub fn step<'c>(k: &Kernel<'c, '_>, warp: &Warp<'_, 'c>, i: usize, row: I32<'c>) {
    let c = warp.c;
    let op = &warp.ops[i];
    let out = warp.row(RowId(i as u32));
    let keep = |col: I32<'c>, value: F32<'c>| out.set_float(col, c.round(op.dtype, value));
    match &op.kind {
        // Done before, by the whole block.
        RowOpKind::Linear { .. } => {}
        RowOpKind::Load(b) => load(warp, &k.view(*b), row, &out),
        RowOpKind::LoadFirst(b) => load(warp, &k.view(*b), c.i32(0), &out),
        RowOpKind::Map { expr, args } => {
            let args: Vec<_> = args.iter().map(|&a| warp.row(a)).collect();
            warp.for_columns(out.width, |col| {
                let read = |a: &super::Values<'c>| a.float(if a.width == 1 { c.i32(0) } else { col });
                keep(col, evaluate(c, expr, &args.iter().map(read).collect::<Vec<_>>()));
            });
        }
        RowOpKind::Softmax(x) => {
            let x = warp.row(*x);
            let most = c.var(c.f32(f32::NEG_INFINITY));
            warp.for_columns(x.width, |col| most.set(most.get().maximum(x.float(col))));
            let most = c.warp_maximum(most.get());
            let sum = c.var(c.f32(0.0));
            warp.for_columns(x.width, |col| {
                let e = exp(c, x.float(col) - most);
                out.set_float(col, e);
                sum.set(sum.get() + e);
            });
            let sum = c.warp_sum(sum.get());
            // Each lane reads what it wrote itself.
            warp.for_columns(x.width, |col| keep(col, out.float(col) / sum));
        }
        RowOpKind::RmsNorm { x, eps } => {
            let x = warp.row(*x);
            let sum = c.var(c.f32(0.0));
            warp.for_columns(x.width, |col| {
                let v = x.float(col);
                sum.set(v.fma(v, sum.get()));
            });
            let mean = c.warp_sum(sum.get()) / x.width as f32;
            let by = (mean + eps.0).sqrt();
            warp.for_columns(x.width, |col| keep(col, x.float(col) / by));
        }
        RowOpKind::GroupLimit { x, n_groups, keep, score, fill } => {
            let rule = choice::GroupRule { n_groups: *n_groups, keep: *keep, score: *score, fill: *fill };
            choice::group_limit(warp, &warp.row(*x), &warp.scratch(i), &rule, op.dtype, &out);
        }
        RowOpKind::TopK(x) => choice::top_k(warp, &warp.row(*x), &out),
        RowOpKind::Gather { x, ids } => {
            let (x, ids) = (warp.row(*x), warp.row(*ids));
            warp.for_columns(out.width, |col| {
                let id = ids.int(col);
                let exists = id.lt(x.width);
                let value = x.float(c.select(exists, id, c.i32(0)));
                keep(col, c.select(exists, value, c.f32(0.0)));
            });
        }
        RowOpKind::Reduce { x, kind } => {
            let x = warp.row(*x);
            let value = match kind {
                Reduce::Max => {
                    let most = c.var(c.f32(f32::NEG_INFINITY));
                    warp.for_columns(x.width, |col| most.set(most.get().maximum(x.float(col))));
                    c.warp_maximum(most.get())
                }
                Reduce::Sum => row_sum(warp, &x, &|v| v),
            };
            warp.for_columns(1, |col| keep(col, value));
        }
        RowOpKind::MaskChosen { x, ids } => {
            let (x, ids) = (warp.row(*x), warp.row(*ids));
            warp.for_columns(out.width, |col| keep(col, x.float(col)));
            c.warp_barrier();
            warp.for_columns(ids.width, |i| {
                let id = ids.int(i);
                c.when(id.lt(out.width), || out.set_float(id, c.f32(f32::NEG_INFINITY)));
            });
        }
        RowOpKind::Join { a, b } => {
            let (a, b) = (warp.row(*a), warp.row(*b));
            warp.for_columns(a.width, |col| out.set_int(col, a.int(col)));
            warp.for_columns(b.width, |col| out.set_int(col + a.width, b.int(col)));
        }
        RowOpKind::Lookup { table, index } => {
            let n_rows = k.length(k.program.buffer(*table).rows, k.n_tokens());
            let (table, index) = (k.view(*table), k.view(*index));
            // The index is an i64: both halves decide whether it lies in the table.
            let at = index.base.plus((row << 3).wide());
            let (low, high) = (c.load_i32(at), c.load_i32(at.plus(4u64)));
            let inside = high.eq(0).and(low.lt(n_rows));
            let safe = c.select(inside, low, c.i32(0));
            warp.for_columns(out.width, |col| {
                let id = c.load_i32(table.at(safe, col));
                out.set_int(col, c.select(inside, id, c.i32(u32::MAX)));
            });
        }
        RowOpKind::SumOutside { x, ids, n_experts } => {
            let (x, ids) = (warp.row(*x), warp.row(*ids));
            let sum = c.var(c.f32(0.0));
            // Few slots, and their order counts: every lane adds them all.
            c.range(0, x.width, 1, |slot| {
                let more = sum.get() + x.float(slot);
                sum.set(c.select(ids.int(slot).ge(*n_experts), more, sum.get()));
            });
            warp.for_columns(1, |col| keep(col, sum.get()));
        }
        RowOpKind::LocalIds { ids, first, count } => {
            let ids = warp.row(*ids);
            warp.for_columns(out.width, |slot| {
                // Ids below `first` wrap around to large ones.
                let local = ids.int(slot) - *first;
                out.set_int(slot, c.select(local.lt(*count), local, c.i32(u32::MAX)));
            });
        }
        RowOpKind::Renormalise { x, rule } => {
            let x = warp.row(*x);
            let sum = |f: &dyn Fn(F32<'c>) -> F32<'c>| row_sum(warp, &x, f);
            let by = match *rule {
                RenormRule::Sum { eps } => sum(&|v| v) + eps.0,
                RenormRule::SumAtLeast { min } => sum(&|v| v).maximum(min.0),
                RenormRule::PNorm { p } if p.0 == 1.0 => sum(&|v| v.abs()),
                RenormRule::PNorm { p } if p.0 == 2.0 => sum(&|v| v * v).sqrt(),
                RenormRule::PNorm { p } => pow(c, sum(&|v| pow(c, v.abs(), p.0)), 1.0 / p.0),
            };
            warp.for_columns(out.width, |col| keep(col, x.float(col) / by));
        }
    }
}

fn load<'c>(warp: &Warp<'_, 'c>, from: &View<'c>, row: I32<'c>, out: &super::Values<'c>) {
    let c = warp.c;
    warp.for_columns(out.width, |col| {
        let at = from.at(row, col);
        if out.is_int && from.dtype == DType::I64 {
            let (low, high) = (c.load_i32(at), c.load_i32(at.plus(4u64)));
            // What does not fit in 32 bits is no expert; it must not become one by losing its upper half.
            let extended = c.select(low.is_negative(), c.i32(u32::MAX), c.i32(0));
            out.set_int(col, c.select(high.eq(extended), low, c.i32(u32::MAX)));
        } else if out.is_int {
            out.set_int(col, c.load_i32(at));
        } else {
            out.set_float(col, c.load_elements(at, from.dtype, 1)[0]);
        }
    });
}

/// `Σ f(x)` in every lane: in index order for a short row, in lanes' partial sums for a long one.
fn row_sum<'c>(warp: &Warp<'_, 'c>, x: &super::Values<'c>, f: &dyn Fn(F32<'c>) -> F32<'c>) -> F32<'c> {
    let c = warp.c;
    let sum = c.var(c.f32(0.0));
    if x.width <= MOST_SERIAL {
        c.range(0, x.width, 1, |col| sum.set(sum.get() + f(x.float(col))));
        return sum.get();
    }
    warp.for_columns(x.width, |col| sum.set(sum.get() + f(x.float(col))));
    c.warp_sum(sum.get())
}
