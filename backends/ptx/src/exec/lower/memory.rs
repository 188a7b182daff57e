//! Loads, stores, atomics, cache hints.

use super::half::{self, HalfMode, min_max_f32, min_max_f64};
use super::{Lower, Symbol, Ty, types};
use crate::ast::{Instruction, Operand};
use crate::exec::access::{self, LoadOp, StoreOp, lanes_of};
use crate::exec::error::CompileError;
use crate::exec::findings::Check;
use crate::exec::global_race::{Order, Scope};
use crate::exec::program::{AddressSrc, Flow, MemorySpace, Op, Slot, Src};

/// Combines the old value with the operands.
pub(crate) type Combine = fn(u64, u64, u64) -> u64;

/// The space that the modifiers name, generic when none.
pub(crate) fn space_of(i: &Instruction) -> MemorySpace {
    for m in &i.modifiers {
        match m.as_str() {
            "global" => return MemorySpace::Global,
            "shared" | "shared::cta" => return MemorySpace::Shared,
            "shared::cluster" => return MemorySpace::SharedCluster,
            "local" => return MemorySpace::Local,
            "const" => return MemorySpace::Const,
            "param" | "param::entry" | "param::func" => return MemorySpace::Param,
            _ => {}
        }
    }
    MemorySpace::Generic
}

/// Words of loads and stores that change nothing here: cache and eviction hints, scopes.
fn is_hint(m: &str) -> bool {
    matches!(
        m,
        "weak"
            | "ca"
            | "cg"
            | "cs"
            | "cv"
            | "lu"
            | "wb"
            | "wt"
            | "nc"
            | "cta"
            | "cluster"
            | "gpu"
            | "sys"
            | "unified"
            | "L2::cache_hint"
            | "mmio"
    ) || m.starts_with("L1::")
        || m.starts_with("L2::")
}

/// An address as its space has it: 64 bits in global and generic accesses, 32 elsewhere.
fn narrowed(space: MemorySpace, address: AddressSrc) -> AddressSrc {
    AddressSrc { narrow: !matches!(space, MemorySpace::Global | MemorySpace::Generic), ..address }
}

impl Lower<'_> {
    pub(super) fn memory(&mut self, i: &Instruction) -> Result<(), CompileError> {
        match i.opcode.as_str() {
            "ld" | "ldu" => self.load(i),
            "st" if i.has("async") => self.store_async(i),
            "st" if i.has("bulk") => self.store_bulk(i),
            "st" => self.store(i),
            "red" if i.has("async") => self.red_async(i),
            "atom" | "red" => self.atomic(i),
            "createpolicy" => {
                let Some(d) = i.operands.first() else {
                    return Err(self.invalid("a destination expected"));
                };
                let d = self.dst(d, 64)?;
                self.emit_custom(Box::new(move |cx, mask| {
                    cx.write(d, mask, &[0; 32], 0);
                    Ok(Flow::Next)
                }));
                Ok(())
            }
            // Hints: the operands are checked, nothing happens. `discard` makes the content undefined, which is not modelled.
            _ => {
                for o in &i.operands {
                    if matches!(o, Operand::Address(_)) {
                        self.address(o)?;
                    }
                }
                self.emit(Op::Nop);
                Ok(())
            }
        }
    }

    /// Space and address of an operand of `ld`, `st`: parameters of functions live in the frame.
    fn access_address(&mut self, i: &Instruction, o: &Operand) -> Result<(MemorySpace, AddressSrc), CompileError> {
        let space = space_of(i);
        let Operand::Address(a) = o else {
            return Err(self.invalid(format!("`{o}` is not an address")));
        };
        let offset = a.offset.as_ref().map_or(0, |o| o.value);
        match self.address_symbol(o) {
            Some(Symbol::Frame(at, _)) if space == MemorySpace::Param => {
                let base = self.bits(0);
                return Ok((MemorySpace::Frame, AddressSrc { base, offset: i64::from(at) + offset, narrow: false }));
            }
            Some(Symbol::Local(at)) if space == MemorySpace::Local => {
                let base = self.bits(0);
                return Ok((MemorySpace::Frame, AddressSrc { base, offset: i64::from(at) + offset, narrow: false }));
            }
            // A variable named in a generic access counts from its window.
            Some(_) if space == MemorySpace::Generic => {
                let Operand::Name(n) = a.base.as_ref() else {
                    return Err(self.invalid(format!("`{o}` is not an address")));
                };
                let (space, _) = self.symbol_space(n)?;
                return Ok((space, narrowed(space, self.address(o)?)));
            }
            _ => {}
        }
        let space = if space == MemorySpace::Param && self.current_function > 0 { MemorySpace::Local } else { space };
        Ok((space, narrowed(space, self.address(o)?)))
    }

    fn check_words(&self, i: &Instruction) -> Result<Order, CompileError> {
        let mut strong = false;
        for m in &i.modifiers {
            match m.as_str() {
                "volatile" | "relaxed" | "acquire" | "release" => strong = true,
                "global" | "shared" | "shared::cta" | "shared::cluster" | "local" | "const" | "param"
                | "param::entry" | "param::func" | "v2" | "v4" | "v8" => {}
                m if is_hint(m) || Ty::parse(m).is_some() => {}
                m => return Err(self.unsupported(format!("`.{m}` of `{}`", i.opcode))),
            }
        }
        Ok(Order::of(i, strong, Scope::Gpu))
    }

    fn load(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let order = self.check_words(i)?;
        let ty = self.last_type(i)?;
        let (Some(d), Some(a)) = (i.operands.first(), i.operands.get(1)) else {
            return Err(self.invalid("`ld` takes a destination and an address"));
        };
        let (space, address) = self.access_address(i, a)?;
        if ty.bits() < 8 || self.elements(d).is_empty() {
            return Err(self.invalid("a value of at least 8 bits expected"));
        }
        let mut elements = Vec::new();
        let mut register_bits = 0;
        for o in self.elements(d) {
            let (slot, bits) = self.dst_any(o, ty.bits().max(16))?;
            if bits < ty.bits() {
                return Err(self.invalid(format!("`{o}` has {bits} bits, {} expected", ty.bits())));
            }
            elements.push(slot);
            if ty.bits() == 128 {
                elements.push(Slot(slot.0 + 1));
            }
            register_bits = bits;
        }
        if elements.len() > 8 {
            return Err(self.unsupported(format!("vectors of {} elements", elements.len())));
        }
        self.emit(Op::Load(Box::new(LoadOp {
            space,
            address,
            elements: elements.into(),
            bytes: (ty.bits() / 8).min(8),
            signed: matches!(ty, Ty::S(_)),
            register_bits,
            order,
        })));
        Ok(())
    }

    fn store(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let order = self.check_words(i)?;
        let ty = self.last_type(i)?;
        let (Some(a), Some(v)) = (i.operands.first(), i.operands.get(1)) else {
            return Err(self.invalid("`st` takes an address and a value"));
        };
        let (space, address) = self.access_address(i, a)?;
        if ty.bits() < 8 || self.elements(v).is_empty() {
            return Err(self.invalid("a value of at least 8 bits expected"));
        }
        let mut elements: Vec<Src> = Vec::new();
        for o in self.elements(v) {
            let (src, bits) = self.src_any(o, ty)?;
            if bits < ty.bits() {
                return Err(self.invalid(format!("`{o}` has {bits} bits, {} expected", ty.bits())));
            }
            elements.push(src);
            if ty.bits() == 128 {
                elements.push(Src(src.0 + 1));
            }
        }
        if elements.len() > 8 {
            return Err(self.unsupported(format!("vectors of {} elements", elements.len())));
        }
        self.emit(Op::Store(Box::new(StoreOp {
            space,
            address,
            elements: elements.into(),
            bytes: (ty.bits() / 8).min(8),
            order,
        })));
        Ok(())
    }

    /// `st.bulk{.weak}{.shared::cta} [a], size, 0`: zeroes a range of shared memory.
    fn store_bulk(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [a, size, value] = super::operands(self, i)?;
        if self.immediate(value) != Some(0) {
            return Err(self.invalid("`st.bulk` stores 0"));
        }
        let a = self.address(a)?;
        let (size, bits) = self.src_any(size, Ty::B(64))?;
        if bits < 32 {
            return Err(self.invalid("the size has 32 or 64 bits"));
        }
        self.emit_custom(Box::new(move |cx, mask| {
            cx.require(a.base, mask, "the address");
            cx.require(size, mask, "the size");
            for l in lanes_of(mask) {
                let bytes = cx.lanes(size)[l];
                let address = cx.shared_address(cx.address(a, l));
                if !bytes.is_multiple_of(8) {
                    cx.m.report(Check::Alignment, Some(l as u32), || {
                        format!("`st.bulk` of {bytes} bytes, which is no multiple of 8")
                    });
                } else if let Some((rank, offset)) = cx.m.shared_range(address, bytes, 8, true, Some(l as u32)) {
                    cx.track_shared(rank, offset, bytes, crate::exec::race::AccessKind::Write, l as u32);
                    cx.m.cluster.ctas[rank].shared.write(offset as usize, &vec![0; bytes as usize]);
                }
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }

    /// `atom` and `red`: `atom.op.type d, [a], b{, c}`, vectors of f32, f16, bf16.
    fn atomic(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let ty = self.last_type(i)?;
        if ty.bits() < 16 {
            return Err(self.unsupported(i.full_name()));
        }
        let returns = i.opcode == "atom";
        let mut op = "";
        for m in &i.modifiers {
            match m.as_str() {
                "add" | "min" | "max" | "inc" | "dec" | "and" | "or" | "xor" | "exch" | "cas" => op = m,
                "relaxed" | "acquire" | "release" | "acq_rel" | "global" | "shared" | "shared::cta"
                | "shared::cluster" | "noftz" | "v2" | "v4" | "v8" => {}
                m if is_hint(m) || Ty::parse(m).is_some() => {}
                m => return Err(self.unsupported(format!("`.{m}` of `{}`", i.opcode))),
            }
        }
        let mut rest = i.operands.as_slice();
        let d = if returns {
            let (first, others) = rest.split_first().ok_or_else(|| self.invalid("a destination expected"))?;
            rest = others;
            Some(first)
        } else {
            None
        };
        let (Some(a), Some(b)) = (rest.first(), rest.get(1)) else {
            return Err(self.invalid(format!("`{}` takes an address and a value", i.opcode)));
        };
        let address = self.address(a)?;
        // A variable in a generic atomic counts from its window, as in loads.
        let mut space = space_of(i);
        if space == MemorySpace::Generic
            && self.address_symbol(a).is_some()
            && let Operand::Address(at) = a
            && let Operand::Name(n) = at.base.as_ref()
        {
            space = self.symbol_space(n)?.0;
        }
        let address = narrowed(space, address);
        if ty == Ty::B(128) {
            return self.atomic_wide(i, op, d, address, space, b, rest.get(2));
        }
        let b_elements = self.sources(self.elements(b), ty)?;
        let c = if op == "cas" {
            let c = rest.get(2).ok_or_else(|| self.invalid("`cas` takes two values"))?;
            Some(self.src(c, ty)?)
        } else {
            None
        };
        let mut d_elements = Vec::new();
        if let Some(d) = d {
            for o in self.elements(d) {
                d_elements.push(if *o == Operand::Sink { None } else { Some(self.dst(o, ty.bits())?) });
            }
        }
        let Some(f) = combine(op, ty, space != MemorySpace::Shared && space != MemorySpace::SharedCluster) else {
            return Err(self.unsupported(i.full_name()));
        };
        let bytes = ty.bits() / 8;
        let n = b_elements.len();
        let order = Order::of(i, true, Scope::Gpu);
        self.emit_custom(Box::new(move |cx, mask| {
            let mut at = access::addresses(cx, address, mask);
            for s in b_elements.iter().chain(&c) {
                cx.require(*s, mask, "the operand of the atomic");
            }
            for (space, lanes) in access::by_space(space, &mut at, mask) {
                let shared = matches!(space, MemorySpace::Shared | MemorySpace::SharedCluster);
                if !shared {
                    cx.release_global(order, &at, lanes);
                }
                for (e, b) in b_elements.iter().enumerate() {
                    let b = *cx.lanes(*b);
                    let c = c.map_or([0; 32], |c| *cx.lanes(c));
                    let mut old = [0u64; 32];
                    let mut poison = 0u32;
                    for l in lanes_of(lanes) {
                        let address = at[l] + (e as u64) * u64::from(bytes);
                        let _held = if shared { None } else { cx.updates_global(address, bytes, l) };
                        let mut changes = false;
                        let mut combine = |v| {
                            let new = f(v, b[l], c[l]);
                            changes |= new != v;
                            new
                        };
                        let result = access::update(cx, space, address, bytes, l, &mut combine);
                        if changes && !shared {
                            cx.m.launch.run.has_changed();
                        }
                        match result {
                            Some((v, init)) => {
                                old[l] = v;
                                if !init {
                                    poison |= 1 << l;
                                    cx.m.report(Check::Uninitialized, Some(l as u32), || {
                                        format!("an atomic on address {address:#x}, which nobody wrote")
                                    });
                                }
                            }
                            None => poison |= 1 << l,
                        }
                    }
                    if let Some(Some(d)) = d_elements.get(e) {
                        cx.write(*d, lanes, &old, poison);
                    }
                }
                if shared {
                    access::acquire_shared(cx, &at, lanes);
                    access::release_shared(cx, &at, lanes);
                } else {
                    cx.has_released_global(order, lanes);
                    cx.acquire_global(order, &at, lanes);
                    if cx.m.launch.options.counters {
                        access::count_global(cx, &at, lanes, u64::from(bytes) * n as u64, true);
                    }
                }
            }
            // Locks are built of atomics: who spins on one should not keep the others waiting.
            cx.m.cluster.quantum_left -= 16;
            cx.m.cluster.slice_left -= 50;
            cx.m.cluster.polls += 1;
            Ok(Flow::Next)
        }));
        Ok(())
    }

    /// 128-bit `exch` and `cas`.
    #[allow(clippy::too_many_arguments)]
    fn atomic_wide(
        &mut self,
        i: &Instruction,
        op: &str,
        d: Option<&Operand>,
        address: AddressSrc,
        space: MemorySpace,
        b: &Operand,
        c: Option<&Operand>,
    ) -> Result<(), CompileError> {
        let ty = Ty::B(128);
        let order = Order::of(i, true, Scope::Gpu);
        let b = self.src(b, ty)?;
        let c = match (op, c) {
            ("exch", _) => None,
            ("cas", Some(c)) => Some(self.src(c, ty)?),
            _ => return Err(self.unsupported(i.full_name())),
        };
        let d = match d {
            Some(o) => Some(self.dst(o, 128)?),
            None => None,
        };
        self.emit_custom(Box::new(move |cx, mask| {
            let mut at = access::addresses(cx, address, mask);
            // One lock for all 128-bit atomics of the launch makes the two halves one.
            let launch = cx.m.launch;
            let _guard = launch.run.wide.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (space, lanes) in access::by_space(space, &mut at, mask) {
                let global = !matches!(space, MemorySpace::Shared | MemorySpace::SharedCluster);
                if global {
                    cx.release_global(order, &at, lanes);
                }
                for l in lanes_of(lanes) {
                    let _held = if global { cx.updates_global(at[l], 16, l) } else { None };
                    let half = |cx: &crate::exec::context::Cx<'_>, s: Src, h: u32| cx.lanes(Src(s.0 + h))[l];
                    let (b0, b1) = (half(cx, b, 0), half(cx, b, 1));
                    if !at[l].is_multiple_of(16) {
                        cx.m.report(Check::Alignment, Some(l as u32), || {
                            format!("address {:#x} is not a multiple of 16", at[l])
                        });
                        continue;
                    }
                    let Some((lo, i0)) = access::update(cx, space, at[l], 8, l, &mut |v| v) else { continue };
                    let Some((hi, i1)) = access::update(cx, space, at[l] + 8, 8, l, &mut |v| v) else { continue };
                    let new = match c {
                        None => Some((b0, b1)),
                        Some(c) if (lo, hi) == (b0, b1) => Some((half(cx, c, 0), half(cx, c, 1))),
                        Some(_) => None,
                    };
                    if let Some((n0, n1)) = new {
                        access::update(cx, space, at[l], 8, l, &mut |_| n0);
                        access::update(cx, space, at[l] + 8, 8, l, &mut |_| n1);
                    }
                    if let Some(d) = d {
                        let poison = if i0 && i1 { 0 } else { 1 << l };
                        cx.write(d, 1 << l, &[lo; 32], poison);
                        cx.write(Slot(d.0 + 1), 1 << l, &[hi; 32], poison);
                    }
                }
                if global {
                    cx.has_released_global(order, lanes);
                    cx.acquire_global(order, &at, lanes);
                }
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }
}

fn f32_of(v: u64) -> f32 {
    f32::from_bits(v as u32)
}

fn pair(a: u64, b: u64, f: impl Fn(u16, u16) -> u16) -> u64 {
    u64::from(f(a as u16, b as u16)) | u64::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

const PLAIN: HalfMode = HalfMode { ftz: false, sat: false, relu: false, nan: false, xorsign: false, oob: false };

/// How an atomic combines. `global`: f32 additions flush subnormals there.
pub(crate) fn combine(op: &str, ty: Ty, global: bool) -> Option<Combine> {
    debug_assert!(types::is_float("f32"));
    Some(match (op, ty) {
        ("add", Ty::U(32) | Ty::S(32) | Ty::B(32)) => |a, b, _| u64::from((a as u32).wrapping_add(b as u32)),
        ("add", Ty::U(64) | Ty::S(64) | Ty::B(64)) => |a, b, _| a.wrapping_add(b),
        ("add", Ty::F32) if global => |a, b, _| {
            let flush = super::moves::ftz;
            u64::from(flush(flush(f32_of(a)) + flush(f32_of(b))).to_bits())
        },
        ("add", Ty::F32) => |a, b, _| u64::from((f32_of(a) + f32_of(b)).to_bits()),
        ("add", Ty::F64) => |a, b, _| (f64::from_bits(a) + f64::from_bits(b)).to_bits(),
        ("add", Ty::F16) => |a, b, _| u64::from(half::binary::<half::F16>("add", a as u16, b as u16, PLAIN)),
        ("add", Ty::Bf16) => |a, b, _| u64::from(half::binary::<half::Bf16>("add", a as u16, b as u16, PLAIN)),
        ("add", Ty::F16x2) => |a, b, _| pair(a, b, |x, y| half::binary::<half::F16>("add", x, y, PLAIN)),
        ("add", Ty::Bf16x2) => |a, b, _| pair(a, b, |x, y| half::binary::<half::Bf16>("add", x, y, PLAIN)),
        ("min", Ty::F16) => |a, b, _| u64::from(half::binary::<half::F16>("min", a as u16, b as u16, PLAIN)),
        ("max", Ty::F16) => |a, b, _| u64::from(half::binary::<half::F16>("max", a as u16, b as u16, PLAIN)),
        ("min", Ty::Bf16) => |a, b, _| u64::from(half::binary::<half::Bf16>("min", a as u16, b as u16, PLAIN)),
        ("max", Ty::Bf16) => |a, b, _| u64::from(half::binary::<half::Bf16>("max", a as u16, b as u16, PLAIN)),
        ("min", Ty::F16x2) => |a, b, _| pair(a, b, |x, y| half::binary::<half::F16>("min", x, y, PLAIN)),
        ("max", Ty::F16x2) => |a, b, _| pair(a, b, |x, y| half::binary::<half::F16>("max", x, y, PLAIN)),
        ("min", Ty::Bf16x2) => |a, b, _| pair(a, b, |x, y| half::binary::<half::Bf16>("min", x, y, PLAIN)),
        ("max", Ty::Bf16x2) => |a, b, _| pair(a, b, |x, y| half::binary::<half::Bf16>("max", x, y, PLAIN)),
        ("min", Ty::F32) => |a, b, _| u64::from(min_max_f32(f32_of(a), f32_of(b), false, false).to_bits()),
        ("max", Ty::F32) => |a, b, _| u64::from(min_max_f32(f32_of(a), f32_of(b), true, false).to_bits()),
        ("min", Ty::F64) => |a, b, _| min_max_f64(f64::from_bits(a), f64::from_bits(b), false).to_bits(),
        ("max", Ty::F64) => |a, b, _| min_max_f64(f64::from_bits(a), f64::from_bits(b), true).to_bits(),
        ("min", Ty::U(32)) => |a, b, _| u64::from((a as u32).min(b as u32)),
        ("max", Ty::U(32)) => |a, b, _| u64::from((a as u32).max(b as u32)),
        ("min", Ty::S(32)) => |a, b, _| u64::from((a as i32).min(b as i32) as u32),
        ("max", Ty::S(32)) => |a, b, _| u64::from((a as i32).max(b as i32) as u32),
        ("min", Ty::U(64)) => |a, b, _| a.min(b),
        ("max", Ty::U(64)) => |a, b, _| a.max(b),
        ("min", Ty::S(64)) => |a, b, _| (a as i64).min(b as i64) as u64,
        ("max", Ty::S(64)) => |a, b, _| (a as i64).max(b as i64) as u64,
        ("inc", Ty::U(32)) => |a, b, _| if a as u32 >= b as u32 { 0 } else { a + 1 },
        ("dec", Ty::U(32)) => |a, b, _| if a as u32 == 0 || a as u32 > b as u32 { b } else { a - 1 },
        ("and", _) => |a, b, _| a & b,
        ("or", _) => |a, b, _| a | b,
        ("xor", _) => |a, b, _| a ^ b,
        ("exch", _) => |_, b, _| b,
        ("cas", _) => |a, b, c| if a == b { c } else { a },
        _ => return None,
    })
}
