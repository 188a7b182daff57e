//! Asynchronous copies that name no tensor map: `cp.async`, `cp.async.bulk`, `cp.reduce.async.bulk`, `st.async`, `red.async`.

use super::memory::{Combine, combine};
use super::{Lower, Ty, operands};
use crate::ast::{Instruction, Operand};
use crate::exec::access::{count_banks, count_global, lanes_of};
use crate::exec::context::{AsyncCx, Cx};
use crate::exec::error::CompileError;
use crate::exec::findings::Check;
use crate::exec::program::{AddressSrc, Flow, Op, PredSrc, Src, Wait};
use crate::exec::queue::{Step, Stream};
use crate::exec::warp::GroupKind;

/// Bytes of one bulk copy beyond which it is refused; larger than any shared memory.
const MAX_BULK: u64 = 1 << 20;

/// One lane of a `cp.async`.
#[derive(Clone, Copy)]
pub(crate) struct LaneCopy {
    to: u64,
    from: u64,
    /// Bytes read; the rest of the copy is zero.
    read: u32,
}

/// Where a bulk copy goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    GlobalToShared,
    SharedToShared,
    SharedToGlobal,
}

impl Lower<'_> {
    pub(super) fn copy(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let reduce = i.modifiers.first().is_some_and(|m| m == "reduce");
        if i.has("bulk") {
            if i.has("commit_group") {
                return self.commit(GroupKind::Bulk);
            }
            if i.has("wait_group") {
                return self.wait(i, GroupKind::Bulk);
            }
            if i.has("prefetch") {
                self.emit(Op::Nop);
                return Ok(());
            }
            return self.bulk(i, reduce);
        }
        if i.has("commit_group") {
            return self.commit(GroupKind::CpAsync);
        }
        if i.has("wait_group") {
            return self.wait(i, GroupKind::CpAsync);
        }
        if i.has("wait_all") {
            self.emit_custom(Box::new(|cx, mask| {
                if cx.token == 0 {
                    cx.warp.cp_async.commit(mask);
                    cx.token = 1;
                }
                Ok(if cx.groups_complete(GroupKind::CpAsync, mask, 0, false) {
                    Flow::Next
                } else {
                    Flow::Block(Wait::Async("cp.async"))
                })
            }));
            return Ok(());
        }
        if i.has("mbarrier") {
            return self.cp_async_arrive(i);
        }
        if i.modifiers.first().is_none_or(|m| m != "async") {
            return Err(self.unsupported(i.full_name()));
        }
        self.cp_async(i)
    }

    fn commit(&mut self, kind: GroupKind) -> Result<(), CompileError> {
        self.emit_custom(Box::new(move |cx, mask| {
            cx.warp.groups(kind).commit(mask);
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn wait(&mut self, i: &Instruction, kind: GroupKind) -> Result<(), CompileError> {
        let [n] = operands(self, i)?;
        let Some(n) = self.immediate(n).and_then(|n| u32::try_from(n).ok()) else {
            return Err(self.invalid("the number of groups is a constant"));
        };
        let reads = i.has("read");
        self.emit_custom(Box::new(move |cx, mask| {
            let what = if kind == GroupKind::Bulk { "bulk copies" } else { "cp.async" };
            Ok(if cx.groups_complete(kind, mask, n, reads) { Flow::Next } else { Flow::Block(Wait::Async(what)) })
        }));
        Ok(())
    }

    /// `cp.async.ca.shared.global [dst], [src], 16{, src-size | ignore-src}{, policy}`
    fn cp_async(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [to, from, size, rest @ ..] = i.operands.as_slice() else {
            return Err(self.invalid("`cp.async` takes two addresses and a size"));
        };
        let (to, from) = (self.address(to)?, self.address(from)?);
        let Some(size @ (4 | 8 | 16)) = self.immediate(size) else {
            return Err(self.invalid("`cp.async` copies 4, 8 or 16 bytes"));
        };
        if i.has("cg") && size != 16 {
            return Err(self.invalid("`cp.async.cg` copies 16 bytes"));
        }
        let size = size as u32;
        let hint = i.has("L2::cache_hint");
        let mut source_size = None;
        let mut ignore: Option<PredSrc> = None;
        for (n, o) in rest.iter().enumerate() {
            if hint && n + 1 == rest.len() {
                self.src64(o)?;
            } else if matches!(o, Operand::Not(_)) || self.register_bits(o) == Some(1) {
                ignore = Some(self.pred_src(o)?);
            } else {
                source_size = Some(self.src32(o)?);
            }
        }
        self.emit_custom(Box::new(move |cx, mask| {
            cx.require(to.base, mask, "the destination address");
            if let Some(s) = source_size {
                cx.require(s, mask, "the source size");
            }
            let skip = ignore.map_or(0, |p| cx.pred(p));
            let mut copies = cx.m.worker.spare_copies.pop().unwrap_or_default();
            let mut reads = 0u32;
            for l in lanes_of(mask) {
                let read = match source_size {
                    _ if skip >> l & 1 == 1 => 0,
                    Some(s) => (cx.lanes(s)[l] as u32).min(size),
                    None => size,
                };
                reads |= u32::from(read > 0) << l;
                copies.push((
                    l as u32,
                    LaneCopy { to: cx.shared_address(cx.address(to, l)), from: cx.address(from, l), read },
                ));
            }
            cx.require(from.base, reads, "the source address");
            issue_cp_async(cx, copies, size);
            Ok(Flow::Next)
        }));
        Ok(())
    }

    /// `cp.async.mbarrier.arrive{.noinc}.shared.b64 [a]`: arrives when the thread's earlier copies are complete.
    fn cp_async_arrive(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let [a] = operands(self, i)?;
        let a = self.address(a)?;
        let noinc = i.has("noinc");
        self.emit_custom(Box::new(move |cx, mask| {
            let mut arrivals: Vec<(u64, u32)> = Vec::new();
            for l in lanes_of(mask) {
                let address = cx.shared_address(cx.address(a, l));
                if !noinc && let Some(b) = cx.m.mbarrier(address, Some(l as u32)) {
                    // The arrival to come is one more than the phase expected.
                    b.pending += 1;
                }
                match arrivals.iter_mut().find(|(at, _)| *at == address) {
                    Some((_, n)) => *n += 1,
                    None => arrivals.push((address, 1)),
                }
            }
            let actor = cx.m.cluster.cp_async_actor(cx.m.cta, cx.m.warp_index);
            let stream = cp_async_stream(cx);
            cx.enqueue(
                "cp.async.mbarrier.arrive",
                stream,
                actor,
                mask.trailing_zeros(),
                Box::new(move |ax| {
                    for (address, n) in arrivals {
                        ax.arrive(address, n);
                    }
                    Ok(Step::Done)
                }),
            );
            cx.advance();
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn bulk(&mut self, i: &Instruction, reduce: bool) -> Result<(), CompileError> {
        let mut spaces =
            i.modifiers.iter().filter(|m| matches!(m.as_str(), "global" | "shared::cta" | "shared::cluster"));
        let way = match (spaces.next().map(String::as_str), spaces.next().map(String::as_str)) {
            (Some("shared::cluster" | "shared::cta"), Some("global")) if !reduce => Way::GlobalToShared,
            (Some("shared::cluster"), Some("shared::cta")) => Way::SharedToShared,
            (Some("global"), Some("shared::cta")) => Way::SharedToGlobal,
            _ => return Err(self.unsupported(i.full_name())),
        };
        let multicast = i.has("multicast::cluster");
        let masked = i.has("cp_mask");
        let [to, from, size, rest @ ..] = i.operands.as_slice() else {
            return Err(self.invalid("two addresses and a size expected"));
        };
        let (to, from, size) = (self.address(to)?, self.address(from)?, self.src32(size)?);
        let mut rest = rest.iter();
        let bar = if way == Way::SharedToGlobal {
            None
        } else {
            let o = rest.next().ok_or_else(|| self.invalid("an mbarrier expected"))?;
            Some(self.address(o)?)
        };
        let ctas = if multicast {
            let o = rest.next().ok_or_else(|| self.invalid("a CTA mask expected"))?;
            Some(self.src(o, Ty::B(16))?)
        } else {
            None
        };
        if i.has("L2::cache_hint") {
            let o = rest.next().ok_or_else(|| self.invalid("a cache policy expected"))?;
            self.src64(o)?;
        }
        let bytes_mask = if masked {
            let o = rest.next().ok_or_else(|| self.invalid("a byte mask expected"))?;
            Some(self.src(o, Ty::B(16))?)
        } else {
            None
        };
        if rest.next().is_some() {
            return Err(self.invalid("too many operands"));
        }
        let fold = if reduce {
            let ty = self.last_type(i)?;
            let op = i
                .modifiers
                .iter()
                .find(|m| matches!(m.as_str(), "add" | "min" | "max" | "inc" | "dec" | "and" | "or" | "xor"))
                .map_or("", String::as_str);
            Some((
                combine(op, ty, way == Way::SharedToGlobal).ok_or_else(|| self.unsupported(i.full_name()))?,
                ty.bits() / 8,
            ))
        } else {
            None
        };
        self.emit_custom(Box::new(move |cx, mask| {
            cx.require(to.base, mask, "the destination address");
            cx.require(from.base, mask, "the source address");
            cx.require(size, mask, "the size");
            for l in lanes_of(mask) {
                let bytes = cx.lanes(size)[l] & 0xffff_ffff;
                let (mut to, mut from) = (cx.address(to, l), cx.address(from, l));
                if way != Way::SharedToGlobal {
                    to = cx.shared_address(to);
                }
                if way != Way::GlobalToShared {
                    from = cx.shared_address(from);
                }
                if to % 16 != 0 || from % 16 != 0 || bytes % 16 != 0 {
                    cx.m.report(Check::Alignment, Some(l as u32), || {
                        format!(
                            "a bulk copy of {bytes} bytes from {from:#x} to {to:#x}: all three must be multiples of 16"
                        )
                    });
                    continue;
                }
                if bytes > MAX_BULK {
                    cx.m.report(Check::Bounds, Some(l as u32), || format!("a bulk copy of {bytes} bytes"));
                    continue;
                }
                let keep = bytes_mask.map(|m| cx.lanes(m)[l] as u16);
                match bar {
                    Some(bar) => {
                        let bar = cx.shared_address(cx.address(bar, l));
                        let ctas = ctas.map(|c| cx.lanes(c)[l] as u16);
                        into_shared(cx, way, to, from, bytes as usize, bar, ctas, fold, l as u32);
                    }
                    None => into_global(cx, to, from, bytes as usize, keep, fold, l as u32),
                }
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }

    /// `st.async{.weak}.shared::cluster.mbarrier::complete_tx::bytes{.v2,.v4}.type [a], b, [mbar]`
    pub(super) fn store_async(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let ty = self.last_type(i)?;
        if !(32..=64).contains(&ty.bits()) {
            return Err(self.unsupported(i.full_name()));
        }
        let [a, v, bar] = operands(self, i)?;
        let (a, bar) = (self.address(a)?, self.address(bar)?);
        let values = self.sources(self.elements(v), ty)?;
        self.remote_write(a, values, bar, ty.bits() / 8, None);
        Ok(())
    }

    /// `red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.op.type [a], b, [mbar]`
    pub(super) fn red_async(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let ty = self.last_type(i)?;
        if !(32..=64).contains(&ty.bits()) {
            return Err(self.unsupported(i.full_name()));
        }
        let [a, v, bar] = operands(self, i)?;
        let (a, bar) = (self.address(a)?, self.address(bar)?);
        let values = vec![self.src(v, ty)?];
        let op = i
            .modifiers
            .iter()
            .find(|m| matches!(m.as_str(), "add" | "min" | "max" | "inc" | "dec" | "and" | "or" | "xor"))
            .map_or("", String::as_str);
        let Some(f) = combine(op, ty, false) else {
            return Err(self.unsupported(i.full_name()));
        };
        self.remote_write(a, values, bar, ty.bits() / 8, Some(f));
        Ok(())
    }

    fn remote_write(&mut self, a: AddressSrc, values: Vec<Src>, bar: AddressSrc, bytes: u32, fold: Option<Combine>) {
        self.uses_cluster();
        self.emit_custom(Box::new(move |cx, mask| {
            cx.require(a.base, mask, "the address");
            for l in lanes_of(mask) {
                let (to, bar) = (cx.shared_address(cx.address(a, l)), cx.shared_address(cx.address(bar, l)));
                let mut data = Vec::new();
                let mut init = Vec::new();
                for v in &values {
                    data.extend_from_slice(&cx.lanes(*v)[l].to_le_bytes()[..bytes as usize]);
                    init.extend(std::iter::repeat_n(cx.poison(*v) >> l & 1 == 0, bytes as usize));
                }
                let actor = cx.m.cluster.cp_async_actor(cx.m.cta, cx.m.warp_index);
                cx.enqueue(
                    if fold.is_some() { "red.async" } else { "st.async" },
                    Stream::Free,
                    actor,
                    l as u32,
                    Box::new(move |ax| {
                        if let Some(f) = fold {
                            let mut old = vec![0; data.len()];
                            ax.read_shared(to, &mut old, None);
                            data = folded(&old, &data, bytes, f);
                        }
                        ax.write_shared(to, &data, Some(&init));
                        ax.complete_tx(bar, data.len() as u32);
                        Ok(Step::Done)
                    }),
                );
            }
            Ok(Flow::Next)
        }));
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut w = [0u8; 8];
    w[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(w)
}

/// Element-wise combination of two byte strings.
fn folded(old: &[u8], new: &[u8], bytes: u32, f: Combine) -> Vec<u8> {
    let n = bytes as usize;
    let mut out = Vec::with_capacity(old.len());
    for (a, b) in old.chunks_exact(n).zip(new.chunks_exact(n)) {
        out.extend_from_slice(&f(word(a), word(b), 0).to_le_bytes()[..n]);
    }
    out
}

fn cp_async_stream(cx: &Cx<'_>) -> Stream {
    Stream::Ordered(1 << 40 | u64::from(cx.m.cluster.warp_actor(cx.m.cta, cx.m.warp_index)))
}

/// A `cp.async` of a warp is one access to global and one to shared memory.
fn count_cp_async(cx: &mut Cx<'_>, copies: &[(u32, LaneCopy)], size: u32) {
    let (mut from, mut to, mut whole, mut all) = ([0u64; 32], [0u64; 32], 0u32, 0u32);
    for (l, c) in copies {
        (from[*l as usize], to[*l as usize]) = (c.from, c.to);
        all |= 1 << l;
        if c.read == size {
            whole |= 1 << l;
        } else {
            cx.m.count_global(c.from, c.read.into(), false);
        }
    }
    if whole != 0 {
        count_global(cx, &from, whole, size.into(), false);
    }
    count_banks(cx, &to, all, size.into());
}

fn issue_cp_async(cx: &mut Cx<'_>, mut copies: Vec<(u32, LaneCopy)>, size: u32) {
    if cx.m.launch.options.counters && !copies.is_empty() {
        count_cp_async(cx, &copies, size);
    }
    let group = cx.join_group(GroupKind::CpAsync);
    let actor = cx.m.cluster.cp_async_actor(cx.m.cta, cx.m.warp_index);
    let lane = copies.first().map_or(0, |(l, _)| *l);
    let stream = cp_async_stream(cx);
    cx.enqueue(
        "cp.async",
        stream,
        actor,
        lane,
        Box::new(move |ax| {
            let (mut writes, mut n_writes) = ([(0, 0); 32], 0);
            for (lane, c) in &copies {
                ax.lane = *lane;
                let (mut data, mut init) = ([0u8; 16], [true; 16]);
                let (read, size) = (c.read as usize, size as usize);
                let aligned = c.to % size as u64 == 0 && (read == 0 || c.from % size as u64 == 0);
                if !aligned {
                    ax.m.report(Check::Alignment, Some(*lane), || {
                        format!("a cp.async of {size} bytes from {:#x} to {:#x}", c.from, c.to)
                    });
                    continue;
                }
                if read > 0 && !ax.fetch_global(c.from, &mut data[..read], Some(&mut init[..read])) {
                    init[..read].fill(false);
                }
                let whole = init == [true; 16];
                let Some(place) = ax.m.shared_range(c.to, size as u64, 1, false, Some(*lane)) else { continue };
                ax.write_tracked(place, &data[..size], if whole { None } else { Some(&init[..size]) });
                writes[n_writes] = (c.to, size as u32);
                n_writes += 1;
            }
            ax.track_writes(&mut writes[..n_writes]);
            copies.clear();
            ax.m.worker.spare_copies.push(copies);
            ax.group_read(GroupKind::CpAsync, group);
            ax.group_done(GroupKind::CpAsync, group);
            Ok(Step::Done)
        }),
    );
}

#[allow(clippy::too_many_arguments)]
fn into_shared(
    cx: &mut Cx<'_>,
    way: Way,
    to: u64,
    from: u64,
    bytes: usize,
    bar: u64,
    ctas: Option<u16>,
    fold: Option<(Combine, u32)>,
    lane: u32,
) {
    let actor = cx.m.cluster.proxy_actor(bar);
    let what = if fold.is_some() { "cp.reduce.async.bulk" } else { "cp.async.bulk" };
    cx.enqueue(
        what,
        Stream::Free,
        actor,
        lane,
        Box::new(move |ax| {
            let mut data = vec![0u8; bytes];
            let mut init = vec![true; bytes];
            let found = match way {
                Way::GlobalToShared => ax.read_global(from, &mut data, Some(&mut init)),
                _ => ax.read_shared(from, &mut data, Some(&mut init)),
            };
            if !found {
                init.fill(false);
            }
            ax.m.count_copy(bytes as u64, true);
            let targets: Vec<(u64, u64)> = match ctas {
                Some(mask) => (0..16u64)
                    .filter(|r| mask >> r & 1 == 1)
                    .map(|r| (to & 0xff_ffff | r << 24, bar & 0xff_ffff | r << 24))
                    .collect(),
                None => vec![(to, bar)],
            };
            for (to, bar) in targets {
                let written = match fold {
                    Some((f, n)) => {
                        let mut old = vec![0u8; bytes];
                        ax.read_shared(to, &mut old, None);
                        ax.write_shared(to, &folded(&old, &data, n, f), Some(&init))
                    }
                    None => ax.write_shared(to, &data, Some(&init)),
                };
                if written {
                    ax.complete_tx(bar, bytes as u32);
                }
            }
            Ok(Step::Done)
        }),
    );
}

fn into_global(
    cx: &mut Cx<'_>,
    to: u64,
    from: u64,
    bytes: usize,
    keep: Option<u16>,
    fold: Option<(Combine, u32)>,
    lane: u32,
) {
    let group = cx.join_group(GroupKind::Bulk);
    let actor = cx.m.cluster.proxy_actor(1 << 40 | u64::from(cx.m.cluster.warp_actor(cx.m.cta, cx.m.warp_index)));
    let what = if fold.is_some() { "cp.reduce.async.bulk" } else { "cp.async.bulk" };
    cx.enqueue(
        what,
        Stream::Free,
        actor,
        lane,
        Box::new(move |ax| {
            let mut data = vec![0u8; bytes];
            ax.read_shared(from, &mut data, None);
            ax.group_read(GroupKind::Bulk, group);
            Ok(Step::Then(Box::new(move |ax| {
                ax.m.count_copy(bytes as u64, false);
                match (fold, keep) {
                    (Some((f, n)), _) => reduce_global(ax, to, &data, n, f),
                    (None, None) => {
                        ax.write_global(to, &data);
                    }
                    // Bit i keeps byte i of every 16.
                    (None, Some(keep)) => {
                        for (n, b) in data.iter().enumerate().filter(|(n, _)| keep >> (n % 16) & 1 == 1) {
                            ax.write_global(to + n as u64, &[*b]);
                        }
                    }
                }
                ax.group_done(GroupKind::Bulk, group);
                Ok(Step::Done)
            })))
        }),
    );
}

/// Combines elements into global memory, each atomically.
pub(crate) fn reduce_global(ax: &mut AsyncCx<'_>, to: u64, data: &[u8], bytes: u32, f: Combine) {
    let lane = ax.lane;
    let _held = ax.orders_update(to, data.len() as u64);
    if let Some((a, at)) = ax.m.global_range(to, data.len() as u64, u64::from(bytes), Some(lane)) {
        let mut unknown = false;
        for (n, e) in data.chunks_exact(bytes as usize).enumerate() {
            let (_, init) = a.update(at + n as u64 * u64::from(bytes), bytes, |old| f(old, word(e), 0));
            unknown |= !init;
        }
        if unknown {
            ax.m.report(Check::Uninitialized, Some(lane), || {
                format!("a reduction into global address {to:#x}, which nobody wrote")
            });
        }
        ax.m.count_global(to, data.len() as u64, true);
    }
}
