//! The one place where a contraction's schedule is rounded to what the pipeline takes, and where shared and tensor memory
//! are laid out.
//!
//! | asked | given |
//! |---|---|
//! | `tile_m` | 16, or a multiple of 32 up to 128 (two panels) or 256 (one): two sets of sums must fit in tensor memory. Of a pair at least 32 |
//! | `tile_n` | always 128, the lanes of tensor memory, of each block |
//! | `tile_k` | always 64: 128 bytes, the width of the swizzle |
//! | `stages` | as many as asked and as shared memory holds, at least 2; with codes that many stages of them, and 3 of floats |
//! | `warps` | always 8: one for each role, four for the epilogue; 16 with codes, of which eight decode |
//! | `k_parts` | as many as asked, and no more than the shortest segment has steps |
//! | `team` | as asked; `SplitK` of one part is one block |

use crate::builder::{BARRIER_BYTES, CtaGroup, MmaType};
use crate::parts::k_parts::{KParts, Parts};
use crate::parts::{Board, Order, SWIZZLE_BYTES, code_bytes};
use moec_ir::DType;
use moec_ir::tile::{Contract, Program, Schedule, Segment, Team};

/// Columns of tensor memory.
const TENSOR_COLUMNS: u32 = 512;
/// Most rows of a tile: N of an instruction.
const MOST_ROWS: u32 = 256;

/// How a contraction is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub ty: MmaType,
    pub order: Order,
    /// Blocks that make a tile.
    pub ctas: CtaGroup,
    /// Panels, of the segment with most.
    pub panels: u32,
    /// Most rows of a tile.
    pub tile_m: u32,
    /// Rows of activations that one copy brings where they are not gathered.
    pub box_rows: u32,
    pub stages: u32,
    /// Bytes of codes in a step, of the segment with most; 0 where all weights are floats.
    pub code_bytes: u32,
    /// Stages of the ring of codes.
    pub code_stages: u32,
    /// Parts of k.
    pub k: KParts,
}

const _: () = assert!(Geometry::PART_BARRIERS + Parts::BARRIERS <= Geometry::ROW_IDS);

impl Geometry {
    /// Output columns of a block's part of a tile.
    pub const TILE_N: u32 = 128;
    /// Elements along k of a stage.
    pub const TILE_K: u32 = SWIZZLE_BYTES / 2;
    /// Sets of sums in tensor memory: while one is stored, the next is made.
    pub const SETS: u32 = 2;
    /// Warps beside those that decode.
    pub const WARPS: u32 = 8;
    /// Warps that decode, where there are codes: two threads for each row of a panel.
    pub const DECODERS: u32 = 8;
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
    const MOST_STAGES: u32 = 32;
    /// Byte offset of the barriers of stages of codes: full ones, then empty ones.
    pub const CODE_BARRIERS: u32 = Self::STAGE_BARRIERS + Self::MOST_STAGES * 2 * BARRIER_BYTES;
    const MOST_CODE_STAGES: u32 = 16;
    /// Byte offset of the barriers of sums of other blocks: that they are there, that there is room for the next.
    pub const PART_BARRIERS: u32 = Self::CODE_BARRIERS + Self::MOST_CODE_STAGES * 2 * BARRIER_BYTES;

    /// Cuts a contraction as `schedule` asks, as nearly as the pipeline allows; all its segments have one 16-bit type.
    ///
    /// # Errors
    /// Another type.
    pub fn cut(
        program: &Program,
        contract: &Contract,
        schedule: &Schedule,
        smem_limit: u32,
    ) -> Result<Geometry, String> {
        let panels = contract.segments.iter().map(|s| s.panels.len() as u32).max().unwrap_or(1).max(1);
        let dtype = contract.segments.first().map_or(DType::BF16, |s| program.buffer(s.a).dtype);
        let most = MOST_ROWS.min(TENSOR_COLUMNS / Self::SETS / panels);
        let has_codes = contract.segments.iter().flat_map(|s| &s.panels).any(|p| p.quant.is_some());
        let ctas = match schedule.team {
            Team::One | Team::Neighbours | Team::SplitK => CtaGroup::One,
            // What is decoded in a block is not shared.
            Team::TwoPairs if !has_codes => CtaGroup::TwoPairs,
            Team::Pair | Team::TwoPairs => CtaGroup::Pair,
        };
        let tile_m = if schedule.tile_m <= 16 && ctas == CtaGroup::One {
            16
        } else {
            schedule.tile_m.next_multiple_of(32).min(most)
        };
        let ty = MmaType::of(dtype).ok_or_else(|| format!("its rows are {dtype}"))?;
        let codes = |s: &Segment| -> u32 {
            s.panels.iter().filter_map(|p| p.quant.as_ref()).map(|q| Self::TILE_N * code_bytes(q)).sum()
        };
        let code_bytes = contract.segments.iter().map(codes).max().unwrap_or(0);
        let box_rows = box_rows(tile_m / ctas.count());
        let steps = |s: &Segment| (program.buffer(s.a).cols as u32).div_ceil(Self::TILE_K);
        let k = KParts::of(schedule, contract.segments.iter().map(steps).min().unwrap_or(1));
        let order = Order { team: if k.split { k.n } else { ctas.count() * ctas.groups() }, dynamic: schedule.dynamic };
        let (stages, code_stages) = (2, 0);
        let mut g = Geometry { ty, order, ctas, panels, tile_m, box_rows, stages, code_bytes, code_stages, k };
        let room = smem_limit.saturating_sub(Self::CONTROL_BYTES + g.part_bytes());
        if code_bytes == 0 {
            let fit = room / g.stage_bytes();
            g.stages = schedule.stages.clamp(2, fit.clamp(2, Self::MOST_STAGES));
        } else {
            // Floats wait for nothing but the tensor cores: what hides the latency of memory is the ring of codes.
            g.stages = if 3 * g.stage_bytes() + 4 * code_bytes <= room { 3 } else { 2 };
            let fit = room.saturating_sub(g.stages * g.stage_bytes()) / code_bytes;
            g.code_stages = schedule.stages.clamp(2, fit.clamp(2, Self::MOST_CODE_STAGES));
        }
        Ok(g)
    }

    pub fn has_codes(&self) -> bool {
        self.code_bytes > 0
    }

    pub fn warps(&self) -> u32 {
        Self::WARPS + if self.has_codes() { Self::DECODERS } else { 0 }
    }

    /// Byte offset of the first stage of codes, a multiple of 1024.
    pub fn first_codes(&self) -> u32 {
        self.first_stage() + self.stages * self.stage_bytes()
    }

    /// Output columns of a tile.
    pub fn tile_n(&self) -> u32 {
        Self::TILE_N * self.ctas.count()
    }

    /// Most rows of a tile, of all pairs.
    pub fn cluster_rows(&self) -> u32 {
        self.tile_m * self.ctas.groups()
    }

    /// Bytes of a stage: the panels, then the activations, or the block's half of them.
    pub fn stage_bytes(&self) -> u32 {
        self.panels * Self::PANEL_BYTES + self.tile_m / self.ctas.count() * SWIZZLE_BYTES
    }

    /// Byte offset of the activations in a stage.
    pub fn activations(&self) -> u32 {
        self.panels * Self::PANEL_BYTES
    }

    /// Byte offset of the first stage, a multiple of 1024.
    pub fn first_stage(&self) -> u32 {
        Self::CONTROL_BYTES
    }

    /// Byte offset of the sums of parts: `[part, panel, row, column]` of those of other blocks, or `[panel, row, column]` of
    /// what the parts before have come to.
    pub fn first_sums(&self) -> u32 {
        self.first_codes() + self.code_stages * self.code_bytes
    }

    fn part_bytes(&self) -> u32 {
        self.k.kept() * Parts::sum_bytes(self.panels, self.tile_m)
    }

    pub fn smem_bytes(&self) -> u32 {
        self.first_sums() + self.part_bytes()
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

/// Rows of adjacent activations that one copy brings to a block that brings at most `rows` of a tile, whole copies.
pub fn box_rows(rows: u32) -> u32 {
    if rows.is_multiple_of(32) { 32 } else { 16 }
}
