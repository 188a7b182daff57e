//! Vector clocks, and what an access says of itself for the detection of races.
//!
//! Every warp of a cluster is an actor with a tick that grows when it releases (barrier, mbarrier arrival, release
//! fence). Asynchronous operations act under actors of their own, so that data which nobody waited for is not ordered
//! before its reader. An access is ordered after an earlier one if the accessor's clock has seen the earlier actor's
//! tick (the FastTrack rule, Flanagan and Freund 2009). A generic-proxy write is visible to the async proxy once a
//! `fence.proxy.async` on the causality path has copied what its warp has seen into `proxied`.

/// What an actor knows of the others.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Tick of each actor whose accesses happened before.
    pub seen: Vec<u32>,
    /// Tick of each actor whose generic-proxy accesses are visible to the async proxy.
    pub proxied: Vec<u32>,
}

impl Clock {
    /// The clock that has seen nothing of `n` actors.
    pub fn new(n: usize) -> Clock {
        Clock { seen: vec![0; n], proxied: vec![0; n] }
    }

    /// Learns what `other` knows.
    pub fn join(&mut self, other: &Clock) {
        for (a, b) in self.seen.iter_mut().zip(&other.seen) {
            *a = (*a).max(*b);
        }
        for (a, b) in self.proxied.iter_mut().zip(&other.proxied) {
            *a = (*a).max(*b);
        }
    }

    /// `fence.proxy.async`: everything seen becomes visible to the async proxy.
    pub fn fence_proxy(&mut self) {
        self.proxied.copy_from_slice(&self.seen);
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
    /// Reads through the async proxy.
    pub async_proxy: bool,
}

/// Two accesses without an order, or without the proxy fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The earlier actor.
    pub actor: u32,
    /// The earlier instruction.
    pub pc: u32,
    /// The earlier access was a write.
    pub wrote: bool,
    /// Ordered, but the async proxy may not see it.
    pub proxy_only: bool,
    /// Byte offset of the conflict.
    pub offset: u32,
}
