//! Contractions on the tensor cores of sm_90, run in the emulator with every check on, compute what the reference evaluator
//! computes, in any order of warps and copies.

mod common;

use common::coded::{coded, content};
use common::contractions::{On, dense, inputs};
use common::emulate::{run, run_in_order, run_with};
use common::programs::{Gemm, gemm, schedule};
use common::random::{Random, tensors};
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::target::Target;
use moec_ir::tile::{Program, Schedule, Team};
use moec_ir::{DType, Tensor, engine};
use moec_ptx::exec::Schedule as Order;

const HOPPER: On = On { name: "sm_90a", product: "wgmma.mma_async" };

fn h200() -> &'static Target {
    HOPPER.target()
}

#[test]
fn dense_products_are_right() {
    for (t, tile_m) in [(1, 8), (1, 16), (16, 16), (33, 32), (100, 64)] {
        HOPPER.check(&dense(DType::BF16, 128, 64), schedule(tile_m, 128, 64, 4, 8), t);
        HOPPER.check(&dense(DType::F16, 200, 200), schedule(tile_m, 128, 64, 3, 8), t);
    }
    HOPPER.check(&dense(DType::BF16, 72, 136), schedule(256, 128, 64, 2, 8), 300);
}

#[test]
fn odd_sizes_are_zero_filled() {
    for (n, k) in [(40, 40), (37, 8), (704, 24), (1, 1408), (130, 72)] {
        HOPPER.check(&dense(DType::BF16, n, k), schedule(32, 128, 64, 4, 8), 19);
        let gathered = Gemm { n_experts: 2, gather: true, ..dense(DType::BF16, n, k) };
        HOPPER.check(&gathered, schedule(32, 128, 64, 4, 8), 19);
    }
}

#[test]
fn grouped_products_gather_rows_and_apply_two_panels() {
    HOPPER.gathers_rows_and_applies_two_panels(8);
}

#[test]
fn a_thousand_experts_find_their_tiles() {
    HOPPER.finds_the_tiles_of_a_thousand_experts();
}

#[test]
fn rows_with_padding_are_read_at_their_pitch() {
    HOPPER.reads_padded_rows_at_their_pitch();
}

#[test]
fn rows_that_tma_cannot_address_take_the_portable_engine() {
    HOPPER.leaves_odd_rows_to_the_portable_engine();
}

/// Many tiles of one step, and a ring that holds more of them than are known ahead.
#[test]
fn tiles_of_one_step_do_not_wait_for_each_other() {
    for (k, gather) in [(64, true), (32, false), (72, true)] {
        let g = Gemm { n_experts: 6, gather, ..dense(DType::BF16, 264, k) };
        HOPPER.check(&g, schedule(8, 128, 64, 12, 12), 60);
    }
}

/// What is asked and not built is refused, not rounded.
#[test]
fn a_schedule_that_is_not_built_is_refused() {
    let g = dense(DType::BF16, 128, 64);
    for s in [schedule(24, 128, 64, 4, 12), schedule(32, 64, 64, 4, 12), schedule(32, 128, 64, 99, 12)] {
        let e = moec_nvptx::emit(&gemm(&g, s), h200()).expect_err("no such kernel");
        assert!(e.code == "internal-error" && e.notes[0].contains("nearest that is built"), "{e:?}");
    }
}

#[test]
fn no_order_of_warps_and_copies_changes_a_bit() {
    HOPPER.gives_the_same_bits_in_any_order();
}

#[test]
fn tile_sizes_and_other_rows_do_not_change_a_row() {
    HOPPER.gives_a_row_the_same_bits_in_any_tile();
}

#[test]
fn whole_layers_are_right_at_any_token_count() {
    HOPPER.runs_whole_layers_at_any_token_count();
}

/// The parts of k are added in order, by whoever makes them.
#[test]
fn parts_of_k_make_the_same_sums_in_one_cta_and_in_a_cluster() {
    for (parts, k, t) in [(2, 200, 9), (4, 328, 1), (8, 520, 16), (3, 64, 5)] {
        let g = Gemm { n_experts: 5, panels: 2, biases: true, gather: true, ..dense(DType::BF16, 136, k) };
        let at = |tile_m, team| Schedule { team, k_parts: parts, ..schedule(tile_m, 128, 64, 4, 8) };
        HOPPER.check(&g, at(16, Team::SplitK), t);
        let one = HOPPER.fitted(&g, at(32, Team::One));
        let (inputs, params) = inputs(&g, &one, t, 3);
        let want = run(&one, h200(), &inputs, &params, t, 0);
        // A segment of one step is never cut.
        let cluster = if k == 64 { 1 } else { parts };
        for (program, cluster) in
            [(HOPPER.fitted(&g, at(64, Team::One)), 1), (HOPPER.fitted(&g, at(16, Team::SplitK)), cluster)]
        {
            assert_eq!(HOPPER.images(&program)[0].launch.cluster, cluster);
            let got = run_in_order(&program, h200(), &inputs, &params, t, 1, Order::Random(u64::from(parts)));
            assert_eq!(got, want, "{parts} parts, cluster of {cluster}");
        }
    }
}

/// Two CTAs that bring weights for each other give the bits of one: odd columns and depths, gathered and adjacent rows, experts
/// with none to many, in any order of warps and copies.
#[test]
fn neighbours_give_the_bits_of_one() {
    for (i, (dtype, n, k, e, t, tile_m)) in [
        (DType::BF16, 256, 64, 0, 40, 16),
        (DType::F16, 136, 72, 3, 70, 32),
        (DType::BF16, 40, 200, 5, 20, 8),
        (DType::BF16, 200, 136, 2, 300, 128),
    ]
    .into_iter()
    .enumerate()
    {
        for (panels, gather) in [(1, false), (2, true)] {
            let g = Gemm { n_experts: e, panels, biases: true, gather: gather && e > 0, ..dense(dtype, n, k) };
            let s = Schedule { k_parts: panels as u32, ..schedule(tile_m, 128, 64, 3, 12) };
            let program = HOPPER.fitted(&g, s);
            let (inputs, params) = inputs(&g, &program, t, i as u64);
            let want = run(&program, h200(), &inputs, &params, t, 0);
            let pair = HOPPER.fitted(&g, Schedule { team: Team::Neighbours, ..s });
            let made = HOPPER.images(&pair);
            assert!(made[0].launch.cluster == 2 && made[0].ptx.contains(".multicast::cluster"));
            for order in [Order::RoundRobin, Order::Random(i as u64), Order::Random(100 + i as u64)] {
                let got = run_in_order(&pair, h200(), &inputs, &params, t, 1, order);
                assert_eq!(got, want, "{g:?}, T = {t}, {order:?}");
            }
        }
    }
}

/// Tiles of 64 columns, of which each warpgroup has a panel, give the bits of tiles of 128: floats and codes of every format, odd
/// columns and depths, experts with none to many rows, in any order of warps and copies.
#[test]
fn tiles_of_a_panel_for_each_warpgroup_give_the_same_bits() {
    let formats = [None].into_iter().chain(FORMATS.map(Some));
    for (seed, format) in (40u64..).zip(formats) {
        for (i, (n, k, e, t, tile_m)) in
            [(136, 200, 3, 40, 32), (72, 128, 0, 20, 64), (193, 264, 5, 11, 8)].into_iter().enumerate()
        {
            let g = Gemm { n_experts: e, panels: 2, gather: e > 0, biases: true, ..dense(DType::BF16, n, k) };
            let wide = schedule(tile_m, 128, 64, 4, 12);
            let mut random = Random(seed + 100 * i as u64);
            let program = HOPPER.fitted(&g, wide);
            let (inputs, _) = inputs(&g, &program, t, seed);
            let others = others(&program, t, seed);
            let (program, weights) = match format {
                None => (program, Vec::new()),
                Some((code, scale, block_rows, block_cols, global)) => {
                    let format = QuantFormat { code, scale, block_rows, block_cols };
                    let c = coded(program, format, global, seed % 2 == 0, &mut random);
                    (c.coded, c.coded_weights)
                }
            };
            let of = |tile_n: u32, order| {
                let mut program = program.clone();
                program.kernels[0].schedule.tile_n = tile_n;
                engine::fit(&mut program, h200());
                assert_eq!(program.kernels[0].schedule.tile_n, tile_n);
                HOPPER.images(&program);
                let out = run_with(&program, h200(), t, 1, &content(&weights, &others, &inputs), order);
                out.iter().map(Tensor::to_bytes).collect::<Vec<_>>()
            };
            let (want, got) = (of(128, Order::RoundRobin), of(64, Order::Random(seed)));
            assert!(got == want, "{format:?} {g:?} T = {t}");
        }
    }
}

const FORMATS: [(Code, ScaleCode, u64, u64, bool); 7] = [
    (Code::E4M3, ScaleCode::F32, 128, 128, false),
    (Code::E4M3, ScaleCode::F32, 1, 0, false),
    (Code::E5M2, ScaleCode::BF16, 1, 64, false),
    (Code::E2M1, ScaleCode::E8M0, 1, 32, false),
    (Code::E2M1, ScaleCode::E4M3, 1, 16, true),
    (Code::Int4, ScaleCode::BF16, 1, 32, false),
    (Code::Int4, ScaleCode::F16, 1, 128, false),
];

/// Codes that become floats in registers give the bits of floats in shared memory.
#[test]
fn codes_give_the_bits_of_their_floats() {
    let mut seed = 0;
    for (code, scale, block_rows, block_cols, global) in FORMATS {
        let format = QuantFormat { code, scale, block_rows, block_cols };
        for (n, k, e, panels, t, tile_m) in
            [(136, 200, 3, 2, 40, 32), (72, 128, 0, 1, 20, 16), (130, 264, 2, 1, 70, 128)]
        {
            let g = Gemm { n_experts: e, panels, gather: e > 0, biases: true, ..dense(DType::BF16, n, k) };
            seed += 1;
            let mut random = Random(seed);
            let c =
                coded(HOPPER.fitted(&g, schedule(tile_m, 128, 64, 4, 8)), format, global, seed % 2 == 0, &mut random);
            let mut program = c.coded.clone();
            engine::fit(&mut program, h200());
            HOPPER.images(&program);
            let (inputs, _) = inputs(&g, &c.dense, t, seed);
            let others = others(&c.dense, t, seed);
            let want =
                run_with(&c.dense, h200(), t, 0, &content(&c.dense_weights, &others, &inputs), Order::RoundRobin);
            let got =
                run_with(&program, h200(), t, 1, &content(&c.coded_weights, &others, &inputs), Order::Random(seed));
            let bits = |ts: &[Tensor]| -> Vec<Vec<u8>> { ts.iter().map(Tensor::to_bytes).collect() };
            assert_eq!(bits(&got), bits(&want), "{format:?} {g:?} T = {t}");
        }
    }
}

/// Weights beside the panels: biases.
fn others(program: &Program, n_tokens: u64, seed: u64) -> Vec<(String, Tensor)> {
    let (_, params) = tensors(program, n_tokens, seed);
    let of = |b: &moec_ir::tile::Buffer| b.role.param().map(|i| (b.name.clone(), params[i as usize].clone()));
    program.buffers.iter().filter_map(of).collect()
}
