//! Products that read quantised weights: the reference's results, and the bits of the same product on dequantised weights.

mod common;

use common::coded::{Coded, coded, content};
use common::emulate::run_given;
use common::programs::{Gemm, gemm, schedule};
use common::random::{Random, set_rows, tensors};
use moec_ir::DType;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::target::Target;
use moec_ir::tile::{Role, Schedule, evaluate_given};

const TARGETS: [&str; 5] = ["sm_80", "sm_89", "sm_90a", "sm_100f", "sm_120f"];

fn format(code: Code, scale: ScaleCode, block_rows: u64, block_cols: u64) -> QuantFormat {
    QuantFormat { code, scale, block_rows, block_cols }
}

/// A product in one of its forms.
#[derive(Clone, Copy, Debug)]
struct Case {
    gemm: Gemm,
    schedule: Schedule,
    format: QuantFormat,
    global: bool,
    n_tokens: u64,
    seed: u64,
}

/// Checks that reading codes gives the bits of the dequantised product, and that both are the reference's result.
#[track_caller]
fn check(case: &Case, target: &str, wild: bool) {
    let mut random = Random(case.seed);
    let g = &case.gemm;
    let dense = gemm(g, case.schedule);
    let (mut inputs, params) = tensors(&dense, case.n_tokens, case.seed);
    set_rows(g, &mut inputs, case.n_tokens, &mut random);
    // Biases stay as they are.
    let mut biases = Vec::new();
    for b in &dense.buffers {
        if let (Role::Weight(i), true) = (&b.role, b.name.starts_with('b')) {
            biases.push((b.name.clone(), params[*i as usize].clone()));
        }
    }
    let Coded { coded, dense, coded_weights, dense_weights } =
        coded(dense, case.format, case.global, wild, &mut random);
    let target = Target::by_name(target).expect("a target");
    let given = content(&coded_weights, &biases, &inputs);
    let got = run_given(&coded, target, case.n_tokens, 1, &given);
    let unfused = run_given(&dense, target, case.n_tokens, 1, &content(&dense_weights, &biases, &inputs));
    // Zeros have signs; a NaN is a NaN, whatever its payload.
    let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
    let first = got[0].floats().iter().zip(unfused[0].floats()).position(differ);
    let pair = |i: usize| (got[0].floats()[i], unfused[0].floats()[i]);
    assert!(first.is_none(), "{case:?} on {}: not the dequantised bits: {:?}", target.name, first.map(pair));
    if !wild {
        let want = evaluate_given(&coded, case.n_tokens as usize, given).expect("tensors fit");
        let exact = g.a == DType::F32 || g.w == DType::F32 || g.out == DType::F32;
        let most = if exact { 2e-6 } else { 4e-3 };
        let e = got[0].worst_error(&want[0]);
        assert!(e <= most, "{case:?} on {}: relative error {e}", target.name);
    }
}

fn product(w: DType, n: u64, k: u64) -> Gemm {
    Gemm { n_experts: 0, n, k, panels: 1, a: w, w, out: DType::F32, biases: false, gather: false, padding: 0 }
}

#[test]
fn published_formats_are_read_on_every_target() {
    use Code::{E2M1, E4M3, Int4};
    // FP8 in blocks, per tensor and per channel; MXFP4, MXFP8, NVFP4, INT4.
    let formats = [
        (format(E4M3, ScaleCode::F32, 128, 128), false),
        (format(E4M3, ScaleCode::F32, 0, 0), false),
        (format(E4M3, ScaleCode::BF16, 1, 0), false),
        (format(E2M1, ScaleCode::E8M0, 1, 32), false),
        (format(E4M3, ScaleCode::E8M0, 1, 32), false),
        (format(E2M1, ScaleCode::E4M3, 1, 16), true),
        (format(Int4, ScaleCode::BF16, 1, 32), false),
    ];
    for (i, (format, global)) in formats.into_iter().enumerate() {
        for (j, target) in TARGETS.into_iter().enumerate() {
            let gemm = Gemm {
                n_experts: 3,
                n: 160,
                k: 288,
                panels: 2,
                a: DType::BF16,
                w: DType::BF16,
                out: DType::BF16,
                biases: true,
                gather: true,
                padding: 0,
            };
            let seed = (i * TARGETS.len() + j) as u64;
            let case = Case { gemm, schedule: schedule(16, 64, 64, 4, 4), format, global, n_tokens: 9, seed };
            check(&case, target, false);
        }
    }
}

#[test]
fn every_bit_pattern_of_codes_and_scales_means_the_same_as_dequantised() {
    let mut seed = 100;
    for code in Code::ALL {
        for scale in ScaleCode::ALL {
            for w in [DType::BF16, DType::F16, DType::F32] {
                seed += 1;
                let target = TARGETS[seed as usize % TARGETS.len()];
                let format = format(code, scale, 1, 16);
                let gemm = product(w, 40, 80);
                let global = seed % 2 == 0;
                let case = Case { gemm, schedule: schedule(16, 32, 32, 3, 2), format, global, n_tokens: 5, seed };
                check(&case, target, true);
            }
        }
    }
}

#[test]
fn any_format_shape_and_schedule_gives_the_bits_of_the_dequantised_product() {
    let mut random = Random(2026);
    for seed in 0..90 {
        let mut pick = |list: &[u64]| list[random.below(list.len() as u64) as usize];
        let format = QuantFormat {
            code: Code::ALL[pick(&[0, 1, 2, 3]) as usize],
            scale: ScaleCode::ALL[pick(&[0, 1, 2, 3, 4]) as usize],
            block_rows: pick(&[0, 1, 1, 2, 3, 32, 128]),
            block_cols: pick(&[0, 1, 7, 16, 24, 32, 64, 128, 128]),
        };
        let w = [DType::BF16, DType::BF16, DType::F16, DType::F32][pick(&[0, 1, 2, 3]) as usize];
        let grouped = pick(&[0, 1]) == 1;
        let gemm = Gemm {
            n_experts: if grouped { pick(&[1, 2, 5]) } else { 0 },
            n: pick(&[1, 8, 24, 65, 130, 136]),
            k: pick(&[1, 2, 17, 31, 40, 63, 64, 129, 130, 160, 200]),
            panels: pick(&[1, 2]) as usize,
            a: w,
            w,
            out: if pick(&[0, 1]) == 0 { w } else { DType::F32 },
            biases: pick(&[0, 1]) == 1,
            gather: grouped && pick(&[0, 1]) == 1,
            padding: pick(&[0, 0, 1, 8]),
        };
        let s = schedule(
            pick(&[16, 32, 64]) as u32,
            pick(&[8, 32, 64, 128]) as u32,
            pick(&[16, 32, 64, 128]) as u32,
            pick(&[2, 3, 4, 6]) as u32,
            pick(&[1, 2, 4, 8]) as u32,
        );
        let global = pick(&[0, 0, 1]) == 1;
        let case = Case { gemm, schedule: s, format, global, n_tokens: pick(&[1, 6, 33]), seed };
        check(&case, TARGETS[seed as usize % TARGETS.len()], seed % 4 == 3);
    }
}
