//! Kernels that are no contractions, run in the emulator with every check on, compute what the reference evaluator computes.

mod common;

use common::emulate::run;
use common::programs::{Builder, schedule};
use common::random::{Random, tensors};
use moec_ir::expr::{Binary, ExprBuilder, Real, Unary};
use moec_ir::graph::{GroupScore, RenormRule, RowMask};
use moec_ir::target::Target;
use moec_ir::tile::{
    Body, ColAccess, Combine, Map, MapArg, Plan, Program, RowAccess, RowId, RowOp, RowOpKind, RowProgram, RowStore,
};
use moec_ir::{ActQuant, DType, Dim, Tensor};

fn sm80() -> &'static Target {
    Target::by_name("sm_80").expect("a target")
}

/// A row program over loaded rows.
fn row_program(width: u64, ops: Vec<RowOp>, out_width: u64, dtype: DType) -> Program {
    let mut b = Builder::default();
    let x = b.input("x", DType::F32, Dim::TOKENS, width);
    let mut all = vec![RowOp { kind: RowOpKind::Load(x), width, dtype: DType::F32 }];
    all.extend(ops);
    let last = RowId(all.len() as u32 - 1);
    let out = b.output("out", dtype, Dim::TOKENS, out_width, 0);
    let stores = vec![RowStore { value: last, buffer: out }];
    b.kernel("rows", Body::Rows(RowProgram::of(Dim::TOKENS, all, stores)), schedule(3, 1, 1, 1, 2));
    b.finish("rows")
}

fn op(kind: RowOpKind, width: u64, dtype: DType) -> RowOp {
    RowOp { kind, width, dtype }
}

/// Rows of random numbers, then rows with what is hard: equal values, infinities, NaN.
fn hard_rows(width: usize, scale: f32) -> Tensor {
    let mut random = Random(9);
    let mut rows = random.tensor(DType::F32, &[4, width], scale).floats().to_vec();
    rows.extend(vec![1.5; width]);
    rows.extend((0..width).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }));
    // Squares and cubes stay within f32: what the kernels sum in f32, the reference sums in f64.
    let special = [f32::INFINITY, f32::NEG_INFINITY, 1e10, -1e-40];
    rows.extend((0..width).map(|i| if i % 5 == 2 { special[i % 4] } else { random.unit() }));
    rows.extend((0..width).map(|i| if i % 7 == 4 { f32::NAN } else { random.unit() }));
    Tensor::float(DType::F32, &[8, width], rows)
}

#[test]
fn every_row_step_is_right() {
    for width in [1u64, 6, 32, 60, 256, 384, 1024] {
        let groups = if width % 6 == 0 { 6 } else { width.min(8) as u32 };
        let k = width.min(9);
        let x = RowId(0);
        let f32 = DType::F32;
        let limit = |score, fill| RowOpKind::GroupLimit { x, n_groups: groups, keep: groups.div_ceil(2), score, fill };
        let renorm = |rule| RowOpKind::Renormalise { x, rule };
        let cases = vec![
            ("softmax", vec![op(RowOpKind::Softmax(x), width, f32)], width, f32),
            ("softmax in bf16", vec![op(RowOpKind::Softmax(x), width, DType::BF16)], width, DType::BF16),
            ("rms norm", vec![op(RowOpKind::RmsNorm { x, eps: Real(1e-6) }, width, f32)], width, f32),
            ("group limit by max", vec![op(limit(GroupScore::Max, RowMask::NegInf), width, f32)], width, f32),
            ("group limit by two", vec![op(limit(GroupScore::Top2Sum, RowMask::Zero), width, f32)], width, f32),
            ("top-k", vec![op(RowOpKind::TopK(x), k, DType::I32)], k, DType::I32),
            ("all", vec![op(RowOpKind::TopK(x), width, DType::I32)], width, DType::I32),
            (
                "gather",
                vec![op(RowOpKind::TopK(x), k, DType::I32), op(RowOpKind::Gather { x, ids: RowId(1) }, k, DType::F16)],
                k,
                DType::F16,
            ),
            ("sum", vec![op(renorm(RenormRule::Sum { eps: Real(1e-20) }), width, f32)], width, f32),
            ("sum at least", vec![op(renorm(RenormRule::SumAtLeast { min: Real(1e-12) }), width, f32)], width, f32),
            ("1-norm", vec![op(renorm(RenormRule::PNorm { p: Real(1.0) }), width, f32)], width, f32),
            ("2-norm", vec![op(renorm(RenormRule::PNorm { p: Real(2.0) }), width, f32)], width, f32),
            ("3-norm", vec![op(renorm(RenormRule::PNorm { p: Real(3.0) }), width, f32)], width, f32),
        ];
        for (name, ops, out_width, dtype) in cases {
            if name == "all" && width > 256 {
                continue;
            }
            let program = row_program(width, ops, out_width, dtype);
            // Sums of numbers of both signs cancel; the rules are for scores, which are not negative.
            let mut x = hard_rows(width as usize, 3.0);
            if name.starts_with("sum") {
                x = Tensor::float(DType::F32, &x.shape, x.floats().iter().map(|v| v.abs()).collect());
            }
            let want = moec_ir::tile::evaluate(&program, std::slice::from_ref(&x), &[], 8).expect("tensors fit");
            let got = run(&program, sm80(), &[x], &[], 8, 2);
            if dtype == DType::I32 {
                assert_eq!(got, want, "{name} of {width}");
                continue;
            }
            for (row, (g, w)) in
                got[0].floats().chunks(out_width as usize).zip(want[0].floats().chunks(out_width as usize)).enumerate()
            {
                for (g, w) in g.iter().zip(w) {
                    let close = (g.is_nan() && w.is_nan())
                        || g == w
                        || (g - w).abs() <= w.abs() * if dtype == f32 { 2e-6 } else { 8e-3 } + 1e-37;
                    assert!(close, "{name} of {width}, row {row}: {g} instead of {w}");
                }
            }
        }
    }
}

/// Largest error of a function over `xs`, in units of the last place of the reference, with at least `floor` as the unit.
fn ulps(f: Unary, xs: &[f32], floor: f32) -> (f32, f32) {
    let mut b = Builder::default();
    let x = b.input("x", DType::F32, Dim::TOKENS, 64);
    let out = b.output("out", DType::F32, Dim::TOKENS, 64, 0);
    let mut e = ExprBuilder::new();
    let arg = e.arg(0);
    let y = e.unary(f, arg);
    let arg = MapArg { buffer: x, row: RowAccess::Same, col: ColAccess::From(0) };
    b.kernel(
        "map",
        Body::Map(Map { args: vec![arg], expr: e.finish(y), out, until: None, out_places: None }),
        schedule(2, 64, 1, 1, 1),
    );
    let program = b.finish("map");
    let rows = xs.len().div_ceil(64);
    let mut values = xs.to_vec();
    values.resize(rows * 64, 0.5);
    let got = run(&program, sm80(), &[Tensor::float(DType::F32, &[rows, 64], values.clone())], &[], rows as u64, 0);
    let mut worst = (0.0f32, 0.0);
    for (&x, &got) in values.iter().zip(got[0].floats()) {
        let want = f.eval(x);
        if want.is_nan() || want.is_infinite() {
            assert!(got == want || (got.is_nan() && want.is_nan()), "{}({x}) = {got} instead of {want}", f.name());
            continue;
        }
        let unit = (want.abs() * f32::EPSILON).max(floor);
        let error = (got - want).abs() / unit;
        if error.is_nan() || error > worst.0 {
            worst = (if error.is_nan() { f32::INFINITY } else { error }, x);
        }
    }
    worst
}

#[test]
fn functions_are_accurate_over_their_whole_range() {
    let mut xs: Vec<f32> = (-2000..2000).map(|i| i as f32 * 0.0531).collect();
    xs.extend((-600..600).map(|i| i as f32 * 0.0101));
    xs.extend((-40..10).flat_map(|e| [1.0f32, -1.0, 1.37, -1.71].map(|m| m * 2f32.powi(e))));
    xs.extend([
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN,
        1e-45,
        -1e-45,
        0.0,
        -0.0,
        88.72,
        88.73,
        -103.9,
        -87.4,
    ]);
    let mut wrong = Vec::new();
    for (f, most) in [
        (Unary::Exp, 2.5),
        (Unary::Sigmoid, 3.0),
        (Unary::Tanh, 3.0),
        (Unary::Erf, 3.0),
        (Unary::Softplus, 3.0),
        (Unary::Sqrt, 0.0),
        (Unary::Abs, 0.0),
        (Unary::Neg, 0.0),
        (Unary::RoundE4M3, 0.0),
        (Unary::RoundE2M1, 0.0),
        (Unary::CeilPow2, 0.0),
    ] {
        let xs: Vec<f32> = match f {
            Unary::Sqrt => xs.iter().map(|x| x.abs()).collect(),
            _ => xs.clone(),
        };
        let (worst, at) = ulps(f, &xs, 1e-44);
        if worst > most {
            wrong.push(format!("{}({at}): {worst} ulp", f.name()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn min_and_max_keep_nan() {
    let mut b = Builder::default();
    let (x, y) = (b.input("x", DType::F32, Dim::TOKENS, 3), b.input("y", DType::F32, Dim::Fixed(1), 3));
    let out = b.output("out", DType::F32, Dim::TOKENS, 3, 0);
    let mut e = ExprBuilder::new();
    let (p, q) = (e.arg(0), e.arg(1));
    let (min, max) = (e.binary(Binary::Min, p, q), e.binary(Binary::Max, p, q));
    let d = e.binary(Binary::Div, min, max);
    let args = [(x, RowAccess::Same), (y, RowAccess::First)].map(|(buffer, row)| MapArg {
        buffer,
        row,
        col: ColAccess::From(0),
    });
    b.kernel(
        "map",
        Body::Map(Map { args: args.to_vec(), expr: e.finish(d), out, until: None, out_places: None }),
        schedule(1, 4, 1, 1, 1),
    );
    let program = b.finish("map");
    let x = Tensor::float(DType::F32, &[2, 3], vec![1.0, f32::NAN, 3.0, 7.0, 2.0, -0.5]);
    let y = Tensor::float(DType::F32, &[1, 3], vec![2.0, 1.0, f32::NAN]);
    let want = moec_ir::tile::evaluate(&program, &[x.clone(), y.clone()], &[], 2).expect("tensors fit");
    let got = run(&program, sm80(), &[x, y], &[], 2, 1);
    assert_eq!(got[0].floats().map_nan(), want[0].floats().map_nan());
}

/// NaN as a value that equals itself.
trait MapNan {
    fn map_nan(&self) -> Vec<Option<f32>>;
}
impl MapNan for [f32] {
    fn map_nan(&self) -> Vec<Option<f32>> {
        self.iter().map(|x| (!x.is_nan()).then_some(*x)).collect()
    }
}

#[test]
fn maps_read_rows_through_a_map_and_columns_at_an_offset() {
    for (cols, pitch) in [(24, 0), (5, 1), (8, 8)] {
        let mut b = Builder { padding: pitch, ..Builder::default() };
        let x = b.input("x", DType::BF16, Dim::TOKENS, 2 * cols);
        let gate = b.input("gate", DType::F32, Dim::TOKENS, 1);
        let map = b.input("map", DType::I32, Dim::TOKENS, 1);
        let out = b.output("out", DType::F16, Dim::TOKENS, cols, 0);
        let mut e = ExprBuilder::new();
        let (p, q, g) = (e.arg(0), e.arg(1), e.arg(2));
        let s = e.binary(Binary::Add, p, q);
        let s = e.binary(Binary::Mul, s, g);
        let args = vec![
            MapArg { buffer: x, row: RowAccess::Through(map), col: ColAccess::From(cols) },
            MapArg { buffer: x, row: RowAccess::Same, col: ColAccess::From(0) },
            MapArg { buffer: gate, row: RowAccess::Same, col: ColAccess::First },
        ];
        b.kernel(
            "map",
            Body::Map(Map { args, expr: e.finish(s), out, until: None, out_places: None }),
            schedule(2, 16, 1, 1, 2),
        );
        let program = b.finish("map");
        let (mut inputs, _) = tensors(&program, 6, 4);
        inputs[2] = Tensor::int(DType::I32, &[6, 1], vec![3, -1, 0, 5, -7, 1]);
        let want = moec_ir::tile::evaluate(&program, &inputs, &[], 6).expect("tensors fit");
        assert_eq!(run(&program, sm80(), &inputs, &[], 6, 2), want, "{cols} columns");
    }
}

#[test]
fn quantised_rows_are_those_of_the_reference() {
    for (cols, block, dtype) in [(72, 32, DType::BF16), (24, 8, DType::F32), (19, 5, DType::F16), (40, 64, DType::BF16)]
    {
        for q in [ActQuant::FP8_BLOCK, ActQuant::MXFP8, ActQuant::NVFP4] {
            let mut b = Builder::default();
            let x = b.input("x", DType::BF16, Dim::TOKENS, cols);
            let global = b.input("global", DType::F32, Dim::Fixed(1), 1);
            let out = b.output("out", dtype, Dim::TOKENS, cols, 0);
            let mut args: Vec<MapArg> = [ColAccess::From(0), ColAccess::AbsMax(block)]
                .map(|col| MapArg { buffer: x, row: RowAccess::Same, col })
                .to_vec();
            args.push(MapArg { buffer: global, row: RowAccess::First, col: ColAccess::First });
            b.kernel(
                "map",
                Body::Map(Map { args, expr: q.expr(), out, until: None, out_places: None }),
                schedule(2, 32, 1, 1, 1),
            );
            let program = b.finish("map");
            let (mut inputs, _) = tensors(&program, 5, 9);
            inputs[1] = Tensor::float(DType::F32, &[1, 1], vec![0.01]);
            let want = moec_ir::tile::evaluate(&program, &inputs, &[], 5).expect("tensors fit");
            assert_eq!(run(&program, sm80(), &inputs, &[], 5, 2), want, "{q:?}, {cols} columns");
        }
    }
}

#[test]
fn plans_are_stable_and_drop_ids_out_of_range() {
    for (n_experts, top_k, warps, tokens) in
        [(8, 2, 32, vec![0, 1, 5, 300]), (1000, 3, 32, vec![1, 40]), (3, 1, 4, vec![700])]
    {
        let mut b = Builder::default();
        let t = Dim::TOKENS;
        let ids = b.input("ids", DType::I32, t, top_k);
        let offsets = b.output("offsets", DType::I32, Dim::Fixed(1), n_experts + 1, 0);
        let slot_to_row = b.output("slot_to_row", DType::I32, t, top_k, 1);
        let row_to_token = b.output("row_to_token", DType::I32, Dim::PerToken(top_k), 1, 2);
        let plan = Plan { ids, n_experts, offsets, slot_to_row, row_to_token, places: None };
        b.kernel("plan", Body::Plan(plan), schedule(1, 1, 1, 1, warps));
        let program = b.finish("plan");
        let mut random = Random(n_experts);
        for t in tokens {
            let n = (t * top_k) as usize;
            let every = |f: &mut dyn FnMut() -> i64| (0..n).map(|_| f()).collect::<Vec<i64>>();
            let lists = [
                every(&mut || random.below(n_experts) as i64),
                every(&mut || random.below(n_experts + 4) as i64 - 2),
                every(&mut || n_experts as i64 - 1),
                every(&mut || -1),
            ];
            for list in lists {
                let ids = Tensor::int(DType::I32, &[t as usize, top_k as usize], list);
                let want =
                    moec_ir::tile::evaluate(&program, std::slice::from_ref(&ids), &[], t as usize).expect("fits");
                assert_eq!(run(&program, sm80(), &[ids], &[], t, 1), want, "E = {n_experts}, T = {t}");
            }
        }
    }
}

#[test]
fn combines_without_a_row_map_read_slots_in_order() {
    let mut b = Builder::default();
    let (t, k) = (Dim::TOKENS, 3);
    let y = b.input("y", DType::F32, Dim::PerToken(k), 20);
    let weights = b.input("weights", DType::BF16, t, k);
    let out = b.output("out", DType::F32, t, 20, 0);
    let expr = moec_ir::Expr::identity();
    b.kernel(
        "combine",
        Body::Combine(Combine { y, slot_to_row: None, weights, args: vec![], expr, out }),
        schedule(1, 8, 1, 1, 1),
    );
    let program = b.finish("combine");
    let (inputs, _) = tensors(&program, 4, 6);
    let want = moec_ir::tile::evaluate(&program, &inputs, &[], 4).expect("tensors fit");
    assert_eq!(run(&program, sm80(), &inputs, &[], 4, 1), want);
}
