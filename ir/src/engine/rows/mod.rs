//! How row programs are cut: rows of a cluster, and what of shared memory they take.

mod layout;

pub use layout::RowLayout;

use super::{MmaType, plan, power_of_warps};
use crate::target::Features;
use crate::tile::{BufferId, Program, RowOpKind, RowProgram, Schedule};

/// Most CTAs of a cluster.
const MOST_CTAS: u32 = 8;
/// Most CTAs that share columns through global memory.
const MOST_LOGIT_CTAS: u32 = 64;
/// Columns of a router that a CTA computes together on the tensor cores, at most.
const MOST_COLS: u32 = 64;
/// Rows that it computes together, at most: a thread has registers for their sums.
const MOST_ROWS: u32 = 64;
/// Loads of a thread that are under way together, at most: its registers hold four words of each.
const MOST_LOADS: u32 = 24;
/// Rows, and columns, that a warp computes together with multiply-adds.
pub const FMA_ROWS: u32 = 4;

/// Which units compute the product of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The tensor cores: both operands of one 16-bit type, rows in whole aligned groups of 8 elements.
    Mma(MmaType),
    /// Exact f32 multiply-adds.
    Fma,
}

impl Way {
    /// Of rows `x` with weights `w`.
    pub fn of(program: &Program, x: BufferId, w: BufferId) -> Way {
        let (x, w) = (program.buffer(x), program.buffer(w));
        let in_groups = [x.cols, x.pitch, w.pitch].iter().all(|n| n.is_multiple_of(8));
        match MmaType::of(x.dtype) {
            Some(ty) if x.dtype == w.dtype && in_groups => Way::Mma(ty),
            _ => Way::Fma,
        }
    }
}

/// A row program, cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Rows that CTAs share.
    pub tile_m: u32,
    /// Warps of a CTA.
    pub warps: u32,
    /// CTAs that share the columns of the router and, after it, the rows.
    pub ctas: u32,
    /// CTAs of a cluster: those, or more where a cluster puts slots in expert order, each `ctas` of them with rows of their own.
    pub cluster: u32,
    /// CTAs that share the columns through global memory, in place of a cluster's.
    pub logit_ctas: u32,
    /// Columns of the router that a CTA computes together on the tensor cores, at most: a multiple of 8.
    pub cols: u32,
    /// Bytes for the warps' partial sums of the router: of each, 16 rows of so many columns.
    pub partial_bytes: u32,
    /// Where the values of a row lie.
    pub layout: RowLayout,
}

/// The schedule nearest to `asked` that is built as it stands. `None` where the values of one row do not fit in shared memory.
///
/// | asked | given |
/// |---|---|
/// | `tile_m` | as many rows as have room for their values |
/// | `tile_n` | columns of the router that a CTA takes at once on the tensor cores: a multiple of 8 up to 64, and no fewer than leave each of eight CTAs its share; 1 without such a product |
/// | `warps` | a power of two up to 32 |
/// | `order_ctas` | 1: the last CTA makes expert order; else a power of two up to 8, and no fewer than share columns: the last cluster does; 1 without an order to make, where there are no clusters, and beside `logit_ctas` |
/// | `logit_ctas` | a power of two up to 64; 1 where products are not shared |
pub fn fit(
    program: &Program,
    rows: &RowProgram,
    asked: Schedule,
    smem_bytes: u32,
    features: Features,
) -> Option<Schedule> {
    let warps = power_of_warps(asked.warps);
    let least = |width: u64| (width.div_ceil(MOST_CTAS.into()) as u32).next_multiple_of(8).min(MOST_COLS);
    let widest = products(program, rows).filter(|(_, way)| *way != Way::Fma).map(|(width, _)| least(width)).max();
    let tile_n = widest.map_or(1, |least| asked.tile_n.next_multiple_of(8).clamp(least, MOST_COLS));
    let logit_ctas = match &rows.logits {
        Some(_) => (1 << asked.logit_ctas.max(1).ilog2()).min(MOST_LOGIT_CTAS),
        None => 1,
    };
    let asked = Schedule { warps, tile_n, logit_ctas, ..asked };
    let g = Geometry::of(program, rows, &asked, features);
    let room = smem_bytes.checked_sub(g.partial_bytes)? / g.layout.row_bytes;
    let tile_m = asked.tile_m.clamp(1, room.saturating_mul(g.ctas).max(1));
    let order_ctas = match plan::ctas(asked.order_ctas, features) {
        n if n > 1 && rows.plan.is_some() && rows.logits.is_none() => n.max(g.ctas),
        _ => 1,
    };
    (room > 0).then_some(Schedule { tile_m, order_ctas, ..asked })
}

/// The products of a row program: columns, and the units that compute them.
fn products<'p>(program: &'p Program, rows: &'p RowProgram) -> impl Iterator<Item = (u64, Way)> + 'p {
    rows.ops.iter().filter_map(|op| match &op.kind {
        RowOpKind::Linear { x, w, .. } => Some((op.width, Way::of(program, *x, *w))),
        _ => None,
    })
}

impl Geometry {
    /// As `schedule` says, which [`fit`] has made.
    pub fn of(program: &Program, rows: &RowProgram, schedule: &Schedule, features: Features) -> Geometry {
        let (tile_m, warps, layout) = (schedule.tile_m, schedule.warps, RowLayout::new(rows));
        let cols = schedule.tile_n.max(8);
        let logit_ctas = schedule.logit_ctas;
        let mut g = Geometry { tile_m, warps, ctas: 1, cluster: 1, logit_ctas, cols, partial_bytes: 0, layout };
        for (width, way) in products(program, rows) {
            let cols = if way == Way::Fma { 8 } else { cols };
            if features.clusters && rows.logits.is_none() {
                let groups = (width as u32 / cols).clamp(1, MOST_CTAS);
                g.ctas = g.ctas.max(1 << groups.ilog2());
            }
            if way != Way::Fma {
                g.partial_bytes = warps * 16 * cols * 4;
            }
        }
        g.cluster = g.ctas.max(schedule.order_ctas);
        g
    }

    /// Rows that are multiplied by weights that are read once.
    pub fn rows_at_once(&self, way: Way) -> u32 {
        match way {
            Way::Mma(_) => self.tile_m.next_multiple_of(16).min(MOST_ROWS),
            Way::Fma => FMA_ROWS.min(self.tile_m),
        }
    }

    /// Fragments of eight of `width` columns that a CTA computes together on the tensor cores.
    pub fn fragments(&self, width: u32) -> u32 {
        (width / (8 * self.ctas * self.logit_ctas)).clamp(1, self.cols / 8)
    }

    /// Steps of 32 elements along K whose operands a warp reads before it multiplies them, of `rows` rows and so many fragments.
    pub fn steps_at_once(rows: u32, fragments: u32) -> u32 {
        (MOST_LOADS / (rows.div_ceil(8) + fragments)).clamp(1, 8)
    }

    /// Rows whose values one CTA holds.
    fn rows_of_a_cta(&self) -> u32 {
        self.tile_m.div_ceil(self.ctas)
    }

    /// Bytes of shared memory.
    pub fn smem_bytes(&self) -> u32 {
        self.partial_bytes + self.layout.row_bytes * self.rows_of_a_cta()
    }
}
