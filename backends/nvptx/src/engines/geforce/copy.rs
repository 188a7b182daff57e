//! Copies of codes from global to swizzled shared memory.
//!
//! A tile is rows of 64, 128 or 256 bytes. The 16-byte chunks of a row are permuted so that the eight rows that `ldmatrix`
//! reads at one chunk lie in different banks, and so do the four rows of which a half warp reads two adjacent chunks.

use crate::builder::{Bool, Builder, Global, I32, Shared};

/// Bytes of one copy.
const CHUNK: u32 = 16;

/// What the chunk numbers of a row are xored with.
pub fn phase<'c>(row: I32<'c>, row_bytes: u32) -> I32<'c> {
    if row_bytes >= 128 {
        // Rows 0 to 3 differ in the pair of chunks, rows 4 to 7 take the other half of each pair.
        ((row & 3) << 1) | ((row >> 2) & 1)
    } else {
        (row >> 1) & 3
    }
}

/// Where rows of codes come from.
pub struct Source<'c> {
    /// Rows of the tile.
    pub rows: u32,
    /// Bytes of a row of the tile.
    pub row_bytes: u32,
    /// Bytes of a whole row in global memory; what lies behind is zero.
    pub total_bytes: u32,
    /// The address of byte 0 of a row of the tile, also of one that does not exist.
    pub row: Box<dyn Fn(I32<'c>) -> Global<'c> + 'c>,
    /// The distance of rows, where they are adjacent.
    pub pitch_bytes: Option<u64>,
    /// Rows from here on are zero; `None` when all exist.
    pub valid_rows: Option<I32<'c>>,
}

/// The part of a thread in copying one tile.
pub struct Copier<'c> {
    /// Its first byte within a row.
    column: I32<'c>,
    row_bytes: u32,
    total_bytes: u32,
    copies: Vec<OneCopy<'c>>,
}

struct OneCopy<'c> {
    from: Global<'c>,
    /// A constant number of bytes behind `from`.
    further: u64,
    to: I32<'c>,
    exists: Option<Bool<'c>>,
    /// Whether this thread has a row for this copy at all.
    takes_part: Option<Bool<'c>>,
}

impl<'c> Copier<'c> {
    pub fn new(c: &'c Builder<'c>, threads: u32, source: Source<'c>) -> Copier<'c> {
        let per_row = source.row_bytes / CHUNK;
        let (first_row, chunk) = (c.thread() / per_row, c.thread() % per_row);
        let step = threads / per_row;
        let column = chunk * CHUNK;
        let first = (source.row)(first_row).plus(column.wide());
        // Every eight rows the swizzle repeats.
        let to = |row: I32<'c>| row * source.row_bytes + ((chunk ^ phase(row, source.row_bytes)) << 4);
        let first_to = to(first_row);
        let copies = (0..source.rows.div_ceil(step)).map(|i| {
            let row = first_row + i * step;
            let (from, further) = match source.pitch_bytes {
                Some(pitch) => (first, u64::from(i * step) * pitch),
                None if i == 0 => (first, 0),
                None => ((source.row)(row).plus(column.wide()), 0),
            };
            OneCopy {
                from,
                further,
                to: if step.is_multiple_of(8) { first_to + i * step * source.row_bytes } else { to(row) },
                exists: source.valid_rows.map(|n| row.lt(n)),
                takes_part: ((i + 1) * step > source.rows).then(|| row.lt(source.rows)),
            }
        });
        let copies = copies.collect();
        Copier { column, row_bytes: source.row_bytes, total_bytes: source.total_bytes, copies }
    }

    /// Starts the copy of a step's bytes of every row to the tile at `tile`.
    pub fn start(&self, c: &'c Builder<'c>, tile: Shared<'c>, step: I32<'c>) {
        let at = step * self.row_bytes + self.column;
        let bytes = if self.total_bytes.is_multiple_of(self.row_bytes) {
            c.i32(CHUNK)
        } else {
            (c.i32(self.total_bytes) - at).signed_max(0).signed_min(CHUNK)
        };
        let step_bytes = (step * self.row_bytes).wide();
        for copy in &self.copies {
            let start = || {
                let bytes = copy.exists.map_or(bytes, |exists| c.select(exists, bytes, c.i32(0)));
                c.copy_async(tile.plus(copy.to), copy.from.plus(step_bytes).plus(copy.further), CHUNK, bytes);
            };
            match copy.takes_part {
                Some(condition) => c.when(condition, start),
                None => start(),
            }
        }
    }
}
