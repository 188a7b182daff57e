//! What clusters of a grid tell each other through global memory.
//!
//! A release at a place appends what its warp has seen to the place's list; an acquire learns the list as it is then. So what a warp
//! knows of other clusters is, for each place, how many of its entries it has learned: a few numbers, however many clusters there are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};

use super::memory::shadow::Mark;
use super::race::Clock;

/// How many entries are known, by place; ascending places.
pub type Known = Vec<(u32, u32)>;

/// Numbers of all entries together beyond which no release is recorded any more, and nothing is called a race: 256 MiB.
const MOST: usize = 64 << 20;

/// Entries of an actor, and of its cluster, that are searched for an access.
const LATEST: usize = 64;

/// A place: its address, and 0 for all clusters or the number behind that of the only one that may read it.
pub(crate) type Place = (u64, u64);

/// The releases of a launch.
#[derive(Default)]
pub(crate) struct Released {
    any: AtomicBool,
    full: AtomicBool,
    places: RwLock<Places>,
}

#[derive(Default)]
struct Places {
    numbers: HashMap<Place, u32>,
    lists: Vec<List>,
    size: usize,
}

struct List {
    place: Place,
    entries: Vec<Entry>,
    by_cluster: HashMap<u64, Vec<u32>>,
    by_actor: HashMap<(u64, u32), Vec<u32>>,
}

struct Entry {
    cluster: u64,
    /// Who wrote, and its tick: an entry of a write without `.release` knows only what was fenced before it.
    by: (u32, u32),
    seen: Box<[u32]>,
    known: Known,
}

impl List {
    fn new(place: Place) -> List {
        List { place, entries: Vec::new(), by_cluster: HashMap::new(), by_actor: HashMap::new() }
    }

    /// Whether the first `n` entries tell of an access to the word of 8 bytes at `address`.
    fn tells_of(&self, n: u32, mark: Mark, address: u64) -> bool {
        let told = |e: &Entry| e.seen.get(mark.actor() as usize).is_some_and(|tick| *tick >= mark.tick());
        // A strong write that was observed is itself ordered: PTX's causality order holds observations.
        let here = mark.strong() && self.place.0 / 2 == address / 8;
        let observed = |e: &Entry| here && e.by == (mark.actor(), mark.tick());
        self.latest(n, self.by_actor.get(&(mark.cluster(), mark.actor()))).any(|e| told(e) || observed(e))
            || self.latest(n, self.by_cluster.get(&mark.cluster())).any(told)
    }

    /// The latest of the numbered entries that are among the first `n`.
    fn latest(&self, n: u32, numbers: Option<&Vec<u32>>) -> impl Iterator<Item = &Entry> {
        let numbers = numbers.map_or(&[][..], Vec::as_slice);
        let known = &numbers[..numbers.partition_point(|at| *at < n)];
        known.iter().rev().filter_map(|at| self.entries.get(*at as usize)).take(LATEST)
    }
}

/// Learns what `other` knows.
pub(crate) fn join(known: &mut Known, other: &[(u32, u32)]) {
    for &(place, n) in other {
        match known.binary_search_by_key(&place, |k| k.0) {
            Ok(i) => known[i].1 = known[i].1.max(n),
            Err(i) => known.insert(i, (place, n)),
        }
    }
}

impl Released {
    /// A warp of a cluster writes a place strongly and releases what it has seen and knows; `by` is its actor and tick.
    pub fn release(&self, place: Place, cluster: u64, by: (u32, u32), seen: &[u32], known: &Known) {
        if self.full.load(Relaxed) {
            return;
        }
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let Places { numbers, lists, size } = &mut *places;
        let number = *numbers.entry(place).or_insert_with(|| {
            lists.push(List::new(place));
            lists.len() as u32 - 1
        });
        let list = &mut lists[number as usize];
        let repeats = |e: &&mut Entry| e.cluster == cluster && e.by.0 == by.0 && *e.seen == *seen && e.known == *known;
        if let Some(last) = list.entries.last_mut().filter(repeats) {
            last.by = by;
            return;
        }
        *size += seen.len() + 2 * known.len() + 20;
        if *size > MOST {
            self.full.store(true, Relaxed);
            return;
        }
        let at = list.entries.len() as u32;
        list.by_cluster.entry(cluster).or_default().push(at);
        list.by_actor.entry((cluster, by.0)).or_default().push(at);
        list.entries.push(Entry { cluster, by, seen: seen.into(), known: known.clone() });
        self.any.store(true, Relaxed);
    }

    /// Teaches `clock`, of a warp of `cluster`, what was released at a place; with `own_only`, what its own cluster has.
    pub fn acquire(&self, place: Place, cluster: u64, clock: &mut Clock, own_only: bool) {
        if !self.any.load(Relaxed) {
            return;
        }
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        let Some(&number) = places.numbers.get(&place) else { return };
        let entries = &places.lists[number as usize].entries;
        let before = clock.known.iter().find(|k| k.0 == number).map_or(0, |k| k.1 as usize);
        for e in entries.iter().skip(before).filter(|e| !own_only || e.cluster == cluster) {
            if e.cluster == cluster {
                clock.seen.iter_mut().zip(&e.seen).for_each(|(a, b)| *a = (*a).max(*b));
            }
            join(&mut clock.known, &e.known);
        }
        if !own_only {
            join(&mut clock.known, &[(number, entries.len() as u32)]);
        }
    }

    /// Whether an access of another cluster to the word of 8 bytes at `address` came before, for one who knows this.
    pub fn has_seen(&self, known: &Known, mark: Mark, address: u64) -> bool {
        if self.full.load(Relaxed) {
            return true;
        }
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|&(place, n)| places.lists.get(place as usize).is_some_and(|l| l.tells_of(n, mark, address)))
    }
}

#[cfg(test)]
mod tests {
    use super::{Mark, Released};
    use crate::exec::race::Clock;

    fn clock() -> Clock {
        Clock::new(2)
    }

    fn mark(cluster: u64, tick: u32) -> Mark {
        Mark::new(cluster, 1, tick, 0, false).unwrap()
    }

    #[test]
    fn what_is_acquired_is_what_was_released_before() {
        let (released, mut b) = (Released::default(), clock());
        released.release((64, 0), 0, (1, 3), &[0, 3], &Vec::new());
        released.acquire((64, 0), 1, &mut b, false);
        released.release((64, 0), 0, (1, 4), &[0, 4], &Vec::new());
        assert!(released.has_seen(&b.known, mark(0, 3), 0) && !released.has_seen(&b.known, mark(0, 4), 0));
        assert!(!released.has_seen(&b.known, mark(2, 1), 0));
        released.acquire((64, 0), 1, &mut b, false);
        assert!(released.has_seen(&b.known, mark(0, 4), 0));
    }

    #[test]
    fn a_release_passes_on_what_was_acquired() {
        let (released, mut b, mut c) = (Released::default(), clock(), clock());
        released.release((64, 0), 0, (1, 3), &[0, 3], &Vec::new());
        released.acquire((64, 0), 1, &mut b, false);
        released.release((128, 0), 1, (0, 1), &b.seen, &b.known);
        released.acquire((128, 0), 2, &mut c, false);
        assert!(released.has_seen(&c.known, mark(0, 3), 0));
    }

    #[test]
    fn of_its_own_cluster_a_warp_learns_ticks() {
        let (released, mut b) = (Released::default(), clock());
        released.release((64, 0), 1, (0, 7), &[7, 0], &Vec::new());
        released.release((64, 0), 0, (1, 9), &[0, 9], &Vec::new());
        released.acquire((64, 0), 1, &mut b, true);
        assert!(b.seen == [7, 0] && b.known.is_empty());
    }

    /// A fence, then accesses, then a strong write without `.release`: the write is ordered for who has observed it, they are not.
    #[test]
    fn an_observed_write_is_ordered_itself() {
        let (released, mut b) = (Released::default(), clock());
        let strong = Mark::new(0, 1, 4, 0, true).unwrap();
        released.release((64, 0), 0, (1, 4), &[0, 3], &Vec::new());
        assert!(!released.has_seen(&b.known, strong, 64 * 4));
        released.acquire((64, 0), 1, &mut b, false);
        assert!(released.has_seen(&b.known, strong, 64 * 4));
        assert!(!released.has_seen(&b.known, strong, 65 * 8) && !released.has_seen(&b.known, mark(0, 4), 64 * 4));
    }

    #[test]
    fn many_releases_of_other_warps_hide_none() {
        let (released, mut b) = (Released::default(), clock());
        released.release((64, 0), 0, (1, 3), &[0, 3], &Vec::new());
        (1..200).for_each(|tick| released.release((64, 0), 0, (0, tick), &[tick, 0], &Vec::new()));
        released.acquire((64, 0), 1, &mut b, false);
        assert!(released.has_seen(&b.known, mark(0, 3), 0));
    }
}
