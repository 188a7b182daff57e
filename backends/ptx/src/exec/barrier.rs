//! CTA barriers and the cluster barrier.

use super::cluster::{Cluster, Cta};
use super::context::Cx;
use super::findings::Check;
use super::program::{Flow, Wait};

/// What an arrival at a CTA barrier does besides arriving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Waits for the others.
    Sync,
    /// Goes on.
    Arrive,
    /// Waits, and combines the warp's predicate lanes.
    Reduce(u32),
}

/// Threads that a barrier still waits for all warps: every warp that has not left counts as 32.
fn threads(cta: &Cta) -> u32 {
    cta.live_warps * 32
}

fn complete(cta: &mut Cta, id: usize) {
    let b = &mut cta.barriers[id];
    b.generation += 1;
    b.arrived = 0;
    b.expected = 0;
    b.result = (b.count, b.all, b.any);
    (b.count, b.all, b.any) = (0, true, false);
    b.released = b.clock.take();
}

/// Executes an arrival of the whole warp at barrier `id`. `count`: threads that take part, `None` for all.
pub(crate) fn arrive(cx: &mut Cx<'_>, id: u32, count: Option<u32>, arrival: Arrival, mask: u32, aligned: bool) -> Flow {
    let waits = arrival != Arrival::Arrive;
    if cx.token != 0 {
        // Arrived before: only the completion counts now.
        let b = &cx.m.cluster.ctas[cx.m.cta].barriers[id as usize];
        if b.generation < cx.token {
            return Flow::Block(waiting(cx, id));
        }
        if let Some(clock) = &b.released {
            cx.warp.clock.join(clock);
        }
        cx.advance();
        return Flow::Next;
    }
    let live = cx.warp.live();
    let loose = !aligned && cx.m.cluster.loose;
    if cx.part_mask != live && !loose {
        return Flow::Block(Wait::Lanes(live & !cx.part_mask));
    }
    if mask != cx.part_mask && aligned {
        let lane = (cx.part_mask & !mask).trailing_zeros();
        cx.m.report(Check::Divergence, Some(lane), || {
            "only some threads of the warp execute an aligned barrier".to_owned()
        });
    }
    if let Some(n) = count
        && (n == 0 || n % 32 != 0)
    {
        cx.m.report(Check::Divergence, None, || format!("the thread count {n} of a barrier is not a multiple of 32"));
    }
    cx.m.worker.counters.barrier_arrivals += 1;
    let tracked = cx.m.cluster.n_actors > 0;
    let cta = &mut cx.m.cluster.ctas[cx.m.cta];
    let all = threads(cta);
    let b = &mut cta.barriers[id as usize];
    let expected = count.unwrap_or(0);
    if b.arrived > 0 && b.expected != expected {
        let before = b.expected;
        let name = |n: u32| if n == 0 { "all threads".to_owned() } else { format!("{n} threads") };
        cx.m.report(Check::Divergence, None, || {
            format!("barrier {id} is used with {} after an arrival with {}", name(expected), name(before))
        });
    }
    let cta = &mut cx.m.cluster.ctas[cx.m.cta];
    let b = &mut cta.barriers[id as usize];
    if b.arrived == 0 {
        b.expected = expected;
        (b.count, b.all, b.any) = (0, true, false);
    }
    b.arrived += if loose { (mask.count_ones()).max(1) } else { 32 };
    if let Arrival::Reduce(holds) = arrival {
        b.count += (holds & mask).count_ones();
        b.all &= holds & mask == mask;
        b.any |= holds & mask != 0;
    }
    if tracked {
        match &mut b.clock {
            Some(c) => c.join(&cx.warp.clock),
            None => b.clock = Some(cx.warp.clock.clone()),
        }
    }
    let needed = if b.expected == 0 { all } else { b.expected };
    let token = b.generation + 1;
    if b.arrived >= needed {
        complete(cta, id as usize);
        cx.m.cluster.wake();
    }
    if !waits {
        cx.advance();
        return Flow::Next;
    }
    let b = &cx.m.cluster.ctas[cx.m.cta].barriers[id as usize];
    if b.generation >= token {
        if let Some(clock) = &b.released {
            cx.warp.clock.join(clock);
        }
        cx.advance();
        return Flow::Next;
    }
    cx.token = token;
    Flow::Block(waiting(cx, id))
}

fn waiting(cx: &Cx<'_>, id: u32) -> Wait {
    let cta = &cx.m.cluster.ctas[cx.m.cta];
    let b = &cta.barriers[id as usize];
    Wait::Barrier { id, arrived: b.arrived, expected: if b.expected == 0 { threads(cta) } else { b.expected } }
}

/// The results of the last `bar.red`: count, and, or.
pub(crate) fn reduction(cx: &Cx<'_>, id: u32) -> (u32, bool, bool) {
    cx.m.cluster.ctas[cx.m.cta].barriers[id as usize].result
}

/// Arrival of a warp at the cluster barrier.
pub(crate) fn cluster_arrive(cx: &mut Cx<'_>, mask: u32, aligned: bool) -> Flow {
    let live = cx.warp.live();
    let loose = !aligned && cx.m.cluster.loose;
    if cx.part_mask != live && !loose {
        return Flow::Block(Wait::Lanes(live & !cx.part_mask));
    }
    if mask != cx.part_mask && aligned {
        cx.m.report(Check::Divergence, None, || {
            "only some threads of the warp execute an aligned cluster barrier".to_owned()
        });
    }
    if cx.warp.cluster_arrival > cx.m.cluster.barrier.generation && !loose {
        cx.m.report(Check::Divergence, None, || "a second barrier.cluster.arrive before the wait".to_owned());
        return Flow::Next;
    }
    cx.m.worker.counters.barrier_arrivals += 1;
    let tracked = cx.m.cluster.n_actors > 0;
    let b = &mut cx.m.cluster.barrier;
    b.arrived += if loose { mask.count_ones() } else { live.count_ones() };
    if tracked {
        match &mut b.clock {
            Some(c) => c.join(&cx.warp.clock),
            None => b.clock = Some(cx.warp.clock.clone()),
        }
    }
    cx.warp.cluster_arrival = b.generation + 1;
    cx.advance();
    check_cluster(cx.m.cluster);
    Flow::Next
}

/// Completes the cluster barrier if every thread that has not left has arrived.
fn check_cluster(cluster: &mut Cluster) {
    let live: u32 = cluster.ctas.iter().map(|c| c.live_threads).sum();
    let b = &mut cluster.barrier;
    if b.arrived > 0 && b.arrived >= live {
        b.generation += 1;
        b.arrived = 0;
        b.released = b.clock.take();
        cluster.wake();
    }
}

/// Wait of a warp at the cluster barrier.
pub(crate) fn cluster_wait(cx: &mut Cx<'_>) -> Flow {
    if cx.warp.cluster_arrival == 0 {
        cx.m.report(Check::Divergence, None, || "barrier.cluster.wait without an arrive".to_owned());
        return Flow::Next;
    }
    let b = &cx.m.cluster.barrier;
    if b.generation < cx.warp.cluster_arrival {
        return Flow::Block(Wait::ClusterBarrier);
    }
    if let Some(clock) = &b.released {
        cx.warp.clock.join(clock);
    }
    cx.advance();
    Flow::Next
}

/// Threads have left: barriers that waited for all may be complete.
pub(crate) fn threads_left(cluster: &mut Cluster, cta: usize) {
    let c = &mut cluster.ctas[cta];
    let needed = threads(c);
    let mut woke = false;
    for id in 0..c.barriers.len() {
        let b = &c.barriers[id];
        if b.arrived > 0 && b.expected == 0 && b.arrived >= needed {
            complete(c, id);
            woke = true;
        }
    }
    if woke {
        cluster.wake();
    }
    check_cluster(cluster);
}
