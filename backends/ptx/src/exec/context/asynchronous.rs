//! What the completion of an asynchronous operation does to memory and barriers.

use super::AsyncCx;
use crate::exec::findings::Check;
use crate::exec::race::{AccessKind, Actor, Takes};
use crate::exec::warp::{GroupKind, Warp};

/// Writes of one size that lie within 64 times that: the first address, the size, and which of the places from there on are written.
fn pieces(writes: &[(u64, u32)]) -> Option<(u64, u64, u64)> {
    let bytes = u64::from(writes.first()?.1);
    let first = writes.iter().map(|(at, _)| *at).min()?;
    writes.iter().try_fold((first, bytes, 0), |(first, bytes, there), &(at, size)| {
        let (place, rest) = ((at - first) / bytes, (at - first) % bytes);
        (u64::from(size) == bytes && rest == 0 && place < 64 && there >> place & 1 == 0)
            .then(|| (first, bytes, there | 1 << place))
    })
}

impl AsyncCx<'_> {
    fn actor(&self) -> Actor<'_> {
        let generic = self.actor < 2 * self.m.cluster.n_warps() as u32;
        Actor {
            id: self.actor,
            clock: &self.clock,
            pc: self.m.pc,
            takes: if generic { Takes::Nothing } else { Takes::ProxyFence },
        }
    }

    fn track(&mut self, rank: usize, offset: u64, bytes: u64, kind: AccessKind) {
        if self.m.cluster.n_actors == 0 {
            return;
        }
        let generic = self.actor < 2 * self.m.cluster.n_warps() as u32;
        let actor = Actor {
            id: self.actor,
            clock: &self.clock,
            pc: self.m.pc,
            takes: if generic { Takes::Nothing } else { Takes::ProxyFence },
        };
        self.m.track_shared(rank, offset, bytes, kind, Some(self.lane), actor);
    }

    /// Reads shared memory (address with rank), with bounds, race and proxy checks. `init` gets the written flag of
    /// each byte; without it, bytes that nobody wrote are a finding. False when the range does not exist.
    pub fn read_shared(&mut self, address: u64, out: &mut [u8], init: Option<&mut [bool]>) -> bool {
        let Some((rank, offset)) = self.m.shared_range(address, out.len() as u64, 1, false, Some(self.lane)) else {
            return false;
        };
        self.track(rank, offset, out.len() as u64, AccessKind::Read);
        let shared = &self.m.cluster.ctas[rank].shared;
        out.copy_from_slice(shared.bytes(offset as usize, out.len()));
        let holes = shared.holes(offset as usize, out.len());
        match init {
            Some(init) => init.iter_mut().zip(holes).for_each(|(written, h)| *written = *h == 0),
            None => {
                if let Some(at) = holes.iter().position(|h| *h != 0) {
                    let what = self.what;
                    self.m.report(Check::Uninitialized, Some(self.lane), || {
                        format!("{what} reads shared address {:#x}, which nobody wrote", address + at as u64)
                    });
                }
            }
        }
        true
    }

    /// 16 bytes of shared memory with a bit for each that nobody wrote; zeros when the address does not exist.
    pub fn read_unit(&mut self, address: u64) -> ([u8; 16], u16) {
        let Some((rank, offset)) = self.m.shared_range(address, 16, 1, false, Some(self.lane)) else {
            return ([0; 16], 0);
        };
        // Units side by side are one access, also when a swizzle has changed their order.
        match &mut self.reading {
            Some((of, start, bytes)) if *of == rank && *start + *bytes == offset => *bytes += 16,
            Some((of, start, bytes)) if *of == rank && *start == offset + 16 => {
                (*start, *bytes) = (offset, *bytes + 16)
            }
            _ => {
                self.track_units();
                self.reading = Some((rank, offset, 16));
            }
        }
        let shared = &self.m.cluster.ctas[rank].shared;
        let (mut bytes, mut holes) = ([0; 16], [0; 16]);
        bytes.copy_from_slice(shared.bytes(offset as usize, 16));
        holes.copy_from_slice(shared.holes(offset as usize, 16));
        let unwritten = if u128::from_le_bytes(holes) == 0 {
            0
        } else {
            holes.iter().enumerate().fold(0u16, |mask, (i, h)| mask | u16::from(*h != 0) << i)
        };
        (bytes, unwritten)
    }

    /// Records what [`read_unit`](AsyncCx::read_unit) has read last.
    pub(crate) fn track_units(&mut self) {
        if let Some((rank, offset, bytes)) = self.reading.take() {
            self.track(rank, offset, bytes, AccessKind::Read);
        }
    }

    /// Records writes of this operation to shared memory (addresses with rank), which lie in any order.
    pub(crate) fn track_writes(&mut self, writes: &mut [(u64, u32)]) {
        if self.m.cluster.n_actors == 0 {
            return;
        }
        // Rows of a tile whose pieces change places lie side by side.
        if let Some((first, bytes, mut there)) = pieces(writes) {
            let mut at = first;
            while there != 0 {
                let skipped = there.trailing_zeros();
                at += u64::from(skipped) * bytes;
                there >>= skipped;
                let run = there.trailing_ones();
                let (rank, offset) = crate::exec::context::split_shared(at);
                self.track(rank, offset, u64::from(run) * bytes, AccessKind::Write);
                at += u64::from(run) * bytes;
                there = there.checked_shr(run).unwrap_or(0);
            }
            return;
        }
        writes.sort_unstable();
        let mut writes = writes.iter().peekable();
        while let Some(&(start, bytes)) = writes.next() {
            let mut end = start + u64::from(bytes);
            while let Some((_, more)) = writes.next_if(|(at, _)| *at == end) {
                end += u64::from(*more);
            }
            let (rank, offset) = crate::exec::context::split_shared(start);
            self.track(rank, offset, end - start, AccessKind::Write);
        }
    }

    /// As [`write_shared`](AsyncCx::write_shared), of aligned bytes inside a CTA's memory that are tracked apart.
    pub(crate) fn write_tracked(&mut self, (rank, offset): (usize, u64), data: &[u8], init: Option<&[bool]>) {
        let shared = &mut self.m.cluster.ctas[rank].shared;
        shared.write(offset as usize, data);
        if let Some(init) = init {
            for (i, written) in init.iter().enumerate().filter(|(_, w)| !**w) {
                shared.set_initialized(offset as usize + i, 1, *written);
            }
        }
    }

    /// Writes shared memory (address with rank), with bounds and race checks. Without `init` all bytes count as written.
    pub fn write_shared(&mut self, address: u64, data: &[u8], init: Option<&[bool]>) -> bool {
        let Some((rank, offset)) = self.m.shared_range(address, data.len() as u64, 1, false, Some(self.lane)) else {
            return false;
        };
        self.track(rank, offset, data.len() as u64, AccessKind::Write);
        self.write_tracked((rank, offset), data, init);
        true
    }

    /// Reads global memory; counts traffic. As [`read_shared`](AsyncCx::read_shared) for `init`.
    pub fn read_global(&mut self, address: u64, out: &mut [u8], init: Option<&mut [bool]>) -> bool {
        let found = self.fetch_global(address, out, init);
        if found {
            self.m.count_global(address, out.len() as u64, false);
        }
        found
    }

    /// Reads global memory; the caller counts.
    pub fn fetch_global(&mut self, address: u64, out: &mut [u8], init: Option<&mut [bool]>) -> bool {
        let (lane, what) = (self.lane, self.what);
        let launch = self.m.launch;
        let Some(a) = launch.find(address, out.len() as u64) else {
            // The finding is made here.
            self.m.global_range(address, out.len() as u64, 1, Some(lane));
            return false;
        };
        let at = address - a.base;
        self.orders_read(a, at, out.len() as u64);
        let all = a.read(at, out);
        let mut hole = None;
        match init {
            Some(init) if all => init.fill(true),
            Some(init) => a.initialized(at, init),
            None if !all => {
                let mut flags = vec![false; out.len()];
                a.initialized(at, &mut flags);
                hole = flags.iter().position(|f| !f);
            }
            None => {}
        }
        if let Some(hole) = hole {
            self.m.report(Check::Uninitialized, Some(lane), || {
                format!("{what} reads global address {:#x}, which nobody wrote", address + hole as u64)
            });
        }
        true
    }

    /// Writes global memory; counts traffic.
    pub fn write_global(&mut self, address: u64, data: &[u8]) -> bool {
        let lane = self.lane;
        let launch = self.m.launch;
        let Some(a) = launch.find(address, data.len() as u64) else {
            // The finding is made here.
            self.m.global_range(address, data.len() as u64, 1, Some(lane));
            return false;
        };
        self.write_words(a, address - a.base, data);
        self.m.launch.run.has_changed();
        self.m.count_global(address, data.len() as u64, true);
        true
    }

    /// `complete_tx` of `bytes` on the mbarrier at a shared address (with rank).
    pub fn complete_tx(&mut self, mbarrier: u64, bytes: u32) {
        let clock = &self.clock;
        let outcome = self.m.mbarrier(mbarrier, Some(self.lane)).map(|b| {
            b.clock.join(clock);
            b.complete_tx(bytes)
        });
        if let Some(outcome) = outcome {
            self.m.mbarrier_outcome(outcome, mbarrier, Some(self.lane));
        }
    }

    /// Arrives `count` times on the mbarrier at a shared address (with rank).
    pub fn arrive(&mut self, mbarrier: u64, count: u32) {
        let clock = &self.clock;
        let outcome = self.m.mbarrier(mbarrier, Some(self.lane)).map(|b| {
            b.clock.join(clock);
            b.arrive(count)
        });
        if let Some(outcome) = outcome {
            self.m.mbarrier_outcome(outcome, mbarrier, Some(self.lane));
        }
    }

    /// The warp that issued the operation.
    pub fn warp(&mut self) -> Option<&mut Warp> {
        self.m.cluster.ctas[self.m.cta].warps[self.m.warp_index].as_deref_mut()
    }

    /// The operation has read its sources (`cp.async.bulk.wait_group.read`).
    pub fn group_read(&mut self, kind: GroupKind, id: u64) {
        if let Some(group) = self.warp().and_then(|w| w.groups(kind).get(id)) {
            group.reading = group.reading.saturating_sub(1);
        }
        self.m.cluster.wake();
    }

    /// The operation is complete; call after [`group_read`](AsyncCx::group_read).
    pub fn group_done(&mut self, kind: GroupKind, id: u64) {
        let warp = self.m.cluster.ctas[self.m.cta].warps[self.m.warp_index].as_deref_mut();
        if let Some(group) = warp.and_then(|w| w.groups(kind).get(id)) {
            group.pending = group.pending.saturating_sub(1);
            match &mut group.clock {
                Some(c) => c.join(&self.clock),
                None => group.clock = Some(self.clock.clone()),
            }
        }
        self.m.cluster.wake();
    }

    /// The instruction's actor, for callers that track accesses themselves.
    pub fn who(&self) -> Actor<'_> {
        self.actor()
    }
}
