//! What the launches of a run share: one launch of a device, or streams of launches of several devices (ranks) that run together.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::call::Schedule;
use super::host_order::HostOrder;
use super::released::Released;
use super::worker::Worker;

/// Warp instructions before a cluster makes room for another: long where clusters seldom wait for each other.
const SLICE: i64 = 2_000_000;
/// The same where several ranks run together, which mostly wait for each other.
const SLICE_OF_RANKS: i64 = 20_000;
/// The longest of random schedules of ranks.
const RANDOM_SLICE: u64 = 2_000;

/// The state of a run.
pub(crate) struct Run {
    /// Ranks that run together.
    pub n_ranks: u32,
    /// Warp instructions of all clusters.
    pub executed: AtomicU64,
    pub stop: AtomicBool,
    /// Grows whenever global memory changes, where several ranks run.
    pub changes: AtomicU64,
    /// Held by 128-bit atomics.
    pub wide: Mutex<()>,
    /// What keeps marks and memory in one order.
    pub host_order: HostOrder,
    /// What clusters have released to each other.
    pub released: Released,
    /// The launches, by the number of their first cluster.
    pub spans: Vec<Span>,
}

/// A launch in the numbering of all clusters of the run.
pub(crate) struct Span {
    /// Number of its first cluster.
    pub first: u64,
    pub rank: u32,
    /// Launches of the rank before it.
    pub step: u32,
    pub kernel: String,
    pub grid: [u32; 3],
    pub cluster: [u32; 3],
    pub warps_per_cta: u32,
}

impl Run {
    pub fn new(n_ranks: u32, host_threads: usize, spans: Vec<Span>) -> Run {
        Run {
            n_ranks,
            executed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            changes: AtomicU64::new(0),
            wide: Mutex::new(()),
            host_order: HostOrder::new(host_threads),
            released: Released::default(),
            spans,
        }
    }

    /// Global memory changes.
    #[inline]
    pub fn has_changed(&self) {
        if self.has_ranks() {
            self.changes.fetch_add(1, Relaxed);
        }
    }

    /// The launch of a cluster.
    pub fn span(&self, cluster: u64) -> Option<&Span> {
        self.spans.get(self.spans.partition_point(|s| s.first <= cluster).checked_sub(1)?)
    }

    /// Whether launches of several ranks run together.
    pub fn has_ranks(&self) -> bool {
        self.n_ranks > 1
    }

    /// Warp instructions of a slice.
    pub fn slice(&self, schedule: Schedule, worker: &mut Worker) -> i64 {
        match (self.has_ranks(), schedule) {
            (false, _) => SLICE,
            (true, Schedule::RoundRobin) => SLICE_OF_RANKS,
            (true, Schedule::Random(_)) => 1 + (worker.random() % RANDOM_SLICE) as i64,
        }
    }
}

impl Span {
    /// Block and warp of an actor of a cluster of the launch.
    pub fn name_of(&self, cluster: u64, actor: u32) -> String {
        let per = self.warps_per_cta.max(1);
        let n = self.cluster.iter().product::<u32>() * per;
        let first = first_ctaid(self.grid, self.cluster, cluster - self.first);
        let block = |actor: u32| {
            let [cx, cy, _] = self.cluster;
            let rank = actor / per;
            let inside = [rank % cx, rank / cx % cy, rank / cx / cy];
            let [x, y, z] = [0, 1, 2].map(|d| first[d] + inside[d]);
            format!("block {x},{y},{z} warp {}", actor % per)
        };
        match actor {
            actor if actor < n => block(actor),
            actor if actor < 2 * n => format!("cp.async of {}", block(actor - n)),
            _ => {
                let [x, y, z] = first;
                format!("an operation of the async proxy of block {x},{y},{z}")
            }
        }
    }
}

/// `%ctaid` of the first CTA of a cluster by its number in the grid.
pub(crate) fn first_ctaid(grid: [u32; 3], cluster: [u32; 3], number: u64) -> [u32; 3] {
    let n = |d: usize| u64::from(grid[d] / cluster[d]);
    let at = [number % n(0), number / n(0) % n(1), number / n(0) / n(1)];
    [0, 1, 2].map(|d| at[d] as u32 * cluster[d])
}
