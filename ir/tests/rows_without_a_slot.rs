//! Rows in expert order end where the last expert's do: text, verifier, evaluator.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moec_ir::tile::{Buffer, Program, Role, evaluate_given, parse, verify};
use moec_ir::{DType, Tensor};

/// Rows are doubled as far as they hold a slot, squared in a row program, rounded to codes, and then all copied out.
const PROGRAM: &str = r#"program "layer" {
  %0 = f32[1, T, 32] pitch 32 input 0 "x"
  %1 = i32[1, 1, 3] pitch 3 input 1 "offsets"
  %2 = f32[1, T, 32] pitch 32 workspace "doubled"
  %3 = f32[1, T, 32] pitch 32 workspace "squared"
  %4 = u8[1, T, 32] pitch 64 workspace "codes"
  %5 = u8[1, T, 1] pitch 16 workspace "scales"
  %6 = f32[1, T, 32] pitch 32 output 0 "y"
  kernel double (1 x 32 x 1, 1 stages, 1 warps) map add(a0, a0) (%0[r, c]) -> %2 until %1
  kernel square (1 x 1 x 1, 1 stages, 1 warps) rows T until %1 {
    r0 = load %2 : f32[32]
    r1 = map mul(a0, a0) (r0) : f32[32]
    store r1 -> %3
  }
  kernel round (1 x 1 x 1, 1 stages, 1 warps) quantise %3 -> %4 as e4m3 by pow2(32) of 32 scales %5 until %1
  kernel copy (1 x 32 x 1, 1 stages, 1 warps) map a0 (%3[r, c]) -> %6
}
"#;

fn program() -> Program {
    let program = parse(PROGRAM).unwrap();
    assert_eq!(verify(&program), []);
    program
}

#[test]
fn the_end_of_rows_reads_back() {
    assert_eq!(program().to_string(), PROGRAM);
}

#[test]
fn the_end_of_rows_is_an_operand() {
    for kernel in &program().kernels[..3] {
        assert!(kernel.body.operands().iter().any(|&(b, written)| b.0 == 1 && !written), "{}", kernel.name);
    }
}

#[test]
fn rows_that_hold_no_slot_are_left_alone() {
    let content = |last: i64| {
        move |b: &Buffer| match b.role {
            Role::Input(0) => Some(Tensor::float(DType::F32, &[3, 32], vec![3.0; 96])),
            Role::Input(_) => Some(Tensor::int(DType::I32, &[1, 3], vec![0, 1, last])),
            _ => None,
        }
    };
    for (last, rows) in [(0, 0), (2, 2), (3, 3), (7, 3)] {
        let got = evaluate_given(&program(), 3, content(last)).unwrap();
        let made = got[0].floats().iter().take_while(|&&v| v == 36.0).count();
        assert_eq!(made, rows * 32, "rows end at {last}");
    }
}

#[test]
fn what_others_see_is_written_whole() {
    let output = PROGRAM.replace("(%3[r, c]) -> %6", "(%3[r, c]) -> %6 until %1");
    let found = verify(&parse(&output).unwrap());
    assert!(found[0].message.contains("leaves rows of `y`, which others see"), "{found:?}");
    // Whoever is told which rows hold a slot may see the others as they are.
    let told = |role: &str| {
        let plan = format!(
            "  %7 = i32[1, T, 1] pitch 1 {role} \"slot_to_row\"\n  %8 = i32[1, T, 1] pitch 1 workspace \"row_to_token\"\n  \
             %9 = i32[1, T, 1] pitch 1 input 1 \"ids\"\n  kernel plan (1 x 1 x 1, 1 stages, 1 warps) plan %9 of 2 -> %1, %7, %8\n  \
             kernel double"
        );
        let offsets = ("input 1 \"offsets\"", "workspace \"offsets\"");
        verify(&parse(&output.replacen("  kernel double", &plan, 1).replace(offsets.0, offsets.1)).unwrap())
    };
    assert_eq!(told("output 1"), []);
    assert!(told("workspace")[0].message.contains("which others see"));
    let floats = PROGRAM.replace("until %1", "until %0");
    assert!(!verify(&parse(&floats).unwrap()).is_empty(), "offsets are integers");
}
