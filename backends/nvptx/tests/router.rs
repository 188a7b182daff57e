//! The router's product, in the emulator: however many rows and columns a CTA takes at once, a logit has the same bits.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::emulate::{error, run};
use common::programs::{Builder, schedule};
use common::random::tensors;
use moec_ir::target::Target;
use moec_ir::tile::{Body, Program, RowId, RowOp, RowOpKind, RowProgram, RowStore};
use moec_ir::{DType, Dim};

/// Logits of `width` experts, of rows with `depth` columns.
fn logits(dtype: DType, width: u64, depth: u64, (tile_m, tile_n): (u32, u32)) -> Program {
    let mut b = Builder::default();
    let x = b.input("x", dtype, Dim::TOKENS, depth);
    let w = b.weight("w", dtype, 1, width, depth);
    let out = b.output("out", DType::F32, Dim::TOKENS, width, 0);
    let op = RowOp { kind: RowOpKind::Linear { x, w, bias: None }, width, dtype: DType::F32 };
    let stores = vec![RowStore { value: RowId(0), buffer: out }];
    let rows = RowProgram::of(Dim::TOKENS, vec![op], stores);
    b.kernel("route", Body::Rows(rows), schedule(tile_m, tile_n, 64, 1, 4));
    b.finish("router")
}

#[test]
fn a_logit_has_the_same_bits_for_any_rows_and_columns_at_once() {
    for name in ["sm_80", "sm_90a"] {
        let target = Target::by_name(name).unwrap();
        for (width, depth) in [(8, 64), (60, 136), (128, 72), (384, 256)] {
            let of = |tile| logits(DType::BF16, width, depth, tile);
            let (inputs, params) = tensors(&of((4, 8)), 70, 3);
            let first = run(&of((4, 8)), target, &inputs, &params, 70, 0);
            for tile in [(16, 32), (24, 16), (32, 64), (64, 8), (64, 64)] {
                let program = of(tile);
                let same = run(&program, target, &inputs, &params, 70, 1) == first;
                assert!(same, "{name}: {width} experts, {depth} deep, {tile:?}");
                let e = error(&program, target, &inputs, &params, 70);
                assert!(e <= 1e-5, "{name}: {width} experts, {depth} deep, {tile:?}: relative error {e}");
            }
        }
    }
}

#[test]
fn exact_multiply_adds_do_not_depend_on_the_rows_at_once() {
    let target = Target::by_name("sm_90a").unwrap();
    let of = |tile| logits(DType::F32, 20, 33, tile);
    let (inputs, params) = tensors(&of((1, 1)), 9, 3);
    let first = run(&of((1, 1)), target, &inputs, &params, 9, 0);
    for tile_m in [2, 3, 8, 64] {
        assert_eq!(run(&of((tile_m, 1)), target, &inputs, &params, 9, 0), first, "{tile_m} rows");
    }
}
