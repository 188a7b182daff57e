//! Products of rows of 16-bit integers have the documented bits on every processor, nothing is read that is not there, and rounding
//! is as near as its bound says.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Case, Random, Shape, Weights, integers};
use moec_cpu_kernels::{Instructions, with};
use moec_ir::DType;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};

fn shape(rows: usize, k: usize, n: usize) -> Shape {
    Shape { rows, k, n, columns: (0, n) }
}

fn format(code: Code, scale: ScaleCode, block_cols: u64) -> QuantFormat {
    QuantFormat { code, scale, block_rows: 1, block_cols }
}

/// NaN is any NaN.
fn check(case: &Case) {
    let want = case.integer_reference();
    for instructions in Instructions::here() {
        let got = case.run(&with(instructions).unwrap());
        let differ = got.iter().zip(&want).filter(|(g, w)| g.to_bits() != w.to_bits() && !(g.is_nan() && w.is_nan()));
        let n = differ.count();
        assert_eq!(n, 0, "{case:?} on {instructions:?}: {n} of {} products differ", want.len());
    }
}

fn case(seed: u64, shape: Shape, f: QuantFormat) -> Case {
    Case::new(seed, shape, Weights::Codes(f, DType::F32)).with_int16_rows(DType::BF16)
}

const CODES: [Code; 2] = [Code::E2M1, Code::Int4];

#[test]
fn every_code_scale_block_and_length() {
    for code in CODES {
        for scale in ScaleCode::ALL {
            for block in [16, 32, 64, 96, 0] {
                for (rows, k) in [(1, 192), (2, 150), (5, 33), (1, 16), (3, 17), (1, 1), (9, 600), (4, 1100)] {
                    let f = format(code, scale, block);
                    assert!(f.takes_int16_rows());
                    check(&case(k as u64 + block, shape(rows, k, 19), f));
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
    ];
    for f in formats {
        for (rows, k, n) in [(1, 2048, 40), (2, 768, 33), (3, 2880, 17), (13, 1088, 70), (64, 640, 35)] {
            check(&case(k as u64, shape(rows, k, n), f));
        }
    }
}

#[test]
fn any_number_of_rows_and_columns_of_any_type() {
    for rows in 1..=64 {
        let f = format(CODES[rows % 2], ScaleCode::E4M3, [16, 32][rows / 2 % 2]);
        let dtype = [DType::BF16, DType::F16, DType::F32][rows % 3];
        let of = Shape { columns: (rows % 3, 1 + rows * 7 % 71), ..shape(rows, 200, 80) };
        check(&Case::new(rows as u64, of, Weights::Codes(f, DType::F32)).with_int16_rows(dtype));
    }
}

#[test]
fn blocks_of_several_columns() {
    for (block_rows, block_cols) in [(0, 0), (128, 128), (2, 32), (3, 64), (5, 16), (1, 1024)] {
        for code in CODES {
            for k in [1, 33, 130, 700] {
                let f = QuantFormat { code, scale: ScaleCode::F32, block_rows, block_cols };
                check(&case(k as u64, Shape { columns: (1, 9), ..shape(1 + k % 5, k, 9) }, f));
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let f = format(Code::Int4, ScaleCode::BF16, 32);
    let all = case(5, shape(37, 1000, 11), f);
    for instructions in Instructions::here() {
        let kernels = with(instructions).unwrap();
        let together = all.run(&kernels);
        for r in [0, 17, 36] {
            let mut alone = case(5, shape(37, 1000, 11), f);
            alone.shape.rows = 1;
            alone.x = all.x[r * 1000..(r + 1) * 1000].to_vec();
            assert_eq!(alone.run(&kernels), together[r * 11..(r + 1) * 11], "row {r}, {instructions:?}");
        }
    }
}

/// Rows of 96 numbers that are hard to round.
fn nasty() -> Vec<Vec<f32>> {
    let mut random = Random(3);
    let mut rows: Vec<Vec<f32>> = [0.0, 1e-40, 2f32.powi(-133), 1e-30, 1.0, 3e38]
        .iter()
        .map(|&size| (0..96).map(|_| random.float() * size).collect())
        .collect();
    // One huge element in a block, ties, all alike, signed zeros.
    rows.push((0..96).map(|i| if i == 40 { 3e38 } else { random.float() }).collect());
    rows.push((0..96).map(|i| if i % 32 == 0 { 32767.0 } else { i as f32 - 47.5 }).collect());
    rows.push(vec![-7.25; 96]);
    rows.push((0..96).map(|i| if i % 2 == 0 { -0.0 } else { 0.0 }).collect());
    rows.push((0..96).map(|i| random.float() * 2f32.powi(i - 48)).collect());
    rows
}

/// The bound that `Products` and the documentation state, of each element by the largest of its block.
#[test]
fn rounding_errs_by_less_than_its_bound() {
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for row in nasty() {
            let row = moec_ir::Tensor::float(dtype, &[96], row).floats().to_vec();
            if row.iter().any(|v| v.is_infinite()) {
                continue;
            }
            let (codes, scales) = integers(&row);
            for (i, &x) in row.iter().enumerate() {
                let most =
                    row[i / 32 * 32..i / 32 * 32 + 32].iter().fold(2f64.powi(-110), |m, v| m.max(f64::from(v.abs())));
                let error = (f64::from(codes[i]) * f64::from(scales[i / 32]) - f64::from(x)).abs();
                assert!(error <= most * 2f64.powi(-16) * 1.01, "{dtype}: {x:e} beside {most:e} errs by {error:e}");
            }
        }
    }
}

#[test]
fn nasty_rows_have_the_documented_bits() {
    let f = format(Code::E2M1, ScaleCode::E8M0, 32);
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for (i, row) in nasty().into_iter().enumerate() {
            let mut one = Case::new(i as u64, shape(1, 96, 20), Weights::Codes(f, DType::F32));
            one.x = row;
            check(&one.with_int16_rows(dtype));
        }
    }
}

/// What is not finite makes all products of its row NaN, and of no other.
#[test]
fn infinity_and_nan_stay_in_their_row() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let f = format(Code::Int4, ScaleCode::F16, 64);
        let mut two = case(1, shape(2, 100, 18), f);
        two.x[37] = bad;
        check(&two);
        let got = two.run(&with(Instructions::Portable).unwrap());
        assert!(got[..18].iter().all(|v| v.is_nan()) && got[18..].iter().all(|v| v.is_finite()));
    }
}

/// Scales at the ends of their range, zero and NaN.
#[test]
fn scales_of_any_size() {
    for size in [0.0, 1e-40, f32::MIN_POSITIVE, 1.0, -2.7, 4e28, 1e37, f32::NAN] {
        for (code, scale) in
            [(Code::E2M1, ScaleCode::F32), (Code::E2M1, ScaleCode::E8M0), (Code::Int4, ScaleCode::BF16)]
        {
            let f = format(code, scale, 32);
            let scales = |r: &mut Random| size * (1.0 + r.float().abs());
            let weights = Weights::Codes(f, DType::F32);
            check(&Case::with_scales(9, shape(1, 96, 6), weights, scales).with_int16_rows(DType::BF16));
        }
    }
    // Every byte of scales of a byte.
    for scale in [ScaleCode::E8M0, ScaleCode::E4M3] {
        let f = format(Code::Int4, scale, 32);
        let mut next = 0u8;
        let scales = |_: &mut Random| {
            next = next.wrapping_add(1);
            scale.decode(&[next], 0)
        };
        let of = shape(1, 512, 16);
        check(&Case::with_scales(2, of, Weights::Codes(f, DType::F32), scales).with_int16_rows(DType::BF16));
    }
}
