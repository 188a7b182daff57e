//! What clusters of a grid tell each other through global memory.
//!
//! A release at a place appends what its warp has seen to the place's list; an acquire learns the list as it is then. So what a warp
//! knows of other clusters is, for each place, how many of its entries it has learned: a few numbers, however many clusters there are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};

use super::known::Known;
use super::memory::shadow::Mark;
use super::race::Clock;

/// Numbers of all entries together beyond which no release is recorded any more, and nothing is called a race: 256 MiB.
const MOST: usize = 64 << 20;

/// Entries of an actor, and of its cluster, that are searched for an access.
const LATEST: usize = 64;

/// A place: its address in words of 4 bytes, and who may learn what is released there.
pub(crate) type Place = (u64, Audience);

/// Who may learn what is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Audience {
    /// The cluster that released.
    Cluster(u64),
    /// The device that released.
    Rank(u32),
    /// Everybody; the device that released tells the lists apart.
    All(u32),
}

/// Who releases.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Who {
    /// Number of the cluster in the run.
    pub cluster: u64,
    /// Device, and launches before on it.
    pub rank: u32,
    pub step: u32,
    /// Actor of the cluster, and its tick.
    pub actor: u32,
    pub tick: u32,
}

/// An earlier access, and where it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Earlier {
    pub mark: Mark,
    /// Its device, and launches before on it.
    pub rank: u32,
    pub step: u32,
    /// Address of the word of 8 bytes.
    pub address: u64,
}

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
    /// The devices that have released to all at an address.
    ranks: HashMap<u64, Vec<u32>>,
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
    /// Its tick is of the write: an entry of one without `.release` knows only what was fenced before it.
    by: Who,
    seen: Box<[u32]>,
    known: Known,
}

impl List {
    fn new(place: Place) -> List {
        List { place, entries: Vec::new(), by_cluster: HashMap::new(), by_actor: HashMap::new() }
    }

    /// Whether the first `n` entries tell of an access.
    fn tells_of(&self, n: u32, Earlier { mark, address, .. }: Earlier) -> bool {
        let told = |e: &Entry| e.seen.get(mark.actor() as usize).is_some_and(|tick| *tick >= mark.tick());
        // A strong write that was observed is itself ordered: PTX's causality order holds observations.
        let here = mark.strong() && self.place.0 / 2 == address / 8;
        let observed = |e: &Entry| here && (e.by.actor, e.by.tick) == (mark.actor(), mark.tick());
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

impl Released {
    /// A warp writes a place strongly and releases what it has seen and knows.
    pub fn release(&self, place: Place, by: Who, seen: &[u32], known: &Known) {
        if self.full.load(Relaxed) {
            return;
        }
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let Places { numbers, ranks, lists, size } = &mut *places;
        let number = *numbers.entry(place).or_insert_with(|| {
            lists.push(List::new(place));
            if let Audience::All(rank) = place.1 {
                ranks.entry(place.0).or_default().push(rank);
            }
            lists.len() as u32 - 1
        });
        let list = &mut lists[number as usize];
        let repeats = |e: &&mut Entry| {
            (e.by.cluster, e.by.actor) == (by.cluster, by.actor) && *e.seen == *seen && e.known == *known
        };
        if let Some(last) = list.entries.last_mut().filter(repeats) {
            last.by = by;
            return;
        }
        *size += seen.len() + known.size() + 24;
        if *size > MOST {
            self.full.store(true, Relaxed);
            return;
        }
        let at = list.entries.len() as u32;
        list.by_cluster.entry(by.cluster).or_default().push(at);
        list.by_actor.entry((by.cluster, by.actor)).or_default().push(at);
        list.entries.push(Entry { by, seen: seen.into(), known: known.clone() });
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
        let before = clock.known.entries(number) as usize;
        for e in entries.iter().skip(before).filter(|e| !own_only || e.by.cluster == cluster) {
            if e.by.cluster == cluster {
                clock.seen.iter_mut().zip(&e.seen).for_each(|(a, b)| *a = (*a).max(*b));
            }
            clock.known.join(&e.known);
            // A kernel comes after those that ran before it on its device.
            clock.known.learn_launches(e.by.rank, e.by.step);
        }
        if !own_only {
            clock.known.learn(number, entries.len() as u32);
        }
        if clock.known.is_long() {
            places.prune(&mut clock.known);
        }
    }

    /// The devices that have released to all at an address.
    pub fn ranks(&self, address: u64) -> Vec<u32> {
        if !self.any.load(Relaxed) {
            return Vec::new();
        }
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        places.ranks.get(&address).cloned().unwrap_or_default()
    }

    /// Whether an access of another cluster came before, for one who knows this.
    pub fn has_seen(&self, known: &Known, earlier: Earlier) -> bool {
        if self.full.load(Relaxed) {
            return true;
        }
        if known.launches(earlier.rank) > earlier.step {
            return true;
        }
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        let tells =
            |(place, n): &(u32, u32)| places.lists.get(*place as usize).is_some_and(|l| l.tells_of(*n, earlier));
        known.places().iter().any(tells)
    }

    /// Drops what launches that are over make needless.
    pub fn prune(&self, known: &mut Known) {
        self.places.read().unwrap_or_else(PoisonError::into_inner).prune(known);
    }
}

impl Places {
    /// A place's entries are of one rank, in the order of its launches: when the launch of the last known one is over, nothing of them
    /// is needed.
    fn prune(&self, known: &mut Known) {
        known.prune(|known, place, n| {
            let last = self.lists.get(place as usize).and_then(|l| l.entries.get((n as usize).checked_sub(1)?));
            last.is_some_and(|e| known.launches(e.by.rank) > e.by.step)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{Audience, Earlier, Known, Mark, Place, Released, Who};
    use crate::exec::race::Clock;

    fn clock() -> Clock {
        Clock::new(2)
    }

    fn mark(cluster: u64, tick: u32) -> Mark {
        Mark::new(cluster, 1, tick, 0, false).unwrap()
    }

    fn all(address: u64) -> Place {
        (address, Audience::All(0))
    }

    fn who(cluster: u64, actor: u32, tick: u32) -> Who {
        Who { cluster, actor, tick, ..Who::default() }
    }

    fn earlier(mark: Mark, address: u64) -> Earlier {
        Earlier { mark, rank: 0, step: 0, address }
    }

    #[test]
    fn what_is_acquired_is_what_was_released_before() {
        let (released, mut b) = (Released::default(), clock());
        released.release(all(64), who(0, 1, 3), &[0, 3], &Known::default());
        released.acquire(all(64), 1, &mut b, false);
        released.release(all(64), who(0, 1, 4), &[0, 4], &Known::default());
        assert!(
            released.has_seen(&b.known, earlier(mark(0, 3), 0)) && !released.has_seen(&b.known, earlier(mark(0, 4), 0))
        );
        assert!(!released.has_seen(&b.known, earlier(mark(2, 1), 0)));
        released.acquire(all(64), 1, &mut b, false);
        assert!(released.has_seen(&b.known, earlier(mark(0, 4), 0)));
    }

    #[test]
    fn a_release_passes_on_what_was_acquired() {
        let (released, mut b, mut c) = (Released::default(), clock(), clock());
        released.release(all(64), who(0, 1, 3), &[0, 3], &Known::default());
        released.acquire(all(64), 1, &mut b, false);
        released.release(all(128), who(1, 0, 1), &b.seen, &b.known);
        released.acquire(all(128), 2, &mut c, false);
        assert!(released.has_seen(&c.known, earlier(mark(0, 3), 0)));
    }

    #[test]
    fn of_its_own_cluster_a_warp_learns_ticks() {
        let (released, mut b) = (Released::default(), clock());
        released.release(all(64), who(1, 0, 7), &[7, 0], &Known::default());
        released.release(all(64), who(0, 1, 9), &[0, 9], &Known::default());
        released.acquire(all(64), 1, &mut b, true);
        assert!(b.seen == [7, 0] && b.known.is_empty());
    }

    /// A fence, then accesses, then a strong write without `.release`: the write is ordered for who has observed it, they are not.
    /// Two ranks: of a launch that is over everything is known.
    #[test]
    fn kernels_run_one_after_the_other() {
        let (released, mut b) = (Released::default(), clock());
        let of = |step| Who { cluster: u64::from(step), rank: 1, step, actor: 0, tick: 1 };
        let earlier = |step| Earlier { rank: 1, step, ..earlier(mark(u64::from(step), 9), 0) };
        released.release((64, Audience::All(1)), of(4), &[1, 0], &Known::default());
        released.acquire((64, Audience::All(1)), 100, &mut b, false);
        assert!(released.has_seen(&b.known, earlier(3)) && !released.has_seen(&b.known, earlier(4)));
        released.release((65, Audience::All(1)), of(5), &[1, 0], &Known::default());
        released.acquire((65, Audience::All(1)), 100, &mut b, false);
        released.prune(&mut b.known);
        assert!(b.known.places().len() == 1 && released.has_seen(&b.known, earlier(4)));
    }

    #[test]
    fn an_observed_write_is_ordered_itself() {
        let (released, mut b) = (Released::default(), clock());
        let strong = Mark::new(0, 1, 4, 0, true).unwrap();
        released.release(all(64), who(0, 1, 4), &[0, 3], &Known::default());
        assert!(!released.has_seen(&b.known, earlier(strong, 64 * 4)));
        released.acquire(all(64), 1, &mut b, false);
        assert!(released.has_seen(&b.known, earlier(strong, 64 * 4)));
        assert!(
            !released.has_seen(&b.known, earlier(strong, 65 * 8))
                && !released.has_seen(&b.known, earlier(mark(0, 4), 64 * 4))
        );
    }

    #[test]
    fn many_releases_of_other_warps_hide_none() {
        let (released, mut b) = (Released::default(), clock());
        released.release(all(64), who(0, 1, 3), &[0, 3], &Known::default());
        (1..200).for_each(|tick| released.release(all(64), who(0, 0, tick), &[tick, 0], &Known::default()));
        released.acquire(all(64), 1, &mut b, false);
        assert!(released.has_seen(&b.known, earlier(mark(0, 3), 0)));
    }
}
