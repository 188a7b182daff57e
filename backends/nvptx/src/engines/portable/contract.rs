//! A contraction's grid: a CTA for each tile.
//!
//! Where tiles are of two heights, the kernel has a body for each, and a CTA runs the lower one where that holds the rows of its tile: both add up
//! along k in one order.
//!
//! Segments lie along z, tiles along x. Within an expert the row tiles change fastest, so that blocks that run together
//! share a panel of weights.

use super::{coded, fma, mma};
use crate::engines::geforce;
use crate::kernels::{Design, Grid, Kernel, Registers};
use crate::parts::{Finish, Group, Tiles, segment_tiles};
use moec_ir::engine::portable::Geometry;
use moec_ir::target::Features;
use moec_ir::tile::{Contract, Extent, GpuLaunch, Program, STRIP, Schedule, Segment};

/// A contraction for the instructions of sm_80, and of codes with codes for those of sm_120.
///
/// # Errors
/// A segment that no instruction multiplies.
pub fn contract<'p>(
    program: &'p Program,
    contract: &'p Contract,
    schedule: &Schedule,
    features: Features,
) -> Result<Design<'p>, String> {
    let cuts = contract.segments.iter().map(|s| Cut::of(program, s, schedule)).collect::<Result<Vec<_>, _>>()?;
    if contract.combine.is_some() && !u64::from(schedule.tile_n).is_multiple_of(STRIP) {
        return Err(format!("rows of {STRIP} columns are counted together, which tiles of {schedule:?} cut"));
    }
    let grid = contract.segments.iter().map(|s| segment_tiles(program, s, (schedule.tile_m, schedule.tile_n)));
    let grid = grid.reduce(Grid::cover);
    let launch = GpuLaunch {
        grid: [grid.unwrap_or(Extent::fixed(1)), Extent::fixed(1), Extent::fixed(cuts.len().max(1) as u64)],
        block_threads: schedule.warps * 32,
        cluster: 1,
        dynamic_smem_bytes: cuts.iter().map(Cut::smem_bytes).max().unwrap_or(0),
        persistent: false,
        programmatic: false,
        tensor_maps: Vec::new(),
    };
    let (threads, schedule) = (launch.block_threads, *schedule);
    let body = move |k: &Kernel| {
        let group = Group::Cta(threads, k.builder.shared());
        let finish = Finish::new(k, program, contract, &schedule);
        for (i, (segment, cut)) in contract.segments.iter().zip(&cuts).enumerate() {
            let mine = k.builder.block_z().eq(i as u32);
            if cuts.len() == 1 {
                k.builder.exit_if(mine.not());
                segment_body(k, program, (segment, cut), features, finish.as_ref().map(|f| (f, group)));
            } else {
                let finish = finish.as_ref().map(|f| (f, group));
                k.builder.when(mine, || segment_body(k, program, (segment, cut), features, finish));
            }
        }
        if let Some(finish) = &finish {
            finish.without_rows(group, (k.builder.i32(0), 1));
        }
    };
    // Shared memory, not registers, decides how many blocks a multiprocessor holds; a spill would cost more than a block.
    Ok(Design { launch, registers: Registers::Plenty, body: Box::new(body) })
}

/// How a segment is cut: into high tiles, and low ones where there are.
struct Cut {
    high: Geometry,
    low: Option<Geometry>,
}

impl Cut {
    fn of(program: &Program, segment: &Segment, schedule: &Schedule) -> Result<Cut, String> {
        let of_height = |tile_m: u32| Geometry::of(program, segment, &schedule.of_height(tile_m));
        let of_all: Option<Vec<Geometry>> = schedule.heights().map(of_height).collect();
        let mut of_all = of_all.ok_or_else(|| format!("no tile of {schedule:?} is built"))?.into_iter().rev();
        let high = of_all.next().ok_or_else(|| format!("{schedule:?} has no tiles"))?;
        Ok(Cut { high, low: of_all.next() })
    }

    fn smem_bytes(&self) -> u32 {
        self.high.smem_bytes().max(self.low.map_or(0, |g| g.smem_bytes()))
    }
}

fn segment_body<'c>(
    k: &Kernel<'c, '_>,
    program: &Program,
    (segment, cut): (&Segment, &Cut),
    features: Features,
    finish: Option<(&Finish<'_, 'c, '_>, Group<'c>)>,
) {
    let (c, id, tile_n) = (k.builder, k.builder.block_x(), cut.high.tile_n());
    let tiles = Tiles::new(k, program, segment, (cut.high.tile_m(), tile_n));
    c.when(id.lt(tiles.count()), || {
        let tile = c.part("tiles", || tiles.find(c, id));
        let of_height = |geometry: &Geometry| match geometry {
            Geometry::Mma(g) if g.is_coded() => coded::tile(k, program, segment, g, &tile, features),
            Geometry::Mma(g) => mma::tile(k, program, segment, g, &tile),
            Geometry::Fma(g) => fma::tile(k, program, segment, g, &tile, features),
            Geometry::Scaled(g) => geforce::tile(k, program, segment, g, &tile),
        };
        match &cut.low {
            None => of_height(&cut.high),
            // All threads of the CTA have the same tile.
            Some(low) => c.either(tile.rows.gt(low.tile_m()), || of_height(&cut.high), || of_height(low)),
        }
        if let Some((finish, group)) = finish {
            finish.stored(group, &tile, (tile.col, tile_n));
        }
    });
}
