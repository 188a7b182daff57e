//! `wgmma`: asynchronous matrix products of a warpgroup.
//!
//! Each warp of the group computes its own 16 rows at issue; the group completes when the scheduler lets it, and until then its
//! reads of shared memory are ordered before nothing, so that an early overwrite is a race. Between issue and `wgmma.wait_group`
//! the accumulators count as unwritten, so that a use before the wait is found. Copies of accumulators before the wait
//! (`mov`, unpacking), which compilers emit and ptxas turns into renaming, get the right values, and the mark goes with the wait.

use std::collections::BTreeSet;

use super::mma::{destinations, shape, sources};
use super::state::Accumulator;
use super::{at_issue, fault, whole_warp};
use crate::ast::Instruction;
use crate::exec::cluster::Cta;
use crate::exec::context::{AsyncCx, Cx};
use crate::exec::error::{CompileError, ExecError};
use crate::exec::findings::Check;
use crate::exec::lower::{Lower, Ty};
use crate::exec::program::{Custom, Flow, Lanes, PredSrc, Slot, Src, Wait};
use crate::exec::queue::{Step, Stream};
use crate::exec::warp::GroupKind;
use crate::numeric::half;
use crate::tensor::elem::{Elem, Packing, decode_word, per_word};
use crate::tensor::matmul;
use crate::tensor::mma::Acc;
use crate::tensor::operand::{OperandShape, Order, fetch};
use crate::tensor::smem_desc::{Major, SmemDesc};

/// A decoded form.
#[derive(Clone, Debug)]
struct Form {
    n: usize,
    k: usize,
    a: Elem,
    b: Elem,
    d: Acc,
    negate: bool,
    a_major: Major,
    b_major: Major,
    satfinite: bool,
    name: String,
}

#[derive(Clone, Debug)]
enum OperandA {
    Descriptor(Src),
    Registers(Vec<Src>),
}

fn parse(l: &Lower<'_>, i: &Instruction) -> Result<Form, CompileError> {
    if i.modifiers.iter().any(|m| m.starts_with("sp")) {
        return Err(l.unsupported("sparse wgmma (`wgmma.mma_async.sp`)"));
    }
    let Some((m, n, k)) = i.modifiers.iter().find_map(|w| shape(w)) else {
        return Err(l.invalid("wgmma without a shape"));
    };
    let types: Vec<&str> = i
        .modifiers
        .iter()
        .map(String::as_str)
        .filter(|w| Elem::from_ptx(w).is_some() || matches!(*w, "f32" | "s32"))
        .collect();
    let [d, a, b] = types[..] else { return Err(l.invalid(format!("wgmma with types {types:?}"))) };
    let d = match d {
        "f16" => Acc::F16,
        "f32" => Acc::F32,
        "s32" => Acc::S32,
        other => return Err(l.invalid(format!("wgmma with D of type {other}"))),
    };
    let (Some(a), Some(b)) = (Elem::from_ptx(a), Elem::from_ptx(b)) else {
        return Err(l.invalid(format!("wgmma with types {types:?}")));
    };
    let fp8 = |e: Elem| matches!(e, Elem::E4m3 | Elem::E5m2);
    let byte = |e: Elem| matches!(e, Elem::S8 | Elem::U8);
    let ok = match (a, k) {
        (Elem::F16, 16) => b == Elem::F16 && d != Acc::S32,
        (Elem::Bf16, 16) => b == Elem::Bf16 && d == Acc::F32,
        (Elem::Tf32, 8) => b == Elem::Tf32 && d == Acc::F32,
        (a, 32) if fp8(a) => fp8(b) && d != Acc::S32,
        (a, 32) if byte(a) => byte(b) && d == Acc::S32,
        (Elem::B1, _) => return Err(l.unsupported("wgmma with single-bit operands")),
        _ => false,
    };
    // Integers: 8, 16, 24, 32, then steps of 16.
    let n_ok = (8..=256).contains(&n) && n.is_multiple_of(8) && (d != Acc::S32 || n <= 32 || n.is_multiple_of(16));
    if m != 64 || !ok || !n_ok {
        return Err(l.invalid(format!("wgmma has no m{m}n{n}k{k} with {types:?}")));
    }
    let name = format!("wgmma.m64n{n}k{k}.{a:?}.{b:?}").to_lowercase();
    Ok(Form { n, k, a, b, d, negate: false, a_major: Major::K, b_major: Major::K, satfinite: i.has("satfinite"), name })
}

pub(super) fn lower(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    match i.modifiers.first().map(String::as_str) {
        Some("fence") => Ok(Box::new(|cx, mask| {
            if let Some(flow) = whole_warp(cx, mask) {
                return Ok(flow);
            }
            cx.warp.tensor.fenced = true;
            cx.warp.tensor.accumulators.retain(|_, a| a.group > 0);
            Ok(Flow::Next)
        })),
        Some("commit_group") => Ok(Box::new(|cx, mask| {
            if let Some(flow) = whole_warp(cx, mask) {
                return Ok(flow);
            }
            cx.warp.groups(GroupKind::Wgmma).commit(mask);
            Ok(Flow::Next)
        })),
        Some("wait_group") => wait(l, i),
        Some("mma_async") => mma_async(l, i),
        _ => Err(l.unsupported(format!("instruction `{}`", i.full_name()))),
    }
}

fn wait(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let Some(allowed) = i.operands.first().and_then(|o| l.immediate(o)) else {
        return Err(l.invalid("wgmma.wait_group needs a number"));
    };
    let allowed = allowed.clamp(0, i128::from(u32::MAX)) as u32;
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        let last = {
            let committed = cx.warp.groups(GroupKind::Wgmma).list.iter().rev().filter(|g| g.lanes != 0);
            committed.map(|g| g.id).nth(allowed as usize)
        };
        if others_behind(cx) || !cx.groups_complete(GroupKind::Wgmma, mask, allowed, false) {
            return Ok(Flow::Block(Wait::Async("wgmma groups")));
        }
        cx.warp.tensor.fenced = false;
        if let Some(last) = last {
            release(cx, last);
        }
        Ok(Flow::Next)
    }))
}

/// The accumulators of all groups up to `last`, and copies of them, may be used.
fn release(cx: &mut Cx<'_>, last: u64) {
    let done: Vec<u32> =
        cx.warp.tensor.accumulators.iter().filter(|(_, a)| a.group > 0 && a.group <= last).map(|(s, _)| *s).collect();
    // Values that a copy of an accumulator, whole or half, may hold.
    let mut copies: [BTreeSet<u64>; 2] = Default::default();
    let mut overwritten = false;
    for slot in &done {
        overwritten |= cx.warp.poison_of(Slot(*slot).into()) != u32::MAX;
        let unwritten = cx.warp.tensor.accumulators.get(slot).map_or(0, |a| a.unwritten);
        cx.warp.set_poison(Slot(*slot), u32::MAX, unwritten);
        if unwritten != 0 {
            // Copies keep their mark as well.
            if let Some(a) = cx.warp.tensor.accumulators.get_mut(slot) {
                a.group = 0;
            }
            continue;
        }
        let lanes = *cx.warp.slot(Slot(*slot));
        for part in [lanes, lanes.map(|x| x & 0xffff), lanes.map(|x| x >> 16)] {
            copies[0].insert(part[0]);
            copies[1].insert(hash(&part));
        }
        if let Some(a) = cx.warp.tensor.accumulators.get_mut(slot) {
            a.group = 0;
        }
    }
    let in_flight = |slot: &u32| cx.warp.tensor.accumulators.get(slot).is_some_and(|a| a.group > 0);
    let copied: Vec<u32> = (0..cx.warp.poison.len() as u32)
        .filter(|s| cx.warp.poison[*s as usize] == u32::MAX && !in_flight(s))
        .filter(|s| copies[0].contains(&cx.warp.slot(Slot(*s))[0]) && copies[1].contains(&hash(cx.warp.slot(Slot(*s)))))
        .collect();
    for slot in copied {
        cx.warp.set_poison(Slot(slot), u32::MAX, 0);
    }
    if overwritten {
        cx.m.report(Check::Asynchronous, None, || {
            "an accumulator register was written between wgmma and wgmma.wait_group".to_owned()
        });
    }
}

fn hash(lanes: &Lanes) -> u64 {
    lanes.iter().fold(0x9e37_79b9_7f4a_7c15, |h, x| (h ^ x).wrapping_mul(0x0100_0000_01b3).rotate_left(17))
}

fn mma_async(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let mut form = parse(l, i)?;
    let [d_list, a_operand, b_operand, rest @ ..] = i.operands.as_slice() else {
        return Err(l.invalid(format!("`{}` needs D, A, B and scale-d", i.full_name())));
    };
    let d = destinations(l, d_list, 32)?;
    let expected = if form.d == Acc::F16 { form.n / 4 } else { form.n / 2 };
    if d.len() != expected {
        return Err(l.invalid(format!("D takes {expected} registers, has {}", d.len())));
    }
    let registers = matches!(a_operand, crate::ast::Operand::Vector(_));
    let a = if registers {
        let list = sources(l, a_operand, 32)?;
        if list.len() != 4 {
            return Err(l.invalid(format!("A takes 4 registers, has {}", list.len())));
        }
        OperandA::Registers(list)
    } else {
        OperandA::Descriptor(l.src(a_operand, Ty::B(64))?)
    };
    let b = l.src(b_operand, Ty::B(64))?;
    let Some((scale_d, immediates)) = rest.split_first() else {
        return Err(l.invalid("scale-d is missing"));
    };
    let scale_d = l.pred_src(scale_d)?;
    let values: Vec<i128> = immediates
        .iter()
        .map(|o| l.immediate(o).ok_or_else(|| l.invalid(format!("`{o}` must be a number"))))
        .collect::<Result<_, _>>()?;
    let sixteen = form.a.bits() == 16;
    let count = if form.d == Acc::S32 {
        0
    } else if !sixteen {
        2
    } else if registers {
        3
    } else {
        4
    };
    if values.len() != count {
        return Err(l.invalid(format!("{count} immediates expected after scale-d, {} given", values.len())));
    }
    if count > 0 {
        if values[..2].iter().any(|v| *v != 1 && *v != -1) {
            return Err(l.invalid("imm-scale-a and imm-scale-b must be 1 or -1"));
        }
        form.negate = values[0] != values[1];
        if values[2..].iter().any(|v| *v != 0 && *v != 1) {
            return Err(l.invalid("imm-trans-a and imm-trans-b must be 0 or 1"));
        }
        let major = |v: i128| if v == 0 { Major::K } else { Major::Mn };
        match values[2..] {
            [ta, tb] => {
                form.a_major = major(ta);
                form.b_major = major(tb);
            }
            [tb] => form.b_major = major(tb),
            _ => {}
        }
    }
    let flops = 2 * (16 * form.n * form.k) as u64;
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        if let Some(flow) = meet(cx) {
            return Ok(flow);
        }
        issue(cx, mask, &form, &d, &a, b, scale_d)?;
        cx.m.worker.counters.tensor_op(&form.name, flops);
        Ok(Flow::Next)
    }))
}

/// The four warps of a warpgroup execute each product together: none goes on before all have come to it.
///
/// This is what the machine does, not a synchronisation that PTX grants: it makes nothing known between the warps.
fn meet(cx: &mut Cx<'_>) -> Option<Flow> {
    let (cta, warp) = (cx.m.cta, cx.m.warp_index);
    let n_warps = cx.m.own().warps.len();
    let progress = &mut cx.m.own().tensor.wgmma;
    progress.resize(n_warps, (0, 0));
    let turn = progress[warp].1 + 1;
    if progress[warp].0 < turn {
        progress[warp].0 = turn;
        cx.m.cluster.wake();
    }
    let own = &cx.m.cluster.ctas[cta];
    let missing = group_of(warp, n_warps).any(|w| own.tensor.wgmma[w].0 < turn && alive(own, w));
    if missing {
        return Some(Flow::Block(Wait::Other("the other warps of its warpgroup to come to the same wgmma")));
    }
    cx.m.own().tensor.wgmma[warp].1 = turn;
    cx.m.cluster.wake();
    None
}

/// Whether another warp of the warpgroup has yet to issue a product that this warp has issued: no group is complete before.
fn others_behind(cx: &mut Cx<'_>) -> bool {
    let (cta, warp) = (cx.m.cta, cx.m.warp_index);
    let own = &cx.m.cluster.ctas[cta];
    let Some((_, issued)) = own.tensor.wgmma.get(warp) else { return false };
    group_of(warp, own.warps.len()).any(|w| own.tensor.wgmma[w].1 < *issued && alive(own, w))
}

fn group_of(warp: usize, n_warps: usize) -> std::ops::Range<usize> {
    warp / 4 * 4..(warp / 4 * 4 + 4).min(n_warps)
}

/// The warp that executes is not in its place; it is alive.
fn alive(cta: &Cta, warp: usize) -> bool {
    cta.warps[warp].as_ref().is_none_or(|w| w.live() != 0)
}

/// A of this warp's rows: as values, or where they lie in shared memory.
enum Rows {
    Memory(SmemDesc),
    /// With a flag for each row that holds unwritten registers.
    Values(Vec<f32>, [bool; 16]),
}

fn issue(
    cx: &mut Cx<'_>,
    mask: u32,
    form: &Form,
    d: &[Slot],
    a: &OperandA,
    b: Src,
    scale_d: PredSrc,
) -> Result<(), ExecError> {
    let accumulate = cx.pred(scale_d) & mask != 0;
    cx.require(b, mask, "the matrix descriptor of B");
    let b_desc = SmemDesc::decode_sm90(cx.uniform(b, mask)).map_err(|e| fault(&cx.m, &e))?;
    let rows = match a {
        OperandA::Descriptor(s) => {
            cx.require(*s, mask, "the matrix descriptor of A");
            Rows::Memory(SmemDesc::decode_sm90(cx.uniform(*s, mask)).map_err(|e| fault(&cx.m, &e))?)
        }
        OperandA::Registers(list) => {
            let mut unwritten = [false; 16];
            for (r, s) in list.iter().enumerate() {
                let poison = cx.poison(*s);
                for (g, flag) in unwritten[8 * (r & 1)..][..8].iter_mut().enumerate() {
                    *flag |= poison >> (4 * g) & 0xf != 0;
                }
            }
            let e = per_word(form.a, Packing::Dense);
            let mut matrix = vec![0f32; 16 * form.k];
            for (r, s) in list.iter().enumerate() {
                for (lane, word) in cx.lanes(*s).iter().enumerate() {
                    let (row, col) = (lane / 4 + 8 * (r & 1), 4 * e * (r >> 1) + e * (lane % 4));
                    decode_word(*word as u32, form.a, Packing::Dense, &mut matrix[row * form.k + col..][..e]);
                }
            }
            Rows::Values(matrix, unwritten)
        }
    };
    check_registers(cx, form, d, accumulate);
    let group = cx.join_group(GroupKind::Wgmma);
    let rank = cx.m.cta;
    let key = u64::from(cx.m.cluster.warp_actor(rank, cx.m.warp_index)) << 8 | 0x67;
    let actor = cx.m.cluster.proxy_actor(key);
    let lane = mask.trailing_zeros() & 31;
    let result = {
        let mut reads = at_issue(cx, actor, lane, "wgmma");
        product(&mut reads, form, rows, &b_desc)
    };
    store(cx, form, d, &result, accumulate, group);
    cx.enqueue(
        "wgmma",
        Stream::Ordered(key),
        actor,
        lane,
        Box::new(move |cx| {
            cx.group_read(GroupKind::Wgmma, group);
            cx.group_done(GroupKind::Wgmma, group);
            Ok(Step::Done)
        }),
    );
    Ok(())
}

/// Finds accumulators that nobody wrote, and register writes that no `wgmma.fence` orders before this instruction.
fn check_registers(cx: &mut Cx<'_>, form: &Form, d: &[Slot], accumulate: bool) {
    let tensor = &cx.warp.tensor;
    let in_flight = |slot: &Slot| tensor.accumulators.get(&slot.0).is_some_and(|a| a.group > 0);
    let unwritten = accumulate && d.iter().any(|s| !in_flight(s) && cx.warp.poison_of((*s).into()) != 0);
    let unfenced = !tensor.fenced
        && d.iter().any(|s| match tensor.accumulators.get(&s.0) {
            Some(a) => a.group == 0 && a.written != hash(cx.warp.slot(*s)),
            None => true,
        });
    if unwritten {
        cx.m.report(Check::Uninitialized, None, || {
            "the accumulator was never written and scale-d asks for it".to_owned()
        });
    }
    if unfenced {
        let name = &form.name;
        cx.m.report(Check::Asynchronous, None, || {
            format!("{name} uses registers that were accessed since the last wgmma without a wgmma.fence between")
        });
    }
}

/// The product of this warp's 16 rows of A with B, f32 `[16, n]`.
fn product(cx: &mut AsyncCx<'_>, form: &Form, rows: Rows, b_desc: &SmemDesc) -> Product {
    let (n, k) = (form.n, form.k);
    let base = (cx.m.cta as u64) << 24;
    let first_row = cx.m.warp_index % 4 * 16;
    let mut b = vec![0f32; n * k];
    let mut columns = vec![false; n];
    let shape = OperandShape { lines: n, k, elem: form.b, packing: Packing::Dense, major: form.b_major };
    let order = Order::KByLine { n_total: n, first: 0 };
    fetch(b_desc, &shape, order, &mut b, &mut columns, |address| cx.read_unit(base | u64::from(address)));
    let mut lines = vec![false; 16];
    let mut a = match rows {
        Rows::Values(matrix, unwritten) => {
            lines.copy_from_slice(&unwritten);
            matrix
        }
        Rows::Memory(desc) => fetch_rows(cx, &desc, form, base, first_row, &mut lines),
    };
    cx.track_units();
    if form.negate {
        for x in &mut a {
            *x = -*x;
        }
    }
    let mut partial = vec![0f32; 16 * n];
    matmul::multiply(16, n, k, &a, &b, &mut partial);
    Product { partial, rows: lines, columns }
}

/// A product, and which rows of A and columns of B held bytes that nobody wrote.
struct Product {
    partial: Vec<f32>,
    rows: Vec<bool>,
    columns: Vec<bool>,
}

/// Adds the product to the accumulators, and marks them as in flight.
fn store(cx: &mut Cx<'_>, form: &Form, d: &[Slot], product: &Product, accumulate: bool, group: u64) {
    let n = form.n;
    let partial = &product.partial;
    let any = product.rows.iter().chain(&product.columns).any(|b| *b);
    for (j, slot) in d.iter().enumerate() {
        let lanes = cx.warp.slot_mut(*slot);
        for (lane, cell) in lanes.iter_mut().enumerate() {
            let (g, t) = (lane / 4, lane % 4);
            *cell = match form.d {
                Acc::F16 => {
                    // Register j packs elements 2j and 2j + 1 of the fragment.
                    let at = (g + 8 * (j & 1)) * n + 8 * (j >> 1) + 2 * t;
                    let old = |shift: u32| if accumulate { half::f16_to_f32((*cell >> shift) as u16) } else { 0.0 };
                    u64::from(half::f32_to_f16(old(0) + partial[at]))
                        | u64::from(half::f32_to_f16(old(16) + partial[at + 1])) << 16
                }
                _ => {
                    let at = (g + 8 * (j >> 1 & 1)) * n + 8 * (j >> 2) + 2 * t + (j & 1);
                    if form.d == Acc::S32 {
                        let old = if accumulate { *cell as u32 as i32 } else { 0 };
                        u64::from(matmul::add_s32(old, partial[at], form.satfinite) as u32)
                    } else {
                        let old = if accumulate { f32::from_bits(*cell as u32) } else { 0.0 };
                        u64::from((old + partial[at]).to_bits())
                    }
                }
            };
        }
        let written = hash(lanes);
        let before = cx.warp.tensor.accumulators.get(&slot.0).filter(|a| a.group > 0).map(|a| a.unwritten);
        let mut unwritten = if accumulate { before.unwrap_or_else(|| cx.warp.poison_of((*slot).into())) } else { 0 };
        if any {
            for lane in 0..32 {
                let (g, t) = (lane / 4, lane % 4);
                let (row, col, width) = match form.d {
                    Acc::F16 => (g + 8 * (j & 1), 8 * (j >> 1) + 2 * t, 2),
                    _ => (g + 8 * (j >> 1 & 1), 8 * (j >> 2) + 2 * t + (j & 1), 1),
                };
                let bad = product.rows[row] || product.columns[col..col + width].iter().any(|b| *b);
                unwritten |= u32::from(bad) << lane;
            }
        }
        cx.warp.tensor.accumulators.insert(slot.0, Accumulator { group, written, unwritten });
        cx.warp.set_poison(*slot, u32::MAX, u32::MAX);
    }
}

/// The 16 rows of A that belong to this warp. In MN-major layouts whole 16-byte units along M are read, of which a warp may need
/// parts only (tf32 has none; 16-bit types: two units).
fn fetch_rows(
    cx: &mut AsyncCx<'_>,
    desc: &SmemDesc,
    form: &Form,
    base: u64,
    first_row: usize,
    unwritten: &mut [bool],
) -> Vec<f32> {
    let k = form.k;
    let mut out = vec![0f32; 16 * k];
    let t = crate::tensor::elem::per_unit(form.a, Packing::Dense);
    let mut values = [0f32; 128];
    let unit_at = |cx: &mut AsyncCx<'_>, line: usize, unit: usize, values: &mut [f32]| {
        let address = desc.unit_address(form.a_major, line as u32, unit as u32);
        let (bytes, holes) = cx.read_unit(base | u64::from(address));
        crate::tensor::elem::decode_unit(&bytes, form.a, Packing::Dense, values);
        holes
    };
    match form.a_major {
        Major::K => {
            for row in 0..16 {
                for unit in 0..k / t {
                    unwritten[row] |= unit_at(cx, first_row + row, unit, &mut values[..t]) != 0;
                    out[row * k + unit * t..][..t].copy_from_slice(&values[..t]);
                }
            }
        }
        Major::Mn => {
            for line in 0..k {
                for part in 0..16 / t {
                    if unit_at(cx, line, first_row / t + part, &mut values[..t]) != 0 {
                        unwritten[part * t..(part + 1) * t].fill(true);
                    }
                    for (i, value) in values[..t].iter().enumerate() {
                        out[(part * t + i) * k + line] = *value;
                    }
                }
            }
        }
    }
    out
}
