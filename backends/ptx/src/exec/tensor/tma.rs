//! `cp.async.bulk.tensor` (load, store, reduce, prefetch; tile, gather4, scatter4) and the editing of tensor maps.

use super::{compile_error, fault, whole_warp};
use crate::ast::{Instruction, Operand};
use crate::exec::context::{AsyncCx, Cx, Machine, split_shared};
use crate::exec::error::{CompileError, ExecError};
use crate::exec::findings::Check;
use crate::exec::lower::{Lower, Ty};
use crate::exec::memory;
use crate::exec::program::{AddressSrc, Custom, Flow, MemorySpace, Src};
use crate::exec::queue::{Step, Stream};
use crate::exec::race::AccessKind;
use crate::exec::warp::GroupKind;
use crate::tensor::tensormap::{self, BYTES, Field, TensorMap};
use crate::tensor::tma::{self, Reduction, Row};

/// Alignment of a box in shared memory.
const BOX_ALIGN: u64 = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Tile,
    /// `tile::gather4` or `tile::scatter4`.
    FourRows,
}

impl Mode {
    fn rows(self, map: &TensorMap, coordinates: &[i32]) -> Result<Vec<Row>, crate::tensor::TensorError> {
        match self {
            Self::Tile => tma::tile_rows(map, coordinates),
            Self::FourRows => tma::gather4_rows(map, coordinates),
        }
    }
}

/// The tensor operand: address of the map, coordinates.
struct Tensor {
    map: AddressSrc,
    coordinates: Vec<Src>,
    mode: Mode,
}

fn tensor_operand(l: &mut Lower<'_>, i: &Instruction, at: usize) -> Result<Tensor, CompileError> {
    if let Some(mode) = i.modifiers.iter().find(|m| m.starts_with("im2col")) {
        return Err(l.unsupported(format!("`.{mode}` tensor copies")));
    }
    let mode = if i.has("tile::gather4") || i.has("tile::scatter4") { Mode::FourRows } else { Mode::Tile };
    let Some(rank) = i.modifiers.iter().find_map(|m| m.strip_suffix('d')?.parse::<usize>().ok()) else {
        return Err(l.invalid("the dimension (`.1d` to `.5d`) is missing"));
    };
    let Some(operand @ Operand::Tensor { coordinates, .. }) = i.operands.get(at) else {
        return Err(l.invalid(format!("operand {} must be `[map, {{coordinates}}]`", at + 1)));
    };
    let map = l.address(operand)?;
    let [list] = coordinates.as_slice() else { return Err(l.invalid("one list of coordinates expected")) };
    let list = l.elements(list).to_vec();
    let expected = if mode == Mode::FourRows { 5 } else { rank };
    if list.len() != expected {
        return Err(l.invalid(format!("{expected} coordinates expected, {} given", list.len())));
    }
    let coordinates = list.iter().map(|o| l.src(o, Ty::S(32))).collect::<Result<_, _>>()?;
    Ok(Tensor { map, coordinates, mode })
}

impl Tensor {
    /// The map and the coordinates of one lane.
    fn read(&self, cx: &mut Cx<'_>, lane: usize) -> Result<(TensorMap, Vec<i32>), ExecError> {
        cx.require(self.map.base, 1 << lane, "the address of the tensor map");
        for c in &self.coordinates {
            cx.require(*c, 1 << lane, "a coordinate");
        }
        let coordinates = self.coordinates.iter().map(|c| cx.lanes(*c)[lane] as u32 as i32).collect();
        let address = cx.address(self.map, lane);
        let bytes = read_map(&mut cx.m, address, lane as u32)?;
        let map = TensorMap::decode(&bytes).map_err(|e| fault(&cx.m, &e))?;
        Ok((map, coordinates))
    }
}

/// The 128 bytes of a tensor map at a generic address: kernel parameter, constant or global memory.
fn read_map(m: &mut Machine<'_>, address: u64, lane: u32) -> Result<[u8; BYTES], ExecError> {
    let mut bytes = [0u8; BYTES];
    let (space, at) = memory::resolve(address);
    if !at.is_multiple_of(64) {
        m.report(Check::Alignment, Some(lane), || format!("the tensor map at {address:#x} is not aligned to 64 bytes"));
    }
    let bank = match space {
        MemorySpace::Param => Some(&m.launch.params),
        MemorySpace::Const => Some(&m.launch.const_bank),
        _ => None,
    };
    if let Some(bank) = bank {
        let Some(from) = bank.get(at as usize..at as usize + BYTES) else {
            return Err(m.fault(format!("the tensor map at {address:#x} is outside of its memory")));
        };
        bytes.copy_from_slice(from);
        return Ok(bytes);
    }
    if space != MemorySpace::Global {
        return Err(
            m.fault(format!("a tensor map at {address:#x} is in neither parameter, constant nor global memory"))
        );
    }
    if m.own().tensor.modified_maps.get(&at) == Some(&false) {
        m.report(Check::Proxy, Some(lane), || {
            format!("the tensor map at {address:#x} was modified, and no fence.proxy.tensormap acquire follows")
        });
    }
    let written = match m.global_range(at, BYTES as u64, 1, Some(lane)) {
        Some((a, offset)) => a.read(offset, &mut bytes),
        None => return Err(m.fault(format!("the tensor map at {address:#x} is outside every allocation"))),
    };
    if !written {
        m.report(Check::Uninitialized, Some(lane), || {
            format!("bytes of the tensor map at {address:#x} were never written")
        });
    }
    Ok(bytes)
}

/// A tensor map in global memory was acquired through the tensormap proxy (`fence.proxy.tensormap::generic.acquire`).
pub(crate) fn acquire_map(m: &mut Machine<'_>, address: u64) {
    let (_, at) = memory::resolve(address);
    if let Some(acquired) = m.own().tensor.modified_maps.get_mut(&at) {
        *acquired = true;
    }
}

/// A 32-bit or generic shared address, with the rank of its CTA.
fn shared(cx: &Cx<'_>, at: AddressSrc, lane: usize) -> u64 {
    cx.shared_address(cx.address(at, lane))
}

pub(super) fn lower_copy(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    if i.has("prefetch") {
        let tensor = tensor_operand(l, i, 0)?;
        return Ok(Box::new(move |cx, mask| {
            for lane in lanes(mask) {
                let (map, coordinates) = tensor.read(cx, lane)?;
                tensor.mode.rows(&map, &coordinates).map_err(|e| fault(&cx.m, &e))?;
            }
            Ok(Flow::Next)
        }));
    }
    let reduce = i.modifiers.first().is_some_and(|m| m == "reduce");
    let into_shared =
        i.modifiers.iter().position(|m| m.starts_with("shared")) < i.modifiers.iter().position(|m| m == "global");
    if into_shared && !reduce { load(l, i) } else { store(l, i, reduce) }
}

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}

fn load(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let tensor = tensor_operand(l, i, 1)?;
    let wanted = 3 + usize::from(i.has("multicast::cluster")) + usize::from(i.has("L2::cache_hint"));
    if i.operands.len() != wanted {
        return Err(l.invalid(format!("{wanted} operands expected, {} given", i.operands.len())));
    }
    let dst = l.address(&i.operands[0])?;
    let mbar = l.address(&i.operands[2])?;
    let multicast = if i.has("multicast::cluster") { Some(l.src(&i.operands[3], Ty::B(16))?) } else { None };
    let pair = i.has("cta_group::2");
    if multicast.is_some() || pair {
        l.uses_cluster();
    }
    // ptxas drops the multicast on sm_120: only the issuing CTA gets the data.
    let multicast_works = l.target().sm / 10 != 12;
    let cta_only = i.has("shared::cta");
    Ok(Box::new(move |cx, mask| {
        for lane in lanes(mask) {
            let (map, coordinates) = tensor.read(cx, lane)?;
            cx.require(dst.base, 1 << lane, "the destination address");
            cx.require(mbar.base, 1 << lane, "the mbarrier address");
            let (dst, mbar) = (shared(cx, dst, lane), shared(cx, mbar, lane));
            let rows = tensor.mode.rows(&map, &coordinates).map_err(|e| fault(&cx.m, &e))?;
            let bytes: u64 = rows.iter().map(|r| u64::from(r.bytes)).sum();
            let (own, dst_offset) = split_shared(dst);
            if cta_only && own != cx.m.cta {
                cx.m.report(Check::Bounds, Some(lane as u32), || {
                    format!("the destination {dst:#x} is not in the shared memory of the CTA")
                });
            }
            let away = split_shared(mbar).0 ^ own;
            if multicast.is_none() && away > usize::from(pair) {
                cx.m.report(Check::Bounds, Some(lane as u32), || {
                    let pair = if pair { ", nor in its peer" } else { ", which only `.cta_group::2` allows" };
                    format!("the mbarrier {mbar:#x} is not in the CTA that the copy writes{pair}")
                });
            }
            if !dst_offset.is_multiple_of(BOX_ALIGN) {
                cx.m.report(Check::Alignment, Some(lane as u32), || {
                    format!("the destination {dst:#x} of a tensor copy is not a multiple of {BOX_ALIGN}")
                });
            }
            let targets: Vec<(u64, u64)> = match multicast {
                None => vec![(dst, mbar)],
                Some(_) if !multicast_works => vec![(dst, mbar)],
                Some(src) => {
                    cx.require(src, 1 << lane, "the CTA mask");
                    let ctas = cx.lanes(src)[lane] as u32 & 0xffff;
                    let n = cx.m.cluster.ctas.len() as u32;
                    if ctas == 0 || ctas >> n != 0 {
                        cx.m.report(Check::Bounds, Some(lane as u32), || {
                            format!("CTA mask {ctas:#x} in a cluster of {n} CTAs")
                        });
                    }
                    let (mbar_rank, mbar_offset) = split_shared(mbar);
                    lanes(ctas)
                        .filter(|c| *c < n as usize)
                        .map(|c| {
                            // With a CTA pair, the mbarrier may be that of the other CTA: the address names which of the two.
                            let signal = if pair { c & !1 | mbar_rank & 1 } else { c };
                            ((c as u64) << 24 | dst_offset, (signal as u64) << 24 | mbar_offset)
                        })
                        .collect()
                }
            };
            cx.m.count_copy(bytes * targets.len() as u64, true);
            let actor = cx.m.cluster.proxy_actor(mbar << 1 | 1);
            cx.enqueue(
                "cp.async.bulk.tensor",
                Stream::Free,
                actor,
                lane as u32,
                Box::new(move |cx| {
                    load_rows(cx, &map, &rows, &targets);
                    for (_, mbar) in &targets {
                        cx.complete_tx(*mbar, map.elem.transaction_bytes(bytes) as u32);
                    }
                    Ok(Step::Done)
                }),
            );
        }
        Ok(Flow::Next)
    }))
}

fn load_rows(cx: &mut AsyncCx<'_>, map: &TensorMap, rows: &[Row], targets: &[(u64, u64)]) {
    let (mut global, mut flags, mut data, mut init) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut image = Vec::new();
    for row in rows {
        let n = tma::global_bytes(map, row) as usize;
        global.clear();
        global.resize(n, 0u8);
        flags.clear();
        flags.resize(n, true);
        if n > 0 {
            cx.read_global(row.address, &mut global, Some(&mut flags));
        }
        let bytes = row.bytes as usize;
        data.resize(bytes, 0u8);
        init.resize(bytes, false);
        tma::expand_row(map, row, &global, &flags, &mut data, &mut init);
        let all = !bytemuck::cast_slice::<bool, u8>(&init).contains(&0);
        for (dst, _) in targets {
            let (rank, offset) = split_shared(*dst);
            // A swizzle only moves the pieces of a row of whole patterns within it: one write.
            let span = map.swizzle.span();
            let at = (offset as u32).wrapping_add(row.offset);
            if all && at.is_multiple_of(span) && row.bytes.is_multiple_of(span) {
                image.resize(bytes, 0u8);
                for (address, range) in tma::pieces(map, offset as u32, row.offset, row.bytes) {
                    let to = (address - at) as usize;
                    image[to..to + range.len()].copy_from_slice(&data[range]);
                }
                cx.write_shared((rank as u64) << 24 | u64::from(at), &image, None);
                continue;
            }
            for (address, range) in tma::pieces(map, offset as u32, row.offset, row.bytes) {
                let flags = if all { None } else { Some(&init[range.clone()]) };
                cx.write_shared((rank as u64) << 24 | u64::from(address), &data[range], flags);
            }
        }
    }
}

fn store(l: &mut Lower<'_>, i: &Instruction, reduce: bool) -> Result<Custom, CompileError> {
    let tensor = tensor_operand(l, i, 0)?;
    let wanted = 2 + usize::from(i.has("L2::cache_hint"));
    if i.operands.len() != wanted {
        return Err(l.invalid(format!("{wanted} operands expected, {} given", i.operands.len())));
    }
    let src = l.address(&i.operands[1])?;
    let reduction = if reduce {
        match i.modifiers.iter().find_map(|m| Reduction::from_ptx(m)) {
            Some(r) => Some(r),
            None => return Err(l.invalid("the reduction operation is missing")),
        }
    } else {
        None
    };
    Ok(Box::new(move |cx, mask| {
        for lane in lanes(mask) {
            let (map, coordinates) = tensor.read(cx, lane)?;
            if let Some(r) = reduction.filter(|r| !r.allows(map.elem)) {
                return Err(cx.m.fault(format!("a tensor map of {:?} has no reduction {r:?}", map.elem)));
            }
            cx.require(src.base, 1 << lane, "the source address");
            let src = shared(cx, src, lane);
            let rows = tensor.mode.rows(&map, &coordinates).map_err(|e| fault(&cx.m, &e))?;
            if !src.is_multiple_of(BOX_ALIGN) {
                cx.m.report(Check::Alignment, Some(lane as u32), || {
                    format!("the source {src:#x} of a tensor copy is not a multiple of {BOX_ALIGN}")
                });
            }
            cx.m.count_copy(rows.iter().map(|r| tma::global_bytes(&map, r)).sum(), false);
            let group = cx.join_group(GroupKind::Bulk);
            let key = u64::from(cx.m.cluster.warp_actor(cx.m.cta, cx.m.warp_index));
            let actor = cx.m.cluster.proxy_actor(key << 8 | 0x53);
            cx.enqueue(
                if reduction.is_some() { "cp.reduce.async.bulk.tensor" } else { "cp.async.bulk.tensor" },
                Stream::Free,
                actor,
                lane as u32,
                Box::new(move |cx| {
                    let data = store_rows(cx, &map, &rows, src);
                    // A wait for the reads makes them known.
                    let clock = cx.clock.clone();
                    if let Some(group) = cx.warp().and_then(|w| w.groups(GroupKind::Bulk).get(group)) {
                        match &mut group.clock {
                            Some(c) => c.join(&clock),
                            None => group.clock = Some(clock),
                        }
                    }
                    cx.group_read(GroupKind::Bulk, group);
                    Ok(Step::Then(Box::new(move |cx| {
                        for (row, bytes) in rows.iter().zip(&data).filter(|(_, b)| !b.is_empty()) {
                            match reduction {
                                None => {
                                    cx.write_global(row.address, bytes);
                                }
                                Some(r) => reduce_row(cx, &map, row, bytes, r),
                            }
                        }
                        cx.group_done(GroupKind::Bulk, group);
                        Ok(Step::Done)
                    })))
                }),
            );
        }
        Ok(Flow::Next)
    }))
}

/// Reads the rows of a box out of swizzled shared memory; parts outside the tensor are not read.
fn store_rows(cx: &mut AsyncCx<'_>, map: &TensorMap, rows: &[Row], src: u64) -> Vec<Vec<u8>> {
    let (rank, offset) = split_shared(src);
    rows.iter()
        .map(|row| {
            let mut image = vec![0u8; row.bytes as usize];
            for (address, range) in tma::pieces(map, offset as u32, row.offset, row.bytes) {
                let from = range.start.max(row.start as usize);
                let to = range.end.min(row.end as usize);
                if from < to {
                    let address = ((rank as u64) << 24) + u64::from(address) + (from - range.start) as u64;
                    cx.read_shared(address, &mut image[from..to], None);
                }
            }
            tma::compress_row(map, row, &image)
        })
        .collect()
}

fn reduce_row(cx: &mut AsyncCx<'_>, map: &TensorMap, row: &Row, bytes: &[u8], op: Reduction) {
    let es = u64::from(map.elem.element_bytes());
    let lane = cx.lane;
    let elem = map.elem;
    let mut unwritten = None;
    let _held = cx.orders_update(row.address, bytes.len() as u64);
    if let Some((a, at)) = cx.m.global_range(row.address, bytes.len() as u64, es, Some(lane)) {
        for (i, piece) in bytes.chunks_exact(es as usize).enumerate() {
            let mut new = [0u8; 8];
            new[..piece.len()].copy_from_slice(piece);
            let new = u64::from_le_bytes(new);
            let (_, written) = a.update(at + i as u64 * es, es as u32, |old| op.apply(elem, old, new));
            if !written {
                unwritten = unwritten.or(Some(row.address + i as u64 * es));
            }
        }
    }
    if let Some(address) = unwritten {
        cx.m.report(Check::Uninitialized, Some(lane), || {
            format!("a reduction reads global address {address:#x}, which nobody wrote")
        });
    }
    cx.m.count_global(row.address, bytes.len() as u64, true);
}

pub(super) fn lower_tensormap(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    match i.modifiers.first().map(String::as_str) {
        Some("replace") => replace(l, i),
        Some("cp_fenceproxy") => copy_map(l, i),
        _ => Err(l.unsupported(format!("instruction `{}`", i.full_name()))),
    }
}

fn replace(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let Some(field) = i.modifiers.iter().find_map(|m| Field::from_ptx(m)) else {
        return Err(l.unsupported(format!("instruction `{}`", i.full_name())));
    };
    let wanted = if field.has_ordinal() { 3 } else { 2 };
    if i.operands.len() != wanted {
        return Err(l.invalid(format!("{wanted} operands expected, {} given", i.operands.len())));
    }
    let at = l.address(&i.operands[0])?;
    let ordinal = if field.has_ordinal() {
        match l.immediate(&i.operands[1]) {
            Some(v @ 0..=4) => v as usize,
            _ => return Err(l.invalid("the ordinal must be a number from 0 to 4")),
        }
    } else {
        0
    };
    let bits = if matches!(field, Field::GlobalAddress | Field::GlobalStride) { 64 } else { 32 };
    let value = l.src(&i.operands[wanted - 1], Ty::B(bits))?;
    let in_shared = i.modifiers.iter().any(|m| m.starts_with("shared"));
    let in_global = i.has("global");
    tensormap::replace(field, ordinal, 1).map_err(|e| compile_error(l, e))?;
    Ok(Box::new(move |cx, mask| {
        for lane in lanes(mask) {
            cx.require(value, 1 << lane, "the new value");
            cx.require(at.base, 1 << lane, "the address of the tensor map");
            let new = cx.lanes(value)[lane];
            let (place, bytes) = tensormap::replace(field, ordinal, new).map_err(|e| fault(&cx.m, &e))?;
            let address = cx.address(at, lane);
            let (space, base) = match (in_shared, in_global) {
                (true, _) => (MemorySpace::SharedCluster, cx.shared_address(address)),
                (_, true) => (MemorySpace::Global, address),
                _ => memory::resolve(address),
            };
            let at = base + place as u64;
            if space == MemorySpace::Global {
                if let Some((a, offset)) = cx.m.global_range(at, bytes.len() as u64, 1, Some(lane as u32)) {
                    a.write(offset, &bytes);
                }
                cx.m.own().tensor.modified_maps.insert(base, false);
            } else if let Some((rank, offset)) = cx.m.shared_range(at, bytes.len() as u64, 1, true, Some(lane as u32)) {
                cx.track_shared(rank, offset, bytes.len() as u64, AccessKind::Write, lane as u32);
                cx.m.cluster.ctas[rank].shared.write(offset as usize, &bytes);
            }
        }
        Ok(Flow::Next)
    }))
}

/// `tensormap.cp_fenceproxy`: the warp copies a map from shared to global memory and releases it to the tensormap proxy.
fn copy_map(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let [dst, src, size] = i.operands.as_slice() else { return Err(l.invalid("[dst], [src], 128 expected")) };
    if l.immediate(size) != Some(BYTES as i128) {
        return Err(l.invalid("the size must be 128"));
    }
    let (dst, src) = (l.address(dst)?, l.address(src)?);
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        let lane = mask.trailing_zeros() as usize & 31;
        cx.require(dst.base, mask, "the destination address");
        cx.require(src.base, mask, "the source address");
        let from = shared(cx, src, lane);
        let (_, to) = memory::resolve(cx.address(dst, lane));
        let mut bytes = [0u8; BYTES];
        let Some((rank, offset)) = cx.m.shared_range(from, BYTES as u64, 128, true, Some(lane as u32)) else {
            return Ok(Flow::Next);
        };
        cx.track_shared(rank, offset, BYTES as u64, AccessKind::Read, lane as u32);
        let memory = &cx.m.cluster.ctas[rank].shared;
        bytes.copy_from_slice(memory.bytes(offset as usize, BYTES));
        let written = memory.holes(offset as usize, BYTES).iter().all(|h| *h == 0);
        if !written {
            cx.m.report(Check::Uninitialized, Some(lane as u32), || {
                format!("bytes of the tensor map at shared address {from:#x} were never written")
            });
        }
        if let Some((a, offset)) = cx.m.global_range(to, BYTES as u64, 128, Some(lane as u32)) {
            a.write(offset, &bytes);
        }
        cx.m.count_global(to, BYTES as u64, true);
        cx.m.own().tensor.modified_maps.insert(to, false);
        Ok(Flow::Next)
    }))
}
