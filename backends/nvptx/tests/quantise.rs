//! Rows of floats become the reference's codes and scales, bit for bit.

mod common;

use common::emulate::run;
use common::programs::{Builder, schedule};
use common::random::Random;
use moec_ir::act_quant::ActQuant;
use moec_ir::shape::Dim;
use moec_ir::target::Target;
use moec_ir::tile::{
    Body, BufferId, Program, Quantise, RowId, RowOp, RowOpKind, RowProgram, RowQuant, RowStore, evaluate,
};
use moec_ir::{DType, Tensor};

/// A kernel that quantises `[T, cols]`, alone or beside a router; codes, scales and global scales of rows are the outputs.
fn program(q: ActQuant, dtype: DType, cols: u64, router: bool) -> Program {
    let mut b = Builder::default();
    let x = b.input("x", dtype, Dim::TOKENS, cols);
    let given = q.has_global().then(|| b.input("global", DType::F32, Dim::Fixed(1), 1));
    let format = q.stored();
    let output = |b: &mut Builder, name: &str, dtype: DType, cols: u64, align: u64, n: u32| -> BufferId {
        let id = b.output(name, dtype, Dim::TOKENS, cols, n);
        let bytes = dtype.bytes() as u64;
        b.buffers[id.index()].pitch = (cols * bytes).next_multiple_of(align) / bytes;
        id
    };
    let out = output(&mut b, "codes", DType::U8, format.code.bytes(cols), 64, 0);
    let scales = output(&mut b, "scales", format.scale.dtype(), format.scale_grid(1, cols).1, 16, 1);
    let global = given.or_else(|| q.has_row().then(|| b.output("globals", DType::F32, Dim::TOKENS, 1, 2)));
    let quant = RowQuant { q, cols, scales, global };
    let quantise = Quantise { x, out, quant, until: None };
    if router {
        let w = b.weight("router", dtype, 1, 32, cols);
        // Another consumer asks for the same rows in another format.
        let second = ActQuant::FP8_BLOCK;
        let format = second.stored();
        let out = output(&mut b, "more_codes", DType::U8, cols, 64, 3);
        let scales = output(&mut b, "more_scales", DType::F32, format.scale_grid(1, cols).1, 16, 4);
        let quant = RowQuant { q: second, cols, scales, global: None };
        let more = Quantise { x, out, quant, until: None };
        let logits = b.output("logits", DType::F32, Dim::TOKENS, 32, 5);
        let ops = vec![RowOp { kind: RowOpKind::Linear { x, w, bias: None }, width: 32, dtype: DType::F32 }];
        let stores = vec![RowStore { value: RowId(0), buffer: logits }];
        let rows = RowProgram { quantise: vec![quantise, more], ..RowProgram::of(Dim::TOKENS, ops, stores) };
        b.kernel("route", Body::Rows(rows), schedule(4, 1, 64, 1, 2));
    } else {
        b.kernel("quantise", Body::Quantise(quantise), schedule(3, 1, 1, 1, 2));
    }
    b.finish("quantise")
}

#[test]
fn codes_and_scales_are_those_of_the_reference() {
    let formats = ActQuant::NAMES.map(|(_, q)| q).into_iter();
    for (n, q) in formats.enumerate() {
        for (dtype, cols) in [(DType::BF16, 384), (DType::F32, 2), (DType::F16, 202), (DType::BF16, 1090)] {
            let program = program(q, dtype, cols, false);
            let mut random = Random(cols + n as u64);
            let n_tokens = 5;
            // Rows of different sizes, one of zeros, one with an infinity and a NaN.
            let mut x: Vec<f32> =
                (0..n_tokens * cols).map(|i| random.unit() * 10f32.powi(i as i32 / 97 % 7 - 4)).collect();
            x[cols as usize..2 * cols as usize].fill(0.0);
            x[3 * cols as usize] = f32::NAN;
            x[4 * cols as usize] = f32::INFINITY;
            let mut inputs = vec![Tensor::float(dtype, &[n_tokens as usize, cols as usize], x)];
            if q.has_global() {
                inputs.push(Tensor::float(DType::F32, &[1, 1], vec![0.013]));
            }
            let want = evaluate(&program, &inputs, &[], n_tokens as usize).expect("tensors fit");
            for target in ["sm_100f", "sm_120f"] {
                let got = run(&program, Target::by_name(target).expect("a target"), &inputs, &[], n_tokens, 1);
                for (got, want) in got.iter().zip(&want) {
                    check(got, want, &format!("{q:?} of {dtype} x {cols} on {target}"));
                }
            }
        }
    }
}

/// The same bits, except that one NaN is as good as another.
fn check(got: &Tensor, want: &Tensor, what: &str) {
    if want.dtype.is_float() {
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(got.floats().iter().zip(want.floats()).all(same), "{what}: {got:?} is not {want:?}");
        return;
    }
    let wrong = got.ints().iter().zip(want.ints()).position(|(a, b)| a != b);
    assert!(wrong.is_none(), "{what}: element {wrong:?} of {:?} is not that of {:?}", got.ints(), want.ints());
}

#[test]
fn the_router_quantises_the_rows_that_it_reads_for_every_consumer() {
    for (q, n_tokens) in [(ActQuant::MXFP8, 1u64), (ActQuant::NVFP4_ROW, 13), (ActQuant::FP8_TOKEN, 4)] {
        let program = program(q, DType::BF16, 192, true);
        let mut random = Random(7);
        let inputs = [random.tensor(DType::BF16, &[n_tokens as usize, 192], 3.0)];
        let params = [random.tensor(DType::BF16, &[32, 192], 0.1)];
        let want = evaluate(&program, &inputs, &params, n_tokens as usize).expect("tensors fit");
        for target in ["sm_100f", "sm_120f"] {
            let got = run(&program, Target::by_name(target).expect("a target"), &inputs, &params, n_tokens, 1);
            let (logits, codes) = (got.last().expect("an output"), &got[..got.len() - 1]);
            codes.iter().zip(&want).for_each(|(g, w)| check(g, w, &format!("{q:?} on {target}")));
            assert!(logits.worst_error(want.last().expect("an output")) < 1e-6);
        }
    }
}
