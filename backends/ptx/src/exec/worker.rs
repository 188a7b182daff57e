//! What belongs to one host thread during a launch.

use std::collections::BTreeMap;

use super::context::Machine;
use super::counters::Counters;
use super::findings::{Check, Finding};

/// Findings, counters and random numbers of one host thread.
pub struct Worker {
    /// Of the host threads of the launch.
    pub(crate) number: usize,
    pub(crate) findings: BTreeMap<(u32, Check), Finding>,
    pub(crate) notes: BTreeMap<(u32, Check), Finding>,
    /// Counters that operations add to themselves.
    pub counters: Counters,
    pub(crate) printed: String,
    /// Executions and lanes of each instruction.
    pub(crate) executed: Vec<(u64, u64)>,
    pub(crate) async_issued: u64,
    /// Instructions not yet added to the launch's total.
    pub(crate) unreported: u64,
    pub(crate) random: u64,
    /// Warps of finished blocks, whose memory the next ones use.
    // Boxed as in a CTA, so that taking a warp out for its turn moves a pointer.
    #[allow(clippy::vec_box)]
    pub(crate) spare: Vec<Box<super::warp::Warp>>,
    /// Whether a note says that the kernel has no `tcgen05.fence`: once is enough.
    pub(crate) knows_no_fences: bool,
    /// Lists of finished `cp.async`, for the next ones.
    pub(crate) spare_copies: Vec<Vec<(u32, super::lower::LaneCopy)>>,
}

impl Worker {
    pub(crate) fn new(number: usize, n_instructions: usize, seed: u64) -> Worker {
        Worker {
            number,
            findings: BTreeMap::new(),
            notes: BTreeMap::new(),
            printed: String::new(),
            counters: Counters::default(),
            executed: vec![(0, 0); n_instructions],
            async_issued: 0,
            unreported: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            spare: Vec::new(),
            spare_copies: Vec::new(),
            knows_no_fences: false,
        }
    }

    /// Adds to what the kernel has printed, up to CUDA's default buffer of one megabyte.
    pub(crate) fn print(&mut self, text: &str) {
        if self.printed.len() + text.len() <= 1 << 20 {
            self.printed.push_str(text);
        }
    }

    /// The next random number (xorshift64*).
    pub fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

impl Machine<'_> {
    /// Counts a contiguous access to global memory that exists.
    pub fn count_global(&mut self, address: u64, bytes: u64, write: bool) {
        if !self.launch.options.counters || bytes == 0 {
            return;
        }
        let Some(a) = self.launch.find(address, bytes) else { return };
        let sectors = a.touch(address - a.base, bytes, write);
        let far = if self.launch.is_far(a) { bytes } else { 0 };
        let c = &mut self.worker.counters;
        *(if write { &mut c.far_store_bytes } else { &mut c.far_load_bytes }) += far;
        if write {
            c.global_store_bytes += bytes;
            c.global_store_sectors += sectors;
        } else {
            c.global_load_bytes += bytes;
            c.global_load_sectors += sectors;
        }
    }

    /// Counts bytes of a bulk or tensor copy.
    pub fn count_copy(&mut self, bytes: u64, into_shared: bool) {
        let c = &mut self.worker.counters;
        if into_shared {
            c.copy_in_bytes += bytes;
        } else {
            c.copy_out_bytes += bytes;
        }
    }
}
