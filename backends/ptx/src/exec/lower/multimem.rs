//! `multimem`: loads with reduction, stores and reductions over a multicast group (see `DeviceMemory::multicast`).

use super::memory::{Combine, combine};
use super::{Lower, Ty};
use crate::ast::Instruction;
use crate::exec::access::{self, StoreOp, lanes_of};
use crate::exec::context::Cx;
use crate::exec::error::CompileError;
use crate::exec::findings::Check;
use crate::exec::global_race::{Order, Scope};
use crate::exec::memory::resolve;
use crate::exec::program::{Flow, MemorySpace, Slot};

/// The places of `bytes` at a multicast address in every member, or a finding.
fn members(cx: &mut Cx<'_>, address: u64, bytes: u64, lane: usize) -> Vec<u64> {
    let (space, address) = resolve(address);
    let found = if space == MemorySpace::Global { cx.m.launch.memory.find_multicast(address, bytes) } else { None };
    match found {
        Some(group) => group.members.iter().map(|m| m + (address - group.base)).collect(),
        None => {
            cx.m.report(Check::Bounds, Some(lane as u32), || {
                format!("{bytes} bytes at {address:#x} are not in a multicast group")
            });
            Vec::new()
        }
    }
}

impl Lower<'_> {
    pub(super) fn multimem(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let verb = i.modifiers.first().map_or("", String::as_str);
        let ty = self.last_type(i)?;
        if !(16..=64).contains(&ty.bits()) {
            return Err(self.unsupported(i.full_name()));
        }
        let bytes = ty.bits() / 8;
        let op = i
            .modifiers
            .iter()
            .find(|m| matches!(m.as_str(), "add" | "min" | "max" | "and" | "or" | "xor"))
            .map_or("", String::as_str);
        match (verb, i.operands.as_slice()) {
            ("ld_reduce", [d, a]) => {
                let a = self.address(a)?;
                let mut slots: Vec<Slot> = Vec::new();
                for o in self.elements(d) {
                    slots.push(self.dst(o, ty.bits())?);
                }
                let Some(f) = combine(op, ty, false) else {
                    return Err(self.unsupported(i.full_name()));
                };
                let wide =
                    i.modifiers.iter().any(|m| m == "acc::f32") && matches!(ty, Ty::F16x2 | Ty::Bf16x2) && op == "add";
                self.emit_custom(Box::new(move |cx, mask| {
                    let at = access::addresses(cx, a, mask);
                    for (e, d) in slots.iter().enumerate() {
                        let mut out = [0u64; 32];
                        let mut poison = 0u32;
                        for l in lanes_of(mask) {
                            let places = members(cx, at[l] + e as u64 * u64::from(bytes), u64::from(bytes), l);
                            let mut values = Vec::new();
                            for p in places {
                                match access::update(cx, MemorySpace::Global, p, bytes, l, &mut |v| v) {
                                    Some((v, init)) => {
                                        values.push(v);
                                        poison |= u32::from(!init) << l;
                                    }
                                    None => poison |= 1 << l,
                                }
                            }
                            out[l] = if wide {
                                sum_wide(&values, ty)
                            } else {
                                values.iter().copied().reduce(|x, y| f(x, y, 0)).unwrap_or(0)
                            };
                        }
                        cx.write(*d, mask, &out, poison);
                    }
                    Ok(Flow::Next)
                }));
                Ok(())
            }
            ("st", [a, v]) => {
                let address = self.address(a)?;
                let elements = self.sources(self.elements(v), ty)?.into();
                let strong = i.modifiers.iter().any(|m| matches!(m.as_str(), "relaxed" | "release"));
                let order = Order::of(i, strong, Scope::Gpu);
                let op = StoreOp { space: MemorySpace::Global, address, elements, bytes, order };
                self.emit_custom(Box::new(move |cx, mask| {
                    store(cx, &op, mask);
                    Ok(Flow::Next)
                }));
                Ok(())
            }
            ("red", [a, v]) => {
                let a = self.address(a)?;
                let values = self.sources(self.elements(v), ty)?;
                let f: Combine = combine(op, ty, true).ok_or_else(|| self.unsupported(i.full_name()))?;
                self.emit_custom(Box::new(move |cx, mask| {
                    let at = access::addresses(cx, a, mask);
                    for (e, s) in values.iter().enumerate() {
                        cx.require(*s, mask, "the stored value");
                        for l in lanes_of(mask) {
                            let v = cx.lanes(*s)[l];
                            for p in members(cx, at[l] + e as u64 * u64::from(bytes), u64::from(bytes), l) {
                                access::update(cx, MemorySpace::Global, p, bytes, l, &mut |old| f(old, v, 0));
                            }
                        }
                    }
                    Ok(Flow::Next)
                }));
                Ok(())
            }
            _ => Err(self.unsupported(i.full_name())),
        }
    }
}

/// A store to every member, each of which is a store of its own order. One of them counts as traffic, another device's where there is one:
/// the switch makes the others.
fn store(cx: &mut Cx<'_>, op: &StoreOp, mask: u32) {
    let at = access::addresses(cx, op.address, mask);
    let total = u64::from(op.bytes) * op.elements.len() as u64;
    let mut places: [Vec<u64>; 32] = std::array::from_fn(|_| Vec::new());
    for l in lanes_of(mask) {
        places[l] = members(cx, at[l], total, l);
        let launch = cx.m.launch;
        places[l].sort_by_key(|p| !launch.find(*p, 1).is_some_and(|a| launch.is_far(a)));
    }
    for member in 0..places.iter().map(Vec::len).max().unwrap_or(0) {
        let (mut to, mut lanes) = (at, 0u32);
        for l in lanes_of(mask) {
            if let Some(&place) = places[l].get(member) {
                (to[l], lanes) = (place, lanes | 1 << l);
            }
        }
        access::store_global(cx, op, &to, lanes, member == 0);
    }
}

/// The sum of packed halves in f32, rounded once.
fn sum_wide(values: &[u64], ty: Ty) -> u64 {
    use super::half::{Bf16, F16, Half};
    let load = |b: u16| if ty == Ty::F16x2 { F16::load(b) } else { Bf16::load(b) };
    let store = |x: f32| if ty == Ty::F16x2 { F16::store(x) } else { Bf16::store(x) };
    let sum = |shift: u32| store(values.iter().map(|v| load((v >> shift) as u16)).sum());
    u64::from(sum(0)) | u64::from(sum(16)) << 16
}
