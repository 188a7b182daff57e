//! Contractions on the tensor cores of sm_100, run in the emulator with every check on, compute what the reference
//! evaluator computes, in any order of warps and copies.

mod common;

use common::coded::{coded, content};
use common::contractions::{On, dense, inputs};
use common::emulate::{run, run_in_order, run_with};
use common::programs::{Gemm, Layer, Schedules, gemm, layer, schedule};
use common::random::{Random, tensors};
use moec_ir::DType;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::target::Target;
use moec_ir::tile::{Body, Program, Role, Schedule, Team};
use moec_ptx::exec::Schedule as Order;

const BLACKWELL: On = On { name: "sm_100a", product: "tcgen05.mma" };

fn b200() -> &'static Target {
    BLACKWELL.target()
}

#[track_caller]
fn check(g: &Gemm, s: Schedule, n_tokens: u64) {
    BLACKWELL.check(g, s, n_tokens);
}

#[test]
fn dense_products_are_right() {
    for (t, tile_m) in [(1, 16), (16, 16), (33, 32), (100, 64)] {
        check(&dense(DType::BF16, 128, 64), schedule(tile_m, 128, 64, 4, 8), t);
        check(&dense(DType::F16, 200, 200), schedule(tile_m, 128, 64, 3, 8), t);
    }
    check(&dense(DType::BF16, 72, 136), schedule(256, 128, 64, 2, 8), 300);
}

#[test]
fn odd_sizes_are_zero_filled() {
    for (n, k) in [(40, 40), (37, 8), (704, 24), (1, 1408), (130, 72)] {
        check(&dense(DType::BF16, n, k), schedule(32, 128, 64, 4, 8), 19);
    }
}

#[test]
fn grouped_products_gather_rows_and_apply_two_panels() {
    BLACKWELL.gathers_rows_and_applies_two_panels(16);
}

/// A pair of blocks, or two that share weights, gives the bits of one block: odd columns (also none for the second block) and
/// depths, gathered and adjacent rows, experts with none to many, in any order of warps and copies.
#[test]
fn pairs_of_blocks_give_the_bits_of_one() {
    let mut seed = 0;
    for (dtype, n, k, e, t, tile_m) in [
        (DType::BF16, 256, 64, 0, 40, 64),
        (DType::F16, 136, 72, 3, 70, 128),
        (DType::BF16, 40, 200, 5, 20, 32),
        (DType::BF16, 600, 136, 2, 150, 256),
    ] {
        for (panels, gather) in [(1, false), (2, true)] {
            let g = Gemm { n_experts: e, panels, biases: true, gather: gather && e > 0, ..dense(dtype, n, k) };
            let one = moec_ir::tile::Schedule { k_parts: panels as u32, ..schedule(tile_m, 128, 64, 3, 8) };
            let program = gemm(&g, one);
            seed += 1;
            let (inputs, params) = inputs(&g, &program, t, seed);
            let want = run(&program, b200(), &inputs, &params, t, 0);
            let dynamic = panels == 2;
            for team in [Team::Pair, Team::TwoPairs] {
                let pair = gemm(&g, moec_ir::tile::Schedule { team, tile_n: 256, dynamic, ..one });
                let images = common::emit(&pair, b200()).expect("a kernel");
                let shares = images[0].ptx.contains("complete_tx::bytes.multicast::cluster.cta_group::2");
                assert!(images[0].ptx.contains("tcgen05.mma.cta_group::2") && shares == (team == Team::TwoPairs));
                assert_eq!(images[0].launch.cluster, if shares { 4 } else { 2 });
                for order in [Order::Random(seed), Order::Random(seed + 100)] {
                    let got = run_in_order(&pair, b200(), &inputs, &params, t, 1, order);
                    assert_eq!(got, want, "{g:?}, T = {t}, {team:?}, {order:?}");
                }
            }
        }
    }
}

#[test]
fn a_thousand_experts_find_their_tiles() {
    BLACKWELL.finds_the_tiles_of_a_thousand_experts();
}

#[test]
fn rows_with_padding_are_read_at_their_pitch() {
    BLACKWELL.reads_padded_rows_at_their_pitch();
}

#[test]
fn rows_that_tma_cannot_address_take_the_portable_path() {
    BLACKWELL.leaves_odd_rows_to_the_portable_engine();
}

#[test]
fn no_order_of_warps_and_copies_changes_a_bit() {
    BLACKWELL.gives_the_same_bits_in_any_order();
}

#[test]
fn tile_sizes_and_other_rows_do_not_change_a_row() {
    BLACKWELL.gives_a_row_the_same_bits_in_any_tile();
}

#[test]
fn whole_layers_are_right_at_any_token_count() {
    BLACKWELL.runs_whole_layers_at_any_token_count();
}

/// The parts of k are added in order, by whoever makes them.
#[test]
fn parts_of_k_make_the_same_sums_in_one_block_and_in_a_cluster() {
    for (parts, k, t) in [(2, 200, 9), (4, 328, 1), (8, 520, 16), (3, 64, 5)] {
        let g = Gemm { n_experts: 5, panels: 2, biases: true, gather: true, ..dense(DType::BF16, 136, k) };
        let at = |tile_m, team| Schedule { team, k_parts: parts, ..schedule(tile_m, 128, 64, 4, 8) };
        check(&g, at(16, Team::SplitK), t);
        let one = gemm(&g, at(32, Team::One));
        let (inputs, params) = inputs(&g, &one, t, 3);
        let want = run(&one, b200(), &inputs, &params, t, 0);
        // A segment of one step is never cut.
        let cluster = if k == 64 { 1 } else { parts };
        for (program, cluster) in [
            (gemm(&g, at(64, Team::One)), 1),
            (gemm(&g, Schedule { tile_n: 256, ..at(64, Team::Pair) }), 2),
            (gemm(&g, at(16, Team::SplitK)), cluster),
            (gemm(&g, Schedule { dynamic: true, ..at(16, Team::SplitK) }), cluster),
        ] {
            let images = common::emit(&program, b200()).expect("a kernel");
            assert_eq!(images[0].launch.cluster, cluster);
            let got = run_in_order(&program, b200(), &inputs, &params, t, 1, Order::Random(u64::from(parts)));
            assert_eq!(got, want, "{parts} parts, cluster of {cluster}");
        }
    }
}

/// As many blocks as tiles are launched, and those that run take the tiles of the others.
#[test]
fn tiles_that_are_claimed_are_those_of_the_static_order() {
    let l = Layer { hidden: 264, ffn: 136, shared: 40, ..Layer::small(DType::BF16) };
    let fixed = layer(&l, &Schedules::for_rows(32));
    let mut claimed = fixed.clone();
    claimed.kernels.iter_mut().for_each(|k| k.schedule.dynamic = true);
    let images = common::emit(&claimed, b200()).expect("kernels");
    let dynamic = images.iter().filter(|i| i.ptx.contains("clusterlaunchcontrol.try_cancel") && !i.launch.persistent);
    assert_eq!(dynamic.count(), 2, "both products");
    for t in [0, 1, 40] {
        let (inputs, params) = tensors(&fixed, t, 5);
        let want = run(&fixed, b200(), &inputs, &params, t, 0);
        for (order, extra) in [(Order::RoundRobin, 0), (Order::Random(1), 3), (Order::Random(2), 0)] {
            let got = run_in_order(&claimed, b200(), &inputs, &params, t, extra, order);
            assert_eq!(got, want, "T = {t}, {order:?}");
        }
    }
}

/// A layer with codes for the routed experts and floats for the shared one: the warps of a block decode some tiles and
/// pass over others.
#[test]
fn experts_of_codes_run_beside_a_shared_expert_of_floats() {
    let formats = [
        QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 128, block_cols: 128 },
        QuantFormat { code: Code::E2M1, scale: ScaleCode::E8M0, block_rows: 1, block_cols: 32 },
        QuantFormat { code: Code::E2M1, scale: ScaleCode::E4M3, block_rows: 1, block_cols: 16 },
        QuantFormat { code: Code::Int4, scale: ScaleCode::BF16, block_rows: 1, block_cols: 32 },
    ];
    for (i, format) in formats.into_iter().enumerate() {
        // Once with a ring of codes that reaches many stages of floats ahead.
        let deep = i == 2;
        let hidden = if deep { 640 } else { 160 };
        let l = Layer { hidden, ffn: 96, shared: 200, ..Layer::small(DType::BF16) };
        let s = Schedules::for_rows(32);
        let gemm1 = if deep { schedule(32, 128, 64, 16, 8) } else { s.gemm1 };
        let dense = layer(&l, &Schedules { gemm1, ..s });
        let (inputs, params) = tensors(&dense, 21, i as u64);
        let all = coded(dense, format, format.has_global(), false, &mut Random(i as u64));
        let mut mixed = all.coded;
        for kernel in &mut mixed.kernels {
            let Body::Contract(c) = &mut kernel.body else { continue };
            for panel in c.segments[1].panels.iter_mut() {
                let b = &mut mixed.buffers[panel.weights.index()];
                *b = all.dense.buffers[panel.weights.index()].clone();
                panel.quant = None;
            }
        }
        let images = common::emit(&mixed, b200()).expect("kernels");
        let codes = images.iter().filter(|i| i.ptx.contains("tcgen05.mma") && i.ptx.contains("fence.proxy.async"));
        assert_eq!(codes.count(), 2, "{format}: both products should run on the tensor cores");
        // The router's weights are no panels.
        let mut others = Vec::new();
        for b in &all.dense.buffers {
            if let Role::Weight(p) = b.role {
                others.push((b.name.clone(), params[p as usize].clone()));
            }
        }
        // Small tiles, so that blocks have several and roles get far ahead of each other; in one sum, and in parts.
        let mut dense = all.dense.clone();
        let cut = |p: &mut Program, team| {
            let k_parts = 1 + i as u32 % 2;
            for k in p.kernels.iter_mut().filter(|k| matches!(k.body, Body::Contract(_))) {
                k.schedule = Schedule { team, k_parts, tile_m: 16, ..k.schedule };
            }
        };
        cut(&mut mixed, if i % 2 == 1 { Team::SplitK } else { Team::One });
        cut(&mut dense, Team::One);
        let (routed, shared): (Vec<_>, Vec<_>) =
            all.coded_weights.iter().cloned().partition(|(name, _)| !name.starts_with("shared"));
        assert!(!shared.is_empty());
        let dense_shared = all.dense_weights.iter().filter(|(name, _)| name.starts_with("shared")).cloned();
        let weights: Vec<_> = routed.into_iter().chain(dense_shared).collect();
        let want = run_with(&dense, b200(), 21, 0, &content(&all.dense_weights, &others, &inputs), Order::RoundRobin);
        for order in [Order::RoundRobin, Order::Random(1)] {
            let got = run_with(&mixed, b200(), 21, 1, &content(&weights, &others, &inputs), order);
            assert_eq!(got, want, "{format}, {order:?}");
        }
        for kernel in &mut mixed.kernels {
            kernel.schedule.team = Team::Pair;
        }
        for order in [Order::Random(3), Order::Random(4)] {
            let got = run_with(&mixed, b200(), 21, 1, &content(&weights, &others, &inputs), order);
            assert_eq!(got, want, "{format} by pairs, {order:?}");
        }
    }
}
