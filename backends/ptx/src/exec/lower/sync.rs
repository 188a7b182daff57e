//! Barriers, fences, mbarriers, launch control.

use super::warp::members_or_block;
use super::{Lower, Ty, operands};
use crate::ast::{Instruction, Operand};
use crate::exec::access::lanes_of;
use crate::exec::barrier::{self, Arrival};
use crate::exec::context::{Cx, split_shared};
use crate::exec::error::CompileError;
use crate::exec::findings::Check;
use crate::exec::global_race::{Order, Scope};
use crate::exec::mbarrier::{MAX_COUNT, Mbarrier, pending_count};
use crate::exec::program::{Flow, Slot, Src, Wait};
use crate::exec::queue::{Step, Stream};

/// Attempts of a `try_wait` last at most this many turns of the scheduler.
const TRY_TURNS: u64 = 4096;

impl Lower<'_> {
    pub(super) fn sync(&mut self, i: &Instruction) -> Result<(), CompileError> {
        match i.opcode.as_str() {
            "bar" | "barrier" if i.has("warp") => {
                let [member] = operands(self, i)?;
                let member = self.src32(member)?;
                self.emit_custom(Box::new(move |cx, mask| {
                    members_or_block!(cx, mask, Some(member));
                    Ok(Flow::Next)
                }));
                Ok(())
            }
            "bar" | "barrier" if i.has("cluster") => self.cluster_barrier(i),
            "bar" | "barrier" => self.cta_barrier(i),
            "mbarrier" => self.mbarrier(i),
            "fence" => self.fence(i),
            "membar" => {
                if i.has("proxy") {
                    return self.fence(i);
                }
                // `membar` is a fence in sequentially consistent order.
                let order = Order { acquire: true, release: true, ..Order::of(i, true, Scope::Cta) };
                self.emit_custom(Box::new(move |cx, _| {
                    cx.fence_global(order);
                    Ok(Flow::Next)
                }));
                Ok(())
            }
            "setmaxnreg" => {
                let [n] = operands(self, i)?;
                match self.immediate(n) {
                    Some(n @ 24..=256) if n % 8 == 0 => {
                        self.emit(crate::exec::program::Op::Nop);
                        Ok(())
                    }
                    _ => Err(self.invalid("`setmaxnreg` takes a multiple of 8 from 24 to 256")),
                }
            }
            // There is no grid before or after: nothing to wait for.
            "griddepcontrol" => {
                self.emit(crate::exec::program::Op::Nop);
                Ok(())
            }
            _ => self.launch_control(i),
        }
    }

    fn cta_barrier(&mut self, i: &Instruction) -> Result<(), CompileError> {
        // `bar` is `barrier` with `.aligned`.
        let aligned = i.opcode == "bar" || i.has("aligned");
        let kind =
            i.modifiers.iter().find(|m| matches!(m.as_str(), "sync" | "arrive" | "red")).map_or("", String::as_str);
        let mut rest = i.operands.as_slice();
        let result = if kind == "red" {
            let (first, others) = rest.split_first().ok_or_else(|| self.invalid("operands expected"))?;
            rest = others;
            Some(first)
        } else {
            None
        };
        let predicate = if kind == "red" {
            let (last, others) = rest.split_last().ok_or_else(|| self.invalid("operands expected"))?;
            rest = others;
            Some(self.pred_src(last)?)
        } else {
            None
        };
        let (id, count) = match rest {
            [id] => (self.src32(id)?, None),
            [id, n] => (self.src32(id)?, Some(self.src32(n)?)),
            _ => return Err(self.invalid("a barrier and a thread count expected")),
        };
        let popc = i.has("popc");
        let (slot, pred) = match result {
            Some(d) if popc => (Some(self.dst(d, 32)?), None),
            Some(d) => (None, self.pred_dst(d)?),
            None => (None, None),
        };
        let (arrive, and) = (kind == "arrive", i.has("and"));
        if arrive && count.is_none() {
            return Err(self.invalid("`bar.arrive` needs a thread count"));
        }
        if kind.is_empty() {
            return Err(self.unsupported(i.full_name()));
        }
        self.emit_custom(Box::new(move |cx, mask| {
            cx.require(id, mask, "the barrier's number");
            let number = cx.uniform(id, mask) as u32;
            if number > 15 {
                return Err(cx.m.fault(format!("barrier {number} does not exist (0 to 15)")));
            }
            let threads = count.map(|c| cx.uniform(c, mask) as u32);
            let arrival = match predicate {
                _ if arrive => Arrival::Arrive,
                Some(p) => Arrival::Reduce(cx.pred(p)),
                None => Arrival::Sync,
            };
            let flow = barrier::arrive(cx, number, threads, arrival, mask, aligned);
            if flow == Flow::Next && predicate.is_some() {
                let (n, all, any) = barrier::reduction(cx, number);
                if let Some(d) = slot {
                    cx.write(d, mask, &[u64::from(n); 32], 0);
                }
                if let Some(p) = pred {
                    let holds = if and { all } else { any };
                    cx.warp.write_pred(p, mask, if holds { u32::MAX } else { 0 }, 0);
                }
            }
            Ok(flow)
        }));
        Ok(())
    }

    fn cluster_barrier(&mut self, i: &Instruction) -> Result<(), CompileError> {
        self.uses_cluster();
        let aligned = i.has("aligned");
        if i.has("arrive") {
            self.emit_custom(Box::new(move |cx, mask| Ok(barrier::cluster_arrive(cx, mask, aligned))));
        } else if i.has("wait") {
            self.emit_custom(Box::new(move |cx, _| Ok(barrier::cluster_wait(cx))));
        } else {
            return Err(self.unsupported(i.full_name()));
        }
        Ok(())
    }

    fn fence(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let known = |m: &str| {
            matches!(
                m,
                "proxy"
                    | "async"
                    | "alias"
                    | "acq_rel"
                    | "sc"
                    | "acquire"
                    | "release"
                    | "cta"
                    | "cluster"
                    | "gpu"
                    | "sys"
                    | "mbarrier_init"
                    | "global"
                    | "shared::cta"
                    | "shared::cluster"
                    | "tensormap::generic"
                    | "async::generic"
                    | "async.global"
            ) || m.starts_with("sync_restrict")
        };
        if let Some(bad) = i.modifiers.iter().find(|m| !known(m)) {
            return Err(self.unsupported(format!("`.{bad}` of `fence`")));
        }
        // `fence.proxy` and `fence.mbarrier_init` order no accesses of other CTAs to global memory.
        let order = (!i.has("proxy") && !i.has("mbarrier_init")).then(|| Order::of(i, true, Scope::Cta));
        let shared = i.has("proxy") && (i.has("async") || i.has("async::generic")) && !i.has("global");
        let mut map = None;
        for o in &i.operands {
            if matches!(o, Operand::Address(_)) {
                map = Some(self.address(o)?);
            }
        }
        let map = map.filter(|_| i.has("tensormap::generic") && i.has("acquire"));
        self.emit_custom(Box::new(move |cx, mask| {
            if let Some(map) = map {
                for l in lanes_of(mask) {
                    let address = cx.address(map, l);
                    crate::exec::tensor::acquire_map(&mut cx.m, address);
                }
            }
            if shared {
                cx.warp.clock.fence_proxy();
                // Later writes need a fence of their own.
                cx.advance();
            }
            if let Some(order) = order {
                cx.fence_global(order);
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn mbarrier(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let verb = i.modifiers.first().map_or("", String::as_str);
        if i.has("shared::cluster") {
            self.uses_cluster();
        }
        match (verb, i.operands.as_slice()) {
            ("init", [a, n]) => {
                let (a, n) = (self.address(a)?, self.src32(n)?);
                self.emit_custom(Box::new(move |cx, mask| {
                    cx.require(a.base, mask, "the mbarrier's address");
                    cx.require(n, mask, "the arrival count");
                    for l in lanes_of(mask) {
                        let count = cx.lanes(n)[l] as u32;
                        init(cx, cx.shared_address(cx.address(a, l)), count, l as u32);
                    }
                    Ok(Flow::Next)
                }));
                Ok(())
            }
            ("inval", [a]) => {
                let a = self.address(a)?;
                self.emit_custom(Box::new(move |cx, mask| {
                    for l in lanes_of(mask) {
                        let address = cx.shared_address(cx.address(a, l));
                        if cx.m.mbarrier(address, Some(l as u32)).is_some() {
                            let (rank, offset) = split_shared(address);
                            let removed = cx.m.cluster.ctas[rank].mbarriers.remove(&(offset as u32));
                            if let Some(b) = removed
                                && (b.pending != b.expected || b.tx != 0)
                            {
                                let (arrived, tx) = (b.expected.wrapping_sub(b.pending), b.tx);
                                cx.m.report(Check::Mbarrier, Some(l as u32), || {
                                    format!("an mbarrier is invalidated in the middle of a phase ({arrived} arrivals, {tx} bytes open)")
                                });
                            }
                            cx.track_shared(rank, offset, 8, crate::exec::race::AccessKind::StrongWrite, l as u32);
                            cx.m.cluster.ctas[rank].shared.set_initialized(offset as usize, 8, false);
                        }
                    }
                    Ok(Flow::Next)
                }));
                Ok(())
            }
            ("expect_tx" | "complete_tx", [a, n]) => {
                let (a, n, expect) = (self.address(a)?, self.src32(n)?, verb == "expect_tx");
                self.emit_custom(Box::new(move |cx, mask| {
                    for l in lanes_of(mask) {
                        let address = cx.shared_address(cx.address(a, l));
                        let bytes = cx.lanes(n)[l] as u32;
                        let clock = &cx.warp.clock;
                        let outcome = cx.m.mbarrier(address, Some(l as u32)).map(|b| {
                            b.clock.join(clock);
                            if expect { b.expect_tx(bytes).map(|()| false) } else { b.complete_tx(bytes) }
                        });
                        if let Some(outcome) = outcome {
                            cx.m.mbarrier_outcome(outcome, address, Some(l as u32));
                        }
                    }
                    Ok(Flow::Next)
                }));
                Ok(())
            }
            ("arrive" | "arrive_drop", _) => self.mbarrier_arrive(i),
            ("test_wait" | "try_wait", [p, a, state, ..]) => self.mbarrier_wait(i, p, a, state),
            ("pending_count", [d, state]) => {
                let state = self.src64(state)?;
                let d = self.dst(d, 32)?;
                self.emit_custom(Box::new(move |cx, mask| {
                    let out = cx.lanes(state).map(|s| u64::from(pending_count(s)));
                    let poison = cx.poison(state);
                    cx.write(d, mask, &out, poison);
                    Ok(Flow::Next)
                }));
                Ok(())
            }
            _ => Err(self.unsupported(i.full_name())),
        }
    }

    /// `mbarrier.arrive{.expect_tx|.noComplete} state|_, [a]{, count}`; also without a destination for remote barriers.
    fn mbarrier_arrive(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let (d, rest): (Option<Slot>, &[Operand]) = match i.operands.as_slice() {
            [Operand::Sink, rest @ ..] => (None, rest),
            rest @ [Operand::Address(_), ..] => (None, rest),
            [d, rest @ ..] => (Some(self.dst(d, 64)?), rest),
            [] => return Err(self.invalid("operands expected")),
        };
        let (a, n) = match rest {
            [a] => (self.address(a)?, None),
            [a, n] => (self.address(a)?, Some(self.src32(n)?)),
            _ => return Err(self.invalid("an address and a count expected")),
        };
        let (drop, expect, no_complete) =
            (i.modifiers.first().is_some_and(|m| m == "arrive_drop"), i.has("expect_tx"), i.has("noComplete"));
        if expect && n.is_none() {
            return Err(self.invalid("`.expect_tx` needs a byte count"));
        }
        self.emit_custom(Box::new(move |cx, mask| {
            cx.require(a.base, mask, "the mbarrier's address");
            if let Some(n) = n {
                cx.require(n, mask, "the count of an arrival");
            }
            let mut states = [0u64; 32];
            let mut last = None;
            for l in lanes_of(mask) {
                let address = cx.shared_address(cx.address(a, l));
                let n = n.map_or(1, |n| cx.lanes(n)[l] as u32);
                let clock = &cx.warp.clock;
                let fresh = last != Some(address);
                last = Some(address);
                let outcome = cx.m.mbarrier(address, Some(l as u32)).map(|b| {
                    if fresh {
                        b.clock.join(clock);
                    }
                    states[l] = b.state();
                    let count = if expect { 1 } else { n };
                    let expected = if expect { b.expect_tx(n) } else { Ok(()) };
                    let flips = no_complete && b.pending == count && b.tx == 0;
                    let outcome = if drop { b.drop_arrivals(count) } else { b.arrive(count) };
                    if flips {
                        return Err(crate::exec::mbarrier::Misuse(
                            "an arrival with .noComplete completes the phase".to_owned(),
                        ));
                    }
                    expected.and(outcome)
                });
                if let Some(outcome) = outcome {
                    cx.m.mbarrier_outcome(outcome, address, Some(l as u32));
                }
            }
            cx.advance();
            if let Some(d) = d {
                cx.write(d, mask, &states, 0);
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn mbarrier_wait(
        &mut self,
        i: &Instruction,
        p: &Operand,
        a: &Operand,
        state: &Operand,
    ) -> Result<(), CompileError> {
        let blocking = i.has("try_wait");
        let parity = i.has("parity");
        let p = self.pred_dst(p)?;
        let a = self.address(a)?;
        let state = self.src(state, if parity { Ty::B(32) } else { Ty::B(64) })?;
        self.emit_custom(Box::new(move |cx, mask| {
            cx.require(a.base, mask, "the mbarrier's address");
            cx.require(state, mask, "the phase to wait for");
            let mut done = 0u32;
            let mut last: Option<(u64, u64, bool)> = None;
            for l in lanes_of(mask) {
                let address = cx.shared_address(cx.address(a, l));
                let wanted = cx.lanes(state)[l];
                let complete = match last {
                    Some((a, w, c)) if a == address && w == wanted => c,
                    _ => {
                        let own = split_shared(address).0 == cx.m.cta;
                        if !own {
                            cx.m.report(Check::Mbarrier, Some(l as u32), || {
                                format!("a wait on the mbarrier of another CTA (shared address {address:#x})")
                            });
                        }
                        let complete = match cx.m.mbarrier(address, Some(l as u32)) {
                            Some(b) => {
                                let complete =
                                    if parity { b.parity_complete(wanted as u32) } else { b.state_complete(wanted) };
                                if complete {
                                    cx.warp.clock.join(&b.completed);
                                }
                                complete
                            }
                            None => true,
                        };
                        last = Some((address, wanted, complete));
                        complete
                    }
                };
                done |= u32::from(complete) << l;
            }
            if done == 0 {
                if blocking {
                    // The token remembers when the attempt began, and how many attempts had been given up by then.
                    let turns = cx.m.cluster.turns & 0xffff_ffff;
                    let timeouts = cx.m.cluster.timeouts & 0x7fff_ffff;
                    if cx.token == 0 {
                        cx.token = 1 << 63 | timeouts << 32 | turns;
                    }
                    let late = turns.wrapping_sub(cx.token & 0xffff_ffff) & 0xffff_ffff > TRY_TURNS;
                    if !late && cx.token >> 32 & 0x7fff_ffff == timeouts {
                        let address = last.map_or(0, |(a, _, _)| a);
                        return Ok(Flow::Block(Wait::Mbarrier(address as u32)));
                    }
                } else {
                    cx.m.cluster.failed_polls += 1;
                }
                cx.m.cluster.quantum_left = 0;
            }
            if let Some(p) = p {
                cx.warp.write_pred(p, mask, done, 0);
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }

    fn launch_control(&mut self, i: &Instruction) -> Result<(), CompileError> {
        let verb = i.modifiers.first().map_or("", String::as_str);
        if verb == "try_cancel" {
            let [a, bar] = operands(self, i)?;
            let (a, bar) = (self.address(a)?, self.address(bar)?);
            let all = i.modifiers.iter().any(|m| m.starts_with("multicast"));
            self.emit_custom(Box::new(move |cx, mask| {
                for l in lanes_of(mask) {
                    let (to, bar) = (cx.shared_address(cx.address(a, l)), cx.shared_address(cx.address(bar, l)));
                    let actor = cx.m.cluster.proxy_actor(bar);
                    cx.enqueue(
                        "clusterlaunchcontrol.try_cancel",
                        Stream::Free,
                        actor,
                        l as u32,
                        Box::new(move |ax| {
                            let launch = ax.m.launch;
                            let claimed = launch.claim();
                            let mut response = [0u8; 16];
                            if let Some(cluster) = claimed {
                                let [x, y, z] = launch.first_ctaid(cluster);
                                response[..4].copy_from_slice(&x.to_le_bytes());
                                response[4..8].copy_from_slice(&(y & 0xffff | z << 16).to_le_bytes());
                                response[8] = 1;
                            }
                            let ranks = if all { ax.m.cluster.ctas.len() } else { 1 };
                            for rank in 0..ranks as u64 {
                                let place = |a: u64| if all { a & 0xff_ffff | rank << 24 } else { a };
                                ax.write_shared(place(to), &response, None);
                                ax.complete_tx(place(bar), 16);
                            }
                            Ok(Step::Done)
                        }),
                    );
                }
                Ok(Flow::Next)
            }));
            return Ok(());
        }
        let (d, handle) = match i.operands.as_slice() {
            [d, h] => (d, self.src(h, Ty::B(128))?),
            _ => return Err(self.invalid("a destination and a handle expected")),
        };
        let high = Src(handle.0 + 1);
        if i.modifiers.iter().any(|m| m.starts_with("is_canceled")) {
            let Some(p) = self.pred_dst(d)? else { return Ok(()) };
            self.emit_custom(Box::new(move |cx, mask| {
                let set = cx.lanes(high).iter().enumerate().fold(0u32, |m, (l, v)| m | (*v as u32 & 1) << l);
                let poison = cx.poison(high);
                cx.warp.write_pred(p, mask, set, poison);
                Ok(Flow::Next)
            }));
            return Ok(());
        }
        let Some(which) = i.modifiers.iter().find(|m| m.starts_with("get_first_ctaid")) else {
            return Err(self.unsupported(i.full_name()));
        };
        let axis = match which.rsplit("::").next() {
            Some("x") => Some(0),
            Some("y") => Some(1),
            Some("z") => Some(2),
            _ => None,
        };
        let mut slots = Vec::new();
        for (n, o) in self.elements(d).iter().enumerate() {
            slots.push((axis.unwrap_or(n), self.dst(o, 32)?));
        }
        self.emit_custom(Box::new(move |cx, mask| {
            for (axis, d) in &slots {
                let out = cx.lanes(handle).map(|v| match axis {
                    0 => v & 0xffff_ffff,
                    1 => v >> 32 & 0xffff,
                    2 => v >> 48,
                    _ => 0,
                });
                let poison = cx.poison(handle);
                cx.write(*d, mask, &out, poison);
            }
            Ok(Flow::Next)
        }));
        Ok(())
    }
}

fn init(cx: &mut Cx<'_>, address: u64, count: u32, lane: u32) {
    let Some((rank, offset)) = cx.m.shared_range(address, 8, 8, true, Some(lane)) else { return };
    if count == 0 || count > MAX_COUNT {
        cx.m.report(Check::Mbarrier, Some(lane), || format!("an mbarrier for {count} arrivals (1 to {MAX_COUNT})"));
    }
    let known = cx.m.cluster.ctas[rank].mbarriers.get(&(offset as u32)).map(|b| b.pending != b.expected || b.tx != 0);
    if known == Some(true) {
        cx.m.report(Check::Mbarrier, Some(lane), || {
            format!("the mbarrier at shared address {address:#x} is initialised again in the middle of a phase")
        });
    }
    // The object's bytes are opaque; writing them orders the initialisation against other accesses.
    cx.track_shared(rank, offset, 8, crate::exec::race::AccessKind::StrongWrite, lane);
    let barrier = Mbarrier::new(count, &cx.warp.clock, cx.m.pc);
    let cta = &mut cx.m.cluster.ctas[rank];
    cta.shared.write(offset as usize, &u64::from(count).to_le_bytes());
    cta.mbarriers.insert(offset as u32, barrier);
}
