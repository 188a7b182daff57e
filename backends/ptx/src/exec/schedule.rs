//! Runs clusters on host threads, and the warps and asynchronous operations of a cluster in turn.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use super::call::Schedule;
use super::cluster::{ASYNC_ACTORS, Barrier, Cluster, ClusterBarrier, Cta};
use super::context::{self, Cx, Machine};
use super::error::ExecError;
use super::findings::Check;
use super::interpret::{self, Outcome};
use super::launch::LaunchState;
use super::memory::shared::SharedMemory;
use super::program::{Preset, WARP};
use super::queue::AsyncQueue;
use super::race::Clock;
use super::warp::{Groups, Part, Warp};
use super::worker::Worker;

/// Warp instructions before a warp makes room in round-robin schedules.
const QUANTUM: i64 = 256;
/// Warp instructions before a cluster makes room for another.
const SLICE: i64 = 2_000_000;
/// Clusters that may have started at once, and the bytes of host memory that they may take.
const RESIDENT: usize = 256;
const RESIDENT_BYTES: usize = 2 << 30;
/// Failed polls of mbarriers without any event after which a cluster counts as deadlocked.
const MAX_POLLS: u64 = 2_000_000;
/// Asynchronous operations in flight in a cluster.
const MAX_IN_FLIGHT: usize = 2048;
/// Times that waits may give up one after the other without an event between.
const MAX_STUCK: u32 = 48;

/// Clusters that have started and wait for a host thread.
#[derive(Default)]
struct Waiting {
    suspended: VecDeque<Cluster>,
    resident: usize,
    most: usize,
    failed: Option<ExecError>,
}

/// Runs every cluster of the launch; gives what the host threads collected.
pub(crate) fn run(launch: &LaunchState<'_>, threads: usize) -> Result<Vec<Worker>, ExecError> {
    let most = (RESIDENT_BYTES / cluster_bytes(launch)).clamp(1, RESIDENT);
    let shared = Mutex::new(Waiting { most, ..Waiting::default() });
    let threads = threads.min(most).clamp(1, usize::try_from(launch.n_clusters).unwrap_or(usize::MAX).max(1));
    let workers: Vec<Worker> = if threads == 1 {
        vec![work(launch, &shared, 0)]
    } else {
        std::thread::scope(|scope| {
            let handles: Vec<_> = {
                let shared = &shared;
                (0..threads).map(|n| scope.spawn(move || work(launch, shared, n))).collect()
            };
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

fn work(launch: &LaunchState<'_>, shared: &Mutex<Waiting>, number: usize) -> Worker {
    let mut worker = Worker::new(number, launch.program.code.len(), 1);
    loop {
        if launch.stop.load(Relaxed) {
            return worker;
        }
        let mut waiting = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = if waiting.resident < waiting.most { launch.claim() } else { None };
        let mut cluster = match (fresh, waiting.suspended.pop_front()) {
            (Some(index), back) => {
                if let Some(back) = back {
                    waiting.suspended.push_front(back);
                }
                waiting.resident += 1;
                drop(waiting);
                start(launch, &mut worker, index)
            }
            (None, Some(cluster)) => {
                drop(waiting);
                cluster
            }
            (None, None) => {
                let idle = waiting.resident == 0;
                drop(waiting);
                if idle {
                    return worker;
                }
                // The last clusters run elsewhere; one of them may still be suspended and passed on.
                std::thread::yield_now();
                std::thread::sleep(std::time::Duration::from_micros(50));
                continue;
            }
        };
        worker.random = cluster.random;
        cluster.slice_left = SLICE;
        let outcome = run_cluster(launch, &mut worker, &mut cluster);
        cluster.random = worker.random;
        let mut waiting = shared.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(true) => {
                waiting.resident -= 1;
                drop(waiting);
                retire(&mut worker, cluster);
            }
            Ok(false) => waiting.suspended.push_back(cluster),
            Err(e) => {
                launch.stop.store(true, Relaxed);
                waiting.resident -= 1;
                waiting.failed.get_or_insert(e);
            }
        }
    }
}

fn start(launch: &LaunchState<'_>, worker: &mut Worker, index: u64) -> Cluster {
    let size: u32 = launch.cluster.iter().product();
    let warps = launch.threads().div_ceil(WARP as u32);
    let n_warps = (size * warps) as usize;
    let checks = &launch.options.checks;
    let tracked = checks.races || checks.proxies;
    // There is no async proxy before Hopper.
    let async_actors = if launch.program.target.sm >= 90 { ASYNC_ACTORS } else { 0 };
    let n_actors = if tracked { 2 * n_warps + async_actors } else { 0 };
    let first = launch.first_ctaid(index);
    let generic = tracked.then_some(2 * n_warps as u32);
    let mut cluster = Cluster {
        index,
        ctas: Vec::with_capacity(size as usize),
        barrier: ClusterBarrier::default(),
        asyncs: AsyncQueue::default(),
        events: 1,
        turns: 0,
        warps_per_cta: warps,
        n_actors,
        next_warp: 0,
        quantum_left: 0,
        failed_polls: 0,
        ticks: vec![0; n_actors],
        timeouts: 0,
        loose: false,
        slice_left: SLICE,
        random: match launch.options.schedule {
            Schedule::RoundRobin => 1,
            Schedule::Random(seed) => {
                (seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0x2545_f491_4f6c_dd1d) | 1
            }
        },
        stuck: (0, 0),
    };
    for rank in 0..size {
        let [cx, cy, _] = launch.cluster;
        let inside = [rank % cx, rank / cx % cy, rank / cx / cy];
        let ctaid = [0, 1, 2].map(|d| first[d] + inside[d]);
        let mut cta = Cta {
            ctaid,
            shared: SharedMemory::new(launch.shared_bytes, generic),
            mbarriers: Default::default(),
            barriers: vec![Barrier::default(); 16],
            warps: Vec::with_capacity(warps as usize),
            live_threads: launch.threads(),
            live_warps: warps,
            exited: false,
            tensor: Default::default(),
        };
        for w in 0..warps {
            let actor = rank * warps + w;
            let mut warp = fresh_warp(launch, worker, n_actors);
            warp.clock.advance(actor);
            let threads = (launch.threads() - w * WARP as u32).min(WARP as u32);
            let mask = if threads == 32 { u32::MAX } else { (1 << threads) - 1 };
            warp.exited = !mask;
            warp.parts.push(Part { pc: 0, mask, stack: Vec::new(), blocked: None, token: 0, spins: 0, yielded: false });
            fill_presets(launch, &mut warp, ctaid, inside, rank, w, index);
            cta.warps.push(Some(warp));
        }
        cluster.ctas.push(cta);
    }
    worker.counters.blocks += u64::from(size);
    cluster
}

fn fresh_warp(launch: &LaunchState<'_>, worker: &mut Worker, n_actors: usize) -> Box<Warp> {
    let program = launch.program;
    let frame = program.functions.first().map_or(0, |f| f.frame_bytes);
    let stride = frame.max(16).next_power_of_two();
    let mut warp = worker.spare.pop().unwrap_or_else(|| {
        Box::new(Warp {
            regs: vec![[0; WARP]; program.n_slots as usize],
            poison: Vec::new(),
            holes: Vec::new(),
            preds: Vec::new(),
            pred_poison: Vec::new(),
            carry: 0,
            carry_poison: 0,
            parts: Vec::new(),
            exited: 0,
            local: Vec::new(),
            local_holes: Vec::new(),
            local_stride: 0,
            frame: [0; WARP],
            stack: [0; WARP],
            stacks: Vec::new(),
            saved: Default::default(),
            clock: Clock::default(),
            observed: None,
            cp_async: Groups::default(),
            bulk: Groups::default(),
            wgmma: Groups::default(),
            blocked_at: None,
            executed: 0,
            cluster_arrival: 0,
            blocked_turn: 0,
            tensor: Default::default(),
        })
    });
    // Register contents of earlier blocks stay behind the poison.
    warp.poison.clear();
    warp.poison.resize(program.n_slots as usize, u32::MAX);
    warp.holes.clear();
    warp.holes.resize(program.n_slots as usize, None);
    warp.preds.clear();
    warp.preds.resize(program.n_preds as usize, 0);
    warp.preds[0] = u32::MAX;
    warp.pred_poison.clear();
    warp.pred_poison.resize(program.n_preds as usize, u32::MAX);
    warp.pred_poison[0] = 0;
    warp.carry = 0;
    warp.carry_poison = u32::MAX;
    warp.parts.clear();
    warp.local.clear();
    warp.local.resize(stride as usize * WARP, 0);
    warp.local_holes.clear();
    warp.local_holes.resize(stride as usize * WARP, 0xff);
    warp.local_stride = stride;
    warp.frame = [0; WARP];
    warp.stack = [super::warp::STACK_BASE; WARP];
    warp.stacks.clear();
    warp.saved.clear();
    warp.clock = Clock::new(n_actors);
    warp.observed = None;
    warp.cp_async = Groups::default();
    warp.bulk = Groups::default();
    warp.wgmma = Groups::default();
    warp.blocked_at = None;
    warp.executed = 0;
    warp.cluster_arrival = 0;
    warp.blocked_turn = 0;
    warp.tensor = Default::default();
    warp
}

fn fill_presets(
    launch: &LaunchState<'_>,
    warp: &mut Warp,
    ctaid: [u32; 3],
    inside: [u32; 3],
    rank: u32,
    w: u32,
    index: u64,
) {
    for (slot, preset) in &launch.program.presets {
        let each = |f: &dyn Fn(u32) -> u64| {
            let mut out = [0u64; WARP];
            (0..WARP as u32).for_each(|l| out[l as usize] = f(l));
            out
        };
        let rank_bits = u64::from(rank) << 24;
        let value = match *preset {
            Preset::Tid(axis) => each(&|l| u64::from(launch.tid(w * WARP as u32 + l)[axis as usize])),
            Preset::Ctaid(axis) => [u64::from(ctaid[axis as usize]); WARP],
            Preset::ClusterCtaid(axis) => [u64::from(inside[axis as usize]); WARP],
            Preset::ClusterCtarank => [u64::from(rank); WARP],
            Preset::Clusterid(axis) => [u64::from(ctaid[axis as usize] / launch.cluster[axis as usize]); WARP],
            Preset::LaneId => each(&u64::from),
            Preset::WarpId => [u64::from(w); WARP],
            Preset::LaneMask(kind) => each(&|l| {
                let (eq, lt) = (1u32 << l, (1u32 << l) - 1);
                u64::from(match kind {
                    0 => eq,
                    1 => lt | eq,
                    2 => lt,
                    3 => !lt,
                    _ => !lt & !eq,
                })
            }),
            Preset::SmId => [index % u64::from(launch.program.target.sm_count()); WARP],
            Preset::SharedAddress(at) => [u64::from(at) | rank_bits; WARP],
            Preset::DynamicShared(offset) => {
                [(u64::from(launch.dynamic_start).wrapping_add_signed(offset) & 0xffff_ffff) | rank_bits; WARP]
            }
        };
        warp.write(*slot, u32::MAX, &value, 0);
    }
}

fn retire(worker: &mut Worker, cluster: Cluster) {
    for cta in cluster.ctas {
        for warp in cta.warps.into_iter().flatten() {
            if worker.spare.len() < 64 {
                worker.spare.push(warp);
            }
        }
    }
}

fn machine<'a>(launch: &'a LaunchState<'a>, cluster: &'a mut Cluster, worker: &'a mut Worker) -> Machine<'a> {
    Machine { launch, cluster, worker, cta: 0, warp_index: 0, pc: 0 }
}

/// Lets one asynchronous operation go on; false if none is in flight.
fn complete_one(launch: &LaunchState<'_>, worker: &mut Worker, cluster: &mut Cluster) -> Result<bool, ExecError> {
    let which = match launch.options.schedule {
        // The oldest operation is always the first of its stream.
        Schedule::RoundRobin => (!cluster.asyncs.list.is_empty()).then_some(0),
        Schedule::Random(_) => {
            let ready = cluster.asyncs.ready();
            if ready.is_empty() { None } else { Some(ready[(worker.random() % ready.len() as u64) as usize]) }
        }
    };
    let Some(pending) = which.and_then(|i| cluster.asyncs.list.remove(i)) else {
        return Ok(false);
    };
    context::complete(machine(launch, cluster, worker), pending)?;
    Ok(true)
}

/// Runs a cluster until it is finished (true) or its slice is used up (false).
fn run_cluster(launch: &LaunchState<'_>, worker: &mut Worker, cluster: &mut Cluster) -> Result<bool, ExecError> {
    let n_warps = cluster.n_warps();
    let per = cluster.warps_per_cta as usize;
    let random = matches!(launch.options.schedule, Schedule::Random(_));
    loop {
        cluster.turns += 1;
        // Completions come late, so that a missing wait shows; but they do come while warps poll.
        if !cluster.asyncs.list.is_empty() {
            let due = if random {
                worker.random().is_multiple_of(4)
            } else {
                cluster.turns.is_multiple_of(8 * n_warps as u64)
            };
            if due {
                complete_one(launch, worker, cluster)?;
            }
        }
        // Operations that nobody waits for must not fill the memory.
        while cluster.asyncs.list.len() > MAX_IN_FLIGHT {
            complete_one(launch, worker, cluster)?;
        }
        let offset = if random { (worker.random() % n_warps as u64) as usize } else { cluster.next_warp };
        let mut next = None;
        let mut alive = false;
        for k in 0..n_warps {
            let n = (offset + k) % n_warps;
            let Some(warp) = &cluster.ctas[n / per].warps[n % per] else { continue };
            if warp.done() {
                continue;
            }
            alive = true;
            let waits =
                warp.blocked_at == Some(cluster.events) && cluster.turns.wrapping_sub(warp.blocked_turn) <= 4096;
            if !waits {
                next = Some(n);
                break;
            }
        }
        let Some(n) = next else {
            if complete_one(launch, worker, cluster)? {
                continue;
            }
            if !alive {
                return Ok(true);
            }
            unstick(launch, cluster)?;
            continue;
        };
        cluster.next_warp = n + 1;
        let (cta, index) = (n / per, n % per);
        let Some(mut warp) = cluster.ctas[cta].warps[index].take() else { continue };
        let quantum = if random { 1 + (worker.random() % 64) as i64 } else { QUANTUM };
        let before = worker.unreported;
        let outcome = {
            let m = Machine { launch, cluster: &mut *cluster, worker: &mut *worker, cta, warp_index: index, pc: 0 };
            let mut cx = Cx { m, warp: &mut warp, part_mask: 0, token: 0 };
            interpret::run(&mut cx, quantum)
        };
        warp.blocked_at = (matches!(outcome, Ok(Outcome::Blocked))).then_some(cluster.events);
        cluster.ctas[cta].warps[index] = Some(warp);
        if outcome? == Outcome::Done && cluster.ctas[cta].live_warps == 0 && !cluster.ctas[cta].exited {
            leave(launch, worker, cluster, cta);
        }
        cluster.slice_left -= (worker.unreported - before) as i64;
        if worker.unreported > 4096 {
            let executed = launch.executed.fetch_add(worker.unreported, Relaxed) + worker.unreported;
            worker.unreported = 0;
            if executed > launch.options.instruction_limit {
                return Err(ExecError::InstructionLimit {
                    kernel: launch.program.entry.clone(),
                    executed,
                    state: state(launch, cluster),
                });
            }
            if launch.stop.load(Relaxed) {
                return Ok(false);
            }
        }
        if cluster.failed_polls > MAX_POLLS && cluster.asyncs.list.is_empty() {
            return Err(ExecError::Deadlock { kernel: launch.program.entry.clone(), state: state(launch, cluster) });
        }
        if cluster.slice_left <= 0 {
            return Ok(false);
        }
    }
}

/// The last warp of a CTA has left.
fn leave(launch: &LaunchState<'_>, worker: &mut Worker, cluster: &mut Cluster, cta: usize) {
    cluster.ctas[cta].exited = true;
    // The machine drains committed stores before it gives the shared memory away; what nobody committed, nobody can wait for.
    let forgotten = |p: &super::queue::Pending| {
        let store = launch.program.source.get(p.pc as usize).is_some_and(|s| s.text.contains(".bulk_group"));
        !store
            || cluster.ctas[cta]
                .warps
                .get(p.warp)
                .and_then(Option::as_ref)
                .is_some_and(|w| w.bulk.list.iter().any(|g| g.lanes == 0 && g.pending > 0))
    };
    let bulk = |p: &super::queue::Pending| p.op.what.starts_with("cp.async.bulk") && !p.op.what.contains("prefetch");
    let open = cluster.asyncs.list.iter().find(|p| p.cta == cta && bulk(p) && forgotten(p));
    let open = open.map(|p| (p.pc, p.warp, p.lane, p.op.what));
    // A group that was committed and whose sources are still to be read.
    let unread = |p: &super::queue::Pending| {
        let warp = cluster.ctas[cta].warps.get(p.warp).and_then(Option::as_ref);
        warp.is_some_and(|w| w.bulk.list.iter().any(|g| g.lanes != 0 && g.reading > 0))
    };
    let unwaited = cluster.asyncs.list.iter().find(|p| p.cta == cta && bulk(p) && !forgotten(p) && unread(p));
    let unwaited = unwaited.map(|p| (p.pc, p.warp, p.lane, p.op.what));
    let mut m = machine(launch, cluster, worker);
    m.cta = cta;
    if let Some((pc, warp, lane, what)) = open {
        m.pc = pc;
        m.warp_index = warp;
        m.report(Check::Asynchronous, Some(lane), || format!("the CTA leaves while its {what} is in flight"));
    }
    if let Some((pc, warp, lane, what)) = unwaited {
        m.pc = pc;
        m.warp_index = warp;
        m.note(Check::Asynchronous, Some(lane), || {
            format!("the CTA leaves without cp.async.bulk.wait_group for its {what}; PTX asks for it, machines keep the shared memory until it is read")
        });
    }
    super::tensor::cta_exit(&mut m);
}

/// No warp can go on and nothing is in flight: waits that may time out do, then barriers accept lanes that will never
/// converge, then it is a deadlock.
fn unstick(launch: &LaunchState<'_>, cluster: &mut Cluster) -> Result<(), ExecError> {
    if cluster.stuck.1 == cluster.events {
        cluster.stuck.0 += 1;
    } else {
        cluster.stuck = (1, cluster.events);
    }
    if cluster.stuck.0 > MAX_STUCK {
        if cluster.loose {
            return Err(ExecError::Deadlock { kernel: launch.program.entry.clone(), state: state(launch, cluster) });
        }
        cluster.loose = true;
        cluster.stuck.0 = MAX_STUCK - 4;
    }
    cluster.timeouts += 1;
    for warp in cluster.ctas.iter_mut().flat_map(|c| &mut c.warps).flatten() {
        warp.blocked_at = None;
        for part in &mut warp.parts {
            part.blocked = None;
        }
    }
    Ok(())
}

/// Where every warp stands.
fn state(launch: &LaunchState<'_>, cluster: &Cluster) -> String {
    let mut out = String::new();
    for cta in &cluster.ctas {
        for (w, warp) in cta.warps.iter().enumerate() {
            let Some(warp) = warp else { continue };
            for part in &warp.parts {
                let source = launch.program.source.get(part.pc as usize);
                let (line, text) = source.map_or((0, ""), |s| (s.line, s.text.as_str()));
                let why = match part.blocked {
                    Some((wait, _)) => format!("{wait:?}"),
                    None => "running".to_owned(),
                };
                let [x, y, z] = cta.ctaid;
                // Writing to a string cannot fail.
                let _ = writeln!(
                    out,
                    "  block {x},{y},{z} warp {w} lanes {:#010x}: {why}, at line {line}: {text}",
                    part.mask
                );
                if out.len() > 16 << 10 {
                    out.push_str("  …\n");
                    return out;
                }
            }
        }
        for (address, b) in &cta.mbarriers {
            let _ = writeln!(
                out,
                "  mbarrier {address:#x}: phase {}, {} of {} arrivals open, {} bytes open",
                b.phase, b.pending, b.expected, b.tx
            );
        }
    }
    out
}
