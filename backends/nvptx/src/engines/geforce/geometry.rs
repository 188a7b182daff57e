//! How a product of codes is cut: which instruction, which tiles, how they lie in shared memory.
//!
//! | asked | given |
//! |---|---|
//! | `warps` | a power of two, 1…8 |
//! | `tile_m` (tokens) | a power of two, 8…128 |
//! | `tile_n` (columns) | a power of two, 16…128; more when the warps would not all have columns or when a block of the result's scales has more, less when the accumulators would not fit in registers |
//! | `tile_k` | 128 or 256; 128 for FP8, and where scales are not cut or aligned at 256 |
//! | `stages` | 2…8, less (and then a smaller `tile_k`) when shared memory is too small |

use crate::builder::CodedMma;
use crate::kernels::round_warps;
use crate::parts::load::scales::ScaleCut;
use moec_ir::quant::Code;
use moec_ir::tile::{PanelQuant, Program, ScaledProduct, Schedule, Segment};

/// Elements along K between two promotions of FP8 sums, and in a group of fragments.
pub const GROUP: u32 = 128;
/// Accumulators of a thread, which has 255 registers.
const MOST_ACCUMULATORS: u32 = 64;

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
    pub code: Code,
    pub order: Order,
}

/// A tile of codes by codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScaledGeometry {
    pub mma: CodedMma,
    /// The rows of an instruction's A: columns of the result.
    pub weights: Operand,
    /// The columns of its B: tokens.
    pub tokens: Operand,
    pub threads: u32,
    pub panels: u32,
    pub tile_m: u32,
    pub tile_n: u32,
    pub tile_k: u32,
    pub stages: u32,
    /// Warps along the tokens of the tile.
    pub warps_m: u32,
    /// Warps along its columns.
    pub warps_n: u32,
    /// Bytes of scales in a stage: of one panel (the larger), and of the tokens.
    pub weight_scale_bytes: u32,
    pub token_scale_bytes: u32,
}

impl Operand {
    /// Bytes of `elements` codes.
    pub fn bytes(&self, elements: u32) -> u32 {
        elements * self.code.bits() as u32 / 8
    }
}

impl ScaledGeometry {
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

    fn accumulators(&self) -> u32 {
        self.panels * self.frags_m() * self.frags_n() * 4
    }
}

/// The instruction for a segment's codes, and how its operands are read.
fn instruction(segment: &Segment) -> Option<(CodedMma, Operand, Operand)> {
    use Order::{AsStored, LikeSpread, Spread};
    let a = segment.a_quant.as_ref()?.q.code;
    let w = segment.panels.first()?.quant.as_ref()?.format.code;
    let same = segment.panels.iter().all(|p| p.quant.as_ref().is_some_and(|q| q.format.code == w));
    let product = segment.scaled_product().filter(|_| same)?;
    let operands = |w_order, a_order| (Operand { code: w, order: w_order }, Operand { code: a, order: a_order });
    let (mma, (weights, tokens)) = match (product, w, a) {
        (ScaledProduct::Fp8, ..) => (CodedMma::Fp8, operands(AsStored, AsStored)),
        (ScaledProduct::Nv, ..) => (CodedMma::Nv4, operands(AsStored, AsStored)),
        (ScaledProduct::Mx, Code::E2M1, Code::E2M1) => (CodedMma::Mx4, operands(AsStored, AsStored)),
        (ScaledProduct::Mx, Code::E2M1, _) => (CodedMma::Mx { a: w, b: a }, operands(Spread, LikeSpread)),
        (ScaledProduct::Mx, _, Code::E2M1) => (CodedMma::Mx { a: w, b: a }, operands(LikeSpread, Spread)),
        (ScaledProduct::Mx, ..) => (CodedMma::Mx { a: w, b: a }, operands(AsStored, AsStored)),
    };
    Some((mma, weights, tokens))
}

/// What this machine cannot compute of a segment whose activations are codes.
pub fn unfit(segment: &Segment) -> Option<String> {
    let Some(rows) = &segment.a_quant else { return None };
    if instruction(segment).is_none() {
        return Some(format!("no instruction multiplies its {} with its weights", rows.q.code.name()));
    }
    let cut = |block: u32| block.is_multiple_of(GROUP) || (block > 0 && GROUP.is_multiple_of(block));
    if !cut(rows.q.block) {
        return Some(format!("blocks of {} activations are not cut at multiples of {GROUP}", rows.q.block));
    }
    match &segment.out_quant {
        Some(q) if !matches!(q.q.block, 8 | 16 | 32 | 64 | 128) => {
            Some(format!("blocks of {} results are not made in the product's epilogue", q.q.block))
        }
        _ => None,
    }
}

/// Cuts a segment as `schedule` asks, as nearly as possible. `None` where [`unfit`] says why.
pub fn cut(program: &Program, segment: &Segment, s: &Schedule, smem_limit: u32) -> Option<ScaledGeometry> {
    let (mma, weights, tokens) = instruction(segment)?;
    let rows = segment.a_quant.as_ref()?;
    let warps = round_warps(s.warps, 8);
    let k = (segment.k(program) as u32).max(1);
    let whole_256 = rows.q.block.is_multiple_of(256) || GROUP.is_multiple_of(rows.q.block);
    // Rows of scales that are not aligned to those of 256 elements would be copied byte by byte.
    let aligned = |q: &PanelQuant| {
        let of_step = 256 / q.format.block_cols.max(1);
        program.buffer(q.scales).pitch.is_multiple_of(of_step)
    };
    let aligned = segment.panels.iter().filter_map(|p| p.quant.as_ref()).all(aligned);
    let wide = mma != CodedMma::Fp8 && s.tile_k > GROUP && k > GROUP && whole_256 && aligned;
    // A block of the result lies within a tile.
    let least_n = segment.out_quant.as_ref().map_or(16, |q| q.q.block.max(16));
    let mut g = ScaledGeometry {
        mma,
        weights,
        tokens,
        threads: warps * 32,
        panels: segment.panels.len() as u32,
        tile_m: s.tile_m.clamp(8, 128).next_power_of_two(),
        tile_n: s.tile_n.clamp(least_n, 128).next_power_of_two(),
        tile_k: if wide { 2 * GROUP } else { GROUP },
        stages: s.stages.clamp(2, 8),
        warps_m: 1,
        warps_n: 1,
        weight_scale_bytes: 0,
        token_scale_bytes: 0,
    };
    loop {
        let Some((warps_m, warps_n)) = place_warps(&g, warps) else {
            g.tile_n *= 2;
            continue;
        };
        (g.warps_m, g.warps_n) = (warps_m, warps_n);
        if g.accumulators() <= MOST_ACCUMULATORS {
            break;
        }
        if g.tile_n >= g.tile_m && g.tile_n > least_n { g.tile_n /= 2 } else { g.tile_m /= 2 }
    }
    loop {
        let panels = segment.panels.iter().filter_map(|p| p.quant.as_ref());
        let of_panels = panels.map(|q| ScaleCut::of_weights(program, segment, q, (g.tile_n, g.tile_k)).bytes());
        g.weight_scale_bytes = of_panels.max().unwrap_or(0);
        g.token_scale_bytes = ScaleCut::of_tokens(rows, (g.tile_m, g.tile_k)).bytes();
        if g.smem_bytes() <= smem_limit {
            return Some(g);
        }
        if g.stages > 2 {
            g.stages -= 1;
        } else if g.tile_k > GROUP {
            g.tile_k = GROUP;
        } else {
            return Some(g);
        }
    }
}

/// Warps along tokens and columns, so that each has whole fragments and together they read least from shared memory;
/// among equals, more warps along the columns.
fn place_warps(g: &ScaledGeometry, warps: u32) -> Option<(u32, u32)> {
    (0..=warps.ilog2())
        .map(|i| (1 << i, warps >> i))
        .filter(|&(m, n)| g.tile_m.is_multiple_of(8 * m) && g.tile_n.is_multiple_of(16 * n))
        .min_by_key(|&(m, n)| {
            let (weights, tokens) = (g.weights.bytes(g.tile_n / n * GROUP), g.tokens.bytes(g.tile_m / m * GROUP));
            (g.panels * weights + tokens, m)
        })
}
