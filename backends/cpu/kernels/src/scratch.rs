//! What a job keeps in scratch memory.

use crate::entries::{ENTRIES, Entries};
use crate::readers::{BLOCK, ROOM};
use moec_ir::abi::PRODUCTS_SCRATCH_BYTES;

/// Columns of a panel: a block of them and the totals of 64 rows fit a core's second cache.
pub(crate) const PANEL_COLUMNS: usize = 32;
/// Most rows of a job.
pub(crate) const MOST_ROWS: usize = 64;
/// Most readers at once.
const READERS: usize = 4;

/// Byte offsets, all multiples of 64.
const ROOM_AT: usize = 256 * ENTRIES;
const TAIL_AT: usize = ROOM_AT + READERS * ROOM * ENTRIES;
const PANEL_AT: usize = TAIL_AT + 8 * 16 * 4;
const TOTALS_AT: usize = PANEL_AT + BLOCK * PANEL_COLUMNS * 4;
const REST_AT: usize = TOTALS_AT + MOST_ROWS * PANEL_COLUMNS * 8 * 4;
const _: () = assert!(REST_AT as u64 <= PRODUCTS_SCRATCH_BYTES);
/// Bytes behind all others.
pub(crate) const REST: usize = PRODUCTS_SCRATCH_BYTES as usize - REST_AT;

/// Bytes of a panel and its totals.
pub(crate) const WIDENED_BYTES: usize = REST_AT - PANEL_AT;

/// Where things are.
#[derive(Clone, Copy)]
pub(crate) struct Scratch {
    /// Entries for every byte of a scale.
    pub table: *mut Entries,
    /// Entries of readers, [`ROOM`] for each.
    pub room: *mut Entries,
    /// A short group of a vector of columns.
    pub tail: *mut f32,
    /// A block of a panel's columns.
    pub panel: *mut f32,
    /// Totals of a panel's products.
    pub totals: *mut f32,
    /// [`REST`] bytes for tables of a job.
    pub rest: *mut u8,
}

impl Scratch {
    /// [`WIDENED_BYTES`] of rows as products read them, where there is no panel.
    pub fn widened(self) -> *mut u8 {
        self.panel.cast()
    }

    /// Of a job's scratch memory.
    pub fn new(start: *mut u8) -> Scratch {
        Scratch {
            table: start.cast(),
            room: start.wrapping_add(ROOM_AT).cast(),
            tail: start.wrapping_add(TAIL_AT).cast(),
            panel: start.wrapping_add(PANEL_AT).cast(),
            totals: start.wrapping_add(TOTALS_AT).cast(),
            rest: start.wrapping_add(REST_AT),
        }
    }
}
