//! Shuffles, votes, matches, reductions of a warp.

use super::{Lower, Ty, operands};
use crate::ast::{Instruction, Operand};
use crate::exec::context::Cx;
use crate::exec::error::{CompileError, ExecError};
use crate::exec::findings::Check;
use crate::exec::program::{Flow, Src, Wait};

/// The sets of lanes that take part together.
pub(crate) struct Groups {
    first: u32,
    /// Empty unless lanes name different masks, as tiles of fewer than 32 threads do.
    rest: Vec<u32>,
}

impl Groups {
    const fn one(lanes: u32) -> Self {
        Self { first: lanes, rest: Vec::new() }
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.first).chain(self.rest.iter().copied())
    }
}

/// The lanes that take part: those of each member mask that have not left. `Err` when some have not come yet.
pub(crate) fn members(cx: &mut Cx<'_>, mask: u32, member: Option<Src>) -> Result<Groups, Wait> {
    let Some(m) = member else { return group(cx, mask, mask, u32::MAX).map(Groups::one) };
    cx.require(m, mask, "the member mask");
    let named = *cx.lanes(m);
    let same = |l: usize| (0..32).filter(|k| mask >> k & 1 == 1 && named[*k] == named[l]).fold(0u32, |s, k| s | 1 << k);
    let first = mask.trailing_zeros() as usize & 31;
    let mut groups = Groups::one(group(cx, mask, same(first), named[first] as u32)?);
    let mut left = mask & !same(first);
    while left != 0 {
        let l = left.trailing_zeros() as usize;
        groups.rest.push(group(cx, mask, same(l), named[l] as u32)?);
        left &= !same(l);
    }
    Ok(groups)
}

/// The lanes that take part with `lanes`, which all name `named`, where `mask` stand at the instruction.
fn group(cx: &mut Cx<'_>, mask: u32, lanes: u32, named: u32) -> Result<u32, Wait> {
    let wanted = named & cx.warp.live();
    if wanted & !cx.part_mask != 0 {
        return Err(Wait::Lanes(wanted & !cx.part_mask));
    }
    // Lanes that stand here but whose guard is off do not take part.
    let outside = lanes & !named;
    if outside != 0 {
        cx.m.report(Check::Divergence, Some(outside.trailing_zeros()), || {
            format!("a thread executes the instruction outside of its own member mask {named:#010x}")
        });
    }
    let other = wanted & mask & !lanes;
    if other != 0 {
        cx.m.report(Check::Divergence, Some(other.trailing_zeros()), || {
            format!("a thread of the member mask {named:#010x} names another one")
        });
    }
    Ok(wanted & lanes)
}

/// Unwraps the member mask or blocks.
macro_rules! members_or_block {
    ($cx:expr, $mask:expr, $member:expr) => {
        match $crate::exec::lower::warp::members($cx, $mask, $member) {
            Ok(m) => m,
            Err(wait) => return Ok(Flow::Block(wait)),
        }
    };
}

impl Lower<'_> {
    pub(super) fn warp(&mut self, i: &Instruction) -> Result<(), CompileError> {
        match i.opcode.as_str() {
            "shfl" => self.shfl(i),
            "vote" => self.vote(i),
            "match" => self.match_sync(i),
            "redux" => self.redux(i),
            "elect" => self.elect(i),
            _ => {
                let [d] = operands(self, i)?;
                let d = self.dst(d, 32)?;
                self.emit_custom(Box::new(move |cx, mask| {
                    cx.write(d, mask, &[u64::from(mask); 32], 0);
                    Ok(Flow::Next)
                }));
                Ok(())
            }
        }
    }

    fn shfl(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let sync = i.has("sync");
        let (d, a, b, c, member) = match i.operands.as_slice() {
            [d, a, b, c, m] if sync => (d, a, b, c, Some(self.src32(m)?)),
            [d, a, b, c] if !sync => (d, a, b, c, None),
            _ => return Err(self.invalid("`shfl.sync` takes d|p, a, b, c, membermask")),
        };
        let (d, p) = match d {
            Operand::Pair(d, p) => (d.as_ref(), self.pred_dst(p)?),
            d => (d, None),
        };
        let d = self.dst(d, 32)?;
        let (a, b, c) = (self.src32(a)?, self.src32(b)?, self.src32(c)?);
        let mode =
            match i.modifiers.iter().find(|m| matches!(m.as_str(), "up" | "down" | "bfly" | "idx")).map(String::as_str)
            {
                Some("up") => 0,
                Some("down") => 1,
                Some("bfly") => 2,
                Some(_) => 3,
                None => return Err(self.unsupported(i.full_name())),
            };
        self.emit_custom(Box::new(move |cx, mask| {
            let groups = if sync { members_or_block!(cx, mask, member) } else { Groups::one(mask) };
            for active in groups.iter() {
                let (va, vb, vc) = (*cx.lanes(a), *cx.lanes(b), *cx.lanes(c));
                let poison_in = cx.poison(a);
                let holes = (poison_in != 0).then(|| cx.unwritten(a));
                let mut bits = [0u64; 32];
                let mut poison = cx.poison(b) | cx.poison(c);
                let (mut out, mut set) = (va, 0u32);
                for l in (0..32u32).filter(|l| active >> l & 1 == 1) {
                    let (b, c) = (vb[l as usize] as u32 & 31, vc[l as usize] as u32);
                    let (clamp, segment) = (c & 31, c >> 8 & 31);
                    let top = (l & segment) | (clamp & !segment);
                    let (from, inside) = match mode {
                        0 => (l.wrapping_sub(b), l as i32 - b as i32 >= top as i32),
                        1 => (l + b, l + b <= top),
                        2 => (l ^ b, l ^ b <= top),
                        _ => {
                            let j = (l & segment) | (b & !segment);
                            (j, j <= top)
                        }
                    };
                    let from = if inside { from & 31 } else { l };
                    out[l as usize] = va[from as usize];
                    set |= u32::from(inside) << l;
                    poison |= (poison_in >> from & 1) << l;
                    bits[l as usize] = holes.as_ref().map_or(0, |h| h[from as usize]);
                    if sync && from != l && active >> from & 1 == 0 {
                        // Reading a lane that does not take part gives an undefined value.
                        poison |= 1 << l;
                        bits[l as usize] = 0xffff_ffff;
                    }
                }
                if poison & active == 0 || (cx.poison(b) | cx.poison(c)) & active != 0 {
                    cx.write(d, active, &out, poison);
                } else {
                    cx.warp.write_bits(d, active, &out, &bits, 0);
                }
                if let Some(p) = p {
                    let unknown = cx.poison(b) | cx.poison(c);
                    cx.warp.write_pred(p, active, set, unknown);
                }
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn vote(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let sync = i.has("sync");
        let (d, a, member) = match i.operands.as_slice() {
            [d, a, m] if sync => (d, self.pred_src(a)?, Some(self.src32(m)?)),
            [d, a] if !sync => (d, self.pred_src(a)?, None),
            _ => return Err(self.invalid("`vote.sync` takes d, p, membermask")),
        };
        let ballot = i.has("ballot");
        let (slot, pred) = if ballot { (Some(self.dst(d, 32)?), None) } else { (None, self.pred_dst(d)?) };
        let mode = match i
            .modifiers
            .iter()
            .find(|m| matches!(m.as_str(), "all" | "any" | "uni" | "ballot"))
            .map(String::as_str)
        {
            Some("all") => 0,
            Some("any") => 1,
            Some("uni") => 2,
            Some(_) => 3,
            None => return Err(self.unsupported(i.full_name())),
        };
        self.emit_custom(Box::new(move |cx, mask| {
            let groups = if sync { members_or_block!(cx, mask, member) } else { Groups::one(mask) };
            let (values, unwritten) = (cx.pred(a), cx.warp.pred_poison(a));
            for active in groups.iter() {
                let votes = values & active;
                let unknown = if unwritten & active != 0 { u32::MAX } else { 0 };
                match mode {
                    3 => {
                        if let Some(d) = slot {
                            cx.write(d, active, &[u64::from(votes); 32], unknown);
                        }
                    }
                    _ => {
                        let holds = match mode {
                            0 => votes == active,
                            1 => votes != 0,
                            _ => votes == 0 || votes == active,
                        };
                        if let Some(p) = pred {
                            cx.warp.write_pred(p, active, if holds { u32::MAX } else { 0 }, unknown);
                        }
                    }
                }
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn match_sync(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [d, a, member] = operands(self, i)?;
        let ty = self.last_type(i)?;
        let all = i.has("all");
        let (d, p) = match d {
            Operand::Pair(d, p) => (d.as_ref(), self.pred_dst(p)?),
            d => (d, None),
        };
        let d = self.dst(d, 32)?;
        let (a, member) = (self.src(a, ty)?, self.src32(member)?);
        self.emit_custom(Box::new(move |cx, mask| {
            let groups = members_or_block!(cx, mask, Some(member));
            let v = *cx.lanes(a);
            let unwritten = cx.poison(a);
            for active in groups.iter() {
                let same =
                    |l: usize| (0..32).filter(|k| active >> k & 1 == 1 && v[*k] == v[l]).fold(0u32, |m, k| m | 1 << k);
                let unknown = if unwritten & active != 0 { u32::MAX } else { 0 };
                let mut out = [0u64; 32];
                if all {
                    let equal = same(active.trailing_zeros() as usize & 31) == active;
                    if equal {
                        out = [u64::from(active); 32];
                    }
                    if let Some(p) = p {
                        cx.warp.write_pred(p, active, if equal { u32::MAX } else { 0 }, unknown);
                    }
                } else {
                    for l in (0..32).filter(|l| active >> l & 1 == 1) {
                        out[l] = u64::from(same(l));
                    }
                }
                cx.write(d, active, &out, unknown);
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn redux(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [d, a, member] = operands(self, i)?;
        let ty = self.last_type(i)?;
        let (a, member) = (self.src(a, ty)?, self.src32(member)?);
        let d = self.dst(d, 32)?;
        let known = ["add", "min", "max", "and", "or", "xor"];
        let op = i.modifiers.iter().map(String::as_str).find(|m| known.contains(m)).unwrap_or("");
        let (abs, nan) = (i.has("abs"), i.has("NaN"));
        type Fold = Box<dyn Fn(u32, u32) -> u32 + Send + Sync>;
        let fold: Fold = match (op, ty) {
            ("add", Ty::U(32) | Ty::S(32)) => Box::new(u32::wrapping_add),
            ("min", Ty::U(32)) => Box::new(u32::min),
            ("max", Ty::U(32)) => Box::new(u32::max),
            ("min", Ty::S(32)) => Box::new(|a, b| (a as i32).min(b as i32) as u32),
            ("max", Ty::S(32)) => Box::new(|a, b| (a as i32).max(b as i32) as u32),
            ("and", Ty::B(32)) => Box::new(|a, b| a & b),
            ("or", Ty::B(32)) => Box::new(|a, b| a | b),
            ("xor", Ty::B(32)) => Box::new(|a, b| a ^ b),
            ("min", Ty::F32) => Box::new(move |a, b| {
                super::half::min_max_f32(f32::from_bits(a), f32::from_bits(b), false, nan).to_bits()
            }),
            ("max", Ty::F32) => Box::new(move |a, b| {
                super::half::min_max_f32(f32::from_bits(a), f32::from_bits(b), true, nan).to_bits()
            }),
            _ => return Err(self.unsupported(i.full_name())),
        };
        self.emit_custom(Box::new(move |cx, mask| {
            let groups = members_or_block!(cx, mask, Some(member));
            let v = *cx.lanes(a);
            let unwritten = cx.poison(a);
            for active in groups.iter() {
                let strip = |x: u64| if abs { x as u32 & 0x7fff_ffff } else { x as u32 };
                let result = (0..32).filter(|l| active >> l & 1 == 1).map(|l| strip(v[l])).reduce(&fold).unwrap_or(0);
                let unknown = if unwritten & active != 0 { u32::MAX } else { 0 };
                cx.write(d, active, &[u64::from(result); 32], unknown);
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn elect(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [d, member] = operands(self, i)?;
        let (d, p) = match d {
            Operand::Pair(d, p) => {
                (if **d == Operand::Sink { None } else { Some(self.dst(d, 32)?) }, self.pred_dst(p)?)
            }
            _ => return Err(self.invalid("`elect.sync` takes d|p, membermask")),
        };
        let member = self.src32(member)?;
        self.emit_custom(Box::new(move |cx, mask| {
            let groups = members_or_block!(cx, mask, Some(member));
            for active in groups.iter() {
                let leader = elected(cx, active)?;
                if let Some(d) = d {
                    cx.write(d, active, &[u64::from(leader); 32], 0);
                }
                if let Some(p) = p {
                    cx.warp.write_pred(p, active, 1 << leader, 0);
                }
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }
}

/// The lane that `elect.sync` picks. It must be the same for the same member mask, as tcgen05 kernels rely on; PTX
/// leaves open which one it is.
fn elected(cx: &mut Cx<'_>, active: u32) -> Result<u32, ExecError> {
    if active == 0 {
        return Err(cx.m.fault("no thread takes part".to_owned()));
    }
    Ok(match cx.m.launch.options.schedule {
        crate::exec::Schedule::RoundRobin => active.trailing_zeros(),
        crate::exec::Schedule::Random(seed) if seed & 1 == 1 => 31 - active.leading_zeros(),
        crate::exec::Schedule::Random(_) => active.trailing_zeros(),
    })
}

pub(crate) use members_or_block;
