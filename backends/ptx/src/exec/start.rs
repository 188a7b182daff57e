//! A cluster before its first instruction and after its last.

use super::call::Schedule;
use super::cluster::{ASYNC_ACTORS, Barrier, Cluster, ClusterBarrier, Cta};
use super::known::Known;
use super::launch::LaunchState;
use super::memory::shared::SharedMemory;
use super::program::{Preset, WARP};
use super::queue::AsyncQueue;
use super::race::Clock;
use super::warp::{Groups, Part, Warp};
use super::worker::Worker;

/// A cluster that knows what the launches before on its device knew.
pub(crate) fn start(launch: &LaunchState<'_>, worker: &mut Worker, index: u64, known: &Known) -> Cluster {
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
        number: launch.first + index,
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
        slice_left: 0,
        polls: 0,
        random: match launch.options.schedule {
            Schedule::RoundRobin => 1,
            Schedule::Random(seed) => {
                (seed ^ (launch.first + index).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0x2545_f491_4f6c_dd1d)
                    | 1
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
            warp.clock.known.clone_from(known);
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
            observed_far: None,
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
    warp.observed_far = None;
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

/// Keeps the memory of its warps for the next ones.
pub(crate) fn retire(worker: &mut Worker, cluster: Cluster) {
    for cta in cluster.ctas {
        for warp in cta.warps.into_iter().flatten() {
            if worker.spare.len() < 64 {
                worker.spare.push(warp);
            }
        }
    }
}
