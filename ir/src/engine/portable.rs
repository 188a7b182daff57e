//! How contractions are cut for the instructions that every GPU has, and which tiles those of sm_120 share.
//!
//! All segments of a launch have tiles of one size; how many steps of k they have, and what a stage holds, differs.

use super::geforce::{self, ScaledGeometry};
use super::{MmaType, panels};
use crate::tile::{Buffer, Contract, Groups, Program, Schedule, Segment, Team};

/// Accumulators of a thread, which has 255 registers, on tensor cores; and of multiply-adds.
const MOST_ACCUMULATORS: u32 = 128;
const MOST_FMA_ACCUMULATORS: u32 = 32;
/// Most warps of a CTA: with more, a thread has too few registers for its accumulators.
const MOST_WARPS: u32 = 8;
/// Elements along k of a step of exact multiply-adds.
const FMA_K: u32 = 16;

/// How one segment is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Geometry {
    /// On tensor cores, of 16-bit floats.
    Mma(MmaGeometry),
    /// By exact f32 multiply-adds.
    Fma(FmaGeometry),
    /// Codes by codes.
    Scaled(ScaledGeometry),
}

/// A tile on the tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmaGeometry {
    /// What is multiplied.
    pub ty: MmaType,
    /// Threads of a CTA.
    pub threads: u32,
    /// Panels of the segment.
    pub panels: u32,
    /// Rows of a tile.
    pub tile_m: u32,
    /// Output columns of a tile.
    pub tile_n: u32,
    /// Elements along k of a step.
    pub tile_k: u32,
    /// Stages of the ring.
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
    /// Threads of a CTA.
    pub threads: u32,
    /// Panels of the segment.
    pub panels: u32,
    /// Rows of a tile.
    pub tile_m: u32,
    /// Output columns of a tile.
    pub tile_n: u32,
    /// Elements along k of a step.
    pub tile_k: u32,
    /// Threads along the columns of the tile; the others are along its rows.
    pub threads_n: u32,
}

/// What multiplies a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Mma(MmaType),
    Fma,
    Scaled,
}

impl Way {
    fn of(program: &Program, segment: &Segment) -> Way {
        if segment.a_quant.is_some() {
            return Way::Scaled;
        }
        let a = program.buffer(segment.a);
        let alike = segment.panels.iter().all(|p| p.dtype(program) == a.dtype);
        MmaType::of(a.dtype).filter(|_| alike).map_or(Way::Fma, Way::Mma)
    }
}

/// What a segment asks of a tile.
struct Limits {
    m: (u32, u32),
    n: (u32, u32),
    k: (u32, u32),
    stages: (u32, u32),
    accumulators: u32,
}

impl Limits {
    fn of(program: &Program, segment: &Segment) -> Limits {
        match Way::of(program, segment) {
            Way::Mma(_) => {
                let codes = segment.panels.iter().filter_map(|p| p.quant.as_ref());
                // Each row has 16 bytes of codes.
                let least_k = codes.map(|q| 128 / q.format.code.bits() as u32).max();
                let k = (program.buffer(segment.a).cols as u32).max(1).next_power_of_two();
                let stages = (if least_k.is_some() { 3 } else { 2 }, 8);
                let least_k = least_k.unwrap_or(16).max(16);
                let k = (least_k, k.clamp(least_k, 128));
                Limits { m: (16, 256), n: (8, 256), k, stages, accumulators: MOST_ACCUMULATORS }
            }
            Way::Fma => Limits {
                m: (8, 128),
                n: (8, 128),
                k: (FMA_K, FMA_K),
                stages: (2, 2),
                accumulators: MOST_FMA_ACCUMULATORS,
            },
            Way::Scaled => Limits {
                m: (8, 128),
                n: (geforce::least_n(segment), 128),
                k: (geforce::GROUP, geforce::most_k(program, segment)),
                stages: (2, 8),
                accumulators: geforce::MOST_ACCUMULATORS,
            },
        }
    }

    /// Of tiles that both take. Steps along k and stages are those of the greater need.
    fn and(self, other: Limits) -> Limits {
        let both = |a: (u32, u32), b: (u32, u32)| (a.0.max(b.0), a.1.min(b.1).max(a.0.max(b.0)));
        Limits {
            m: both(self.m, other.m),
            n: both(self.n, other.n),
            k: both(self.k, other.k),
            stages: both(self.stages, other.stages),
            accumulators: self.accumulators.min(other.accumulators),
        }
    }
}

/// The schedule nearest to `asked` that is built as it stands.
///
/// | asked | given |
/// |---|---|
/// | `warps` | a power of two, 1…8: with more, a thread has too few registers for its accumulators |
/// | `tile_m` | a power of two, 16…256; f32 and codes with codes: 8…128 |
/// | `rest_m` | a power of two below `tile_m`, where rows are those of experts and every warp has a part of such a tile; else one height |
/// | `tile_n` | a power of two, 8…256 (f32: 8…128; codes with codes: 16…128, and a block of the result's scales); more when the warps would not all have columns; less when the accumulators would not fit in registers |
/// | `tile_k` | a power of two, 16…128, and no more than K rounded up; f32: 16; codes with codes: 128, or 256 where scales are cut and aligned there |
/// | `stages` | 2…8 (3…8 with quantised weights), less (and then a smaller `tile_k`) when shared memory is too small; f32: one tile in shared memory, one in registers |
/// | `team`, `k_parts`, `dynamic`, `order_ctas`, `logit_ctas` | one CTA, one sum, no, one, one |
pub fn fit(program: &Program, contract: &Contract, asked: Schedule, smem_bytes: u32) -> Schedule {
    let Some(limits) = contract.segments.iter().map(|s| Limits::of(program, s)).reduce(Limits::and) else {
        return asked;
    };
    let power = |x: u32, (least, most): (u32, u32)| x.clamp(least, most).next_power_of_two();
    let mut s = Schedule {
        tile_m: power(asked.tile_m, limits.m),
        tile_n: power(asked.tile_n, limits.n),
        tile_k: power(asked.tile_k, limits.k),
        stages: asked.stages.clamp(limits.stages.0, limits.stages.1),
        warps: power(asked.warps, (1, MOST_WARPS)),
        team: Team::One,
        k_parts: 1,
        dynamic: false,
        rest_m: 0,
        order_ctas: 1,
        logit_ctas: 1,
    };
    let panels = panels(contract);
    let places = |s: &Schedule| contract.segments.iter().all(|segment| Geometry::of(program, segment, s).is_some());
    loop {
        if !places(&s) {
            if s.tile_n > 32 * MOST_WARPS {
                // No tile helps: `takes` says why.
                return asked;
            }
            s.tile_n *= 2;
        } else if s.tile_m * s.tile_n * panels <= limits.accumulators * s.warps * 32 {
            break;
        } else if s.tile_n >= s.tile_m && s.tile_n > limits.n.0 {
            s.tile_n /= 2;
        } else {
            s.tile_m /= 2;
        }
    }
    while smem_of(program, contract, &s) > smem_bytes {
        if s.stages > limits.stages.0 {
            s.stages -= 1;
        } else if s.tile_k > limits.k.0 {
            s.tile_k /= 2;
        } else {
            break;
        }
    }
    let rest = if asked.rest_m == 0 { 0 } else { power(asked.rest_m, limits.m) };
    s.rest_m = rest_of(program, contract, &s, rest);
    s
}

/// Rows of low tiles: as asked, where each warp has a part of them and experts have rows that are left; else 0.
fn rest_of(program: &Program, contract: &Contract, s: &Schedule, asked: u32) -> u32 {
    let is_grouped = |segment: &Segment| matches!(segment.groups, Groups::ByExpert { .. });
    let places = |segment: &Segment| Geometry::of(program, segment, &s.of_height(asked)).is_some();
    let segments = &contract.segments;
    let is_built = (1..s.tile_m).contains(&asked) && segments.iter().any(is_grouped) && segments.iter().all(places);
    if is_built { asked } else { 0 }
}

/// Bytes of shared memory of a CTA: those of its highest tiles.
pub fn smem_of(program: &Program, contract: &Contract, s: &Schedule) -> u32 {
    let of = |segment| Geometry::of(program, segment, s).map_or(0, |g| g.smem_bytes());
    contract.segments.iter().map(of).max().unwrap_or(0)
}

/// Warps along rows and columns of a tile, so that each has whole fragments, of (rows, columns), and together they read least
/// from shared memory by `bytes` of a warp's rows and columns; among equals, more warps along the columns.
pub(super) fn place_warps(
    (tile_m, tile_n): (u32, u32),
    warps: u32,
    (rows, columns): (u32, u32),
    bytes: impl Fn(u32, u32) -> u32,
) -> Option<(u32, u32)> {
    (0..=warps.ilog2())
        .map(|i| (1 << i, warps >> i))
        .filter(|&(m, n)| tile_m.is_multiple_of(rows * m) && tile_n.is_multiple_of(columns * n))
        .min_by_key(|&(m, n)| (bytes(tile_m / m, tile_n / n), m))
}

impl Geometry {
    /// As `schedule` says, which [`fit`] has made. `None` where its warps do not all have a part of the tile, or where no
    /// instruction multiplies the segment's codes ([`geforce::takes`]).
    pub fn of(program: &Program, segment: &Segment, s: &Schedule) -> Option<Geometry> {
        match Way::of(program, segment) {
            Way::Mma(ty) => MmaGeometry::of(ty, program, segment, s).map(Geometry::Mma),
            Way::Fma => FmaGeometry::of(segment.panels.len() as u32, s).map(Geometry::Fma),
            Way::Scaled => ScaledGeometry::of(program, segment, s).map(Geometry::Scaled),
        }
    }

    /// Rows of a tile.
    pub fn tile_m(&self) -> u32 {
        match self {
            Geometry::Mma(g) => g.tile_m,
            Geometry::Fma(g) => g.tile_m,
            Geometry::Scaled(g) => g.tile_m,
        }
    }

    /// Output columns of a tile.
    pub fn tile_n(&self) -> u32 {
        match self {
            Geometry::Mma(g) => g.tile_n,
            Geometry::Fma(g) => g.tile_n,
            Geometry::Scaled(g) => g.tile_n,
        }
    }

    /// Bytes of shared memory.
    pub fn smem_bytes(&self) -> u32 {
        match self {
            Geometry::Mma(g) => g.smem_bytes(),
            Geometry::Fma(g) => g.smem_bytes(),
            Geometry::Scaled(g) => g.smem_bytes(),
        }
    }

    /// Bytes that the warps of a CTA read of a tile for each element along k: each its own rows and columns.
    pub fn fragment_bytes(&self) -> f64 {
        let of = |(warps_m, warps_n): (u32, u32), (m, a_bits): (u32, u32), (n, b_bits): (u32, u32)| {
            f64::from(warps_n * m * a_bits + warps_m * n * b_bits) / 8.0
        };
        match self {
            Geometry::Mma(g) => of((g.warps_m, g.warps_n), (g.tile_m, 16), (g.tile_n * g.panels, 16)),
            Geometry::Fma(g) => {
                let warps_n = (g.threads_n / 32).max(1);
                of((g.threads / 32 / warps_n, warps_n), (g.tile_m, 32), (g.tile_n * g.panels, 32))
            }
            Geometry::Scaled(g) => {
                let bits = |o: &geforce::Operand| o.code.bits() as u32;
                of((g.warps_m, g.warps_n), (g.tile_m, bits(&g.tokens)), (g.tile_n * g.panels, bits(&g.weights)))
            }
        }
    }
}

impl MmaGeometry {
    fn of(ty: MmaType, program: &Program, segment: &Segment, s: &Schedule) -> Option<MmaGeometry> {
        let width =
            |pitch: u64| [16, 8, 4].into_iter().find(|w| (pitch * 2).is_multiple_of(u64::from(*w))).unwrap_or(2);
        let panels = segment.panels.len() as u32;
        let dense: Vec<&Buffer> =
            segment.panels.iter().filter(|p| p.quant.is_none()).map(|p| program.buffer(p.weights)).collect();
        // Bits of the codes of all panels at one (n, k).
        let codes = segment.panels.iter().filter_map(|p| p.quant.as_ref());
        let code_bits: u32 = codes.map(|q| q.format.code.bits() as u32).sum();
        // Beside codes with codes, whose steps may be longer.
        let tile_k = s.tile_k.min(128);
        let odd = |columns: u32| columns / 8 % 2;
        let bytes = |rows: u32, columns: u32| rows + panels * columns + odd(columns);
        let (warps_m, warps_n) = place_warps((s.tile_m, s.tile_n), s.warps, (16, 8), bytes)?;
        Some(MmaGeometry {
            ty,
            threads: s.warps * 32,
            panels,
            tile_m: s.tile_m,
            tile_n: s.tile_n,
            tile_k,
            stages: s.stages,
            warps_m,
            warps_n,
            copy_a: width(program.buffer(segment.a).pitch),
            copy_b: dense.iter().map(|w| width(w.pitch)).min().unwrap_or(16),
            dense_panels: dense.len() as u32,
            code_bytes: s.tile_n * tile_k * code_bits / 8,
        })
    }

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

    /// Bytes of shared memory.
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
}

impl FmaGeometry {
    fn of(panels: u32, s: &Schedule) -> Option<FmaGeometry> {
        let (tile_m, tile_n, threads) = (s.tile_m, s.tile_n, s.warps * 32);
        if tile_m * tile_n < threads {
            return None;
        }
        // Threads side by side along the columns, as long as each warp still spans whole rows of them.
        let mut threads_n = tile_n.min(threads).min(32);
        while threads / threads_n > tile_m {
            threads_n *= 2;
        }
        Some(FmaGeometry { threads, panels, tile_m, tile_n, tile_k: FMA_K, threads_n })
    }

    /// Rows of a thread.
    pub fn rows_per_thread(&self) -> u32 {
        self.tile_m / (self.threads / self.threads_n)
    }

    /// Columns of a thread.
    pub fn cols_per_thread(&self) -> u32 {
        self.tile_n / self.threads_n
    }

    /// f32 elements from one k to the next of the activations' tile; odd, so that transposing stores hit all banks.
    pub fn pitch_a(&self) -> u32 {
        self.tile_m + 1
    }

    /// As [`FmaGeometry::pitch_a`], of the weights' tile.
    pub fn pitch_b(&self) -> u32 {
        self.tile_n + 1
    }

    /// Bytes of shared memory.
    pub fn smem_bytes(&self) -> u32 {
        (self.pitch_a() + self.panels * self.pitch_b()) * self.tile_k * 4
    }
}
