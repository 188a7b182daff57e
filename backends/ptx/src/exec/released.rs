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

#[derive(Default)]
struct List {
    entries: Vec<Entry>,
    by_cluster: HashMap<u64, Vec<u32>>,
}

struct Entry {
    cluster: u64,
    seen: Box<[u32]>,
    known: Known,
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
    /// A warp of a cluster releases what it has seen and knows.
    pub fn release(&self, place: Place, cluster: u64, seen: &[u32], known: &Known) {
        if self.full.load(Relaxed) {
            return;
        }
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let Places { numbers, lists, size } = &mut *places;
        let number = *numbers.entry(place).or_insert_with(|| {
            lists.push(List::default());
            lists.len() as u32 - 1
        });
        let list = &mut lists[number as usize];
        let repeats = |e: &Entry| e.cluster == cluster && *e.seen == *seen && e.known == *known;
        if list.entries.last().is_some_and(repeats) {
            return;
        }
        *size += seen.len() + 2 * known.len() + 16;
        if *size > MOST {
            self.full.store(true, Relaxed);
            return;
        }
        list.by_cluster.entry(cluster).or_default().push(list.entries.len() as u32);
        list.entries.push(Entry { cluster, seen: seen.into(), known: known.clone() });
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

    /// Whether an access of another cluster came before, for one who knows this.
    pub fn has_seen(&self, known: &Known, mark: Mark) -> bool {
        if self.full.load(Relaxed) {
            return true;
        }
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|&(place, n)| {
            let Some(list) = places.lists.get(place as usize) else { return false };
            let of_cluster = list.by_cluster.get(&mark.cluster()).map_or(&[][..], Vec::as_slice);
            let released =
                of_cluster.iter().rev().filter(|at| **at < n).filter_map(|at| list.entries.get(*at as usize));
            released.take(64).any(|e| e.seen.get(mark.actor() as usize).is_some_and(|tick| *tick >= mark.tick()))
        })
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
        released.release((64, 0), 0, &[0, 3], &Vec::new());
        released.acquire((64, 0), 1, &mut b, false);
        released.release((64, 0), 0, &[0, 4], &Vec::new());
        assert!(released.has_seen(&b.known, mark(0, 3)) && !released.has_seen(&b.known, mark(0, 4)));
        assert!(!released.has_seen(&b.known, mark(2, 1)));
        released.acquire((64, 0), 1, &mut b, false);
        assert!(released.has_seen(&b.known, mark(0, 4)));
    }

    #[test]
    fn a_release_passes_on_what_was_acquired() {
        let (released, mut b, mut c) = (Released::default(), clock(), clock());
        released.release((64, 0), 0, &[0, 3], &Vec::new());
        released.acquire((64, 0), 1, &mut b, false);
        released.release((128, 0), 1, &b.seen, &b.known);
        released.acquire((128, 0), 2, &mut c, false);
        assert!(released.has_seen(&c.known, mark(0, 3)));
    }

    #[test]
    fn of_its_own_cluster_a_warp_learns_ticks() {
        let (released, mut b) = (Released::default(), clock());
        released.release((64, 0), 1, &[7, 0], &Vec::new());
        released.release((64, 0), 0, &[0, 9], &Vec::new());
        released.acquire((64, 0), 1, &mut b, true);
        assert!(b.seen == [7, 0] && b.known.is_empty());
    }
}
