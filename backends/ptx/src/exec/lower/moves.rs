//! Moves, selections, comparisons, address conversions.

use super::lanes::{compare, map1, map2, map3};
use super::{Lower, Ty, operands};
use crate::ast::{Instruction, Operand};
use crate::exec::error::CompileError;
use crate::exec::memory::{self, SHARED_WINDOW};
use crate::exec::program::{Compare, Flow, Logic, MemorySpace, Op, PredSrc, Src};
use crate::exec::unwritten::{Comparison, Spread};
use crate::numeric::half::{bf16_to_f32, f16_to_f32};

#[inline]
pub(crate) fn ftz(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// A comparison of values that `$conv` makes of the lanes' bits.
macro_rules! comparison {
    ($name:expr, $conv:expr) => {{
        Some(match $name {
            "eq" => compare!(|a, b| $conv(a) == $conv(b)),
            "ne" => compare!(|a, b| $conv(a) < $conv(b) || $conv(a) > $conv(b)),
            "lt" | "lo" => compare!(|a, b| $conv(a) < $conv(b)),
            "le" | "ls" => compare!(|a, b| $conv(a) <= $conv(b)),
            "gt" | "hi" => compare!(|a, b| $conv(a) > $conv(b)),
            "ge" | "hs" => compare!(|a, b| $conv(a) >= $conv(b)),
            // Unordered forms hold when an operand is NaN, of which integers have none.
            "equ" => compare!(|a, b| !($conv(a) < $conv(b) || $conv(a) > $conv(b))),
            "neu" => compare!(|a, b| $conv(a) != $conv(b)),
            "ltu" => compare!(|a, b| !($conv(a) >= $conv(b))),
            "leu" => compare!(|a, b| !($conv(a) > $conv(b))),
            "gtu" => compare!(|a, b| !($conv(a) <= $conv(b))),
            "geu" => compare!(|a, b| !($conv(a) < $conv(b))),
            "num" => compare!(|a, b| $conv(a) == $conv(a) && $conv(b) == $conv(b)),
            "nan" => compare!(|a, b| $conv(a) != $conv(a) || $conv(b) != $conv(b)),
            _ => return None,
        })
    }};
}

const COMPARISONS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

#[allow(clippy::eq_op, clippy::neg_cmp_op_on_partial_ord, clippy::nonminimal_bool)]
fn comparison(name: &str, ty: Ty, flush: bool) -> Option<Compare> {
    if matches!(ty, Ty::U(_) | Ty::S(_) | Ty::B(_)) && (name.ends_with('u') || matches!(name, "num" | "nan")) {
        return None;
    }
    match ty {
        Ty::U(16) | Ty::B(16) => comparison!(name, |v: u64| v as u16),
        Ty::U(32) | Ty::B(32) => comparison!(name, |v: u64| v as u32),
        Ty::U(64) | Ty::B(64) => comparison!(name, |v: u64| v),
        Ty::S(16) => comparison!(name, |v: u64| v as i16),
        Ty::S(32) => comparison!(name, |v: u64| v as i32),
        Ty::S(64) => comparison!(name, |v: u64| v as i64),
        Ty::F32 if flush => comparison!(name, |v: u64| ftz(f32::from_bits(v as u32))),
        Ty::F32 => comparison!(name, |v: u64| f32::from_bits(v as u32)),
        Ty::F64 => comparison!(name, f64::from_bits),
        Ty::F16 if flush => comparison!(name, |v: u64| flush_half(v as u16)),
        Ty::F16 => comparison!(name, |v: u64| f16_to_f32(v as u16)),
        Ty::Bf16 => comparison!(name, |v: u64| bf16_to_f32(v as u16)),
        _ => None,
    }
}

/// How a comparison treats unwritten bits of its operands.
fn kind_of(name: &str, ty: Ty) -> Comparison {
    match ty {
        Ty::U(bits) | Ty::S(bits) | Ty::B(bits) if bits <= 64 => match name {
            "eq" | "ne" => Comparison::Equality,
            _ => Comparison::Order { bits },
        },
        _ => Comparison::Float,
    }
}

fn flush_half(bits: u16) -> f32 {
    let x = f16_to_f32(bits);
    if bits & 0x7c00 == 0 { 0f32.copysign(x) } else { x }
}

fn bool_op(name: &str) -> Option<Logic> {
    Some(match name {
        "and" => |a, b| a & b,
        "or" => |a, b| a | b,
        "xor" => |a, b| a ^ b,
        _ => return None,
    })
}

impl Lower<'_> {
    pub(super) fn moves(&mut self, i: &Instruction) -> Result<(), CompileError> {
        match i.opcode.as_str() {
            "mov" => self.mov(i),
            "selp" => {
                let [d, a, b, p] = operands(self, i)?;
                let ty = self.last_type(i)?;
                let (a, b, p) = (self.src(a, ty)?, self.src(b, ty)?, self.pred_src(p)?);
                let d = self.dst(d, ty.bits())?;
                self.emit(Op::Selp { d, a, b, p });
                Ok(())
            }
            "slct" => {
                let [d, a, b, c] = operands(self, i)?;
                let types: Vec<Ty> = i.modifiers.iter().filter_map(|m| Ty::parse(m)).collect();
                let &[ty, by] = types.as_slice() else {
                    return Err(self.invalid("two types expected"));
                };
                let (a, b, c) = (self.src(a, ty)?, self.src(b, ty)?, self.src(c, by)?);
                let d = self.dst(d, ty.bits())?;
                let f = match by {
                    // A negative subnormal is flushed to -0, which is not below 0.
                    Ty::F32 if i.has("ftz") => {
                        map3!(|a, b, c| if ftz(f32::from_bits(c as u32)) >= 0.0 { a } else { b })
                    }
                    Ty::F32 => map3!(|a, b, c| if f32::from_bits(c as u32) >= 0.0 { a } else { b }),
                    _ => map3!(|a, b, c| if c as i32 >= 0 { a } else { b }),
                };
                self.emit(Op::Map3 { f, d, a, b, c, spread: Spread::selected_by(2, u32::MAX) });
                Ok(())
            }
            "setp" => self.setp(i),
            "set" => self.set(i),
            "testp" => self.testp(i),
            "cvta" => self.cvta(i),
            "isspacep" => self.isspacep(i),
            "mapa" => self.mapa(i),
            "getctarank" => self.getctarank(i),
            "nanosleep" => {
                self.emit_custom(Box::new(|cx, _| {
                    cx.m.cluster.quantum_left = 0;
                    cx.m.cluster.slice_left -= 2000;
                    Ok(Flow::Next)
                }));
                Ok(())
            }
            _ => {
                self.emit(Op::Nop);
                Ok(())
            }
        }
    }

    /// The type that ends the instruction's name.
    pub(crate) fn last_type(&self, i: &Instruction) -> Result<Ty, CompileError> {
        i.modifiers
            .last()
            .and_then(|m| Ty::parse(m))
            .ok_or_else(|| self.unsupported(format!("the type of `{}`", i.full_name())))
    }

    fn mov(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [d, a] = operands(self, i)?;
        let ty = self.last_type(i)?;
        if ty == Ty::Pred {
            let a = self.pred_src(a)?;
            if let Some(d) = self.pred_dst(d)? {
                self.emit(Op::Logic { f: |a, _| a, d, a, b: PredSrc::TRUE });
            }
            return Ok(());
        }
        match (d, a) {
            (Operand::Vector(list), a) => self.unpack(list, a, ty),
            (d, Operand::Vector(list)) => self.pack(d, list, ty),
            (d, a) if ty == Ty::B(128) => {
                let (from, to) = (self.src(a, ty)?, self.dst(d, 128)?);
                for half in 0..2 {
                    let a = Src(from.0 + half);
                    let d = crate::exec::program::Slot(to.0 + half);
                    self.emit(Op::Map1 { f: map1!(|a| a), d, a, spread: Spread::BITS });
                }
                Ok(())
            }
            (d, a) => {
                let (a, have) = self.src_any(a, ty)?;
                let (d, want) = self.dst_any(d, ty.bits())?;
                // An address may be moved to a 32-bit register even where addresses have 64 bits.
                if have != ty.bits() || want != ty.bits() {
                    return Err(self.invalid(format!("`mov` between {have} and {want} bits as {}", ty.bits())));
                }
                let f = if want == 32 { map1!(|a| a & 0xffff_ffff) } else { map1!(|a| a) };
                self.emit(Op::Map1 { f, d, a, spread: Spread::BITS });
                Ok(())
            }
        }
    }

    fn unpack(&mut self, list: &[Operand], a: &Operand, ty: Ty) -> Result<(), CompileError> {
        let each = ty.bits() / list.len().max(1) as u32;
        let (a, have) = self.src_any(a, ty)?;
        if have != ty.bits() || each == 0 {
            return Err(self.invalid(format!(
                "{have} bits cannot be split into {} parts of `{}`",
                list.len(),
                ty.bits()
            )));
        }
        let mut low = Vec::new();
        let mut high = Vec::new();
        for (n, o) in list.iter().enumerate() {
            if *o == Operand::Sink {
                continue;
            }
            let d = self.dst(o, each)?;
            let shift = n as u32 * each;
            if shift >= 64 { high.push((d, shift - 64)) } else { low.push((d, shift)) }
        }
        let mask = if each >= 64 { u64::MAX } else { (1u64 << each) - 1 };
        // A destination may be the source: the parts are read before any is written, see the interpreter.
        self.emit(Op::Unpack { d: low.into(), a, mask });
        if ty.bits() == 128 {
            self.emit(Op::Unpack { d: high.into(), a: Src(a.0 + 1), mask });
        }
        Ok(())
    }

    fn pack(&mut self, d: &Operand, list: &[Operand], ty: Ty) -> Result<(), CompileError> {
        let each = ty.bits() / list.len().max(1) as u32;
        let part = Ty::B(each);
        let mut parts = Vec::new();
        for o in list {
            parts.push(self.src(o, part)?);
        }
        let d = self.dst(d, ty.bits())?;
        if ty.bits() == 128 {
            let per = parts.len() / 2;
            for half in 0..2 {
                let a: Vec<(Src, u32)> = parts[half * per..(half + 1) * per]
                    .iter()
                    .enumerate()
                    .map(|(n, s)| (*s, n as u32 * each))
                    .collect();
                self.emit(Op::Pack { d: crate::exec::program::Slot(d.0 + half as u32), a: a.into() });
            }
        } else {
            let a: Vec<(Src, u32)> = parts.iter().enumerate().map(|(n, s)| (*s, n as u32 * each)).collect();
            self.emit(Op::Pack { d, a: a.into() });
        }
        Ok(())
    }

    fn setp(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let ty = self.last_type(i)?;
        let name = i.modifiers.iter().find(|m| COMPARISONS.contains(&m.as_str())).map_or("", String::as_str);
        let flush = i.has("ftz");
        let combine = i.modifiers.iter().find_map(|m| bool_op(m));
        let (d, a, b, c) = match i.operands.as_slice() {
            [d, a, b] => (d, a, b, None),
            [d, a, b, c] if combine.is_some() => (d, a, b, Some(self.pred_src(c)?)),
            _ => return Err(self.invalid("`setp` takes p, a, b and with a Boolean operator c")),
        };
        let combine = combine.zip(c);
        let (p, q) = match d {
            Operand::Pair(p, q) => (self.pred_dst(p)?, self.pred_dst(q)?),
            d => (self.pred_dst(d)?, None),
        };
        let (a, b) = (self.src(a, ty)?, self.src(b, ty)?);
        let p = match p {
            Some(p) => p,
            None => self.scratch_pred(),
        };
        if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
            // Two comparisons: p for the low halves, q for the high ones.
            let element = if ty == Ty::F16x2 { Ty::F16 } else { Ty::Bf16 };
            let Some(f) = comparison(name, element, flush) else {
                return Err(self.unsupported(i.full_name()));
            };
            let high = map1!(|a| a >> 16);
            let (ha, hb) = (self.scratch(), self.scratch());
            let (la, lb) = (self.scratch(), self.scratch());
            let low = map1!(|a| a & 0xffff);
            self.emit(Op::Map1 { f: low, d: la, a, spread: Spread::BITS });
            self.emit(Op::Map1 { f: low, d: lb, a: b, spread: Spread::BITS });
            self.emit(Op::Map1 { f: high, d: ha, a, spread: Spread::BITS });
            self.emit(Op::Map1 { f: high, d: hb, a: b, spread: Spread::BITS });
            self.emit(Op::Setp { f, d: p, not_d: None, a: la.into(), b: lb.into(), combine, kind: Comparison::Float });
            if let Some(q) = q {
                self.emit(Op::Setp {
                    f,
                    d: q,
                    not_d: None,
                    a: ha.into(),
                    b: hb.into(),
                    combine,
                    kind: Comparison::Float,
                });
            }
            return Ok(());
        }
        let Some(f) = comparison(name, ty, flush) else {
            return Err(self.unsupported(i.full_name()));
        };
        self.emit(Op::Setp { f, d: p, not_d: q, a, b, combine, kind: kind_of(name, ty) });
        Ok(())
    }

    fn set(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let types: Vec<Ty> = i.modifiers.iter().filter_map(|m| Ty::parse(m)).collect();
        let &[to, from] = types.as_slice() else {
            return Err(self.invalid("two types expected"));
        };
        let name = i.modifiers.iter().find(|m| COMPARISONS.contains(&m.as_str())).map_or("", String::as_str);
        let flush = i.has("ftz");
        let combine = i.modifiers.iter().find_map(|m| bool_op(m));
        let (d, a, b, c) = match i.operands.as_slice() {
            [d, a, b] => (d, a, b, None),
            [d, a, b, c] if combine.is_some() => (d, a, b, Some(self.pred_src(c)?)),
            _ => return Err(self.invalid("`set` takes d, a, b and with a Boolean operator c")),
        };
        let (a, b) = (self.src(a, from)?, self.src(b, from)?);
        let d = self.dst(d, to.bits())?;
        let packed = matches!(from, Ty::F16x2 | Ty::Bf16x2);
        let element = match from {
            Ty::F16x2 => Ty::F16,
            Ty::Bf16x2 => Ty::Bf16,
            t => t,
        };
        let Some(f) = comparison(name, element, flush) else {
            return Err(self.unsupported(i.full_name()));
        };
        let one: u64 = match to {
            Ty::F32 => u64::from(1f32.to_bits()),
            Ty::F16 | Ty::F16x2 => 0x3c00,
            Ty::Bf16 | Ty::Bf16x2 => 0x3f80,
            Ty::U(16) | Ty::S(16) => 0xffff,
            Ty::U(32) | Ty::S(32) | Ty::B(32) => 0xffff_ffff,
            _ => return Err(self.unsupported(i.full_name())),
        };
        // `set.u32.f16x2` and the like give 16 bits of ones for each half.
        let one = if packed && !matches!(to, Ty::F16x2 | Ty::Bf16x2) { 0xffff } else { one };
        self.emit_custom(Box::new(move |cx, mask| {
            let (x, y) = (*cx.lanes(a), *cx.lanes(b));
            let join = |m: u32, cx: &crate::exec::context::Cx<'_>| match (combine, c) {
                (Some(f), Some(c)) => f(m, cx.pred(c)),
                _ => m,
            };
            let low = join(f(&x, &y), cx);
            let mut out = [0u64; 32];
            for (l, o) in out.iter_mut().enumerate() {
                *o = if low >> l & 1 == 1 { one } else { 0 };
            }
            if packed {
                let high = join(f(&x.map(|v| v >> 16), &y.map(|v| v >> 16)), cx);
                for (l, o) in out.iter_mut().enumerate() {
                    *o |= if high >> l & 1 == 1 { one << 16 } else { 0 };
                }
            }
            let poison = cx.poison(a) | cx.poison(b);
            cx.write(d, mask, &out, poison);
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn testp(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [p, a] = operands(self, i)?;
        let ty = self.last_type(i)?;
        let a = self.src(a, ty)?;
        let Some(d) = self.pred_dst(p)? else { return Ok(()) };
        let b = self.bits(0);
        use std::num::FpCategory::{Infinite, Nan, Normal, Subnormal};
        let f: Compare = match (i.modifiers.iter().map(String::as_str).find(|m| Ty::parse(m).is_none()), ty) {
            (Some("finite"), Ty::F32) => compare!(|a, _b| f32::from_bits(a as u32).is_finite()),
            (Some("infinite"), Ty::F32) => compare!(|a, _b| f32::from_bits(a as u32).classify() == Infinite),
            (Some("number"), Ty::F32) => compare!(|a, _b| f32::from_bits(a as u32).classify() != Nan),
            (Some("notanumber"), Ty::F32) => compare!(|a, _b| f32::from_bits(a as u32).classify() == Nan),
            (Some("normal"), Ty::F32) => compare!(|a, _b| f32::from_bits(a as u32).classify() == Normal),
            (Some("subnormal"), Ty::F32) => compare!(|a, _b| f32::from_bits(a as u32).classify() == Subnormal),
            (Some("finite"), Ty::F64) => compare!(|a, _b| f64::from_bits(a).is_finite()),
            (Some("infinite"), Ty::F64) => compare!(|a, _b| f64::from_bits(a).classify() == Infinite),
            (Some("number"), Ty::F64) => compare!(|a, _b| f64::from_bits(a).classify() != Nan),
            (Some("notanumber"), Ty::F64) => compare!(|a, _b| f64::from_bits(a).classify() == Nan),
            (Some("normal"), Ty::F64) => compare!(|a, _b| f64::from_bits(a).classify() == Normal),
            (Some("subnormal"), Ty::F64) => compare!(|a, _b| f64::from_bits(a).classify() == Subnormal),
            _ => return Err(self.unsupported(i.full_name())),
        };
        self.emit(Op::Setp { f, d, not_d: None, a, b, combine: None, kind: Comparison::Float });
        Ok(())
    }

    fn cvta(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [d, a] = operands(self, i)?;
        let ty = self.last_type(i)?;
        let to = i.has("to");
        let space = match i.modifiers.iter().find(|m| !matches!(m.as_str(), "to" | "u64" | "u32")).map(String::as_str) {
            Some("global") => MemorySpace::Global,
            Some("shared" | "shared::cta" | "shared::cluster") => MemorySpace::Shared,
            Some("local") => MemorySpace::Local,
            Some("const") => MemorySpace::Const,
            Some("param" | "param::entry") => MemorySpace::Param,
            _ => return Err(self.unsupported(i.full_name())),
        };
        let base = memory::window_base(space);
        let a = self.src(a, ty)?;
        let d = self.dst(d, ty.bits())?;
        let b = self.bits(base);
        // A null pointer stays null only by accident of the window; PTX promises nothing for it.
        let f = match (to, ty.bits()) {
            (true, 32) => map2!(|a, b| a.wrapping_sub(b) & 0xffff_ffff),
            (true, _) => map2!(|a, b| a.wrapping_sub(b)),
            (false, 32) => map2!(|a, b| a.wrapping_add(b) & 0xffff_ffff),
            (false, _) => map2!(|a, b| a.wrapping_add(b)),
        };
        self.emit(Op::Map2 { f, d, a, b, spread: Spread::Upwards });
        Ok(())
    }

    fn isspacep(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [p, a] = operands(self, i)?;
        let a = self.src64(a)?;
        let Some(d) = self.pred_dst(p)? else { return Ok(()) };
        let which = i.modifiers.first().map_or("", String::as_str).to_owned();
        if !matches!(
            which.as_str(),
            "global" | "shared" | "shared::cta" | "shared::cluster" | "local" | "const" | "param" | "param::entry"
        ) {
            return Err(self.unsupported(i.full_name()));
        }
        self.emit_custom(Box::new(move |cx, mask| {
            let mut set = 0;
            for l in 0..32 {
                let (space, address) = memory::resolve(cx.lanes(a)[l]);
                let hit = match (which.as_str(), space) {
                    ("global", MemorySpace::Global) | ("local", MemorySpace::Local) | ("const", MemorySpace::Const) => {
                        true
                    }
                    ("param" | "param::entry", MemorySpace::Param)
                    | ("shared::cluster", MemorySpace::SharedCluster) => true,
                    ("shared" | "shared::cta", MemorySpace::SharedCluster) => (address >> 24) as usize == cx.m.cta,
                    _ => false,
                };
                set |= u32::from(hit) << l;
            }
            let poison = cx.poison(a);
            cx.warp.write_pred(d, mask, set, poison);
            Ok(Flow::Next)
        }));
        Ok(())
    }

    /// `mapa{.shared::cluster}.u32/u64 d, a, rank`: the same place in another CTA's window.
    fn mapa(&mut self, i: &Instruction) -> Result<(), CompileError> {
        self.uses_cluster();
        let [d, a, rank] = operands(self, i)?;
        let ty = self.last_type(i)?;
        let (a, b) = (self.src(a, ty)?, self.src(rank, Ty::U(32))?);
        let d = self.dst(d, ty.bits())?;
        // Rank bits stand at the same place in shared and in generic addresses.
        self.emit(Op::Map2 { f: map2!(|a, b| a & !0xff00_0000 | (b & 0xff) << 24), d, a, b, spread: Spread::BITS });
        Ok(())
    }

    fn getctarank(&mut self, i: &Instruction) -> Result<(), CompileError> {
        self.uses_cluster();
        let [d, a] = operands(self, i)?;
        let ty = self.last_type(i)?;
        let a = self.src(a, ty)?;
        let d = self.dst(d, 32)?;
        debug_assert!(SHARED_WINDOW.trailing_zeros() >= 32);
        self.emit(Op::Map1 { f: map1!(|a| a >> 24 & 0xff), d, a, spread: Spread::BITS });
        Ok(())
    }
}
