//! What an operation sees while it runs: its warp, its cluster, the launch; and the same for the completion of an
//! asynchronous operation.

mod asynchronous;

use super::cluster::{Cluster, Cta};
use super::error::ExecError;
use super::findings::{Check, Finding};
use super::launch::LaunchState;
use super::mbarrier::{Mbarrier, Misuse};
use super::memory::{self, global::Allocation};
use super::program::{AddressSrc, Lanes, MemorySpace, PredSrc, Slot, Src, WARP};
use super::queue::{AsyncOp, Pending, Run, Step, Stream};
use super::race::{AccessKind, Actor, Clock, Takes};
use super::warp::{GroupKind, Warp};
use super::worker::Worker;

/// The parts of the machine that running warps and completing operations share.
pub struct Machine<'a> {
    /// Grid, parameters, device memory, options.
    pub launch: &'a LaunchState<'a>,
    /// The cluster of CTAs.
    pub cluster: &'a mut Cluster,
    /// Findings, counters and random numbers of the host thread.
    pub worker: &'a mut Worker,
    /// Rank of the CTA in its cluster.
    pub cta: usize,
    /// Warp in the CTA.
    pub warp_index: usize,
    /// Instruction.
    pub pc: u32,
}

/// Splits a shared address into the CTA's rank and the offset in its window.
#[inline]
pub fn split_shared(address: u64) -> (usize, u64) {
    ((address >> 24) as usize & 0xff, address & 0xff_ffff)
}

impl Machine<'_> {
    /// The CTA that the warp belongs to.
    pub fn own(&mut self) -> &mut Cta {
        &mut self.cluster.ctas[self.cta]
    }

    /// Records a finding at the current instruction, if its check is on. `lane` names one thread.
    pub fn report(&mut self, check: Check, lane: Option<u32>, message: impl FnOnce() -> String) {
        self.report_with(check, lane, None, message);
    }

    /// As [`report`](Machine::report), with the conflicting access (actor and instruction).
    pub fn report_with(
        &mut self,
        check: Check,
        lane: Option<u32>,
        other: Option<(u32, u32)>,
        message: impl FnOnce() -> String,
    ) {
        let other = other.map(|(actor, pc)| (self.cluster.actor_name(actor), Some(pc)));
        self.report_beside(check, lane, other, message);
    }

    /// As [`report`](Machine::report), with the conflicting access: who, and the instruction if it is known.
    pub(crate) fn report_beside(
        &mut self,
        check: Check,
        lane: Option<u32>,
        other: Option<(String, Option<u32>)>,
        message: impl FnOnce() -> String,
    ) {
        if !self.launch.options.checks.has(check) {
            return;
        }
        if let Some(known) = self.worker.findings.get_mut(&(self.pc, check)) {
            known.count += 1;
            return;
        }
        let finding = self.finding(check, lane, other, message());
        self.worker.findings.insert((self.pc, check), finding);
    }

    /// Records something that PTX forbids or leaves open and that machines put up with.
    pub fn note(&mut self, check: Check, lane: Option<u32>, message: impl FnOnce() -> String) {
        self.note_beside(check, lane, None, message);
    }

    /// As [`note`](Machine::note), with the conflicting access.
    pub(crate) fn note_beside(
        &mut self,
        check: Check,
        lane: Option<u32>,
        other: Option<(String, Option<u32>)>,
        message: impl FnOnce() -> String,
    ) {
        if !self.launch.options.checks.has(check) {
            return;
        }
        if let Some(known) = self.worker.notes.get_mut(&(self.pc, check)) {
            known.count += 1;
            return;
        }
        let note = self.finding(check, lane, other, message());
        self.worker.notes.insert((self.pc, check), note);
    }

    fn finding(
        &self,
        check: Check,
        lane: Option<u32>,
        other: Option<(String, Option<u32>)>,
        message: String,
    ) -> Finding {
        let source = &self.launch.program.source;
        let at = source.get(self.pc as usize);
        let other_place = other.as_ref().and_then(|(_, pc)| self.launch.program.place((*pc)?));
        let other = other.map(|(who, pc)| {
            let Some(pc) = pc else { return who };
            let (line, text) = source.get(pc as usize).map_or((0, ""), |s| (s.line, s.text.as_str()));
            let place = self.launch.program.place(pc).map_or(String::new(), |p| format!(" ({p})"));
            format!("{who} at line {line}{place}: {text}")
        });
        Finding {
            check,
            kernel: self.launch.program.entry.clone(),
            line: at.map_or(0, |s| s.line),
            place: self.launch.program.place(self.pc),
            instruction: at.map_or_else(String::new, |s| s.text.clone()),
            rank: self.launch.run.has_ranks().then_some(self.launch.rank),
            block: self.cluster.ctas[self.cta].ctaid,
            thread: lane.map(|l| self.launch.tid(self.warp_index as u32 * WARP as u32 + l)),
            message,
            other,
            other_place,
            count: 1,
        }
    }

    /// An error that ends the launch.
    pub fn fault(&self, message: String) -> ExecError {
        let at = self.launch.program.source.get(self.pc as usize);
        ExecError::Fault {
            kernel: self.launch.program.entry.clone(),
            line: at.map_or(0, |s| s.line),
            text: at.map_or_else(String::new, |s| s.text.clone()),
            message,
        }
    }

    /// Rank and offset of a shared range that exists and is aligned to `align`; otherwise a finding and `None`.
    /// `own_only` is for `.shared::cta` accesses, which may not name a peer.
    #[inline]
    pub fn shared_range(
        &mut self,
        address: u64,
        bytes: u64,
        align: u64,
        own_only: bool,
        lane: Option<u32>,
    ) -> Option<(usize, u64)> {
        let (rank, offset) = split_shared(address);
        let exists = address >> 32 == 0
            && self.cluster.ctas.get(rank).is_some_and(|c| c.shared.holds(offset, bytes))
            && !(own_only && rank != self.cta);
        if !exists {
            let size = self.cluster.ctas[self.cta].shared.end();
            self.report(Check::Bounds, lane, || {
                format!("{bytes} bytes at shared address {address:#x} are outside the shared memory (up to {size:#x}) of the CTA")
            });
            return None;
        }
        if !offset.is_multiple_of(align) {
            self.report(Check::Alignment, lane, || format!("shared address {address:#x} is not a multiple of {align}"));
            return None;
        }
        // Operations that a CTA left behind still use its own memory.
        if self.cluster.ctas[rank].exited && rank != self.cta {
            self.report(Check::ClusterExit, lane, || {
                format!("shared address {address:#x} belongs to the CTA of rank {rank}, which has exited")
            });
        }
        Some((rank, offset))
    }

    /// The allocation of an aligned global range; otherwise a finding and `None`.
    pub fn global_range(
        &mut self,
        address: u64,
        bytes: u64,
        align: u64,
        lane: Option<u32>,
    ) -> Option<(&Allocation, u64)> {
        let launch = self.launch;
        let Some(a) = launch.find(address, bytes) else {
            self.report(Check::Bounds, lane, || {
                if let Some(a) = launch.memory.find(address, bytes) {
                    return format!(
                        "{bytes} bytes at global address {address:#x} are memory of rank {}, which others do not see",
                        a.owner
                    );
                }
                let near = launch.memory.nearest(address).map_or_else(String::new, |a| {
                    format!(
                        "; the nearest allocation below is {:#x} with {} bytes, the access is at byte {}",
                        a.base,
                        a.bytes,
                        address - a.base
                    )
                });
                format!("{bytes} bytes at global address {address:#x} are outside every allocation{near}")
            });
            return None;
        };
        if !address.is_multiple_of(align) {
            self.report(Check::Alignment, lane, || format!("global address {address:#x} is not a multiple of {align}"));
            return None;
        }
        Some((a, address - a.base))
    }

    /// Records an access in the history of a CTA's shared memory and reports races.
    pub fn track_shared(
        &mut self,
        rank: usize,
        offset: u64,
        bytes: u64,
        kind: AccessKind,
        lane: Option<u32>,
        actor: Actor<'_>,
    ) {
        let Some(history) = self.cluster.ctas[rank].shared.history.as_mut() else { return };
        let Some(conflict) = history.access(offset as u32, bytes as u32, kind, actor) else { return };
        let check = if conflict.unfenced { Check::Proxy } else { Check::Race };
        let write = matches!(kind, AccessKind::Write | AccessKind::StrongWrite);
        self.report_with(check, lane, Some((conflict.actor, conflict.pc)), || {
            let what = match (write, conflict.wrote) {
                (true, true) => "writes over what another write left",
                (true, false) => "writes what another access still reads",
                (false, _) => "reads what another access wrote",
            };
            let missing = if conflict.unfenced {
                "without fence.proxy.async between them"
            } else {
                "without synchronisation between them"
            };
            format!("{what} at shared address {:#x}, {missing}", conflict.offset)
        });
    }

    /// The mbarrier at a shared address (rank included), or a finding.
    pub fn mbarrier(&mut self, address: u64, lane: Option<u32>) -> Option<&mut Mbarrier> {
        let (rank, offset) = self.shared_range(address, 8, 8, false, lane)?;
        if !self.cluster.ctas[rank].mbarriers.contains_key(&(offset as u32)) {
            self.report(Check::Mbarrier, lane, || {
                format!("there is no initialised mbarrier at shared address {address:#x}")
            });
            return None;
        }
        self.cluster.ctas[rank].mbarriers.get_mut(&(offset as u32))
    }

    /// Handles the outcome of an arrival or completion: wakes waiters, reports misuse.
    pub fn mbarrier_outcome(&mut self, outcome: Result<bool, Misuse>, address: u64, lane: Option<u32>) {
        match outcome {
            Ok(true) => self.cluster.wake(),
            Ok(false) => {}
            Err(Misuse(message)) => {
                self.cluster.wake();
                self.report(Check::Mbarrier, lane, || format!("{message} (shared address {address:#x})"));
            }
        }
    }
}

/// What an operation of a running warp sees.
pub struct Cx<'a> {
    /// The machine.
    pub m: Machine<'a>,
    /// The running warp.
    pub warp: &'a mut Warp,
    /// Lanes that stand at the instruction, whatever the guard says.
    pub part_mask: u32,
    /// 0 when the operation is first executed; what it stored in a blocked attempt afterwards. Reset when it goes on.
    pub token: u64,
}

impl Cx<'_> {
    /// The lanes of a source.
    #[inline]
    pub fn lanes(&self, s: Src) -> &Lanes {
        match s.slot() {
            Some(slot) => &self.warp.regs[slot.0 as usize],
            None => &self.m.launch.constants[(s.0 & !Src::CONSTANT) as usize],
        }
    }

    /// Lanes of a source that nobody wrote.
    #[inline]
    pub fn poison(&self, s: Src) -> u32 {
        self.warp.poison_of(s)
    }

    /// Writes a register for the lanes in `mask`.
    #[inline]
    pub fn write(&mut self, d: Slot, mask: u32, value: &Lanes, poison: u32) {
        self.warp.write(d, mask, value, poison);
    }

    /// Effective address of a lane.
    #[inline]
    pub fn address(&self, a: AddressSrc, lane: usize) -> u64 {
        a.at(self.lanes(a.base)[lane])
    }

    /// Lanes for which a predicate holds.
    pub fn pred(&self, p: PredSrc) -> u32 {
        self.warp.pred(p)
    }

    /// Reports use of a source that some executing lane never wrote (an address, a descriptor, a count).
    pub fn require(&mut self, s: Src, mask: u32, what: &str) {
        let bad = self.poison(s) & mask;
        if bad != 0 {
            self.m.report(Check::Uninitialized, Some(bad.trailing_zeros()), || format!("{what} was never written"));
        }
    }

    /// The value of a source that must be the same in all executing lanes; that of the first lane.
    pub fn uniform(&self, s: Src, mask: u32) -> u64 {
        self.lanes(s)[mask.trailing_zeros() as usize & 31]
    }

    /// The space and address of a lane of an operand.
    pub fn resolve(&self, space: MemorySpace, address: u64) -> (MemorySpace, u64) {
        if space == MemorySpace::Generic { memory::resolve(address) } else { (space, address) }
    }

    /// A shared address (rank included) from an operand that may be generic or 32 bits wide.
    pub fn shared_address(&self, address: u64) -> u64 {
        match memory::resolve(address) {
            (MemorySpace::SharedCluster, a) => a,
            _ => address,
        }
    }

    /// This warp as an actor through the generic proxy.
    pub fn actor<'c>(m: &Machine<'_>, clock: &'c Clock) -> Actor<'c> {
        Actor { id: m.cluster.warp_actor(m.cta, m.warp_index), clock, pc: m.pc, takes: Takes::Nothing }
    }

    /// Records an access of this warp to shared memory.
    pub fn track_shared(&mut self, rank: usize, offset: u64, bytes: u64, kind: AccessKind, lane: u32) {
        if self.m.cluster.n_actors > 0 {
            let actor = Self::actor(&self.m, &self.warp.clock);
            self.m.track_shared(rank, offset, bytes, kind, Some(lane), actor);
        }
    }

    /// Starts a new tick after a release.
    pub fn advance(&mut self) {
        let id = self.m.cluster.warp_actor(self.m.cta, self.m.warp_index);
        self.warp.clock.advance(id);
    }

    /// Puts an asynchronous operation of one lane (or the warp) into flight. It accesses memory as `actor`
    /// (see [`Cluster::proxy_actor`], [`Cluster::cp_async_actor`]).
    pub fn enqueue(&mut self, what: &'static str, stream: Stream, actor: u32, lane: u32, run: Run) {
        let mut clock = self.warp.clock.clone();
        if self.m.cluster.n_actors > 0 {
            let tick = self.m.cluster.next_tick(actor);
            clock.seen[actor as usize] = tick;
            if what.starts_with("tcgen05") {
                // The pipe is in order, and the warp's own.
                self.warp.clock.needs_no_fence(actor, tick);
            }
        }
        let pending = Pending {
            op: AsyncOp { what, stream, run },
            cta: self.m.cta,
            warp: self.m.warp_index,
            pc: self.m.pc,
            lane,
            actor,
            clock,
            issued: self.m.cluster.turns,
        };
        self.m.cluster.asyncs.list.push_back(pending);
        self.m.worker.async_issued += 1;
    }

    /// Adds an operation to the open group of a kind; gives the group's number for [`AsyncCx::group_done`].
    pub fn join_group(&mut self, kind: GroupKind) -> u64 {
        let group = self.warp.groups(kind).open(0);
        group.pending += 1;
        group.reading += 1;
        group.id
    }

    /// Waits for groups: `None` when they are complete (their effects are then known to the warp).
    pub fn groups_complete(&mut self, kind: GroupKind, mask: u32, allowed: u32, reads_only: bool) -> bool {
        let mut learned: Vec<Clock> = Vec::new();
        let complete = self.warp.groups(kind).complete(mask, allowed, reads_only, |c| learned.push(c.clone()));
        for c in &learned {
            self.warp.clock.join(c);
        }
        complete
    }
}

/// What the completion of an asynchronous operation sees. The issuing warp is in its CTA.
pub struct AsyncCx<'a> {
    /// The machine, at the issuing instruction.
    pub m: Machine<'a>,
    /// Issuing lane.
    pub lane: u32,
    /// Actor of the accesses.
    pub actor: u32,
    /// What the issuer had seen, and the operation's own tick.
    pub clock: Clock,
    pub(crate) stream: Stream,
    pub(crate) what: &'static str,
    /// Shared memory that was read and is not yet in the history: rank, offset, bytes.
    pub(crate) reading: Option<(usize, u64, u64)>,
}

/// Lets one operation go on; it is put back if it needs more time.
pub(crate) fn complete(m: Machine<'_>, pending: Pending) -> Result<(), ExecError> {
    let Pending { op, cta, warp, pc, lane, actor, clock, issued } = pending;
    let m = Machine { cta, warp_index: warp, pc, ..m };
    let mut cx = AsyncCx { m, lane, actor, clock, stream: op.stream, what: op.what, reading: None };
    let step = (op.run)(&mut cx)?;
    cx.track_units();
    cx.m.cluster.wake();
    if let Step::Then(run) = step {
        let op = AsyncOp { what: cx.what, stream: cx.stream, run };
        let again = Pending { op, cta, warp, pc, lane, actor, clock: cx.clock, issued };
        match cx.stream {
            Stream::Free => cx.m.cluster.asyncs.list.push_back(again),
            // The stream's later operations stay behind it.
            Stream::Ordered(_) => cx.m.cluster.asyncs.list.push_front(again),
        }
    }
    Ok(())
}
