//! What is fixed for the whole of a launch.

use std::sync::atomic::AtomicU64;

use super::Options;
use super::heap::Heap;
use super::memory::global::{Allocation, DeviceMemory};
use super::program::{Lanes, Program};
use super::run::{Run, first_ctaid};

/// Grid, parameters, device memory, options of a running launch; shared by all host threads.
pub struct LaunchState<'a> {
    /// What it shares with the other launches of the run.
    pub(crate) run: &'a Run,
    /// The device.
    pub(crate) rank: u32,
    /// Launches before it on the device in this run.
    pub(crate) step: u32,
    /// Number of its first cluster among all of the run.
    pub(crate) first: u64,
    /// The kernel.
    pub program: &'a Program,
    /// Device memory.
    pub memory: &'a DeviceMemory,
    /// Checks, schedule, limits.
    pub options: &'a Options,
    /// CTAs in each dimension.
    pub grid: [u32; 3],
    /// Threads in each dimension.
    pub block: [u32; 3],
    /// CTAs of a cluster in each dimension.
    pub cluster: [u32; 3],
    /// Kernel parameters as laid out.
    pub params: Vec<u8>,
    pub(crate) constants: Vec<Lanes>,
    pub(crate) const_bank: Vec<u8>,
    /// Bytes of shared memory of each CTA, static and dynamic.
    pub shared_bytes: u32,
    /// Offset in the shared window at which dynamic shared memory starts.
    pub(crate) dynamic_start: u32,
    /// Next cluster that nobody has started (or cancelled).
    pub(crate) next_cluster: AtomicU64,
    pub(crate) n_clusters: u64,
    /// Whether accesses of different CTAs to global memory are compared.
    pub(crate) orders_global: bool,
    pub(crate) heap: Heap,
    /// Address of the device heap; 0 when the kernel has none.
    pub(crate) heap_base: u64,
}

impl<'a> LaunchState<'a> {
    /// The allocation that holds `bytes` at `address`, if the device sees it.
    #[inline]
    pub(crate) fn find(&self, address: u64, bytes: u64) -> Option<&'a Allocation> {
        self.memory.find_for(self.rank, address, bytes)
    }

    /// Whether an access leaves the device.
    pub(crate) fn is_far(&self, a: &Allocation) -> bool {
        self.run.has_ranks() && a.owner != self.rank
    }

    /// `%tid` of a thread by its number in the block.
    pub fn tid(&self, thread: u32) -> [u32; 3] {
        let [x, y, _] = self.block;
        [thread % x, thread / x % y, thread / x / y]
    }

    /// `malloc` in a kernel: an address, 0 when the heap is full.
    pub(crate) fn heap_alloc(&self, bytes: u64) -> u64 {
        self.heap.alloc(bytes).map_or(0, |offset| self.heap_base + offset)
    }

    /// `free` in a kernel; false when the address is no block's. What was there counts as unwritten.
    pub(crate) fn heap_free(&self, address: u64) -> bool {
        let Some(offset) = address.checked_sub(self.heap_base) else { return false };
        let Some(bytes) = self.heap.free(offset) else { return false };
        if let Some(a) = self.memory.find(self.heap_base, 1) {
            (offset / 8..(offset + bytes) / 8).for_each(|word| a.store_word(word as usize, 0xff, 0, false));
        }
        true
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// `%ctaid` of the first CTA of a cluster by its number in the grid.
    pub(crate) fn first_ctaid(&self, cluster: u64) -> [u32; 3] {
        first_ctaid(self.grid, self.cluster, cluster)
    }
}

impl LaunchState<'_> {
    /// Whether every cluster has been started (or cancelled).
    pub(crate) fn is_claimed(&self) -> bool {
        self.next_cluster.load(std::sync::atomic::Ordering::Relaxed) >= self.n_clusters
    }

    /// Takes the next cluster that nobody has started.
    pub(crate) fn claim(&self) -> Option<u64> {
        use std::sync::atomic::Ordering::Relaxed;
        let mut next = self.next_cluster.load(Relaxed);
        while next < self.n_clusters {
            match self.next_cluster.compare_exchange_weak(next, next + 1, Relaxed, Relaxed) {
                Ok(_) => return Some(next),
                Err(now) => next = now,
            }
        }
        None
    }
}
