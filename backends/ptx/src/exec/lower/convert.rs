//! `cvt` in every form.

// Widths are written once for all types, so that some conversions change nothing.
#![allow(clippy::useless_conversion)]

use super::lanes::{by_width, map1};
use super::{Lower, Ty};
use crate::ast::{Instruction, Operand};
use crate::exec::error::CompileError;
use crate::exec::program::{Flow, Lanes, Map1, Op, Src};
use crate::exec::unwritten::Spread;
use crate::numeric::format::{
    self, BF16, E2M1, E2M3, E3M2, E4M3, E5M2, F16, F32, F64, Format, Rounding, TF32, TF32_SHIFT,
};
use crate::numeric::half::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::numeric::{FloatCvt, float_to_float, float_to_int, int_to_float, round_to_integral, scale};

/// An element type of `cvt`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Int {
        bits: u32,
        signed: bool,
    },
    Float(Format),
    /// A number of packed elements: e4m3x2, f16x2 …; 4-bit elements take 4 bits, fp6 ones a byte.
    Packed {
        format: Format,
        count: u32,
        bits: u32,
    },
    Ue8m0x2,
    S2f6x2,
}

fn kind(word: &str) -> Option<Kind> {
    let packed = |format, count, bits| Some(Kind::Packed { format, count, bits });
    match word {
        "u8" | "u16" | "u32" | "u64" => Some(Kind::Int { bits: word[1..].parse().ok()?, signed: false }),
        "s8" | "s16" | "s32" | "s64" => Some(Kind::Int { bits: word[1..].parse().ok()?, signed: true }),
        "f16" => Some(Kind::Float(F16)),
        "bf16" => Some(Kind::Float(BF16)),
        "f32" => Some(Kind::Float(F32)),
        "f64" => Some(Kind::Float(F64)),
        "tf32" => Some(Kind::Float(TF32)),
        "f16x2" => packed(F16, 2, 16),
        "bf16x2" => packed(BF16, 2, 16),
        "e4m3x2" => packed(E4M3, 2, 8),
        "e5m2x2" => packed(E5M2, 2, 8),
        "e2m3x2" => packed(E2M3, 2, 8),
        "e3m2x2" => packed(E3M2, 2, 8),
        "e2m1x2" => packed(E2M1, 2, 4),
        "e4m3x4" => packed(E4M3, 4, 8),
        "e5m2x4" => packed(E5M2, 4, 8),
        "e2m3x4" => packed(E2M3, 4, 8),
        "e3m2x4" => packed(E3M2, 4, 8),
        "e2m1x4" => packed(E2M1, 4, 4),
        "ue8m0x2" => Some(Kind::Ue8m0x2),
        "s2f6x2" => Some(Kind::S2f6x2),
        _ => None,
    }
}

impl Kind {
    fn register_bits(self) -> u32 {
        match self {
            Kind::Int { bits, .. } => bits,
            Kind::Float(f) if f == TF32 => 32,
            Kind::Float(f) => f.width(),
            Kind::Packed { count, bits, .. } => count * bits,
            Kind::Ue8m0x2 | Kind::S2f6x2 => 16,
        }
    }
}

const MODES: [&str; 12] = ["rn", "rz", "rm", "rp", "rna", "rs", "rni", "rzi", "rmi", "rpi", "ftz", "sat"];

impl Lower<'_> {
    pub(super) fn convert(&mut self, i: &Instruction) -> Result<(), CompileError> {
        if i.has("pack") {
            return self.convert_pack(i);
        }
        let known = |m: &str| MODES.contains(&m) || matches!(m, "relu" | "satfinite" | "scaled::n2::ue8m0");
        let words: Vec<&str> = i.modifiers.iter().map(String::as_str).filter(|m| kind(m).is_some()).collect();
        if let Some(bad) = i.modifiers.iter().find(|m| !known(m) && kind(m).is_none()) {
            return Err(self.unsupported(format!("`.{bad}` of `cvt`")));
        }
        let &[to_word, from_word] = words.as_slice() else {
            return Err(self.invalid("`cvt` takes two types"));
        };
        let (Some(to), Some(from)) = (kind(to_word), kind(from_word)) else {
            return Err(self.invalid("`cvt` takes two types"));
        };
        match (to, from) {
            (Kind::Packed { .. } | Kind::Ue8m0x2 | Kind::S2f6x2, _) => self.convert_packed(i, to, from),
            (_, Kind::Packed { .. } | Kind::Ue8m0x2 | Kind::S2f6x2) => Err(self.unsupported(i.full_name())),
            _ => self.convert_scalar(i, to, from),
        }
    }

    fn rounding_of(&self, i: &Instruction) -> Rounding {
        for m in &i.modifiers {
            match m.as_str() {
                "rn" | "rni" => return Rounding::NearestEven,
                "rz" | "rzi" => return Rounding::Zero,
                "rm" | "rmi" => return Rounding::Down,
                "rp" | "rpi" => return Rounding::Up,
                "rna" => return Rounding::NearestAway,
                _ => {}
            }
        }
        Rounding::NearestEven
    }

    fn convert_scalar(&mut self, i: &Instruction, to: Kind, from: Kind) -> Result<(), CompileError> {
        let [d, a] = super::operands(self, i)?;
        let source_bits = from.register_bits();
        let (a, have) = self.src_any(a, Ty::B(source_bits))?;
        if have < source_bits {
            return Err(self.invalid(format!("the source has {have} bits, {source_bits} expected")));
        }
        let (d, want) = self.dst_any(d, to.register_bits())?;
        if want < to.register_bits() || want > 64 || have > 64 {
            return Err(self.invalid(format!("the destination has {want} bits, {} expected", to.register_bits())));
        }
        let (flush, sat, relu, satfinite) = (i.has("ftz"), i.has("sat"), i.has("relu"), i.has("satfinite"));
        let r = self.rounding_of(i);
        let integral = i.modifiers.iter().any(|m| matches!(m.as_str(), "rni" | "rzi" | "rmi" | "rpi"));
        if let Some(f) = quick(i, to, from, want) {
            let integers = matches!((to, from), (Kind::Int { .. }, Kind::Int { .. }));
            let spread = if integers { Spread::BITS } else { Spread::Whole };
            self.emit(Op::Map1 { f, d, a, spread });
            return Ok(());
        }
        let full = if want == 64 { u64::MAX } else { (1u64 << want) - 1 };
        type Element = Box<dyn Fn(u64) -> u64 + Send + Sync>;
        let f: Element = match (to, from) {
            (Kind::Int { bits, signed }, Kind::Int { bits: from_bits, signed: from_signed }) => Box::new(move |v| {
                let mut x = integer(v, from_bits, from_signed);
                if sat {
                    let (low, high) = if signed {
                        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
                    } else {
                        (0, (1i128 << bits) - 1)
                    };
                    x = x.clamp(low, high);
                }
                // The result keeps its sign in a wider register.
                integer(x as u64, bits, signed) as u64 & full
            }),
            (Kind::Int { bits, signed }, Kind::Float(format)) => Box::new(move |v| {
                let mut x = format::decode(v, &format);
                if flush && x.abs() < f64::from(f32::MIN_POSITIVE) {
                    x = 0.0;
                }
                let value = float_to_int(x, r, signed, bits, format == F64);
                integer(value, bits, signed) as u64 & full
            }),
            (Kind::Float(format), Kind::Int { bits, signed }) => Box::new(move |v| {
                let x = int_to_float(integer(v, bits, signed), &format, r);
                if sat { format::encode(format::decode(x, &format).clamp(0.0, 1.0), &format, r, false) } else { x }
            }),
            (Kind::Float(to), Kind::Float(from)) if integral => Box::new(move |v| {
                let mut x = format::decode(v, &from);
                if flush && from == F32 && x.abs() < f64::from(f32::MIN_POSITIVE) {
                    x = 0f64.copysign(x);
                }
                x = round_to_integral(x, r);
                if sat {
                    x = if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 };
                }
                format::encode(x, &to, Rounding::NearestEven, false)
            }),
            (Kind::Float(to), Kind::Float(from)) => {
                let cvt = FloatCvt { rounding: r, ftz: flush, sat, relu, satfinite, ..FloatCvt::new(from, to, r) };
                let shift = if to == TF32 { TF32_SHIFT } else { 0 };
                let same = to == from;
                Box::new(move |v| if same && !sat && !relu && !flush { v } else { float_to_float(v, &cvt) << shift })
            }
            _ => return Err(self.unsupported(i.full_name())),
        };
        self.emit_custom(Box::new(move |cx, mask| {
            let out = cx.lanes(a).map(&f);
            let poison = cx.poison(a);
            cx.write(d, mask, &out, poison);
            Ok(Flow::Next)
        }));
        Ok(())
    }

    /// Packed destinations. `cvt.rn.f16x2.f32 d, a, b`: a goes to the upper half.
    fn convert_packed(&mut self, i: &Instruction, to: Kind, from: Kind) -> Result<(), CompileError> {
        let [d, sources @ ..] = i.operands.as_slice() else {
            return Err(self.invalid("operands expected"));
        };
        let stochastic = i.has("rs");
        let (relu, satfinite) = (i.has("relu"), i.has("satfinite"));
        let r = self.rounding_of(i);
        // Sources as elements, lowest first.
        let mut elements: Vec<(Src, u32, u32)> = Vec::new();
        let mut random = None;
        let mut factor = None;
        let source_format = match from {
            Kind::Float(format) => {
                let listed: Vec<&Operand> = match sources {
                    [Operand::Vector(list), ..] => list.iter().collect(),
                    [a, b, ..] => vec![a, b],
                    _ => return Err(self.invalid("two sources expected")),
                };
                let rest =
                    if matches!(sources.first(), Some(Operand::Vector(_))) { &sources[1..] } else { &sources[2..] };
                for o in listed.iter().rev() {
                    elements.push((self.src(o, Ty::B(format.width()))?, 0, format.width()));
                }
                match rest {
                    [bits] if stochastic => random = Some(self.src32(bits)?),
                    [] if !stochastic => {}
                    [f] if i.has("scaled::n2::ue8m0") => factor = Some(self.src(f, Ty::B(16))?),
                    _ => return Err(self.invalid("wrong number of sources")),
                }
                format
            }
            Kind::Packed { format, count, bits } => {
                let a = sources.first().ok_or_else(|| self.invalid("a source expected"))?;
                let (src, have) = self.src_any(a, Ty::B(count * bits))?;
                if have < count * bits {
                    return Err(self.invalid(format!("the source has {have} bits, {} expected", count * bits)));
                }
                for n in 0..count {
                    elements.push((src, n * bits, bits));
                }
                if let [_, f] = sources {
                    factor = Some(self.src(f, Ty::B(16))?);
                }
                format
            }
            Kind::Ue8m0x2 => return self.widen_ue8m0(i, d, sources),
            Kind::S2f6x2 | Kind::Int { .. } => return Err(self.unsupported(i.full_name())),
        };
        if let (
            Kind::Packed { format: to_format, count: 2, .. },
            Kind::Float(f),
            None,
            None,
            false,
            false,
            Rounding::NearestEven,
        ) = (to, from, random, factor, relu, satfinite, r)
            && f == F32
            && (to_format == BF16 || to_format == F16)
        {
            let (a, b) = (elements[1].0, elements[0].0);
            let d = self.dst(d, 32)?;
            let f = if to_format == BF16 {
                super::lanes::map2!(|a, b| u64::from(bf16(a)) << 16 | u64::from(bf16(b)))
            } else {
                super::lanes::map2!(|a, b| u64::from(f16(a)) << 16 | u64::from(f16(b)))
            };
            self.emit(Op::Map2 { f, d, a, b, spread: Spread::Pair });
            return Ok(());
        }
        let (bits, count) = match to {
            Kind::Packed { bits, count, .. } => (bits, count),
            _ => (8, 2),
        };
        if elements.len() != count as usize {
            return Err(self.invalid(format!("{} source elements for {count}", elements.len())));
        }
        let (d, have) = self.dst_any(d, count * bits)?;
        if have < count * bits {
            return Err(self.invalid(format!("the destination has {have} bits, {} expected", count * bits)));
        }
        let flush = i.has("ftz");
        self.emit_custom(Box::new(move |cx, mask| {
            let mut out: Lanes = [0; 32];
            for (l, o) in out.iter_mut().enumerate() {
                for (n, (src, shift, width)) in elements.iter().enumerate() {
                    let field = if *width == 64 { u64::MAX } else { (1u64 << width) - 1 };
                    let mut v = cx.lanes(*src)[l] >> shift & field;
                    if let Some(factor) = factor {
                        let scale = scale::ue8m0_to_f32((cx.lanes(factor)[l] >> (8 * n)) as u8);
                        let scaled = format::decode(v, &source_format) * f64::from(scale);
                        v = format::encode(scaled, &F32, Rounding::NearestEven, false);
                    }
                    let format = if factor.is_some() { F32 } else { source_format };
                    let rounding = match random {
                        Some(random) => stochastic_rounding(cx.lanes(random)[l] as u32, n as u32, count),
                        None => r,
                    };
                    let element = match to {
                        Kind::Packed { format: to, .. } => {
                            let cvt = FloatCvt {
                                rounding,
                                ftz: flush,
                                relu,
                                satfinite,
                                ..FloatCvt::new(format, to, rounding)
                            };
                            float_to_float(v, &cvt)
                        }
                        Kind::S2f6x2 => fixed(format::decode(v, &format), relu),
                        _ => u64::from(scale::f32_to_ue8m0(format::decode(v, &format) as f32, r, satfinite)),
                    };
                    *o |= element << (n as u32 * bits);
                }
            }
            let shared = random.map_or(0, |s| cx.poison(s)) | factor.map_or(0, |s| cx.poison(s));
            let poison = elements.iter().fold(shared, |p, (s, _, _)| p | cx.poison(*s));
            if poison & mask == 0 || shared & mask != 0 {
                cx.write(d, mask, &out, poison);
            } else {
                // Each element has its own source.
                let mut holes = [0u64; 32];
                for (n, (src, shift, width)) in elements.iter().enumerate() {
                    let field = if *width == 64 { u64::MAX } else { (1u64 << width) - 1 };
                    let open = cx.unwritten(*src);
                    for l in 0..32 {
                        let open = open[l] >> shift & field != 0;
                        holes[l] |= (u64::from(open) * ((1u64 << bits) - 1)) << (n as u32 * bits);
                    }
                }
                cx.warp.write_bits(d, mask, &out, &holes, 0);
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn widen_ue8m0(&mut self, i: &Instruction, d: &Operand, sources: &[Operand]) -> Result<(), CompileError> {
        let ([a], true) = (sources, i.has("bf16x2")) else {
            return Err(self.unsupported(i.full_name()));
        };
        let a = self.src(a, Ty::B(16))?;
        let d = self.dst(d, 32)?;
        let f = map1!(|a| {
            let half = |b: u8| u64::from(f32_to_bf16(scale::ue8m0_to_f32(b)));
            half(a as u8) | half((a >> 8) as u8) << 16
        });
        self.emit(Op::Map1 { f, d, a, spread: Spread::Whole });
        Ok(())
    }

    /// `cvt.pack.sat.u8.s32.b32 d, a, b, c`: saturated a and b below the shifted c.
    fn convert_pack(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [d, a, b, rest @ ..] = i.operands.as_slice() else {
            return Err(self.invalid("operands expected"));
        };
        let words: Vec<&str> = i.modifiers.iter().map(String::as_str).filter(|m| kind(m).is_some()).collect();
        let (Some(Kind::Int { bits, signed }), Some(&"s32")) = (words.first().and_then(|w| kind(w)), words.get(1))
        else {
            return Err(self.unsupported(i.full_name()));
        };
        let (a, b) = (self.src32(a)?, self.src32(b)?);
        let c = match rest {
            [c] => Some(self.src32(c)?),
            _ => None,
        };
        let d = self.dst(d, 32)?;
        let (low, high) =
            if signed { (-(1i64 << (bits - 1)), (1i64 << (bits - 1)) - 1) } else { (0, (1i64 << bits) - 1) };
        let clamp = move |v: u64| i64::from(v as i32).clamp(low, high) as u64 & ((1 << bits) - 1);
        self.emit_custom(Box::new(move |cx, mask| {
            let mut out = [0u64; 32];
            for (l, o) in out.iter_mut().enumerate() {
                *o = clamp(cx.lanes(b)[l]) | clamp(cx.lanes(a)[l]) << bits;
                if let Some(c) = c {
                    *o = (cx.lanes(c)[l] << (2 * bits) | *o) & 0xffff_ffff;
                }
            }
            let poison = cx.poison(a) | cx.poison(b) | c.map_or(0, |c| cx.poison(c));
            if poison & mask == 0 {
                cx.write(d, mask, &out, 0);
            } else {
                let element = |open: u64, at: u32| if open == 0 { 0 } else { ((1u64 << bits) - 1) << at };
                let (ua, ub, uc) = (cx.unwritten(a), cx.unwritten(b), c.map_or([0; 32], |c| cx.unwritten(c)));
                let holes = std::array::from_fn(|l| {
                    (element(ub[l], 0) | element(ua[l], bits) | uc[l] << (2 * bits)) & 0xffff_ffff
                });
                cx.warp.write_bits(d, mask, &out, &holes, 0);
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }
}

/// s2f6: 8 bits of signed fixed point with 6 fraction bits, saturating.
fn fixed(x: f64, relu: bool) -> u64 {
    if x.is_nan() {
        return 0;
    }
    let v = (x * 64.0).round_ties_even().clamp(-128.0, 127.0) as i64;
    (if relu { v.max(0) } else { v }) as u64 & 0xff
}

/// The random bits of an element: two halves of 16 for x2 destinations, four bytes for x4.
fn stochastic_rounding(bits: u32, element: u32, count: u32) -> Rounding {
    let each = 32 / count;
    Rounding::Stochastic { bits: bits >> (element * each) & ((1u64 << each) - 1) as u32, count: each }
}

/// The mathematical value of an integer's low bits.
#[inline]
fn integer(v: u64, bits: u32, signed: bool) -> i128 {
    if signed {
        i128::from((v as i64) << (64 - bits) >> (64 - bits))
    } else if bits == 64 {
        i128::from(v)
    } else {
        i128::from(v & ((1 << bits) - 1))
    }
}

#[inline]
fn bf16(v: u64) -> u16 {
    let x = f32::from_bits(v as u32);
    if x.is_nan() { 0x7fff } else { f32_to_bf16(x) }
}

#[inline]
fn f16(v: u64) -> u16 {
    let x = f32::from_bits(v as u32);
    if x.is_nan() { 0x7fff } else { f32_to_f16(x) }
}

/// Function pointers for the conversions of inner loops.
fn quick(i: &Instruction, to: Kind, from: Kind, want: u32) -> Option<Map1> {
    let plain = !["sat", "ftz", "relu", "satfinite"].iter().any(|m| i.has(m));
    if !plain {
        return None;
    }
    match (to, from) {
        // Truncation and extension: cut to the narrower of both, extend by the source's sign.
        (Kind::Int { bits, signed }, Kind::Int { bits: from_bits, signed: from_signed }) => {
            if bits <= from_bits {
                // The destination type's own sign extends it in a wider register.
                return match (bits, signed && want > bits) {
                    (8, false) => Some(map1!(|a| a & 0xff)),
                    (16, false) => Some(map1!(|a| a & 0xffff)),
                    (32, false) => Some(map1!(|a| a & 0xffff_ffff)),
                    (64, _) => Some(map1!(|a| a)),
                    (8, true) => by_width!(want, U, S => map1!(|a| u64::from(a as u8 as i8 as S as U))),
                    (16, true) if want == 32 => Some(map1!(|a| u64::from(a as i16 as i32 as u32))),
                    (16, true) if want == 64 => Some(map1!(|a| a as i16 as i64 as u64)),
                    (32, true) if want == 64 => Some(map1!(|a| a as i32 as i64 as u64)),
                    _ => None,
                };
            }
            if want != bits {
                return None;
            }
            match (from_bits, from_signed) {
                (8, false) => Some(map1!(|a| a & 0xff)),
                (16, false) => Some(map1!(|a| a & 0xffff)),
                (32, false) => Some(map1!(|a| a & 0xffff_ffff)),
                (8, true) => by_width!(bits, U, S => map1!(|a| u64::from(a as i8 as S as U))),
                (16, true) if bits == 32 => Some(map1!(|a| u64::from(a as i16 as i32 as u32))),
                (16, true) if bits == 64 => Some(map1!(|a| a as i16 as i64 as u64)),
                (32, true) if bits == 64 => Some(map1!(|a| a as i32 as i64 as u64)),
                _ => None,
            }
        }
        (Kind::Float(t), Kind::Float(f)) if f == F32 && (i.has("rn")) && t == BF16 => {
            Some(map1!(|a| u64::from(bf16(a))))
        }
        (Kind::Float(t), Kind::Float(f)) if f == F32 && (i.has("rn")) && t == F16 => Some(map1!(|a| u64::from(f16(a)))),
        (Kind::Float(t), Kind::Float(f)) if t == F32 && f == BF16 => {
            Some(map1!(|a| u64::from(bf16_to_f32(a as u16).to_bits())))
        }
        (Kind::Float(t), Kind::Float(f)) if t == F32 && f == F16 => {
            Some(map1!(|a| u64::from(f16_to_f32(a as u16).to_bits())))
        }
        (Kind::Float(t), Kind::Int { bits: 32, signed: true }) if t == F32 && i.has("rn") => {
            Some(map1!(|a| u64::from((a as i32 as f32).to_bits())))
        }
        (Kind::Float(t), Kind::Int { bits: 32, signed: false }) if t == F32 && i.has("rn") => {
            Some(map1!(|a| u64::from((a as u32 as f32).to_bits())))
        }
        _ => None,
    }
}
