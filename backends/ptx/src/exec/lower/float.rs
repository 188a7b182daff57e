//! Floating-point arithmetic.
//!
//! NaN results of f32 are the canonical 0x7fffffff. Approximate instructions give the correctly rounded value of the
//! function (computed in f64), which is inside every documented error bound.

use super::half::{self, Bf16, F16, HalfMode, min_max_f32, min_max_f64};
use super::lanes::{map1, map2, map3};
use super::moves::ftz;
use super::{Lower, Ty};
use crate::ast::{Instruction, Operand};
use crate::exec::error::CompileError;
use crate::exec::program::{Flow, Lanes, Map1, Map2, Map3, Op, Src};
use crate::exec::unwritten::Spread;
use crate::numeric::arith;
use crate::numeric::format::Rounding;

#[inline]
fn get(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

#[inline]
fn put(x: f32) -> u64 {
    u64::from(if x.is_nan() { 0x7fff_ffff } else { x.to_bits() })
}

#[inline]
fn saturate(x: f32) -> f32 {
    if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 }
}

/// The four combinations of `.ftz` and `.sat` of a one-operand function of f32.
macro_rules! f32_1 {
    ($ftz:expr, $sat:expr, |$x:ident| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => map1!(|a| {
                let $x = get(a);
                put($e)
            }),
            (true, false) => map1!(|a| {
                let $x = ftz(get(a));
                put(ftz($e))
            }),
            (false, true) => map1!(|a| {
                let $x = get(a);
                put(saturate($e))
            }),
            (true, true) => map1!(|a| {
                let $x = ftz(get(a));
                put(saturate(ftz($e)))
            }),
        }
    };
}

macro_rules! f32_2 {
    ($ftz:expr, $sat:expr, |$x:ident, $y:ident| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => map2!(|a, b| {
                let ($x, $y) = (get(a), get(b));
                put($e)
            }),
            (true, false) => map2!(|a, b| {
                let ($x, $y) = (ftz(get(a)), ftz(get(b)));
                put(ftz($e))
            }),
            (false, true) => map2!(|a, b| {
                let ($x, $y) = (get(a), get(b));
                put(saturate($e))
            }),
            (true, true) => map2!(|a, b| {
                let ($x, $y) = (ftz(get(a)), ftz(get(b)));
                put(saturate(ftz($e)))
            }),
        }
    };
}

macro_rules! f32_3 {
    ($ftz:expr, $sat:expr, |$x:ident, $y:ident, $z:ident| $e:expr) => {
        match ($ftz, $sat) {
            (false, false) => map3!(|a, b, c| {
                let ($x, $y, $z) = (get(a), get(b), get(c));
                put($e)
            }),
            (true, false) => map3!(|a, b, c| {
                let ($x, $y, $z) = (ftz(get(a)), ftz(get(b)), ftz(get(c)));
                put(ftz($e))
            }),
            (false, true) => map3!(|a, b, c| {
                let ($x, $y, $z) = (get(a), get(b), get(c));
                put(saturate($e))
            }),
            (true, true) => map3!(|a, b, c| {
                let ($x, $y, $z) = (ftz(get(a)), ftz(get(b)), ftz(get(c)));
                put(saturate(ftz($e)))
            }),
        }
    };
}

/// The rounding mode of an instruction, nearest even when none is written.
pub(super) fn rounding(i: &Instruction) -> Rounding {
    match i.modifiers.iter().find(|m| matches!(m.as_str(), "rn" | "rz" | "rm" | "rp")).map(String::as_str) {
        Some("rz") => Rounding::Zero,
        Some("rm") => Rounding::Down,
        Some("rp") => Rounding::Up,
        _ => Rounding::NearestEven,
    }
}

/// `a / b` with one rounding in any mode: the quotient rounded to odd in f64, from its residual.
fn divide(a: f32, b: f32, r: Rounding) -> f32 {
    let (x, y) = (f64::from(a), f64::from(b));
    let q = x / y;
    if r == Rounding::NearestEven || !q.is_finite() || q == 0.0 && a == 0.0 {
        return if r == Rounding::NearestEven { a / b } else { q as f32 };
    }
    let residual = (-q).mul_add(y, x);
    arith::to_f32(odd(q, residual, (residual > 0.0) == (y > 0.0)), r)
}

/// Square root with one rounding in any mode.
fn square_root(a: f32, r: Rounding) -> f32 {
    if r == Rounding::NearestEven || a <= 0.0 || !a.is_finite() {
        return a.sqrt();
    }
    let x = f64::from(a);
    let s = x.sqrt();
    let residual = (-s).mul_add(s, x);
    arith::to_f32(odd(s, residual, residual > 0.0), r)
}

/// Moves an inexact value whose last bit is even toward the true value, which makes it odd.
fn odd(q: f64, residual: f64, above: bool) -> f64 {
    if residual == 0.0 || q.to_bits() & 1 == 1 {
        return q;
    }
    let grows = above == (q > 0.0);
    f64::from_bits(if grows { q.to_bits() + 1 } else { q.to_bits() - 1 })
}

/// `div.approx`: a · (1/b), whose reciprocal is 0 above 2^126.
fn divide_approx(a: f32, b: f32) -> f32 {
    let big = b.abs();
    if big > 2f32.powi(126) && big.is_finite() {
        return if a.is_infinite() { f32::NAN } else { 0f32.copysign(a * b.signum()) };
    }
    a / b
}

#[derive(Clone, Copy)]
struct MinMax {
    max: bool,
    nan: bool,
    abs: bool,
    xorsign: bool,
    flush: bool,
}

fn min_max(a: u64, b: u64, m: MinMax) -> u64 {
    let (mut x, mut y) = (get(a), get(b));
    if m.flush {
        (x, y) = (ftz(x), ftz(y));
    }
    let sign = if m.xorsign { (x.to_bits() ^ y.to_bits()) & 0x8000_0000 } else { 0 };
    if m.abs || m.xorsign {
        (x, y) = (x.abs(), y.abs());
    }
    let r = min_max_f32(x, y, m.max, m.nan);
    if r.is_nan() { 0x7fff_ffff } else { u64::from(r.to_bits() | sign) }
}

impl Lower<'_> {
    pub(super) fn float(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let known = [
            "rn", "rz", "rm", "rp", "ftz", "sat", "relu", "approx", "full", "NaN", "xorsign", "abs", "oob", "f32",
            "f64", "f16", "bf16", "f16x2", "bf16x2", "f32x2",
        ];
        if let Some(bad) = i.modifiers.iter().find(|m| !known.contains(&m.as_str())) {
            return Err(self.unsupported(format!("`.{bad}` of `{}`", i.opcode)));
        }
        let types: Vec<Ty> = i.modifiers.iter().filter_map(|m| Ty::parse(m)).collect();
        match types.as_slice() {
            [Ty::F32, Ty::F16 | Ty::Bf16] => self.mixed(i, types[1]),
            [Ty::F32] => self.single(i),
            [Ty::F64] => self.double(i),
            [Ty::F32x2] => self.packed_single(i),
            [Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2] => self.halves(i, types[0]),
            _ => Err(self.unsupported(i.full_name())),
        }
    }

    fn emit_float(
        &mut self,
        i: &Instruction,
        ty: Ty,
        f1: Option<Map1>,
        f2: Option<Map2>,
        f3: Option<Map3>,
    ) -> Result<(), CompileError> {
        let (Some(d), sources) = (i.operands.first(), i.operands.get(1..).unwrap_or_default()) else {
            return Err(self.invalid("operands expected"));
        };
        let mut src = Vec::new();
        for o in sources {
            src.push(self.src(o, ty)?);
        }
        let d = self.dst(d, ty.bits())?;
        // Sign manipulations leave the other bits alone.
        let bits = matches!(i.opcode.as_str(), "abs" | "neg" | "copysign") && !i.has("ftz");
        let spread = if bits { Spread::BITS } else { Spread::Whole };
        let op = match (src.as_slice(), f1, f2, f3) {
            (&[a], Some(f), _, _) => Op::Map1 { f, d, a, spread },
            (&[a, b], _, Some(f), _) => Op::Map2 { f, d, a, b, spread },
            (&[a, b, c], _, _, Some(f)) => Op::Map3 { f, d, a, b, c, spread },
            _ => return Err(self.unsupported(format!("`{}` with {} operands", i.full_name(), i.operands.len()))),
        };
        self.emit(op);
        Ok(())
    }

    fn single(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let (flush, sat, r) = (i.has("ftz"), i.has("sat"), rounding(i));
        let approx = i.has("approx");
        let op = i.opcode.as_str();
        if matches!(op, "min" | "max") {
            let m = MinMax { max: op == "max", nan: i.has("NaN"), abs: i.has("abs"), xorsign: i.has("xorsign"), flush };
            return self.min_max_single(i, m);
        }
        let f1: Option<Map1> = match op {
            "abs" => Some(if flush {
                map1!(|a| u64::from(ftz(get(a)).to_bits() & 0x7fff_ffff))
            } else {
                map1!(|a| a & 0x7fff_ffff)
            }),
            "neg" => Some(if flush {
                map1!(|a| u64::from(ftz(get(a)).to_bits() ^ 0x8000_0000))
            } else {
                map1!(|a| a ^ 0x8000_0000)
            }),
            "rcp" => Some(match r {
                Rounding::NearestEven => f32_1!(flush, false, |x| 1.0 / x),
                Rounding::Zero => f32_1!(flush, false, |x| divide(1.0, x, Rounding::Zero)),
                Rounding::Down => f32_1!(flush, false, |x| divide(1.0, x, Rounding::Down)),
                _ => f32_1!(flush, false, |x| divide(1.0, x, Rounding::Up)),
            }),
            "sqrt" => Some(match r {
                Rounding::NearestEven => f32_1!(flush, false, |x| x.sqrt()),
                Rounding::Zero => f32_1!(flush, false, |x| square_root(x, Rounding::Zero)),
                Rounding::Down => f32_1!(flush, false, |x| square_root(x, Rounding::Down)),
                _ => f32_1!(flush, false, |x| square_root(x, Rounding::Up)),
            }),
            "rsqrt" if approx => Some(f32_1!(flush, false, |x| (1.0 / f64::from(x).sqrt()) as f32)),
            "sin" if approx => Some(f32_1!(flush, false, |x| f64::from(x).sin() as f32)),
            "cos" if approx => Some(f32_1!(flush, false, |x| f64::from(x).cos() as f32)),
            "lg2" if approx => Some(f32_1!(flush, false, |x| f64::from(x).log2() as f32)),
            "ex2" if approx => Some(f32_1!(flush, false, |x| f64::from(x).exp2() as f32)),
            "tanh" if approx => Some(f32_1!(flush, false, |x| f64::from(x).tanh() as f32)),
            _ => None,
        };
        let f2: Option<Map2> = match (op, r) {
            ("add", Rounding::NearestEven) => Some(f32_2!(flush, sat, |x, y| x + y)),
            ("add", Rounding::Zero) => Some(f32_2!(flush, sat, |x, y| arith::add_f32(x, y, Rounding::Zero))),
            ("add", Rounding::Down) => Some(f32_2!(flush, sat, |x, y| arith::add_f32(x, y, Rounding::Down))),
            ("add", Rounding::Up) => Some(f32_2!(flush, sat, |x, y| arith::add_f32(x, y, Rounding::Up))),
            ("sub", Rounding::NearestEven) => Some(f32_2!(flush, sat, |x, y| x - y)),
            ("sub", Rounding::Zero) => Some(f32_2!(flush, sat, |x, y| arith::add_f32(x, -y, Rounding::Zero))),
            ("sub", Rounding::Down) => Some(f32_2!(flush, sat, |x, y| arith::add_f32(x, -y, Rounding::Down))),
            ("sub", Rounding::Up) => Some(f32_2!(flush, sat, |x, y| arith::add_f32(x, -y, Rounding::Up))),
            ("mul", Rounding::NearestEven) => Some(f32_2!(flush, sat, |x, y| x * y)),
            ("mul", Rounding::Zero) => Some(f32_2!(flush, sat, |x, y| arith::mul_f32(x, y, Rounding::Zero))),
            ("mul", Rounding::Down) => Some(f32_2!(flush, sat, |x, y| arith::mul_f32(x, y, Rounding::Down))),
            ("mul", Rounding::Up) => Some(f32_2!(flush, sat, |x, y| arith::mul_f32(x, y, Rounding::Up))),
            ("div", _) if approx => Some(f32_2!(flush, false, |x, y| divide_approx(x, y))),
            ("div", Rounding::NearestEven) => Some(f32_2!(flush, false, |x, y| x / y)),
            ("div", Rounding::Zero) => Some(f32_2!(flush, false, |x, y| divide(x, y, Rounding::Zero))),
            ("div", Rounding::Down) => Some(f32_2!(flush, false, |x, y| divide(x, y, Rounding::Down))),
            ("div", Rounding::Up) => Some(f32_2!(flush, false, |x, y| divide(x, y, Rounding::Up))),
            // `copysign d, a, b`: the sign of a with the magnitude of b.
            ("copysign", _) => Some(map2!(|a, b| a & 0x8000_0000 | b & 0x7fff_ffff)),
            _ => None,
        };
        let f3: Option<Map3> = match (op, r) {
            ("fma" | "mad", Rounding::NearestEven) => Some(f32_3!(flush, sat, |x, y, z| x.mul_add(y, z))),
            ("fma" | "mad", Rounding::Zero) => {
                Some(f32_3!(flush, sat, |x, y, z| arith::fma_f32(x, y, z, Rounding::Zero)))
            }
            ("fma" | "mad", Rounding::Down) => {
                Some(f32_3!(flush, sat, |x, y, z| arith::fma_f32(x, y, z, Rounding::Down)))
            }
            ("fma" | "mad", Rounding::Up) => Some(f32_3!(flush, sat, |x, y, z| arith::fma_f32(x, y, z, Rounding::Up))),
            _ => None,
        };
        self.emit_float(i, Ty::F32, f1, f2, f3)
    }

    fn min_max_single(&mut self, i: &Instruction, m: MinMax) -> Result<(), CompileError> {
        // The plain forms are frequent; the others go through a closure.
        let plain = !m.abs && !m.xorsign && !m.flush;
        let f2: Option<Map2> = match (plain, m.max, m.nan) {
            (true, true, false) => Some(map2!(|a, b| put(min_max_f32(get(a), get(b), true, false)))),
            (true, false, false) => Some(map2!(|a, b| put(min_max_f32(get(a), get(b), false, false)))),
            (true, true, true) => Some(map2!(|a, b| put(min_max_f32(get(a), get(b), true, true)))),
            (true, false, true) => Some(map2!(|a, b| put(min_max_f32(get(a), get(b), false, true)))),
            _ => None,
        };
        if f2.is_some() && i.operands.len() == 3 {
            return self.emit_float(i, Ty::F32, None, f2, None);
        }
        let [d, sources @ ..] = i.operands.as_slice() else {
            return Err(self.invalid("operands expected"));
        };
        if !(2..=3).contains(&sources.len()) {
            return Err(self.invalid("two or three sources expected"));
        }
        let src = self.sources(sources, Ty::F32)?;
        let d = self.dst(d, 32)?;
        self.emit_custom(Box::new(move |cx, mask| {
            let mut out = *cx.lanes(src[0]);
            let mut poison = cx.poison(src[0]);
            for s in &src[1..] {
                let v = cx.lanes(*s);
                for l in 0..32 {
                    out[l] = min_max(out[l], v[l], m);
                }
                poison |= cx.poison(*s);
            }
            cx.write(d, mask, &out, poison);
            Ok(Flow::Next)
        }));
        Ok(())
    }

    pub(super) fn sources(&mut self, list: &[Operand], ty: Ty) -> Result<Vec<Src>, CompileError> {
        list.iter().map(|o| self.src(o, ty)).collect()
    }

    fn double(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let r = rounding(i);
        let op = i.opcode.as_str();
        let approx = i.has("approx");
        let f1: Option<Map1> = match (op, r) {
            ("abs", _) => Some(map1!(|a| a & 0x7fff_ffff_ffff_ffff)),
            ("neg", _) => Some(map1!(|a| a ^ 0x8000_0000_0000_0000)),
            // The approximate reciprocals of f64 keep the upper 32 bits of the result.
            ("rcp", _) if approx => Some(map1!(|a| (1.0 / ftz64(f64::from_bits(a))).to_bits() & 0xffff_ffff_0000_0000)),
            ("rsqrt", _) if approx && i.has("ftz") => {
                Some(map1!(|a| (1.0 / ftz64(f64::from_bits(a)).sqrt()).to_bits() & 0xffff_ffff_0000_0000))
            }
            ("rsqrt", _) if approx => Some(map1!(|a| (1.0 / f64::from_bits(a).sqrt()).to_bits())),
            ("rcp", Rounding::NearestEven) => Some(map1!(|a| (1.0 / f64::from_bits(a)).to_bits())),
            ("rcp", Rounding::Zero) => {
                Some(map1!(|a| arith::div_f64(1.0, f64::from_bits(a), Rounding::Zero).to_bits()))
            }
            ("rcp", Rounding::Down) => {
                Some(map1!(|a| arith::div_f64(1.0, f64::from_bits(a), Rounding::Down).to_bits()))
            }
            ("rcp", Rounding::Up) => Some(map1!(|a| arith::div_f64(1.0, f64::from_bits(a), Rounding::Up).to_bits())),
            ("sqrt", Rounding::NearestEven) => Some(map1!(|a| f64::from_bits(a).sqrt().to_bits())),
            ("sqrt", Rounding::Zero) => Some(map1!(|a| arith::sqrt_f64(f64::from_bits(a), Rounding::Zero).to_bits())),
            ("sqrt", Rounding::Down) => Some(map1!(|a| arith::sqrt_f64(f64::from_bits(a), Rounding::Down).to_bits())),
            ("sqrt", Rounding::Up) => Some(map1!(|a| arith::sqrt_f64(f64::from_bits(a), Rounding::Up).to_bits())),
            _ => None,
        };
        macro_rules! rounded {
            ($f:ident, $r:expr) => {
                match $r {
                    Rounding::Zero => {
                        map2!(|a, b| arith::$f(f64::from_bits(a), f64::from_bits(b), Rounding::Zero).to_bits())
                    }
                    Rounding::Down => {
                        map2!(|a, b| arith::$f(f64::from_bits(a), f64::from_bits(b), Rounding::Down).to_bits())
                    }
                    Rounding::Up => {
                        map2!(|a, b| arith::$f(f64::from_bits(a), f64::from_bits(b), Rounding::Up).to_bits())
                    }
                    _ => map2!(|a, b| arith::$f(f64::from_bits(a), f64::from_bits(b), Rounding::NearestEven).to_bits()),
                }
            };
        }
        let f2: Option<Map2> = match op {
            "add" => Some(rounded!(add_f64, r)),
            "sub" => Some(match r {
                Rounding::Zero => {
                    map2!(|a, b| arith::add_f64(f64::from_bits(a), -f64::from_bits(b), Rounding::Zero).to_bits())
                }
                Rounding::Down => {
                    map2!(|a, b| arith::add_f64(f64::from_bits(a), -f64::from_bits(b), Rounding::Down).to_bits())
                }
                Rounding::Up => {
                    map2!(|a, b| arith::add_f64(f64::from_bits(a), -f64::from_bits(b), Rounding::Up).to_bits())
                }
                _ => map2!(|a, b| (f64::from_bits(a) - f64::from_bits(b)).to_bits()),
            }),
            "mul" => Some(rounded!(mul_f64, r)),
            "div" => Some(match r {
                Rounding::Zero => {
                    map2!(|a, b| arith::div_f64(f64::from_bits(a), f64::from_bits(b), Rounding::Zero).to_bits())
                }
                Rounding::Down => {
                    map2!(|a, b| arith::div_f64(f64::from_bits(a), f64::from_bits(b), Rounding::Down).to_bits())
                }
                Rounding::Up => {
                    map2!(|a, b| arith::div_f64(f64::from_bits(a), f64::from_bits(b), Rounding::Up).to_bits())
                }
                _ => map2!(|a, b| (f64::from_bits(a) / f64::from_bits(b)).to_bits()),
            }),
            "min" => Some(map2!(|a, b| min_max_f64(f64::from_bits(a), f64::from_bits(b), false).to_bits())),
            "max" => Some(map2!(|a, b| min_max_f64(f64::from_bits(a), f64::from_bits(b), true).to_bits())),
            "copysign" => Some(map2!(|a, b| a & (1 << 63) | b & !(1 << 63))),
            _ => None,
        };
        let f3: Option<Map3> = match (op, r) {
            ("fma" | "mad", Rounding::NearestEven) => {
                Some(map3!(|a, b, c| f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()))
            }
            ("fma" | "mad", Rounding::Zero) => Some(map3!(|a, b, c| arith::fma_f64(
                f64::from_bits(a),
                f64::from_bits(b),
                f64::from_bits(c),
                Rounding::Zero
            )
            .to_bits())),
            ("fma" | "mad", Rounding::Down) => Some(map3!(|a, b, c| arith::fma_f64(
                f64::from_bits(a),
                f64::from_bits(b),
                f64::from_bits(c),
                Rounding::Down
            )
            .to_bits())),
            ("fma" | "mad", Rounding::Up) => Some(map3!(|a, b, c| arith::fma_f64(
                f64::from_bits(a),
                f64::from_bits(b),
                f64::from_bits(c),
                Rounding::Up
            )
            .to_bits())),
            _ => None,
        };
        self.emit_float(i, Ty::F64, f1, f2, f3)
    }

    /// Two f32 in 64 bits.
    fn packed_single(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let flush = i.has("ftz");
        let r = rounding(i);
        let [d, sources @ ..] = i.operands.as_slice() else {
            return Err(self.invalid("operands expected"));
        };
        let src = self.sources(sources, Ty::F32x2)?;
        let d = self.dst(d, 64)?;
        type Element = fn(&[f32; 3], Rounding) -> f32;
        let f: Element = match (i.opcode.as_str(), src.len()) {
            ("add", 2) => |v, r| arith::add_f32(v[0], v[1], r),
            ("sub", 2) => |v, r| arith::add_f32(v[0], -v[1], r),
            ("mul", 2) => |v, r| arith::mul_f32(v[0], v[1], r),
            ("fma", 3) => |v, r| {
                if r == Rounding::NearestEven { v[0].mul_add(v[1], v[2]) } else { arith::fma_f32(v[0], v[1], v[2], r) }
            },
            _ => return Err(self.unsupported(i.full_name())),
        };
        self.emit_custom(Box::new(move |cx, mask| {
            let mut out = [0u64; 32];
            for (l, o) in out.iter_mut().enumerate() {
                for half in 0..2 {
                    let mut v = [0f32; 3];
                    for (x, s) in v.iter_mut().zip(&src) {
                        let bits = cx.lanes(*s)[l] >> (32 * half);
                        *x = if flush { ftz(get(bits)) } else { get(bits) };
                    }
                    let x = f(&v, r);
                    *o |= put(if flush { ftz(x) } else { x }) << (32 * half);
                }
            }
            cx.write_from(Spread::Parts(32), &src, d, mask, &out);
            Ok(Flow::Next)
        }));
        Ok(())
    }

    /// `add.f32.bf16 d, a, c` and `fma.f32.bf16 d, a, b, c`: 16-bit factors, f32 sum.
    fn mixed(&mut self, i: &Instruction, narrow: Ty) -> Result<(), CompileError> {
        let (r, sat) = (rounding(i), i.has("sat"));
        let widen = move |bits: u64| {
            if narrow == Ty::F16 {
                crate::numeric::half::f16_to_f32(bits as u16)
            } else {
                crate::numeric::half::bf16_to_f32(bits as u16)
            }
        };
        let (d, factors, c) = match (i.opcode.as_str(), i.operands.as_slice()) {
            ("add" | "sub", [d, a, c]) => (d, vec![self.src(a, narrow)?], self.src(c, Ty::F32)?),
            ("fma", [d, a, b, c]) => (d, vec![self.src(a, narrow)?, self.src(b, narrow)?], self.src(c, Ty::F32)?),
            _ => return Err(self.unsupported(i.full_name())),
        };
        let d = self.dst(d, 32)?;
        let subtract = i.opcode == "sub";
        self.emit_custom(Box::new(move |cx, mask| {
            let mut out = [0u64; 32];
            for (l, o) in out.iter_mut().enumerate() {
                let z = get(cx.lanes(c)[l]);
                let x = widen(cx.lanes(factors[0])[l]);
                let v = match factors.get(1) {
                    Some(b) => arith::fma_f32(x, widen(cx.lanes(*b)[l]), z, r),
                    None => arith::add_f32(x, if subtract { -z } else { z }, r),
                };
                *o = put(if sat { saturate(v) } else { v });
            }
            let poison = factors.iter().fold(cx.poison(c), |p, s| p | cx.poison(*s));
            cx.write(d, mask, &out, poison);
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn halves(&mut self, i: &Instruction, ty: Ty) -> Result<(), CompileError> {
        let mode = HalfMode {
            ftz: i.has("ftz"),
            sat: i.has("sat"),
            relu: i.has("relu"),
            nan: i.has("NaN"),
            xorsign: i.has("xorsign"),
            oob: i.has("oob"),
        };
        let op = i.opcode.as_str();
        let [d, sources @ ..] = i.operands.as_slice() else {
            return Err(self.invalid("operands expected"));
        };
        let src = self.sources(sources, ty)?;
        let d = self.dst(d, ty.bits())?;
        let packed = ty.bits() == 32;
        let bf16 = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
        type Element = Box<dyn Fn(u16, u16, u16) -> u16 + Send + Sync>;
        // The arithmetic that inner loops use gets its own closure, without a look at the name.
        let f: Element = match (op, src.len(), bf16) {
            ("add", 2, false) => Box::new(move |a, b, _| half::binary::<F16>("add", a, b, mode)),
            ("sub", 2, false) => Box::new(move |a, b, _| half::binary::<F16>("sub", a, b, mode)),
            ("mul", 2, false) => Box::new(move |a, b, _| half::binary::<F16>("mul", a, b, mode)),
            ("min", 2, false) => Box::new(move |a, b, _| half::binary::<F16>("min", a, b, mode)),
            ("max", 2, false) => Box::new(move |a, b, _| half::binary::<F16>("max", a, b, mode)),
            ("add", 2, true) => Box::new(move |a, b, _| half::binary::<Bf16>("add", a, b, mode)),
            ("sub", 2, true) => Box::new(move |a, b, _| half::binary::<Bf16>("sub", a, b, mode)),
            ("mul", 2, true) => Box::new(move |a, b, _| half::binary::<Bf16>("mul", a, b, mode)),
            ("min", 2, true) => Box::new(move |a, b, _| half::binary::<Bf16>("min", a, b, mode)),
            ("max", 2, true) => Box::new(move |a, b, _| half::binary::<Bf16>("max", a, b, mode)),
            ("min", 3, false) => {
                Box::new(move |a, b, c| half::binary::<F16>("min", half::binary::<F16>("min", a, b, mode), c, mode))
            }
            ("max", 3, false) => {
                Box::new(move |a, b, c| half::binary::<F16>("max", half::binary::<F16>("max", a, b, mode), c, mode))
            }
            ("min", 3, true) => {
                Box::new(move |a, b, c| half::binary::<Bf16>("min", half::binary::<Bf16>("min", a, b, mode), c, mode))
            }
            ("max", 3, true) => {
                Box::new(move |a, b, c| half::binary::<Bf16>("max", half::binary::<Bf16>("max", a, b, mode), c, mode))
            }
            ("fma", 3, false) => Box::new(move |a, b, c| half::fma::<F16>(a, b, c, mode)),
            ("fma", 3, true) => Box::new(move |a, b, c| half::fma::<Bf16>(a, b, c, mode)),
            ("abs", 1, _) => Box::new(move |a, _, _| half::unary::<F16>("abs", a, mode)),
            ("neg", 1, _) => Box::new(move |a, _, _| half::unary::<F16>("neg", a, mode)),
            ("ex2", 1, false) => Box::new(move |a, _, _| half::unary::<F16>("ex2", a, mode)),
            ("tanh", 1, false) => Box::new(move |a, _, _| half::unary::<F16>("tanh", a, mode)),
            // `.ftz` of bf16 flushes results below the smallest normal, which bf16 shares with f32's exponent range.
            ("ex2", 1, true) => Box::new(move |a, _, _| {
                let r = half::unary::<Bf16>("ex2", a, HalfMode::default());
                if r & 0x7f80 == 0 { r & 0x8000 } else { r }
            }),
            ("tanh", 1, true) => Box::new(move |a, _, _| half::unary::<Bf16>("tanh", a, mode)),
            _ => return Err(self.unsupported(i.full_name())),
        };
        self.emit_custom(Box::new(move |cx, mask| {
            let empty: Lanes = [0; 32];
            let v: Vec<&Lanes> = src.iter().map(|s| cx.lanes(*s)).collect();
            let (a, b, c) = (v[0], v.get(1).copied().unwrap_or(&empty), v.get(2).copied().unwrap_or(&empty));
            let mut out = [0u64; 32];
            for l in 0..32 {
                out[l] = u64::from(f(a[l] as u16, b[l] as u16, c[l] as u16));
                if packed {
                    out[l] |= u64::from(f((a[l] >> 16) as u16, (b[l] >> 16) as u16, (c[l] >> 16) as u16)) << 16;
                }
            }
            cx.write_from(Spread::Parts(16), &src, d, mask, &out);
            Ok(Flow::Next)
        }));
        Ok(())
    }
}

fn ftz64(x: f64) -> f64 {
    if x.abs() < f64::MIN_POSITIVE { 0f64.copysign(x) } else { x }
}

#[cfg(test)]
mod tests {
    use super::{Rounding, divide, square_root};
    use crate::numeric::arith;

    #[test]
    fn directed_division_brackets_the_quotient() {
        for (a, b) in [(1f32, 3f32), (-1.0, 3.0), (2.0, 7.0), (1e-38, 7.0), (5.0, -9.0)] {
            let (down, up) = (divide(a, b, Rounding::Down), divide(a, b, Rounding::Up));
            let exact = f64::from(a) / f64::from(b);
            assert!(f64::from(down) < exact && exact < f64::from(up), "{a:e}/{b}: {down:e} {exact:e} {up:e}");
            assert_eq!(down.next_up(), up);
            let zero = divide(a, b, Rounding::Zero);
            assert_eq!(zero, if exact > 0.0 { down } else { up });
        }
        assert_eq!(divide(6.0, 3.0, Rounding::Up), 2.0);
        assert!(arith::div_f64(1.0, 3.0, Rounding::Up) > arith::div_f64(1.0, 3.0, Rounding::Down));
    }

    #[test]
    fn directed_square_roots_bracket_the_root() {
        for a in [2f32, 3.0, 10.0, 1e-30] {
            let (down, up) = (square_root(a, Rounding::Down), square_root(a, Rounding::Up));
            assert!(f64::from(down).powi(2) < f64::from(a) && f64::from(a) < f64::from(up).powi(2));
            assert_eq!(down.next_up(), up);
        }
        assert_eq!(square_root(9.0, Rounding::Up), 3.0);
    }
}
