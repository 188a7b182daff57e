//! Tiles of two heights in one launch, on engines that build a body for each: experts with many, few and no rows have the bits of tiles of
//! one height, which are the reference's results.

mod common;

use common::coded::{Coded, coded, content};
use common::emulate::run_with;
use common::products::{self, DEEPSEEK, MXFP4, MXFP8, NVFP4, PLAIN};
use common::programs::{Gemm, gemm, schedule};
use common::random::{Random, tensors};
use moec_ir::act_quant::ActQuant;
use moec_ir::quant::QuantFormat;
use moec_ir::target::Target;
use moec_ir::tile::{Body, Program, Schedule, evaluate_given};
use moec_ir::{DType, Tensor};
use moec_ptx::exec::Schedule as Order;

/// Tiles of `high` rows, and of half as many.
fn two(high: Schedule) -> Schedule {
    Schedule { rest_m: high.tile_m / 2, ..high }
}

/// Where experts' rows begin, most of `rows` being the first expert's: high tiles and a low one, none, one low tile that is full, a high one that hardly
/// is, a low one with a few rows.
fn skewed(rows: i64) -> Tensor {
    let of_others = [0, 16, 17, 3];
    let first = rows - of_others.iter().sum::<i64>();
    let ends = [first].into_iter().chain(of_others).scan(0, |sum, n| {
        *sum += n;
        Some(*sum)
    });
    let offsets: Vec<i64> = std::iter::once(0).chain(ends).collect();
    Tensor::int(DType::I32, &[1, offsets.len()], offsets)
}

/// Holds that tiles of a schedule have both heights, by where the rows of experts begin.
#[track_caller]
fn has_both(offsets: &Tensor, s: &Schedule) {
    let rows = offsets.ints().windows(2).map(|w| w[1] - w[0]);
    let last: Vec<i64> = rows.map(|n| n % i64::from(s.tile_m)).filter(|n| *n > 0).collect();
    let (low, high): (Vec<i64>, Vec<i64>) = last.into_iter().partition(|n| *n <= i64::from(s.rest_m));
    assert!(!low.is_empty() && !high.is_empty(), "{offsets:?} has tiles of one height with {s:?}");
}

fn with_schedule(program: &Program, s: Schedule, on: &Target) -> Program {
    let mut program = program.clone();
    program.kernels.iter_mut().filter(|k| matches!(k.body, Body::Contract(_))).for_each(|k| k.schedule = s);
    let fitted = common::fitted(&program, on);
    assert_eq!(fitted, program, "{} builds {s:?} as it stands", on.name);
    fitted
}

fn target(name: &str) -> &'static Target {
    Target::by_name(name).expect("a target")
}

fn product(dtype: DType, panels: usize, gather: bool) -> Gemm {
    let (n, k) = (if panels == 1 { 72 } else { 136 }, 200);
    Gemm { n_experts: 5, n, k, panels, a: dtype, w: dtype, out: DType::F32, biases: true, gather, padding: 0 }
}

/// The results of a product whose rows are skewed, with tiles of two heights, are those with tiles of either height, and the reference's.
#[track_caller]
fn check(g: &Gemm, format: Option<QuantFormat>, on: &str, high: Schedule, n_tokens: u64) {
    let on = target(on);
    let dense = gemm(g, high);
    let mut random = Random(n_tokens);
    let (mut inputs, params) = tensors(&dense, n_tokens, 5);
    let rows = if g.gather { 2 * n_tokens } else { n_tokens };
    inputs[1] = skewed(rows as i64);
    if g.gather {
        let map = (0..rows).map(|_| random.below(n_tokens) as i64).collect();
        inputs[2] = Tensor::int(DType::I32, &[rows as usize, 1], map);
    }
    let both = two(high);
    has_both(&inputs[1], &both);
    let named = |prefix: char| {
        let weights = dense.buffers.iter().filter(move |b| b.name.starts_with(prefix) && b.name.len() == 2);
        weights
            .map(|b| (b.name.clone(), params[b.role.param().expect("a weight") as usize].clone()))
            .collect::<Vec<_>>()
    };
    let (biases, floats) = (named('b'), named('w'));
    let (program, weights) = match format {
        None => (dense.clone(), floats),
        Some(f) => {
            let Coded { coded, coded_weights, .. } = coded(dense.clone(), f, f.has_global(), false, &mut random);
            (coded, coded_weights)
        }
    };
    let given = content(&weights, &biases, &inputs);
    let results = |s: Schedule, order| {
        let program = with_schedule(&program, s, on);
        let kernels = common::emit(&program, on).expect("a kernel");
        let products = kernels[0].ptx.matches("mma.sync").count();
        (run_with(&program, on, n_tokens, 1, &given, order), products)
    };
    let low = Schedule { tile_m: high.tile_m / 2, ..high };
    let [of_high, of_low] = [high, low].map(|s| results(s, Order::RoundRobin));
    assert_eq!(of_high.0, of_low.0, "{g:?} on {}", on.name);
    for order in [Order::RoundRobin, Order::Random(1)] {
        let (got, products) = results(both, order);
        assert_eq!(got, of_high.0, "{g:?} on {}", on.name);
        assert_eq!(products, of_high.1 + of_low.1, "the kernel has a body for each height");
    }
    let want = evaluate_given(&program, n_tokens as usize, &given).expect("tensors fit");
    let e = of_high.0[0].worst_error(&want[0]);
    assert!(e <= 2e-6, "{g:?} on {}: relative error {e}", on.name);
}

#[test]
fn floats() {
    for (i, on) in ["sm_80", "sm_89", "sm_120a"].into_iter().enumerate() {
        let dtype = [DType::BF16, DType::F16][i % 2];
        check(&product(dtype, 1, i == 0), None, on, schedule(32, 64, 64, 3, 4), 104);
        check(&product(dtype, 2, i != 0), None, on, schedule(32, 32, 64, 2, 4), 72);
    }
    check(&product(DType::BF16, 2, true), None, "sm_80", schedule(128, 64, 64, 2, 8), 120);
}

#[test]
fn codes_that_become_floats() {
    for (i, format) in [NVFP4, MXFP4, MXFP8, DEEPSEEK].into_iter().enumerate() {
        let on = ["sm_80", "sm_120a"][i % 2];
        check(&product(DType::BF16, 1 + i % 2, i > 1), Some(format), on, schedule(32, 64, 64, 3, 4), 88);
    }
}

/// Codes with codes, results as floats and as codes, beside a product of all rows.
#[test]
fn codes_with_codes() {
    for (i, (rows, weights, on)) in [
        (ActQuant::MXFP8, MXFP4, "sm_120f"),
        (ActQuant::NVFP4, NVFP4, "sm_120a"),
        (ActQuant::FP8_BLOCK, DEEPSEEK, "sm_89"),
        (ActQuant::FP8_BLOCK, DEEPSEEK, "sm_120f"),
    ]
    .into_iter()
    .enumerate()
    {
        let (high, out) = (schedule(32, 64, 128, 3, 4), (i % 2 == 1).then_some(ActQuant::MXFP8));
        let out = out.filter(|_| on != "sm_89");
        let case =
            products::Case { rows, weights, out, shared: i > 1, n_tokens: 53, n: 72, seed: 31 + i as u64, ..PLAIN };
        let mut random = Random(case.seed);
        products::program(&case, &mut random);
        let inputs = products::inputs(&case, &mut random);
        let offsets = &inputs.iter().find(|(name, _)| name == "offsets").expect("experts").1;
        has_both(offsets, &two(high));
        let want = products::results(&case, on, high, Order::RoundRobin);
        for (s, order) in [
            (two(high), Order::RoundRobin),
            (two(high), Order::Random(2)),
            (schedule(16, 64, 128, 3, 4), Order::Random(3)),
        ] {
            assert_eq!(products::results(&case, on, s, order), want, "{case:?} on {on} with {s:?}");
        }
        products::check(&products::Case { schedule: two(high), ..case }, on);
    }
}
