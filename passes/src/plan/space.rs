//! The schedules that compete for a kernel: what its engine builds, from small tiles to large ones.
//!
//! Sums are in the same order in all of them. What bears on bits, the parts of k, is chosen once for all token counts.

use moec_ir::engine::{Engine, blackwell, fitted, hopper};
use moec_ir::target::{Target, TargetKind};
use moec_ir::tile::{Body, Contract, Groups, Kernel, Program, Schedule, Segment, Team};
use moec_ir::{DType, Dim};

/// Warps of a router: they share K, so that their number bears on bits.
const ROUTER_WARPS: u32 = 8;

/// Rows of the lowest tiles that have some of half their height beside them.
const LEAST_OF_TWO: u32 = 32;

/// The one schedule of a kernel on the CPU, whose backend cuts work by cores and cache, not by token count.
pub fn on_cpu(kernel: &Kernel) -> Schedule {
    let (tile_m, tile_n) = match kernel.body {
        Body::Contract(_) => (1, 16),
        Body::Rows(_) => (4, 1),
        Body::Plan(_) => (1, 1),
        Body::Map(_) | Body::Combine(_) | Body::Quantise(_) => (1, 256),
    };
    Schedule::new(tile_m, tile_n, 1, 1, 1)
}

/// The schedules of a kernel on a GPU, for `n_tokens` tokens and so many parts of k. At least one.
pub fn on_gpu(program: &Program, kernel: &Kernel, target: &Target, k_parts: u32, n_tokens: u64) -> Vec<Schedule> {
    let (asked, engine) = match &kernel.body {
        Body::Contract(c) => {
            let engine = Engine::of(target, program, c).unwrap_or(Engine::Portable);
            (of_engine(engine, program, c, k_parts, n_tokens), Some((engine, c)))
        }
        Body::Rows(r) if r.logits.is_some() => {
            let of = |m| [8, 16].map(move |n| Schedule::new(m, n, 64, 1, ROUTER_WARPS));
            let by = |s| [8, 16, 32, 64].map(move |logit_ctas| Schedule { logit_ctas, ..s });
            ([4, 8, 16].into_iter().flat_map(of).flat_map(by).collect(), None)
        }
        Body::Rows(_) => {
            let of = |m| [8, 16, 32, 64].map(move |n| Schedule::new(m, n, 64, 1, ROUTER_WARPS));
            ([4, 8, 16, 32, 64].into_iter().flat_map(of).flat_map(orders).collect(), None)
        }
        Body::Quantise(_) => (vec![Schedule::new(4, 1, 1, 1, 4)], None),
        Body::Plan(_) => (orders(Schedule::new(1, 1, 1, 1, 32)).to_vec(), None),
        Body::Map(_) | Body::Combine(_) => (vec![Schedule::new(1, 1024, 1, 1, 4)], None),
    };
    let mut built: Vec<Schedule> = Vec::new();
    for asked in asked {
        let s = match (engine, target.kind) {
            (Some((engine, c)), TargetKind::Gpu { smem_bytes, .. }) => engine.fit(program, c, asked, smem_bytes),
            _ => fitted(program, &Kernel { schedule: asked, ..kernel.clone() }, target),
        };
        if !built.contains(&s) {
            built.push(s);
        }
    }
    built
}

/// Expert order by one CTA, for few tokens, and by as many as a cluster has: fewer of them would say as much to each other.
fn orders(s: Schedule) -> [Schedule; 2] {
    [1, 8].map(|order_ctas| Schedule { order_ctas, ..s })
}

/// Parts of k that a kernel may have. More than one are for products whose tiles of one token, the fewest that a launch can
/// have, leave most of `n_units` multiprocessors without work, as with the experts of a tensor-parallel rank: with many tokens they
/// cost time. Each part has steps enough for copies to be in flight.
pub fn k_parts(program: &Program, kernel: &Kernel, target: &Target, n_units: u64) -> Vec<u32> {
    let Body::Contract(c) = &kernel.body else { return vec![1] };
    let step = match Engine::of(target, program, c) {
        Ok(Engine::Hopper | Engine::Blackwell) if c.has_coded_rows() => 256,
        Ok(Engine::Hopper | Engine::Blackwell) => 64,
        Ok(Engine::Portable | Engine::GeForce) | Err(_) => return vec![1],
    };
    let tiles = |s: &Segment| rows_per_token(program, s) * s.n(program).div_ceil(128);
    let tiles: u64 = c.segments.iter().map(tiles).sum();
    // About half of the multiprocessors read as fast as all.
    if tiles * 5 > n_units * 2 {
        return vec![1];
    }
    let steps = c.segments.iter().map(|s| s.k(program).div_ceil(step)).min().unwrap_or(1);
    let fits = |&p: &u32| p == 1 || (steps >= 4 * u64::from(p) && tiles * u64::from(p) <= n_units);
    [1, 2, 4, 8].into_iter().filter(fits).collect()
}

fn of_engine(engine: Engine, program: &Program, c: &Contract, k_parts: u32, n_tokens: u64) -> Vec<Schedule> {
    let gated = c.segments.iter().any(|s| s.panels.len() == 2);
    match engine {
        Engine::Hopper => {
            let whole = |m: u32, team| Schedule { team, k_parts, ..wgmma(m) };
            // Half as wide, tiles of few rows leave less of the last wave empty.
            let narrow = [8, 16, 32, 64].map(|m| Schedule { tile_n: hopper::GROUP_N, ..whole(m, Team::One) });
            let of_teams = |m| [whole(m, Team::One), whole(m, Team::Neighbours)];
            let wide = [8, 16, 32, 64, 128, 256].into_iter().flat_map(of_teams);
            let narrow = narrow.into_iter().filter(|_| gated && k_parts == 1 && !spills_where_narrow(program, c));
            in_parts(wide.chain(narrow).collect(), k_parts, gated)
        }
        Engine::Blackwell => {
            let rows = rows_of_an_expert(program, c, n_tokens);
            let whole = |m: u32, team| Schedule { team, k_parts, ..tcgen05(m, rows) };
            let teams = [
                Some(Team::One),
                fills_pairs(program, c).then_some(Team::Pair),
                shares(program, c).then_some(Team::TwoPairs),
            ];
            let of_teams = |m| teams.into_iter().flatten().map(move |team| whole(m, team));
            in_parts([16, 32, 64, 96, 128, 192, 256].into_iter().flat_map(of_teams).collect(), k_parts, gated)
        }
        Engine::GeForce => {
            [8, 16, 32, 64, 128].into_iter().flat_map(|m| mma_of_codes(m, gated, c)).map(of_two_heights).collect()
        }
        Engine::Portable if is_half(program, c) => {
            [16, 32, 64, 128].into_iter().flat_map(|m| mma(m, gated)).map(of_two_heights).collect()
        }
        // Exact f32 on the ordinary units.
        Engine::Portable => [16, 32, 64].map(|m| Schedule::new(m, if gated { 32 } else { 64 }, 32, 2, 4)).to_vec(),
    }
}

/// High tiles read weights less often, low ones multiply less padding: what an expert has left behind high ones is half as high where
/// that holds it. That costs no time, but a second loop over k in the kernel.
fn of_two_heights(s: Schedule) -> Schedule {
    let rest_m = if s.tile_m >= LEAST_OF_TWO { s.tile_m / 2 } else { 0 };
    Schedule { rest_m, ..s }
}

/// With few tokens a CTA of a cluster for each part; with many, one CTA makes them one after another, and the sums so far
/// take shared memory.
fn in_parts(whole: Vec<Schedule>, k_parts: u32, gated: bool) -> Vec<Schedule> {
    if k_parts == 1 {
        return whole;
    }
    let split = whole.first().map(|s| Schedule { tile_m: 16, team: Team::SplitK, ..*s });
    let fits = |s: &&Schedule| s.tile_m <= if gated { 64 } else { 128 };
    split.into_iter().chain(whole.iter().filter(fits).copied()).collect()
}

/// For the tensor cores of sm_90, with as many stages as shared memory holds.
fn wgmma(tile_m: u32) -> Schedule {
    Schedule::new(tile_m, hopper::TILE_N, 64, hopper::MOST_STAGES, hopper::WARPS)
}

/// Whether a tile of half the width wants more registers than there are: FP8 codes are decoded in registers, where the warp that finds
/// tiles has the rows of each expert, too. With 384 experts, `ptxas` 13.5 spills one.
fn spills_where_narrow(program: &Program, c: &Contract) -> bool {
    let panels = || c.segments.iter().flat_map(|s| &s.panels);
    let n_experts = panels().map(|p| program.buffer(p.weights).batch).max().unwrap_or(0);
    n_experts > 256 && panels().filter_map(|p| p.quant.as_ref()).any(|q| q.format.code.bits() == 8)
}

/// For the tensor cores of sm_100, with as many stages as shared memory holds, up to 16.
///
/// In the dynamic order as many CTAs are launched as there may be tiles: one more for each expert than rows fill. It evens out
/// tiles of few and of many rows; with less than a tile for an expert too many CTAs would find none.
fn tcgen05(tile_m: u32, rows: u64) -> Schedule {
    Schedule { dynamic: rows >= tile_m.into(), ..Schedule::new(tile_m, blackwell::TILE_N, 64, 16, blackwell::WARPS) }
}

/// Rows that an expert has on average.
fn rows_of_an_expert(program: &Program, c: &Contract, n_tokens: u64) -> u64 {
    let grouped = c.segments.iter().find(|s| matches!(s.groups, Groups::ByExpert { .. })).or(c.segments.first());
    let Some(s) = grouped else { return n_tokens };
    n_tokens.saturating_mul(rows_per_token(program, s)).div_ceil(program.buffer(s.panels[0].weights).batch.max(1))
}

fn rows_per_token(program: &Program, s: &Segment) -> u64 {
    if let Dim::PerToken(n) = program.buffer(s.out).rows { n } else { 1 }
}

/// Whether 256 columns at a time waste at most an eighth more than 128.
fn fills_pairs(program: &Program, c: &Contract) -> bool {
    let fills = |s: &Segment| {
        let n = s.n(program);
        n.next_multiple_of(256) * 8 <= n.next_multiple_of(128) * 9
    };
    c.segments.iter().all(fills)
}

/// Whether two pairs may share weights: each CTA decodes for itself.
fn shares(program: &Program, c: &Contract) -> bool {
    fills_pairs(program, c) && !c.segments.iter().any(Segment::codes_become_floats)
}

/// For products of codes on sm_89 and sm_120, which take columns in sixteens and tokens in eights. A small CTA leaves room for
/// others on its multiprocessor; a large one reads less from shared memory for each product.
fn mma_of_codes(tile_m: u32, gated: bool, c: &Contract) -> Vec<Schedule> {
    let four_bits = |s: &Segment| s.panels.iter().all(|p| p.quant.as_ref().is_none_or(|q| q.format.code.bits() == 4));
    // A block of the result is made by one tile.
    let block = c.segments.iter().filter_map(|s| s.out_quant.as_ref()).map(|q| q.q.block).max().unwrap_or(0);
    let deep = block < 128 && c.segments.iter().all(four_bits);
    let small = |n: u32| {
        let n = n.max(block);
        Schedule::new(tile_m, n, if deep { 256 } else { 128 }, 4, n / 16)
    };
    let large = |n: u32| Schedule::new(tile_m, n.max(block), 128, 3, 8);
    match (tile_m <= 32, gated) {
        (true, true) => vec![small(32), small(64)],
        (true, false) => vec![small(64), small(128)],
        (false, true) => vec![large(64)],
        (false, false) => vec![large(64), large(128)],
    }
}

/// For the tensor cores of every GPU.
fn mma(tile_m: u32, gated: bool) -> Vec<Schedule> {
    let widest = if gated { 64 } else { 128 };
    let warps = if tile_m == 128 { 8 } else { 4 };
    let deep = |n: u32| [4, 3, 2].map(|stages| Schedule::new(tile_m, n, 64, stages, warps));
    [widest / 2, widest].into_iter().flat_map(deep).collect()
}

fn is_half(program: &Program, c: &Contract) -> bool {
    let half = |s: &Segment| s.panels[0].dtype(program) != DType::F32 && program.buffer(s.a).dtype != DType::F32;
    c.segments.iter().all(half)
}
