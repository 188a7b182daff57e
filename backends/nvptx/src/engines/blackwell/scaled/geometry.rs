//! Where a product of codes is cut, and how its shared and tensor memory are laid out.
//!
//! | asked | given |
//! |---|---|
//! | `tile_m` | 16, or a multiple of 32 up to what tensor memory (block scales) or registers (f32 scales) hold |
//! | `tile_n` | always 128, the lanes of tensor memory, of each block |
//! | `tile_k` | always 128 bytes of shared memory: 128 codes, or 256 of FP4 with FP4 |
//! | `stages` | as many as asked and as shared memory holds, at least 3 |
//! | `k_parts` | as many as asked, and no more than the shortest segment has steps |
//! | `warps` | 8: four roles, four for the epilogue; 12 with block scales, which four bring |

use super::super::geometry::box_rows;
use crate::builder::{BARRIER_BYTES, CtaGroup, ScaledKind};
use crate::parts::k_parts::{KParts, Parts};
use crate::parts::{Board, Order, SWIZZLE_BYTES};
use moec_ir::quant::Code;
use moec_ir::tile::{Contract, Program, ScaledProduct, Schedule, Team};

/// How codes are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Tensor cores apply the scales of blocks of this many elements.
    Blocks(ScaledKind),
    /// The sum over each step is scaled in f32 and added in registers.
    Steps,
}

/// How a product of codes is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaledGeometry {
    pub way: Way,
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
    /// Parts of k.
    pub k: KParts,
}

const _: () = assert!(ScaledGeometry::PART_BARRIERS + Parts::BARRIERS <= ScaledGeometry::ROW_IDS);

impl ScaledGeometry {
    /// Output columns of a block's part of a tile.
    pub const TILE_N: u32 = 128;
    /// Sets of sums in tensor memory.
    pub const SETS: u32 = 2;
    /// Sets of scales in tensor memory: while products of one step read theirs, those of the next arrive.
    pub const SCALE_SETS: u32 = 2;
    /// Bytes of four scales of each of 128 rows.
    pub const ATOM_BYTES: u32 = 512;
    /// Bytes of a panel in a stage.
    pub const PANEL_BYTES: u32 = Self::TILE_N * SWIZZLE_BYTES;
    /// Bytes before the first stage: board, barriers, row numbers, maxima of blocks.
    const CONTROL_BYTES: u32 = 4096;
    /// Byte offset of the numbers of gathered rows.
    pub const ROW_IDS: u32 = 1024;
    /// Byte offset of the largest magnitudes of 16 rows in each warp of the epilogue.
    pub const MAXIMA: u32 = 2048;
    /// Byte offset of the address of tensor memory.
    pub const TENSOR_ADDRESS: u32 = Board::BYTES;
    /// Byte offset of the barriers of sums: full ones, then empty ones.
    pub const SUMS_BARRIERS: u32 = Self::TENSOR_ADDRESS + 16;
    /// Byte offset of the barriers of stages: full ones, then empty ones.
    pub const STAGE_BARRIERS: u32 = Self::SUMS_BARRIERS + 2 * Self::SETS * BARRIER_BYTES;
    const MOST_STAGES: u32 = 32;
    /// Byte offset of the barriers of sums of other blocks.
    pub const PART_BARRIERS: u32 = Self::STAGE_BARRIERS + Self::MOST_STAGES * 2 * BARRIER_BYTES;

    /// Cuts a contraction as `schedule` asks, as nearly as the pipeline allows.
    pub fn cut(program: &Program, contract: &Contract, schedule: &Schedule, smem_limit: u32) -> ScaledGeometry {
        let panels = contract.segments.iter().map(|s| s.panels.len() as u32).max().unwrap_or(1).max(1);
        let is_fp4 = |code: Option<Code>| code == Some(Code::E2M1);
        let both_fp4 = contract.segments.iter().all(|s| {
            is_fp4(s.a_quant.as_ref().map(|q| q.q.code))
                && s.panels.iter().all(|p| is_fp4(p.quant.as_ref().map(|q| q.format.code)))
        });
        let way = match contract.scaled_product() {
            Some(ScaledProduct::Mx) if both_fp4 => Way::Blocks(ScaledKind::Mxf4),
            Some(ScaledProduct::Nv) => Way::Blocks(ScaledKind::Mxf4Nvf4),
            Some(ScaledProduct::Mx) => Way::Blocks(ScaledKind::Mxf8f6f4),
            Some(ScaledProduct::Fp8) | None => Way::Steps,
        };
        // With block scales two sets of sums and of scales share 512 columns; else a thread has a sum for each row.
        let most = match (way, panels) {
            (Way::Blocks(_), 1) => 192,
            (Way::Blocks(_), _) => 96,
            (Way::Steps, 1) => 128,
            (Way::Steps, _) => 64,
        };
        let ctas = match schedule.team {
            Team::One | Team::Neighbours | Team::SplitK => CtaGroup::One,
            Team::Pair => CtaGroup::Pair,
            Team::TwoPairs => CtaGroup::TwoPairs,
        };
        let tile_m = if schedule.tile_m <= 16 && ctas == CtaGroup::One {
            16
        } else {
            schedule.tile_m.next_multiple_of(32).min(most)
        };
        let box_rows = box_rows(tile_m / ctas.count());
        let order = Order { team: 1, dynamic: schedule.dynamic };
        let k = KParts { n: 1, split: false };
        let mut g = ScaledGeometry { way, ctas, order, panels, tile_m, box_rows, stages: 3, k };
        let steps = contract.segments.iter().map(|s| (s.k(program) as u32).div_ceil(g.tile_k())).min().unwrap_or(1);
        g.k = KParts::of(schedule, steps);
        g.order.team = if g.k.split { g.k.n } else { ctas.count() * ctas.groups() };
        let room = smem_limit.saturating_sub(g.first_stage() + g.part_bytes());
        let fit = room / g.stage_bytes();
        g.stages = schedule.stages.clamp(3, fit.clamp(3, Self::MOST_STAGES));
        g
    }

    /// Output columns of a tile.
    pub fn tile_n(&self) -> u32 {
        Self::TILE_N * self.ctas.count()
    }

    /// Most rows of a tile, of all pairs.
    pub fn cluster_rows(&self) -> u32 {
        self.tile_m * self.ctas.groups()
    }

    pub fn warps(&self) -> u32 {
        match self.way {
            Way::Blocks(_) => 12,
            Way::Steps => 8,
        }
    }

    /// Elements along k of a step.
    pub fn tile_k(&self) -> u32 {
        match self.way {
            Way::Blocks(ScaledKind::Mxf4 | ScaledKind::Mxf4Nvf4) => 2 * SWIZZLE_BYTES,
            Way::Blocks(ScaledKind::Mxf8f6f4) | Way::Steps => SWIZZLE_BYTES,
        }
    }

    /// Elements along k of a block with one scale.
    pub fn block(&self) -> u32 {
        match self.way {
            Way::Blocks(ScaledKind::Mxf4Nvf4) => 16,
            Way::Blocks(ScaledKind::Mxf4 | ScaledKind::Mxf8f6f4) => 32,
            Way::Steps => SWIZZLE_BYTES,
        }
    }

    /// Groups of four scales of a row in a step; 0 where tensor cores apply none.
    pub fn atoms(&self) -> u32 {
        match self.way {
            Way::Blocks(_) => self.tile_k() / self.block() / 4,
            Way::Steps => 0,
        }
    }

    /// Groups of 128 rows of activations, each with scales of its own.
    pub fn row_groups(&self) -> u32 {
        self.tile_m.div_ceil(128)
    }

    /// Whether codes of `code` are spread to a byte each: FP4 that is multiplied with FP8.
    pub fn spreads(&self, code: Code) -> bool {
        self.way == Way::Blocks(ScaledKind::Mxf8f6f4) && code == Code::E2M1
    }

    /// Byte offset of the activations in a stage.
    pub fn activations(&self) -> u32 {
        self.panels * Self::PANEL_BYTES
    }

    /// Byte offset of the scales in a stage: those of the panels, then those of the activations.
    pub fn scales(&self) -> u32 {
        self.activations() + self.tile_m / self.ctas.count() * SWIZZLE_BYTES
    }

    /// Bytes of a stage, a multiple of 1024.
    pub fn stage_bytes(&self) -> u32 {
        (self.scales() + (self.panels + self.row_groups()) * self.atoms() * Self::ATOM_BYTES).next_multiple_of(1024)
    }

    /// Bytes of the f32 factors of a step: one for each row.
    pub fn factor_bytes(&self) -> u32 {
        match self.way {
            Way::Blocks(_) => 0,
            Way::Steps => self.tile_m * 4,
        }
    }

    /// Byte offset of the factors of the first set of sums.
    pub const fn first_factors() -> u32 {
        Self::CONTROL_BYTES
    }

    /// Byte offset of the first stage, a multiple of 1024.
    pub fn first_stage(&self) -> u32 {
        (Self::first_factors() + Self::SETS * self.factor_bytes()).next_multiple_of(1024)
    }

    /// Byte offset of the sums of other parts of k.
    pub fn first_sums(&self) -> u32 {
        self.first_stage() + self.stages * self.stage_bytes()
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

    /// Column of the first set of scales.
    pub fn first_scale_column(&self) -> u32 {
        Self::SETS * self.set_columns()
    }

    /// Columns of one set of scales.
    pub fn scale_columns(&self) -> u32 {
        (self.panels + self.row_groups()) * self.atoms() * 4
    }

    /// Columns of tensor memory that the block takes.
    pub fn tensor_columns(&self) -> u32 {
        (self.first_scale_column() + Self::SCALE_SETS * self.scale_columns()).next_power_of_two().max(32)
    }
}
