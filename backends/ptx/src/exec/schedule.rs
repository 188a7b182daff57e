//! Runs clusters on host threads: those of the launches that are first in their rank's stream, in turns.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use super::call::Schedule;
use super::cluster::Cluster;
use super::error::ExecError;
use super::known::Known;
use super::launch::LaunchState;
use super::program::WARP;
use super::run::Run;
use super::start::{retire, start};
use super::turn::{run_cluster, state};
use super::worker::Worker;

/// Clusters that may have started at once, and the bytes of host memory that they may take.
const RESIDENT: usize = 256;
const RESIDENT_BYTES: usize = 2 << 30;
/// Clusters of each rank of several that run together in any case: GPUs do not wait for each other's room.
const RESIDENT_OF_RANK: usize = 4;
/// Polls of global memory by every cluster without any change, in shared or in global memory, after which ranks count as deadlocked.
const QUIET_POLLS: u64 = 20_000;

/// Most slices for which a rank runs ahead in random schedules.
const BURST: usize = 64;

/// The launches of a rank, one after the other.
pub(crate) type Stream<'a> = Vec<LaunchState<'a>>;

/// What the host threads collected, by rank and launch.
pub(crate) type Workers = BTreeMap<(usize, usize), Worker>;

/// A cluster that has started.
struct Started {
    rank: usize,
    step: usize,
    cluster: Cluster,
    /// Polls since something changed.
    quiet: u64,
}

/// What a host thread does next.
enum Next {
    /// Starts a cluster of a rank's launch.
    Start(usize, usize, u64),
    GoOn(Box<Started>),
}

/// How far a rank's stream is.
#[derive(Default)]
struct Progress {
    step: usize,
    resident: usize,
    /// What the launches before the current one knew of other clusters, and what the current one's clusters knew at their end.
    known: Known,
    gathered: Known,
}

/// Clusters that have started and wait for a host thread, and what is to come.
struct Waiting {
    // Boxed, so that what is passed around is a pointer.
    suspended: VecDeque<Box<Started>>,
    ranks: Vec<Progress>,
    /// The rank that may start a cluster next.
    next_rank: usize,
    most: usize,
    /// Clusters of those resident that have polled for long.
    quiet: usize,
    /// Slices begun, and which one each host thread is at.
    begun: u64,
    running: Vec<Option<u64>>,
    /// Slices that had begun when every cluster was quiet for the first time.
    stuck_since: Option<u64>,
    /// Of random schedules.
    seed: Option<u64>,
    /// Slices for which `next_rank` still runs ahead.
    burst: usize,
    failed: Option<ExecError>,
}

impl Waiting {
    fn resident(&self) -> usize {
        self.ranks.iter().map(|r| r.resident).sum()
    }

    /// A cluster of the rank to start.
    fn claim_of(&mut self, streams: &[Stream<'_>], rank: usize) -> Option<Next> {
        let at = &mut self.ranks[rank];
        let index = streams[rank].get(at.step).filter(|_| at.resident < self.most).and_then(LaunchState::claim)?;
        at.resident += 1;
        Some(Next::Start(rank, at.step, index))
    }

    /// What to run: ranks start clusters in turn, then those that wait go on in turn.
    fn next_in_turn(&mut self, streams: &[Stream<'_>]) -> Option<Next> {
        let n = streams.len();
        let first = self.next_rank;
        for rank in (0..n).map(|i| (first + i) % n) {
            if let Some(next) = self.claim_of(streams, rank) {
                self.next_rank = (rank + 1) % n;
                return Some(next);
            }
        }
        self.suspended.pop_front().map(Next::GoOn)
    }

    /// What to run: one rank runs ahead of the others until it only waits, or for some slices. So a wait that is missing shows.
    fn next_at_random(&mut self, streams: &[Stream<'_>], seed: &mut u64) -> Option<Next> {
        let mut random = |n: usize| {
            *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (*seed >> 33) as usize % n.max(1)
        };
        let n = streams.len();
        if self.burst == 0 {
            (self.next_rank, self.burst) = (random(n), 1 + random(BURST));
        }
        self.burst -= 1;
        let first = self.next_rank;
        for rank in (0..n).map(|i| (first + i) % n) {
            let starts_first = random(2) == 0;
            if starts_first && let Some(next) = self.claim_of(streams, rank) {
                return Some(next);
            }
            let of_rank: Vec<usize> = (0..self.suspended.len()).filter(|i| self.suspended[*i].rank == rank).collect();
            if !of_rank.is_empty() {
                return self.suspended.remove(of_rank[random(of_rank.len())]).map(Next::GoOn);
            }
            if let Some(next) = self.claim_of(streams, rank) {
                return Some(next);
            }
        }
        None
    }

    fn next(&mut self, run: &Run, streams: &[Stream<'_>]) -> Option<Next> {
        match self.seed {
            Some(mut seed) if run.has_ranks() => {
                let next = self.next_at_random(streams, &mut seed);
                self.seed = Some(seed);
                next
            }
            _ => self.next_in_turn(streams),
        }
    }

    /// A host thread takes what it does next.
    fn take(&mut self, run: &Run, streams: &[Stream<'_>], thread: usize) -> Option<Next> {
        let next = self.next(run, streams);
        self.begun += u64::from(next.is_some());
        self.running[thread] = next.is_some().then_some(self.begun);
        next
    }

    /// Whether every cluster has polled for long, those too that host threads are at, and none can start.
    fn is_stuck(&mut self, streams: &[Stream<'_>]) -> bool {
        let starts = |(at, s): (&Progress, &Stream<'_>)| {
            at.resident < self.most && s.get(at.step).is_some_and(|l| !l.is_claimed())
        };
        if self.quiet < self.resident() || self.ranks.iter().zip(streams).any(starts) {
            self.stuck_since = None;
            return false;
        }
        let since = *self.stuck_since.get_or_insert(self.begun);
        self.running.iter().flatten().all(|begun| *begun > since)
    }

    /// Whether clusters of a launch that has begun wait for room.
    fn has_more(&self, streams: &[Stream<'_>]) -> bool {
        self.ranks.iter().zip(streams).any(|(at, s)| s.get(at.step).is_some_and(|l| !l.is_claimed()))
    }

    /// A cluster has left: the rank's next launch may start when all have.
    fn leave(&mut self, run: &Run, streams: &[Stream<'_>], rank: usize, cluster: &Cluster) {
        let at = &mut self.ranks[rank];
        at.resident -= 1;
        self.stuck_since = None;
        run.changes.fetch_add(1, Relaxed);
        for warp in cluster.ctas.iter().flat_map(|c| &c.warps).flatten() {
            at.gathered.join(&warp.clock.known);
        }
        if at.resident == 0 && streams[rank].get(at.step).is_some_and(LaunchState::is_claimed) {
            at.step += 1;
            let gathered = std::mem::take(&mut at.gathered);
            at.known.join(&gathered);
            at.known.learn_launches(rank as u32, at.step as u32);
            run.released.prune(&mut at.known);
        }
    }

    /// Where every cluster stands.
    fn state(&self, streams: &[Stream<'_>]) -> String {
        let mut out = String::new();
        let mut suspended: Vec<&Started> = self.suspended.iter().map(Box::as_ref).collect();
        suspended.sort_by_key(|s| (s.rank, s.cluster.index));
        for s in suspended {
            let launch = &streams[s.rank][s.step];
            // Writing to a string cannot fail.
            let _ = writeln!(out, "rank {}, `{}`:", s.rank, launch.program.entry);
            out.push_str(&state(launch, &s.cluster));
            if out.len() > 32 << 10 {
                out.push_str("  …\n");
                break;
            }
        }
        out
    }
}

/// Runs every cluster of the launches of all ranks; gives what the host threads collected.
pub(crate) fn run(run: &Run, streams: &[Stream<'_>], threads: usize) -> Result<Vec<Workers>, ExecError> {
    let launches = || streams.iter().flatten();
    let bytes = launches().map(cluster_bytes).max().unwrap_or(1);
    let room = (RESIDENT_BYTES / bytes).clamp(1, RESIDENT);
    let most = if run.has_ranks() { (room / streams.len()).max(RESIDENT_OF_RANK) } else { room };
    let seed = launches().find_map(|l| match l.options.schedule {
        Schedule::Random(seed) => Some(seed),
        Schedule::RoundRobin => None,
    });
    let clusters = usize::try_from(launches().map(|l| l.n_clusters).sum::<u64>()).unwrap_or(usize::MAX);
    let threads = threads.min(most * streams.len()).clamp(1, clusters.max(1));
    let shared = Mutex::new(Waiting {
        suspended: VecDeque::new(),
        ranks: streams.iter().map(|_| Progress::default()).collect(),
        next_rank: 0,
        most,
        quiet: 0,
        begun: 0,
        running: vec![None; threads],
        stuck_since: None,
        seed,
        burst: 0,
        failed: None,
    });
    let workers: Vec<Workers> = if threads == 1 {
        vec![work(run, streams, &shared, 0)]
    } else {
        std::thread::scope(|scope| {
            let shared = &shared;
            let handles: Vec<_> = (0..threads).map(|n| scope.spawn(move || work(run, streams, shared, n))).collect();
            handles
                .into_iter()
                .map(|h| match h.join() {
                    Ok(w) => w,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        })
    };
    match shared.into_inner().unwrap_or_else(PoisonError::into_inner).failed {
        Some(e) => Err(e),
        None => Ok(workers),
    }
}

/// Host memory of a running cluster, roughly.
fn cluster_bytes(launch: &LaunchState<'_>) -> usize {
    let size: usize = launch.cluster.iter().product::<u32>() as usize;
    let warps = launch.threads().div_ceil(WARP as u32) as usize;
    let frame = launch.program.functions.first().map_or(0, |f| f.frame_bytes).max(16).next_power_of_two() as usize;
    // Shared memory has a flag a byte and 24 bytes of history a word.
    size * (warps * (launch.program.n_slots as usize * 260 + frame * 2 * WARP)
        + launch.shared_bytes as usize * 8
        + 4096)
}

fn work(run: &Run, streams: &[Stream<'_>], shared: &Mutex<Waiting>, number: usize) -> Workers {
    let mut workers = Workers::new();
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if run.stop.load(Relaxed) {
            return workers;
        }
        let mut waiting = lock();
        let (mut now, fresh) = match waiting.take(run, streams, number) {
            Some(Next::Start(rank, step, index)) => {
                let known = waiting.ranks[rank].known.clone();
                drop(waiting);
                let launch = &streams[rank][step];
                let worker = worker_of(&mut workers, launch, (rank, step), number);
                (Box::new(Started { rank, step, cluster: start(launch, worker, index, &known), quiet: 0 }), true)
            }
            Some(Next::GoOn(started)) => {
                drop(waiting);
                (started, false)
            }
            None => {
                let idle = waiting.resident() == 0;
                drop(waiting);
                if idle {
                    return workers;
                }
                // The last clusters run elsewhere; one of them may still be suspended and passed on.
                std::thread::yield_now();
                std::thread::sleep(std::time::Duration::from_micros(50));
                continue;
            }
        };
        let launch = &streams[now.rank][now.step];
        let worker = worker_of(&mut workers, launch, (now.rank, now.step), number);
        worker.random = now.cluster.random;
        now.cluster.slice_left = run.slice(launch.options.schedule, worker);
        let (before, polls) = ((run.changes.load(Relaxed), now.cluster.events), now.cluster.polls);
        let outcome = run_cluster(launch, worker, &mut now.cluster);
        now.cluster.random = worker.random;
        let is_quiet = !fresh && before == (run.changes.load(Relaxed), now.cluster.events);
        let mut waiting = lock();
        waiting.running[number] = None;
        let was_quiet = now.quiet >= QUIET_POLLS;
        match outcome {
            Ok(true) => {
                waiting.quiet -= usize::from(was_quiet);
                waiting.leave(run, streams, now.rank, &now.cluster);
                drop(waiting);
                retire(worker, now.cluster);
            }
            Ok(false) => {
                now.quiet = if is_quiet { now.quiet + (now.cluster.polls - polls) } else { 0 };
                waiting.burst /= if is_quiet { 2 } else { 1 };
                waiting.quiet += usize::from(now.quiet >= QUIET_POLLS);
                waiting.quiet -= usize::from(was_quiet);
                let kernel = launch.program.entry.clone();
                waiting.suspended.push_back(now);
                let is_stuck = run.has_ranks() && waiting.failed.is_none() && waiting.is_stuck(streams);
                if is_stuck && waiting.most < RESIDENT && waiting.has_more(streams) {
                    waiting.most *= 2;
                } else if is_stuck {
                    run.stop.store(true, Relaxed);
                    let state = waiting.state(streams);
                    waiting.failed = Some(ExecError::Deadlock { kernel, state });
                }
            }
            Err(mut e) => {
                run.stop.store(true, Relaxed);
                waiting.ranks[now.rank].resident -= 1;
                if run.has_ranks() {
                    e = e.of_rank(now.rank, &waiting.state(streams));
                }
                waiting.failed.get_or_insert(e);
            }
        }
    }
}

fn worker_of<'w>(
    workers: &'w mut Workers,
    launch: &LaunchState<'_>,
    key: (usize, usize),
    number: usize,
) -> &'w mut Worker {
    workers.entry(key).or_insert_with(|| Worker::new(number, launch.program.code.len(), 1))
}
