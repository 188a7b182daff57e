//! Races of CTAs in global memory.
//!
//! An access conflicts with one of another CTA to the same bytes, one of the two a write and not both strong, if no chain of
//! releases and acquires orders them: fences and accesses with `.release` and `.acquire`, of a scope that holds both CTAs, or barriers
//! and mbarriers of a cluster. Fences are cumulative: what is released is what the warp has seen.

use super::context::{AsyncCx, Cx, Machine};
use super::findings::Check;
use super::host_order::Write;
use super::memory::global::Allocation;
use super::memory::shadow::{Mark, Page};
use super::program::Lanes;
use super::race::Clock;
use super::released::{Audience, Earlier, Who};

/// Who is synchronised with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    #[default]
    Cta,
    Cluster,
    Gpu,
    /// All devices of a node.
    Sys,
}

/// What an access or a fence orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Order {
    pub acquire: bool,
    pub release: bool,
    /// Not weak.
    pub strong: bool,
    pub scope: Scope,
}

impl Order {
    /// Of the words of an instruction; `scope` where none is named.
    pub fn of(i: &crate::ast::Instruction, strong: bool, scope: Scope) -> Order {
        let mut order = Order { strong, scope, ..Order::default() };
        for word in &i.modifiers {
            match word.as_str() {
                "cta" => order.scope = Scope::Cta,
                "cluster" => order.scope = Scope::Cluster,
                "gpu" | "gl" => order.scope = Scope::Gpu,
                "sys" | "volatile" | "mmio" => order.scope = Scope::Sys,
                "acquire" => order.acquire = true,
                "release" => order.release = true,
                "acq_rel" | "sc" => (order.acquire, order.release) = (true, true),
                _ => {}
            }
        }
        order
    }
}

/// Who accesses global memory.
#[derive(Clone, Copy)]
struct By<'c> {
    actor: u32,
    clock: &'c Clock,
    lane: u32,
    mark: Option<Mark>,
}

impl Machine<'_> {
    fn by<'c>(&self, actor: u32, clock: &'c Clock, lane: u32, strong: bool) -> By<'c> {
        let tick = clock.seen.get(actor as usize).copied().unwrap_or(0);
        By { actor, clock, lane, mark: Mark::new(self.cluster.number, actor, tick, self.pc, strong) }
    }

    /// The rank of an actor's CTA; `None` for the async proxy of a cluster of several.
    fn rank_of(&self, actor: u32) -> Option<u32> {
        let (n, per) = (self.cluster.n_warps() as u32, self.cluster.warps_per_cta.max(1));
        if self.cluster.ctas.len() == 1 { Some(0) } else { (actor < 2 * n).then_some(actor % n / per) }
    }

    /// Whether an access was another CTA's and nothing orders it before this one.
    fn is_unordered(&self, old: Mark, address: u64, by: By<'_>) -> bool {
        if old.cluster() != self.cluster.number {
            let (rank, step) = self.launch.run.span(old.cluster()).map_or((0, 0), |s| (s.rank, s.step));
            // A kernel comes after those that ran before it on its device.
            let is_before = rank == self.launch.rank && step < self.launch.step;
            return !is_before
                && !self.launch.run.released.has_seen(&by.clock.known, Earlier { mark: old, rank, step, address });
        }
        let other_cta = self.rank_of(old.actor()).zip(self.rank_of(by.actor)).is_some_and(|(a, b)| a != b);
        let is_unseen = || by.clock.seen.get(old.actor() as usize).is_none_or(|tick| *tick < old.tick());
        // Another cluster may have passed on what it learned of this one.
        let (rank, step) = (self.launch.rank, self.launch.step);
        let earlier = Earlier { mark: old, rank, step, address };
        other_cta && is_unseen() && !self.launch.run.released.has_seen(&by.clock.known, earlier)
    }

    fn is_heap(&self, a: &Allocation) -> bool {
        // `malloc` and `free` order what they hand around.
        self.launch.heap_base != 0 && a.base == self.launch.heap_base
    }

    #[cold]
    fn report_race(&mut self, a: &Allocation, word: usize, bytes: u8, old: Mark, by: By<'_>, what: &str) {
        let address = a.base + 8 * word as u64 + u64::from(bytes.trailing_zeros());
        let who = self.name_of(old);
        self.report_beside(Check::Race, Some(by.lane), Some(who), || {
            format!("{what} at global address {address:#x}, without a release and an acquire between them")
        });
    }

    /// The first guess of a loop with `atom.cas` is read so, by CUDA's own headers too.
    #[cold]
    fn note_weak_read(&mut self, a: &Allocation, word: usize, bytes: u8, old: Mark, by: By<'_>) {
        let address = a.base + 8 * word as u64 + u64::from(bytes.trailing_zeros());
        let who = self.name_of(old);
        self.note_beside(Check::Race, Some(by.lane), Some(who), || {
            format!("a weak read of global address {address:#x}, which another CTA changes atomically; PTX calls that a race, machines give the old or the new value")
        });
    }

    /// Who made an access, and its instruction where that is one of this kernel.
    fn name_of(&self, mark: Mark) -> (String, Option<u32>) {
        if mark.cluster() == self.cluster.number {
            return (self.cluster.actor_name(mark.actor()), mark.pc());
        }
        let run = self.launch.run;
        let Some(span) = run.span(mark.cluster()) else { return (String::new(), None) };
        let name = span.name_of(mark.cluster(), mark.actor());
        if !run.has_ranks() {
            return (name, mark.pc());
        }
        let name = format!("rank {}, {name}", span.rank);
        if span.kernel == self.launch.program.entry {
            (name, mark.pc())
        } else {
            (format!("{name} of `{}`", span.kernel), None)
        }
    }

    fn word_is_read(&mut self, a: &Allocation, page: &Page, word: usize, bytes: u8, by: By<'_>) {
        let address = a.base + 8 * word as u64;
        let strong = by.mark.is_some_and(Mark::strong);
        if let Some(old) = page.writer(word)
            && old.bytes() & bytes != 0
            && !(strong && old.strong())
            && self.is_unordered(old, address, by)
        {
            if old.strong() {
                self.note_weak_read(a, word, old.bytes() & bytes, old, by);
            } else {
                self.report_race(a, word, old.bytes() & bytes, old, by, "reads what another CTA wrote");
            }
        }
        if !strong {
            page.read(word, by.mark.map(|m| m.of(bytes)));
        }
    }

    /// `value` is what will be written, where that is known.
    fn word_is_written(&mut self, a: &Allocation, word: usize, bytes: u8, value: Option<u64>, by: By<'_>) {
        let Some(page) = a.shadow.page_to_write(word, a.bytes.div_ceil(8) as usize) else { return };
        let (strong, address) = (by.mark.is_some_and(Mark::strong), a.base + 8 * word as u64);
        let (writer, reader) = (page.writer(word), page.reader(word));
        if let (Some(old), Some(mark)) = (writer, by.mark)
            && old.like(mark)
            && reader.is_none()
        {
            page.wrote(word, Some(mark.of(old.bytes() | bytes)));
            return;
        }
        let meets = |old: &Mark| old.bytes() & bytes != 0;
        let over = writer.filter(meets).filter(|old| !(strong && old.strong()) && self.is_unordered(*old, address, by));
        // A weak read of what is changed atomically is a note where the read comes later.
        let read = reader.filter(meets).filter(|old| !strong && self.is_unordered(*old, address, by));
        // Several may store the same value; one that changes nothing is no race. Whose it then is nobody knows.
        if let Some(value) = value.filter(|_| over.is_some() || read.is_some()) {
            self.launch.run.host_order.settle(self.worker.number, address);
            if a.holds(word, bytes, value) {
                page.wrote(word, None);
                return;
            }
        }
        if let Some(old) = over {
            self.report_race(a, word, old.bytes() & bytes, old, by, "writes over what another CTA wrote");
        }
        if let Some(old) = read {
            self.report_race(a, word, old.bytes() & bytes, old, by, "writes what another CTA reads");
        }
        page.wrote(word, by.mark.map(|m| m.of(bytes)));
    }

    fn range_is_read(&mut self, a: &Allocation, at: u64, bytes: u64, by: By<'_>) {
        for (word, bytes) in words(at, bytes) {
            if let Some(page) = a.shadow.page(word) {
                self.word_is_read(a, page, word, bytes, by);
            }
        }
    }
}

/// The words of a range, each with the bytes of it that are in the range.
fn words(at: u64, bytes: u64) -> impl Iterator<Item = (usize, u8)> {
    let end = at + bytes;
    (at / 8..end.div_ceil(8)).map(move |word| {
        let (first, last) = (at.saturating_sub(8 * word).min(8), (end - 8 * word).min(8));
        (word as usize, ((1u16 << last) - (1u16 << first)) as u8)
    })
}

impl<'a> Cx<'a> {
    /// Lanes read global memory, all of it in allocations that somebody has written in this launch.
    #[cold]
    pub(crate) fn read_lanes(&mut self, at: &Lanes, lanes: u32, bytes: u64, strong: bool) {
        let (launch, actor) = (self.m.launch, self.m.cluster.warp_actor(self.m.cta, self.m.warp_index));
        for l in super::access::lanes_of(lanes) {
            if let Some(a) = launch.find(at[l], bytes) {
                let by = self.m.by(actor, &self.warp.clock, l as u32, strong);
                self.m.range_is_read(a, at[l] - a.base, bytes, by);
            }
        }
    }

    /// Lanes write bytes of a word of global memory; the caller does so while it holds the result.
    #[inline]
    pub(crate) fn writes_global(
        &mut self,
        a: &Allocation,
        word: usize,
        bytes: u8,
        value: u64,
        lane: usize,
        strong: bool,
    ) -> Option<Write<'a>> {
        if !self.m.launch.orders_global || self.m.is_heap(a) {
            return None;
        }
        let (order, address) = (&self.m.launch.run.host_order, a.base + 8 * word as u64);
        let write = if strong {
            Write::Strong(order.strong(address))
        } else {
            Write::Weak(order.weak(self.m.worker.number, address, 8))
        };
        let actor = self.m.cluster.warp_actor(self.m.cta, self.m.warp_index);
        let by = self.m.by(actor, &self.warp.clock, lane as u32, strong);
        self.m.word_is_written(a, word, bytes, Some(value), by);
        Some(write)
    }

    /// A lane replaces bytes of global memory atomically; the caller does so while it holds the result.
    pub(crate) fn updates_global(&mut self, address: u64, bytes: u32, lane: usize) -> Option<Write<'a>> {
        let launch = self.m.launch;
        let a = launch.find(address, u64::from(bytes))?;
        if !self.m.launch.orders_global || self.m.is_heap(a) {
            return None;
        }
        let write = Write::Strong(self.m.launch.run.host_order.strong(address));
        let actor = self.m.cluster.warp_actor(self.m.cta, self.m.warp_index);
        let by = self.m.by(actor, &self.warp.clock, lane as u32, true);
        for (word, bytes) in words(address - a.base, u64::from(bytes)) {
            self.m.word_is_written(a, word, bytes, None, by);
        }
        Some(write)
    }

    /// Before a strong write of these lanes: releases what it is to release. What follows is a new tick once it is written.
    pub(crate) fn release_global(&mut self, order: Order, at: &Lanes, lanes: u32) {
        let (launch, cluster, clock) = (self.m.launch, self.m.cluster.number, &self.warp.clock);
        if !launch.orders_global || order.scope == Scope::Cta || lanes == 0 {
            return;
        }
        let (near, far) = (Audience::Rank(launch.rank), Audience::All(launch.rank));
        // Without `.release`, what the last fence has fenced, for those whom its scope holds too.
        let told: [(Audience, &[u32]); 2] = match (order.scope, order.release) {
            (Scope::Cta | Scope::Cluster, true) => [(Audience::Cluster(cluster), &clock.seen), (far, &[])],
            (Scope::Cta | Scope::Cluster, false) => [(Audience::Cluster(cluster), &clock.fenced), (far, &[])],
            (Scope::Gpu, true) => [(near, &clock.seen), (far, &[])],
            (Scope::Gpu, false) => [(near, &clock.fenced), (far, &[])],
            (Scope::Sys, true) => [(near, &[]), (far, &clock.seen)],
            (Scope::Sys, false) if launch.run.has_ranks() => [(near, &clock.fenced), (far, &clock.fenced_all)],
            (Scope::Sys, false) => [(near, &clock.fenced), (far, &[])],
        };
        let actor = self.m.cluster.warp_actor(self.m.cta, self.m.warp_index);
        let tick = clock.seen.get(actor as usize).copied().unwrap_or(0);
        let by = Who { cluster, rank: launch.rank, step: launch.step, actor, tick };
        for (audience, seen) in told.into_iter().filter(|(_, seen)| !seen.is_empty()) {
            for l in super::access::lanes_of(lanes) {
                launch.run.released.release((at[l] / 4, audience), by, seen, &clock.known);
            }
        }
    }

    /// After the strong write: what follows is not released.
    pub(crate) fn has_released_global(&mut self, order: Order, lanes: u32) {
        if self.m.launch.orders_global && order.scope != Scope::Cta && order.release && lanes != 0 {
            self.advance();
        }
    }

    /// After a strong read of these lanes: learns what was released there, at once or with the next fence.
    pub(crate) fn acquire_global(&mut self, order: Order, at: &Lanes, lanes: u32) {
        let (launch, cluster, n) = (self.m.launch, self.m.cluster.number, self.m.cluster.n_actors);
        if !launch.orders_global || order.scope == Scope::Cta {
            return;
        }
        let (released, rank) = (&launch.run.released, launch.rank);
        let own_only = order.scope == Scope::Cluster;
        let several = self.m.cluster.ctas.len() > 1;
        let clock = self.warp.observes(order.acquire, false, n);
        for l in super::access::lanes_of(lanes) {
            released.acquire((at[l] / 4, Audience::All(rank)), cluster, clock, own_only);
            released.acquire((at[l] / 4, Audience::Rank(rank)), cluster, clock, own_only);
            if several {
                released.acquire((at[l] / 4, Audience::Cluster(cluster)), cluster, clock, true);
            }
        }
        if !launch.run.has_ranks() || order.scope != Scope::Sys {
            return;
        }
        let clock = self.warp.observes(order.acquire, true, n);
        for l in super::access::lanes_of(lanes) {
            for of in released.ranks(at[l] / 4).into_iter().filter(|r| *r != rank) {
                released.acquire((at[l] / 4, Audience::All(of)), cluster, clock, false);
            }
        }
    }

    /// A fence: what was observed is acquired, and what is seen is released by the strong writes that follow.
    pub(crate) fn fence_global(&mut self, order: Order) {
        let alone = order.scope == Scope::Cluster && self.m.cluster.ctas.len() == 1;
        if !self.m.launch.orders_global || order.scope == Scope::Cta || alone {
            return;
        }
        // Of other devices only with the scope that holds them.
        let far = self.warp.observed_far.as_ref().filter(|_| order.scope == Scope::Sys);
        for observed in self.warp.observed.iter().chain(far).filter(|_| order.acquire) {
            self.warp.clock.join(observed);
        }
        if order.release {
            self.warp.clock.fenced = self.warp.clock.seen.clone();
            if order.scope == Scope::Sys && self.m.launch.run.has_ranks() {
                self.warp.clock.fenced_all = self.warp.clock.seen.clone();
            }
            // Later accesses are not fenced.
            self.advance();
        }
    }
}

impl<'a> AsyncCx<'a> {
    /// The operation reads global memory.
    #[inline]
    pub(crate) fn orders_read(&mut self, a: &Allocation, at: u64, bytes: u64) {
        if a.shadow.is_written() && self.m.launch.orders_global {
            let by = self.m.by(self.actor, &self.clock, self.lane, false);
            self.m.range_is_read(a, at, bytes, by);
        }
    }

    /// The operation changes global memory atomically, as a reduction. The caller does so while it holds the result.
    pub(crate) fn orders_update(&mut self, address: u64, bytes: u64) -> Option<Write<'a>> {
        let launch = self.m.launch;
        let a = launch.find(address, bytes).filter(|a| launch.orders_global && !self.m.is_heap(a))?;
        let write = launch.run.host_order.weak(self.m.worker.number, address, bytes);
        let by = self.m.by(self.actor, &self.clock, self.lane, true);
        for (word, bytes) in words(address - a.base, bytes) {
            self.m.word_is_written(a, word, bytes, None, by);
        }
        Some(Write::Weak(write))
    }

    /// The operation writes global memory. A word is marked and written before the next, so that CTAs that copy the same bytes to
    /// one place at once never meet each other's marks without their values.
    pub(crate) fn write_words(&mut self, a: &Allocation, at: u64, data: &[u8]) {
        let launch = self.m.launch;
        if !launch.orders_global || self.m.is_heap(a) {
            a.write(at, data);
            return;
        }
        let _write = launch.run.host_order.weak(self.m.worker.number, a.base + at, data.len() as u64);
        let by = self.m.by(self.actor, &self.clock, self.lane, false);
        let mut rest = data;
        for (word, bytes) in words(at, data.len() as u64) {
            let first = bytes.trailing_zeros() as usize;
            let (now, later) = rest.split_at(bytes.count_ones() as usize);
            let mut value = [0; 8];
            value[first..first + now.len()].copy_from_slice(now);
            let value = u64::from_le_bytes(value);
            self.m.word_is_written(a, word, bytes, Some(value), by);
            a.store_word(word, bytes, value, true);
            rest = later;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn ranges_are_cut_at_words() {
        assert_eq!(words(6, 4).collect::<Vec<_>>(), [(0, 0b1100_0000), (1, 0b11)]);
        assert_eq!(words(8, 8).collect::<Vec<_>>(), [(1, 0xff)]);
        assert_eq!(words(2, 2).collect::<Vec<_>>(), [(0, 0b1100)]);
    }
}
