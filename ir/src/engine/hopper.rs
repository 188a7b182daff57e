//! How contractions are cut for `wgmma`: tiles, stages, shared memory.
//!
//! A tile is 128 output columns of each panel, which are the instruction's 64 rows twice, by up to 256 rows of the domain,
//! which are its columns. Each of two warpgroups has 64 of the columns; or, in tiles of 64 columns of two panels, a panel. An
//! instruction's number of rows stands in it, so a kernel has a loop for each of [`Geometry::row_steps`] and a tile runs the
//! smallest that holds its rows.

use super::{ROW_BYTES, ScaleWindow, code_row_bytes, k_parts, kept_sums, panels};
use crate::DType;
use crate::quant::Code;
use crate::tile::{BufferId, Contract, PanelQuant, Program, ScaledProduct, Schedule, Segment, Team};

/// Output columns of a tile.
pub const TILE_N: u32 = 128;
/// Output columns of a warpgroup, and of a tile whose warpgroups have a panel each.
pub const GROUP_N: u32 = TILE_N / 2;
/// Columns between rows of sums that one warpgroup gives the other: lanes that write together touch every bank once.
pub const GIVEN_PITCH: u32 = GROUP_N + 4;
/// Most rows of a tile whose warpgroups have a panel each: few, for sums of one go to the other through shared memory.
const MOST_ROWS_OF_PANELS: u32 = 64;
/// Elements of a step of 16-bit floats.
const HALF_K: u32 = ROW_BYTES / 2;
/// Elements of a step of FP8 codes, whose sums are scaled in f32.
const FP8_K: u32 = ROW_BYTES;
/// Warps: four that bring operands and find tiles, and two warpgroups that multiply and store.
pub const WARPS: u32 = 12;
/// Those that multiply.
pub const PRODUCT_WARPS: u32 = 8;
/// Bytes before the first stage: the board of tiles, barriers, numbers of gathered rows.
pub const CONTROL_BYTES: u32 = 3072;
/// Most stages of the ring.
pub const MOST_STAGES: u32 = 32;
/// Sums of a tile that a thread has registers for: two for each row and panel.
const MOST_SUMS: u32 = 128;

/// Most experts whose tiles may wait for each other: the warp that finds tiles has the rows of each in registers, of which it has few.
/// With 384, `ptxas` 13.5 spills two.
const MOST_CHAINED_EXPERTS: u64 = 256;

/// What tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// 16-bit floats; codes of weights become such in registers.
    Halves,
    /// FP8 codes of rows with FP8 codes of weights, or with 4-bit ones, which become such in registers: the sum over each 128,
    /// or over each group that has one scale, is scaled and added in f32.
    Fp8,
}

/// A contraction, cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// What is multiplied.
    pub operands: Operands,
    /// Panels, of the segment with most.
    pub panels: u32,
    /// Most rows of a tile.
    pub tile_m: u32,
    /// Columns of a tile: [`TILE_N`], or [`GROUP_N`] where each warpgroup has a panel.
    pub tile_n: u32,
    /// Elements along k of a step.
    pub tile_k: u32,
    /// Stages of the ring.
    pub stages: u32,
    /// Bytes of the weights in a stage, floats or codes, of the segment with most.
    pub weight_bytes: u32,
    /// Bytes of the scales of codes in a stage, of the segment with most.
    pub scale_bytes: u32,
    /// Parts of k.
    pub k_parts: u32,
    /// Whether each part of k is made by a CTA of its own.
    pub split: bool,
    /// CTAs of neighbouring rows that bring their weights for each other: 1 or 2.
    pub neighbours: u32,
    /// Bytes of the largest magnitudes of rows by warp, where results become codes.
    pub maxima_bytes: u32,
    /// Bytes of the sums that one warpgroup gives the other, where each has a panel.
    pub given_bytes: u32,
}

/// Whether the engine runs a contraction: TMA addresses its operands, and scales of codes change at the ends of steps or at
/// quarters of them.
///
/// # Errors
/// Why it does not.
pub fn takes(program: &Program, contract: &Contract) -> Result<(), String> {
    let experts = contract.segments.iter().flat_map(|s| &s.panels).map(|p| program.buffer(p.weights).batch).max();
    if contract.is_chained() && experts > Some(MOST_CHAINED_EXPERTS) {
        return Err(format!("its tiles wait for each other, and it has more than {MOST_CHAINED_EXPERTS} experts"));
    }
    if contract.has_coded_rows() {
        return takes_codes(program, contract);
    }
    if !contract.is_tma_addressable(program) {
        return Err("its operands are not 16-bit floats, or codes of them, that TMA addresses".into());
    }
    if contract.segments.iter().any(|s| s.out_quant.is_some()) {
        return Err("its results are codes, and its rows are not".into());
    }
    let step = u64::from(HALF_K);
    let panels = || contract.segments.iter().flat_map(|s| &s.panels).filter_map(|p| p.quant.as_ref());
    let cut = |q: &PanelQuant| match q.format.block_cols {
        0 => true,
        block => block.is_multiple_of(step) || step.is_multiple_of(block),
    };
    match panels().find(|q| !cut(q)) {
        Some(q) => Err(format!("scales of {} elements neither divide {HALF_K} nor are multiples", q.format.block_cols)),
        None => Ok(()),
    }
}

fn takes_codes(program: &Program, contract: &Contract) -> Result<(), String> {
    contract.one_scaled_product(ScaledProduct::of_fp8)?;
    let aligned = |id: BufferId| program.buffer(id).pitch.is_multiple_of(16);
    for s in &contract.segments {
        if !aligned(s.a) || !s.panels.iter().all(|p| aligned(p.weights)) {
            return Err("its rows do not begin at multiples of 16 bytes".into());
        }
        if s.a_quant.as_ref().is_some_and(|q| q.q.has_row()) {
            return Err("its rows have global scales of their own".into());
        }
        if s.out_quant.as_ref().is_some_and(|q| u64::from(q.q.block) != u64::from(TILE_N) || q.q.code.bits() != 8) {
            return Err(format!("its results are not FP8 codes in blocks of {TILE_N}"));
        }
    }
    Ok(())
}

/// The schedule nearest to `asked` that is built as it stands.
///
/// | asked | given |
/// |---|---|
/// | `tile_m` | a power of two, 8 … 256 of one panel, 128 of two; of FP8 codes 128, 64 |
/// | `tile_n` | 64 as asked of two panels of floats or of codes of one format that become floats, without parts of k, `tile_m` being 64 at most and `team` one CTA; else 128 |
/// | `tile_k`, `warps` | 64 (128 of FP8 codes), 12 |
/// | `stages` | as many as asked and as shared memory holds, at least 2 |
/// | `k_parts` | as many as asked, and no more than the shortest segment has steps; 1 where segments are chained |
/// | `team` | `SplitK` where there are parts of k, `Neighbours` where segments are not chained, else one CTA |
/// | `rest_m` | one height: products of a tile have as many rows as it has |
/// | `dynamic` | no: there is no cluster launch control |
pub fn fit(program: &Program, contract: &Contract, asked: Schedule, smem_bytes: u32) -> Schedule {
    let operands = operands(contract);
    let most = operands.most_rows() / panels(contract);
    let tile_k = operands.tile_k();
    let k_parts = if contract.is_chained() { 1 } else { k_parts(program, contract, asked.k_parts, tile_k) };
    let by_panel = asked.tile_n <= GROUP_N && k_parts == 1 && may_split_by_panel(operands, contract);
    let most = if by_panel { MOST_ROWS_OF_PANELS } else { most };
    let mut s = Schedule {
        tile_m: asked.tile_m.clamp(8, most).next_power_of_two().min(most),
        tile_n: if by_panel { GROUP_N } else { TILE_N },
        tile_k,
        stages: 2,
        warps: WARPS,
        team: match asked.team {
            Team::SplitK if k_parts > 1 => Team::SplitK,
            Team::Neighbours if !by_panel && !contract.is_chained() => Team::Neighbours,
            Team::One | Team::Neighbours | Team::Pair | Team::TwoPairs | Team::SplitK => Team::One,
        },
        k_parts,
        dynamic: false,
        rest_m: 0,
        order_ctas: 1,
        logit_ctas: 1,
    };
    loop {
        let g = Geometry::of(program, contract, &s);
        let room = smem_bytes.saturating_sub(g.smem_bytes() - g.stages * g.stage_bytes()) / g.stage_bytes();
        if room >= 2 || s.tile_m <= 8 {
            s.stages = asked.stages.clamp(2, room.clamp(2, MOST_STAGES));
            return s;
        }
        s.tile_m /= 2;
    }
}

/// Whether each warpgroup may have a panel: there are two, both floats or codes of one format.
fn may_split_by_panel(operands: Operands, contract: &Contract) -> bool {
    let format = |s: &Segment, i: usize| s.panels.get(i).map(|p| p.quant.as_ref().map(|q| q.format));
    let alike = |s: &Segment| s.panels.len() == 2 && format(s, 0) == format(s, 1);
    operands == Operands::Halves && contract.segments.iter().all(alike)
}

fn operands(contract: &Contract) -> Operands {
    if contract.has_coded_rows() { Operands::Fp8 } else { Operands::Halves }
}

impl Operands {
    fn tile_k(self) -> u32 {
        match self {
            Operands::Halves => HALF_K,
            Operands::Fp8 => FP8_K,
        }
    }

    /// Most rows of a tile of one panel. The sums of a step of FP8 codes are beside those of all steps.
    fn most_rows(self) -> u32 {
        match self {
            Operands::Halves => MOST_SUMS * 2,
            Operands::Fp8 => MOST_SUMS,
        }
    }
}

impl Geometry {
    /// As `schedule` says, which [`fit`] has made.
    pub fn of(program: &Program, contract: &Contract, schedule: &Schedule) -> Geometry {
        let over = |f: &dyn Fn(&Segment) -> u32| contract.segments.iter().map(f).max().unwrap_or(0);
        let operands = operands(contract);
        let (tile_m, tile_n, tile_k) = (schedule.tile_m, schedule.tile_n, operands.tile_k());
        let scales = |s: &Segment| -> u32 {
            let quants = s.panels.iter().filter_map(|p| p.quant.as_ref());
            let of_panels: u32 =
                quants.map(|q| ScaleWindow::of_weights(s.n(program), q, (tile_n, tile_k)).bytes()).sum();
            of_panels + s.a_quant.as_ref().map_or(0, |q| ScaleWindow::of_rows(q, (tile_m, tile_k)).bytes())
        };
        let has_codes = contract.segments.iter().any(|s| s.out_quant.is_some());
        Geometry {
            operands,
            panels: panels(contract),
            tile_m,
            tile_n,
            tile_k,
            stages: schedule.stages,
            weight_bytes: over(&|s| {
                s.panels.iter().map(|p| tile_n * weight_row_bytes(operands, p.quant.as_ref())).sum()
            }),
            scale_bytes: over(&scales),
            k_parts: schedule.k_parts,
            split: schedule.team == Team::SplitK && schedule.k_parts > 1,
            neighbours: if schedule.team == Team::Neighbours { 2 } else { 1 },
            maxima_bytes: if has_codes { tile_m * PRODUCT_WARPS * 4 } else { 0 },
            given_bytes: if tile_n == GROUP_N { GIVEN_PITCH * tile_m * 4 } else { 0 },
        }
    }

    /// Rows that a loop over k is built for, smallest first: a tile takes the first that holds its rows.
    pub fn row_steps(&self) -> Vec<u32> {
        row_steps(self.tile_m)
    }

    /// Rows of activations that one copy brings where they are not gathered: all row steps are multiples.
    pub fn box_rows(&self) -> u32 {
        self.row_steps().first().map_or(8, |&n| n.min(64))
    }

    /// Byte offset of the activations in a stage, a multiple of 1024.
    pub fn activations(&self) -> u32 {
        self.weight_bytes
    }

    /// Byte offset of the scales in a stage.
    pub fn scales(&self) -> u32 {
        self.activations() + self.tile_m * ROW_BYTES
    }

    /// Bytes of a stage, a multiple of 1024.
    pub fn stage_bytes(&self) -> u32 {
        (self.scales() + self.scale_bytes).next_multiple_of(1024)
    }

    /// Byte offset of the largest magnitudes: `[row][warp]`, f32.
    pub fn maxima(&self) -> u32 {
        CONTROL_BYTES + self.stages * self.stage_bytes()
    }

    /// Whether each warpgroup has a panel of the tile, instead of half of its columns.
    pub fn is_by_panel(&self) -> bool {
        self.tile_n == GROUP_N
    }

    /// Byte offset of the sums that one warpgroup gives the other: f32, a row each [`GIVEN_PITCH`].
    pub fn given(&self) -> u32 {
        self.maxima() + self.maxima_bytes
    }

    /// Byte offset of the sums of other parts of k.
    pub fn first_sums(&self) -> u32 {
        self.given() + self.given_bytes
    }

    /// Bytes of shared memory.
    pub fn smem_bytes(&self) -> u32 {
        self.first_sums() + kept_sums(self.k_parts, self.split) * self.panels * self.tile_m * TILE_N * 4
    }
}

/// Rows that loops over k of tiles of `tile_m` rows are built for, smallest first.
pub fn row_steps(tile_m: u32) -> Vec<u32> {
    let parts = [tile_m / 8, tile_m / 4, tile_m / 2, tile_m / 4 * 3, tile_m];
    let mut all: Vec<u32> = parts.into_iter().filter(|n| n.is_multiple_of(8) && *n > 0).collect();
    all.dedup();
    all
}

/// Bytes of a row of a panel in a stage: of floats, of codes that become floats, or of codes that are multiplied.
pub fn weight_row_bytes(operands: Operands, quant: Option<&PanelQuant>) -> u32 {
    match (operands, quant) {
        (Operands::Halves, Some(q)) => code_row_bytes(q),
        (Operands::Fp8, Some(q)) if q.format.code.bits() == 4 => ROW_BYTES / 2,
        (Operands::Halves, None) | (Operands::Fp8, _) => ROW_BYTES,
    }
}

/// Whether 4-bit codes of a panel become FP8 on the way to products with rows of FP8 codes.
pub fn is_widened(segment: &Segment) -> bool {
    let four_bits = |q: &PanelQuant| matches!(q.format.code, Code::E2M1 | Code::Int4);
    segment.a_quant.is_some() && segment.panels.iter().filter_map(|p| p.quant.as_ref()).any(four_bits)
}

/// The type of a contraction's rows.
pub fn element(program: &Program, contract: &Contract) -> Option<DType> {
    contract.segments.first().map(|s| program.buffer(s.a).dtype)
}
