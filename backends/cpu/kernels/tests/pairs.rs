//! Rows of bf16 with weights of bf16: what multiplies pairs has the bits of fused multiply-adds, subnormal numbers included.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Case, Random, Shape, Weights};
use moec_cpu_kernels::{Instructions, with};
use moec_ir::quant::{Code, QuantFormat, ScaleCode};
use moec_ir::{DType, Tensor};

fn shape(rows: usize, k: usize, n: usize) -> Shape {
    Shape { rows, k, n, columns: (0, n) }
}

fn check(case: &Case) {
    let want = case.reference();
    for instructions in Instructions::here() {
        let got = case.run(&with(instructions).unwrap());
        let same = |(g, w): &(&f32, &f32)| g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan();
        let differ = got.iter().zip(&want).filter(|pair| !same(pair)).count();
        assert_eq!(differ, 0, "{case:?} on {instructions:?}: {differ} of {} products differ", want.len());
    }
}

fn formats() -> Vec<Weights> {
    let format = |code, scale, block_cols| QuantFormat { code, scale, block_rows: 1, block_cols };
    [
        format(Code::E2M1, ScaleCode::E8M0, 32),
        format(Code::E2M1, ScaleCode::E4M3, 16),
        format(Code::Int4, ScaleCode::BF16, 32),
        format(Code::Int4, ScaleCode::F16, 128),
        format(Code::Int4, ScaleCode::E4M3, 32),
        format(Code::E4M3, ScaleCode::E8M0, 32),
        format(Code::E4M3, ScaleCode::F32, 0),
        format(Code::E5M2, ScaleCode::F32, 48),
        QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 128, block_cols: 128 },
    ]
    .into_iter()
    .map(|f| Weights::Codes(f, DType::BF16))
    .chain([Weights::Floats(DType::BF16)])
    .collect()
}

#[test]
fn every_format_and_length() {
    for (i, weights) in formats().into_iter().enumerate() {
        for k in [1, 3, 63, 64, 65, 130, 511, 512, 513, 576, 1100] {
            for rows in [1, 2, 3, 4, 7] {
                check(&Case::new((i + k + rows) as u64, shape(rows, k, 9), weights).with_bf16_rows());
            }
        }
    }
}

#[test]
fn any_number_of_rows_and_columns() {
    for rows in 1..=64 {
        let n = 1 + rows * 7 % 71;
        for weights in [Weights::Floats(DType::BF16), formats()[1]] {
            check(&Case::new(rows as u64, shape(rows, 200, n), weights).with_bf16_rows());
        }
    }
}

#[test]
fn columns_from_the_middle_of_a_matrix() {
    for weights in formats() {
        for columns in [(0, 1), (7, 9), (5, 30), (29, 30)] {
            for rows in [1, 6] {
                check(&Case::new(9, Shape { rows, k: 320, n: 30, columns }, weights).with_bf16_rows());
            }
        }
    }
}

/// A bf16 with an exponent of the range, or zero.
fn number(random: &mut Random, exponents: (u32, u32)) -> f32 {
    let bits = (random.next() >> 32) as u32;
    if bits.is_multiple_of(16) {
        return 0.0;
    }
    let exponent = exponents.0 + (bits >> 8) % (exponents.1 - exponents.0 + 1);
    f32::from_bits(bits & 0x807f_0000 | exponent << 23)
}

/// Elements, products and sums that are subnormal, and some that overflow.
#[test]
fn numbers_of_any_size() {
    let ranges = [(0, 0), (0, 3), (1, 20), (40, 60), (60, 80), (70, 75), (100, 127), (120, 254), (0, 255)];
    let mut random = Random(77);
    for x in ranges {
        for w in ranges {
            for (rows, k) in [(1, 130), (3, 576), (4, 64), (13, 600)] {
                let shape = shape(rows, k, 10);
                let weights = (0..10 * k).map(|_| number(&mut random, w)).collect();
                let weights = Tensor::float(DType::BF16, &[10, k], weights);
                let mut case = Case::with_floats(shape, &weights).with_bf16_rows();
                case.x.iter_mut().for_each(|v| *v = number(&mut random, x));
                check(&case);
            }
        }
    }
}

/// Rows of which scratch memory does not hold a second copy, and just.
#[test]
fn rows_of_any_length() {
    for weights in formats() {
        for (rows, k) in [(1, 32_768), (1, 32_832), (2, 16_384), (2, 16_500), (3, 48_700)] {
            check(&Case::new((k + rows) as u64, shape(rows, k, 9), weights).with_bf16_rows());
        }
    }
}

/// Columns that share scales by twos and more, so that codes are looked up in tables where there is room for them.
#[test]
fn blocks_of_several_columns() {
    for (block_rows, block_cols) in [(2, 64), (8, 64), (8, 128), (3, 128), (128, 0)] {
        for scale in [ScaleCode::F32, ScaleCode::E8M0] {
            let weights = Weights::Codes(QuantFormat { code: Code::E4M3, scale, block_rows, block_cols }, DType::BF16);
            for (i, size) in [0.0, 1e-40, 1e-37, 1.0, -2.7].into_iter().enumerate() {
                for (columns, k) in [((4, 30), 330), ((5, 23), 330), ((0, 128), 640)] {
                    for rows in [1, 3, 6] {
                        let shape = Shape { rows, k, n: 130, columns };
                        let factor = |r: &mut Random| size * (1.0 + r.float().abs());
                        check(&Case::with_scales(i as u64, shape, weights, factor).with_bf16_rows());
                    }
                }
            }
        }
    }
}

/// Scales that make small and subnormal weights, with rows that are small too.
#[test]
fn scales_of_any_size() {
    let sizes = [0.0, 1e-40, f32::MIN_POSITIVE, 1e-35, 1.3e-29, 3e-20, 1.0, -2.7, 4e28];
    for (i, size) in sizes.into_iter().enumerate() {
        for code in [Code::E4M3, Code::E2M1, Code::Int4] {
            for scale in [ScaleCode::F32, ScaleCode::BF16, ScaleCode::E8M0, ScaleCode::E4M3] {
                let weights = Weights::Codes(QuantFormat { code, scale, block_rows: 1, block_cols: 32 }, DType::BF16);
                for (rows, small) in [(1, 1.0), (1, 1e-30), (2, 1e-38), (5, 1e-12), (5, 1e-38)] {
                    let mut case =
                        Case::with_scales(i as u64, shape(rows, 96, 9), weights, |r| size * (1.0 + r.float().abs()));
                    case.x.iter_mut().for_each(|v| *v *= small);
                    let mut case = case.with_bf16_rows();
                    // Sums of what overflows are NaN or not by their order.
                    if case.values.iter().any(|v| !v.is_finite()) {
                        case.x.iter_mut().for_each(|v| *v = v.abs());
                    }
                    check(&case);
                }
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_processor_with_the_instruction_uses_it() {
    let has = |i| Instructions::here().contains(&i);
    if std::arch::is_x86_feature_detected!("avx512bf16") && has(Instructions::Avx512) {
        assert!(has(Instructions::Avx512Bf16), "it adds pairs in another way than documented");
        assert_eq!(Instructions::here().last(), Some(&Instructions::Avx512Bf16));
    }
}
