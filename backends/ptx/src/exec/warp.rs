//! The state of one warp.

use std::collections::{HashMap, VecDeque};

use super::program::{Lanes, PredSlot, PredSrc, Slot, Src, WARP, Wait};
use super::race::Clock;
use super::unwritten::Holes;

/// Where in local memory `alloca` starts; frames lie below.
pub(crate) const STACK_BASE: u32 = 32 << 10;

/// Return address and caller of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub return_pc: u32,
    /// Called function.
    pub function: u32,
    /// Calling function.
    pub caller: u32,
    /// Index of the call operation, which names arguments and results.
    pub call_pc: u32,
}

/// Lanes of a warp that stand at the same instruction.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub pc: u32,
    pub mask: u32,
    pub stack: Vec<Frame>,
    /// What the part waits for, and the cluster's event count when it began to.
    pub blocked: Option<(Wait, u64)>,
    /// Memory of a blocking operation between attempts; 0 at the first.
    pub token: u64,
    /// Backward branches since the part was picked; a part that spins makes room for the others.
    pub spins: u32,
    pub yielded: bool,
}

/// The registers of an activation that another activation of the same function uses meanwhile.
#[derive(Clone, Debug, Default)]
pub(crate) struct SavedFrame {
    pub regs: Vec<(Lanes, u32, Option<Box<Holes>>)>,
    pub preds: Vec<(u32, u32)>,
}

/// Which asynchronous groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// `cp.async.commit_group`
    CpAsync,
    /// `cp.async.bulk.commit_group`
    Bulk,
    /// `wgmma.commit_group`
    Wgmma,
}

/// Operations that were committed together.
#[derive(Clone, Debug)]
pub struct Group {
    /// Number within the warp and kind, from 1.
    pub id: u64,
    /// Lanes that committed it.
    pub lanes: u32,
    /// Operations that have not read all their sources.
    pub reading: u32,
    /// Operations that are not complete.
    pub pending: u32,
    /// What waiting for the group makes known.
    pub clock: Option<Clock>,
}

/// The groups of one kind of a warp: committed ones in order; the last entry is open.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    pub(crate) list: VecDeque<Group>,
    next: u64,
}

impl Groups {
    /// The open group of these lanes; operations join it until the commit.
    pub fn open(&mut self, lanes: u32) -> &mut Group {
        let reuse = self.list.back().is_some_and(|g| g.lanes == 0);
        if !reuse {
            self.next += 1;
            self.list.push_back(Group { id: self.next, lanes: 0, reading: 0, pending: 0, clock: None });
        }
        let _ = lanes;
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// Closes the open group (an empty one if nothing is open).
    pub fn commit(&mut self, lanes: u32) {
        self.open(lanes).lanes = lanes;
        // Kernels that never wait would pile up groups: complete ones at the front pass what they know on.
        while self.list.len() > 256 && self.list.front().is_some_and(|g| g.pending == 0 && g.lanes != 0) {
            let clock = self.list.pop_front().and_then(|g| g.clock);
            if let (Some(clock), Some(next)) = (clock, self.list.front_mut()) {
                match &mut next.clock {
                    Some(c) => c.join(&clock),
                    None => next.clock = Some(clock),
                }
            }
        }
    }

    /// The group by number.
    pub fn get(&mut self, id: u64) -> Option<&mut Group> {
        self.list.iter_mut().find(|g| g.id == id)
    }

    /// Whether, for each of `lanes`, all but the latest `allowed` committed groups are complete (or have read their
    /// sources, if `reads_only`). On success the clocks of those groups are handed to `learn`.
    pub fn complete(&mut self, lanes: u32, allowed: u32, reads_only: bool, mut learn: impl FnMut(&Clock)) -> bool {
        let mut newer = Newer::new(&self.list, lanes);
        for g in self.list.iter().rev().filter(|g| g.lanes != 0) {
            let open = if reads_only { g.reading } else { g.pending };
            if newer.is_due(g.lanes & lanes, allowed) && open > 0 {
                return false;
            }
        }
        let mut newer = Newer::new(&self.list, lanes);
        for g in self.list.iter_mut().rev().filter(|g| g.lanes != 0) {
            if newer.is_due(g.lanes & lanes, allowed)
                && let Some(clock) = &g.clock
            {
                learn(clock);
                if g.pending == 0 {
                    g.clock = None;
                }
            }
        }
        while self.list.front().is_some_and(|g| g.lanes != 0 && g.pending == 0 && g.clock.is_none())
            && self.list.len() > 8
        {
            self.list.pop_front();
        }
        true
    }

    /// Operations that are not complete.
    pub fn pending(&self) -> u32 {
        self.list.iter().map(|g| g.pending).sum()
    }
}

/// How many groups of each waiting lane are newer than the one that is looked at.
enum Newer {
    /// All lanes wait, and have committed, together.
    Together(u32),
    Each([u32; WARP]),
}

impl Newer {
    fn new(list: &VecDeque<Group>, lanes: u32) -> Newer {
        let together = list.iter().all(|g| g.lanes & lanes == lanes || g.lanes & lanes == 0);
        if together { Newer::Together(0) } else { Newer::Each([0; WARP]) }
    }

    /// Whether one of the lanes of the next older group may not leave it open; counts the group.
    fn is_due(&mut self, lanes: u32, allowed: u32) -> bool {
        match self {
            Newer::Together(n) => {
                let due = lanes != 0 && *n >= allowed;
                *n += u32::from(lanes != 0);
                due
            }
            Newer::Each(newer) => {
                let mut due = false;
                for (_, n) in newer.iter_mut().enumerate().filter(|(lane, _)| lanes >> lane & 1 == 1) {
                    due |= *n >= allowed;
                    *n += 1;
                }
                due
            }
        }
    }
}

/// The state of one warp: registers, divergence, local memory, asynchronous groups.
pub struct Warp {
    pub(crate) regs: Vec<Lanes>,
    /// Lanes of each slot that hold no written value.
    pub(crate) poison: Vec<u32>,
    /// The unwritten bits of those lanes; all bits where nothing is noted. Counts only where `poison` is set.
    pub(crate) holes: Vec<Option<Box<Holes>>>,
    pub(crate) preds: Vec<u32>,
    pub(crate) pred_poison: Vec<u32>,
    /// Condition-code carry of each lane.
    pub(crate) carry: u32,
    /// Lanes whose carry nobody set, or set from unwritten values.
    pub(crate) carry_poison: u32,
    pub(crate) parts: Vec<Part>,
    /// Lanes that have left, or never existed.
    pub(crate) exited: u32,
    /// Local memory and frames, lane after lane.
    pub(crate) local: Vec<u8>,
    /// Which bits of each byte of it are unwritten.
    pub(crate) local_holes: Vec<u8>,
    pub(crate) local_stride: u32,
    /// Frame start of each lane.
    pub(crate) frame: [u32; WARP],
    /// End of what each lane took by `alloca`.
    pub(crate) stack: [u32; WARP],
    /// Those ends at each call, by depth.
    pub(crate) stacks: Vec<[u32; WARP]>,
    /// Registers of suspended activations, by call depth and function; each lane has its own.
    pub(crate) saved: HashMap<(usize, u32), SavedFrame>,
    pub(crate) clock: Clock,
    /// What strong reads have observed that no fence has acquired yet.
    pub(crate) observed: Option<Box<Clock>>,
    /// The same of what other devices released, which only a fence of scope `.sys` acquires.
    pub(crate) observed_far: Option<Box<Clock>>,
    /// Groups of `cp.async`, bulk copies and wgmma.
    pub(crate) cp_async: Groups,
    pub(crate) bulk: Groups,
    pub(crate) wgmma: Groups,
    /// The cluster's event count at which every part was found blocked.
    pub(crate) blocked_at: Option<u64>,
    /// Counter of the lane that `elect.sync` picks, in random schedules.
    pub(crate) executed: u64,
    /// Generation of the cluster barrier that the warp's last arrival completes.
    pub(crate) cluster_arrival: u64,
    pub(crate) blocked_turn: u64,
    /// State of the tensor instructions.
    pub tensor: super::tensor::WarpTensor,
}

impl Warp {
    /// The clock that a strong read teaches: the warp's own if it acquires, else that of what waits for a fence, of this device or of
    /// others (`far`).
    pub(crate) fn observes(&mut self, acquires: bool, far: bool, n_actors: usize) -> &mut Clock {
        let waiting = if far { &mut self.observed_far } else { &mut self.observed };
        if acquires { &mut self.clock } else { waiting.get_or_insert_with(|| Box::new(Clock::new(n_actors))) }
    }

    /// The lanes of a register. Constants live in the program, see [`Cx::lanes`](super::context::Cx::lanes).
    pub fn slot(&self, s: Slot) -> &Lanes {
        &self.regs[s.0 as usize]
    }

    /// The lanes of a register, to be written. Poison stays as it is.
    pub fn slot_mut(&mut self, s: Slot) -> &mut Lanes {
        &mut self.regs[s.0 as usize]
    }

    /// Lanes of a source that hold no written value.
    pub fn poison_of(&self, s: Src) -> u32 {
        s.slot().map_or(0, |s| self.poison[s.0 as usize])
    }

    /// Writes the lanes in `mask` and sets which of them are poisoned.
    pub fn write(&mut self, d: Slot, mask: u32, value: &Lanes, poison: u32) {
        let reg = &mut self.regs[d.0 as usize];
        if mask == u32::MAX {
            *reg = *value;
        } else {
            for i in 0..WARP {
                let keep = 0u64.wrapping_sub(u64::from(mask >> i & 1));
                reg[i] = value[i] & keep | reg[i] & !keep;
            }
        }
        self.set_poison(d, mask, poison);
    }

    /// Sets which lanes of a register count as unwritten.
    pub fn set_poison(&mut self, d: Slot, mask: u32, poison: u32) {
        let p = &mut self.poison[d.0 as usize];
        *p = *p & !mask | poison & mask;
        if poison & mask != 0 {
            self.fill_holes(d, poison & mask);
        }
    }

    #[cold]
    fn fill_holes(&mut self, d: Slot, lanes: u32) {
        if let Some(holes) = &mut self.holes[d.0 as usize] {
            (0..WARP).filter(|l| lanes >> l & 1 == 1).for_each(|l| holes.bits[l] = u64::MAX);
            holes.padding &= !lanes;
        }
    }

    /// The lanes for which a predicate holds.
    pub fn pred(&self, p: PredSrc) -> u32 {
        let v = self.preds[p.slot.0 as usize];
        if p.negated { !v } else { v }
    }

    /// The lanes for which a predicate was never written.
    pub fn pred_poison(&self, p: PredSrc) -> u32 {
        self.pred_poison[p.slot.0 as usize]
    }

    /// Writes the lanes in `mask` of a predicate.
    pub fn write_pred(&mut self, d: PredSlot, mask: u32, value: u32, poison: u32) {
        let i = d.0 as usize;
        self.preds[i] = self.preds[i] & !mask | value & mask;
        self.pred_poison[i] = self.pred_poison[i] & !mask | poison & mask;
    }

    /// The groups of a kind.
    pub fn groups(&mut self, kind: GroupKind) -> &mut Groups {
        match kind {
            GroupKind::CpAsync => &mut self.cp_async,
            GroupKind::Bulk => &mut self.bulk,
            GroupKind::Wgmma => &mut self.wgmma,
        }
    }

    /// Whether every lane has left.
    pub(crate) fn done(&self) -> bool {
        self.parts.is_empty()
    }

    /// Lanes that have not left.
    pub fn live(&self) -> u32 {
        !self.exited
    }
}
