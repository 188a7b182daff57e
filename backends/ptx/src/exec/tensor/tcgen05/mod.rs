//! `tcgen05`: tensor memory and the fifth-generation tensor core.
//!
//! `mma`, `cp` and `commit` of a CTA (or pair) go through one in-order pipe and complete when the scheduler lets them. `ld` and `st`
//! act at once, but under actors of their own that the warp knows only after `tcgen05.wait`: accesses that no wait, commit or
//! barrier orders are findings. Registers of a `tcgen05.ld` may be read before the wait, as PTX allows (register dependence).

mod access;
mod alloc;
mod cp;
mod mma;

use super::whole_warp;
use crate::ast::{Address, Instruction, Operand};
use crate::exec::context::{Cx, Machine, split_shared};
use crate::exec::error::CompileError;
use crate::exec::findings::Check;
use crate::exec::lower::{Lower, Ty};
use crate::exec::program::{AddressSrc, Custom, Flow};
use crate::exec::queue::{Step, Stream};

pub(super) fn lower(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    match i.modifiers.first().map(String::as_str) {
        Some("alloc") => alloc::lower_alloc(l, i),
        Some("dealloc") => alloc::lower_dealloc(l, i),
        Some("relinquish_alloc_permit") => alloc::lower_relinquish(l, i),
        Some("ld") => access::lower_load(l, i),
        Some("st") => access::lower_store(l, i),
        Some(wait @ ("wait::ld" | "wait::st")) => {
            let loads = wait == "wait::ld";
            if loads {
                l.waits_for_tmem_loads();
            }
            Ok(Box::new(move |cx, mask| {
                if let Some(flow) = whole_warp(cx, mask) {
                    return Ok(flow);
                }
                access::wait(cx, loads);
                Ok(Flow::Next)
            }))
        }
        Some(fence @ ("fence::before_thread_sync" | "fence::after_thread_sync")) => {
            l.fences_tmem();
            let before = fence == "fence::before_thread_sync";
            Ok(Box::new(move |cx, _| {
                let clock = &mut cx.warp.clock;
                if before {
                    clock.fence_before_sync()
                } else {
                    clock.fence_after_sync()
                }
                Ok(Flow::Next)
            }))
        }
        Some("commit") => lower_commit(l, i),
        Some("cp") => cp::lower(l, i),
        Some("mma") => mma::lower(l, i),
        _ => Err(l.unsupported(format!("instruction `{}`", i.full_name()))),
    }
}

/// `.cta_group::N` of an instruction.
fn cta_group(l: &Lower<'_>, i: &Instruction) -> Result<usize, CompileError> {
    match (i.has("cta_group::1"), i.has("cta_group::2")) {
        (true, false) => Ok(1),
        (false, true) => Ok(2),
        _ => Err(l.invalid("`.cta_group::1` or `.cta_group::2` is missing")),
    }
}

/// Reports kernels that mix `.cta_group::1` and `.cta_group::2`, and pairs that do not exist.
fn check_group(m: &mut Machine<'_>, group: usize, lane: u32) {
    let tensor = &mut m.own().tensor;
    let known = *tensor.cta_group.get_or_insert(group as u8);
    if usize::from(known) != group {
        m.report(Check::TensorMemory, Some(lane), || {
            format!("the kernel uses .cta_group::{known} and .cta_group::{group}; all tcgen05 instructions must agree")
        });
    }
    if group == 2 && m.cta ^ 1 >= m.cluster.ctas.len() {
        m.report(Check::TensorMemory, Some(lane), || "the CTA has no peer for .cta_group::2".to_owned());
    }
}

/// The first CTA of the group, and how many of them exist.
fn group_ctas(m: &Machine<'_>, group: usize) -> std::ops::Range<usize> {
    if group == 1 {
        m.cta..m.cta + 1
    } else {
        let first = m.cta & !1;
        first..(first + 2).min(m.cluster.ctas.len())
    }
}

/// The in-order pipe of a CTA or pair: stream key and actor.
fn pipe(m: &Machine<'_>, group: usize) -> (Stream, u32) {
    let key = (group_ctas(m, group).start as u64) << 8 | 0x05;
    (Stream::Ordered(key | 1 << 40), m.cluster.proxy_actor(key | 1 << 40))
}

/// A bracketed tensor memory address: 32 bits, with an offset.
fn tmem_address(l: &mut Lower<'_>, o: &Operand) -> Result<AddressSrc, CompileError> {
    l.address(o)
}

/// The value of a tensor memory address in a lane.
fn tmem_value(cx: &Cx<'_>, a: AddressSrc, lane: usize) -> u32 {
    cx.address(a, lane) as u32
}

/// Whether an operand is bracketed.
fn is_address(o: &Operand) -> bool {
    matches!(o, Operand::Address(Address { .. }))
}

fn lower_commit(l: &mut Lower<'_>, i: &Instruction) -> Result<Custom, CompileError> {
    let group = cta_group(l, i)?;
    let multicast = i.has("multicast::cluster");
    if !i.has("mbarrier::arrive::one") {
        return Err(l.unsupported(format!("instruction `{}`", i.full_name())));
    }
    if i.operands.len() != 1 + usize::from(multicast) {
        return Err(l.invalid("tcgen05.commit takes [mbar], and a CTA mask with .multicast::cluster"));
    }
    let mbar = l.address(&i.operands[0])?;
    let ctas = if multicast { Some(l.src(&i.operands[1], Ty::B(16))?) } else { None };
    if group == 2 || multicast {
        l.uses_cluster();
    }
    Ok(Box::new(move |cx, mask| {
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            check_group(&mut cx.m, group, lane as u32);
            cx.require(mbar.base, 1 << lane, "the mbarrier address");
            let address = cx.shared_address(cx.address(mbar, lane));
            let targets: Vec<u64> = match ctas {
                None => vec![address],
                Some(src) => {
                    cx.require(src, 1 << lane, "the CTA mask");
                    let ctas = cx.lanes(src)[lane] as u32 & 0xffff;
                    let n = cx.m.cluster.ctas.len();
                    if ctas == 0 || ctas >> n != 0 {
                        cx.m.report(Check::Bounds, Some(lane as u32), || {
                            format!("CTA mask {ctas:#x} in a cluster of {n} CTAs")
                        });
                    }
                    let (_, offset) = split_shared(address);
                    (0..n).filter(|c| ctas >> c & 1 == 1).map(|c| (c as u64) << 24 | offset).collect()
                }
            };
            let (stream, actor) = pipe(&cx.m, group);
            cx.enqueue(
                "tcgen05.commit",
                stream,
                actor,
                lane as u32,
                Box::new(move |cx| {
                    // As PTX has it, a commit is a fence as well.
                    cx.clock.fence_before_sync();
                    for target in &targets {
                        cx.arrive(*target, 1);
                    }
                    Ok(Step::Done)
                }),
            );
        }
        Ok(Flow::Next)
    }))
}
