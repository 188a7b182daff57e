//! `tcgen05.mma`, dense, of all kinds, for one CTA or a pair, and `.ws`.

use super::super::fault;
use super::super::state::{Rect, report_fault, track_async};
use super::{check_group, cta_group, group_ctas, is_address, pipe, tmem_address, tmem_value};
use crate::ast::Instruction;
use crate::exec::context::AsyncCx;
use crate::exec::error::CompileError;
use crate::exec::findings::Check;
use crate::exec::lower::{Lower, Ty};
use crate::exec::program::{AddressSrc, Custom, Flow, Src};
use crate::exec::queue::Step;
use crate::exec::race::AccessKind;
use crate::tensor::elem::{decode_word, per_word};
use crate::tensor::idesc::{Idesc, Kind};
use crate::tensor::operand::{OperandShape, Order, fetch};
use crate::tensor::smem_desc::SmemDesc;
use crate::tensor::tmem::{TmemFault, split_address};
use crate::tensor::umma::{Form, Scales, scale_cell};

enum OperandA {
    Shared(Src),
    Tensor(AddressSrc),
}

/// Where A lies, with values.
enum MatrixA {
    Shared(SmemDesc),
    Tensor(u32),
}

/// Everything that one issued instruction needs.
struct Issued {
    form: Form,
    d: u32,
    a: MatrixA,
    b: SmemDesc,
    /// Addresses of the scale factors of A and B.
    scales: Option<(u32, u32)>,
    accumulate: bool,
    scale_d: u32,
    /// One bit a lane, for each CTA: the lane of D is not updated.
    disabled: [u128; 2],
    ctas: std::ops::Range<usize>,
}

fn scale_vec(l: &Lower<'_>, i: &Instruction, kind: Kind) -> Result<usize, CompileError> {
    let word = i.modifiers.iter().find(|m| m.starts_with("scale_vec::") || matches!(m.as_str(), "block16" | "block32"));
    match (kind, word.map(String::as_str)) {
        (Kind::Mxf8f6f4, None | Some("scale_vec::1X" | "block32")) => Ok(1),
        (Kind::Mxf4, None) => Ok(2),
        (Kind::Mxf4 | Kind::Mxf4nvf4, Some("scale_vec::2X" | "block32")) => Ok(2),
        (Kind::Mxf4nvf4, Some("scale_vec::4X" | "block16")) => Ok(4),
        (_, word) => Err(l.invalid(format!("kind::{} with scale vector {word:?}", kind.name()))),
    }
}

pub(super) fn lower(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    if i.has("sp") {
        return Err(l.unsupported("sparse `tcgen05.mma.sp`"));
    }
    if i.modifiers.iter().any(|m| m == "ashift") {
        return Err(l.unsupported("`tcgen05.mma` with `.ashift`"));
    }
    let group = cta_group(l, i)?;
    let ws = i.has("ws");
    let Some(kind) = i.modifiers.iter().find_map(|m| Kind::from_ptx(m.strip_prefix("kind::")?)) else {
        return Err(l.invalid("tcgen05.mma without a known `.kind`"));
    };
    let block_scale = i.has("block_scale");
    if block_scale != kind.block_scaled() {
        return Err(l.invalid(format!("kind::{} and `.block_scale` do not go together", kind.name())));
    }
    let vec = if block_scale { scale_vec(l, i, kind)? } else { 0 };
    let [d, a, b, idesc, rest @ ..] = i.operands.as_slice() else {
        return Err(l.invalid(format!("`{}` has {} operands", i.full_name(), i.operands.len())));
    };
    let d = tmem_address(l, d)?;
    let a = if is_address(a) { OperandA::Tensor(tmem_address(l, a)?) } else { OperandA::Shared(l.src(a, Ty::B(64))?) };
    let b = l.src(b, Ty::B(64))?;
    let idesc = l.src(idesc, Ty::B(32))?;
    let mut rest = rest.iter();
    let scales = if block_scale {
        match (rest.next(), rest.next()) {
            (Some(sa), Some(sb)) => Some((tmem_address(l, sa)?, tmem_address(l, sb)?)),
            _ => return Err(l.invalid("the scale factor addresses are missing")),
        }
    } else {
        None
    };
    let mut next = rest.next();
    let mut disabled = Vec::new();
    if let Some(list @ crate::ast::Operand::Vector(_)) = next {
        disabled = super::super::mma::sources(l, list, 32)?;
        if disabled.len() != 4 * group || ws || block_scale {
            return Err(l.invalid(format!("a mask of {} registers for disabled lanes", disabled.len())));
        }
        next = rest.next();
    }
    let enable = match next {
        Some(p) => l.pred_src(p)?,
        None => return Err(l.invalid("the enable-input-d predicate is missing")),
    };
    let extra = rest.next();
    let mut scale_d = 0;
    let mut zero_mask = None;
    if let Some(o) = extra {
        if ws {
            zero_mask = Some(l.src(o, Ty::B(64))?);
        } else {
            match l.immediate(o) {
                Some(v @ 0..=15) if matches!(kind, Kind::F16 | Kind::Tf32) => scale_d = v as u32,
                _ => return Err(l.invalid("scale-input-d must be a number from 0 to 15, with kind::f16 or kind::tf32")),
            }
        }
    }
    if rest.next().is_some() {
        return Err(l.invalid(format!("`{}` has too many operands", i.full_name())));
    }
    if group == 2 {
        l.uses_cluster();
    }
    let name = format!("tcgen05.mma.cta_group::{group}.kind::{}", kind.name());
    Ok(Box::new(move |cx, mask| {
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            check_group(&mut cx.m, group, lane as u32);
            let one = 1 << lane;
            cx.require(d.base, one, "the address of D");
            cx.require(b, one, "the matrix descriptor of B");
            cx.require(idesc, one, "the instruction descriptor");
            let decoded = Idesc::decode(cx.lanes(idesc)[lane] as u32, kind).map_err(|e| fault(&cx.m, &e))?;
            let form = Form { kind, idesc: decoded, cta_group: group, ws, scale_vec: vec };
            form.check().map_err(|e| fault(&cx.m, &e))?;
            let matrix_a = match &a {
                OperandA::Shared(s) => {
                    cx.require(*s, one, "the matrix descriptor of A");
                    MatrixA::Shared(SmemDesc::decode_sm100(cx.lanes(*s)[lane]).map_err(|e| fault(&cx.m, &e))?)
                }
                OperandA::Tensor(address) => {
                    cx.require(address.base, one, "the address of A");
                    form.check_tmem_a().map_err(|e| fault(&cx.m, &e))?;
                    MatrixA::Tensor(tmem_value(cx, *address, lane))
                }
            };
            if let Some(zero) = zero_mask
                && cx.lanes(zero)[lane] >> 39 & 1 == 1
            {
                return Err(cx
                    .m
                    .fault("a zero-column mask of tcgen05.mma.ws is not supported by the emulator".to_owned()));
            }
            let mut off = [0u128; 2];
            for (r, src) in disabled.iter().enumerate() {
                off[r / 4] |= u128::from(cx.lanes(*src)[lane] as u32) << (32 * (r % 4));
            }
            let issued = Issued {
                form,
                d: tmem_value(cx, d, lane),
                a: matrix_a,
                b: SmemDesc::decode_sm100(cx.lanes(b)[lane]).map_err(|e| fault(&cx.m, &e))?,
                scales: scales.map(|(sa, sb)| (tmem_value(cx, sa, lane), tmem_value(cx, sb, lane))),
                accumulate: cx.pred(enable) & one != 0,
                scale_d,
                disabled: off,
                ctas: group_ctas(&cx.m, group),
            };
            if issued.ctas.len() != group {
                return Err(cx.m.fault("tcgen05.mma.cta_group::2 in a CTA without a peer".to_owned()));
            }
            let flops = form.flops();
            if cx.m.launch.options.counters {
                cx.m.worker.counters.tensor_op(&format!("{name}{}", layout(&issued)), flops);
            } else {
                cx.m.worker.counters.tensor_op(&name, flops);
            }
            let (stream, actor) = pipe(&cx.m, group);
            cx.enqueue(
                "tcgen05.mma",
                stream,
                actor,
                lane as u32,
                Box::new(move |cx| {
                    execute(cx, &issued).map_err(|e| fault(&cx.m, &e))?;
                    Ok(Step::Done)
                }),
            );
        }
        Ok(Flow::Next)
    }))
}

/// What the descriptors of a product say of its operands, for counters: types, rows, places, major axes, swizzles, scales.
fn layout(op: &Issued) -> String {
    let d = &op.form.idesc;
    let operand = |elem, place: &str| format!("{elem:?} in {place}").to_lowercase();
    let shared = |major, s: &SmemDesc| format!("shared, {major:?}-major, swizzle {:?}", s.swizzle);
    let a = match &op.a {
        MatrixA::Shared(s) => shared(d.a_major, s),
        MatrixA::Tensor(_) => "tensor memory".to_owned(),
    };
    let scales = match &op.scales {
        Some(_) => format!(" | {} scales of {:?} a step", op.form.scale_vec, d.scale).to_lowercase(),
        None => String::new(),
    };
    format!(" | m {} | {} | {}{scales}", d.m, operand(d.a, &a), operand(d.b, &shared(d.b_major, &op.b)))
}

fn execute(cx: &mut AsyncCx<'_>, op: &Issued) -> Result<(), crate::tensor::TensorError> {
    let form = &op.form;
    let (m, n, k) = (form.idesc.m, form.idesc.n, form.k());
    let mut a = vec![0f32; m * k];
    let mut b = vec![0f32; k * n];
    let rows = form.rows_per_cta();
    let columns = form.columns_per_cta();
    let mut bad_rows = vec![false; m];
    let mut bad_columns = vec![false; n];
    for (index, rank) in op.ctas.clone().enumerate() {
        let base = (rank as u64) << 24;
        let part = &mut a[index * rows * k..(index + 1) * rows * k];
        match &op.a {
            MatrixA::Shared(desc) => {
                let elem = form.idesc.a;
                let shape = OperandShape {
                    lines: rows,
                    k,
                    elem,
                    packing: form.kind.smem_packing(elem),
                    major: form.idesc.a_major,
                };
                fetch(desc, &shape, Order::LineByK, part, &mut bad_rows[index * rows..(index + 1) * rows], |at| {
                    cx.read_unit(base | u64::from(at))
                });
            }
            MatrixA::Tensor(address) => {
                if !tensor_a(cx, form, rank, *address, part, &mut bad_rows[index * rows..(index + 1) * rows]) {
                    return Ok(());
                }
            }
        }
        let elem = form.idesc.b;
        let shape =
            OperandShape { lines: columns, k, elem, packing: form.kind.smem_packing(elem), major: form.idesc.b_major };
        let order = Order::KByLine { n_total: n, first: index * columns };
        let bad = &mut bad_columns[index * columns..(index + 1) * columns];
        fetch(&op.b, &shape, order, &mut b, bad, |at| cx.read_unit(base | u64::from(at)));
    }
    let scales = match op.scales {
        Some((sa, sb)) => match scale_factors(cx, op, sa, sb) {
            Some(s) => Some(s),
            None => return Ok(()),
        },
        None => None,
    };
    let mut partial = vec![0f32; m * n];
    form.multiply(&mut a, &b, scales.as_ref(), &mut partial)?;
    accumulate(cx, op, &partial, &bad_rows, &bad_columns);
    Ok(())
}

/// A from tensor memory, in the lanes of D's rows. False when the cells do not exist.
fn tensor_a(cx: &mut AsyncCx<'_>, form: &Form, rank: usize, address: u32, out: &mut [f32], bad: &mut [bool]) -> bool {
    let (lane0, column0) = split_address(address);
    let k = form.k();
    let packing = form.kind.tmem_packing(form.idesc.a);
    let e = per_word(form.idesc.a, packing);
    let issuer = Some(cx.lane);
    for (row, bad) in bad.iter_mut().enumerate() {
        let lane = lane0 + form.lane_of_row(row);
        let tmem = cx.m.cluster.ctas[rank].tensor.tmem();
        if let Err(f) = tmem.check(lane, column0, k / e) {
            return report_fault(&mut cx.m, issuer, &f);
        }
        *bad |= tmem.first_unwritten(lane, column0, k / e).is_some();
        for (word, values) in tmem.row(lane, column0, k / e).iter().zip(out[row * k..].chunks_mut(e)) {
            decode_word(*word, form.idesc.a, packing, values);
        }
    }
    for rect in rects(form, lane0, column0, k / e) {
        track_async(cx, rank, rect, AccessKind::Read);
    }
    true
}

/// The lanes that rows of a CTA's part of D or A take, as rectangles.
fn rects(form: &Form, lane0: usize, column: usize, columns: usize) -> Vec<Rect> {
    if form.half_lanes() {
        (0..4).map(|q| Rect { lane: lane0 + 32 * q, lanes: 16, column, columns }).collect()
    } else {
        vec![Rect { lane: lane0, lanes: 128, column, columns }]
    }
}

/// Scale factors of all CTAs; `None` when the cells do not exist.
fn scale_factors(cx: &mut AsyncCx<'_>, op: &Issued, sa: u32, sb: u32) -> Option<Scales> {
    let form = &op.form;
    let mut out = Scales::default();
    for (index, rank) in op.ctas.clone().enumerate() {
        let a = read_scales(cx, op, rank, sa, form.rows_per_cta(), form.idesc.sfa_id)?;
        out.a.extend(a);
        out.b[index] = read_scales(cx, op, rank, sb, form.idesc.n, form.idesc.sfb_id)?;
    }
    Some(out)
}

/// The scale factors of `lines` rows or columns, from byte `first` of each cell on.
///
/// The two highest bits of the address are not part of it: CUTLASS's kernels leave there the byte that the descriptor names.
fn read_scales(
    cx: &mut AsyncCx<'_>,
    op: &Issued,
    rank: usize,
    address: u32,
    lines: usize,
    first: usize,
) -> Option<Vec<f32>> {
    let (lane0, column0) = split_address(address & 0x3fff_ffff);
    let issuer = Some(cx.lane);
    let byte = (address >> 30) as usize;
    if byte != 0 && byte != first {
        cx.m.report(Check::TensorMemory, issuer, || {
            format!("the address of the scale factors names byte {byte} of a column, the instruction descriptor byte {first}")
        });
    }
    let vec = op.form.scale_vec;
    let mut out = Vec::with_capacity(lines * vec);
    let mut hole = None;
    let mut differs = None;
    for line in 0..lines {
        let (lane, column) = scale_cell(line);
        let column = column0 + column;
        let tmem = cx.m.cluster.ctas[rank].tensor.tmem();
        for replica in 0..4 {
            let lane = lane0 + lane + 32 * replica;
            if let Err(f) = tmem.check(lane, column, 1) {
                report_fault(&mut cx.m, issuer, &f);
                return None;
            }
            if tmem.first_unwritten(lane, column, 1).is_some() {
                hole = hole.or(Some(TmemFault::Unwritten { lane, column }));
            }
        }
        let word = tmem.row(lane0 + lane, column, 1)[0];
        // Only the bytes that this instruction uses must agree.
        let used = |w: u32| w >> (8 * first) & if vec == 4 { u32::MAX } else { (1 << (8 * vec)) - 1 };
        if (1..4).any(|r| used(tmem.row(lane0 + lane + 32 * r, column, 1)[0]) != used(word)) {
            differs = differs.or(Some((lane, column)));
        }
        for j in 0..vec {
            out.push(op.form.idesc.scale.decode((word >> (8 * (first + j))) as u8));
        }
    }
    if let Some(f) = hole {
        report_fault(&mut cx.m, issuer, &f);
    }
    if let Some((lane, column)) = differs {
        cx.m.report(Check::TensorMemory, issuer, || {
            format!("the scale factors at lane {lane}, column {column} are not the same in the four groups of 32 lanes")
        });
    }
    let rect = Rect { lane: lane0, lanes: 128, column: column0, columns: lines.div_ceil(32) };
    track_async(cx, rank, rect, AccessKind::Read);
    Some(out)
}

/// Adds the product to D. Cells that depend on unwritten memory, or on unwritten cells of D, stay unwritten.
fn accumulate(cx: &mut AsyncCx<'_>, op: &Issued, partial: &[f32], bad_rows: &[bool], bad_columns: &[bool]) {
    let form = &op.form;
    let n = form.idesc.n;
    let (lane0, column0) = split_address(op.d);
    let issuer = Some(cx.lane);
    let allowed = if form.half_lanes() { matches!(lane0, 0 | 16) } else { lane0 == 0 };
    if !allowed {
        cx.m.report(Check::Alignment, issuer, || {
            format!("D may not start at tensor memory lane {lane0} with M = {}", form.idesc.m)
        });
        return;
    }
    for rank in op.ctas.clone() {
        if op.accumulate {
            for rect in rects(form, lane0, column0, form.d_columns()) {
                track_async(cx, rank, rect, AccessKind::Read);
            }
        }
        for rect in rects(form, lane0, column0, form.d_columns()) {
            track_async(cx, rank, rect, AccessKind::Write);
        }
    }
    let any_column = bad_columns.iter().any(|b| *b);
    for row in 0..form.idesc.m {
        for run in form.d_runs(row) {
            let lane = lane0 + run.lane;
            if op.disabled[run.cta] >> lane & 1 == 1 {
                continue;
            }
            let tmem = cx.m.cluster.ctas[op.ctas.start + run.cta].tensor.tmem();
            let column = column0 + run.column;
            if let Err(f) = tmem.check(lane, column, run.count) {
                report_fault(&mut cx.m, issuer, &f);
                return;
            }
            let mut holes = Vec::new();
            if op.accumulate && tmem.first_unwritten(lane, column, run.count).is_some() {
                holes.extend((column..column + run.count).filter(|c| tmem.first_unwritten(lane, *c, 1).is_some()));
            }
            let sums = &partial[row * n + run.first..][..run.count];
            form.accumulate(tmem.row_mut(lane, column, run.count), sums, op.accumulate, op.scale_d);
            if bad_rows[row] {
                tmem.forget(lane, column, run.count);
            } else if any_column {
                holes.extend((0..run.count).filter(|c| bad_columns[run.first + c]).map(|c| column + c));
            }
            for hole in holes {
                tmem.forget(lane, hole, 1);
            }
        }
    }
}
