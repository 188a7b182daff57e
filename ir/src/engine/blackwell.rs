//! How contractions are cut for `tcgen05`: tiles, stages, shared and tensor memory.
//!
//! A CTA's part of a tile is 128 output columns of each panel, which are the instruction's rows and lie on the 128 lanes of
//! tensor memory, by up to 256 rows of the domain, which are its columns: a multiple of 16 that follows the rows that a tile
//! really has.

use super::{ROW_BYTES, code_row_bytes, k_parts, kept_sums, panels};
use crate::quant::Code;
use crate::tile::{Contract, Program, ScaledProduct, Schedule, Segment, Team};

/// Output columns of a CTA's part of a tile.
pub const TILE_N: u32 = 128;
/// Bytes of a panel in a stage.
pub const PANEL_BYTES: u32 = TILE_N * ROW_BYTES;
/// Sets of sums in tensor memory: while one is stored, the next is made.
pub const SETS: u32 = 2;
/// Sets of scales in tensor memory: while products of one step read theirs, those of the next arrive.
pub const SCALE_SETS: u32 = 2;
/// Bytes of four scales of each of 128 rows.
pub const ATOM_BYTES: u32 = 512;
/// Warps with one role each, and those of the epilogue.
pub const WARPS: u32 = 8;
/// Warps that decode, where weights are codes that become floats: two threads for each row of a panel.
pub const DECODERS: u32 = 8;
/// Warps that bring block scales.
pub const SCALE_WARPS: u32 = 4;
/// Most stages of the ring.
pub const MOST_STAGES: u32 = 32;
/// Most stages of the ring of codes.
pub const MOST_CODE_STAGES: u32 = 16;
/// Columns of tensor memory.
const TENSOR_COLUMNS: u32 = 512;
/// Most rows of a tile: N of an instruction.
const MOST_ROWS: u32 = 256;

/// The kinds of products of codes with block scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockScaled {
    /// FP8, or FP4 spread to bytes; blocks of 32 with e8m0 scales; 32 elements deep.
    Mxf8f6f4,
    /// FP4; blocks of 32 with e8m0 scales; 64 elements deep.
    Mxf4,
    /// FP4; blocks of 16 with e4m3 scales; 64 elements deep.
    Mxf4Nvf4,
}

/// What tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// 16-bit floats; codes of weights become such on their way to a stage.
    Halves,
    /// Codes whose block scales tensor cores apply.
    Blocks(BlockScaled),
    /// FP8 codes with FP8 codes: the sum over each 128 is scaled in f32 and added in registers.
    Fp8,
}

/// A contraction, cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// What is multiplied.
    pub operands: Operands,
    /// CTAs that make a tile.
    pub team: Team,
    /// Panels, of the segment with most.
    pub panels: u32,
    /// Most rows of a tile; of two pairs, of either.
    pub tile_m: u32,
    /// Stages of the ring of what is multiplied.
    pub stages: u32,
    /// Bytes of a step's codes that become floats, of the segment with most; 0 where all weights are floats.
    pub code_bytes: u32,
    /// Stages of the ring of codes.
    pub code_stages: u32,
    /// Parts of k.
    pub k_parts: u32,
}

/// Whether the engine runs a contraction.
///
/// # Errors
/// Why it does not.
pub fn takes(program: &Program, contract: &Contract) -> Result<(), String> {
    if contract.has_coded_rows() {
        contract.one_scaled_product(ScaledProduct::of).map(|_| ())
    } else if contract.is_tma_addressable(program) {
        Ok(())
    } else {
        Err("its operands are not what TMA addresses".into())
    }
}

/// The schedule nearest to `asked` that is built as it stands.
///
/// | asked | given |
/// |---|---|
/// | `tile_m` | 16, or a multiple of 32 up to what tensor memory (or, of FP8 codes, registers) holds: 256 of one panel, 128 of two; with block scales 192, 96; of FP8 codes 128, 64. Of a pair at least 32 |
/// | `tile_n` | 128, the lanes of tensor memory, of each CTA of a pair |
/// | `tile_k` | 128 bytes: 64 floats, 128 codes, or 256 of FP4 with FP4 |
/// | `stages` | as many as asked and as shared memory holds, at least 2, of codes with codes 3; where codes become floats, stages of the codes |
/// | `warps` | 8: four roles and the epilogue; 12 with block scales, which four bring; 16 where eight decode |
/// | `k_parts` | as many as asked, and no more than the shortest segment has steps; 1 where segments are chained |
/// | `team` | as asked; `SplitK` where there are parts of k; one pair where codes become floats, which is done in each CTA; one CTA where segments are chained |
/// | `rest_m` | one height: products of a tile have as many rows as it has |
/// | `dynamic` | as asked; not where segments are chained, whose CTAs draw their tiles |
pub fn fit(program: &Program, contract: &Contract, asked: Schedule, smem_bytes: u32) -> Schedule {
    let operands = Operands::of(contract);
    let is_chained = contract.is_chained();
    let k_parts = if is_chained { 1 } else { k_parts(program, contract, asked.k_parts, operands.tile_k()) };
    let decodes = over(contract, |s| decoded_bytes(operands, s)) > 0;
    let team = match asked.team {
        _ if is_chained => Team::One,
        Team::SplitK if k_parts > 1 => Team::SplitK,
        Team::One | Team::Neighbours | Team::SplitK => Team::One,
        Team::TwoPairs if decodes => Team::Pair,
        Team::Pair | Team::TwoPairs => asked.team,
    };
    let tile_m = if asked.tile_m <= 16 && ctas(team) == 1 {
        16
    } else {
        asked.tile_m.next_multiple_of(32).min(operands.most_rows(panels(contract)))
    };
    let warps = match operands {
        Operands::Halves if decodes => WARPS + DECODERS,
        Operands::Halves | Operands::Fp8 => WARPS,
        Operands::Blocks(_) => WARPS + SCALE_WARPS,
    };
    let tile_n = TILE_N * ctas(team);
    let cut = Schedule::new(tile_m, tile_n, operands.tile_k(), 0, warps);
    let s = Schedule { team, k_parts, dynamic: asked.dynamic && !is_chained, ..cut };
    let g = Geometry::of(contract, &s, smem_bytes);
    let (stage_bytes, fixed) = (g.stage_bytes(), g.first_stage() + g.sum_bytes());
    let room = smem_bytes.saturating_sub(fixed);
    let least = operands.least_stages();
    let stages = if decodes {
        let fit = room.saturating_sub(g.stages * stage_bytes) / g.code_bytes;
        asked.stages.clamp(2, fit.clamp(2, MOST_CODE_STAGES))
    } else {
        asked.stages.clamp(least, (room / stage_bytes).clamp(least, MOST_STAGES))
    };
    Schedule { stages, ..s }
}

fn over(contract: &Contract, f: impl Fn(&Segment) -> u32) -> u32 {
    contract.segments.iter().map(f).max().unwrap_or(0)
}

/// CTAs whose tensor cores work together.
fn ctas(team: Team) -> u32 {
    match team {
        Team::Pair | Team::TwoPairs => 2,
        Team::One | Team::Neighbours | Team::SplitK => 1,
    }
}

/// Bytes of a step's codes that become floats.
fn decoded_bytes(operands: Operands, segment: &Segment) -> u32 {
    match operands {
        Operands::Halves => {
            segment.panels.iter().filter_map(|p| p.quant.as_ref()).map(|q| TILE_N * code_row_bytes(q)).sum()
        }
        Operands::Blocks(_) | Operands::Fp8 => 0,
    }
}

impl Operands {
    fn of(contract: &Contract) -> Operands {
        let is_fp4 = |code: Option<Code>| code == Some(Code::E2M1);
        let both_fp4 = contract.segments.iter().all(|s| {
            is_fp4(s.a_quant.as_ref().map(|q| q.q.code))
                && s.panels.iter().all(|p| is_fp4(p.quant.as_ref().map(|q| q.format.code)))
        });
        if !contract.has_coded_rows() {
            return Operands::Halves;
        }
        match contract.scaled_product(ScaledProduct::of) {
            Some(ScaledProduct::Mx) if both_fp4 => Operands::Blocks(BlockScaled::Mxf4),
            Some(ScaledProduct::Nv) => Operands::Blocks(BlockScaled::Mxf4Nvf4),
            Some(ScaledProduct::Mx) => Operands::Blocks(BlockScaled::Mxf8f6f4),
            // Those that are multiplied in no way, or in several, `takes` refuses.
            Some(ScaledProduct::Fp8 | ScaledProduct::Widened) | None => Operands::Fp8,
        }
    }

    /// Elements along k of a step.
    fn tile_k(self) -> u32 {
        match self {
            Operands::Halves => ROW_BYTES / 2,
            Operands::Blocks(BlockScaled::Mxf4 | BlockScaled::Mxf4Nvf4) => 2 * ROW_BYTES,
            Operands::Blocks(BlockScaled::Mxf8f6f4) | Operands::Fp8 => ROW_BYTES,
        }
    }

    /// Most rows of a tile: two sets of sums, and with block scales two of those, share tensor memory; of FP8 codes a thread
    /// has a sum for each row in registers.
    fn most_rows(self, panels: u32) -> u32 {
        match self {
            Operands::Halves => MOST_ROWS.min(TENSOR_COLUMNS / SETS / panels),
            Operands::Blocks(_) => 192 / panels.min(2),
            Operands::Fp8 => 128 / panels.min(2),
        }
    }

    fn least_stages(self) -> u32 {
        match self {
            Operands::Halves => 2,
            Operands::Blocks(_) | Operands::Fp8 => 3,
        }
    }
}

impl Geometry {
    /// As `schedule` says, which [`fit`] has made for CTAs of `smem_bytes`.
    pub fn of(contract: &Contract, schedule: &Schedule, smem_bytes: u32) -> Geometry {
        let operands = Operands::of(contract);
        let mut g = Geometry {
            operands,
            team: schedule.team,
            panels: panels(contract),
            tile_m: schedule.tile_m,
            stages: schedule.stages,
            code_bytes: over(contract, |s| decoded_bytes(operands, s)),
            code_stages: 0,
            k_parts: schedule.k_parts,
        };
        if g.decodes() {
            // Floats wait for nothing but the tensor cores: what hides the latency of memory is the ring of codes.
            let room = smem_bytes.saturating_sub(g.first_stage() + g.sum_bytes());
            g.stages = if 3 * g.stage_bytes() + 4 * g.code_bytes <= room { 3 } else { 2 };
            g.code_stages = schedule.stages;
        }
        g
    }

    /// Whether weights are codes that become floats.
    pub fn decodes(&self) -> bool {
        self.code_bytes > 0
    }

    /// CTAs whose tensor cores work together.
    pub fn ctas(&self) -> u32 {
        ctas(self.team)
    }

    /// Pairs that have the same columns.
    pub fn pairs(&self) -> u32 {
        if self.team == Team::TwoPairs { 2 } else { 1 }
    }

    /// Whether each part of k is made by a CTA of its own.
    pub fn split(&self) -> bool {
        self.team == Team::SplitK && self.k_parts > 1
    }

    /// Elements along k of a step.
    pub fn tile_k(&self) -> u32 {
        self.operands.tile_k()
    }

    /// Output columns of a tile.
    pub fn tile_n(&self) -> u32 {
        TILE_N * self.ctas()
    }

    /// Most rows of a tile, of all pairs.
    pub fn cluster_rows(&self) -> u32 {
        self.tile_m * self.pairs()
    }

    /// Rows of activations that one copy brings where they are not gathered.
    pub fn box_rows(&self) -> u32 {
        if (self.tile_m / self.ctas()).is_multiple_of(32) { 32 } else { 16 }
    }

    /// Elements along k of a block with one scale.
    pub fn block(&self) -> u32 {
        match self.operands {
            Operands::Blocks(BlockScaled::Mxf4Nvf4) => 16,
            Operands::Blocks(BlockScaled::Mxf4 | BlockScaled::Mxf8f6f4) => 32,
            Operands::Halves | Operands::Fp8 => ROW_BYTES,
        }
    }

    /// Groups of four scales of a row in a step; 0 where tensor cores apply none.
    pub fn atoms(&self) -> u32 {
        match self.operands {
            Operands::Blocks(_) => self.tile_k() / self.block() / 4,
            Operands::Halves | Operands::Fp8 => 0,
        }
    }

    /// Groups of 128 rows of activations, each with scales of its own.
    pub fn row_groups(&self) -> u32 {
        self.tile_m.div_ceil(128)
    }

    /// Whether codes of `code` are spread to a byte each: FP4 that is multiplied with FP8.
    pub fn spreads(&self, code: Code) -> bool {
        self.operands == Operands::Blocks(BlockScaled::Mxf8f6f4) && code == Code::E2M1
    }

    /// Bytes before the factors and stages: board, barriers, row numbers, and of codes with codes maxima of blocks.
    pub fn control_bytes(&self) -> u32 {
        match self.operands {
            Operands::Halves => 2048,
            Operands::Blocks(_) | Operands::Fp8 => 4096,
        }
    }

    /// Bytes of the f32 factors of a step: one for each row.
    pub fn factor_bytes(&self) -> u32 {
        match self.operands {
            Operands::Halves | Operands::Blocks(_) => 0,
            Operands::Fp8 => self.tile_m * 4,
        }
    }

    /// Byte offset of the first stage, a multiple of 1024. Factors lie before, for each set of sums.
    pub fn first_stage(&self) -> u32 {
        (self.control_bytes() + SETS * self.factor_bytes()).next_multiple_of(1024)
    }

    /// Byte offset of the activations in a stage.
    pub fn activations(&self) -> u32 {
        self.panels * PANEL_BYTES
    }

    /// Byte offset of the scales in a stage: those of the panels, then those of the activations.
    pub fn scales(&self) -> u32 {
        self.activations() + self.tile_m / self.ctas() * ROW_BYTES
    }

    /// Bytes of a stage, a multiple of 1024: the panels, the CTA's activations, their scales.
    pub fn stage_bytes(&self) -> u32 {
        (self.scales() + (self.panels + self.row_groups()) * self.atoms() * ATOM_BYTES).next_multiple_of(1024)
    }

    /// Byte offset of the first stage of codes, a multiple of 1024.
    pub fn first_codes(&self) -> u32 {
        self.first_stage() + self.stages * self.stage_bytes()
    }

    /// Byte offset of the sums of parts: `[part, panel, row, column]` of those of other CTAs, or `[panel, row, column]` of
    /// what the parts before have come to.
    pub fn first_sums(&self) -> u32 {
        self.first_codes() + self.code_stages * self.code_bytes
    }

    /// Bytes of the sums of other parts of k that a CTA keeps.
    fn sum_bytes(&self) -> u32 {
        kept_sums(self.k_parts, self.split()) * self.panels * self.tile_m * TILE_N * 4
    }

    /// Bytes of shared memory.
    pub fn smem_bytes(&self) -> u32 {
        self.first_sums() + self.sum_bytes()
    }

    /// Columns of one set of sums.
    pub fn set_columns(&self) -> u32 {
        self.panels * self.tile_m
    }

    /// Column of the first set of scales.
    pub fn first_scale_column(&self) -> u32 {
        SETS * self.set_columns()
    }

    /// Columns of one set of scales.
    pub fn scale_columns(&self) -> u32 {
        (self.panels + self.row_groups()) * self.atoms() * 4
    }

    /// Columns of tensor memory that the CTA takes.
    pub fn tensor_columns(&self) -> u32 {
        (self.first_scale_column() + SCALE_SETS * self.scale_columns()).next_power_of_two().max(32)
    }
}
