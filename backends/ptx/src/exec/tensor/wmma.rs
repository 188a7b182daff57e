//! `wmma`: matrix products whose fragments PTX leaves open. Here an element's place in its fragment follows from its number,
//! counted along the dimension that is summed over (of C and D along rows).

use super::whole_warp;
use crate::ast::Instruction;
use crate::exec::access::{self, LoadOp, StoreOp, lanes_of};
use crate::exec::error::CompileError;
use crate::exec::global_race::Order;
use crate::exec::lower::memory::space_of;
use crate::exec::lower::{Lower, Ty};
use crate::exec::program::{AddressSrc, Custom, Flow, Lanes, Slot, Src, WARP};
use crate::numeric::format::{self, BF16, F16, F32, Rounding};

/// An element type, by its bits in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F16,
    Bf16,
    Tf32,
    F32,
    F64,
    Int { bits: u32, signed: bool },
    Bit,
}

impl Kind {
    fn parse(word: &str) -> Option<Kind> {
        Some(match word {
            "f16" => Kind::F16,
            "bf16" => Kind::Bf16,
            "tf32" => Kind::Tf32,
            "f32" => Kind::F32,
            "f64" => Kind::F64,
            "s32" => Kind::Int { bits: 32, signed: true },
            "s8" => Kind::Int { bits: 8, signed: true },
            "u8" => Kind::Int { bits: 8, signed: false },
            "s4" => Kind::Int { bits: 4, signed: true },
            "u4" => Kind::Int { bits: 4, signed: false },
            "b1" => Kind::Bit,
            _ => return None,
        })
    }

    fn bits(self) -> u32 {
        match self {
            Kind::F16 | Kind::Bf16 => 16,
            Kind::Tf32 | Kind::F32 => 32,
            Kind::F64 => 64,
            Kind::Int { bits, .. } => bits,
            Kind::Bit => 1,
        }
    }

    fn register_bits(self) -> u32 {
        self.bits().max(32)
    }

    fn value(self, v: u64) -> f64 {
        match self {
            Kind::F16 => format::decode(v, &F16),
            Kind::Bf16 => format::decode(v, &BF16),
            // The lower 13 bits of a tf32 are not looked at.
            Kind::Tf32 => f64::from(f32::from_bits(v as u32 & 0xffff_e000)),
            Kind::F32 => f64::from(f32::from_bits(v as u32)),
            Kind::F64 => f64::from_bits(v),
            Kind::Int { .. } | Kind::Bit => self.integer(v) as f64,
        }
    }

    fn integer(self, v: u64) -> i64 {
        match self {
            Kind::Int { bits, signed: true } => (v as i64) << (64 - bits) >> (64 - bits),
            _ => v as i64,
        }
    }
}

/// Where an element of a fragment of `per_lane` elements lies.
#[derive(Clone, Copy)]
struct Fragment {
    rows: usize,
    columns: usize,
    /// Whether elements are counted along rows.
    by_row: bool,
    kind: Kind,
    registers: usize,
}

impl Fragment {
    fn total(self) -> usize {
        self.rows * self.columns
    }

    fn per_lane(self) -> usize {
        self.total() / WARP
    }

    fn per_register(self) -> usize {
        (self.kind.register_bits() / self.kind.bits()) as usize
    }

    /// Row and column of the element in a place of a lane; places beyond the elements repeat them.
    fn element(self, lane: usize, place: usize) -> (usize, usize) {
        let n = lane * self.per_lane() + place % self.per_lane();
        if self.by_row { (n / self.columns, n % self.columns) } else { (n % self.rows, n / self.rows) }
    }

    // A lane's number stands in the register's index and in the element's place.
    #[allow(clippy::needless_range_loop)]
    fn gather(self, registers: &[Lanes]) -> Vec<u64> {
        let (bits, per) = (self.kind.bits(), self.per_register());
        let field = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
        let mut out = vec![0; self.total()];
        for lane in 0..WARP {
            for place in 0..self.per_lane() {
                let (r, c) = self.element(lane, place);
                let v = registers[place / per][lane] >> ((place % per) as u32 * bits) & field;
                out[r * self.columns + c] = v;
            }
        }
        out
    }
}

fn shape(i: &Instruction) -> Option<(usize, usize, usize)> {
    i.modifiers.iter().find_map(|w| super::mma::shape(w))
}

/// The fragment of matrix `which` (a, b, c, d).
fn fragment(which: &str, (m, n, k): (usize, usize, usize), kind: Kind) -> Fragment {
    let (rows, columns, by_row) = match which {
        "a" => (m, k, true),
        "b" => (k, n, false),
        _ => (m, n, true),
    };
    let mut f = Fragment { rows, columns, by_row, kind, registers: 0 };
    // Fragments of f16 factors have 8 registers in every shape.
    f.registers = match kind {
        Kind::F16 if matches!(which, "a" | "b") => 8,
        _ => f.per_lane().div_ceil(f.per_register()),
    };
    f
}

fn known(f: Fragment, (m, n, k): (usize, usize, usize)) -> bool {
    matches!((m, n, k), (16, 16, 16) | (32, 8, 16) | (8, 32, 16) | (16, 16, 8) | (8, 8, 4) | (8, 8, 32) | (8, 8, 128))
        && f.total().is_multiple_of(WARP)
}

pub(super) fn lower(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let unknown = || l.unsupported(i.full_name());
    let size = shape(i).ok_or_else(unknown)?;
    match i.modifiers.first().map(String::as_str) {
        Some("load") => load(l, i, size),
        Some("store") => store(l, i, size),
        Some("mma") => product(l, i, size),
        _ => Err(unknown()),
    }
}

/// Matrix, element type, whether the memory is row-major.
fn placed(l: &Lower<'_>, i: &Instruction, size: (usize, usize, usize)) -> Result<(Fragment, bool), CompileError> {
    let which = i.modifiers.get(1).map_or("", String::as_str);
    let kind = i.modifiers.iter().rev().find_map(|w| Kind::parse(w)).ok_or_else(|| l.unsupported(i.full_name()))?;
    let f = fragment(which, size, kind);
    if !matches!(which, "a" | "b" | "c" | "d") || !known(f, size) {
        return Err(l.unsupported(i.full_name()));
    }
    let row = i.has("row");
    if kind.bits() < 8 && row != f.by_row {
        return Err(l.invalid("4-bit and 1-bit matrices are row-major as A and column-major as B"));
    }
    Ok((f, row))
}

/// Slots and operations that both loads and stores need.
struct Access {
    base: AddressSrc,
    stride: Option<Src>,
    at: Slot,
    value: Slot,
}

impl Access {
    fn new(l: &mut Lower<'_>, i: &Instruction, address: usize, stride: usize) -> Result<Access, CompileError> {
        let base = i.operands.get(address).ok_or_else(|| l.invalid("an address expected"))?;
        let base = l.address(base)?;
        let stride = match i.operands.get(stride) {
            Some(o) => Some(l.src(o, Ty::U(32))?),
            None => None,
        };
        Ok(Access { base, stride, at: l.scratch(), value: l.scratch() })
    }

    /// Byte address in each lane of the element in a place.
    fn addresses(&self, cx: &crate::exec::context::Cx<'_>, f: Fragment, row: bool, place: usize, mask: u32) -> Lanes {
        let lead = if row { f.columns } else { f.rows } as u64;
        let stride = self.stride.map_or(lead, |s| cx.uniform(s, mask));
        std::array::from_fn(|lane| {
            let (r, c) = f.element(lane, place);
            let n = if row { r as u64 * stride + c as u64 } else { c as u64 * stride + r as u64 };
            cx.address(self.base, lane).wrapping_add(n * u64::from(f.kind.bits()) / 8)
        })
    }
}

fn load(l: &mut Lower<'_>, i: &Instruction, size: (usize, usize, usize)) -> Result<Custom, CompileError> {
    let (f, row) = placed(l, i, size)?;
    let list = i.operands.first().ok_or_else(|| l.invalid("a destination expected"))?;
    let d = super::mma::destinations(l, list, f.kind.register_bits())?;
    if d.len() != f.registers {
        return Err(l.invalid(format!("{} registers expected, {} given", f.registers, d.len())));
    }
    let x = Access::new(l, i, 1, 2)?;
    // Elements below a byte are loaded by registers.
    let together = if f.kind.bits() < 8 { f.per_register() } else { 1 };
    let bits = f.kind.bits() * together as u32;
    let narrow = AddressSrc { base: x.at.into(), offset: 0, narrow: false };
    let op = LoadOp {
        space: space_of(i),
        address: narrow,
        elements: vec![x.value].into(),
        bytes: bits / 8,
        signed: false,
        register_bits: 64,
        order: Order::default(),
    };
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        cx.require(x.base.base, mask, "the address");
        for (r, d) in d.iter().enumerate() {
            let (mut value, mut holes) = ([0u64; WARP], [0u64; WARP]);
            for part in 0..f.per_register() / together {
                let at = x.addresses(cx, f, row, r * f.per_register() + part * together, mask);
                cx.write(x.at, mask, &at, 0);
                access::load(cx, &op, mask)?;
                let (v, open) = (*cx.lanes(x.value.into()), cx.unwritten(x.value.into()));
                for lane in lanes_of(mask) {
                    value[lane] |= v[lane] << (part as u32 * bits);
                    let field = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
                    holes[lane] |= (open[lane] & field) << (part as u32 * bits);
                }
            }
            cx.warp.write_bits(*d, mask, &value, &holes, 0);
        }
        Ok(Flow::Next)
    }))
}

fn store(l: &mut Lower<'_>, i: &Instruction, size: (usize, usize, usize)) -> Result<Custom, CompileError> {
    let (f, row) = placed(l, i, size)?;
    let list = i.operands.get(1).ok_or_else(|| l.invalid("values expected"))?;
    let s = super::mma::sources(l, list, f.kind.register_bits())?;
    if s.len() != f.registers {
        return Err(l.invalid(format!("{} registers expected, {} given", f.registers, s.len())));
    }
    let x = Access::new(l, i, 0, 2)?;
    let bits = f.kind.bits();
    let op = StoreOp {
        space: space_of(i),
        address: AddressSrc { base: x.at.into(), offset: 0, narrow: false },
        elements: vec![x.value.into()].into(),
        bytes: bits / 8,
        order: Order::default(),
    };
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        cx.require(x.base.base, mask, "the address");
        for place in 0..f.per_lane() {
            let at = x.addresses(cx, f, row, place, mask);
            cx.write(x.at, mask, &at, 0);
            let source = s[place / f.per_register()];
            let shift = (place % f.per_register()) as u32 * bits;
            let field = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
            let value = cx.lanes(source).map(|v| v >> shift & field);
            let holes = cx.unwritten(source).map(|h| h >> shift & field);
            // What is unwritten of an element is all of it: the value slot is wider.
            let holes = holes.map(|h| if h == field { u64::MAX } else { h });
            cx.warp.write_bits(x.value, mask, &value, &holes, 0);
            access::store(cx, &op, mask)?;
        }
        Ok(Flow::Next)
    }))
}

// A lane's number stands in the register's index and in the element's place.
#[allow(clippy::needless_range_loop)]
fn product(l: &mut Lower<'_>, i: &Instruction, size: (usize, usize, usize)) -> Result<Custom, CompileError> {
    let kinds: Vec<Kind> = i.modifiers.iter().filter_map(|w| Kind::parse(w)).collect();
    let [d, a, b, c] = match kinds.as_slice() {
        // With f16 factors the name says D and C only.
        [d, c] => [*d, Kind::F16, Kind::F16, *c],
        [d, a, b, c] => [*d, *a, *b, *c],
        _ => return Err(l.unsupported(i.full_name())),
    };
    let [fd, fa, fb, fc] =
        [fragment("d", size, d), fragment("a", size, a), fragment("b", size, b), fragment("c", size, c)];
    if ![fd, fa, fb, fc].into_iter().all(|f| known(f, size)) || i.operands.len() != 4 {
        return Err(l.unsupported(i.full_name()));
    }
    let dst = super::mma::destinations(l, &i.operands[0], d.register_bits())?;
    let mut src = Vec::new();
    for (o, f) in i.operands[1..].iter().zip([fa, fb, fc]) {
        let list = super::mma::sources(l, o, f.kind.register_bits())?;
        if list.len() != f.registers {
            return Err(l.invalid(format!("{} registers expected, {} given", f.registers, list.len())));
        }
        src.push(list);
    }
    if dst.len() != fd.registers {
        return Err(l.invalid(format!("{} registers expected, {} given", fd.registers, dst.len())));
    }
    let (m, n, k) = size;
    let (satfinite, and) = (i.has("satfinite"), i.has("and"));
    let name = format!("wmma.m{m}n{n}k{k}");
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        let matrix = |f: Fragment, list: &[Src]| f.gather(&list.iter().map(|s| *cx.lanes(*s)).collect::<Vec<_>>());
        let (va, vb, vc) = (matrix(fa, &src[0]), matrix(fb, &src[1]), matrix(fc, &src[2]));
        let mut out = vec![[0u64; WARP]; dst.len()];
        for lane in 0..WARP {
            for place in 0..fd.per_lane() {
                let (r, col) = fd.element(lane, place);
                let row = va[r * k..(r + 1) * k].iter();
                let pairs = row.zip(vb[col..].iter().step_by(n)).map(|(x, y)| (*x, *y));
                let acc = vc[r * n + col];
                let bits = match d {
                    Kind::Int { .. } => {
                        let sum: i64 = if a == Kind::Bit {
                            pairs.map(|(x, y)| (if and { x & y } else { x ^ y }) as i64).sum()
                        } else {
                            pairs.map(|(x, y)| a.integer(x) * b.integer(y)).sum()
                        };
                        let sum = sum + c.integer(acc);
                        if satfinite {
                            sum.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u64 & 0xffff_ffff
                        } else {
                            sum as u64 & 0xffff_ffff
                        }
                    }
                    Kind::F64 => pairs.fold(c.value(acc), |s, (x, y)| a.value(x).mul_add(b.value(y), s)).to_bits(),
                    _ => {
                        let sum: f64 = pairs.map(|(x, y)| a.value(x) * b.value(y)).sum::<f64>() + c.value(acc);
                        let format = if d == Kind::F16 { F16 } else { F32 };
                        let largest = if d == Kind::F16 { 65504.0 } else { f64::from(f32::MAX) };
                        let sum = if satfinite && sum.is_nan() {
                            0.0
                        } else if satfinite {
                            sum.clamp(-largest, largest)
                        } else {
                            sum
                        };
                        format::encode(sum, &format, Rounding::NearestEven, false)
                    }
                };
                let per = fd.per_register();
                out[place / per][lane] |= bits << ((place % per) as u32 * d.bits());
            }
        }
        let open = |list: &[Src]| list.iter().fold(0, |p, s| p | cx.poison(*s)) & mask;
        // Every element of a product needs a row of A and a column of B, which may lie anywhere.
        let poison = if (open(&src[0]) | open(&src[1])) != 0 { u32::MAX } else { open(&src[2]) };
        for (slot, value) in dst.iter().zip(&out) {
            cx.write(*slot, mask, value, poison);
        }
        cx.m.worker.counters.tensor_op(&name, 2 * (m * n * k) as u64);
        Ok(Flow::Next)
    }))
}
