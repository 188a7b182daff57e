//! Whole layers, compiled in every form, against the reference evaluator.
#![allow(clippy::unwrap_used)]

mod common;

use common::layer::{Layer, build};
use common::{Random, check};
use moec_ir::{Activation, DType, Tensor};

const TOKENS: [u64; 4] = [0, 1, 7, 130];

fn check_layer(l: &Layer, tokens: &[u64], tolerance: f64) {
    let (program, params) = build(l);
    for &t in tokens {
        let mut random = Random(t * 77 + 5);
        let x = random.tensor(l.acts, &[t as usize, l.hidden as usize], 1.0);
        let logits = random.tensor(DType::F32, &[t as usize, l.experts as usize], 3.0);
        check(&program, &[x, logits], &params, t, tolerance, &format!("{l:?}"));
    }
}

#[test]
fn odd_sizes_in_f32() {
    check_layer(&Layer::new(6, 2, 40, 36), &TOKENS, 2e-6);
    check_layer(&Layer::new(5, 3, 7, 3), &TOKENS, 2e-6);
    check_layer(&Layer::new(8, 2, 72, 1), &TOKENS, 2e-6);
}

#[test]
fn two_thousand_eight_hundred_and_eighty_columns() {
    check_layer(&Layer::new(3, 2, 2880, 104), &[1, 7], 2e-6);
    check_layer(&Layer::new(3, 2, 104, 2880).dtypes(DType::BF16, DType::BF16), &[1, 7], 2e-3);
}

#[test]
fn bf16_and_f16_weights() {
    // A result is rounded to 8 or 11 bits from sums that differ in the last bits: a few land on the other side.
    check_layer(&Layer::new(6, 2, 40, 36).dtypes(DType::BF16, DType::BF16), &TOKENS, 3e-3);
    check_layer(&Layer::new(6, 2, 40, 36).dtypes(DType::F16, DType::F16), &TOKENS, 4e-4);
    check_layer(&Layer::new(6, 2, 44, 35).dtypes(DType::F32, DType::BF16), &TOKENS, 2e-6);
    check_layer(&Layer::new(6, 2, 44, 35).dtypes(DType::BF16, DType::F32), &TOKENS, 3e-3);
    check_layer(&Layer::new(6, 2, 44, 35).dtypes(DType::F32, DType::F16), &TOKENS, 2e-6);
}

#[test]
fn one_expert_and_every_expert_chosen() {
    check_layer(&Layer::new(1, 1, 40, 36), &TOKENS, 2e-6);
    check_layer(&Layer::new(8, 8, 40, 36), &TOKENS, 2e-6);
}

#[test]
fn padded_rows_biases_and_a_shared_expert() {
    let l = Layer { padding: 5, biases: true, shared: Some(20), ..Layer::new(6, 2, 40, 36) };
    check_layer(&l, &TOKENS, 2e-6);
    check_layer(&Layer { acts: DType::BF16, weights: DType::BF16, ..l }, &TOKENS, 3e-3);
}

#[test]
fn every_activation() {
    let limit = 0.7.into();
    let activations = [
        Activation::SwiGlu,
        Activation::SwiGluClampBefore { limit },
        Activation::SwiGluClampAfter { limit },
        Activation::SwiGluOai { alpha: 1.702.into(), limit },
        Activation::GeGluTanh,
        Activation::GeGluErf,
        Activation::ReGlu,
        Activation::SiTu { beta: 4.0.into(), linear_beta: 25.0.into() },
        Activation::Relu2,
        Activation::Silu,
        Activation::GeluTanh,
    ];
    for activation in activations {
        check_layer(&Layer { activation, ..Layer::new(4, 2, 24, 20) }, &[7], 2e-6);
    }
}

fn given(l: &Layer, logits: Vec<f32>, case: &str) {
    let l = Layer { given_logits: true, ..l.clone() };
    let (program, params) = build(&l);
    let t = logits.len() as u64 / l.experts;
    let x = Random(3).tensor(l.acts, &[t as usize, l.hidden as usize], 1.0);
    let logits = Tensor::float(DType::F32, &[t as usize, l.experts as usize], logits);
    check(&program, &[x, logits], &params, t, 2e-6, case);
}

#[test]
fn ties_choose_the_lower_expert() {
    given(&Layer::new(6, 3, 16, 8), vec![0.5; 6 * 9], "all tied");
    given(&Layer::new(6, 3, 16, 8), [0.0, -0.0, 1.0, -0.0, 0.0, 1.0].repeat(5), "zeros of both signs");
}

#[test]
fn all_tokens_to_one_expert_leaves_the_others_empty() {
    given(&Layer::new(6, 1, 16, 8), [0.0, 0.0, 0.0, 9.0, 0.0, 0.0].repeat(130), "one expert");
}

#[test]
fn nan_and_infinite_logits() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let rows = [
        [nan, 1.0, 2.0, 3.0, 4.0, 5.0],
        [1.0, inf, 2.0, nan, -inf, 0.0],
        [-inf; 6],
        [inf; 6],
        [nan; 6],
        [1.0, 2.0, -inf, -inf, -inf, -inf],
        [-nan, 0.0, inf, nan, 1.0, -1.0],
    ];
    given(&Layer::new(6, 3, 16, 8), rows.concat(), "nan and infinities");
}

#[test]
fn a_token_does_not_depend_on_its_batch() {
    let l = Layer { acts: DType::F32, weights: DType::BF16, shared: Some(24), ..Layer::new(4, 2, 44, 36) };
    let (program, params) = build(&l);
    let all = Random(9).tensor(l.acts, &[70, 44], 1.0);
    for code in common::compile_all(&program) {
        let together = common::run(&program, &code, std::slice::from_ref(&all), &params, 70);
        for t in [0usize, 13, 69] {
            let one = Tensor::float(l.acts, &[1, 44], all.floats()[t * 44..(t + 1) * 44].to_vec());
            let alone = common::run(&program, &code, &[one], &params, 1);
            assert_eq!(alone[0].floats(), &together[0].floats()[t * 44..(t + 1) * 44], "token {t}, {}", code.name);
        }
    }
}
