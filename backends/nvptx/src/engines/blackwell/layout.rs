//! What lies in shared memory before the first stage: board, barriers, row numbers, maxima of blocks.

use crate::builder::BARRIER_BYTES;
use crate::parts::Board;
use crate::parts::k_parts::Parts;
use moec_ir::engine::blackwell::{Geometry, MOST_CODE_STAGES, MOST_STAGES, Operands, SETS};

/// Byte offset of the address of tensor memory.
pub const TENSOR_ADDRESS: u32 = Board::BYTES;
/// Byte offset of the barriers of sums: full ones, then empty ones.
pub const SUMS_BARRIERS: u32 = TENSOR_ADDRESS + 16;
/// Byte offset of the barriers of stages: full ones, then empty ones.
pub const STAGE_BARRIERS: u32 = SUMS_BARRIERS + 2 * SETS * BARRIER_BYTES;
/// Byte offset of the barriers of stages of codes: full ones, then empty ones.
pub const CODE_BARRIERS: u32 = STAGE_BARRIERS + MOST_STAGES * 2 * BARRIER_BYTES;
/// Byte offset behind those.
const BARRIERS_END: u32 = CODE_BARRIERS + MOST_CODE_STAGES * 2 * BARRIER_BYTES;
/// Byte offset of the numbers of gathered rows.
pub const ROW_IDS: u32 = 1024;
/// Byte offset of the largest magnitudes of 16 rows in each warp of the epilogue.
pub const MAXIMA: u32 = 2048;

const _: () = assert!(BARRIERS_END + Parts::BARRIERS <= ROW_IDS);

/// Byte offset of the barriers of sums of other CTAs: that they are there, that there is room for the next.
pub fn part_barriers(g: &Geometry) -> u32 {
    match g.operands {
        Operands::Halves => BARRIERS_END,
        Operands::Blocks(_) | Operands::Fp8 => CODE_BARRIERS,
    }
}
