//! Video instructions: arithmetic on selected bytes and half-words, and on two or four lanes of a word.

use super::{Lower, Ty};
use crate::ast::{Instruction, Operand};
use crate::exec::error::CompileError;
use crate::exec::program::{Flow, Src};

/// The scalar operations, without their lane count.
const SCALAR: [&str; 9] = ["vadd", "vsub", "vabsdiff", "vmin", "vmax", "vshl", "vshr", "vset", "vmad"];
const LANED: [&str; 7] = ["vadd", "vsub", "vavrg", "vabsdiff", "vmin", "vmax", "vset"];
const COMPARISONS: [&str; 6] = ["eq", "ne", "lt", "le", "gt", "ge"];

/// Whether an opcode is a video instruction.
pub(super) fn is_video(opcode: &str) -> bool {
    SCALAR.contains(&opcode) || opcode.strip_suffix(['2', '4']).is_some_and(|stem| LANED.contains(&stem))
}

/// What happens after the operation.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Nothing,
    Add,
    Min,
    Max,
}

/// A part of a word: bits from `at`, `width` of them.
#[derive(Clone, Copy)]
struct Part {
    at: u32,
    width: u32,
}

const WORD: Part = Part { at: 0, width: 32 };

impl Part {
    fn of(selector: &str) -> Option<Part> {
        Some(match selector {
            "b0" => Part { at: 0, width: 8 },
            "b1" => Part { at: 8, width: 8 },
            "b2" => Part { at: 16, width: 8 },
            "b3" => Part { at: 24, width: 8 },
            "h0" => Part { at: 0, width: 16 },
            "h1" => Part { at: 16, width: 16 },
            _ => return None,
        })
    }

    fn read(self, v: u64, signed: bool) -> i64 {
        extend(v >> self.at, self.width, signed)
    }

    fn merge(self, value: i64, into: u64) -> u64 {
        let field = if self.width == 32 { 0xffff_ffff } else { ((1u64 << self.width) - 1) << self.at };
        into & !field & 0xffff_ffff | (value as u64) << self.at & field
    }
}

fn extend(v: u64, width: u32, signed: bool) -> i64 {
    let left = 64 - width;
    if signed { (v as i64) << left >> left } else { ((v << left) >> left) as i64 }
}

fn clamp(v: i64, width: u32, signed: bool) -> i64 {
    if signed { v.clamp(-(1 << (width - 1)), (1 << (width - 1)) - 1) } else { v.clamp(0, (1 << width) - 1) }
}

fn compare(name: &str, a: i64, b: i64) -> bool {
    match name {
        "eq" => a == b,
        "ne" => a != b,
        "lt" => a < b,
        "le" => a <= b,
        "gt" => a > b,
        _ => a >= b,
    }
}

/// The lanes that a selector such as `h10` or `b3210` names, lowest first; lane numbers count on into the second operand.
fn lanes(selector: &str, count: usize) -> Option<Vec<usize>> {
    let digits = selector.strip_prefix(if count == 2 { 'h' } else { 'b' })?;
    digits.chars().rev().map(|c| c.to_digit(10).map(|d| d as usize).filter(|d| *d < 2 * count)).collect()
}

/// The register and the selector of an operand such as `%r1.b3`, and whether it is negated.
fn split(o: &Operand) -> (Operand, Option<String>, bool) {
    match o {
        Operand::Name(n) => match n.rsplit_once('.') {
            Some((stem, selector)) if selector.starts_with(['b', 'h']) => {
                (Operand::Name(stem.to_owned()), Some(selector.to_owned()), false)
            }
            _ => (o.clone(), None, false),
        },
        Operand::Neg(n) => {
            let (register, selector, _) = split(&Operand::Name(n.clone()));
            (register, selector, true)
        }
        o => (o.clone(), None, false),
    }
}

impl Lower<'_> {
    pub(super) fn video(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [d, a, b, rest @ ..] = i.operands.as_slice() else {
            return Err(self.invalid("a video instruction takes d, a, b and maybe c"));
        };
        let c = match rest {
            [] => None,
            [c] => Some(c),
            _ => return Err(self.invalid("a video instruction takes d, a, b and maybe c")),
        };
        let types: Vec<bool> =
            i.modifiers.iter().filter(|m| matches!(m.as_str(), "u32" | "s32")).map(|m| m == "s32").collect();
        let set = i.opcode.starts_with("vset");
        let (signed_d, signed_a, signed_b) = match types.as_slice() {
            [a, b] if set => (false, *a, *b),
            [d, a, b] => (*d, *a, *b),
            _ => return Err(self.invalid(format!("`{}`: types of d, a and b expected", i.full_name()))),
        };
        let known =
            ["u32", "s32", "sat", "add", "min", "max", "clamp", "wrap", "po", "shr7", "shr15", "shr_7", "shr_15"];
        let comparison = i.modifiers.iter().find(|m| COMPARISONS.contains(&m.as_str())).cloned().unwrap_or_default();
        if let Some(bad) = i.modifiers.iter().find(|m| !known.contains(&m.as_str()) && **m != comparison) {
            return Err(self.unsupported(format!("`.{bad}` of `{}`", i.opcode)));
        }
        let then = if i.has("add") {
            Then::Add
        } else if i.has("min") {
            Then::Min
        } else if i.has("max") {
            Then::Max
        } else {
            Then::Nothing
        };
        let ((d, d_part, _), (a, a_part, minus_a), (b, b_part, minus_b)) = (split(d), split(a), split(b));
        let (c, minus_c) = match c.map(split) {
            Some((c, None, minus)) => (Some(self.src(&c, Ty::B(32))?), minus),
            Some(_) => return Err(self.invalid("c has no selector")),
            None => (None, false),
        };
        let (a, b) = (self.src(&a, Ty::B(32))?, self.src(&b, Ty::B(32))?);
        let stem = i.opcode.trim_end_matches(['2', '4']).to_owned();
        let sat = i.has("sat");
        type Word = Box<dyn Fn(u64, u64, u64) -> u64 + Send + Sync>;
        let f: Word = if let Some(count) = i.opcode.chars().last().and_then(|c| c.to_digit(10)).map(|n| n as usize) {
            let (Some(c_given), width) = (c, 32 / count as u32) else {
                return Err(self.invalid("c expected"));
            };
            let _ = c_given;
            let all: String = if count == 2 { "h10".to_owned() } else { "b3210".to_owned() };
            let second: String = if count == 2 { "h32".to_owned() } else { "b7654".to_owned() };
            let pick = |s: Option<String>, default: &str| lanes(s.as_deref().unwrap_or(default), count);
            let (Some(mask), Some(from_a), Some(from_b)) =
                (pick(d_part, &all), pick(a_part, &all), pick(b_part, &second))
            else {
                return Err(self.invalid("a selector of lanes expected, such as `.h10` or `.b3210`"));
            };
            if from_a.len() != count || from_b.len() != count {
                return Err(self.invalid(format!("a selector names {count} lanes")));
            }
            Box::new(move |a, b, c| {
                let both = a | b << 32;
                let mut out = c;
                for lane in 0..count {
                    if !mask.contains(&lane) {
                        continue;
                    }
                    let x = extend(both >> (from_a[lane] as u32 * width), width, signed_a);
                    let y = extend(both >> (from_b[lane] as u32 * width), width, signed_b);
                    let mut v = match stem.as_str() {
                        "vadd" => x + y,
                        "vsub" => x - y,
                        "vavrg" => (x + y + i64::from(x + y >= 0)) >> 1,
                        "vabsdiff" => (x - y).abs(),
                        "vmin" => x.min(y),
                        "vmax" => x.max(y),
                        _ => i64::from(compare(&comparison, x, y)),
                    };
                    if sat {
                        v = clamp(v, width, signed_d);
                    }
                    out = if then == Then::Add {
                        // Sums take the lanes as values of the destination's type.
                        out.wrapping_add(extend(v as u64, width, signed_d) as u64) & 0xffff_ffff
                    } else {
                        Part { at: lane as u32 * width, width }.merge(v, out)
                    };
                }
                out & 0xffff_ffff
            })
        } else {
            let part = |l: &Lower<'_>, s: Option<String>| match s {
                None => Ok(WORD),
                Some(s) => Part::of(&s).ok_or_else(|| l.invalid(format!("there is no selector `.{s}`"))),
            };
            let (into, from_a, from_b) = (part(self, d_part)?, part(self, a_part)?, part(self, b_part)?);
            let wrap = i.has("wrap");
            let po = i.has("po");
            let scale = i.modifiers.iter().find_map(|m| match m.as_str() {
                "shr7" | "shr_7" => Some(7),
                "shr15" | "shr_15" => Some(15),
                _ => None,
            });
            let unsigned = !(signed_a || signed_b || minus_a || minus_b || minus_c);
            if stem == "vmad" {
                Box::new(move |a, b, c| {
                    let product = i128::from(from_a.read(a, signed_a)) * i128::from(from_b.read(b, signed_b));
                    let product = if minus_a != minus_b { -product } else { product };
                    let c = i128::from(extend(c, 32, !unsigned));
                    let sum = product + if minus_c { -c } else { c } + i128::from(po);
                    let sum = sum >> scale.unwrap_or(0);
                    let value = match (sat, unsigned) {
                        (false, _) => sum,
                        (true, true) => sum.clamp(0, i128::from(u32::MAX)),
                        (true, false) => sum.clamp(i128::from(i32::MIN), i128::from(i32::MAX)),
                    };
                    value as u64 & 0xffff_ffff
                })
            } else {
                Box::new(move |a, b, c| {
                    let (x, y) = (from_a.read(a, signed_a), from_b.read(b, signed_b));
                    let by = if wrap { y & 31 } else { y.clamp(0, 32) };
                    let mut v = match stem.as_str() {
                        "vadd" => x + y,
                        "vsub" => x - y,
                        "vabsdiff" => (x - y).abs(),
                        "vmin" => x.min(y),
                        "vmax" => x.max(y),
                        "vshl" => ((i128::from(x) << by).clamp(i128::from(i64::MIN), i128::from(i64::MAX))) as i64,
                        "vshr" => x >> by,
                        _ => i64::from(compare(&comparison, x, y)),
                    };
                    if sat {
                        v = clamp(v, into.width, signed_d);
                    }
                    let ext = |v: u64| extend(v, 32, signed_d);
                    match then {
                        Then::Nothing => into.merge(v, c),
                        Then::Add => (v as u64).wrapping_add(c) & 0xffff_ffff,
                        Then::Min => ext(v as u64).min(ext(c)) as u64 & 0xffff_ffff,
                        Then::Max => ext(v as u64).max(ext(c)) as u64 & 0xffff_ffff,
                    }
                })
            }
        };
        let d = self.dst(&d, 32)?;
        let sources: Vec<Src> = [Some(a), Some(b), c].into_iter().flatten().collect();
        self.emit_custom(Box::new(move |cx, mask| {
            let (va, vb) = (*cx.lanes(a), *cx.lanes(b));
            let vc = c.map_or([0; 32], |c| *cx.lanes(c));
            let out = std::array::from_fn(|l| f(va[l], vb[l], vc[l]));
            cx.write_from(crate::exec::unwritten::Spread::Whole, &sources, d, mask, &out);
            Ok(Flow::Next)
        }));
        Ok(())
    }
}
