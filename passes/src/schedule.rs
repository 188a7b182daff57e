//! Tile sizes for a machine and a range of token counts: a table, no search. What is asked here becomes what the engine builds
//! nearest to it ([`engine::fit`]).

use moec_ir::engine::{self, Engine, blackwell};
use moec_ir::target::{Target, TargetKind};
use moec_ir::tile::{Body, Contract, Groups, Kernel, Program, Schedule, Segment, Team};
use moec_ir::{DType, Dim};

/// Chooses a schedule for every kernel. `n_tokens` is the largest token count that the variant is meant for.
pub fn set_schedules(program: &mut Program, target: &Target, n_tokens: u64) {
    if target.is_cpu() {
        // The CPU backend cuts its work by cores and cache, not by token count: one variant serves them all.
        for kernel in &mut program.kernels {
            let (tile_m, tile_n) = match kernel.body {
                Body::Contract(_) => (1, 16),
                Body::Rows(_) => (4, 1),
                Body::Plan(_) => (1, 1),
                Body::Map(_) | Body::Combine(_) | Body::Quantise(_) => (1, 256),
            };
            kernel.schedule = Schedule::new(tile_m, tile_n, 1, 1, 1);
        }
        return;
    }
    let schedules: Vec<Schedule> = program.kernels.iter().map(|k| schedule(program, k, target, n_tokens)).collect();
    for (kernel, schedule) in program.kernels.iter_mut().zip(schedules) {
        kernel.schedule = schedule;
    }
    engine::fit(program, target);
}

fn schedule(program: &Program, kernel: &Kernel, target: &Target, n_tokens: u64) -> Schedule {
    match &kernel.body {
        Body::Contract(c) => contract(program, c, target, n_tokens),
        // Few rows for a block while there are few tokens: the logits of a row are the longest step.
        Body::Rows(_) => Schedule::new(if n_tokens <= 64 { 4 } else { 16 }, 1, 64, 1, 8),
        Body::Quantise(_) => Schedule::new(4, 1, 1, 1, 4),
        Body::Plan(_) => Schedule::new(1, 1, 1, 1, 32),
        Body::Map(_) | Body::Combine(_) => Schedule::new(1, 1024, 1, 1, 4),
    }
}

/// Rows of a tile follow the rows that an expert has on average; columns and depth follow from shared memory.
fn contract(program: &Program, c: &Contract, target: &Target, n_tokens: u64) -> Schedule {
    let grouped = c.segments.iter().find(|s| matches!(s.groups, Groups::ByExpert { .. })).or(c.segments.first());
    let Some(segment) = grouped else { return Schedule::new(16, 64, 32, 2, 4) };
    let per_token = if let Dim::PerToken(n) = program.buffer(segment.out).rows { n } else { 1 };
    let experts = program.buffer(segment.panels[0].weights).batch;
    let rows = (n_tokens.saturating_mul(per_token)).div_ceil(experts.max(1));
    let is_half = segment.panels[0].dtype(program) != DType::F32 && program.buffer(segment.a).dtype != DType::F32;
    let gated = segment.panels.len() == 2;
    let small_smem = matches!(target.kind, TargetKind::Gpu { smem_bytes, .. } if smem_bytes < 128 * 1024);
    let n_units = target.machine.n_units.into();
    match Engine::of(target, program, c) {
        Ok(Engine::Hopper) => {
            let parts = k_parts(program, c, 64, n_units);
            return in_parts(wgmma(rows, gated), parts, n_tokens, gated);
        }
        Ok(Engine::Blackwell) => {
            // Twice as many codes as 16-bit floats to a step, or four times as many.
            let parts = k_parts(program, c, if c.has_coded_rows() { 256 } else { 64 }, n_units);
            return in_parts(tcgen05(rows, gated, team(program, c, rows)), parts, n_tokens, gated);
        }
        Ok(Engine::GeForce) => return mma_of_codes(rows, c),
        Ok(Engine::Portable) | Err(_) => {}
    }
    let tile_m = match rows {
        0..=16 => 16,
        17..=48 => 32,
        49..=96 => 64,
        _ => 128,
    };
    if !is_half {
        // Exact f32 on the ordinary units.
        return Schedule::new(tile_m.min(64), if gated { 32 } else { 64 }, 32, 2, 4);
    }
    let tile_n = if gated { 64 } else { 128 };
    let stages = match (tile_m, small_smem) {
        (128, true) => 2,
        (128, false) | (_, true) => 3,
        (_, false) => 4,
    };
    Schedule::new(tile_m, tile_n, 64, stages, if tile_m == 128 { 8 } else { 4 })
}

/// For the tensor cores of sm_90. A loop is built for an eighth, a quarter, … of a tile's rows, so tiles are made for experts
/// that get more than the average: a second tile would read the weights again.
fn wgmma(rows: u64, gated: bool) -> Schedule {
    let tile_m = match rows {
        0..=4 => 16,
        5..=16 => 32,
        17..=48 => 64,
        49..=192 => 128,
        _ if gated => 128,
        _ => 256,
    };
    // As many stages as shared memory holds.
    let s = Schedule::new(tile_m, 128, 64, engine::hopper::MOST_STAGES, engine::hopper::WARPS);
    Schedule { team: if rows >= ROWS_FOR_NEIGHBOURS { Team::Neighbours } else { Team::One }, ..s }
}

/// Rows of an expert from which on two CTAs of neighbouring rows bring weights for each other: experts then have two tiles of
/// the greatest height or more, and the L2 gives weights once for both.
const ROWS_FOR_NEIGHBOURS: u64 = 256;

/// For the tensor cores of sm_100. An instruction takes the rows that a tile really has, so tiles are made for experts
/// that get more than the average: a second tile would read the weights again.
fn tcgen05(rows: u64, gated: bool, team: Team) -> Schedule {
    let tile_m = match rows {
        0..=16 => 32,
        17..=48 => 64,
        49..=192 => 128,
        _ if gated => 128,
        _ => 256,
    };
    // In the dynamic order as many blocks are launched as there may be tiles: one more for each expert than rows fill. It
    // evens out tiles of few and of many rows; with less than a tile for an expert too many blocks would find none.
    let dynamic = rows >= u64::from(tile_m);
    // As many stages as shared memory holds, up to 16.
    Schedule { dynamic, team, ..Schedule::new(tile_m, blackwell::TILE_N, 64, 16, blackwell::WARPS) }
}

/// Rows of an expert from which on pairs of blocks make tiles: below, memory takes the time, and a pair saves none of it.
/// Source: the model of `docs/time-model.md`, where pairs are no slower from here on for any of its layers.
const ROWS_FOR_PAIRS: u64 = 64;

/// Rows of an expert from which on two pairs share weights: each takes half of the rows of a tile, which is twice as high.
const ROWS_FOR_TWO_PAIRS: u64 = 128;

/// Whether pairs of blocks make the tiles: with many rows, where 256 columns at a time waste at most an eighth more than 128.
/// Two pairs share weights where neither decoding, which each block does for itself, nor reading FP4 that is spread to bytes
/// takes longer than bringing them.
fn team(program: &Program, c: &Contract, rows: u64) -> Team {
    let fills = |s: &Segment| {
        let n = s.n(program);
        n.next_multiple_of(256) * 8 <= n.next_multiple_of(128) * 9
    };
    let shares = |s: &Segment| match &s.a_quant {
        None => s.panels.iter().all(|p| p.quant.is_none()),
        Some(rows) => {
            let rows = rows.q.code.bits();
            s.panels.iter().all(|p| p.quant.as_ref().is_none_or(|w| w.format.code.bits() == rows))
        }
    };
    if rows < ROWS_FOR_PAIRS || !c.segments.iter().all(fills) {
        Team::One
    } else if rows >= ROWS_FOR_TWO_PAIRS && c.segments.iter().all(shares) {
        Team::TwoPairs
    } else {
        Team::Pair
    }
}

/// Parts of k such that the tiles of one token, the fewest that a launch can have, keep all multiprocessors busy: as with
/// the experts of a tensor-parallel rank. It does not depend on the token count, so results have the same bits at all.
fn k_parts(program: &Program, c: &Contract, step: u64, n_units: u64) -> u32 {
    let tiles = |s: &Segment| {
        let rows = if let Dim::PerToken(n) = program.buffer(s.out).rows { n } else { 1 };
        rows * s.n(program).div_ceil(128)
    };
    let tiles: u64 = c.segments.iter().map(tiles).sum();
    let steps = c.segments.iter().map(|s| s.k(program).div_ceil(step)).min().unwrap_or(1);
    // About half of the multiprocessors read as fast as all.
    if tiles * 5 > n_units * 2 {
        return 1;
    }
    // Copies of a few steps have to be in flight before a part is worth a block.
    [8, 4, 2].into_iter().find(|&p| tiles * p <= n_units && steps >= 4 * p).unwrap_or(1) as u32
}

/// With few tokens a block of a cluster for each part; with many, one block makes them one after another, and the sums so
/// far take shared memory.
fn in_parts(s: Schedule, k_parts: u32, n_tokens: u64, gated: bool) -> Schedule {
    if k_parts == 1 {
        s
    } else if n_tokens <= 16 {
        Schedule { tile_m: 16, team: Team::SplitK, k_parts, ..s }
    } else {
        Schedule { tile_m: s.tile_m.min(if gated { 64 } else { 128 }), k_parts, ..s }
    }
}

/// For products of codes on sm_120, which takes columns in sixteens and tokens in eights. With few rows a block is small,
/// so that a multiprocessor has two or more of them and the tiles of a token are spread over all; a stage has 8 KiB of
/// weights.
fn mma_of_codes(rows: u64, c: &Contract) -> Schedule {
    let gated = c.segments.iter().any(|s| s.panels.len() == 2);
    let four_bits = |s: &Segment| s.panels.iter().all(|p| p.quant.as_ref().is_none_or(|q| q.format.code.bits() == 4));
    // A block of the result is made by one tile.
    let block = c.segments.iter().filter_map(|s| s.out_quant.as_ref()).map(|q| q.q.block).max().unwrap_or(0);
    // Experts that get more rows than the average shall not need a second tile.
    let tile_m = match rows {
        0..=4 => 8,
        5..=10 => 16,
        11..=24 => 32,
        25..=48 => 64,
        _ => 128,
    };
    let few = tile_m <= 32;
    let tile_n = match (few, gated) {
        (true, true) => 32,
        (false, false) => 128,
        (true, false) | (false, true) => 64,
    };
    let tile_n = tile_n.max(block);
    let tile_k = if few && block < 128 && c.segments.iter().all(four_bits) { 256 } else { 128 };
    let warps = if few { tile_n / 16 } else { 8 };
    Schedule::new(tile_m, tile_n, tile_k, if few { 4 } else { 3 }, warps)
}
