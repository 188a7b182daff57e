//! Copies of tiles from global to swizzled shared memory.
//!
//! A tile is rows of `tile_k` 16-bit elements. Its 16-byte chunks are permuted within a row so that the eight rows that
//! `ldmatrix` reads at one chunk column lie in different banks: chunk `c` of row `r` is kept at chunk
//! `c ^ ((r / rows_per_line) % chunks)`, where a line is the 128 bytes that the banks span.

use crate::builder::{Bool, Builder, Global, I32, Shared};

/// Byte offset within a tile of byte `byte` of chunk `chunk` of a row.
pub fn swizzle<'c>(g: &MmaGeometry, row: I32<'c>, chunk: I32<'c>) -> I32<'c> {
    row * g.row_bytes() + ((chunk ^ phase(g, row)) << 4)
}

/// What the chunk numbers of a row are xored with.
pub fn phase<'c>(g: &MmaGeometry, row: I32<'c>) -> I32<'c> {
    let rows_per_line = (128 / g.row_bytes()).max(1);
    let chunks = (g.row_bytes() / 16).min(8);
    (row / rows_per_line) & (chunks - 1)
}

/// Rows after which the swizzle repeats.
fn period(g: &MmaGeometry) -> u32 {
    (128 / g.row_bytes()).max(1) * (g.row_bytes() / 16).min(8)
}

/// One operand of a tile: which rows a thread copies, and from where.
pub enum Copier<'c> {
    Async(AsyncCopier<'c>),
    Elements(ElementCopier<'c>),
}

/// Where the rows of a tile begin in global memory, and which of them exist.
pub struct Source<'c> {
    /// Rows of the tile in shared memory.
    pub rows: u32,
    /// Bytes of one copy.
    pub width: u32,
    /// The address of column 0 of a row of the tile. Called with rows that do not exist, too; must give some address.
    pub row: RowAddress<'c>,
    /// Rows from here on are zero.
    pub valid_rows: I32<'c>,
}

/// The address of column 0 of a row of a tile.
pub type RowAddress<'c> = Box<dyn Fn(I32<'c>) -> Global<'c> + 'c>;

/// Copies of 4, 8 or 16 bytes with `cp.async`.
pub struct AsyncCopier<'c> {
    width: u32,
    /// Element of the row at which this thread's copies begin.
    first_element: I32<'c>,
    copies: Vec<OneCopy<'c>>,
}

struct OneCopy<'c> {
    from: Global<'c>,
    to: I32<'c>,
    exists: Bool<'c>,
    /// Whether this thread has a row for this copy at all.
    takes_part: Option<Bool<'c>>,
}

/// Element-wise loads and stores, for rows that are not even aligned to 4 bytes.
pub struct ElementCopier<'c> {
    source: Source<'c>,
}

impl<'c> Copier<'c> {
    pub fn new(c: &'c Builder<'c>, g: &MmaGeometry, source: Source<'c>) -> Copier<'c> {
        if source.width < 4 {
            return Copier::Elements(ElementCopier { source });
        }
        let per_row = g.row_bytes() / source.width;
        let thread = c.thread();
        let (first_row, column) = (thread / per_row, thread % per_row);
        let step = g.threads / per_row;
        let at_byte = column * source.width;
        let to = |row: I32<'c>| swizzle(g, row, at_byte >> 4) + (at_byte & 15);
        let first_to = to(first_row);
        let copies = (0..source.rows.div_ceil(step)).map(|i| {
            let row = first_row + i * step;
            // The swizzle of later rows is that of the first when whole periods lie between them.
            let to = if step.is_multiple_of(period(g)) { first_to + i * step * g.row_bytes() } else { to(row) };
            OneCopy {
                from: (source.row)(row).plus(at_byte.wide()),
                to,
                exists: row.lt(source.valid_rows),
                takes_part: ((i + 1) * step > source.rows).then(|| row.lt(source.rows)),
            }
        });
        Copier::Async(AsyncCopier { width: source.width, first_element: at_byte >> 1, copies: copies.collect() })
    }

    /// Starts the copy of elements `k .. k + tile_k` of every row to the tile at `tile`. Elements from `k_total` on are zero.
    pub fn start(&self, c: &'c Builder<'c>, g: &MmaGeometry, tile: Shared<'c>, k: I32<'c>, k_total: u32) {
        match self {
            Copier::Async(copier) => copier.start(c, g, tile, k, k_total),
            Copier::Elements(copier) => copier.run(c, g, tile, k, k_total),
        }
    }
}

impl<'c> AsyncCopier<'c> {
    fn start(&self, c: &'c Builder<'c>, g: &MmaGeometry, tile: Shared<'c>, k: I32<'c>, k_total: u32) {
        let zero = c.i32(0);
        let bytes = if k_total.is_multiple_of(g.tile_k) {
            c.i32(self.width)
        } else {
            let left = (c.i32(k_total) - (k + self.first_element)) * 2;
            left.signed_max(0).signed_min(self.width)
        };
        let k_bytes = (k << 1).wide();
        for copy in &self.copies {
            let start = || {
                let bytes = c.select(copy.exists, bytes, zero);
                c.copy_async(tile.plus(copy.to), copy.from.plus(k_bytes), self.width, bytes);
            };
            match copy.takes_part {
                Some(condition) => c.when(condition, start),
                None => start(),
            }
        }
    }
}

impl<'c> ElementCopier<'c> {
    fn run(&self, c: &'c Builder<'c>, g: &MmaGeometry, tile: Shared<'c>, k: I32<'c>, k_total: u32) {
        c.range(c.thread(), self.source.rows * g.tile_k, g.threads, |i| {
            let (row, element) = (i / g.tile_k, i % g.tile_k);
            let column = k + element;
            let valid = row.lt(self.source.valid_rows).and(column.lt(k_total));
            let from = (self.source.row)(row).plus((column << 1).wide());
            let to = swizzle(g, row, element >> 3) + ((element & 7) << 1);
            c.copy_half(tile.plus(to), from, valid);
        });
    }
}
use moec_ir::engine::portable::MmaGeometry;
