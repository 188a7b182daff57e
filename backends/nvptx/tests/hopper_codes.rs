//! Products of codes with codes on sm_90: FP8 with FP8, and FP8 with 4-bit codes that become FP8 on the way.

mod common;

use common::emulate::run_given;
use common::products::{Case, MXFP4, NVFP4, PAIRS, PLAIN, check, find, format, inputs, program, results};
use common::programs::schedule;
use common::random::Random;
use moec_ir::Tensor;
use moec_ir::act_quant::ActQuant;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::target::Target;
use moec_ir::tile::{ScaledProduct, Schedule, Team, evaluate_given};
use moec_ptx::exec::Schedule as Order;

/// Holds that a product has the same bits from tiles of any height, by one CTA, parts of k in a cluster or neighbours (of rows and
/// stages as given), in any order of warps and copies.
fn in_every_tile_and_order(case: &Case, k_parts: u32, (tile_m, stages): (u32, u32)) {
    let at = |tile_m, stages, team| Schedule { k_parts, team, ..schedule(tile_m, 128, 128, stages, 12) };
    let first = results(case, "sm_90a", at(16, 4, Team::One), Order::RoundRobin);
    for (seed, s) in [
        (1, at(8, 2, Team::One)),
        (2, at(128, 3, Team::One)),
        (3, at(16, 5, Team::SplitK)),
        (4, at(tile_m, stages, Team::Neighbours)),
    ] {
        let other = results(case, "sm_90a", s, Order::Random(seed));
        assert!(first == other, "{case:?} in {s:?}");
    }
}

/// On sm_90: tiles of any height, parts of k by one CTA or a cluster, rows that are adjacent or gathered, columns that end in
/// either warpgroup, results as floats or codes, in any order of warps.
#[test]
fn hopper_gives_the_same_bits_in_every_tile_and_order() {
    for (i, (pair, n, k)) in [(10, 300, 160), (11, 40, 600), (12, 136, 416), (13, 256, 1030)].into_iter().enumerate() {
        let (rows, weights) = PAIRS[pair];
        let out = (i % 2 == 1).then_some(if i == 1 { ActQuant::FP8_BLOCK_POW2 } else { ActQuant::FP8_BLOCK });
        let (shared, gather, panels) = (i % 2 == 0, i != 2, 1 + i % 2);
        let k_parts = 2 + i as u32 % 3;
        let case = Case {
            rows,
            weights,
            n,
            k,
            out,
            shared,
            gather,
            panels,
            n_tokens: [70, 9, 33, 21][i],
            seed: 500 + i as u64,
            ..PLAIN
        };
        in_every_tile_and_order(&case, k_parts, (8, 4));
    }
}

/// Rows of FP8 and 4-bit codes, by how scales lie.
const WIDENED: [(ActQuant, QuantFormat); 9] = [
    (ActQuant::FP8_TOKEN, MXFP4),
    (ActQuant::FP8_BLOCK, NVFP4),
    (ActQuant::FP8_BLOCK_POW2, MXFP4),
    (ActQuant::FP8_BLOCK, format(Code::Int4, ScaleCode::BF16, 1, 32)),
    (ActQuant::FP8_TOKEN, format(Code::Int4, ScaleCode::F16, 1, 128)),
    (ActQuant::FP8_BLOCK, format(Code::Int4, ScaleCode::F32, 1, 32)),
    (ActQuant::FP8_BLOCK, format(Code::Int4, ScaleCode::BF16, 1, 0)),
    (ActQuant::FP8_TOKEN, format(Code::E2M1, ScaleCode::BF16, 1, 64)),
    (ActQuant::FP8_BLOCK_POW2, format(Code::Int4, ScaleCode::F32, 128, 128)),
];

/// All sixteen codes are FP8 numbers; columns and depths end anywhere; results as floats or FP8 codes.
#[test]
fn four_bit_codes_become_fp8() {
    let sizes =
        [(80, 416, 8), (40, 2880, 16), (704, 40, 8), (130, 704, 32), (72, 129, 128), (256, 1030, 64), (1, 31, 8)];
    for (i, (rows, weights)) in WIDENED.into_iter().enumerate() {
        assert_eq!(ScaledProduct::of_fp8(rows, weights), Some(ScaledProduct::Widened));
        for j in [i, i + 4] {
            let (n, k, tile_m) = sizes[j % sizes.len()];
            let panels = 1 + (i + j / 4) % 2;
            let out = (j % 3 == 0).then_some(if i % 2 == 0 { ActQuant::FP8_BLOCK } else { ActQuant::FP8_BLOCK_POW2 });
            let s = schedule(tile_m, 128, 128, 3, 12);
            let (n_tokens, seed) = ([7, 70, 33][j % 3], 700 + j as u64);
            let (gather, shared) = (j % 2 == 0, i % 3 == 0);
            let case = Case { rows, weights, n, k, panels, out, gather, shared, n_tokens, seed, schedule: s, ..PLAIN };
            check(&case, "sm_90a");
        }
    }
}

/// The same bits from tiles of any height, by one CTA, neighbours or parts of k in a cluster, in any order of warps and copies.
#[test]
fn four_bit_codes_give_the_same_bits_in_every_tile_and_order() {
    for (i, (pair, n, k)) in [(0, 200, 160), (1, 40, 600), (3, 136, 416), (4, 256, 1030)].into_iter().enumerate() {
        let (rows, weights) = WIDENED[pair];
        let (panels, seed) = (1 + i % 2, 800 + i as u64);
        let case = Case { rows, weights, n, k, panels, gather: i != 2, n_tokens: [70, 9, 33, 90][i], seed, ..PLAIN };
        let k_parts = 2 + i as u32 % 3;
        in_every_tile_and_order(&case, k_parts, (64, 3));
    }
}

/// A scale of NaN makes NaN of its column, also where codes are zero, and the least power of two is no zero.
#[test]
fn scales_of_nan_and_of_the_least_power_are_what_they_are() {
    let (rows, weights) = WIDENED[0];
    let s = schedule(8, 128, 128, 3, 12);
    let case = Case {
        rows,
        weights,
        n_experts: 0,
        n: 8,
        k: 64,
        panels: 1,
        biases: false,
        gather: false,
        n_tokens: 3,
        schedule: s,
        ..PLAIN
    };
    let mut random = Random(900);
    let (program, mut held) = program(&case, &mut random);
    held.extend(inputs(&case, &mut random));
    let scales = held.iter_mut().find(|(name, _)| name == "w0_scale").expect("scales");
    let mut bytes = scales.1.to_bytes();
    // Two scales for each column.
    (bytes[2 * 5 + 1], bytes[2 * 6], bytes[2 * 6 + 1]) = (255, 0, 0);
    scales.1 = Tensor::from_bytes(scales.1.dtype, &scales.1.shape, &bytes).expect("as many");
    let target = Target::by_name("sm_90a").expect("a target");
    let got = run_given(&program, target, case.n_tokens, 1, &find(&held));
    let want = evaluate_given(&program, case.n_tokens as usize, find(&held)).expect("tensors fit");
    let e = got[0].worst_error(&want[0]);
    assert!(e <= 2e-6, "relative error {e}");
    for (got, want) in got[0].floats().chunks(8).zip(want[0].floats().chunks(8)) {
        assert!(got[5].is_nan() && want[5].is_nan());
        assert!(want[6] != 0.0 && (got[6] - want[6]).abs() <= want[6].abs() * 1e-3, "{} is not {}", got[6], want[6]);
    }
}
