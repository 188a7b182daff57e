//! Panels of codes and scales: text, verifier, evaluator.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_ir::quant::{e2m1, e4m3};
use moec_ir::tile::{Buffer, Program, Role, evaluate, evaluate_given, parse, verify};
use moec_ir::{DType, Tensor};

/// Two experts of three columns and five contracted elements: FP4 in blocks of 2 × 2, with a global scale for each expert.
const PROGRAM: &str = r#"program "layer" {
  %0 = f32[1, T, 5] pitch 5 input 0 "x"
  %1 = i32[1, 1, 3] pitch 3 input 1 "offsets"
  %2 = u8[2, 3, 3] pitch 16 weight 0 "w"
  %3 = u8[2, 2, 3] pitch 3 weight_scale 0 "w_scale"
  %4 = f32[1, 1, 2] pitch 2 weight_global 0 "w_global"
  %5 = f32[1, T, 3] pitch 3 output 0 "y"
  kernel gemm (16 x 16 x 16, 2 stages, 1 warps) contract {
    %0 by %1 * %2 as e2m1 by e4m3(2, 2) scales %3 global %4 to bf16 : a0 -> %5
  }
}
"#;

fn program() -> Program {
    let program = parse(PROGRAM).unwrap();
    assert_eq!(verify(&program), []);
    program
}

fn bytes(shape: &[usize], values: &[i64]) -> Tensor {
    Tensor::int(DType::U8, shape, values.to_vec())
}

#[test]
fn the_text_of_a_quantised_panel_reads_back() {
    assert_eq!(program().to_string(), PROGRAM);
    let no_global = PROGRAM.replace(" global %4", "");
    assert_eq!(parse(&no_global).unwrap().to_string(), no_global);
}

#[test]
fn codes_and_scales_are_operands_in_the_order_of_the_text() {
    let order: Vec<u32> = program().kernels[0].body.operands().iter().map(|(b, _)| b.0).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn values_are_code_times_the_scale_of_their_block_rounded_to_the_type() {
    let program = program();
    let codes: Vec<i64> = (0..18).map(|i| (i * 37 + 11) % 256).collect();
    let scales: Vec<i64> = (0..12).map(|i| 0x30 + i * 3).collect();
    let global = [0.3f32, 1.7];
    let x: Vec<f32> = (0..10).map(|i| i as f32 - 4.0).collect();
    let content = |b: &Buffer| match b.role {
        Role::Input(0) => Some(Tensor::float(DType::F32, &[2, 5], x.clone())),
        Role::Input(_) => Some(Tensor::int(DType::I32, &[1, 3], vec![0, 1, 2])),
        Role::Weight(_) => Some(bytes(&[6, 3], &codes)),
        Role::WeightScale(_) => Some(bytes(&[4, 3], &scales)),
        Role::WeightGlobal(_) => Some(Tensor::float(DType::F32, &[1, 2], global.to_vec())),
        Role::Output(_) | Role::Workspace | Role::Counter => None,
    };
    let got = evaluate_given(&program, 2, content).unwrap();
    let value = |e: usize, n: usize, k: usize| {
        let byte = codes[(e * 3 + n) * 3 + k / 2] as u8;
        let code = if k.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
        let scale = scales[(e * 2 + n / 2) * 3 + k / 2] as u8;
        DType::BF16.round(e2m1(code) * (e4m3(scale) * global[e]))
    };
    for t in 0..2 {
        for n in 0..3 {
            let want: f64 = (0..5).map(|k| f64::from(x[t * 5 + k]) * f64::from(value(t, n, k))).sum();
            let got = f64::from(got[0].floats()[t * 3 + n]);
            assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{t}, {n}: {got} for {want}");
        }
    }
    // The same, from the values.
    let values = (0..30).map(|i| value(i / 15, i / 5 % 3, i % 5)).collect();
    let inputs = [content(&program.buffers[0]).unwrap(), content(&program.buffers[1]).unwrap()];
    let params = [Tensor::float(DType::BF16, &[2, 3, 5], values)];
    assert_eq!(evaluate(&program, &inputs, &params, 2).unwrap(), got);
}

#[test]
fn panels_whose_parts_do_not_fit_are_refused() {
    let cases = [
        ("u8[2, 3, 3] pitch 16", "u8[2, 3, 5] pitch 16", "`w` is [2, 3, 5]; [2, 3, 3] is needed"),
        ("u8[2, 3, 3] pitch 16", "u8[2, 3, 3] pitch 8", "rows of `w` are 8 bytes apart"),
        ("u8[2, 3, 3] pitch 16", "i32[2, 3, 3] pitch 16", "`w` is i32; u8 is needed"),
        ("u8[2, 2, 3] pitch 3", "u8[2, 3, 3] pitch 3", "`w_scale` is [2, 3, 3]; [2, 2, 3] is needed"),
        ("u8[2, 2, 3] pitch 3", "f32[2, 2, 3] pitch 3", "`w_scale` is f32; u8 is needed"),
        ("f32[1, 1, 2] pitch 2", "f32[2, 1, 1] pitch 1", "`w_global` is [2, 1, 1]; [1, 1, 2] is needed"),
        ("to bf16", "to i32", "codes of `w` become i32"),
        ("weight_scale 0", "weight 1", "`w_scale` is not packed as a part of quantised weights"),
    ];
    for (from, to, want) in cases {
        let text = PROGRAM.replace(from, to);
        assert_ne!(text, PROGRAM, "{from}");
        let errors = verify(&parse(&text).unwrap());
        assert!(errors.iter().any(|e| e.message.contains(want)), "{from} → {to}: {errors:?}");
    }
    let dense = PROGRAM.replace(" as e2m1 by e4m3(2, 2) scales %3 global %4 to bf16", "");
    let errors = verify(&parse(&dense).unwrap());
    assert!(errors[0].message.contains("`w` is u8; a float type is needed"), "{errors:?}");
}
