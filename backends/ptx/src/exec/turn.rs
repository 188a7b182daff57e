//! A cluster's slice of time: its warps and asynchronous operations in turn.

use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use super::call::Schedule;
use super::cluster::Cluster;
use super::context::{self, Cx, Machine};
use super::error::ExecError;
use super::findings::Check;
use super::interpret::{self, Outcome};
use super::launch::LaunchState;
use super::worker::Worker;

/// Warp instructions before a warp makes room in round-robin schedules.
const QUANTUM: i64 = 256;
/// Failed polls of mbarriers without any event after which a cluster counts as deadlocked.
const MAX_POLLS: u64 = 2_000_000;
/// Asynchronous operations in flight in a cluster.
const MAX_IN_FLIGHT: usize = 2048;
/// Times that waits may give up one after the other without an event between.
const MAX_STUCK: u32 = 48;

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
pub(crate) fn run_cluster(
    launch: &LaunchState<'_>,
    worker: &mut Worker,
    cluster: &mut Cluster,
) -> Result<bool, ExecError> {
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
            let executed = launch.run.executed.fetch_add(worker.unreported, Relaxed) + worker.unreported;
            worker.unreported = 0;
            if executed > launch.options.instruction_limit {
                return Err(ExecError::InstructionLimit {
                    kernel: launch.program.entry.clone(),
                    executed,
                    state: state(launch, cluster),
                });
            }
            if launch.run.stop.load(Relaxed) {
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
pub(crate) fn state(launch: &LaunchState<'_>, cluster: &Cluster) -> String {
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
