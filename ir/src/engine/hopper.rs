//! How contractions are cut for `wgmma`: tiles, stages, shared memory.
//!
//! A tile is 128 output columns of each panel, which are the instruction's 64 rows twice, by up to 256 rows of the domain,
//! which are its columns. Each of two warpgroups has 64 of the columns. An instruction's number of rows stands in it, so a
//! kernel has a loop for each of [`Geometry::row_steps`] and a tile runs the smallest that holds its rows.

use crate::DType;
use crate::tile::{Contract, PanelQuant, Program, Schedule, Segment, Team};

/// Output columns of a tile.
pub const TILE_N: u32 = 128;
/// Elements along k of a step: rows of 128 bytes, the width of the swizzle.
pub const TILE_K: u32 = 64;
/// Bytes of a row of a tile of floats.
pub const ROW_BYTES: u32 = 128;
/// Warps: four that bring operands and find tiles, and two warpgroups that multiply and store.
pub const WARPS: u32 = 12;
/// Bytes before the first stage: the board of tiles, barriers, numbers of gathered rows.
pub const CONTROL_BYTES: u32 = 3072;
/// Most stages of the ring.
pub const MOST_STAGES: u32 = 32;
/// Sums of a tile that a thread has registers for: two for each row and panel.
const MOST_SUMS: u32 = 128;

/// A contraction, cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Panels, of the segment with most.
    pub panels: u32,
    /// Most rows of a tile.
    pub tile_m: u32,
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
}

/// Whether the engine runs a contraction: TMA addresses its operands, and scales of codes change at the ends of steps or at
/// quarters of them.
///
/// # Errors
/// Why it does not.
pub fn takes(program: &Program, contract: &Contract) -> Result<(), String> {
    if !contract.is_tma_addressable(program) {
        return Err("its operands are not 16-bit floats, or codes of them, that TMA addresses".into());
    }
    let step = u64::from(TILE_K);
    let panels = || contract.segments.iter().flat_map(|s| &s.panels).filter_map(|p| p.quant.as_ref());
    match panels().find(|q| !q.format.block_cols.is_multiple_of(step) && !step.is_multiple_of(q.format.block_cols)) {
        Some(q) => Err(format!("scales of {} elements neither divide {TILE_K} nor are multiples", q.format.block_cols)),
        None => Ok(()),
    }
}

/// The schedule nearest to `asked` that is built as it stands.
///
/// | asked | given |
/// |---|---|
/// | `tile_m` | a power of two, 8 … 256 of one panel, 128 of two |
/// | `tile_n`, `tile_k`, `warps` | 128, 64, 12 |
/// | `stages` | as many as asked and as shared memory holds, at least 2 |
/// | `k_parts` | as many as asked, and no more than the shortest segment has steps |
/// | `team` | `SplitK` where there are parts of k, else one CTA |
/// | `dynamic` | no: there is no cluster launch control |
pub fn fit(program: &Program, contract: &Contract, asked: Schedule, smem_bytes: u32) -> Schedule {
    let most = MOST_SUMS * 2 / panels(contract);
    let steps = contract.segments.iter().map(|s| s.k(program).div_ceil(TILE_K.into())).min().unwrap_or(1);
    let k_parts = u64::from(asked.k_parts).min(steps).max(1) as u32;
    let mut s = Schedule {
        tile_m: asked.tile_m.clamp(8, most).next_power_of_two().min(most),
        tile_n: TILE_N,
        tile_k: TILE_K,
        stages: 2,
        warps: WARPS,
        team: if asked.team == Team::SplitK && k_parts > 1 { Team::SplitK } else { Team::One },
        k_parts,
        dynamic: false,
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

fn panels(contract: &Contract) -> u32 {
    contract.segments.iter().map(|s| s.panels.len() as u32).max().unwrap_or(1).max(1)
}

impl Geometry {
    /// As `schedule` says, which [`fit`] has made.
    pub fn of(program: &Program, contract: &Contract, schedule: &Schedule) -> Geometry {
        let over = |f: &dyn Fn(&Segment) -> u32| contract.segments.iter().map(f).max().unwrap_or(0);
        Geometry {
            panels: panels(contract),
            tile_m: schedule.tile_m,
            stages: schedule.stages,
            weight_bytes: over(&|s| s.panels.iter().map(|p| TILE_N * weight_row_bytes(p.quant.as_ref())).sum()),
            scale_bytes: over(&|s| {
                let quants = s.panels.iter().filter_map(|p| p.quant.as_ref());
                quants.map(|q| scale_window(s.n(program), q).bytes()).sum()
            }),
            k_parts: schedule.k_parts,
            split: schedule.team == Team::SplitK && schedule.k_parts > 1,
        }
    }

    /// Rows that a loop over k is built for, smallest first: a tile takes the first that holds its rows.
    pub fn row_steps(&self) -> Vec<u32> {
        let m = self.tile_m;
        let mut all: Vec<u32> =
            [m / 8, m / 4, m / 2, m / 4 * 3, m].into_iter().filter(|n| n.is_multiple_of(8) && *n > 0).collect();
        all.dedup();
        all
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

    /// Sums that a CTA keeps of other parts of k.
    fn kept(&self) -> u32 {
        if self.split { self.k_parts - 1 } else { self.k_parts.min(2) - 1 }
    }

    /// Byte offset of the sums of other parts of k.
    pub fn first_sums(&self) -> u32 {
        CONTROL_BYTES + self.stages * self.stage_bytes()
    }

    /// Bytes of shared memory.
    pub fn smem_bytes(&self) -> u32 {
        self.first_sums() + self.kept() * self.panels * self.tile_m * TILE_N * 4
    }
}

/// Bytes of a row of a panel in a stage: of floats, or of codes.
pub fn weight_row_bytes(quant: Option<&PanelQuant>) -> u32 {
    quant.map_or(ROW_BYTES, |q| TILE_K * q.format.code.bits() as u32 / 8)
}

/// What a stage holds of the scales of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaleWindow {
    /// Rows that have scales of their own: those of the tile, or 1.
    pub rows: u32,
    /// Bytes of a row: the aligned 4, 8 or 16 that the scales of a step lie in.
    pub width: u32,
}

impl ScaleWindow {
    /// Bytes in a stage, a multiple of 16.
    pub fn bytes(self) -> u32 {
        (self.rows * self.width).next_multiple_of(16)
    }
}

/// The scales of a panel of `n` rows.
pub fn scale_window(n: u64, q: &PanelQuant) -> ScaleWindow {
    let f = q.format;
    let one_row = f.block_rows == 0 || f.block_rows.is_multiple_of(TILE_N.into()) || n == 1;
    let of_step = u64::from(TILE_K).checked_div(f.block_cols).unwrap_or(1).max(1);
    ScaleWindow { rows: if one_row { 1 } else { TILE_N }, width: (of_step * f.scale.bytes()).max(4) as u32 }
}

/// The type of a contraction's operands.
pub fn element(program: &Program, contract: &Contract) -> Option<DType> {
    contract.segments.first().map(|s| program.buffer(s.a).dtype)
}
