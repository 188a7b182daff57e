//! `tcgen05.ld`, `tcgen05.st` and their waits.

use super::super::mma::{destinations, sources};
use super::super::state::{Rect, report_fault, track};
use super::super::{compile_error, whole_warp};
use super::{tmem_address, tmem_value};
use crate::ast::Instruction;
use crate::exec::context::Cx;
use crate::exec::error::CompileError;
use crate::exec::findings::Check;
use crate::exec::lower::Lower;
use crate::exec::program::{AddressSrc, Custom, Flow, Lanes, Slot};
use crate::exec::race::AccessKind;
use crate::tensor::tmem::split_address;
use crate::tensor::tmem_access::{Access, AccessShape};

fn parse(l: &Lower<'_>, i: &Instruction, split: Option<i128>) -> Result<Access, CompileError> {
    let mut shape = None;
    let mut num = None;
    let mut pack = false;
    for word in &i.modifiers {
        match word.as_str() {
            "32x32b" => shape = Some(AccessShape::S32x32b),
            "16x64b" => shape = Some(AccessShape::S16x64b),
            "16x128b" => shape = Some(AccessShape::S16x128b),
            "16x256b" => shape = Some(AccessShape::S16x256b),
            "16x32bx2" => {
                let Some(split) = split.filter(|s| (0..512).contains(s)) else {
                    return Err(l.invalid("the half-split offset must be a number below 512"));
                };
                shape = Some(AccessShape::S16x32bx2 { split: split as usize });
            }
            "pack::16b" | "unpack::16b" => pack = true,
            other => {
                if let Some(n) = other.strip_prefix('x').and_then(|n| n.parse().ok()) {
                    num = Some(n);
                }
            }
        }
    }
    let (Some(shape), Some(num)) = (shape, num) else { return Err(l.invalid("shape or repetition is missing")) };
    let access = Access { shape, num, pack };
    access.check().map_err(|e| compile_error(l, e))?;
    Ok(access)
}

/// Reduction of `tcgen05.ld.red` across the columns of a lane.
#[derive(Clone, Copy)]
struct Reduce {
    max: bool,
    abs: bool,
    nan: bool,
    ty: ReduceType,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ReduceType {
    F32,
    U32,
    S32,
}

impl Reduce {
    fn fold(self, a: u32, b: u32) -> u32 {
        match self.ty {
            ReduceType::U32 => {
                if (a > b) == self.max {
                    a
                } else {
                    b
                }
            }
            ReduceType::S32 => {
                if (a as i32 > b as i32) == self.max {
                    a
                } else {
                    b
                }
            }
            ReduceType::F32 => {
                let (x, y) = (f32::from_bits(a), f32::from_bits(b));
                if x.is_nan() || y.is_nan() {
                    return match (x.is_nan(), y.is_nan()) {
                        _ if self.nan => 0x7fff_ffff,
                        (true, true) => 0x7fff_ffff,
                        (true, false) => b,
                        _ => a,
                    };
                }
                if x == y {
                    // Of two zeros, +0 is the greater.
                    return if self.max { a & b } else { a | b };
                }
                if (x > y) == self.max { a } else { b }
            }
        }
    }
}

fn reduction(l: &Lower<'_>, i: &Instruction) -> Result<Option<Reduce>, CompileError> {
    if !i.has("red") {
        return Ok(None);
    }
    let ty = match i.modifiers.iter().find(|m| matches!(m.as_str(), "f32" | "u32" | "s32")).map(String::as_str) {
        Some("f32") => ReduceType::F32,
        Some("u32") => ReduceType::U32,
        Some(_) => ReduceType::S32,
        None => return Err(l.invalid("tcgen05.ld.red needs a type")),
    };
    if i.has("min") == i.has("max") {
        return Err(l.invalid("tcgen05.ld.red needs `.min` or `.max`"));
    }
    Ok(Some(Reduce { max: i.has("max"), abs: i.has("abs"), nan: i.has("NaN"), ty }))
}

pub(super) fn lower_load(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let reduce = reduction(l, i)?;
    let at = if reduce.is_some() { 2 } else { 1 };
    if i.operands.len() <= at || i.operands.len() > at + 2 {
        return Err(l.invalid(format!("`{}` has {} operands", i.full_name(), i.operands.len())));
    }
    let split = i
        .operands
        .get(at + 1)
        .map(|o| l.immediate(o).ok_or_else(|| l.invalid("the half-split offset must be a number")));
    let access = parse(l, i, split.transpose()?)?;
    let whole_lane = matches!(access.shape, AccessShape::S32x32b | AccessShape::S16x32bx2 { .. });
    if reduce.is_some() && (!whole_lane || access.pack || access.num < 2) {
        return Err(l.invalid("tcgen05.ld.red takes .32x32b or .16x32bx2, from .x2 on, without packing"));
    }
    let d = destinations(l, &i.operands[0], 32)?;
    if d.len() != access.registers() {
        return Err(l.invalid(format!("{} registers expected, {} given", access.registers(), d.len())));
    }
    let result = if reduce.is_some() { Some(l.dst(&i.operands[1], 32)?) } else { None };
    let address = tmem_address(l, &i.operands[at])?;
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        let Some(base) = base_address(cx, mask, &access, address) else { return Ok(Flow::Next) };
        track_access(cx, &access, base, AccessKind::Read, mask);
        load(cx, mask, &access, base, &d);
        if let (Some(reduce), Some(result)) = (reduce, result) {
            let mut lanes: Lanes = [0; 32];
            let mut poison = 0;
            for (lane, out) in lanes.iter_mut().enumerate() {
                let value = |slot: &Slot| {
                    let bits = cx.warp.slot(*slot)[lane] as u32;
                    if reduce.abs { bits & 0x7fff_ffff } else { bits }
                };
                *out = u64::from(d.iter().skip(1).map(value).fold(value(&d[0]), |a, b| reduce.fold(a, b)));
            }
            for slot in &d {
                poison |= cx.warp.poison_of((*slot).into());
            }
            cx.write(result, mask, &lanes, poison);
        }
        Ok(Flow::Next)
    }))
}

/// The address that all lanes name, if the warp may access it and the cells are allocated.
fn base_address(cx: &mut Cx<'_>, mask: u32, access: &Access, address: AddressSrc) -> Option<u32> {
    cx.require(address.base, mask, "the tensor memory address");
    let first = mask.trailing_zeros() as usize & 31;
    let base = tmem_value(cx, address, first);
    if let Some(lane) = (0..32).find(|lane| mask >> lane & 1 == 1 && tmem_value(cx, address, *lane) != base) {
        cx.m.report(Check::TensorMemory, Some(lane as u32), || {
            "the lanes of the warp name different tensor memory addresses".to_owned()
        });
    }
    let quarter = cx.m.warp_index % 4;
    // The machine takes the quarter from the warp; a kernel may leave it out of the address.
    let base = if base >> 21 & 3 == 0 { base | (quarter as u32) << 21 } else { base };
    let (lane, column) = split_address(base);
    let inside = lane >= 32 * quarter && lane + access.lanes() <= 32 * quarter + 32;
    if !inside {
        cx.m.report(Check::TensorMemory, Some(first as u32), || {
            format!(
                "warp {quarter} of its warpgroup reaches lanes {} to {} only, the access starts at lane {lane}",
                32 * quarter,
                32 * quarter + 31
            )
        });
        return None;
    }
    if lane % 16 != 0 {
        cx.m.report(Check::Alignment, Some(first as u32), || {
            format!("tensor memory lane {lane} is not a multiple of 16")
        });
        return None;
    }
    let halves: &[usize] = match access.shape {
        AccessShape::S16x32bx2 { split } => &[0, split],
        _ => &[0],
    };
    let width = columns(access);
    for half in halves {
        if let Err(f) = cx.m.own().tensor.tmem().check(lane, column + half, width) {
            report_fault(&mut cx.m, Some(first as u32), &f);
            return None;
        }
    }
    Some(base)
}

/// Columns of one access (of each half for the split shape).
fn columns(access: &Access) -> usize {
    let per = match access.shape {
        AccessShape::S32x32b | AccessShape::S16x32bx2 { .. } => 1,
        AccessShape::S16x64b => 2,
        AccessShape::S16x128b => 4,
        AccessShape::S16x256b => 8,
    };
    per * access.num * if access.pack { 2 } else { 1 }
}

/// The actor of this warp's loads or stores.
fn actor(cx: &Cx<'_>, loads: bool) -> u32 {
    let key = u64::from(cx.m.cluster.warp_actor(cx.m.cta, cx.m.warp_index));
    cx.m.cluster.proxy_actor(key << 8 | if loads { 0x1d } else { 0x57 } | 1 << 41)
}

/// Records the access under the actor of the warp's loads or stores, with a new tick that the wait makes known.
fn track_access(cx: &mut Cx<'_>, access: &Access, base: u32, kind: AccessKind, mask: u32) {
    if cx.m.cluster.n_actors == 0 {
        return;
    }
    let loads = kind == AccessKind::Read;
    let id = actor(cx, loads);
    let tick = cx.m.cluster.next_tick(id);
    let mut clock = cx.warp.clock.clone();
    if let Some(seen) = clock.seen.get_mut(id as usize) {
        *seen = tick;
    }
    let tensor = &mut cx.warp.tensor;
    *(if loads { &mut tensor.load_tick } else { &mut tensor.store_tick }) = Some(tick);
    if loads && !cx.m.launch.program.waits_for_tmem_loads {
        cx.m.note(Check::Asynchronous, Some(mask.trailing_zeros() & 31), || {
            "the kernel has no tcgen05.wait::ld; PTX asks for it before a loaded register is used, machines wait by themselves".to_owned()
        });
        wait(cx, true);
    }
    let (lane, column) = split_address(base);
    let halves: &[usize] = match access.shape {
        AccessShape::S16x32bx2 { split } => &[0, split],
        _ => &[0],
    };
    let rank = cx.m.cta;
    for half in halves {
        let rect = Rect { lane, lanes: access.lanes(), column: column + half, columns: columns(access) };
        track(&mut cx.m, rank, rect, kind, id, &clock, Some(mask.trailing_zeros() & 31));
    }
}

/// `tcgen05.wait`: the warp knows its own earlier loads or stores.
pub(super) fn wait(cx: &mut Cx<'_>, loads: bool) {
    let tensor = &mut cx.warp.tensor;
    let tick = if loads { tensor.load_tick.take() } else { tensor.store_tick.take() };
    let Some(tick) = tick else { return };
    let id = actor(cx, loads);
    if let Some(seen) = cx.warp.clock.seen.get_mut(id as usize) {
        *seen = (*seen).max(tick);
    }
    cx.warp.clock.needs_no_fence(id, tick);
}

fn load(cx: &mut Cx<'_>, mask: u32, access: &Access, base: u32, d: &[Slot]) {
    let (lane0, column0) = split_address(base);
    let mut values = vec![[0u64; 32]; d.len()];
    let mut poison = vec![0u32; d.len()];
    let tmem = cx.m.own().tensor.tmem();
    for (reg, (value, poison)) in values.iter_mut().zip(&mut poison).enumerate() {
        for (thread, out) in value.iter_mut().enumerate() {
            let (lane, column) = access.cell(thread, reg);
            let (lane, column) = (lane0 + lane, column0 + column);
            let n = if access.pack { 2 } else { 1 };
            // Cells that nobody wrote do no harm until their values are used: the registers carry the mark.
            *poison |= u32::from(tmem.first_unwritten(lane, column, n).is_some()) << thread;
            let cells = tmem.row(lane, column, n);
            *out = u64::from(if access.pack { cells[0] & 0xffff | cells[1] << 16 } else { cells[0] });
        }
    }
    for ((slot, value), poison) in d.iter().zip(&values).zip(&poison) {
        cx.write(*slot, mask, value, *poison);
    }
}

pub(super) fn lower_store(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let split_shape = i.has("16x32bx2");
    if i.operands.len() != 2 + usize::from(split_shape) {
        return Err(l.invalid(format!("`{}` has {} operands", i.full_name(), i.operands.len())));
    }
    let split = if split_shape {
        Some(l.immediate(&i.operands[1]).ok_or_else(|| l.invalid("the half-split offset must be a number"))?)
    } else {
        None
    };
    let access = parse(l, i, split)?;
    let s = sources(l, &i.operands[1 + usize::from(split_shape)], 32)?;
    if s.len() != access.registers() {
        return Err(l.invalid(format!("{} registers expected, {} given", access.registers(), s.len())));
    }
    let address = tmem_address(l, &i.operands[0])?;
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        let Some(base) = base_address(cx, mask, &access, address) else { return Ok(Flow::Next) };
        track_access(cx, &access, base, AccessKind::Write, mask);
        let (lane0, column0) = split_address(base);
        for (reg, src) in s.iter().enumerate() {
            let value = *cx.lanes(*src);
            let poison = cx.poison(*src);
            let tmem = cx.m.own().tensor.tmem();
            for (thread, word) in value.iter().enumerate().filter(|(thread, _)| mask >> thread & 1 == 1) {
                let (lane, column) = access.cell(thread, reg);
                let (lane, column) = (lane0 + lane, column0 + column);
                let n = if access.pack { 2 } else { 1 };
                let cells = tmem.row_mut(lane, column, n);
                if access.pack {
                    cells.copy_from_slice(&[*word as u32 & 0xffff, (*word >> 16) as u32 & 0xffff]);
                } else {
                    cells[0] = *word as u32;
                }
                if poison >> thread & 1 == 1 {
                    tmem.forget(lane, column, n);
                }
            }
        }
        Ok(Flow::Next)
    }))
}
