//! Vector clocks, and what an access says of itself for the detection of races.
//!
//! Every warp of a cluster is an actor with a tick that grows when it releases (barrier, mbarrier arrival, release
//! fence). Asynchronous operations act under actors of their own, so that data which nobody waited for is not ordered
//! before its reader. An access is ordered after an earlier one if the accessor's clock has seen the earlier actor's
//! tick (the FastTrack rule, Flanagan and Freund 2009). A generic-proxy write is visible to the async proxy once a
//! `fence.proxy.async` on the causality path has copied what its warp has seen into `proxied`.

use super::known::Known;

/// What an actor knows of the others.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Tick of each actor whose accesses happened before.
    pub seen: Vec<u32>,
    /// Tick of each actor whose generic-proxy accesses are visible to the async proxy.
    pub proxied: Vec<u32>,
    /// What a fence has fenced for other CTAs, to be released by a strong write; empty before the first.
    pub fenced: Vec<u32>,
    /// The same of fences of scope `.sys`, which alone are for other devices.
    pub fenced_all: Vec<u32>,
    /// What is known of other clusters.
    pub(crate) known: Known,
    /// What `tcgen05.fence::before_thread_sync` has ordered before the synchronisation that followed; empty without tensor memory.
    pub before_sync: Vec<u32>,
    /// What `tcgen05.fence::after_thread_sync` has ordered after the synchronisation before it, and the warp's own operations.
    pub after_sync: Vec<u32>,
}

/// The later of two, actor by actor; a missing one has seen nothing.
fn join_ticks(mine: &mut Vec<u32>, other: &[u32]) {
    if mine.len() < other.len() {
        mine.resize(other.len(), 0);
    }
    for (a, b) in mine.iter_mut().zip(other) {
        *a = (*a).max(*b);
    }
}

impl Clock {
    /// The clock that has seen nothing of `n` actors.
    pub fn new(n: usize) -> Clock {
        Clock { seen: vec![0; n], proxied: vec![0; n], ..Clock::default() }
    }

    /// Learns what `other` knows.
    pub fn join(&mut self, other: &Clock) {
        for (a, b) in self.seen.iter_mut().zip(&other.seen) {
            *a = (*a).max(*b);
        }
        for (a, b) in self.proxied.iter_mut().zip(&other.proxied) {
            *a = (*a).max(*b);
        }
        join_ticks(&mut self.fenced, &other.fenced);
        join_ticks(&mut self.fenced_all, &other.fenced_all);
        join_ticks(&mut self.before_sync, &other.before_sync);
        if !other.known.is_empty() {
            self.known.join(&other.known);
        }
    }

    /// `fence.proxy.async`: everything seen becomes visible to the async proxy.
    pub fn fence_proxy(&mut self) {
        self.proxied.copy_from_slice(&self.seen);
    }

    /// `tcgen05.fence::before_thread_sync`
    pub fn fence_before_sync(&mut self) {
        self.before_sync.clone_from(&self.seen);
    }

    /// `tcgen05.fence::after_thread_sync`
    pub fn fence_after_sync(&mut self) {
        join_ticks(&mut self.after_sync, &self.before_sync);
    }

    /// The warp's own operation, or one that it has waited for, needs no fence.
    pub fn needs_no_fence(&mut self, actor: u32, tick: u32) {
        if self.after_sync.len() < self.seen.len() {
            self.after_sync.resize(self.seen.len(), 0);
        }
        if let Some(t) = self.after_sync.get_mut(actor as usize) {
            *t = (*t).max(tick);
        }
    }

    /// Starts a new tick of the actor itself, so that later accesses are told from released ones.
    pub fn advance(&mut self, actor: u32) {
        if let Some(t) = self.seen.get_mut(actor as usize) {
            *t += 1;
        }
    }
}

/// How an access takes part in race detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// A weak load.
    Read,
    /// A weak store.
    Write,
    /// An atomic, or a volatile, relaxed, acquire or release access that reads.
    StrongRead,
    /// The same that writes.
    StrongWrite,
}

/// Who accesses, and what it has seen.
#[derive(Clone, Copy)]
pub struct Actor<'c> {
    /// Index into the clocks.
    pub id: u32,
    /// The accessor's clock; its own entry is its tick.
    pub clock: &'c Clock,
    /// Instruction, for reports.
    pub pc: u32,
    /// What an order takes beside synchronisation.
    pub takes: Takes,
}

/// What orders an access after an earlier one, beside synchronisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing.
    Nothing,
    /// `fence.proxy.async`, of reads through the async proxy.
    ProxyFence,
    /// `tcgen05.fence::before_thread_sync` and `::after_thread_sync`, of tensor memory.
    TensorFences,
}

/// Two accesses without an order, or without the proxy fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The earlier actor.
    pub actor: u32,
    /// Its tick.
    pub tick: u32,
    /// The earlier instruction.
    pub pc: u32,
    /// The earlier access was a write.
    pub wrote: bool,
    /// Synchronised, but without the fence that it takes.
    pub unfenced: bool,
    /// Byte offset of the conflict.
    pub offset: u32,
}
