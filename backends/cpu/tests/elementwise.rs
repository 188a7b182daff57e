//! Functions, rounding and addressing of elementwise kernels.
#![allow(clippy::unwrap_used)]

mod common;

use common::layer::Builder;
use common::{Random, check, compile_all, run};
use moec_ir::expr::{Binary, ExprBuilder, Unary};
use moec_ir::shape::Dim;
use moec_ir::tile::{Body, ColAccess, Map, MapArg, Program, Role, RowAccess};
use moec_ir::{ActQuant, DType, Expr, Tensor};

/// A program that maps `expr` over as many inputs `[T, cols]` as it takes.
fn map_program(expr: Expr, cols: u64, from: DType, to: DType) -> Program {
    let mut b = Builder::new(1, 0);
    let args = (0..expr.n_args() as u32)
        .map(|i| {
            let buffer = b.buffer(&format!("x{i}"), from, 1, Dim::TOKENS, cols, Role::Input(i));
            MapArg { buffer, row: RowAccess::Same, col: ColAccess::From(0) }
        })
        .collect();
    let out = b.buffer("out", to, 1, Dim::TOKENS, cols, Role::Output(0));
    b.kernel("map", Body::Map(Map { args, expr, out, until: None, out_places: None }));
    b.program
}

fn unary(f: Unary) -> Expr {
    let mut b = ExprBuilder::new();
    let x = b.arg(0);
    let y = b.unary(f, x);
    b.finish(y)
}

/// Distance in units in the last place, of floats of either sign.
fn ulps(a: f32, b: f32) -> u64 {
    if a == b || (a.is_nan() && b.is_nan()) {
        return 0;
    }
    if a.is_nan() || b.is_nan() {
        return u64::MAX;
    }
    let order = |x: f32| {
        let bits = x.to_bits() as i32;
        i64::from(if bits < 0 { i32::MIN.wrapping_sub(bits) } else { bits })
    };
    (order(a) - order(b)).unsigned_abs()
}

/// Values that a function may be given: a dense range, every magnitude, and the special ones.
fn arguments() -> Vec<f32> {
    let mut x: Vec<f32> = (-12000..12000).map(|i| i as f32 / 100.0).collect();
    x.extend((0..2048u32).map(|i| f32::from_bits(i << 21)));
    x.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, f32::MIN_POSITIVE]);
    x.extend([88.722_84, 88.722_85, -103.97, -103.98, -87.336_55, -87.4, 1e-40, -1e-40]);
    x
}

#[test]
fn functions_are_within_a_few_units_in_the_last_place() {
    let x = arguments();
    // An odd number of columns runs the scalar form of the code on the last ones.
    let cols = 67;
    let rows = x.len().div_ceil(cols);
    let mut padded = x;
    padded.resize(rows * cols, 1.25);
    let x = Tensor::float(DType::F32, &[rows, cols], padded);
    for f in Unary::ALL {
        let program = map_program(unary(f), cols as u64, DType::F32, DType::F32);
        let most = match f {
            Unary::Exp => 2,
            Unary::Sigmoid => 4,
            Unary::Neg | Unary::Abs | Unary::Softplus | Unary::Tanh | Unary::Erf | Unary::Sqrt => 0,
            Unary::RoundE4M3 | Unary::RoundE2M1 | Unary::CeilPow2 => 0,
        };
        for code in compile_all(&program) {
            let got = run(&program, &code, std::slice::from_ref(&x), &[], rows as u64);
            for (&x, &got) in x.floats().iter().zip(got[0].floats()) {
                let want = f.eval(x);
                let off = ulps(got, want);
                // The smallest sigmoids are 1 / infinity: 0 in place of a subnormal.
                let tiny = f == Unary::Sigmoid && got == 0.0 && want < f32::MIN_POSITIVE;
                assert!(
                    off <= most || tiny,
                    "{}({x:?}) = {want:?}, {} gives {got:?}, {off} ulp off",
                    f.name(),
                    code.name
                );
            }
        }
    }
}

#[test]
fn extremes_are_nan_when_either_side_is() {
    let special = [0.0, 1.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2.5];
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for x in special {
        for y in special {
            a.push(x);
            b.push(y);
        }
    }
    let shape = [1, a.len()];
    let inputs = [Tensor::float(DType::F32, &shape, a.clone()), Tensor::float(DType::F32, &shape, b.clone())];
    for f in Binary::ALL {
        let mut e = ExprBuilder::new();
        let (x, y) = (e.arg(0), e.arg(1));
        let r = e.binary(f, x, y);
        let program = map_program(e.finish(r), a.len() as u64, DType::F32, DType::F32);
        for code in compile_all(&program) {
            let got = run(&program, &code, &inputs, &[], 1);
            for ((&x, &y), &got) in a.iter().zip(&b).zip(got[0].floats()) {
                let want = f.eval(x, y);
                assert_eq!(ulps(got, want), 0, "{}({x}, {y}) is {want}, {} gives {got}", f.name(), code.name);
            }
        }
    }
}

#[test]
fn every_half_widens_to_its_value() {
    for dtype in [DType::F16, DType::BF16] {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let x = Tensor::from_bytes(dtype, &[5, 65536 / 5 + 1], &[bytes, vec![0; 8]].concat()).unwrap();
        let program = map_program(Expr::identity(), 65536 / 5 + 1, dtype, DType::F32);
        for code in compile_all(&program) {
            let got = run(&program, &code, std::slice::from_ref(&x), &[], 5);
            for (i, (got, want)) in got[0].floats().iter().zip(x.floats()).enumerate() {
                assert!(
                    got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                    "{dtype} {i:#x}: {got:?} for {want:?}, {}",
                    code.name
                );
            }
        }
    }
}

#[test]
fn stores_round_to_nearest_even() {
    // Around every half: the value, the middle to the next one, and just beside the middle.
    let mut x = Vec::new();
    for high in 0..=0xffffu32 {
        for low in [0u32, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001] {
            if high % 7 == 0 || high & 0x7fff < 0x3a00 && high & 0x7fff > 0x3200 && low != 0 {
                x.push(f32::from_bits(high << 16 | low));
            }
        }
    }
    let cols = 1003;
    x.resize(x.len().div_ceil(cols) * cols, 0.0);
    let rows = x.len() / cols;
    let x = Tensor::float(DType::F32, &[rows, cols], x);
    for dtype in [DType::F16, DType::BF16] {
        let stored = map_program(Expr::identity(), cols as u64, DType::F32, dtype);
        let rounded = map_program(Expr::round_to(dtype), cols as u64, DType::F32, DType::F32);
        for program in [stored, rounded] {
            for code in compile_all(&program) {
                let got = run(&program, &code, std::slice::from_ref(&x), &[], rows as u64);
                for (&x, &got) in x.floats().iter().zip(got[0].floats()) {
                    let want = dtype.round(x);
                    assert!(
                        got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                        "{dtype}({x:?} = {:#x}) is {want:?}, {} gives {got:?}",
                        x.to_bits(),
                        code.name
                    );
                }
            }
        }
    }
}

#[test]
fn arguments_are_addressed_by_row_and_column() {
    for padding in [0, 3] {
        let mut b = Builder::new(1, padding);
        let (t, slots) = (Dim::TOKENS, Dim::PerToken(2));
        let x = b.buffer("x", DType::F32, 1, t, 80, Role::Input(0));
        let map = b.buffer("map", DType::I32, 1, t, 2, Role::Input(1));
        let bias = b.weight("bias", DType::BF16, [1, 1, 70], 1.0);
        let gate = b.buffer("gate", DType::F16, 1, slots, 3, Role::Input(2));
        let out = b.buffer("out", DType::F32, 1, slots, 69, Role::Output(0));
        let mut e = ExprBuilder::new();
        let [x0, y, z, w] = [0, 1, 2, 3].map(|i| e.arg(i));
        let p = e.binary(Binary::Mul, x0, y);
        let q = e.binary(Binary::Add, p, z);
        let r = e.binary(Binary::Sub, q, w);
        let args = vec![
            MapArg { buffer: x, row: RowAccess::Through(map), col: ColAccess::From(11) },
            MapArg { buffer: gate, row: RowAccess::Same, col: ColAccess::First },
            MapArg { buffer: bias, row: RowAccess::First, col: ColAccess::From(1) },
            MapArg { buffer: x, row: RowAccess::Through(map), col: ColAccess::First },
        ];
        b.kernel("map", Body::Map(Map { args, expr: e.finish(r), out, until: None, out_places: None }));
        for t in [0usize, 1, 5] {
            let x = b.random.tensor(DType::F32, &[t, 80], 1.0);
            let rows = (0..2 * t as i64).map(|i| if i % 3 == 1 { -1 } else { (i * 5) % t as i64 }).collect();
            let gate = b.random.tensor(DType::F16, &[2 * t, 3], 1.0);
            let inputs = [x, Tensor::int(DType::I32, &[t, 2], rows), gate];
            check(&b.program, &inputs, &b.params, t as u64, 1e-7, "addressing");
        }
    }
}

#[test]
fn quantised_rows_are_those_of_the_reference() {
    for (cols, block, dtype) in [(70, 32, DType::BF16), (24, 8, DType::F32), (19, 5, DType::F16), (40, 64, DType::BF16)]
    {
        for q in [ActQuant::FP8_BLOCK, ActQuant::MXFP8, ActQuant::NVFP4] {
            let mut b = Builder::new(1, 0);
            let x = b.buffer("x", DType::BF16, 1, Dim::TOKENS, cols, Role::Input(0));
            let global = b.buffer("global", DType::F32, 1, Dim::Fixed(1), 1, Role::Input(1));
            let out = b.buffer("out", dtype, 1, Dim::TOKENS, cols, Role::Output(0));
            let mut args: Vec<MapArg> = [ColAccess::From(0), ColAccess::AbsMax(block)]
                .map(|col| MapArg { buffer: x, row: RowAccess::Same, col })
                .to_vec();
            args.push(MapArg { buffer: global, row: RowAccess::First, col: ColAccess::First });
            b.kernel("map", Body::Map(Map { args, expr: q.expr(), out, until: None, out_places: None }));
            let program = b.program;
            let x = Random(9).tensor(DType::BF16, &[5, cols as usize], 3.0);
            let inputs = [x, Tensor::float(DType::F32, &[1, 1], vec![0.01])];
            let want = moec_ir::tile::evaluate(&program, &inputs, &[], 5).unwrap();
            for code in compile_all(&program) {
                assert_eq!(run(&program, &code, &inputs, &[], 5), want, "{q:?}, {cols} columns, {}", code.name);
            }
        }
    }
}
