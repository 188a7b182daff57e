//! Nothing before or behind what a job points to is touched, at any odd size and in any format: memory lies beside pages that
//! cannot be touched, and on the heap, where sanitizers watch it (`cargo xtask sanitize`).
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use common::{Case, Place, Shape, Weights};
use moec_cpu_kernels::{Instructions, with};
use moec_ir::DType;
use moec_ir::quant::{Code, QuantFormat, ScaleCode};

/// Rows as a job has them.
#[derive(Clone, Copy, Debug)]
enum Rows {
    Floats,
    Bf16,
    Int16(DType),
}

/// Every kind of weights that kernels are made for, and of those that are decoded one value at a time.
fn kinds() -> Vec<(Weights, Rows)> {
    let format = |code, scale, block_cols| QuantFormat { code, scale, block_rows: 1, block_cols };
    let coded = [
        format(Code::E2M1, ScaleCode::E8M0, 32),
        format(Code::E2M1, ScaleCode::E4M3, 16),
        format(Code::Int4, ScaleCode::BF16, 32),
        format(Code::Int4, ScaleCode::F16, 128),
        format(Code::Int4, ScaleCode::F32, 0),
    ];
    let bytes = [
        format(Code::E4M3, ScaleCode::E8M0, 32),
        format(Code::E4M3, ScaleCode::F32, 0),
        format(Code::E5M2, ScaleCode::BF16, 24),
        QuantFormat { code: Code::E4M3, scale: ScaleCode::F32, block_rows: 128, block_cols: 128 },
    ];
    let mut kinds = vec![
        (Weights::Floats(DType::F32), Rows::Floats),
        (Weights::Floats(DType::F16), Rows::Floats),
        (Weights::Floats(DType::BF16), Rows::Floats),
        (Weights::Floats(DType::BF16), Rows::Bf16),
        (Weights::Codes(coded[0], DType::F16), Rows::Floats),
    ];
    for f in coded.into_iter().chain(bytes) {
        kinds.push((Weights::Codes(f, DType::BF16), Rows::Floats));
        kinds.push((Weights::Codes(f, DType::BF16), Rows::Bf16));
    }
    for (f, dtype) in coded.into_iter().zip([DType::BF16, DType::F16, DType::F32].into_iter().cycle()) {
        kinds.push((Weights::Codes(f, DType::F32), Rows::Int16(dtype)));
    }
    kinds
}

/// Runs a job in all places on all processors, which give the same bits.
fn check(seed: usize, (rows, k, n): (usize, usize, usize), (weights, kind): (Weights, Rows)) {
    // The first and the last column of the matrix are left out by turns.
    let columns = (seed % 2, seed % 2 + n);
    let shape = Shape { rows, k, n: n + 1 + seed % 3 / 2, columns };
    let mut case = Case::new(seed as u64, shape, weights);
    case = match kind {
        Rows::Floats => case,
        Rows::Bf16 => case.with_bf16_rows(),
        Rows::Int16(dtype) => case.with_int16_rows(dtype),
    };
    let mut want: Option<Vec<u32>> = None;
    for place in Place::ALL {
        case = case.placed(place);
        for instructions in Instructions::here() {
            let got: Vec<u32> = case.run(&with(instructions).unwrap()).iter().map(|v| v.to_bits()).collect();
            let want = want.get_or_insert_with(|| got.clone());
            assert!(got == *want, "{case:?} {kind:?} on {instructions:?}, {place:?}: other bits");
        }
    }
}

#[test]
fn any_number_of_columns() {
    for kind in kinds() {
        for n in 1..=70 {
            check(n, ([1, 2, 3, 4, 7][n % 5], [33, 64, 130, 96, 17, 200][n % 6], n), kind);
        }
    }
}

#[test]
fn any_number_of_rows() {
    for kind in kinds() {
        for rows in 1..=64 {
            check(rows, (rows, [40, 64, 127, 1][rows % 4], [9, 1, 5, 16, 3][rows % 5]), kind);
        }
    }
}

#[test]
fn any_length() {
    let lengths = (1..=131).chain([191, 192, 193, 255, 257, 320, 447]).chain([510, 511, 512, 513, 514, 575, 576, 577]);
    let lengths: Vec<usize> = lengths.chain([1023, 1024, 1025, 1087, 1537]).collect();
    for kind in kinds() {
        for &k in &lengths {
            check(k, ([1, 4, 2, 9][k % 4], k, [5, 8, 1, 17, 2][k % 5]), kind);
        }
    }
}
