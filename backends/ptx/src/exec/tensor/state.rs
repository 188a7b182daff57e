//! Tensor state of warps and CTAs.

use std::collections::BTreeMap;

use crate::exec::context::{AsyncCx, Machine};
use crate::exec::findings::Check;
use crate::exec::history::History;
use crate::exec::race::{AccessKind, Actor, Clock, Conflict, Takes};
use crate::tensor::tmem::{COLUMNS, LANES, Tmem, TmemFault};

/// What is known of an accumulator register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accumulator {
    /// The last group that works on the register; 0 once it was waited for.
    pub group: u64,
    /// Hash of what wgmma last wrote there.
    pub written: u64,
    /// Lanes whose value depends on memory or registers that nobody wrote.
    pub unwritten: u32,
}

/// Tensor state of a warp.
#[derive(Clone, Debug, Default)]
pub struct WarpTensor {
    /// Accumulators in flight or written by wgmma since the last `wgmma.fence`, by register slot.
    pub(super) accumulators: BTreeMap<u32, Accumulator>,
    /// `wgmma.fence` was executed and no `wgmma.wait_group` since.
    pub(super) fenced: bool,
    /// Tick of the latest `tcgen05.ld` and `tcgen05.st` that nobody waited for.
    pub(super) load_tick: Option<u32>,
    pub(super) store_tick: Option<u32>,
}

/// Tensor memory of a CTA and what belongs to it.
#[derive(Default)]
pub struct CtaTensor {
    pub(super) tmem: Option<Box<Tmem>>,
    /// Access history by lane group of 16 and column.
    pub(super) history: Option<Box<History>>,
    /// The `.cta_group` that the kernel uses.
    pub(super) cta_group: Option<u8>,
    /// Columns that a warp of this CTA asks for with `.cta_group::2`, waiting for the peer.
    pub(super) asked: Option<u32>,
    /// The address that both CTAs of the pair got.
    pub(super) granted: Option<u32>,
    /// For each warp, how many `wgmma.mma_async` it has come to, and how many it has issued.
    pub(super) wgmma: Vec<(u64, u64)>,
    /// Tensor maps in global memory that this CTA modified, and whether the change was acquired since.
    pub(super) modified_maps: BTreeMap<u64, bool>,
}

impl Clone for CtaTensor {
    /// A fresh state: CTAs are cloned only before they run.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl std::fmt::Debug for CtaTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CtaTensor").field("allocated_columns", &self.allocated_columns()).finish()
    }
}

/// Lanes that share one history cell. Half-used data paths work on 16 lanes of 32.
const LANE_GROUP: usize = 16;

impl CtaTensor {
    /// Columns of tensor memory that are allocated.
    pub fn allocated_columns(&self) -> usize {
        self.tmem.as_ref().map_or(0, |t| t.allocated_columns())
    }

    /// Tensor memory, created on first use.
    pub(super) fn tmem(&mut self) -> &mut Tmem {
        self.tmem.get_or_insert_with(|| Box::new(Tmem::new()))
    }
}

/// A rectangle of tensor memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rect {
    pub lane: usize,
    pub lanes: usize,
    pub column: usize,
    pub columns: usize,
}

/// Reports a fault of a tensor memory access. True when the access may go on.
pub(super) fn report_fault(m: &mut Machine<'_>, lane: Option<u32>, fault: &TmemFault) -> bool {
    match fault {
        TmemFault::Unwritten { .. } => {
            m.report(Check::Uninitialized, lane, || fault.to_string());
            true
        }
        TmemFault::NotAllocated { .. } | TmemFault::OutOfRange { .. } => {
            m.report(Check::Bounds, lane, || fault.to_string());
            false
        }
    }
}

/// Records an access to tensor memory and reports unordered ones.
pub(super) fn track(
    m: &mut Machine<'_>,
    rank: usize,
    rect: Rect,
    kind: AccessKind,
    id: u32,
    clock: &Clock,
    lane: Option<u32>,
) {
    if m.cluster.n_actors == 0 || rect.columns == 0 || rect.lane >= LANES || rect.column >= COLUMNS {
        return;
    }
    let pc = m.pc;
    let history = m.cluster.ctas[rank]
        .tensor
        .history
        .get_or_insert_with(|| Box::new(History::new(LANES / LANE_GROUP * COLUMNS * 4, 0)));
    let takes = if m.worker.knows_no_fences { Takes::Nothing } else { Takes::TensorFences };
    let actor = Actor { id, clock, pc, takes };
    let mut found = None;
    for group in rect.lane / LANE_GROUP..=((rect.lane + rect.lanes - 1) / LANE_GROUP).min(LANES / LANE_GROUP - 1) {
        let offset = (group * COLUMNS + rect.column) * 4;
        found = found.or(history.access(offset as u32, (rect.columns * 4) as u32, kind, actor));
    }
    if let Some(conflict) = found {
        let cell = conflict.offset as usize / 4;
        let (first_lane, column) = (cell / COLUMNS * LANE_GROUP, cell % COLUMNS);
        let write = kind == AccessKind::Write;
        if conflict.unfenced {
            note_unfenced(m, lane, (first_lane, column), &conflict, clock);
            return;
        }
        m.report_with(Check::TensorMemory, lane, Some((conflict.actor, conflict.pc)), || {
            let what = match (write, conflict.wrote) {
                (true, true) => "writes over what another write left",
                (true, false) => "writes what another access may still read",
                (false, _) => "reads what another access wrote",
            };
            format!(
                "{what} in tensor memory (lanes {first_lane} to {}, column {column}) without a wait or synchronisation between them",
                first_lane + LANE_GROUP - 1
            )
        });
    }
}

/// Tensor memory that one thread hands to another without the fences. A kernel that has none at all gets one note.
#[cold]
fn note_unfenced(
    m: &mut Machine<'_>,
    lane: Option<u32>,
    (first_lane, column): (usize, usize),
    conflict: &Conflict,
    clock: &Clock,
) {
    let fenced = m.launch.program.fences_tmem;
    m.worker.knows_no_fences = !fenced;
    let before = clock.before_sync.get(conflict.actor as usize).is_some_and(|t| *t >= conflict.tick);
    let what = match (fenced, before) {
        (false, _) => "in a kernel without any tcgen05.fence".to_owned(),
        (true, false) => "without tcgen05.fence::before_thread_sync".to_owned(),
        (true, true) => "without tcgen05.fence::after_thread_sync".to_owned(),
    };
    let who = m.cluster.actor_name(conflict.actor);
    m.note_beside(Check::TensorMemory, lane, Some((who, Some(conflict.pc))), || {
        format!(
            "tensor memory (lanes {first_lane} to {}, column {column}) goes from one thread to another {what}; PTX asks for one on each side of the synchronisation, machines seem to do without",
            first_lane + LANE_GROUP - 1
        )
    });
}

/// As [`track`] for an asynchronous operation.
pub(super) fn track_async(cx: &mut AsyncCx<'_>, rank: usize, rect: Rect, kind: AccessKind) {
    track(&mut cx.m, rank, rect, kind, cx.actor, &cx.clock, Some(cx.lane));
}
