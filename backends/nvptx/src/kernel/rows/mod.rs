//! Row programs: router, scores, choice of experts, weights.
//!
//! A block takes some rows. All its warps compute the logits together; then each warp takes whole rows and runs the
//! other steps, whose values lie in shared memory: 32 lanes beside each other along the row.

mod choice;
mod layout;
mod linear;
mod steps;

use super::{Design, Grid, Kernel, Registers};
use crate::code::{Bool, Code, F32, I32, Shared};
use layout::Layout;
use moec_ir::tile::{Extent, GpuLaunch, Program, RowId, RowOp, RowOpKind, RowProgram, Schedule};
use moec_ir::{DType, Diagnostic};

/// Widest row from which experts are chosen: its scores are held in registers, this many for each lane.
const MOST_SCORES_PER_LANE: u32 = 64;

/// Passes over a row up to which the loop over its columns is written out.
const MOST_UNROLLED: u32 = 8;

/// Runs the program for every row.
///
/// # Errors
/// `row-too-wide` when a row's values do not fit in shared memory, or there are more scores to choose from than registers.
pub fn rows<'p>(
    program: &'p Program,
    rows: &'p RowProgram,
    schedule: &Schedule,
    smem_limit: u32,
) -> Result<Design<'p>, Diagnostic> {
    for op in &rows.ops {
        let too_many = |id: RowId| rows.ops[id.0 as usize].width > u64::from(32 * MOST_SCORES_PER_LANE);
        if matches!(op.kind, RowOpKind::TopK(x) if too_many(x)) {
            let most = 32 * MOST_SCORES_PER_LANE;
            return Err(Diagnostic::input("row-too-wide", format!("top-k chooses from more than {most} scores")));
        }
    }
    let layout = Layout::new(rows);
    if layout.row_bytes > smem_limit {
        let (need, have) = (layout.row_bytes / 1024, smem_limit / 1024);
        let what = format!("one row of scores needs {need} KiB of shared memory; the target has {have} KiB");
        return Err(Diagnostic::input("row-too-wide", what));
    }
    let cut = Cut {
        tile_m: schedule.tile_m.clamp(1, (smem_limit / layout.row_bytes.max(1)).max(1)),
        warps: super::round_warps(schedule.warps, 32),
    };
    let launch = GpuLaunch {
        grid: [Grid::tiles(rows.rows, cut.tile_m, 1), Extent::fixed(1), Extent::fixed(1)],
        block_threads: cut.warps * 32,
        cluster: 1,
        dynamic_smem_bytes: layout.row_bytes * cut.tile_m,
    };
    let body = move |k: &Kernel| build(k, program, rows, &layout, &cut);
    Ok(Design { launch, registers: Registers::Plenty, body: Box::new(body) })
}

/// How a row program is cut: the one place where its schedule is rounded. `tile_m` rows of values must fit in shared
/// memory; `warps` is a power of two, 1…32.
struct Cut {
    tile_m: u32,
    warps: u32,
}

fn build<'c>(k: &Kernel<'c, '_>, program: &Program, rows: &RowProgram, layout: &Layout, cut: &Cut) {
    let c = k.code;
    let n_rows = k.length(rows.rows, k.n_tokens());
    let first = c.block_x() * cut.tile_m;
    c.exit_if(first.ge(n_rows));
    let n_here = (n_rows - first).min(cut.tile_m);
    let mut any_linear = false;
    for (i, op) in rows.ops.iter().enumerate() {
        if let RowOpKind::Linear { x, w, bias } = &op.kind {
            let job = linear::Linear { x: k.view(*x), w: k.view(*w), bias: bias.map(|b| k.view(b)), op };
            let depth = program.buffer(*x).cols as u32;
            job.run(c, cut.warps, (first, n_here, cut.tile_m), depth, |row, col| {
                c.shared().plus(row * layout.row_bytes + (col << 2)).at(layout.offsets[i])
            });
            any_linear = true;
        }
    }
    if any_linear {
        c.barrier();
    }
    c.range(c.warp(), n_here, cut.warps, |row| {
        let base = c.shared().plus(row * layout.row_bytes);
        let warp = Warp { c, ops: &rows.ops, layout, base, lane: c.lane() };
        for i in 0..rows.ops.len() {
            steps::step(k, &warp, i, first + row);
            c.warp_barrier();
            for store in rows.stores.iter().filter(|s| s.value.0 as usize == i) {
                let out = k.view(store.buffer);
                let value = warp.row(store.value);
                warp.for_columns(value.width, |col| {
                    let to = out.at(first + row, col);
                    if value.is_int {
                        c.store_i32(to, value.int(col));
                    } else {
                        c.store_elements(to, out.dtype, &[value.float(col)]);
                    }
                });
            }
        }
        // The next row of this warp has its own memory; nothing to wait for.
    });
}

/// The steps of one row, run by one warp.
struct Warp<'a, 'c> {
    c: &'c Code<'c>,
    ops: &'a [RowOp],
    layout: &'a Layout,
    /// Start of the row's values.
    base: Shared<'c>,
    lane: I32<'c>,
}

/// A row of values in shared memory.
#[derive(Clone, Copy)]
struct Values<'c> {
    c: &'c Code<'c>,
    at: Shared<'c>,
    width: u32,
    is_int: bool,
}

impl<'c> Values<'c> {
    fn float(&self, col: I32<'c>) -> F32<'c> {
        self.c.load_f32(self.at.plus(col << 2))
    }

    fn int(&self, col: I32<'c>) -> I32<'c> {
        self.c.load_i32(self.at.plus(col << 2))
    }

    fn set_float(&self, col: I32<'c>, value: F32<'c>) {
        self.c.store_f32(self.at.plus(col << 2), value);
    }

    fn set_int(&self, col: I32<'c>, value: I32<'c>) {
        self.c.store_i32(self.at.plus(col << 2), value);
    }
}

impl<'c> Warp<'_, 'c> {
    fn row(&self, id: RowId) -> Values<'c> {
        let op = &self.ops[id.0 as usize];
        let at = self.base.at(self.layout.offsets[id.0 as usize]);
        Values { c: self.c, at, width: op.width as u32, is_int: op.dtype == DType::I32 }
    }

    /// Scratch memory of step `i`.
    fn scratch(&self, i: usize) -> Values<'c> {
        let at = self.base.at(self.layout.scratch[i]);
        Values { c: self.c, at, width: 0, is_int: true }
    }

    /// Runs `body` for the columns of this lane: `lane`, `lane + 32`, … below `width`.
    fn for_columns(&self, width: u32, body: impl Fn(I32<'c>)) {
        let passes = width.div_ceil(32);
        if passes > MOST_UNROLLED {
            self.c.range(self.lane, width, 32, body);
            return;
        }
        for i in 0..passes {
            let col = self.lane + i * 32;
            if (i + 1) * 32 <= width {
                body(col);
            } else {
                self.c.when(col.lt(width), || body(col));
            }
        }
    }

    /// The columns of this lane, all written out, each with whether it exists; absent ones stand at column 0.
    fn columns(&self, width: u32) -> Vec<(I32<'c>, Bool<'c>)> {
        let column = |i: u32| {
            let col = self.lane + i * 32;
            if (i + 1) * 32 <= width {
                return (col, self.c.bool(true));
            }
            let exists = col.lt(width);
            (self.c.select(exists, col, self.c.i32(0)), exists)
        };
        (0..width.div_ceil(32)).map(column).collect()
    }
}
