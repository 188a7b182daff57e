//! Stores of a warp.

use super::{addresses, by_space, count_global, lanes_of, local_start, release_shared, shared_lanes, track_lanes};
use crate::exec::context::{Cx, split_shared};
use crate::exec::error::ExecError;
use crate::exec::findings::Check;
use crate::exec::global_race::Order;
use crate::exec::memory::global::{Allocation, byte_mask};
use crate::exec::program::{AddressSrc, Lanes, MemorySpace, Src};
use crate::exec::race::AccessKind;

/// A store.
pub(crate) struct StoreOp {
    pub space: MemorySpace,
    pub address: AddressSrc,
    pub elements: Box<[Src]>,
    pub bytes: u32,
    pub order: Order,
}

/// Executes a store for the lanes in `mask`.
pub(crate) fn store(cx: &mut Cx<'_>, op: &StoreOp, mask: u32) -> Result<(), ExecError> {
    let mut at = addresses(cx, op.address, mask);
    if op.space != MemorySpace::Generic {
        store_to(cx, op, op.space, &at, mask);
        return Ok(());
    }
    for (space, lanes) in by_space(op.space, &mut at, mask) {
        store_to(cx, op, space, &at, lanes);
    }
    Ok(())
}

fn store_to(cx: &mut Cx<'_>, op: &StoreOp, space: MemorySpace, at: &Lanes, lanes: u32) {
    match space {
        MemorySpace::Global | MemorySpace::Generic => store_global(cx, op, at, lanes, true),
        MemorySpace::Shared | MemorySpace::SharedCluster => {
            store_shared(cx, op, at, lanes, space == MemorySpace::Shared)
        }
        MemorySpace::Local | MemorySpace::Frame => store_local(cx, op, at, lanes, space == MemorySpace::Frame),
        MemorySpace::Const | MemorySpace::Param => {
            cx.m.report(Check::Bounds, Some(lanes.trailing_zeros()), || {
                "a store to constant or parameter memory".to_owned()
            });
        }
    }
}

/// A store to global memory; `counts` as traffic, or not.
pub(crate) fn store_global(cx: &mut Cx<'_>, op: &StoreOp, at: &Lanes, lanes: u32, counts: bool) {
    let n = op.elements.len();
    let bytes = op.bytes;
    let total = u64::from(bytes) * n as u64;
    let holes = unwritten_elements(cx, &op.elements, lanes);
    if let Some(holes) = &holes {
        report_unwritten(cx, op, holes, lanes);
    }
    if op.order.strong {
        cx.release_global(op.order, at, lanes);
    }
    let strong = op.order.strong;
    let launch = cx.m.launch;
    let mut current: Option<&Allocation> = None;
    // Neighbouring lanes fill words together, so that most words are stored at once.
    let mut pending: Option<(&Allocation, usize, u8, u64)> = None;
    for l in lanes_of(lanes) {
        let address = at[l];
        let inside = current.is_some_and(|a| {
            address >= a.base
                && address - a.base <= a.bytes
                && total <= a.bytes - (address - a.base)
                && address.is_multiple_of(total)
        });
        if !inside {
            current = if cx.m.global_range(address, total, total, Some(l as u32)).is_some() {
                launch.find(address, total)
            } else {
                None
            };
        }
        let Some(a) = current else { continue };
        for (e, s) in op.elements.iter().enumerate() {
            let offset = address - a.base + e as u64 * u64::from(bytes);
            let (word, byte) = ((offset / 8) as usize, (offset % 8) as u32);
            let mask = byte_mask(bytes) << byte;
            let value = cx.lanes(*s)[l];
            // Bytes of which no bit was written stay unwritten.
            let lost = holes.as_ref().map_or(0, |h| unwritten_bytes(h[e][l], bytes) << byte);
            let value = if bytes == 8 { value } else { (value & ((1 << (8 * bytes)) - 1)) << (8 * byte) };
            match &mut pending {
                Some((pa, pw, pm, pv)) if lost == 0 && std::ptr::eq(*pa, a) && *pw == word && *pm & mask == 0 => {
                    *pm |= mask;
                    *pv |= value;
                }
                _ => {
                    if let Some((pa, pw, pm, pv)) = pending.take() {
                        let _held = cx.writes_global(pa, pw, pm, pv, l, strong);
                        pa.store_word(pw, pm, pv, true);
                    }
                    if lost == 0 {
                        pending = Some((a, word, mask, value));
                    } else {
                        let _held = cx.writes_global(a, word, mask, value, l, strong);
                        a.store_word(word, mask & !lost, value, true);
                        a.store_word(word, lost, value, false);
                    }
                }
            }
        }
    }
    if let Some((pa, pw, pm, pv)) = pending {
        let _held = cx.writes_global(pa, pw, pm, pv, 31 - lanes.leading_zeros() as usize, strong);
        pa.store_word(pw, pm, pv, true);
    }
    if strong {
        cx.has_released_global(op.order, lanes);
    }
    cx.m.launch.run.has_changed();
    if counts && cx.m.launch.options.counters {
        count_global(cx, at, lanes, total, true);
    }
}

/// The unwritten bits of each element of a store, if an executing lane has some.
fn unwritten_elements(cx: &Cx<'_>, elements: &[Src], lanes: u32) -> Option<Vec<Lanes>> {
    if elements.iter().all(|s| cx.poison(*s) & lanes == 0) {
        return None;
    }
    Some(elements.iter().map(|s| cx.unwritten(*s)).collect())
}

/// The bytes of which no bit was written, as a mask of bytes.
fn unwritten_bytes(holes: u64, bytes: u32) -> u8 {
    (0..bytes).fold(0, |m, b| m | u8::from(holes >> (8 * b) & 0xff == 0xff) << b)
}

/// A lane that stores nothing but unwritten bytes is a finding. Where a part of what it stores was written, or the value was
/// loaded from beside something that was, the rest may be padding: a note.
#[cold]
fn report_unwritten(cx: &mut Cx<'_>, op: &StoreOp, holes: &[Lanes], lanes: u32) {
    let all = byte_mask(op.bytes);
    for l in lanes_of(lanes) {
        // Bytes with unwritten bits.
        let lost: Vec<u8> = holes
            .iter()
            .map(|h| (0..op.bytes).fold(0, |m, b| m | u8::from(h[l] >> (8 * b) & 0xff != 0) << b))
            .collect();
        if holes.iter().all(|h| h[l] == 0) {
            continue;
        }
        let padding = op.elements.iter().all(|s| (cx.warp.padding_of(*s) | !cx.poison(*s)) >> l & 1 == 1);
        if lost.iter().any(|b| *b != all) || padding {
            let bytes: u32 = lost.iter().map(|b| b.count_ones()).sum();
            let total = op.bytes * lost.len() as u32;
            cx.m.note(Check::Uninitialized, Some(l as u32), || {
                format!("of {total} bytes that are stored to global memory, {bytes} were never written; they are right only if nobody uses them (the padding of a struct)")
            });
        } else {
            cx.m.report(Check::Uninitialized, Some(l as u32), || {
                "a value that was never written is stored to global memory".to_owned()
            });
        }
    }
}

fn store_shared(cx: &mut Cx<'_>, op: &StoreOp, at: &Lanes, lanes: u32, own_only: bool) {
    let total = u64::from(op.bytes) * op.elements.len() as u64;
    let kind = if op.order.strong { AccessKind::StrongWrite } else { AccessKind::Write };
    let good = shared_lanes(cx, at, lanes, total, own_only, kind);
    if kind == AccessKind::Write && cx.m.cluster.n_actors > 0 {
        // Compilers let several warps store the same value to the same place; a store that changes nothing is no race.
        let changes = lanes_of(good).filter(|l| !already_there(cx, op, at[*l], *l)).fold(0u32, |m, l| m | 1 << l);
        track_lanes(cx, at, changes, total, kind);
    }
    let holes = unwritten_elements(cx, &op.elements, good);
    for l in lanes_of(good) {
        let (rank, offset) = split_shared(at[l]);
        for (e, s) in op.elements.iter().enumerate() {
            let value = cx.lanes(*s)[l];
            let lost = holes.as_ref().map_or(0, |h| h[e][l]);
            cx.m.cluster.ctas[rank].shared.store(
                offset as usize + e * op.bytes as usize,
                op.bytes as usize,
                value,
                lost,
            );
        }
    }
    if op.order.strong {
        release_shared(cx, at, good);
    }
}

/// Whether a lane stores what its place holds already.
fn already_there(cx: &Cx<'_>, op: &StoreOp, address: u64, l: usize) -> bool {
    let (rank, offset) = split_shared(address);
    let field = if op.bytes == 8 { u64::MAX } else { (1 << (8 * op.bytes)) - 1 };
    op.elements.iter().enumerate().all(|(e, s)| {
        let (old, init) =
            cx.m.cluster.ctas[rank].shared.load(offset as usize + e * op.bytes as usize, op.bytes as usize);
        init && cx.poison(*s) >> l & 1 == 0 && old == cx.lanes(*s)[l] & field
    })
}

fn store_local(cx: &mut Cx<'_>, op: &StoreOp, at: &Lanes, lanes: u32, frame: bool) {
    let total = u64::from(op.bytes) * op.elements.len() as u64;
    let holes = unwritten_elements(cx, &op.elements, lanes);
    for l in lanes_of(lanes) {
        let Some(start) = local_start(cx, at[l], total, frame, l) else { continue };
        for (e, s) in op.elements.iter().enumerate() {
            let (to, bytes) = (start + e * op.bytes as usize, op.bytes as usize);
            let value = cx.lanes(*s)[l].to_le_bytes();
            let lost = holes.as_ref().map_or(0, |h| h[e][l]).to_le_bytes();
            cx.warp.local[to..to + bytes].copy_from_slice(&value[..bytes]);
            cx.warp.local_holes[to..to + bytes].copy_from_slice(&lost[..bytes]);
        }
    }
}
