//! The state of a cluster of CTAs that run together.

use std::collections::BTreeMap;

use super::mbarrier::Mbarrier;
use super::memory::shared::SharedMemory;
use super::queue::AsyncQueue;
use super::race::Clock;
use super::warp::Warp;

/// A CTA barrier (`bar`, ids 0 to 15).
#[derive(Clone, Debug, Default)]
pub(crate) struct Barrier {
    /// Completed generations.
    pub generation: u64,
    /// Threads that have arrived in this generation.
    pub arrived: u32,
    /// Threads that this generation needs; 0 for all threads of the CTA that have not left.
    pub expected: u32,
    /// `bar.red` accumulations: count, and, or.
    pub count: u32,
    pub all: bool,
    pub any: bool,
    /// The last generation's results.
    pub result: (u32, bool, bool),
    pub clock: Option<Clock>,
    pub released: Option<Clock>,
}

/// The barrier of a cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClusterBarrier {
    pub generation: u64,
    pub arrived: u32,
    pub clock: Option<Clock>,
    pub released: Option<Clock>,
}

/// One CTA.
pub struct Cta {
    /// `%ctaid`
    pub ctaid: [u32; 3],
    /// Shared memory.
    pub shared: SharedMemory,
    /// Mbarriers by address inside the window.
    pub(crate) mbarriers: BTreeMap<u32, Mbarrier>,
    pub(crate) barriers: Vec<Barrier>,
    pub(crate) warps: Vec<Option<Box<Warp>>>,
    /// Threads that have not left.
    pub(crate) live_threads: u32,
    pub(crate) live_warps: u32,
    /// Set when every warp has left.
    pub(crate) exited: bool,
    /// Tensor memory and what belongs to it.
    pub tensor: super::tensor::CtaTensor,
}

/// The CTAs of a cluster and what they share.
pub struct Cluster {
    /// Its number in the grid.
    pub(crate) index: u64,
    /// Its number among the clusters of all launches of the run.
    pub(crate) number: u64,
    /// CTAs by rank.
    pub ctas: Vec<Cta>,
    pub(crate) barrier: ClusterBarrier,
    pub(crate) asyncs: AsyncQueue,
    /// Counts everything that may let a blocked warp go on.
    pub(crate) events: u64,
    pub(crate) turns: u64,
    pub(crate) warps_per_cta: u32,
    /// Clock length: warps, their cp.async actors, and actors of the async proxy. 0 when nothing is tracked.
    pub(crate) n_actors: usize,
    /// Warp to start the next search for a runnable warp at.
    pub(crate) next_warp: usize,
    pub(crate) quantum_left: i64,
    pub(crate) failed_polls: u64,
    /// Tick of each actor that is no warp.
    pub(crate) ticks: Vec<u32>,
    /// Waits that gave up because nothing else could go on; a `try_wait` returns false when this has grown.
    pub(crate) timeouts: u64,
    /// Set when only barriers that do not ask for convergence can go on with some of a warp's lanes.
    pub(crate) loose: bool,
    /// Warp instructions left before another cluster gets its turn; waiting in loops uses it up faster.
    pub(crate) slice_left: i64,
    /// Strong loads and atomics of memory.
    pub(crate) polls: u64,
    /// Random state while the cluster is not running.
    pub(crate) random: u64,
    /// Consecutive times that nothing could go on without a timeout, and the event count then.
    pub(crate) stuck: (u32, u64),
}

/// Actors of the async proxy in each cluster's clocks.
pub(crate) const ASYNC_ACTORS: usize = 64;

impl Cluster {
    /// Says that something changed for which a warp may be waiting.
    pub fn wake(&mut self) {
        self.events += 1;
        self.failed_polls = 0;
    }

    /// The next tick of an asynchronous actor.
    pub(crate) fn next_tick(&mut self, actor: u32) -> u32 {
        match self.ticks.get_mut(actor as usize) {
            Some(t) => {
                *t += 1;
                *t
            }
            None => 0,
        }
    }

    /// Warps of the cluster.
    pub(crate) fn n_warps(&self) -> usize {
        self.ctas.len() * self.warps_per_cta as usize
    }

    /// Actor of a warp.
    pub fn warp_actor(&self, cta: usize, warp: usize) -> u32 {
        (cta * self.warps_per_cta as usize + warp) as u32
    }

    /// The actor under which a warp's `cp.async` write (generic proxy).
    pub fn cp_async_actor(&self, cta: usize, warp: usize) -> u32 {
        self.n_warps() as u32 + self.warp_actor(cta, warp)
    }

    /// An actor of the async proxy for a key (an mbarrier's address, a warp's bulk groups).
    pub fn proxy_actor(&self, key: u64) -> u32 {
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        2 * self.n_warps() as u32 + (hash % ASYNC_ACTORS as u64) as u32
    }

    /// Block and warp of an actor, for reports.
    pub(crate) fn actor_name(&self, actor: u32) -> String {
        let (n, per) = (self.n_warps() as u32, self.warps_per_cta.max(1));
        let block = |a: u32| {
            let [x, y, z] = self.ctas[(a / per) as usize].ctaid;
            format!("block {x},{y},{z} warp {}", a % per)
        };
        if actor < n {
            block(actor)
        } else if actor < 2 * n {
            format!("cp.async of {}", block(actor - n))
        } else {
            "an operation of the async proxy".to_owned()
        }
    }
}
