//! Row programs: router, scores, choice of experts, weights.
//!
//! A block takes some rows. All its warps compute the logits together; then each warp takes whole rows and runs the
//! other steps, whose values lie in shared memory: 32 lanes beside each other along the row. Where the machine has
//! clusters, several blocks share the columns of the router, and then the rows. Or many blocks share the columns and hand what
//! they make to the last of them in global memory, which runs the other steps alone.

mod choice;
mod linear;
mod steps;

use super::{Design, Grid, Kernel, Registers, plan};
use crate::builder::{Bool, Builder, F32, I32, Shared};
use moec_ir::engine::rows::{Geometry, RowLayout, Way};
use moec_ir::target::Features;
use moec_ir::tile::{Extent, GpuLaunch, Program, RowId, RowOp, RowOpKind, RowProgram, Schedule};
use moec_ir::{DType, Diagnostic};

/// Widest row from which experts are chosen: its scores are held in registers, this many for each lane.
const MOST_SCORES_PER_LANE: u32 = 64;

/// Passes over a row up to which the loop over its columns is written out.
const MOST_UNROLLED: u32 = 8;

/// Runs the program for every row; the block, or cluster, that is done last makes the plan, when there is one.
///
/// # Errors
/// `row-too-wide` when a row's values do not fit in shared memory, or there are more scores to choose from than registers.
pub fn rows<'p>(
    program: &'p Program,
    rows: &'p RowProgram,
    schedule: &Schedule,
    smem_limit: u32,
    features: Features,
) -> Result<Design<'p>, Diagnostic> {
    for op in &rows.ops {
        let too_many = |id: RowId| rows.ops[id.0 as usize].width > u64::from(32 * MOST_SCORES_PER_LANE);
        if matches!(op.kind, RowOpKind::TopK(x) if too_many(x)) {
            let most = 32 * MOST_SCORES_PER_LANE;
            return Err(Diagnostic::input("row-too-wide", format!("top-k chooses from more than {most} scores")));
        }
    }
    let g = Geometry::of(program, rows, schedule, features);
    if g.smem_bytes() > smem_limit {
        let (need, have) = (g.layout.row_bytes.div_ceil(1024), smem_limit / 1024);
        let what = format!("one row of scores needs {need} KiB of shared memory; the target has {have} KiB");
        return Err(Diagnostic::input("row-too-wide", what));
    }
    let rows_of_cluster = g.tile_m * (g.cluster / g.ctas);
    // CTAs for so many rows.
    let team = g.cluster * g.logit_ctas;
    let mut grid = Grid::tiles(rows.rows, rows_of_cluster, team.into());
    let mut smem_bytes = g.smem_bytes();
    let cut = (schedule.order_ctas, g.warps);
    let planner = rows.plan.as_ref().map(|p| plan::Planner::new(program, &p.plan, cut, smem_limit));
    if let Some(p) = &planner {
        // Without tokens there is a plan all the same.
        grid.min = grid.min.max(team.into());
        smem_bytes = smem_bytes.max(p.smem_bytes());
    }
    let launch = GpuLaunch {
        grid: [grid, Extent::fixed(1), Extent::fixed(1)],
        block_threads: g.warps * 32,
        cluster: g.cluster,
        dynamic_smem_bytes: smem_bytes,
        persistent: false,
        programmatic: false,
        tensor_maps: Vec::new(),
    };
    let body = move |k: &Kernel| {
        let c = k.builder;
        let n_rows = k.rows_until(rows.rows, rows.until);
        let first = (c.block_x() / (g.ctas * g.logit_ctas)) * g.tile_m;
        let (Some(planner), Some(then)) = (&planner, &rows.plan) else {
            c.exit_if(first.ge(n_rows));
            build(k, program, rows, &g, (n_rows, first));
            return;
        };
        // CTAs of a cluster leave together. The first cluster stays without rows, too: somebody has to plan.
        let first_of_cluster = (c.block_x() / team) * rows_of_cluster;
        c.exit_if(first_of_cluster.ge(n_rows.signed_max(1)));
        c.when(n_rows.gt(0), || build(k, program, rows, &g, (n_rows, first)));
        let counter = k.view(then.counter).base;
        let order = || planner.build(k, g.warps * 32);
        let n_clusters = n_rows.signed_max(1).div_ceil(rows_of_cluster);
        if planner.ctas() > 1 {
            c.when_last_cluster(counter, (n_clusters, g.cluster), c.shared(), order);
        } else {
            c.when_last(counter, n_clusters * team, c.shared(), order);
        }
    };
    Ok(Design { launch, registers: Registers::Plenty, body: Box::new(body) })
}

fn build<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    rows: &RowProgram,
    g: &Geometry,
    (n_rows, first): (I32<'c>, I32<'c>),
) {
    let c = k.builder;
    // In a cluster of more than share columns, some may have no rows.
    let n_here = if g.cluster > g.ctas { (n_rows - first).signed_max(0) } else { n_rows - first }.min(g.tile_m);
    // The place among those that share columns, and the cluster's number of the first of them.
    let (rank, first_rank) = match (g.ctas, c.cluster_rank()) {
        (1, _) => (c.i32(0), c.i32(0)),
        (n, rank) if n == g.cluster => (rank, c.i32(0)),
        (n, rank) => (rank % n, rank - rank % n),
    };
    let values = c.shared().at(g.partial_bytes);
    if let Some(logits) = &rows.logits {
        let part = c.block_x() % g.logit_ctas;
        for ((i, _), &kept) in rows.products().zip(&logits.values) {
            let to = k.view(kept);
            let keep = |row: I32<'c>, col: I32<'c>, value: F32<'c>| c.store_f32(to.at(first + row, col), value);
            product(k, program, (rows, i), g, ((first, n_here), (part, g.logit_ctas)), &keep);
        }
        let counter = k.view(logits.counter).nth(c.block_x() / g.logit_ctas);
        c.when_last(counter, c.i32(g.logit_ctas), c.shared(), || {
            for ((i, op), &kept) in rows.products().zip(&logits.values) {
                let (from, width) = (k.view(kept), op.width as u32);
                c.part("logits of all", || {
                    c.range(c.thread(), n_here * width, g.warps * 32, |at| {
                        let (row, col) = (at / width, at % width);
                        let place = values.plus(row * g.layout.row_bytes + (col << 2)).at(g.layout.offsets[i]);
                        c.store_f32(place, c.load_f32(from.at(first + row, col)));
                    });
                });
            }
            c.barrier();
            steps_of_rows(k, rows, g, (values, first, n_here), rank);
        });
        return;
    }
    if g.ctas > 1 {
        // A block may write to its peers' memory only when they have started.
        c.cluster_barrier();
    }
    let mut any_linear = false;
    for (i, _) in rows.products() {
        // Row `r` belongs to block `r % ctas` of those that share columns.
        let keep = |row: I32<'c>, col: I32<'c>, value: F32<'c>| {
            let place = values.plus((row / g.ctas) * g.layout.row_bytes + (col << 2)).at(g.layout.offsets[i]);
            if g.ctas > 1 {
                c.store_f32_to_peer(place, first_rank + row % g.ctas, value);
            } else {
                c.store_f32(place, value);
            }
        };
        product(k, program, (rows, i), g, ((first, n_here), (rank, g.ctas)), &keep);
        any_linear = true;
    }
    if g.ctas > 1 {
        c.cluster_barrier();
    } else if any_linear {
        c.barrier();
    }
    steps_of_rows(k, rows, g, (values, first, n_here), rank);
}

/// Step `i`, a product, of the rows from the first on, so many: the columns of a block among those that share them.
fn product<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    (rows, i): (&RowProgram, usize),
    g: &Geometry,
    ((first, n), (rank, blocks)): ((I32<'c>, I32<'c>), (I32<'c>, u32)),
    keep: linear::Keep<'_, 'c>,
) {
    let (c, op) = (k.builder, &rows.ops[i]);
    let RowOpKind::Linear { x, w, bias } = &op.kind else { return };
    let way = Way::of(program, *x, *w);
    let job = linear::Linear {
        x: k.view(*x),
        w: k.view(*w),
        bias: bias.map(|b| k.view(b)),
        op,
        depth: program.buffer(*x).cols as u32,
        share: linear::Share { warps: g.warps, rank, blocks, fragments: g.fragments(op.width as u32) },
        rows: linear::Rows { first, n, at_once: g.rows_at_once(way) },
    };
    c.part(&format!("r{i} = {op}"), || match way {
        Way::Mma(ty) => job.with_tensor_cores(c, ty, keep),
        Way::Fma => job.with_multiply_adds(c, keep),
    });
}

/// The other steps of the rows from `first` on, what is stored of them, and rows that are rounded.
fn steps_of_rows<'c>(
    k: &Kernel<'c, '_>,
    rows: &RowProgram,
    g: &Geometry,
    (values, first, n_here): (Shared<'c>, I32<'c>, I32<'c>),
    rank: I32<'c>,
) {
    let c = k.builder;
    c.range(c.warp() * g.ctas + rank, n_here, g.warps * g.ctas, |row| {
        let base = values.plus((row / g.ctas) * g.layout.row_bytes);
        let warp = Warp { c, ops: &rows.ops, layout: &g.layout, base, lane: c.lane() };
        for i in 0..rows.ops.len() {
            c.part(&format!("r{i} = {}", rows.ops[i]), || steps::step(k, &warp, i, first + row));
            c.warp_barrier();
            for store in rows.stores.iter().filter(|s| s.value.0 as usize == i) {
                c.part(&format!("store {} -> {}", store.value, store.buffer), || {
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
                });
            }
        }
        // The next row of this warp has its own memory; nothing to wait for.
    });
    for q in &rows.quantise {
        c.range(c.warp() * g.ctas + rank, n_here, g.warps * g.ctas, |row| {
            c.part("rounding of rows", || super::quantise::quantise_row(k, q, first + row));
        });
    }
}

/// The steps of one row, run by one warp.
struct Warp<'a, 'c> {
    c: &'c Builder<'c>,
    ops: &'a [RowOp],
    layout: &'a RowLayout,
    /// Start of the row's values.
    base: Shared<'c>,
    lane: I32<'c>,
}

/// A row of values in shared memory.
#[derive(Clone, Copy)]
struct Values<'c> {
    c: &'c Builder<'c>,
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
