//! Integer and bit instructions.

// Widths are written once for all types, so that some conversions change nothing; shifts of products read as in the ISA.
#![allow(clippy::useless_conversion, clippy::precedence)]

use super::lanes::{by_width, map1, map2, map3};
use super::{Lower, Ty, operands};
use crate::ast::Instruction;
use crate::exec::error::CompileError;
use crate::exec::program::{Lanes, Map1, Map2, Map3, Op, PredSrc};
use crate::exec::unwritten::Spread;

/// `f` on both 16-bit halves.
#[inline]
fn halves2(a: u64, b: u64, f: impl Fn(u16, u16) -> u16) -> u64 {
    u64::from(f(a as u16, b as u16)) | u64::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

/// `prmt` in its default mode.
pub(crate) fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let mut out = [0u8; 4];
    for (i, byte) in out.iter_mut().enumerate() {
        let nibble = selector >> (4 * i) & 0xf;
        let v = bytes[(nibble & 7) as usize];
        // The top bit of a nibble spreads the byte's sign.
        *byte = if nibble & 8 == 0 { v } else { ((v as i8) >> 7) as u8 };
    }
    u32::from_le_bytes(out)
}

/// The selector that a `prmt` mode makes of the low two bits of `c`.
fn permute_mode(mode: &str, c: u32) -> Option<u32> {
    let c = c & 3;
    Some(match mode {
        "f4e" => [0x3210, 0x4321, 0x5432, 0x6543][c as usize],
        "b4e" => [0x5670, 0x6701, 0x7012, 0x0123][c as usize],
        "rc8" => c * 0x1111,
        "ecl" => [0x3210, 0x3211, 0x3222, 0x3333][c as usize],
        "ecr" => [0x0000, 0x1110, 0x2210, 0x3210][c as usize],
        "rc16" => [0x1010, 0x3232, 0x1010, 0x3232][c as usize],
        _ => return None,
    })
}

/// Find the n-th set bit (`fns`): from `base`, upwards if `offset > 0`, downwards if negative, 0: is `base` set.
pub(crate) fn find_nth_set(mask: u32, base: u32, offset: i32) -> u32 {
    let base = base & 31;
    if offset == 0 {
        return if mask >> base & 1 == 1 { base } else { u32::MAX };
    }
    let mut left = offset.unsigned_abs();
    let step = offset.signum();
    let mut at = base as i32;
    while (0..32).contains(&at) {
        if mask >> at & 1 == 1 {
            left -= 1;
            if left == 0 {
                return at as u32;
            }
        }
        at += step;
    }
    u32::MAX
}

/// Extracts a bit field; `signed` extends the field's top bit (or that of the value, beyond its end).
#[inline]
pub(crate) fn bit_field(a: u64, pos: u32, len: u32, bits: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let full = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    if len == 0 {
        return 0;
    }
    let end = (pos + len - 1).min(bits - 1);
    let sign = signed && a >> end & 1 == 1;
    let have = if pos >= bits { 0 } else { (a & full) >> pos };
    let kept = if pos >= bits { 0 } else { (bits - pos).min(len) };
    let mask = if kept >= 64 { u64::MAX } else { (1u64 << kept) - 1 };
    let value = have & mask;
    (if sign { value | !mask } else { value }) & full
}

/// Inserts the low `len` bits of `a` into `b` at `pos`.
#[inline]
pub(crate) fn insert_field(a: u64, b: u64, pos: u32, len: u32, bits: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if len == 0 || pos >= bits {
        return b;
    }
    let mask = if len >= 64 { u64::MAX } else { (1u64 << len) - 1 } << pos;
    let full = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    (b & !mask | a << pos & mask) & full
}

fn dot(a: u32, b: u32, c: u32, sa: bool, sb: bool) -> u32 {
    let ext = |v: u8, s: bool| if s { i32::from(v as i8) } else { i32::from(v) };
    a.to_le_bytes()
        .iter()
        .zip(b.to_le_bytes())
        .fold(c, |s, (x, y)| s.wrapping_add(ext(*x, sa).wrapping_mul(ext(y, sb)) as u32))
}

fn dot2(a: u32, b: u32, c: u32, sa: bool, sb: bool, high: bool) -> u32 {
    let wide = |v: u32| if sa { i32::from(v as u16 as i16) } else { i32::from(v as u16) };
    let narrow = |v: u8| if sb { i32::from(v as i8) } else { i32::from(v) };
    let bytes = b.to_le_bytes();
    let at = if high { 2 } else { 0 };
    c.wrapping_add(wide(a).wrapping_mul(narrow(bytes[at])) as u32)
        .wrapping_add(wide(a >> 16).wrapping_mul(narrow(bytes[at + 1])) as u32)
}

impl Lower<'_> {
    pub(super) fn integer(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let last = i.modifiers.last().map_or("", String::as_str);
        if last == "pred" {
            return self.pred_logic(i);
        }
        match i.opcode.as_str() {
            "prmt" => return self.prmt(i),
            "lop3" => return self.lop3(i),
            "dp4a" | "dp2a" => return self.dot_product(i),
            _ => {}
        }
        let packed = matches!(last, "u16x2" | "s16x2");
        let Some(ty) = Ty::parse(last) else {
            return Err(self.unsupported(format!("type `.{last}`")));
        };
        let (bits, signed) = (ty.bits(), matches!(ty, Ty::S(_)) || last == "s16x2");
        let op = i.opcode.as_str();
        let known: &[&str] = &["sat", "lo", "hi", "wide", "shiftamt", "clamp", "wrap", "l", "r", "relu", last];
        if let Some(bad) = i.modifiers.iter().find(|m| !known.contains(&m.as_str())) {
            return Err(self.unsupported(format!("`.{bad}` of `{op}`")));
        }
        match i.operands.len() {
            2 => {
                let [d, a] = operands(self, i)?;
                let Some(f) = one(op, bits, signed, i.has("shiftamt")) else {
                    return Err(self.unsupported(i.full_name()));
                };
                let wide = if matches!(op, "popc" | "clz" | "bfind") { 32 } else { bits };
                let a = self.src(a, ty)?;
                let d = self.dst(d, wide)?;
                self.emit(Op::Map1 { f, d, a, spread: spread(i) });
            }
            3 => {
                let [d, a, b] = operands(self, i)?;
                let f =
                    if packed { packed2(op, signed, i.has("relu"), i.has("sat")) } else { two(i, op, bits, signed) };
                let Some(f) = f else {
                    return Err(self.unsupported(i.full_name()));
                };
                let a = self.src(a, ty)?;
                let b = self.src(b, if matches!(op, "shl" | "shr" | "szext" | "bmsk") { Ty::U(32) } else { ty })?;
                let d = self.dst(d, if i.has("wide") { bits * 2 } else { bits })?;
                self.emit(Op::Map2 { f, d, a, b, spread: spread(i) });
            }
            4 => {
                let [d, a, b, c] = operands(self, i)?;
                let Some(f) = three(i, op, bits, signed) else {
                    return Err(self.unsupported(i.full_name()));
                };
                let wide = if i.has("wide") { bits * 2 } else { bits };
                let (tb, tc) = match op {
                    "bfe" => (Ty::U(32), Ty::U(32)),
                    "shf" => (ty, Ty::U(32)),
                    "mad" if i.has("wide") => (ty, Ty::B(wide)),
                    _ => (ty, ty),
                };
                let (a, b, c) = (self.src(a, ty)?, self.src(b, tb)?, self.src(c, tc)?);
                let d = self.dst(d, wide)?;
                self.emit(Op::Map3 { f, d, a, b, c, spread: spread(i) });
            }
            5 if op == "bfi" => {
                let [d, a, b, pos, len] = operands(self, i)?;
                let (a, b, pos, len) = (self.src(a, ty)?, self.src(b, ty)?, self.src32(pos)?, self.src32(len)?);
                let d = self.dst(d, bits)?;
                // Position and length travel as one value, so that three sources suffice.
                let both = self.scratch();
                self.emit(Op::Map2 {
                    f: map2!(|p, n| (p & 0xff) | (n & 0xff) << 8),
                    d: both,
                    a: pos,
                    b: len,
                    spread: Spread::BITS,
                });
                let f = if bits == 64 {
                    map3!(|a, b, c| insert_field(a, b, c as u32 & 0xff, (c >> 8) as u32, 64))
                } else {
                    map3!(|a, b, c| insert_field(a, b, c as u32 & 0xff, (c >> 8) as u32, 32))
                };
                self.emit(Op::Map3 { f, d, a, b, c: both.into(), spread: Spread::selected_by(2, 0xffff) });
            }
            n => return Err(self.invalid(format!("`{}` with {n} operands", i.full_name()))),
        }
        Ok(())
    }

    fn pred_logic(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let (d, a, b) = match i.operands.as_slice() {
            [d, a] => (d, self.pred_src(a)?, PredSrc::TRUE),
            [d, a, b] => (d, self.pred_src(a)?, self.pred_src(b)?),
            _ => return Err(self.invalid("two or three predicates expected")),
        };
        let f = match i.opcode.as_str() {
            "and" => |a, b| a & b,
            "or" => |a, b| a | b,
            "xor" => |a, b| a ^ b,
            "not" => |a: u32, _| !a,
            _ => return Err(self.unsupported(i.full_name())),
        };
        if let Some(d) = self.pred_dst(d)? {
            self.emit(Op::Logic { f, d, a, b });
        }
        Ok(())
    }

    fn prmt(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [d, a, b, c] = operands(self, i)?;
        let (a, b, c) = (self.src32(a)?, self.src32(b)?, self.src32(c)?);
        let d = self.dst(d, 32)?;
        let f: Map3 = match i.modifiers.iter().map(String::as_str).find(|m| *m != "b32") {
            None => map3!(|a, b, c| u64::from(permute(a as u32, b as u32, c as u32))),
            Some("f4e") => {
                map3!(|a, b, c| u64::from(permute(a as u32, b as u32, permute_mode("f4e", c as u32).unwrap_or(0))))
            }
            Some("b4e") => {
                map3!(|a, b, c| u64::from(permute(a as u32, b as u32, permute_mode("b4e", c as u32).unwrap_or(0))))
            }
            Some("rc8") => {
                map3!(|a, b, c| u64::from(permute(a as u32, b as u32, permute_mode("rc8", c as u32).unwrap_or(0))))
            }
            Some("ecl") => {
                map3!(|a, b, c| u64::from(permute(a as u32, b as u32, permute_mode("ecl", c as u32).unwrap_or(0))))
            }
            Some("ecr") => {
                map3!(|a, b, c| u64::from(permute(a as u32, b as u32, permute_mode("ecr", c as u32).unwrap_or(0))))
            }
            Some("rc16") => {
                map3!(|a, b, c| u64::from(permute(a as u32, b as u32, permute_mode("rc16", c as u32).unwrap_or(0))))
            }
            Some(mode) => return Err(self.unsupported(format!("`.{mode}` of `prmt`"))),
        };
        self.emit(Op::Map3 { f, d, a, b, c, spread: spread(i) });
        Ok(())
    }

    fn lop3(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let (d, rest) = match i.operands.as_slice() {
            [d, rest @ ..] if rest.len() == 4 || (rest.len() == 5 && (i.has("and") || i.has("or"))) => (d, rest),
            _ => return Err(self.invalid("`lop3` takes d, a, b, c, table")),
        };
        let (a, b, c) = (self.src32(&rest[0])?, self.src32(&rest[1])?, self.src32(&rest[2])?);
        let Some(table @ 0..=255) = self.immediate(&rest[3]) else {
            return Err(self.invalid("the table of `lop3` is a number from 0 to 255"));
        };
        let table = table as u32;
        let (value, pred) = match d {
            crate::ast::Operand::Pair(d, p) => (d.as_ref(), self.pred_dst(p)?),
            d => (d, None),
        };
        let d = self.dst(value, 32)?;
        let combine = match rest.get(4) {
            Some(q) => Some((i.has("or"), self.pred_src(q)?)),
            None => None,
        };
        let look_up = move |x: &Lanes, y: &Lanes, z: &Lanes, out: &mut Lanes| {
            *out = [0; 32];
            for t in (0..8).filter(|t| table >> t & 1 == 1) {
                for l in 0..32 {
                    let (x, y, z) = (x[l], y[l], z[l]);
                    let (x, y, z) = (
                        if t & 4 == 0 { !x } else { x },
                        if t & 2 == 0 { !y } else { y },
                        if t & 1 == 0 { !z } else { z },
                    );
                    out[l] |= x & y & z & 0xffff_ffff;
                }
            }
        };
        self.emit_custom(Box::new(move |cx, mask| {
            let mut out = [0u64; 32];
            look_up(cx.lanes(a), cx.lanes(b), cx.lanes(c), &mut out);
            if (cx.poison(a) | cx.poison(b) | cx.poison(c)) & mask == 0 {
                cx.write(d, mask, &out, 0);
            } else {
                cx.write_spread(Spread::BITS, &[a, b, c], &|v, d| look_up(&v[0], &v[1], &v[2], d), d, mask, &out);
            }
            if let (Some(p), Some((or, q))) = (pred, combine) {
                let set = out.iter().enumerate().fold(0u32, |m, (l, v)| m | u32::from(*v != 0) << l);
                // One written bit that is set decides.
                let holes = cx.unwritten(d.into());
                let open = (0..32).fold(0u32, |m, l| m | u32::from(holes[l] != 0 && out[l] & !holes[l] == 0) << l);
                let q_open = cx.warp.pred_poison(q);
                let q = cx.pred(q);
                let (value, open) = if or {
                    (set | q, open & !(q & !q_open) | q_open & !(set & !open))
                } else {
                    (set & q, open & (q | q_open) | q_open & (set | open))
                };
                cx.warp.write_pred(p, mask, value, open);
            }
            Ok(crate::exec::program::Flow::Next)
        }));
        Ok(())
    }

    fn dot_product(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [d, a, b, c] = operands(self, i)?;
        let (a, b, c) = (self.src32(a)?, self.src32(b)?, self.src32(c)?);
        let d = self.dst(d, 32)?;
        let types: Vec<bool> =
            i.modifiers.iter().filter(|m| matches!(m.as_str(), "s32" | "u32")).map(|m| m == "s32").collect();
        let &[sa, sb] = types.as_slice() else {
            return Err(self.invalid("two types expected"));
        };
        let f: Map3 = match (i.opcode.as_str(), i.has("hi"), sa, sb) {
            ("dp4a", _, true, true) => map3!(|a, b, c| u64::from(dot(a as u32, b as u32, c as u32, true, true))),
            ("dp4a", _, true, false) => map3!(|a, b, c| u64::from(dot(a as u32, b as u32, c as u32, true, false))),
            ("dp4a", _, false, true) => map3!(|a, b, c| u64::from(dot(a as u32, b as u32, c as u32, false, true))),
            ("dp4a", _, false, false) => map3!(|a, b, c| u64::from(dot(a as u32, b as u32, c as u32, false, false))),
            (_, false, true, true) => map3!(|a, b, c| u64::from(dot2(a as u32, b as u32, c as u32, true, true, false))),
            (_, false, true, false) => {
                map3!(|a, b, c| u64::from(dot2(a as u32, b as u32, c as u32, true, false, false)))
            }
            (_, false, false, true) => {
                map3!(|a, b, c| u64::from(dot2(a as u32, b as u32, c as u32, false, true, false)))
            }
            (_, false, false, false) => {
                map3!(|a, b, c| u64::from(dot2(a as u32, b as u32, c as u32, false, false, false)))
            }
            (_, true, true, true) => map3!(|a, b, c| u64::from(dot2(a as u32, b as u32, c as u32, true, true, true))),
            (_, true, true, false) => map3!(|a, b, c| u64::from(dot2(a as u32, b as u32, c as u32, true, false, true))),
            (_, true, false, true) => map3!(|a, b, c| u64::from(dot2(a as u32, b as u32, c as u32, false, true, true))),
            (_, true, false, false) => {
                map3!(|a, b, c| u64::from(dot2(a as u32, b as u32, c as u32, false, false, true)))
            }
        };
        self.emit(Op::Map3 { f, d, a, b, c, spread: spread(i) });
        Ok(())
    }
}

/// How unwritten bits of the operands reach the result.
fn spread(i: &Instruction) -> Spread {
    let packed = i.modifiers.iter().any(|m| matches!(m.as_str(), "u16x2" | "s16x2"));
    match i.opcode.as_str() {
        _ if packed => Spread::Parts(16),
        "and" | "or" | "xor" | "not" | "brev" => Spread::BITS,
        "shl" | "shr" => Spread::selected_by(1, u32::MAX),
        "shf" => Spread::selected_by(2, if i.has("wrap") { 31 } else { u32::MAX }),
        "szext" => Spread::selected_by(1, if i.has("wrap") { 31 } else { u32::MAX }),
        "prmt" => Spread::selected_by(2, 0xffff),
        "bfe" => Spread::Bitwise { control: 0b110, used: 0xff },
        "sub" if !i.has("sat") => Spread::Difference,
        "add" | "neg" if !i.has("sat") => Spread::Upwards,
        "mul" | "mad" | "mul24" | "mad24" if !i.has("hi") => Spread::Upwards,
        _ => Spread::Whole,
    }
}

fn one(op: &str, bits: u32, signed: bool, shiftamt: bool) -> Option<Map1> {
    match op {
        "not" => by_width!(bits, U, S => map1!(|a| u64::from(!(a as U)))),
        "cnot" => by_width!(bits, U, S => map1!(|a| u64::from(a as U == 0))),
        "neg" => by_width!(bits, U, S => map1!(|a| u64::from((a as U).wrapping_neg()))),
        "abs" => by_width!(bits, U, S => map1!(|a| u64::from((a as S).wrapping_abs() as U))),
        "popc" => by_width!(bits, U, S => map1!(|a| u64::from((a as U).count_ones()))),
        "clz" => by_width!(bits, U, S => map1!(|a| u64::from((a as U).leading_zeros()))),
        "brev" => by_width!(bits, U, S => map1!(|a| u64::from((a as U).reverse_bits()))),
        // The top bit that differs from the sign; all ones when there is none.
        "bfind" => match (signed, shiftamt) {
            (false, false) => {
                by_width!(bits, U, S => map1!(|a| u64::from(if a as U == 0 { u32::MAX } else { U::BITS - 1 - (a as U).leading_zeros() })))
            }
            (false, true) => {
                by_width!(bits, U, S => map1!(|a| u64::from(if a as U == 0 { u32::MAX } else { (a as U).leading_zeros() })))
            }
            (true, false) => by_width!(bits, U, S => map1!(|a| {
                let v = (a as S ^ (a as S >> (U::BITS - 1))) as U;
                u64::from(if v == 0 { u32::MAX } else { U::BITS - 1 - v.leading_zeros() })
            })),
            (true, true) => by_width!(bits, U, S => map1!(|a| {
                let v = (a as S ^ (a as S >> (U::BITS - 1))) as U;
                u64::from(if v == 0 { u32::MAX } else { v.leading_zeros() })
            })),
        },
        _ => None,
    }
}

fn packed2(op: &str, signed: bool, relu: bool, sat: bool) -> Option<Map2> {
    Some(match (op, signed, relu, sat) {
        ("add", _, false, false) => map2!(|a, b| halves2(a, b, u16::wrapping_add)),
        ("add", true, false, true) => map2!(|a, b| halves2(a, b, |x, y| (x as i16).saturating_add(y as i16) as u16)),
        ("sub", _, false, false) => map2!(|a, b| halves2(a, b, u16::wrapping_sub)),
        ("min", false, false, false) => map2!(|a, b| halves2(a, b, u16::min)),
        ("max", false, false, false) => map2!(|a, b| halves2(a, b, u16::max)),
        ("min", true, false, false) => map2!(|a, b| halves2(a, b, |x, y| (x as i16).min(y as i16) as u16)),
        ("max", true, false, false) => map2!(|a, b| halves2(a, b, |x, y| (x as i16).max(y as i16) as u16)),
        ("min", true, true, false) => map2!(|a, b| halves2(a, b, |x, y| (x as i16).min(y as i16).max(0) as u16)),
        ("max", true, true, false) => map2!(|a, b| halves2(a, b, |x, y| (x as i16).max(y as i16).max(0) as u16)),
        _ => return None,
    })
}

fn two(i: &Instruction, op: &str, bits: u32, signed: bool) -> Option<Map2> {
    match op {
        "and" => Some(map2!(|a, b| a & b)),
        "or" => Some(map2!(|a, b| a | b)),
        "xor" => Some(map2!(|a, b| a ^ b)),
        "shl" => {
            by_width!(bits, U, S => map2!(|a, b| if b as u32 >= U::BITS { 0 } else { u64::from((a as U) << (b as u32)) }))
        }
        "shr" if signed => {
            by_width!(bits, U, S => map2!(|a, b| u64::from(((a as S) >> (b as u32).min(U::BITS - 1)) as U)))
        }
        "shr" => {
            by_width!(bits, U, S => map2!(|a, b| if b as u32 >= U::BITS { 0 } else { u64::from((a as U) >> (b as u32)) }))
        }
        "add" if i.has("sat") => {
            (bits == 32 && signed).then_some(map2!(|a, b| u64::from((a as i32).saturating_add(b as i32) as u32)))
        }
        "sub" if i.has("sat") => {
            (bits == 32 && signed).then_some(map2!(|a, b| u64::from((a as i32).saturating_sub(b as i32) as u32)))
        }
        "add" => by_width!(bits, U, S => map2!(|a, b| u64::from((a as U).wrapping_add(b as U)))),
        "sub" => by_width!(bits, U, S => map2!(|a, b| u64::from((a as U).wrapping_sub(b as U)))),
        "mul" if i.has("wide") => match (bits, signed) {
            (16, true) => Some(map2!(|a, b| u64::from((i32::from(a as i16) * i32::from(b as i16)) as u32))),
            (16, false) => Some(map2!(|a, b| u64::from(u32::from(a as u16) * u32::from(b as u16)))),
            (32, true) => Some(map2!(|a, b| (i64::from(a as i32) * i64::from(b as i32)) as u64)),
            (32, false) => Some(map2!(|a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff))),
            _ => None,
        },
        "mul" if i.has("hi") => match (bits, signed) {
            (16, true) => Some(map2!(|a, b| u64::from((i32::from(a as i16) * i32::from(b as i16) >> 16) as u16))),
            (16, false) => Some(map2!(|a, b| u64::from(u32::from(a as u16) * u32::from(b as u16) >> 16))),
            (32, true) => Some(map2!(|a, b| u64::from((i64::from(a as i32) * i64::from(b as i32) >> 32) as u32))),
            (32, false) => Some(map2!(|a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff) >> 32)),
            (64, true) => Some(map2!(|a, b| (i128::from(a as i64) * i128::from(b as i64) >> 64) as u64)),
            (64, false) => Some(map2!(|a, b| (u128::from(a) * u128::from(b) >> 64) as u64)),
            _ => None,
        },
        "mul" if i.has("lo") => by_width!(bits, U, S => map2!(|a, b| u64::from((a as U).wrapping_mul(b as U)))),
        "mul24" | "bmsk" | "szext" if bits != 32 => None,
        "mul24" => match (i.has("hi"), signed) {
            (false, true) => Some(map2!(|a, b| u64::from((sext24(a) * sext24(b)) as u32))),
            (false, false) => Some(map2!(|a, b| (a & 0xff_ffff) * (b & 0xff_ffff) & 0xffff_ffff)),
            (true, true) => Some(map2!(|a, b| u64::from((sext24(a) * sext24(b) >> 16) as u32))),
            (true, false) => Some(map2!(|a, b| (a & 0xff_ffff) * (b & 0xff_ffff) >> 16)),
        },
        // Division by zero gives all ones, as the hardware's sequence does; PTX leaves it open.
        "div" if signed => {
            by_width!(bits, U, S => map2!(|a, b| u64::from(if b as S == 0 { U::MAX } else { (a as S).wrapping_div(b as S) as U })))
        }
        "div" => by_width!(bits, U, S => map2!(|a, b| u64::from((a as U).checked_div(b as U).unwrap_or(U::MAX)))),
        "rem" if signed => {
            by_width!(bits, U, S => map2!(|a, b| u64::from(if b as S == 0 { a as U } else { (a as S).wrapping_rem(b as S) as U })))
        }
        "rem" => by_width!(bits, U, S => map2!(|a, b| u64::from((a as U).checked_rem(b as U).unwrap_or(a as U)))),
        "min" if i.has("relu") => {
            (bits == 32 && signed).then_some(map2!(|a, b| u64::from((a as i32).min(b as i32).max(0) as u32)))
        }
        "max" if i.has("relu") => {
            (bits == 32 && signed).then_some(map2!(|a, b| u64::from((a as i32).max(b as i32).max(0) as u32)))
        }
        "min" if signed => by_width!(bits, U, S => map2!(|a, b| u64::from((a as S).min(b as S) as U))),
        "max" if signed => by_width!(bits, U, S => map2!(|a, b| u64::from((a as S).max(b as S) as U))),
        "min" => by_width!(bits, U, S => map2!(|a, b| u64::from((a as U).min(b as U)))),
        "max" => by_width!(bits, U, S => map2!(|a, b| u64::from((a as U).max(b as U)))),
        "bmsk" => Some(if i.has("wrap") {
            map2!(|a, b| u64::from(bit_mask(a as u32 & 31, b as u32 & 31)))
        } else {
            map2!(|a, b| u64::from(if a as u32 >= 32 { 0 } else { bit_mask(a as u32, (b as u32).min(32)) }))
        }),
        "szext" => Some(match (i.has("wrap"), signed) {
            (true, s) => {
                if s {
                    map2!(|a, b| extend(a as u32, b as u32 & 31, true))
                } else {
                    map2!(|a, b| extend(a as u32, b as u32 & 31, false))
                }
            }
            (false, true) => map2!(|a, b| extend(a as u32, (b as u32).min(32), true)),
            (false, false) => map2!(|a, b| extend(a as u32, (b as u32).min(32), false)),
        }),
        _ => None,
    }
}

#[inline]
fn sext24(a: u64) -> i64 {
    i64::from((a as i32) << 8 >> 8)
}

/// `len` ones from bit `pos`.
#[inline]
fn bit_mask(pos: u32, len: u32) -> u32 {
    ((((1u64 << len) - 1) << pos) & 0xffff_ffff) as u32
}

/// Sign- or zero-extends the low `n` bits, 32 or more: unchanged.
#[inline]
fn extend(a: u32, n: u32, signed: bool) -> u64 {
    u64::from(match n {
        0 => 0,
        32.. => a,
        n if signed => ((a as i32) << (32 - n) >> (32 - n)) as u32,
        n => a & ((1 << n) - 1),
    })
}

fn three(i: &Instruction, op: &str, bits: u32, signed: bool) -> Option<Map3> {
    match op {
        "mad" if i.has("wide") => match (bits, signed) {
            (16, true) => Some(map3!(|a, b, c| u64::from(
                (i32::from(a as i16) * i32::from(b as i16)).wrapping_add(c as i32) as u32
            ))),
            (16, false) => {
                Some(map3!(|a, b, c| u64::from((u32::from(a as u16) * u32::from(b as u16)).wrapping_add(c as u32))))
            }
            (32, true) => {
                Some(map3!(|a, b, c| (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64))
            }
            (32, false) => Some(map3!(|a, b, c| ((a & 0xffff_ffff) * (b & 0xffff_ffff)).wrapping_add(c))),
            _ => None,
        },
        "mad" if i.has("hi") && i.has("sat") => (bits == 32 && signed).then_some(map3!(|a, b, c| u64::from(
            ((i64::from(a as i32) * i64::from(b as i32) >> 32) as i32).saturating_add(c as i32) as u32
        ))),
        "mad" if i.has("hi") => match (bits, signed) {
            (16, true) => Some(map3!(|a, b, c| u64::from(
                ((i32::from(a as i16) * i32::from(b as i16) >> 16) as u16).wrapping_add(c as u16)
            ))),
            (16, false) => Some(map3!(|a, b, c| u64::from(
                ((u32::from(a as u16) * u32::from(b as u16) >> 16) as u16).wrapping_add(c as u16)
            ))),
            (32, true) => Some(map3!(|a, b, c| u64::from(
                ((i64::from(a as i32) * i64::from(b as i32) >> 32) as u32).wrapping_add(c as u32)
            ))),
            (32, false) => Some(map3!(|a, b, c| u64::from(
                (((a & 0xffff_ffff) * (b & 0xffff_ffff) >> 32) as u32).wrapping_add(c as u32)
            ))),
            (64, true) => {
                Some(map3!(|a, b, c| ((i128::from(a as i64) * i128::from(b as i64) >> 64) as u64).wrapping_add(c)))
            }
            (64, false) => Some(map3!(|a, b, c| ((u128::from(a) * u128::from(b) >> 64) as u64).wrapping_add(c))),
            _ => None,
        },
        "mad" if i.has("lo") => {
            by_width!(bits, U, S => map3!(|a, b, c| u64::from((a as U).wrapping_mul(b as U).wrapping_add(c as U))))
        }
        "mad24" | "fns" | "shf" if bits != 32 => None,
        "mad24" if i.has("sat") => (i.has("hi") && signed).then_some(map3!(|a, b, c| u64::from(
            ((sext24(a) * sext24(b) >> 16) as i32).saturating_add(c as i32) as u32
        ))),
        "mad24" => match (i.has("hi"), signed) {
            (false, true) => Some(map3!(|a, b, c| u64::from(((sext24(a) * sext24(b)) as u32).wrapping_add(c as u32)))),
            (false, false) => {
                Some(map3!(|a, b, c| u64::from((((a & 0xff_ffff) * (b & 0xff_ffff)) as u32).wrapping_add(c as u32))))
            }
            (true, true) => {
                Some(map3!(|a, b, c| u64::from(((sext24(a) * sext24(b) >> 16) as u32).wrapping_add(c as u32))))
            }
            (true, false) => Some(map3!(|a, b, c| u64::from(
                (((a & 0xff_ffff) * (b & 0xff_ffff) >> 16) as u32).wrapping_add(c as u32)
            ))),
        },
        "sad" if signed => {
            by_width!(bits, U, S => map3!(|a, b, c| u64::from((a as S).abs_diff(b as S).wrapping_add(c as U))))
        }
        "sad" => by_width!(bits, U, S => map3!(|a, b, c| u64::from((a as U).abs_diff(b as U).wrapping_add(c as U)))),
        "bfe" => Some(match (bits, signed) {
            (32, true) => map3!(|a, b, c| bit_field(a, b as u32, c as u32, 32, true)),
            (32, false) => map3!(|a, b, c| bit_field(a, b as u32, c as u32, 32, false)),
            (64, true) => map3!(|a, b, c| bit_field(a, b as u32, c as u32, 64, true)),
            (64, false) => map3!(|a, b, c| bit_field(a, b as u32, c as u32, 64, false)),
            _ => return None,
        }),
        "fns" => Some(map3!(|a, b, c| u64::from(find_nth_set(a as u32, b as u32, c as i32)))),
        // Funnel shift of b:a.
        "shf" => Some(match (i.has("l"), i.has("wrap")) {
            (true, true) => map3!(|a, b, c| (b << 32 | a) << (c & 31) >> 32),
            (true, false) => map3!(|a, b, c| if c as u32 >= 32 { a } else { (b << 32 | a) << (c as u32) >> 32 }),
            (false, true) => map3!(|a, b, c| (b << 32 | a) >> (c & 31) & 0xffff_ffff),
            (false, false) => {
                map3!(|a, b, c| if c as u32 >= 32 { b } else { (b << 32 | a) >> (c as u32) & 0xffff_ffff })
            }
        }),
        // Three-input minimum and maximum (PTX 8.6).
        "min" if bits == 32 && signed => {
            Some(map3!(|a, b, c| u64::from((a as i32).min(b as i32).min(c as i32) as u32)))
        }
        "max" if bits == 32 && signed => {
            Some(map3!(|a, b, c| u64::from((a as i32).max(b as i32).max(c as i32) as u32)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{bit_field, find_nth_set, insert_field, permute};

    #[test]
    fn permute_selects_bytes_and_signs() {
        assert_eq!(permute(0x0403_0201, 0x0807_0605, 0x7531), 0x0806_0402);
        assert_eq!(permute(0x0000_0080, 0, 0x8888), 0xffff_ffff);
    }

    #[test]
    fn bit_fields_beyond_the_end_repeat_the_sign() {
        assert_eq!(bit_field(0x8000_0000, 24, 16, 32, true), 0xffff_ff80);
        assert_eq!(bit_field(0x8000_0000, 24, 16, 32, false), 0x80);
        assert_eq!(bit_field(0x8000_0000, 40, 4, 32, true), 0xffff_ffff);
        assert_eq!(bit_field(5, 0, 0, 32, true), 0);
        assert_eq!(insert_field(0xff, 0, 28, 8, 32), 0xf000_0000);
    }

    #[test]
    fn nth_set_bit_in_both_directions() {
        assert_eq!(find_nth_set(0b1010_1100, 0, 2), 3);
        assert_eq!(find_nth_set(0b1010_1100, 7, -2), 5);
        assert_eq!(find_nth_set(0b1010_1100, 2, 0), 2);
        assert_eq!(find_nth_set(0b1010_1100, 0, 9), u32::MAX);
    }
}
