//! How products of codes with codes are cut for `mma.sync`, on sm_89 and sm_120: which instruction, which tiles, how they lie in shared memory.
//!
//! Tiles and their order are those of [`super::portable`], which also cuts what a launch has beside such products.

use super::ScaleWindow;
use super::portable::place_warps;
use crate::quant::Code;
use crate::tile::{PanelQuant, Program, ScaledProduct, Schedule, Segment};

/// Elements along K between two promotions of FP8 sums, and in a group of fragments.
pub const GROUP: u32 = 128;
/// Accumulators that a thread, which has 255 registers, has room for.
pub(super) const MOST_ACCUMULATORS: u32 = 64;

/// An instruction that multiplies a 16xK A of codes by a Kx8 B of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodedMma {
    /// K = 32, FP8 e4m3 without scales.
    Fp8,
    /// K = 32, with a power of two for each row and column. A 4-bit code stands in bits 2..6 of a byte.
    Mx {
        /// Codes of A.
        a: Code,
        /// Codes of B.
        b: Code,
    },
    /// K = 64, FP4 e2m1 with a power of two for each 32 of K.
    Mx4,
    /// K = 64, FP4 e2m1 with an e4m3 scale for each 16 of K.
    Nv4,
}

impl CodedMma {
    /// Elements along K.
    pub fn k(self) -> u32 {
        match self {
            CodedMma::Fp8 | CodedMma::Mx { .. } => 32,
            CodedMma::Mx4 | CodedMma::Nv4 => 64,
        }
    }
}

/// How codes of a tile become fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they lie.
    AsStored,
    /// 4-bit codes, each spread to a byte: of the eight of a lane, first those with even numbers.
    Spread,
    /// 8-bit codes in the order of spread ones.
    LikeSpread,
}

/// One operand of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// What its elements are.
    pub code: Code,
    /// How they become fragments.
    pub order: Order,
}

impl Operand {
    /// Bytes of `elements` codes.
    pub fn bytes(&self, elements: u32) -> u32 {
        elements * self.code.bits() as u32 / 8
    }
}

/// A tile of codes by codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaledGeometry {
    /// The instruction.
    pub mma: CodedMma,
    /// The rows of an instruction's A: columns of the result.
    pub weights: Operand,
    /// The columns of its B: tokens.
    pub tokens: Operand,
    /// Threads of a CTA.
    pub threads: u32,
    /// Panels of the segment.
    pub panels: u32,
    /// Tokens of a tile.
    pub tile_m: u32,
    /// Output columns of a tile.
    pub tile_n: u32,
    /// Elements along k of a step.
    pub tile_k: u32,
    /// Stages of the ring.
    pub stages: u32,
    /// Warps along the tokens of the tile.
    pub warps_m: u32,
    /// Warps along its columns.
    pub warps_n: u32,
    /// Bytes of scales in a stage of one panel (the larger).
    pub weight_scale_bytes: u32,
    /// Bytes of scales in a stage of the tokens.
    pub token_scale_bytes: u32,
}

/// The instruction for a segment's codes, and how its operands are read: weights, tokens.
fn instruction(segment: &Segment) -> Option<(CodedMma, Operand, Operand)> {
    use Order::{AsStored, LikeSpread, Spread};
    let a = segment.a_quant.as_ref()?.q.code;
    let w = segment.panels.first()?.quant.as_ref()?.format.code;
    let same = segment.panels.iter().all(|p| p.quant.as_ref().is_some_and(|q| q.format.code == w));
    let product = segment.scaled_product(ScaledProduct::of).filter(|_| same)?;
    let operands = |w_order, a_order| (Operand { code: w, order: w_order }, Operand { code: a, order: a_order });
    let (mma, (weights, tokens)) = match (product, w, a) {
        (ScaledProduct::Fp8, ..) => (CodedMma::Fp8, operands(AsStored, AsStored)),
        (ScaledProduct::Nv, ..) => (CodedMma::Nv4, operands(AsStored, AsStored)),
        (ScaledProduct::Mx, Code::E2M1, Code::E2M1) => (CodedMma::Mx4, operands(AsStored, AsStored)),
        (ScaledProduct::Mx, Code::E2M1, _) => (CodedMma::Mx { a: w, b: a }, operands(Spread, LikeSpread)),
        (ScaledProduct::Mx, _, Code::E2M1) => (CodedMma::Mx { a: w, b: a }, operands(LikeSpread, Spread)),
        (ScaledProduct::Mx, ..) => (CodedMma::Mx { a: w, b: a }, operands(AsStored, AsStored)),
        (ScaledProduct::Widened, ..) => return None,
    };
    Some((mma, weights, tokens))
}

/// Whether the engine runs a segment whose activations are codes.
///
/// # Errors
/// Why it does not.
pub fn takes(segment: &Segment) -> Result<(), String> {
    let Some(rows) = &segment.a_quant else { return Ok(()) };
    if instruction(segment).is_none() {
        return Err(format!("no instruction multiplies its {} with its weights", rows.q.code.name()));
    }
    let cut = |block: u32| block.is_multiple_of(GROUP) || (block > 0 && GROUP.is_multiple_of(block));
    if !cut(rows.q.block) {
        return Err(format!("blocks of {} activations are not cut at multiples of {GROUP}", rows.q.block));
    }
    match &segment.out_quant {
        Some(q) if !matches!(q.q.block, 8 | 16 | 32 | 64 | 128) => {
            Err(format!("blocks of {} results are not made in the product's epilogue", q.q.block))
        }
        _ => Ok(()),
    }
}

/// Columns that a tile has at least: a block of the result lies within a tile.
pub(super) fn least_n(segment: &Segment) -> u32 {
    segment.out_quant.as_ref().map_or(16, |q| q.q.block.max(16))
}

/// Elements along k that a step has at most: 256 where scales are cut and aligned there, and for other codes than FP8.
pub(super) fn most_k(program: &Program, segment: &Segment) -> u32 {
    let (Some(rows), Some((mma, ..))) = (&segment.a_quant, instruction(segment)) else { return GROUP };
    let whole_256 = rows.q.block.is_multiple_of(256) || GROUP.is_multiple_of(rows.q.block);
    // Rows of scales that are not aligned to those of 256 elements would be copied byte by byte.
    let aligned = |q: &PanelQuant| {
        let of_step = 256 / q.format.block_cols.max(1);
        program.buffer(q.scales).pitch.is_multiple_of(of_step)
    };
    let aligned = segment.panels.iter().filter_map(|p| p.quant.as_ref()).all(aligned);
    if mma != CodedMma::Fp8 && segment.k(program) > GROUP.into() && whole_256 && aligned { 2 * GROUP } else { GROUP }
}

impl ScaledGeometry {
    /// As `schedule` says. `None` where the engine does not take the segment, or its warps do not all have columns.
    pub fn of(program: &Program, segment: &Segment, s: &Schedule) -> Option<ScaledGeometry> {
        let (mma, weights, tokens) = instruction(segment)?;
        let rows = segment.a_quant.as_ref()?;
        let panels = segment.panels.len() as u32;
        let (tile_m, tile_n, tile_k) = (s.tile_m, s.tile_n, s.tile_k);
        let bytes = |warp_m: u32, warp_n: u32| panels * weights.bytes(warp_n * GROUP) + tokens.bytes(warp_m * GROUP);
        let (warps_m, warps_n) = place_warps((tile_m, tile_n), s.warps, (8, 16), bytes)?;
        let of_panels = segment.panels.iter().filter_map(|p| p.quant.as_ref());
        let of_panels = of_panels.map(|q| ScaleWindow::of_weights(segment.n(program), q, (tile_n, tile_k)).bytes());
        Some(ScaledGeometry {
            mma,
            weights,
            tokens,
            threads: s.warps * 32,
            panels,
            tile_m,
            tile_n,
            tile_k,
            stages: s.stages,
            warps_m,
            warps_n,
            weight_scale_bytes: of_panels.max().unwrap_or(0),
            token_scale_bytes: ScaleWindow::of_rows(rows, (tile_m, tile_k)).bytes(),
        })
    }

    /// Bytes of the codes of one panel in a stage.
    pub fn panel_bytes(&self) -> u32 {
        self.tile_n * self.weights.bytes(self.tile_k)
    }

    /// Bytes of the codes of the tokens in a stage.
    pub fn token_bytes(&self) -> u32 {
        self.tile_m * self.tokens.bytes(self.tile_k)
    }

    /// Where the scales of panel `p` begin in a stage; of the tokens for `p` = number of panels.
    pub fn scales_at(&self, p: u32) -> u32 {
        self.panels * self.panel_bytes() + self.token_bytes() + p * self.weight_scale_bytes
    }

    /// Bytes of a stage: codes of every panel and of the tokens, then their scales.
    pub fn stage_bytes(&self) -> u32 {
        (self.scales_at(self.panels) + self.token_scale_bytes).next_multiple_of(128)
    }

    /// Floats from one row of the result in shared memory to the next: lanes that hold a fragment hit all banks.
    pub fn result_pitch(&self) -> u32 {
        self.tile_n + 4
    }

    /// Bytes of shared memory.
    pub fn smem_bytes(&self) -> u32 {
        (self.stages * self.stage_bytes()).max(self.tile_m * self.result_pitch() * 4)
    }

    /// 8-token fragments of a warp.
    pub fn frags_m(&self) -> u32 {
        self.tile_m / self.warps_m / 8
    }

    /// 16-column fragments of a warp, in each panel.
    pub fn frags_n(&self) -> u32 {
        self.tile_n / self.warps_n / 16
    }
}
