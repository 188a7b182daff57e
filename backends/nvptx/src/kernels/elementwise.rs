//! Tiles of elements for maps and combines, and reading their arguments.

use super::{Grid, Kernel, View};
use crate::builder::{F32, I32, Var};
use moec_ir::engine::elementwise;
use moec_ir::tile::{BufferId, ColAccess, Extent, GpuLaunch, MapArg, Places, Program, RowAccess, Schedule};

/// How an elementwise kernel is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub threads: u32,
    pub tile_m: u32,
    pub tile_n: u32,
    /// Adjacent columns that a thread computes: 1, 2, 4 or 8.
    pub vector: u32,
    cols: u32,
}

impl Cut {
    /// As `schedule` says, for a result, other operands of its columns, and arguments.
    pub fn new(
        program: &Program,
        schedule: &Schedule,
        out: (BufferId, Option<Places>),
        others: &[BufferId],
        args: &[MapArg],
    ) -> Cut {
        let vector = elementwise::vector(program, out, others, args);
        let cols = program.buffer(out.0).cols as u32;
        Cut { threads: 32 * schedule.warps, tile_m: schedule.tile_m, tile_n: schedule.tile_n, vector, cols }
    }

    fn col_tiles(&self) -> u32 {
        self.cols.div_ceil(self.tile_n)
    }

    pub fn launch(&self, rows: moec_ir::shape::Dim) -> GpuLaunch {
        GpuLaunch {
            grid: [Grid::tiles(rows, self.tile_m, self.col_tiles().into()), Extent::fixed(1), Extent::fixed(1)],
            block_threads: self.threads,
            cluster: 1,
            dynamic_smem_bytes: 0,
            persistent: false,
            programmatic: false,
            tensor_maps: Vec::new(),
        }
    }

    /// Runs `body` with (row, first column) for every vector of this block's tile.
    pub fn for_each<'c>(&self, k: &Kernel<'c, '_>, rows: I32<'c>, body: impl FnOnce(I32<'c>, I32<'c>)) {
        let c = k.builder;
        if self.cols == 0 {
            return;
        }
        let first_row = (c.block_x() / self.col_tiles()) * self.tile_m;
        let first_col = (c.block_x() % self.col_tiles()) * self.tile_n;
        let per_row = self.tile_n / self.vector;
        c.range(c.thread(), self.tile_m * per_row, self.threads, |i| {
            let row = first_row + i / per_row;
            let col = first_col + (i % per_row) * self.vector;
            c.when(row.lt(rows).and(col.lt(self.cols)), || body(row, col));
        });
    }

    /// The vector of one argument at (row, col) of the result.
    pub fn arg<'c>(&self, k: &Kernel<'c, '_>, arg: &MapArg, row: I32<'c>, col: I32<'c>) -> Vec<F32<'c>> {
        let c = k.builder;
        let view = k.view(arg.buffer);
        let read = |row: I32<'c>| self.read(k, &view, arg.col, row, col);
        match arg.row {
            RowAccess::Same => read(row),
            RowAccess::First => read(c.i32(0)),
            RowAccess::Through(map) => {
                let row = c.load_i32(k.view(map).nth(row));
                let values: Vec<Var<F32>> = (0..self.vector).map(|_| c.var(c.f32(0.0))).collect();
                c.when(row.is_negative().not(), || values.iter().zip(read(row)).for_each(|(v, x)| v.set(x)));
                values.into_iter().map(Var::get).collect()
            }
        }
    }

    /// The largest magnitude of each column's block. Threads of one block read the same elements, from the first-level cache.
    fn abs_max<'c>(&self, k: &Kernel<'c, '_>, view: &View<'c>, block: u32, row: I32<'c>, at: I32<'c>) -> Vec<F32<'c>> {
        let c = k.builder;
        // As wide as vectors that divide blocks, columns and rows: no load leaves the block.
        let divides = |n: &u32| block.is_multiple_of(*n) && view.cols.is_multiple_of((*n).into());
        let width = [8, 4, 2].into_iter().filter(|&n| n <= self.vector).find(divides).unwrap_or(1);
        let of_block = |first: I32<'c>| {
            let most = c.var(c.f32(0.0));
            let end = (first + block).min(self.cols);
            c.range(first, end, width, |col| {
                let values = c.load_elements(view.at(row, col), view.dtype, width as usize);
                most.set(values.into_iter().fold(most.get(), |m, v| m.maximum(v.abs())));
            });
            most.get()
        };
        let first_of = |col: I32<'c>| (col / block) * block;
        if block.is_multiple_of(self.vector) {
            return vec![of_block(first_of(at)); self.vector as usize];
        }
        (0..self.vector).map(|i| of_block(first_of(at + i))).collect()
    }

    fn read<'c>(&self, k: &Kernel<'c, '_>, view: &View<'c>, col: ColAccess, row: I32<'c>, at: I32<'c>) -> Vec<F32<'c>> {
        let c = k.builder;
        match col {
            ColAccess::From(offset) => {
                c.load_elements(view.at(row, at + offset as u32), view.dtype, self.vector as usize)
            }
            ColAccess::First => vec![c.load_elements(view.row(row), view.dtype, 1)[0]; self.vector as usize],
            ColAccess::AbsMax(block) => self.abs_max(k, view, block as u32, row, at),
        }
    }
}
