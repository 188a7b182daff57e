//! Emitted PTX, run in the emulator, computes what the reference evaluator computes.

mod common;

use common::emulate::{error, run};
use common::programs::{Gemm, Layer, Schedules, gemm, layer, schedule, with_plan_after_route};
use common::random::{Random, set_rows, tensors};
use moec_ir::expr::Real;
use moec_ir::target::{TARGETS, Target};
use moec_ir::{Activation, DType, Tensor};

fn sm80() -> &'static Target {
    Target::by_name("sm_80").expect("a target")
}

fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 2e-6 } else { 4e-3 }
}

fn dense(a: DType, w: DType, n: u64, k: u64) -> Gemm {
    Gemm { n_experts: 0, n, k, panels: 1, a, w, out: DType::F32, biases: false, gather: false, padding: 0 }
}

#[track_caller]
fn check_gemm(g: &Gemm, s: moec_ir::tile::Schedule, n_tokens: u64) {
    let program = gemm(g, s);
    let (mut inputs, params) = tensors(&program, n_tokens, 7);
    set_rows(g, &mut inputs, n_tokens, &mut Random(n_tokens + 1));
    let e = error(&program, sm80(), &inputs, &params, n_tokens);
    let most = if g.a == DType::F32 || g.w == DType::F32 { 2e-6 } else { tolerance(g.out).max(2e-6) };
    assert!(e <= most, "{g:?} {s:?} T = {n_tokens}: relative error {e}");
}

#[test]
fn a_dense_product_of_bf16_is_right() {
    for t in [1, 7, 16, 33] {
        check_gemm(&dense(DType::BF16, DType::BF16, 32, 64), schedule(16, 32, 32, 2, 2), t);
    }
}

#[test]
fn ragged_rows_columns_and_depths_are_zero_filled() {
    for (n, k, dtype) in
        [(37, 41, DType::F16), (8, 17, DType::BF16), (70, 72, DType::BF16), (9, 100, DType::F16), (33, 2, DType::BF16)]
    {
        check_gemm(&dense(dtype, dtype, n, k), schedule(32, 32, 32, 3, 4), 19);
    }
}

#[test]
fn every_tile_shape_gives_the_same_product() {
    for (m, n, k, stages, warps) in [
        (16, 8, 16, 2, 1),
        (16, 64, 128, 4, 4),
        (64, 64, 64, 3, 4),
        (128, 64, 32, 2, 8),
        (32, 128, 64, 8, 2),
        (256, 16, 16, 2, 16),
        (48, 24, 48, 5, 3),
    ] {
        check_gemm(&dense(DType::BF16, DType::BF16, 136, 200), schedule(m, n, k, stages, warps), 150);
    }
}

#[test]
fn grouped_products_gather_rows_and_apply_two_panels() {
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (t, e) in [(1, 4), (20, 5), (40, 40)] {
            let g = Gemm {
                n_experts: e,
                n: 40,
                k: 56,
                panels: 2,
                a: dtype,
                w: dtype,
                out: dtype,
                biases: true,
                gather: true,
                padding: 0,
            };
            check_gemm(&g, schedule(16, 32, 32, 3, 4), t);
        }
    }
}

#[test]
fn rows_with_padding_are_read_at_their_pitch() {
    for padding in [1, 2, 4, 8] {
        let g = Gemm {
            n_experts: 3,
            n: 24,
            k: 40,
            panels: 1,
            a: DType::BF16,
            w: DType::BF16,
            out: DType::BF16,
            biases: false,
            gather: true,
            padding,
        };
        check_gemm(&g, schedule(16, 32, 32, 2, 2), 21);
    }
}

#[test]
fn mixed_element_types_are_widened() {
    for (a, w) in
        [(DType::BF16, DType::F32), (DType::F32, DType::BF16), (DType::F16, DType::BF16), (DType::F32, DType::F32)]
    {
        for (m, n, warps) in [(16, 64, 4), (64, 32, 4), (8, 8, 1), (128, 128, 8)] {
            check_gemm(&dense(a, w, 50, 37), schedule(m, n, 32, 2, warps), 40);
        }
    }
}

#[test]
fn a_thousand_experts_find_their_tiles() {
    let g = Gemm {
        n_experts: 1000,
        n: 8,
        k: 16,
        panels: 1,
        a: DType::BF16,
        w: DType::BF16,
        out: DType::F32,
        biases: false,
        gather: true,
        padding: 0,
    };
    check_gemm(&g, schedule(16, 8, 16, 2, 1), 40);
}

#[test]
fn a_layer_is_right_for_any_token_count() {
    let l = Layer::small(DType::BF16);
    let program = layer(&l, &Schedules::for_rows(16));
    for t in [0, 1, 2, 7, 16, 33] {
        let (inputs, params) = tensors(&program, t, t);
        let e = error(&program, sm80(), &inputs, &params, t);
        assert!(e <= 1e-2, "T = {t}: relative error {e}");
    }
}

#[test]
fn the_block_or_cluster_that_finishes_last_plans() {
    for l in [Layer::small(DType::BF16), Layer { n_experts: 40, top_k: 3, ..Layer::small(DType::BF16) }] {
        let apart = layer(&l, &Schedules::for_rows(16));
        let joined = with_plan_after_route(apart.clone());
        assert_eq!(moec_ir::tile::verify(&joined), vec![]);
        for name in ["sm_80", "sm_90a"] {
            let target = Target::by_name(name).expect("a target");
            for (t, extra_blocks) in [(0, 0), (1, 0), (2, 16), (33, 0), (70, 8)] {
                let (inputs, params) = tensors(&apart, t, t);
                let want = run(&apart, target, &inputs, &params, t, 0);
                for order_ctas in [1, 2, 8] {
                    let mut joined = joined.clone();
                    joined.kernels[0].schedule.order_ctas = order_ctas;
                    let got = run(&joined, target, &inputs, &params, t, extra_blocks);
                    assert_eq!(got, want, "{name}, {order_ctas} CTAs, T = {t}");
                }
            }
        }
    }
}

#[test]
fn layers_of_every_kind_are_right() {
    let base = Layer::small(DType::BF16);
    let odd = Layer {
        hidden: 41,
        ffn: 37,
        n_experts: 12,
        top_k: 5,
        biases: true,
        shared: 19,
        groups: Some((4, 2)),
        ..base.clone()
    };
    let layers = [
        ("shared expert and groups", Layer { shared: 24, groups: Some((4, 2)), scale: 2.5, ..base.clone() }),
        ("f32 router", Layer { router: DType::F32, padding: 3, ..base.clone() }),
        ("odd sizes in f16", Layer { dtype: DType::F16, router: DType::F16, ..odd.clone() }),
        ("odd sizes in f32", Layer { dtype: DType::F32, router: DType::F32, ..odd.clone() }),
        ("odd sizes, odd padding", Layer { padding: 1, ..odd }),
        ("every expert chosen", Layer { top_k: 8, ..base.clone() }),
        ("one expert", Layer { n_experts: 1, top_k: 1, ..base.clone() }),
        ("more slots than are written out", Layer { n_experts: 40, top_k: 20, ..base.clone() }),
        ("ungated", Layer { activation: Activation::Relu2, biases: true, ..base.clone() }),
        ("gelu", Layer { activation: Activation::GeGluErf, ..base.clone() }),
        (
            "gpt-oss",
            Layer { activation: Activation::SwiGluOai { alpha: Real(1.702), limit: Real(7.0) }, biases: true, ..base },
        ),
    ];
    for (name, l) in layers {
        for (tile_m, t) in [(16, 9), (64, 40)] {
            let program = layer(&l, &Schedules::for_rows(tile_m));
            let (inputs, params) = tensors(&program, t, t);
            let e = error(&program, sm80(), &inputs, &params, t);
            let most = if l.dtype == DType::F32 { 1e-5 } else { 1e-2 };
            assert!(e <= most, "{name}, T = {t}: relative error {e}");
        }
    }
}

#[test]
fn every_target_gives_the_same_bits() {
    let l = Layer { shared: 24, groups: Some((4, 2)), ..Layer::small(DType::BF16) };
    let program = layer(&l, &Schedules::for_rows(16));
    let (inputs, params) = tensors(&program, 11, 3);
    let first = run(&program, sm80(), &inputs, &params, 11, 0);
    for target in TARGETS.iter().filter(|t| !t.is_cpu()) {
        assert_eq!(run(&program, target, &inputs, &params, 11, 0), first, "{}", target.name);
    }
}

#[test]
fn a_row_does_not_depend_on_the_rest_of_the_batch() {
    let program = layer(&Layer::small(DType::BF16), &Schedules::for_rows(16));
    let (inputs, params) = tensors(&program, 20, 5);
    let all = run(&program, sm80(), &inputs, &params, 20, 0);
    let some = Tensor::float(DType::BF16, &[3, 64], inputs[0].floats()[5 * 64..8 * 64].to_vec());
    let alone = run(&program, sm80(), &[some], &params, 3, 0);
    assert_eq!(alone[0].floats(), &all[0].floats()[5 * 64..8 * 64]);
}

#[test]
fn nasty_routings_are_followed() {
    // A router whose logits are the first entries of the token: K = E, so that a test can write them down.
    let l = Layer { hidden: 8, router: DType::F32, dtype: DType::F32, ..Layer::small(DType::F32) };
    let program = layer(&l, &Schedules::for_rows(16));
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let logits: &[[f32; 8]] = &[
        [0.0; 8],
        [0.0, -0.0, 0.0, -0.0, 0.0, -0.0, 0.0, -0.0],
        [1.0, 1.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0],
        [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0],
        [30.0, -100.0, 30.0, -100.0, 30.0, -100.0, 30.0, 30.0],
    ];
    let x = Tensor::float(DType::F32, &[logits.len(), 8], logits.concat());
    let (_, mut params) = tensors(&program, 5, 1);
    params[0] = Tensor::float(DType::F32, &[8, 8], (0..64).map(|i| if i % 9 == 0 { 1.0 } else { 0.0 }).collect());
    params[1] = Tensor::float(DType::F32, &[1, 8], vec![0.0; 8]);
    let e = error(&program, sm80(), &[x], &params, 5);
    assert!(e <= 1e-5, "ties: relative error {e}");
    // NaN and infinities in the selection bias: every token chooses them first.
    for bias in
        [[0.0, nan, 0.0, inf, -inf, nan, 0.0, 0.0], [-inf; 8], [nan; 8], [inf, inf, inf, 0.0, 0.0, 0.0, 0.0, inf]]
    {
        params[1] = Tensor::float(DType::F32, &[1, 8], bias.to_vec());
        let (inputs, _) = tensors(&program, 7, 2);
        let e = error(&program, sm80(), &inputs, &params, 7);
        assert!(e <= 1e-5, "{bias:?}: relative error {e}");
    }
}
