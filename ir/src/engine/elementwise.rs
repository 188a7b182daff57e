//! How kernels are cut that work element by element, or whose warps take rows.

use super::power_of_warps;
use crate::tile::{BufferId, ColAccess, MapArg, Places, Program, Schedule};

/// The schedule nearest to `asked` of a kernel whose warps take rows.
pub fn fit_rows(asked: Schedule) -> Schedule {
    Schedule { tile_m: asked.tile_m.max(1), warps: power_of_warps(asked.warps), ..asked }
}

/// Adjacent columns that a thread of an elementwise kernel computes: 8, 4, 2 or 1, which divides the columns and every row
/// pitch, address and offset, so that no vector is cut or misaligned.
pub fn vector(
    program: &Program,
    (out, places): (BufferId, Option<Places>),
    others: &[BufferId],
    args: &[MapArg],
) -> u32 {
    let out = program.buffer(out);
    let mut lengths = vec![out.cols, places.map_or(out.pitch, |p| p.unit)];
    lengths.extend(others.iter().map(|&b| program.buffer(b).pitch));
    for a in args {
        if let ColAccess::From(offset) = a.col {
            lengths.extend([program.buffer(a.buffer).pitch, offset]);
        }
    }
    let divides_all = |v: &u32| lengths.iter().all(|n| n.is_multiple_of(u64::from(*v)));
    [8, 4, 2].into_iter().find(divides_all).unwrap_or(1)
}

/// The schedule nearest to `asked` of an elementwise kernel with results of `cols` columns: `tile_n` is whole vectors, and no
/// more than the columns.
pub fn fit(cols: u64, vector: u32, asked: Schedule) -> Schedule {
    Schedule {
        tile_m: asked.tile_m.max(1),
        tile_n: asked.tile_n.clamp(1, (cols as u32).max(1)).next_multiple_of(vector),
        warps: power_of_warps(asked.warps),
        ..asked
    }
}
