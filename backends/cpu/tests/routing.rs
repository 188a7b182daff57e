//! Every step of row programs, and plans with ids that are out of range.
#![allow(clippy::unwrap_used)]

mod common;

use common::layer::{Builder, op};
use common::{Random, check};
use moec_ir::expr::{Binary, ExprBuilder, Unary};
use moec_ir::graph::{GroupScore, RenormRule, RowMask};
use moec_ir::shape::Dim;
use moec_ir::tile::{Body, Plan, Role, RowId, RowOp, RowOpKind, RowProgram, RowStore};
use moec_ir::{DType, Tensor};

const TOKENS: [usize; 4] = [0, 1, 7, 130];

/// Runs `ops` on one float input row of the first step's width and compares the given steps. Step 0 must load input 0.
fn check_rows(case: &str, ops: &[RowOp], keep: &[usize], inputs: impl Fn(usize) -> Vec<f32>) {
    let mut b = Builder::new(1, 0);
    let width = ops[0].width;
    let x = b.buffer("x", DType::F32, 1, Dim::TOKENS, width, Role::Input(0));
    let mut ops = ops.to_vec();
    ops[0].kind = RowOpKind::Load(x);
    let stores = keep
        .iter()
        .enumerate()
        .map(|(i, &step)| {
            let (dtype, width) = (ops[step].dtype, ops[step].width);
            let role = Role::Output(i as u32);
            let buffer = b.buffer(&format!("out{i}"), dtype, 1, Dim::TOKENS, width, role);
            RowStore { value: RowId(step as u32), buffer }
        })
        .collect();
    b.kernel("rows", Body::Rows(RowProgram::of(Dim::TOKENS, ops, stores)));
    for t in TOKENS {
        let x = Tensor::float(DType::F32, &[t, width as usize], inputs(t * width as usize));
        check(&b.program, &[x], &[], t as u64, 3e-7, case);
    }
}

fn load(width: u64) -> RowOp {
    op(RowOpKind::Load(moec_ir::tile::BufferId(0)), width)
}

fn random(n: usize) -> Vec<f32> {
    let mut r = Random(n as u64 + 1);
    (0..n).map(|_| r.float() * 4.0).collect()
}

/// Few different values, some of them special: ties everywhere.
fn ties(n: usize) -> Vec<f32> {
    let values = [1.0, 2.0, -0.0, 0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2.0, 1.5];
    let mut r = Random(n as u64 + 7);
    (0..n).map(|_| values[(r.next() >> 33) as usize % values.len()]).collect()
}

#[test]
fn top_k_orders_by_value_then_index() {
    for (width, k) in [(1, 1), (5, 5), (9, 3), (128, 8), (257, 22)] {
        let ops = [load(width), op(RowOpKind::TopK(RowId(0)), k)];
        check_rows("top-k", &ops, &[1], random);
        check_rows("top-k with ties", &ops, &[1], ties);
    }
}

#[test]
fn group_limits_fill_the_other_groups() {
    for (width, n_groups, keep) in [(16, 4, 2), (8, 8, 3), (6, 1, 1), (256, 8, 4), (10, 5, 5)] {
        for score in [GroupScore::Max, GroupScore::Top2Sum] {
            for fill in [RowMask::NegInf, RowMask::Zero] {
                let ops = [load(width), op(RowOpKind::GroupLimit { x: RowId(0), n_groups, keep, score, fill }, width)];
                check_rows("group limit", &ops, &[1], random);
                check_rows("group limit with ties", &ops, &[1], ties);
            }
        }
    }
}

#[test]
fn normalisations_agree() {
    let rules = [
        RenormRule::Sum { eps: 1e-20.into() },
        RenormRule::Sum { eps: 0.5.into() },
        RenormRule::SumAtLeast { min: 2.0.into() },
        RenormRule::PNorm { p: 1.0.into() },
        RenormRule::PNorm { p: 2.0.into() },
        RenormRule::PNorm { p: 3.0.into() },
    ];
    for width in [1, 6, 33] {
        for rule in rules {
            let ops = [load(width), op(RowOpKind::Renormalise { x: RowId(0), rule }, width)];
            check_rows("renormalise", &ops, &[1], |n| random(n).iter().map(|x| x.abs() + 0.1).collect());
        }
        let steps = [
            load(width),
            op(RowOpKind::Softmax(RowId(0)), width),
            op(RowOpKind::RmsNorm { x: RowId(0), eps: 1e-6.into() }, width),
        ];
        check_rows("softmax and norm", &steps, &[1, 2], random);
        check_rows("softmax of infinities", &steps[..2], &[1], ties);
    }
}

#[test]
fn steps_round_to_their_type_and_repeat_rows_of_one() {
    let mut e = ExprBuilder::new();
    let (x, s) = (e.arg(0), e.arg(1));
    let g = e.unary(Unary::Sigmoid, x);
    let y = e.binary(Binary::Mul, g, s);
    let expr = e.finish(y);
    let mut map = op(RowOpKind::Map { expr, args: vec![RowId(0), RowId(3)] }, 13);
    map.dtype = DType::BF16;
    let mut half = op(RowOpKind::Softmax(RowId(4)), 13);
    half.dtype = DType::F16;
    let steps = [
        load(13),
        op(RowOpKind::TopK(RowId(0)), 1),
        op(RowOpKind::Gather { x: RowId(0), ids: RowId(1) }, 1),
        op(RowOpKind::Renormalise { x: RowId(2), rule: RenormRule::SumAtLeast { min: 1.5.into() } }, 1),
        map,
        half,
    ];
    // One bf16 step in a few thousand values may land on the other side of a rounding boundary; none does here.
    check_rows("rounded steps", &steps, &[4, 5], random);
}

#[test]
fn linear_steps_add_their_bias() {
    for (width, k, dtype) in
        [(13u64, 37u64, DType::F32), (8, 64, DType::BF16), (1, 3, DType::F16), (130, 40, DType::BF16)]
    {
        let mut b = Builder::new(width, 2);
        let x = b.buffer("x", DType::BF16, 1, Dim::TOKENS, k, Role::Input(0));
        let w = b.weight("w", dtype, [1, width, k], 1.0);
        let bias = Some(b.weight("bias", dtype, [1, 1, width], 1.0));
        let first = b.weight("first", DType::F32, [1, 1, width], 1.0);
        let out = b.buffer("out", DType::F32, 1, Dim::TOKENS, width, Role::Output(0));
        let mut e = ExprBuilder::new();
        let (l, f) = (e.arg(0), e.arg(1));
        let y = e.binary(Binary::Add, l, f);
        let expr = e.finish(y);
        let ops = vec![
            op(RowOpKind::Linear { x, w, bias }, width),
            op(RowOpKind::LoadFirst(first), width),
            op(RowOpKind::Map { expr, args: vec![RowId(0), RowId(1)] }, width),
        ];
        let stores = vec![RowStore { value: RowId(2), buffer: out }];
        b.kernel("rows", Body::Rows(RowProgram::of(Dim::TOKENS, ops, stores)));
        for t in TOKENS {
            let x = b.random.tensor(DType::BF16, &[t, k as usize], 1.0);
            check(&b.program, &[x], &b.params, t as u64, 2e-6, "linear");
        }
    }
}

#[test]
fn ids_out_of_range_are_not_dispatched() {
    let mut b = Builder::new(1, 0);
    let (t, k, n_experts) = (Dim::TOKENS, 3, 5);
    let ids = b.buffer("ids", DType::I32, 1, t, k, Role::Input(0));
    let offsets = b.buffer("offsets", DType::I32, 1, Dim::Fixed(1), n_experts + 1, Role::Output(0));
    let slot_to_row = b.buffer("slot_to_row", DType::I32, 1, t, k, Role::Output(1));
    let row_to_token = b.buffer("row_to_token", DType::I32, 1, Dim::PerToken(k), 1, Role::Output(2));
    b.kernel("plan", Body::Plan(Plan { ids, n_experts, offsets, slot_to_row, row_to_token, places: None }));
    for t in TOKENS {
        let values = (0..t * 3).map(|_| (b.random.next() >> 40) as i64 % 8 - 1).collect();
        let ids = Tensor::int(DType::I32, &[t, 3], values);
        check(&b.program, &[ids], &[], t as u64, 0.0, "ids out of range");
    }
}

#[test]
fn given_ids_of_64_bits_are_loaded_and_stored() {
    let mut b = Builder::new(1, 0);
    let ids = b.buffer("ids", DType::I64, 1, Dim::TOKENS, 3, Role::Input(0));
    let scores = b.buffer("scores", DType::F32, 1, Dim::TOKENS, 6, Role::Input(1));
    let kept = b.buffer("kept", DType::I32, 1, Dim::TOKENS, 3, Role::Output(0));
    let weights = b.buffer("weights", DType::F32, 1, Dim::TOKENS, 3, Role::Output(1));
    let mut given = op(RowOpKind::Load(ids), 3);
    given.dtype = DType::I32;
    let gather = op(RowOpKind::Gather { x: RowId(1), ids: RowId(0) }, 3);
    let ops = vec![given, op(RowOpKind::Load(scores), 6), gather];
    let stores = vec![RowStore { value: RowId(0), buffer: kept }, RowStore { value: RowId(2), buffer: weights }];
    b.kernel("rows", Body::Rows(RowProgram::of(Dim::TOKENS, ops, stores)));
    for t in TOKENS {
        let values = (0..t * 3).map(|_| (b.random.next() >> 40) as i64 % 6).collect();
        let ids = Tensor::int(DType::I64, &[t, 3], values);
        let scores = b.random.tensor(DType::F32, &[t, 6], 1.0);
        check(&b.program, &[ids, scores], &[], t as u64, 0.0, "given ids");
    }
}
