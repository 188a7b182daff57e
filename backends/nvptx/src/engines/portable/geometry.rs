//! The one place where a contraction's schedule is rounded to what the pipelines take.
//!
//! | asked | given |
//! |---|---|
//! | `warps` | a power of two, 1…8: with more, a thread has too few registers for its accumulators |
//! | `tile_m` | tensor cores: a power of two, 16…256; f32: 8…128 |
//! | `tile_n` | a power of two, 8…256 (f32: 8…128); more when the warps would not all have columns; less when the accumulators would not fit in registers |
//! | `tile_k` | tensor cores: a power of two, 16…128, and no more than K rounded up; f32: always 16 |
//! | `stages` | tensor cores: 2…8 (3…8 with quantised weights), less (and then a smaller `tile_k`) when shared memory is too small; f32: one tile in shared memory, one in registers |

use crate::builder::MmaType;
use crate::engines::geforce::{self, ScaledGeometry};
use crate::kernels::round_warps;
use moec_ir::tile::{Buffer, Program, Schedule, Segment};

/// Accumulators of a thread, which has 255 registers.
const MOST_ACCUMULATORS: u32 = 128;

/// How one segment is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Geometry {
    Mma(MmaGeometry),
    Fma(FmaGeometry),
    /// Codes by codes.
    Scaled(ScaledGeometry),
}

/// A tile on the tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmaGeometry {
    pub ty: MmaType,
    pub threads: u32,
    pub panels: u32,
    pub tile_m: u32,
    pub tile_n: u32,
    pub tile_k: u32,
    pub stages: u32,
    /// Warps along the rows of the tile.
    pub warps_m: u32,
    /// Warps along the columns.
    pub warps_n: u32,
    /// Bytes of one copy from the activations: 16, 8, 4, or 2 for element-wise loads.
    pub copy_a: u32,
    /// Bytes of one copy from the weights.
    pub copy_b: u32,
    /// Panels that are floats; they lie behind the activations in a stage.
    pub dense_panels: u32,
    /// Bytes of a stage that the codes of the other panels take.
    pub code_bytes: u32,
}

/// A tile of exact f32 multiply-adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FmaGeometry {
    pub threads: u32,
    pub panels: u32,
    pub tile_m: u32,
    pub tile_n: u32,
    pub tile_k: u32,
    /// Threads along the columns of the tile; the others are along its rows.
    pub threads_n: u32,
}

impl Geometry {
    pub fn tile_m(&self) -> u32 {
        match self {
            Geometry::Mma(g) => g.tile_m,
            Geometry::Fma(g) => g.tile_m,
            Geometry::Scaled(g) => g.tile_m,
        }
    }

    pub fn tile_n(&self) -> u32 {
        match self {
            Geometry::Mma(g) => g.tile_n,
            Geometry::Fma(g) => g.tile_n,
            Geometry::Scaled(g) => g.tile_n,
        }
    }

    pub fn smem_bytes(&self) -> u32 {
        match self {
            Geometry::Mma(g) => g.smem_bytes(),
            Geometry::Fma(g) => g.smem_bytes(),
            Geometry::Scaled(g) => g.smem_bytes(),
        }
    }
}

impl MmaGeometry {
    /// Bytes of a row of a tile in shared memory.
    pub fn row_bytes(&self) -> u32 {
        self.tile_k * 2
    }

    /// Bytes of a stage: activations, float weights, codes.
    pub fn stage_bytes(&self) -> u32 {
        (self.tile_m + self.dense_panels * self.tile_n) * self.row_bytes() + self.code_bytes
    }

    /// Bytes of the tile of one panel.
    pub fn panel_bytes(&self) -> u32 {
        self.tile_n * self.row_bytes()
    }

    /// Bytes of one of the two sets of tiles that codes are made into.
    pub fn decoded_bytes(&self) -> u32 {
        (self.panels - self.dense_panels) * self.panel_bytes()
    }

    /// Whether some panels are codes.
    pub fn is_coded(&self) -> bool {
        self.dense_panels < self.panels
    }

    pub fn smem_bytes(&self) -> u32 {
        self.stages * self.stage_bytes() + 2 * self.decoded_bytes()
    }

    /// 16-row fragments of a warp.
    pub fn frags_m(&self) -> u32 {
        self.tile_m / self.warps_m / 16
    }

    /// 8-column fragments of a warp, in each panel.
    pub fn frags_n(&self) -> u32 {
        self.tile_n / self.warps_n / 8
    }

    fn accumulators(&self) -> u32 {
        self.panels * self.frags_m() * self.frags_n() * 4
    }
}

impl FmaGeometry {
    pub fn rows_per_thread(&self) -> u32 {
        self.tile_m / (self.threads / self.threads_n)
    }

    pub fn cols_per_thread(&self) -> u32 {
        self.tile_n / self.threads_n
    }

    /// f32 elements from one k to the next of the activations' tile; odd, so that transposing stores hit all banks.
    pub fn pitch_a(&self) -> u32 {
        self.tile_m + 1
    }

    pub fn pitch_b(&self) -> u32 {
        self.tile_n + 1
    }

    pub fn smem_bytes(&self) -> u32 {
        (self.pitch_a() + self.panels * self.pitch_b()) * self.tile_k * 4
    }
}

/// Cuts a segment as `schedule` asks, as nearly as the pipelines allow.
pub fn cut(program: &Program, segment: &Segment, schedule: &Schedule, smem_limit: u32) -> Geometry {
    if let Some(scaled) = geforce::cut(program, segment, schedule, smem_limit) {
        return Geometry::Scaled(scaled);
    }
    let a = program.buffer(segment.a);
    let ty = MmaType::of(a.dtype).filter(|_| segment.panels.iter().all(|p| p.dtype(program) == a.dtype));
    let warps = round_warps(schedule.warps, 8);
    match ty {
        Some(ty) => Geometry::Mma(cut_mma(ty, program, segment, schedule, warps, smem_limit)),
        None => Geometry::Fma(cut_fma(segment.panels.len() as u32, schedule, warps)),
    }
}

fn cut_mma(
    ty: MmaType,
    program: &Program,
    segment: &Segment,
    s: &Schedule,
    warps: u32,
    smem_limit: u32,
) -> MmaGeometry {
    let width = |pitch: u64| [16, 8, 4].into_iter().find(|w| (pitch * 2).is_multiple_of(u64::from(*w))).unwrap_or(2);
    let a = program.buffer(segment.a);
    let panels = segment.panels.len() as u32;
    let dense: Vec<&Buffer> =
        segment.panels.iter().filter(|p| p.quant.is_none()).map(|p| program.buffer(p.weights)).collect();
    // Bits of the codes of all panels at one (n, k), and the least tile_k at which each row has 16 bytes of them.
    let code_bits = segment.panels.iter().filter_map(|p| p.quant.as_ref()).map(|q| q.format.code.bits() as u32);
    let (least_k, code_bits) = code_bits.fold((16, 0), |(k, sum), bits| (k.max(128 / bits), sum + bits));
    let least_stages = if code_bits > 0 { 3 } else { 2 };
    let k = (a.cols as u32).max(1).next_power_of_two();
    let mut g = MmaGeometry {
        ty,
        threads: warps * 32,
        panels,
        tile_m: s.tile_m.clamp(16, 256).next_power_of_two(),
        tile_n: s.tile_n.clamp(8, 256).next_power_of_two(),
        tile_k: s.tile_k.min(k).clamp(least_k, 128).next_power_of_two(),
        stages: s.stages.clamp(least_stages, 8),
        warps_m: 1,
        warps_n: 1,
        copy_a: width(a.pitch),
        copy_b: dense.iter().map(|w| width(w.pitch)).min().unwrap_or(16),
        dense_panels: dense.len() as u32,
        code_bytes: 0,
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
        if g.tile_n >= g.tile_m { g.tile_n /= 2 } else { g.tile_m /= 2 }
    }
    let codes = |g: &MmaGeometry| g.tile_n * g.tile_k * code_bits / 8;
    g.code_bytes = codes(&g);
    while g.smem_bytes() > smem_limit {
        if g.stages > least_stages {
            g.stages -= 1;
        } else if g.tile_k > least_k {
            g.tile_k /= 2;
        } else {
            break;
        }
        g.code_bytes = codes(&g);
    }
    g
}

/// Warps along rows and columns, so that each has whole fragments and together they read least from shared memory;
/// among equals, more warps along the columns.
fn place_warps(g: &MmaGeometry, warps: u32) -> Option<(u32, u32)> {
    (0..=warps.ilog2())
        .map(|i| (1 << i, warps >> i))
        .filter(|&(m, n)| g.tile_m.is_multiple_of(16 * m) && g.tile_n.is_multiple_of(8 * n))
        .min_by_key(|&(m, n)| {
            let odd = (g.tile_n / n / 8) % 2;
            (g.tile_m / m + g.panels * g.tile_n / n + odd, m)
        })
}

fn cut_fma(panels: u32, s: &Schedule, warps: u32) -> FmaGeometry {
    let threads = warps * 32;
    let mut tile_m = s.tile_m.clamp(8, 128).next_power_of_two();
    let mut tile_n = s.tile_n.clamp(8, 128).next_power_of_two();
    while tile_m * tile_n < threads {
        tile_n *= 2;
    }
    while tile_m * tile_n * panels > 32 * threads {
        if tile_n >= tile_m { tile_n /= 2 } else { tile_m /= 2 }
    }
    // Threads side by side along the columns, as long as each warp still spans whole rows of them.
    let mut threads_n = tile_n.min(threads).min(32);
    while threads / threads_n > tile_m {
        threads_n *= 2;
    }
    FmaGeometry { threads, panels, tile_m, tile_n, tile_k: 16, threads_n }
}
