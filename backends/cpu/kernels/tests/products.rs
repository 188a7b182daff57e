//! Products of every encoding have the documented bits on every processor, and nothing is read that is not there.
//!
//! Every buffer ends at a page that cannot be touched, so that one byte too many ends the test.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Case, Shape, Weights};
use moec_cpu_kernels::{Instructions, with};
use moec_ir::DType;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

fn shape(rows: usize, k: usize, n: usize) -> Shape {
    Shape { rows, k, n, columns: (0, n) }
}

fn check(case: &Case) {
    let want: Vec<u32> = case.reference().iter().map(|v| v.to_bits()).collect();
    for instructions in Instructions::here() {
        let got: Vec<u32> = case.run(&with(instructions).unwrap()).iter().map(|v| v.to_bits()).collect();
        let differ = got.iter().zip(&want).filter(|(g, w)| g != w).count();
        assert_eq!(differ, 0, "{case:?} on {instructions:?}: {differ} of {} products differ", want.len());
    }
}

fn format(code: Code, scale: ScaleCode, block_cols: u64) -> QuantFormat {
    QuantFormat { code, scale, block_rows: 1, block_cols }
}

#[test]
fn floats_of_every_type_and_length() {
    for (i, dtype) in FLOATS.into_iter().enumerate() {
        for k in [1, 3, 63, 64, 65, 130, 511, 512, 513, 576, 1100] {
            for rows in [1, 2, 3, 4, 7] {
                check(&Case::new((i + k + rows) as u64, shape(rows, k, 5), Weights::Floats(dtype)));
            }
        }
    }
}

#[test]
fn every_code_scale_and_rounding() {
    for code in Code::ALL {
        for scale in ScaleCode::ALL {
            for round in FLOATS {
                for (rows, k) in [(1, 192), (4, 150)] {
                    for block in [16, 32, 64] {
                        let weights = Weights::Codes(format(code, scale, block), round);
                        check(&Case::new(rows as u64 + block, shape(rows, k, 9), weights));
                    }
                }
            }
        }
    }
}

#[test]
fn published_formats_at_the_sizes_that_use_them() {
    let formats = [
        format(Code::E2M1, ScaleCode::E8M0, 32),
        format(Code::E2M1, ScaleCode::E4M3, 16),
        format(Code::Int4, ScaleCode::BF16, 32),
        format(Code::Int4, ScaleCode::F16, 128),
        format(Code::E4M3, ScaleCode::E8M0, 32),
        QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 128, block_cols: 128 },
        QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 1, block_cols: 0 },
    ];
    for f in formats {
        for (rows, k, n) in [(1, 2048, 40), (2, 768, 33), (3, 2880, 17), (13, 1088, 70), (64, 640, 35)] {
            check(&Case::new(k as u64, shape(rows, k, n), Weights::Codes(f, DType::BF16)));
        }
    }
}

#[test]
fn blocks_of_any_shape() {
    let blocks = [(0, 0), (1, 0), (0, 8), (128, 128), (2, 3), (3, 7), (5, 12), (1, 1), (1, 48), (2, 96), (1, 1024)];
    for (i, (block_rows, block_cols)) in blocks.into_iter().enumerate() {
        for code in Code::ALL {
            for k in [1, 33, 130, 700] {
                let f = QuantFormat { code, scale: ScaleCode::F32, block_rows, block_cols };
                let rows = 1 + i % 5;
                check(&Case::new((k + i) as u64, shape(rows, k, 6), Weights::Codes(f, DType::BF16)));
            }
        }
    }
}

#[test]
fn any_number_of_rows_and_columns() {
    let f = format(Code::E2M1, ScaleCode::E4M3, 16);
    for rows in 1..=64 {
        let n = 1 + rows * 7 % 71;
        check(&Case::new(rows as u64, shape(rows, 200, n), Weights::Codes(f, DType::BF16)));
        check(&Case::new(rows as u64, shape(rows, 72, n), Weights::Floats(DType::BF16)));
    }
}

#[test]
fn columns_from_the_middle_of_a_matrix() {
    let f = QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 8, block_cols: 64 };
    for weights in [Weights::Codes(f, DType::BF16), Weights::Floats(DType::F16)] {
        for columns in [(0, 1), (7, 9), (5, 30), (29, 30)] {
            for rows in [1, 6] {
                check(&Case::new(9, Shape { rows, k: 320, n: 30, columns }, weights));
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let f = format(Code::Int4, ScaleCode::BF16, 32);
    let all = Case::new(5, shape(37, 1000, 11), Weights::Codes(f, DType::BF16));
    for instructions in Instructions::here() {
        let kernels = with(instructions).unwrap();
        let together = all.run(&kernels);
        for r in [0, 17, 36] {
            let mut alone = Case::new(5, shape(37, 1000, 11), Weights::Codes(f, DType::BF16));
            alone.shape.rows = 1;
            alone.x = all.x[r * 1000..(r + 1) * 1000].to_vec();
            assert_eq!(alone.run(&kernels), together[r * 11..(r + 1) * 11], "row {r}, {instructions:?}");
        }
    }
}

/// Factors at the ends of the range in which exponents are added to the bits of e4m3, and those that overflow.
#[test]
fn scales_of_any_size() {
    let sizes = [0.0, 1e-40, f32::MIN_POSITIVE, 1.3e-29, 3e-29, 1.0, -2.7, 1.7e28, 4e28, 1e37];
    for code in [Code::E4M3, Code::E2M1, Code::Int4] {
        for (i, size) in sizes.into_iter().enumerate() {
            let f = format(code, ScaleCode::F32, 32);
            for round in [DType::BF16, DType::F16] {
                let weights = Weights::Codes(f, round);
                let mut case =
                    Case::with_scales(i as u64, shape(1, 96, 6), weights, |r| size * (1.0 + r.float().abs()));
                // Sums of what overflows are NaN or not by their order, which is checked elsewhere.
                if case.values.iter().any(|v| v.is_infinite()) {
                    case.x.iter_mut().for_each(|v| *v = v.abs());
                    case.x.iter_mut().skip(1).for_each(|v| *v = 0.0);
                    check_finite(&case);
                } else {
                    check(&case);
                }
            }
        }
    }
}

/// As [`check`], but NaN is any NaN.
fn check_finite(case: &Case) {
    let want = case.reference();
    for instructions in Instructions::here() {
        let got = case.run(&with(instructions).unwrap());
        let same = got.iter().zip(&want).all(|(g, w)| g == w || g.is_nan() && w.is_nan());
        assert!(same, "{case:?} on {instructions:?}: {got:?}, not {want:?}");
    }
}
