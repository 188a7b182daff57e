//! How row programs are cut: rows of a cluster, and what of shared memory they take.

use super::RowLayout;
use crate::engine::MmaType;
use crate::target::Features;
use crate::tile::{BufferId, Program, RowOpKind, RowProgram, Schedule};

/// Most CTAs of a cluster.
const MOST_CTAS: u32 = 8;
/// Columns of a router that a CTA computes together on the tensor cores, at most.
pub const MMA_COLS: u32 = 32;

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
    /// Rows of a cluster.
    pub tile_m: u32,
    /// Warps of a CTA.
    pub warps: u32,
    /// CTAs of a cluster. They share the columns of the router and, after it, the rows.
    pub ctas: u32,
    /// Bytes for the warps' partial sums of the router: of each, 16 rows of [`MMA_COLS`] columns.
    pub partial_bytes: u32,
    /// Where the values of a row lie.
    pub layout: RowLayout,
}

/// The schedule nearest to `asked`: `warps` is a power of two up to 32, and the values of `tile_m` rows fit in shared memory.
/// `None` where those of one row do not.
pub fn fit(
    program: &Program,
    rows: &RowProgram,
    asked: Schedule,
    smem_bytes: u32,
    features: Features,
) -> Option<Schedule> {
    let warps = super::power_of_warps(asked.warps);
    let g = Geometry::of(program, rows, &Schedule { warps, ..asked }, features);
    let room = smem_bytes.checked_sub(g.partial_bytes)? / g.layout.row_bytes;
    let tile_m = asked.tile_m.clamp(1, room.saturating_mul(g.ctas).max(1));
    (room > 0).then_some(Schedule { tile_m, warps, ..asked })
}

impl Geometry {
    /// As `schedule` says, which [`fit`] has made.
    pub fn of(program: &Program, rows: &RowProgram, schedule: &Schedule, features: Features) -> Geometry {
        let (tile_m, warps, layout) = (schedule.tile_m, schedule.warps, RowLayout::new(rows));
        let mut g = Geometry { tile_m, warps, ctas: 1, partial_bytes: 0, layout };
        for op in &rows.ops {
            let RowOpKind::Linear { x, w, .. } = &op.kind else { continue };
            if features.clusters {
                let groups = (op.width as u32 / 8).clamp(1, MOST_CTAS);
                g.ctas = g.ctas.max(1 << groups.ilog2());
            }
            if Way::of(program, *x, *w) != Way::Fma {
                g.partial_bytes = warps * 16 * MMA_COLS * 4;
            }
        }
        g
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
