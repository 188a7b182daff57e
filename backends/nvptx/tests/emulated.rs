//! Emitted PTX, run in the emulator, computes what the reference evaluator computes.

mod common;

use common::emulate::{error, run};
use common::programs::{Gemm, Layer, Schedules, gemm, layer, schedule};
use common::random::{Random, tensors};
use moec_ir::target::Target;
use moec_ir::{DType, Tensor};

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
    let mut random = Random(n_tokens + 1);
    let rows = if g.gather { 2 * n_tokens } else { n_tokens };
    let mut next = 1;
    if g.n_experts > 0 {
        // Cuts at random places, some of them twice: empty experts.
        let mut cuts: Vec<i64> = (1..g.n_experts).map(|_| random.below(rows + 1) as i64).collect();
        cuts.sort_unstable();
        let offsets = std::iter::once(0).chain(cuts).chain([rows as i64]).collect();
        inputs[next] = Tensor::int(DType::I32, &[1, g.n_experts as usize + 1], offsets);
        next += 1;
    }
    if g.gather {
        let map = (0..rows).map(|_| random.below(n_tokens) as i64).collect();
        inputs[next] = Tensor::int(DType::I32, &[rows as usize, 1], map);
    }
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
    for (n, k, dtype) in [(37, 41, DType::F16), (8, 17, DType::BF16), (70, 72, DType::BF16), (9, 100, DType::F16), (33, 2, DType::BF16)] {
        check_gemm(&dense(dtype, dtype, n, k), schedule(32, 32, 32, 3, 4), 19);
    }
}

#[test]
fn every_tile_shape_gives_the_same_product() {
    for (m, n, k, stages, warps) in
        [(16, 8, 16, 2, 1), (16, 64, 128, 4, 4), (64, 64, 64, 3, 4), (128, 64, 32, 2, 8), (32, 128, 64, 8, 2), (256, 16, 16, 2, 16), (48, 24, 48, 5, 3)]
    {
        check_gemm(&dense(DType::BF16, DType::BF16, 136, 200), schedule(m, n, k, stages, warps), 150);
    }
}

#[test]
fn grouped_products_gather_rows_and_apply_two_panels() {
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (t, e) in [(1, 4), (20, 5), (40, 40)] {
            let g = Gemm { n_experts: e, n: 40, k: 56, panels: 2, a: dtype, w: dtype, out: dtype, biases: true, gather: true, padding: 0 };
            check_gemm(&g, schedule(16, 32, 32, 3, 4), t);
        }
    }
}

#[test]
fn rows_with_padding_are_read_at_their_pitch() {
    for padding in [1, 2, 4, 8] {
        let g = Gemm { n_experts: 3, n: 24, k: 40, panels: 1, a: DType::BF16, w: DType::BF16, out: DType::BF16, biases: false, gather: true, padding };
        check_gemm(&g, schedule(16, 32, 32, 2, 2), 21);
    }
}

#[test]
fn mixed_element_types_are_widened() {
    for (a, w) in [(DType::BF16, DType::F32), (DType::F32, DType::BF16), (DType::F16, DType::BF16), (DType::F32, DType::F32)] {
        for (m, n, warps) in [(16, 64, 4), (64, 32, 4), (8, 8, 1), (128, 128, 8)] {
            check_gemm(&dense(a, w, 50, 37), schedule(m, n, 32, 2, warps), 40);
        }
    }
}

#[test]
fn a_thousand_experts_find_their_tiles() {
    let g = Gemm { n_experts: 1000, n: 8, k: 16, panels: 1, a: DType::BF16, w: DType::BF16, out: DType::F32, biases: false, gather: true, padding: 0 };
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
