//! The one place where a contraction's schedule is rounded to what the pipeline takes, and where shared and tensor memory
//! are laid out.
//!
//! | asked | given |
//! |---|---|
//! | `tile_m` | 16, or a multiple of 32 up to 128 (two panels) or 256 (one): two sets of sums must fit in tensor memory |
//! | `tile_n` | always 128, the lanes of tensor memory |
//! | `tile_k` | always 64: 128 bytes, the width of the swizzle |
//! | `stages` | as many as asked and as shared memory holds, at least 2 |
//! | `warps` | always 8: one for each role, four for the epilogue |

use crate::code::{BARRIER_BYTES, MmaType};
use crate::pipeline::{Board, SWIZZLE_BYTES};
use moec_ir::DType;
use moec_ir::tile::{Contract, Program, Schedule};

/// Columns of tensor memory.
const TENSOR_COLUMNS: u32 = 512;
/// Most rows of a tile: N of an instruction.
const MOST_ROWS: u32 = 256;

/// How a contraction is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub ty: MmaType,
    /// Panels, of the segment with most.
    pub panels: u32,
    /// Most rows of a tile.
    pub tile_m: u32,
    /// Rows of activations that one copy brings where they are not gathered.
    pub box_rows: u32,
    pub stages: u32,
}

impl Geometry {
    /// Output columns of a tile.
    pub const TILE_N: u32 = 128;
    /// Elements along k of a stage.
    pub const TILE_K: u32 = SWIZZLE_BYTES / 2;
    /// Sets of sums in tensor memory: while one is stored, the next is made.
    pub const SETS: u32 = 2;
    pub const WARPS: u32 = 8;
    /// Bytes of a panel in a stage.
    pub const PANEL_BYTES: u32 = Self::TILE_N * SWIZZLE_BYTES;
    /// Bytes before the first stage: board, barriers, row numbers.
    const CONTROL_BYTES: u32 = 2048;
    /// Byte offset of the numbers of gathered rows.
    pub const ROW_IDS: u32 = 1024;
    /// Byte offset of the address of tensor memory.
    pub const TENSOR_ADDRESS: u32 = Board::BYTES;
    /// Byte offset of the barriers of sums: full ones, then empty ones.
    pub const SUMS_BARRIERS: u32 = Self::TENSOR_ADDRESS + 16;
    /// Byte offset of the barriers of stages: full ones, then empty ones.
    pub const STAGE_BARRIERS: u32 = Self::SUMS_BARRIERS + 2 * Self::SETS * BARRIER_BYTES;
    const MOST_STAGES: u32 = (Self::ROW_IDS - Self::STAGE_BARRIERS) / (2 * BARRIER_BYTES);

    /// Cuts a contraction as `schedule` asks, as nearly as the pipeline allows; all its segments have one 16-bit type.
    pub fn cut(program: &Program, contract: &Contract, schedule: &Schedule, smem_limit: u32) -> Geometry {
        let panels = contract.segments.iter().map(|s| s.panels.len() as u32).max().unwrap_or(1).max(1);
        let dtype = contract.segments.first().map_or(DType::BF16, |s| program.buffer(s.a).dtype);
        let most = MOST_ROWS.min(TENSOR_COLUMNS / Self::SETS / panels);
        let tile_m = if schedule.tile_m <= 16 { 16 } else { schedule.tile_m.next_multiple_of(32).min(most) };
        let ty = MmaType::of(dtype).unwrap_or(MmaType::Bf16);
        let mut g = Geometry { ty, panels, tile_m, box_rows: tile_m.min(32), stages: 2 };
        let fit = smem_limit.saturating_sub(Self::CONTROL_BYTES) / g.stage_bytes();
        g.stages = schedule.stages.clamp(2, fit.clamp(2, Self::MOST_STAGES));
        g
    }

    /// Bytes of a stage: the panels, then the activations.
    pub fn stage_bytes(&self) -> u32 {
        self.panels * Self::PANEL_BYTES + self.tile_m * SWIZZLE_BYTES
    }

    /// Byte offset of the activations in a stage.
    pub fn activations(&self) -> u32 {
        self.panels * Self::PANEL_BYTES
    }

    /// Byte offset of the first stage, a multiple of 1024.
    pub fn first_stage(&self) -> u32 {
        Self::CONTROL_BYTES
    }

    pub fn smem_bytes(&self) -> u32 {
        Self::CONTROL_BYTES + self.stages * self.stage_bytes()
    }

    /// Columns of one set of sums.
    pub fn set_columns(&self) -> u32 {
        self.panels * self.tile_m
    }

    /// Columns of tensor memory that the block takes.
    pub fn tensor_columns(&self) -> u32 {
        (Self::SETS * self.set_columns()).next_power_of_two().max(32)
    }
}
