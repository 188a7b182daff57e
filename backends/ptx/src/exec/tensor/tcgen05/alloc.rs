//! `tcgen05.alloc`, `dealloc`, `relinquish_alloc_permit`.

use super::super::state::{Rect, track};
use super::super::{fault, whole_warp};
use super::{check_group, cta_group, group_ctas};
use crate::ast::Instruction;
use crate::exec::context::Cx;
use crate::exec::error::{CompileError, ExecError};
use crate::exec::findings::Check;
use crate::exec::lower::{Lower, Ty};
use crate::exec::program::{Custom, Flow, Wait};
use crate::exec::race::{AccessKind, Actor, Takes};
use crate::tensor::tmem::{LANES, split_address};

const WAITS: Wait = Wait::Other("free tensor memory or the peer's tcgen05.alloc");

pub(super) fn lower_alloc(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let group = cta_group(l, i)?;
    let [dst, columns] = i.operands.as_slice() else { return Err(l.invalid("tcgen05.alloc takes [dst], columns")) };
    let dst = l.address(dst)?;
    let columns = l.src(columns, Ty::U(32))?;
    if group == 2 {
        l.uses_cluster();
    }
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        let lane = mask.trailing_zeros() as usize & 31;
        cx.require(columns, mask, "the number of columns");
        cx.require(dst.base, mask, "the destination address");
        let n = cx.uniform(columns, mask) as u32;
        check_group(&mut cx.m, group, lane as u32);
        let granted = if group == 1 {
            let tmem = cx.m.own().tensor.tmem();
            tmem.allocate(n).map_err(|e| fault(&cx.m, &e))?
        } else {
            allocate_pair(cx, n)?
        };
        let Some(column) = granted else { return Ok(Flow::Block(WAITS)) };
        let address = cx.shared_address(cx.address(dst, lane));
        if let Some((rank, offset)) = cx.m.shared_range(address, 4, 4, true, Some(lane as u32)) {
            write_address(cx, rank, offset, lane as u32);
            cx.m.cluster.ctas[rank].shared.store(offset as usize, 4, u64::from(column), 0);
        }
        Ok(Flow::Next)
    }))
}

/// Records the write of the address. It is no generic-proxy store: kernels of trusted compilers overwrite the word by TMA without
/// a proxy fence. The warp itself knows it at once.
fn write_address(cx: &mut Cx<'_>, rank: usize, offset: u64, lane: u32) {
    if cx.m.cluster.n_actors == 0 {
        return;
    }
    let id = cx.m.cluster.proxy_actor(u64::from(cx.m.cluster.warp_actor(rank, cx.m.warp_index)) << 8 | 0xa1);
    let tick = cx.m.cluster.next_tick(id);
    if let Some(seen) = cx.warp.clock.seen.get_mut(id as usize) {
        *seen = (*seen).max(tick);
    }
    let actor = Actor { id, clock: &cx.warp.clock, pc: cx.m.pc, takes: Takes::Nothing };
    cx.m.track_shared(rank, offset, 4, AccessKind::Write, Some(lane), actor);
}

/// Both CTAs of a pair ask; the second one allocates for both, at the same address.
fn allocate_pair(cx: &mut Cx<'_>, columns: u32) -> Result<Option<u32>, ExecError> {
    let own = cx.m.cta;
    let peer = own ^ 1;
    if peer >= cx.m.cluster.ctas.len() {
        return Err(cx.m.fault("tcgen05.alloc.cta_group::2 in a CTA without a peer".to_owned()));
    }
    if cx.token == 0 {
        cx.m.own().tensor.asked = Some(columns);
        cx.token = 1;
    }
    if let Some(column) = cx.m.own().tensor.granted.take() {
        return Ok(Some(column));
    }
    let Some(other) = cx.m.cluster.ctas[peer].tensor.asked else { return Ok(None) };
    if other != columns {
        return Err(cx.m.fault(format!("tcgen05.alloc.cta_group::2 of {columns} columns, the peer asks for {other}")));
    }
    let Some(column) = cx.m.own().tensor.tmem().allocate(columns).map_err(|e| fault(&cx.m, &e))? else {
        return Ok(None);
    };
    let theirs = cx.m.cluster.ctas[peer].tensor.tmem().allocate(columns).map_err(|e| fault(&cx.m, &e))?;
    if theirs != Some(column) {
        return Err(cx.m.fault(format!(
            "the CTAs of a pair hold different tensor memory: column {column} here, {theirs:?} there"
        )));
    }
    cx.m.cluster.ctas[peer].tensor.asked = None;
    cx.m.cluster.ctas[peer].tensor.granted = Some(column);
    cx.m.own().tensor.asked = None;
    cx.m.cluster.wake();
    Ok(Some(column))
}

pub(super) fn lower_dealloc(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let group = cta_group(l, i)?;
    let [address, columns] = i.operands.as_slice() else {
        return Err(l.invalid("tcgen05.dealloc takes address, columns"));
    };
    let address = l.src(address, Ty::B(32))?;
    let columns = l.src(columns, Ty::U(32))?;
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        let lane = mask.trailing_zeros() & 31;
        cx.require(columns, mask, "the number of columns");
        cx.require(address, mask, "the tensor memory address");
        check_group(&mut cx.m, group, lane);
        let (at, n) = (cx.uniform(address, mask) as u32, cx.uniform(columns, mask) as u32);
        let freed = cx.m.own().tensor.tmem().free(at, n);
        if let Err(e) = freed {
            cx.m.report(Check::TensorMemory, Some(lane), || e.to_string());
            return Ok(Flow::Next);
        }
        // Everything that still uses the columns must be complete and known to this warp.
        let (_, column) = split_address(at);
        let rank = cx.m.cta;
        let id = cx.m.cluster.warp_actor(rank, cx.m.warp_index);
        let rect = Rect { lane: 0, lanes: LANES, column, columns: n as usize };
        track(&mut cx.m, rank, rect, AccessKind::Write, id, &cx.warp.clock, Some(lane));
        cx.m.cluster.wake();
        Ok(Flow::Next)
    }))
}

pub(super) fn lower_relinquish(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let group = cta_group(l, i)?;
    Ok(Box::new(move |cx, mask| {
        if let Some(flow) = whole_warp(cx, mask) {
            return Ok(flow);
        }
        check_group(&mut cx.m, group, mask.trailing_zeros() & 31);
        let own = cx.m.cta;
        for cta in group_ctas(&cx.m, group).filter(|c| *c == own) {
            cx.m.cluster.ctas[cta].tensor.tmem().relinquish();
        }
        Ok(Flow::Next)
    }))
}
