//! The entries of blocks of codes, where readers find them.

use super::{BLOCK, LEAST_BLOCK};
use crate::entries::{ENTRIES, Entries, Recipe};
use crate::machine::Machine;
use crate::values::Matrix;
use moec_ir::quant::ScaleCode;

/// The entries of the blocks of one or two columns: made for a reader, or one for every byte that a scale can be.
#[derive(Clone, Copy)]
pub(super) struct Blocks<const BYTES: bool> {
    pub(super) entries: [*const u8; 2],
    pub(super) scales: [*const u8; 2],
    /// Elements of a block are `1 << shift`.
    pub(super) shift: u32,
}

impl<const BYTES: bool> Blocks<BYTES> {
    /// The entries of the block that element `i` of a column lies in: low bytes, then high ones.
    #[inline(always)]
    pub(super) unsafe fn of(&self, column: usize, i: usize) -> *const u8 {
        let block = i >> self.shift;
        // SAFETY: the element exists, so its block does.
        unsafe {
            let entry = if BYTES { usize::from(*self.scales[column].add(block)) } else { block };
            self.entries[if BYTES { 0 } else { column }].wrapping_add(entry * ENTRIES)
        }
    }

    /// The entries for elements from `i` on and from `i + 32` on, of each column.
    #[inline(always)]
    pub(super) unsafe fn four<M: Machine>(&self, i: usize) -> [*const u8; 4] {
        // SAFETY: the caller's contract.
        unsafe {
            let (a, b) = (self.of(0, i), self.of(0, i + 32));
            let (c, d) = if M::COLUMNS == 2 { (self.of(1, i), self.of(1, i + 32)) } else { (a, b) };
            [a, b, c, d]
        }
    }
}

/// Makes the entries of the blocks that elements `first .. end` of a column lie in; returns where those of block 0 would
/// be.
///
/// # Safety
/// The column has these elements; `room` is for as many entries as they have blocks.
#[inline(always)]
pub(super) unsafe fn make<M: Machine>(
    m: &Matrix,
    recipe: &Recipe,
    scale: ScaleCode,
    shift: u32,
    scales: *const u8,
    (first, end): (usize, usize),
    room: *mut Entries,
) -> *const u8 {
    let (from, to) = (first >> shift, (end - 1) >> shift);
    let n = to + 1 - from;
    let mut factors = [0.0; BLOCK / LEAST_BLOCK];
    // SAFETY: the caller's contract; a block of a sum has at most so many blocks of codes.
    unsafe {
        M::factors(scale, scales, from, n, m.global, factors.as_mut_ptr());
        recipe.entries::<M>(factors.as_ptr(), n, room);
    }
    room.cast_const().cast::<u8>().wrapping_sub(from * ENTRIES)
}
