//! Loads, stores and atomics of a warp.

mod count;
mod store;
mod update;

pub(crate) use count::{count_banks, count_global};
pub(crate) use store::{StoreOp, store, store_global};
pub(crate) use update::update;

use super::context::{Cx, split_shared};
use super::error::ExecError;
use super::findings::Check;
use super::global_race::Order;
use super::memory::resolve;
use super::program::{AddressSrc, Lanes, MemorySpace, Slot, WARP};
use super::race::AccessKind;

/// A load: the elements of a vector go to slots.
pub(crate) struct LoadOp {
    pub space: MemorySpace,
    pub address: AddressSrc,
    pub elements: Box<[Slot]>,
    /// Bytes of an element, at most 8.
    pub bytes: u32,
    pub signed: bool,
    pub register_bits: u32,
    pub order: Order,
}

/// The lanes of a mask.
#[inline]
pub(crate) fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let l = left.trailing_zeros() as usize;
        left &= left - 1;
        Some(l)
    })
}

/// Effective addresses of all lanes.
#[inline]
pub(crate) fn addresses(cx: &mut Cx<'_>, a: AddressSrc, mask: u32) -> Lanes {
    let mut out = *cx.lanes(a.base);
    if a.offset != 0 || a.narrow {
        for v in &mut out {
            *v = a.at(*v);
        }
    }
    cx.require(a.base, mask, "the address");
    out
}

/// Splits a mask by the spaces of generic addresses and strips the windows; gives (space, lanes) pairs.
pub(crate) fn by_space(space: MemorySpace, at: &mut Lanes, mask: u32) -> Vec<(MemorySpace, u32)> {
    if space != MemorySpace::Generic {
        return vec![(space, mask)];
    }
    let mut groups: Vec<(MemorySpace, u32)> = Vec::with_capacity(1);
    for l in lanes_of(mask) {
        let (s, a) = resolve(at[l]);
        at[l] = a;
        match groups.iter_mut().find(|(g, _)| *g == s) {
            Some((_, m)) => *m |= 1 << l,
            None => groups.push((s, 1 << l)),
        }
    }
    groups
}

fn extend(value: u64, bytes: u32, register_bits: u32) -> u64 {
    let bits = bytes * 8;
    let wide = ((value as i64) << (64 - bits) >> (64 - bits)) as u64;
    if register_bits >= 64 { wide } else { wide & ((1 << register_bits) - 1) }
}

/// Executes a load for the lanes in `mask`.
pub(crate) fn load(cx: &mut Cx<'_>, op: &LoadOp, mask: u32) -> Result<(), ExecError> {
    let mut at = addresses(cx, op.address, mask);
    if op.order.strong {
        cx.m.cluster.quantum_left -= 32;
        cx.m.cluster.slice_left -= 200;
        cx.m.cluster.polls += 1;
    }
    if op.space != MemorySpace::Generic {
        load_from(cx, op, op.space, &at, mask);
        return Ok(());
    }
    for (space, lanes) in by_space(op.space, &mut at, mask) {
        load_from(cx, op, space, &at, lanes);
    }
    Ok(())
}

fn load_from(cx: &mut Cx<'_>, op: &LoadOp, space: MemorySpace, at: &Lanes, lanes: u32) {
    match op.elements.len() {
        1 => load_elements::<1>(cx, op, space, at, lanes),
        2 => load_elements::<2>(cx, op, space, at, lanes),
        3 | 4 => load_elements::<4>(cx, op, space, at, lanes),
        _ => load_elements::<MAX_ELEMENTS>(cx, op, space, at, lanes),
    }
}

/// `N`: room for elements.
fn load_elements<const N: usize>(cx: &mut Cx<'_>, op: &LoadOp, space: MemorySpace, at: &Lanes, lanes: u32) {
    match space {
        MemorySpace::Global | MemorySpace::Generic => load_global::<N>(cx, op, at, lanes),
        MemorySpace::Shared | MemorySpace::SharedCluster => {
            load_shared::<N>(cx, op, at, lanes, space == MemorySpace::Shared)
        }
        MemorySpace::Local | MemorySpace::Frame => load_local::<N>(cx, op, at, lanes, space == MemorySpace::Frame),
        MemorySpace::Const | MemorySpace::Param => load_bank::<N>(cx, op, at, lanes, space == MemorySpace::Const),
    }
}

/// What a load found: the values of each element, and the unwritten bits if there are some.
struct Found<const N: usize> {
    values: [Lanes; N],
    holes: Option<Box<Holes>>,
}

struct Holes {
    bits: [Lanes; MAX_ELEMENTS],
    /// For each element, lanes that hold padding.
    padding: [u32; MAX_ELEMENTS],
}

impl<const N: usize> Found<N> {
    fn new() -> Self {
        Found { values: [[0; WARP]; N], holes: None }
    }

    /// Notes unwritten bits of an element. `beside`: something near it was written.
    #[cold]
    fn hole(&mut self, element: usize, lane: usize, bits: u64, beside: bool) {
        let holes = self
            .holes
            .get_or_insert_with(|| Box::new(Holes { bits: [[0; WARP]; MAX_ELEMENTS], padding: [0; MAX_ELEMENTS] }));
        holes.bits[element][lane] = bits;
        holes.padding[element] |= u32::from(beside) << lane;
    }

    /// Nothing is known of a lane.
    #[cold]
    fn lost(&mut self, elements: usize, lane: usize) {
        (0..elements).for_each(|e| self.hole(e, lane, u64::MAX, false));
    }
}

/// Unwritten bits of up to eight bytes as one mask.
fn join(holes: &[u8]) -> u64 {
    holes.iter().rev().fold(0, |bits, h| bits << 8 | u64::from(*h))
}

/// Bytes around an access in which a written one makes the unwritten ones padding.
const PADDED: u64 = 16;

/// Writes what a load found to its slots.
fn deliver<const N: usize>(cx: &mut Cx<'_>, op: &LoadOp, lanes: u32, found: &Found<N>) {
    for (n, d) in op.elements.iter().enumerate() {
        let signed;
        let values = if op.signed {
            signed = found.values[n].map(|v| extend(v, op.bytes, op.register_bits));
            &signed
        } else {
            &found.values[n]
        };
        let Some(holes) = &found.holes else {
            cx.warp.write(*d, lanes, values, 0);
            continue;
        };
        let bits = holes.bits[n].map(|b| match op.bytes {
            8 => b,
            bytes if op.signed => extend(b, bytes, op.register_bits),
            bytes => b & ((1 << (8 * bytes)) - 1),
        });
        cx.warp.write_bits(*d, lanes, values, &bits, holes.padding[n]);
    }
}

const MAX_ELEMENTS: usize = 8;

fn load_global<const N: usize>(cx: &mut Cx<'_>, op: &LoadOp, at: &Lanes, lanes: u32) {
    let n = op.elements.len();
    let total = u64::from(op.bytes) * n as u64;
    let mut found = Found::<N>::new();
    let launch = cx.m.launch;
    let mut current: Option<&super::memory::global::Allocation> = None;
    let mut written = 0;
    for l in lanes_of(lanes) {
        let address = at[l];
        let inside = |a: &super::memory::global::Allocation| {
            address >= a.base && address - a.base <= a.bytes && total <= a.bytes - (address - a.base)
        };
        let allocation = match current.filter(|a| inside(a)) {
            Some(a) if address.is_multiple_of(total) => Some(a),
            _ => {
                // The finding, if there is one, is made here.
                if cx.m.global_range(address, total, total, Some(l as u32)).is_some() {
                    launch.find(address, total)
                } else {
                    None
                }
            }
        };
        let Some(a) = allocation else {
            found.lost(n, l);
            continue;
        };
        current = Some(a);
        let offset = address - a.base;
        if a.shadow.is_written() && cx.m.launch.orders_global {
            written |= 1 << l;
        }
        for e in 0..n {
            let at = offset + e as u64 * u64::from(op.bytes);
            let (v, init) = a.load(at, op.bytes);
            found.values[e][l] = v;
            if !init {
                let mut written = [false; 8];
                a.initialized(at, &mut written[..op.bytes as usize]);
                let bits =
                    join(&written[..op.bytes as usize].iter().map(|w| if *w { 0 } else { 0xff }).collect::<Vec<u8>>());
                let (start, mut near) = (at / PADDED * PADDED, [false; PADDED as usize]);
                a.initialized(start, &mut near[..(a.bytes - start).min(PADDED) as usize]);
                found.hole(e, l, bits, near.contains(&true));
            }
        }
    }
    if op.order.strong {
        cx.acquire_global(op.order, at, lanes);
    }
    if written != 0 {
        cx.read_lanes(at, written, total, op.order.strong);
    }
    if cx.m.launch.options.counters {
        count_global(cx, at, lanes, total, false);
    }
    deliver(cx, op, lanes, &found);
}

/// Contiguous runs of the lanes' accesses, in lane order: (address, bytes, first lane).
fn runs(at: &Lanes, lanes: u32, total: u64) -> Vec<(u64, u64, u32)> {
    let mut out: Vec<(u64, u64, u32)> = Vec::with_capacity(8);
    for l in lanes_of(lanes) {
        match out.last_mut() {
            Some((start, bytes, _)) if *start + *bytes == at[l] => *bytes += total,
            // Lanes that read the same word in a row add nothing.
            Some((start, bytes, _)) if at[l] >= *start && at[l] + total <= *start + *bytes => {}
            _ => out.push((at[l], total, l as u32)),
        }
    }
    out
}

/// Bounds, alignment and (but for weak stores) race checks of a warp's access to shared memory; gives the lanes that
/// may go on.
pub(crate) fn shared_lanes(
    cx: &mut Cx<'_>,
    at: &Lanes,
    lanes: u32,
    total: u64,
    own_only: bool,
    kind: AccessKind,
) -> u32 {
    let mut good = 0;
    let cta = cx.m.cta;
    let end = u64::from(cx.m.cluster.ctas[cta].shared.end());
    let base = u64::from(super::memory::SHARED_RESERVED);
    for l in lanes_of(lanes) {
        let (rank, offset) = split_shared(at[l]);
        let quick =
            rank == cta && at[l] >> 32 == 0 && offset >= base && offset + total <= end && offset.is_multiple_of(total);
        if quick || cx.m.shared_range(at[l], total, total, own_only, Some(l as u32)).is_some() {
            good |= 1 << l;
        }
    }
    if cx.m.launch.options.counters && good != 0 {
        count_banks(cx, at, good, total);
    }
    if kind != AccessKind::Write {
        track_lanes(cx, at, good, total, kind);
    }
    good
}

/// Records the lanes' accesses in the history.
fn track_lanes(cx: &mut Cx<'_>, at: &Lanes, lanes: u32, total: u64, kind: AccessKind) {
    if cx.m.cluster.n_actors > 0 && lanes != 0 {
        for (start, bytes, lane) in runs(at, lanes, total) {
            let (rank, offset) = split_shared(start);
            cx.track_shared(rank, offset, bytes, kind, lane);
        }
    }
}

fn load_shared<const N: usize>(cx: &mut Cx<'_>, op: &LoadOp, at: &Lanes, lanes: u32, own_only: bool) {
    let n = op.elements.len();
    let total = u64::from(op.bytes) * n as u64;
    let kind = if op.order.strong { AccessKind::StrongRead } else { AccessKind::Read };
    let good = shared_lanes(cx, at, lanes, total, own_only, kind);
    let mut found = Found::<N>::new();
    lanes_of(lanes & !good).for_each(|l| found.lost(n, l));
    for l in lanes_of(good) {
        let (rank, offset) = split_shared(at[l]);
        let shared = &cx.m.cluster.ctas[rank].shared;
        for e in 0..n {
            let at = offset as usize + e * op.bytes as usize;
            let (v, init) = shared.load(at, op.bytes as usize);
            found.values[e][l] = v;
            if !init {
                let start = at / PADDED as usize * PADDED as usize;
                let near = shared.holes(start, (shared.end() as usize - start).min(PADDED as usize));
                found.hole(e, l, join(shared.holes(at, op.bytes as usize)), near.iter().any(|h| *h != 0xff));
            }
        }
    }
    if op.order.strong {
        acquire_shared(cx, at, good);
    }
    deliver(cx, op, lanes, &found);
}

/// A strong read learns what strong writes of the place have released.
pub(crate) fn acquire_shared(cx: &mut Cx<'_>, at: &Lanes, lanes: u32) {
    if cx.m.cluster.n_actors == 0 {
        return;
    }
    for l in lanes_of(lanes) {
        let (rank, offset) = split_shared(at[l]);
        if let Some(clock) =
            cx.m.cluster.ctas.get(rank).and_then(|c| c.shared.history.as_ref()).and_then(|h| h.acquired(offset as u32))
        {
            cx.warp.clock.join(clock);
        }
    }
}

/// A strong write releases what the warp knows.
pub(crate) fn release_shared(cx: &mut Cx<'_>, at: &Lanes, lanes: u32) {
    if cx.m.cluster.n_actors == 0 || lanes == 0 {
        return;
    }
    for l in lanes_of(lanes) {
        let (rank, offset) = split_shared(at[l]);
        if let Some(h) = cx.m.cluster.ctas.get_mut(rank).and_then(|c| c.shared.history.as_mut()) {
            h.release(offset as u32, &cx.warp.clock);
        }
    }
    cx.advance();
}

/// Start of a lane's access in the warp's local memory, or a finding.
fn local_start(cx: &mut Cx<'_>, address: u64, total: u64, frame: bool, l: usize) -> Option<usize> {
    let address = if frame { address + u64::from(cx.warp.frame[l]) } else { address };
    if address.checked_add(total).is_none_or(|end| end > u64::from(cx.warp.local_stride)) {
        cx.m.report(Check::Bounds, Some(l as u32), || {
            format!("{total} bytes at local address {address:#x} are outside the thread's local memory")
        });
        return None;
    }
    if !address.is_multiple_of(total) {
        cx.m.report(Check::Alignment, Some(l as u32), || {
            format!("local address {address:#x} is not a multiple of {total}")
        });
        return None;
    }
    Some(l * cx.warp.local_stride as usize + address as usize)
}

fn load_local<const N: usize>(cx: &mut Cx<'_>, op: &LoadOp, at: &Lanes, lanes: u32, frame: bool) {
    let n = op.elements.len();
    let total = u64::from(op.bytes) * n as u64;
    let mut found = Found::<N>::new();
    for l in lanes_of(lanes) {
        let Some(start) = local_start(cx, at[l], total, frame, l) else {
            found.lost(n, l);
            continue;
        };
        for e in 0..n {
            let (from, bytes) = (start + e * op.bytes as usize, op.bytes as usize);
            let mut v = [0u8; 8];
            v[..bytes].copy_from_slice(&cx.warp.local[from..from + bytes]);
            found.values[e][l] = u64::from_le_bytes(v);
            let holes = &cx.warp.local_holes[from..from + bytes];
            if holes.iter().any(|h| *h != 0) {
                let first = from / PADDED as usize * PADDED as usize;
                let near = &cx.warp.local_holes[first..(first + PADDED as usize).min(cx.warp.local_holes.len())];
                found.hole(e, l, join(holes), near.iter().any(|h| *h != 0xff));
            }
        }
    }
    deliver(cx, op, lanes, &found);
}

fn load_bank<const N: usize>(cx: &mut Cx<'_>, op: &LoadOp, at: &Lanes, lanes: u32, constant: bool) {
    let n = op.elements.len();
    let total = u64::from(op.bytes) * n as u64;
    let launch = cx.m.launch;
    let bank: &[u8] = if constant { &launch.const_bank } else { &launch.params };
    let mut found = Found::<N>::new();
    for l in lanes_of(lanes) {
        let room = usize::try_from(at[l]).ok().and_then(|from| bank.get(from..from.checked_add(total as usize)?));
        let Some(room) = room else {
            let name = if constant { "constant" } else { "parameter" };
            cx.m.report(Check::Bounds, Some(l as u32), || {
                format!("{total} bytes at {name} address {:#x} are outside the bank of {} bytes", at[l], bank.len())
            });
            found.lost(n, l);
            continue;
        };
        for e in 0..n {
            let bytes = op.bytes as usize;
            let mut v = [0u8; 8];
            v[..bytes].copy_from_slice(&room[e * bytes..(e + 1) * bytes]);
            found.values[e][l] = u64::from_le_bytes(v);
        }
    }
    deliver(cx, op, lanes, &found);
}
